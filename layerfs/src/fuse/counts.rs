//! How often the kernel asked for what. The whole design rests on few messages; this is what shows that they are.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What is counted: kinds of requests, and reads that had to wait for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
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

const KINDS: usize = NAMES.len();

/// As a metric's label has them, in the order of [`RequestKind`].
const NAMES: [&str; 13] = [
    "lookup",
    "getattr",
    "readlink",
    "open",
    "opendir",
    "flush",
    "read",
    "late_read",
    "readdir",
    "readdirplus",
    "statfs",
    "getxattr",
    "listxattr",
];

/// JobCount by the door, in the order of [`RequestKind`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    asked: [AtomicU64; KINDS],
    /// Bytes of the largest read.
    largest_read: AtomicU32,
    /// Requests of this kind panic, for tests of what happens then; 0 is none.
    #[cfg(test)]
    trap: AtomicU64,
}

impl Counts {
    pub(super) fn note(&self, asked: RequestKind) {
        self.asked[asked as usize].fetch_add(1, Ordering::Relaxed);
        #[cfg(test)]
        self.spring(asked);
    }

    /// By the name of the request. A read that has to wait counts as a late one, too.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(&self.asked).map(|(name, asked)| (name, asked.load(Ordering::Relaxed)))
    }

    pub(super) fn note_size(&self, bytes: u32) {
        self.largest_read.fetch_max(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Counts {
    pub(crate) fn of(&self, asked: RequestKind) -> u64 {
        self.asked[asked as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn largest_read(&self) -> u32 {
        self.largest_read.load(Ordering::Relaxed)
    }

    /// From now on requests of this kind panic.
    pub(crate) fn trap(&self, asked: Option<RequestKind>) {
        self.trap.store(asked.map_or(0, |asked| asked as u64 + 1), Ordering::Relaxed);
    }

    fn spring(&self, asked: RequestKind) {
        let is_trap = self.trap.load(Ordering::Relaxed) == asked as u64 + 1;
        assert!(!is_trap, "a test wants {asked:?} to panic");
    }
}
