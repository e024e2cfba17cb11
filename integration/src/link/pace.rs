//! So many bytes a second, for all requests together.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What an idle line has saved up at most.
const BURST: Duration = Duration::from_millis(5);

/// When the line will be free of what was promised so far.
#[derive(Debug)]
pub(super) struct Bucket {
    bytes_per_second: Option<u64>,
    free_at: Mutex<Instant>,
}

impl Bucket {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Bucket {
        Bucket { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Returns when `bytes` have had their time on the line.
    pub(super) fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let now = Instant::now();
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        *free_at = (*free_at).max(earliest) + cost;
        let done = *free_at;
        drop(free_at);
        thread::sleep(done.saturating_duration_since(now));
    }
}
