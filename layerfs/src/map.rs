//! Files mapped into memory: the one island of `unsafe` in this crate.
//!
//! Only a layer's `ztoc` is mapped. It lies in our own directory (mode 0700), is written under another name
//! and renamed into place, and is never changed or truncated afterwards, only unlinked.

#![allow(unsafe_code)]

use std::{fs::File, io};

use memmap2::Mmap;

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
