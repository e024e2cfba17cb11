//! Limits of the fetch engine, and the permits that keep them.
//!
//! Everything that brings bytes takes one request permit and permits for its bytes before it starts, and
//! gives them back when the last byte was dealt with, so that memory is bounded by `max_bytes_in_flight`
//! whatever the readers do. Demand never queues behind fill: fill may hold only a part of either.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes in a permit: a semaphore counts to 2^61 permits, but acquires 2^32 at once.
const UNIT: u64 = 4096;

/// What the engine may use at once. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes asked for and not yet dealt with, as they come or inflated, whichever is more.
    pub max_bytes_in_flight: u64,
    /// Requests under way, over all layers.
    pub max_requests: usize,
    /// How long a reader waits for a source that cannot be reached before it gets an error.
    pub read_timeout: Duration,
    /// The longest run of spans that background fill asks for at once, compressed.
    pub fill_request: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes_in_flight: 64 << 20,
            max_requests: 32,
            read_timeout: Duration::from_secs(900),
            // At 1 Gbit/s a demand read queues behind 32 ms of this; below it, round trips show.
            fill_request: 4 << 20,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Budget {
    bytes: Arc<Semaphore>,
    byte_permits: u32,
    requests: Arc<Semaphore>,
    fill_requests: Arc<Semaphore>,
}

/// Given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _held: Vec<OwnedSemaphorePermit>,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        let byte_permits = u32::try_from(limits.max_bytes_in_flight / UNIT).unwrap_or(u32::MAX).max(1);
        Self {
            bytes: Arc::new(Semaphore::new(byte_permits as usize)),
            byte_permits,
            requests: Arc::new(Semaphore::new(limits.max_requests.max(2))),
            // A quarter: enough to keep a link busy, never enough to keep a reader waiting for a permit.
            fill_requests: Arc::new(Semaphore::new((limits.max_requests / 4).max(1))),
        }
    }

    /// For a reader who waits.
    pub(crate) async fn demand(&self, bytes: u64) -> Permit {
        Permit { _held: vec![take(&self.requests, 1).await, take(&self.bytes, self.permits(bytes)).await] }
    }

    /// For what nobody waits for.
    pub(crate) async fn fill(&self, bytes: u64) -> Permit {
        let fill = take(&self.fill_requests, 1).await;
        let mut permit = self.demand(bytes).await;
        permit._held.push(fill);
        permit
    }

    /// A request larger than everything allowed takes everything: it runs, alone.
    fn permits(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.byte_permits)
    }
}

async fn take(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    semaphore.clone().acquire_many_owned(permits).await.expect("no semaphore of a budget is ever closed")
}
