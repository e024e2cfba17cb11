//! Limits: requests under way, bytes held, and how much of either may go to what nobody waits for.
//!
//! A request is let go when there is room for it and gives its room back when its last byte was dealt with, so
//! that memory is bounded by `max_bytes_in_flight` whatever the readers do. Demand never queues behind fill: fill
//! starts only what leaves room for a reader, and only while less is on its way than keeps the line busy.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::Instant};

use crate::{pace::Allowance, sync::Mutex};

/// What the engine may use at once. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Compressed bytes asked for and not yet dealt with; as many uncompressed ones are held on their way to the
    /// disk.
    pub max_bytes_in_flight: u64,
    /// Requests under way, over all layers.
    pub max_requests: usize,
    /// How long a reader waits for a source that cannot be reached before it gets an error.
    pub read_timeout: Duration,
    /// Whether a reader's request that takes unusually long is made a second time.
    pub hedge: bool,
    /// Bytes a second that background fill may take; `None` = no limit.
    pub fill_bandwidth: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes_in_flight: 64 << 20,
            max_requests: 32,
            read_timeout: Duration::from_secs(900),
            hedge: true,
            fill_bandwidth: None,
        }
    }
}

#[derive(Debug)]
struct State {
    requests: usize,
    /// Compressed bytes of them all.
    held: u64,
    /// Compressed bytes asked for by fill that have not arrived.
    coming: u64,
    /// Whole layers that somebody waits for: they have the line to themselves and the readers.
    streams: usize,
    allowance: Allowance,
}

/// Shared by all layers of an engine.
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<State>,
    changed: Notify,
    max_bytes: u64,
}

/// Room for one request; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    held: u64,
    coming: u64,
}

/// See [`Budget::stream`].
#[derive(Debug)]
pub(crate) struct Streaming(Arc<Budget>);

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.state.lock().streams -= 1;
        self.0.changed.notify_waiters();
    }
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            state: Mutex::new(State {
                requests: 0,
                held: 0,
                coming: 0,
                streams: 0,
                allowance: Allowance::new(limits.max_requests.max(2)),
            }),
            changed: Notify::new(),
            max_bytes: limits.max_bytes_in_flight,
        }
    }

    /// For a reader who waits. What is larger than everything allowed runs alone.
    pub(crate) async fn demand(self: &Arc<Self>, bytes: u64) -> Permit {
        self.take(bytes, |state| {
            let room = state.held == 0 || state.held.saturating_add(bytes) <= self.max_bytes;
            room && state.requests < state.allowance.now()
        })
        .await
    }

    /// For what nobody waits for: when less than `window` bytes are coming, and what is left is enough for a
    /// reader. Ask before claiming anything: what is claimed and not asked for is what readers wait for.
    pub(crate) async fn fill(self: &Arc<Self>, bytes: u64, window: u64) -> Permit {
        let mut permit = self
            .take(bytes, |state| {
                // Not much more than the threads that inflate get through soon: what is chosen later is chosen better.
                let most = (self.max_bytes / 4 * 3).min(window.saturating_mul(2));
                let room = state.held == 0 || state.held.saturating_add(bytes) <= most;
                let allowed = state.allowance.now();
                room && state.streams == 0
                    && state.coming < window
                    && state.requests < (allowed - allowed / 4).max(1)
            })
            .await;
        permit.coming = bytes;
        self.state.lock().coming += bytes;
        permit
    }

    async fn take(self: &Arc<Self>, bytes: u64, fits: impl Fn(&State) -> bool) -> Permit {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock();
                if fits(&state) {
                    state.requests += 1;
                    state.held += bytes;
                    return Permit { budget: self.clone(), held: bytes, coming: 0 };
                }
            }
            changed.await;
        }
    }

    /// A layer is streamed whole as long as this lives.
    pub(crate) fn stream(self: &Arc<Self>) -> Streaming {
        self.state.lock().streams += 1;
        Streaming(self.clone())
    }

    /// A request was answered; `busy` when the server said that it has too much to do.
    pub(crate) fn answered(&self, busy: bool) {
        let mut state = self.state.lock();
        if busy {
            state.allowance.busy(Instant::now());
        } else {
            state.allowance.good();
        }
    }
}

impl Permit {
    /// What is asked for turned out to have this many bytes.
    pub(crate) fn resize(&mut self, bytes: u64) {
        let mut state = self.budget.state.lock();
        state.held = state.held - self.held + bytes;
        state.coming = state.coming - self.coming + bytes;
        drop(state);
        (self.held, self.coming) = (bytes, bytes);
        self.budget.changed.notify_waiters();
    }

    /// So many bytes of a fill have arrived: the line is free for as many.
    pub(crate) fn arrived(&mut self, bytes: u64) {
        let bytes = bytes.min(self.coming);
        if bytes > 0 {
            self.coming -= bytes;
            self.budget.state.lock().coming -= bytes;
            self.budget.changed.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.requests -= 1;
        state.held -= self.held;
        state.coming -= self.coming;
        drop(state);
        self.budget.changed.notify_waiters();
    }
}
