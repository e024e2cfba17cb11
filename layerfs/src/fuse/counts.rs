//! How often the kernel asked for what. The whole design rests on few messages; this is what shows that they are.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What is counted: kinds of requests, and reads that had to wait for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Lookup,
    Getattr,
    Readlink,
    Open,
    Opendir,
    Flush,
    Read,
    LateRead,
    Readdir,
    Readdirplus,
    Statfs,
    Getxattr,
    Listxattr,
}

const KINDS: usize = Asked::Listxattr as usize + 1;

/// Counted by the door, in the order of [`Asked`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    asked: [AtomicU64; KINDS],
    /// Bytes of the largest read.
    largest_read: AtomicU32,
    /// A request of this kind panics, once: for tests of what happens then. 0 is none.
    #[cfg(test)]
    trap: AtomicU64,
}

impl Counts {
    pub(super) fn note(&self, asked: Asked) {
        self.asked[asked as usize].fetch_add(1, Ordering::Relaxed);
        #[cfg(test)]
        self.spring(asked);
    }

    pub(super) fn note_size(&self, bytes: u32) {
        self.largest_read.fetch_max(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Counts {
    pub(crate) fn of(&self, asked: Asked) -> u64 {
        self.asked[asked as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn largest_read(&self) -> u32 {
        self.largest_read.load(Ordering::Relaxed)
    }

    /// The next request of this kind panics.
    pub(crate) fn trap(&self, asked: Asked) {
        self.trap.store(asked as u64 + 1, Ordering::Relaxed);
    }

    fn spring(&self, asked: Asked) {
        let set = asked as u64 + 1;
        let sprung = self.trap.compare_exchange(set, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        assert!(!sprung, "a test wants {asked:?} to panic");
    }
}
