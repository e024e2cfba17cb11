//! What stands for something else: a file for memory, a descriptor for another. The one island of `unsafe` in this
//! crate.
//!
//! Only a layer's `ztoc` is mapped. It lies in our own directory (mode 0700), is written under another name
//! and renamed into place, and is never changed or truncated afterwards, only unlinked. What is shared with other
//! processes is words, read and written as a whole each. Only the descriptor of a FUSE session is put in another's
//! place, before the session runs.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::AtomicU64,
};

use memmap2::{Mmap, MmapOptions, MmapRaw};
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

/// Words that other processes may see and change.
#[derive(Debug)]
pub(crate) struct Words {
    map: MmapRaw,
    count: usize,
}

impl Words {
    /// The first `count` words of `file`, which has as many and keeps them.
    pub(crate) fn of(file: &File, count: usize) -> io::Result<Self> {
        Ok(Self { map: MmapOptions::new().len(count * size_of::<u64>()).map_raw(file)?, count })
    }

    pub(crate) fn word(&self, place: usize) -> &AtomicU64 {
        assert!(place < self.count, "there are {} words", self.count);
        // SAFETY: the map begins on a page, so that each word of it is aligned; it is as long as said, shared, and
        // lives as long as `self`; nobody looks at it but through atomics. The file is memory of ours that nobody
        // makes shorter.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(place)) }
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
