//! How often the kernel made which request. The design relies on few messages; these counts show that they are few.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Kinds of requests; a read that had to wait for bytes is counted as a late read, too.
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

/// Values of the metric's label, in the order of [`RequestKind`].
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

/// Requests that the door has answered, in the order of [`RequestKind`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    asked: [AtomicU64; KINDS],
    /// Bytes of the largest read.
    largest_read: AtomicU32,
    /// Requests of this kind panic, so that tests see the outcome; 0 is none.
    #[cfg(test)]
    trap: AtomicU64,
}

impl Counts {
    pub(super) fn note(&self, asked: RequestKind) {
        self.asked[asked as usize].fetch_add(1, Ordering::Relaxed);
        #[cfg(test)]
        self.spring(asked);
    }

    /// The counts by the name of the request.
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
