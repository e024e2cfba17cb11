//! What stands for something else: a file for memory, a descriptor for another. The one island of `unsafe` in this
//! crate.
//!
//! Only a layer's `ztoc` is mapped. It lies in our own directory (mode 0700), is written under another name
//! and renamed into place, and is never changed or truncated afterwards, only unlinked. Only the descriptor of a
//! FUSE session is put in another's place, before the session runs.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use memmap2::Mmap;
use rustix::io::DupFlags;

/// A read-only view of a whole file.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps `file`, whose length the caller has checked to be above zero.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is only unsound if the file shrinks or changes under it; no code of ours
        // writes to a ztoc after its rename, and nobody else may write below the daemon's root.
        unsafe { Mmap::map(file) }.map(Self)
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Makes the number that `owner` has as its descriptor stand for the open file of `file`, close-on-exec. What it
/// stood for before is closed.
pub(crate) fn put_in_place(file: impl AsFd, owner: &impl AsFd) -> io::Result<()> {
    let number = owner.as_fd().as_raw_fd();
    // SAFETY: the number is open as long as `owner` is borrowed, and it is never closed from here: the second
    // owner made of it is forgotten. To the first it stays an open descriptor, of another file, which is what
    // the caller wants.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(rustix::io::dup3(file, &mut place, DupFlags::CLOEXEC)?)
}
