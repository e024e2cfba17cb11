//! Spans that the disk took and could not return.
//!
//! A span that was stored and cannot be read is fetched again. After a few times the disk is not given that span
//! any more: every reader of it is served from memory, and the background does not fetch it.

use std::collections::HashMap;

use crate::sync::Mutex;

/// A span that could not be read this many times is no longer stored.
pub(super) const MAX_FAILED_READS: u32 = 2;

/// How often each span of a layer could not be read after it had been stored.
#[derive(Debug, Default)]
pub(super) struct Damage {
    failed_reads: Mutex<HashMap<u32, u32>>,
}

impl Damage {
    /// Counts a failed read of a stored span.
    pub(super) fn note(&self, span: u32) {
        *self.failed_reads.lock().entry(span).or_insert(0) += 1;
    }

    /// Whether the span is not stored any more.
    pub(super) fn is_unreadable(&self, span: u32) -> bool {
        self.failed_reads.lock().get(&span).is_some_and(|times| *times >= MAX_FAILED_READS)
    }

    /// How many spans are not stored any more.
    pub(super) fn unreadable(&self) -> usize {
        self.failed_reads.lock().values().filter(|times| **times >= MAX_FAILED_READS).count()
    }
}
