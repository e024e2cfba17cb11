//! Raw memory and descriptors: a file mapped into memory, and a descriptor put in another's place. The one island of
//! `unsafe` in this crate.
//!
//! Only a layer's `ztoc` is mapped for reading. It lies in the daemon's own directory (mode 0700), is written under
//! another name and renamed into place, and is never changed or truncated afterwards, only unlinked. Memory that is
//! shared with other processes is words, each read and written atomically. Only the descriptor of a FUSE session is
//! put in another's place, before the session runs.

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
        // SAFETY: the mapping is only unsound if the file shrinks or changes under it. This crate does not write to a
        // ztoc after its rename, and no other program may write below the daemon's root.
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
    /// The first `count` words of `file`, which is at least that long and is never made shorter.
    pub(crate) fn of(file: &File, count: usize) -> io::Result<Self> {
        Ok(Self { map: MmapOptions::new().len(count * size_of::<u64>()).map_raw(file)?, count })
    }

    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "there are {} words", self.count);
        // SAFETY: the map begins on a page, so each word in it is aligned. It is `count` words long, shared, and
        // lives as long as `self`; every access to it is atomic. The file is memory that no process makes shorter.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(index)) }
    }
}

/// Makes the descriptor number of `owner` refer to the open file of `file`, close-on-exec. The file that it
/// referred to before is closed.
pub(crate) fn put_in_place(file: impl AsFd, owner: &impl AsFd) -> io::Result<()> {
    let number = owner.as_fd().as_raw_fd();
    // SAFETY: the number is open as long as `owner` is borrowed, and it is never closed here: the second owner made
    // of it is forgotten. To the first owner it stays an open descriptor, of another file, which is what the caller
    // wants.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(rustix::io::dup3(file, &mut place, DupFlags::CLOEXEC)?)
}
