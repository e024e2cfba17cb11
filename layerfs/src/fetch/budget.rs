//! Limits: requests under way, bytes held, and how much of both the background may use.
//!
//! A request starts when there is room for it, and frees its room when its last byte was stored. So
//! `max_bytes_in_flight` bounds the memory, however many readers there are. Demand never queues behind fill. Fill
//! starts only when it leaves room for a reader, and only while fewer bytes are under way than keep the line busy. No
//! host can take all of any limit: a host that does not answer must not hold up requests to others.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{fetch::pace::Allowance, sync::Mutex};

/// Arrivals are reported in steps of this many bytes: each report may start a fill.
const REPORTED: u64 = 256 << 10;

/// What the engine may use at once. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Compressed bytes that are requested and not stored yet. As many uncompressed bytes are held on their way to
    /// the disk.
    pub max_bytes_in_flight: u64,
    /// Requests under way to one host, over all layers.
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

/// What one host uses.
#[derive(Debug)]
struct Host {
    requests: usize,
    /// Requests that no reader waits for.
    fills: usize,
    /// Compressed bytes of all requests.
    held: u64,
    /// Compressed bytes that fill requested and that have not arrived.
    coming: u64,
    /// Layers that are streamed whole from it: a pull waits for each, so that fill leaves them the line.
    streams: usize,
    allowance: Allowance,
}

#[derive(Debug, Default)]
struct Usage {
    held: u64,
    /// Hosts with requests under way, or that said they were busy.
    hosts: HashMap<Arc<str>, Host>,
}

/// The limits and their use, shared by all layers of an engine.
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<Usage>,
    changed: Arc<Notify>,
    max_bytes: u64,
    max_requests: usize,
}

/// Room for one request; freed when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    host: Arc<str>,
    /// 1 for a request that no reader waits for.
    fills: usize,
    held: u64,
    coming: u64,
    /// Bytes that arrived and were not reported yet.
    unreported: u64,
}

/// See [`Budget::stream`].
#[derive(Debug)]
pub(crate) struct Streaming {
    budget: Arc<Budget>,
    host: Arc<str>,
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.host(&self.host, self.budget.max_requests).streams -= 1;
        state.tidy(&self.host);
        drop(state);
        self.budget.changed.notify_waiters();
    }
}

impl Usage {
    fn host(&mut self, name: &Arc<str>, most: usize) -> &mut Host {
        let new = || Host {
            requests: 0,
            fills: 0,
            held: 0,
            coming: 0,
            streams: 0,
            allowance: Allowance::new(most),
        };
        self.hosts.entry(name.clone()).or_insert_with(new)
    }

    /// Forgets a host without requests that has its full allowance.
    fn tidy(&mut self, name: &Arc<str>) {
        if let hash_map::Entry::Occupied(host) = self.hosts.entry(name.clone())
            && host.get().requests == 0
            && host.get().streams == 0
            && host.get().allowance.is_whole()
        {
            host.remove();
        }
    }
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            state: Mutex::default(),
            changed: Arc::default(),
            max_bytes: limits.max_bytes_in_flight,
            max_requests: limits.max_requests.max(2),
        }
    }

    /// Notified when there is more room than before.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Requests under way, and the compressed bytes that they hold.
    pub(crate) fn in_flight(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.hosts.values().map(|host| host.requests as u64).sum(), state.held)
    }

    /// Room for a reader's request, as soon as there is some. A request larger than the limit runs alone.
    pub(crate) async fn demand(self: &Arc<Self>, name: &Arc<str>, bytes: u64) -> Permit {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock();
                let all = state.held == 0 || state.held.saturating_add(bytes) <= self.max_bytes;
                let host = state.host(name, self.max_requests);
                let own = host.held == 0 || host.held.saturating_add(bytes) <= self.max_bytes / 4 * 3;
                // Where the allowance has shrunk, or is small, fill may use all of it and make no progress.
                let allowed = host.allowance.now();
                let reserved = host.requests - host.fills < readers_part(allowed);
                if all && own && (host.requests < allowed || reserved) {
                    return self.permit(&mut state, name, bytes, 0);
                }
            }
            changed.await;
        }
    }

    /// Room for a request that no reader waits for, if there is some now: fewer than `window` bytes are arriving, and
    /// enough is left for a reader. To be asked before spans are claimed: readers would wait for spans that are
    /// claimed and not requested.
    pub(crate) fn fill(self: &Arc<Self>, name: &Arc<str>, bytes: u64, window: u64) -> Option<Permit> {
        let mut state = self.state.lock();
        // Not much more than the threads can inflate soon: a span that is chosen later is chosen better.
        let most = (self.max_bytes / 2).min(window.saturating_mul(2));
        let all = state.held == 0 || state.held.saturating_add(bytes) <= self.max_bytes / 4 * 3;
        let host = state.host(name, self.max_requests);
        let own = host.held == 0 || host.held.saturating_add(bytes) <= most;
        let allowed = host.allowance.now();
        let free = host.streams == 0
            && host.coming < window
            && host.requests < allowed.saturating_sub(readers_part(allowed)).max(1);
        let permit = (all && own && free).then(|| self.permit(&mut state, name, bytes, bytes));
        if permit.is_none() {
            state.tidy(name);
        }
        permit
    }

    fn permit(self: &Arc<Self>, state: &mut Usage, name: &Arc<str>, held: u64, coming: u64) -> Permit {
        state.held += held;
        let host = state.host(name, self.max_requests);
        // Arrivals for a reader are not reported.
        let fills = usize::from(coming > 0);
        host.requests += 1;
        host.fills += fills;
        host.held += held;
        host.coming += coming;
        Permit { budget: self.clone(), host: name.clone(), fills, held, coming, unreported: 0 }
    }

    /// Notes that a layer is streamed whole from this host, as long as the value lives.
    pub(crate) fn stream(self: &Arc<Self>, name: &Arc<str>) -> Streaming {
        self.state.lock().host(name, self.max_requests).streams += 1;
        Streaming { budget: self.clone(), host: name.clone() }
    }

    /// Notes that a host has answered; `busy` when it said that it is overloaded.
    pub(crate) fn answered(&self, name: &Arc<str>, busy: bool) {
        let mut state = self.state.lock();
        let allowance = &mut state.host(name, self.max_requests).allowance;
        if busy {
            allowance.busy(Instant::now());
        } else {
            allowance.good();
        }
    }
}

/// How many of the requests to a host fill leaves to readers.
fn readers_part(allowed: usize) -> usize {
    (allowed / 4).max(1)
}

impl Permit {
    pub(crate) fn is_for(&self, host: &Arc<str>) -> bool {
        self.host == *host
    }

    /// The request turned out to have this many bytes.
    pub(crate) fn resize(&mut self, bytes: u64) {
        let mut state = self.budget.state.lock();
        state.held = state.held - self.held + bytes;
        let host = state.host(&self.host, self.budget.max_requests);
        host.held = host.held - self.held + bytes;
        host.coming = host.coming - self.coming + bytes;
        drop(state);
        (self.held, self.coming) = (bytes, bytes);
        self.budget.changed.notify_waiters();
    }

    /// Notes that bytes of a fill have arrived: the line has room for as many.
    pub(crate) fn arrived(&mut self, bytes: u64) {
        self.unreported += bytes.min(self.coming - self.unreported);
        if self.unreported >= REPORTED || self.unreported > 0 && self.unreported == self.coming {
            let reported = std::mem::take(&mut self.unreported);
            self.coming -= reported;
            self.budget.state.lock().host(&self.host, self.budget.max_requests).coming -= reported;
            self.budget.changed.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.held -= self.held;
        let host = state.host(&self.host, self.budget.max_requests);
        host.requests -= 1;
        host.fills -= self.fills;
        host.held -= self.held;
        host.coming -= self.coming;
        state.tidy(&self.host);
        drop(state);
        self.budget.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const WINDOW: u64 = 4 << 20;

    #[test]
    fn a_stream_keeps_fill_of_its_own_host_away_and_of_no_other() {
        let budget = Arc::new(Budget::new(&Limits::default()));
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let may = |host: &Arc<str>| budget.fill(host, 1, WINDOW).is_some();
        let (first, second) = (budget.stream(&one), budget.stream(&one));
        assert!(!may(&one) && may(&other));
        drop(first);
        assert!(!may(&one), "the second goes on");
        drop(second);
        assert!(may(&one) && may(&other));
        assert!(budget.state.lock().hosts.is_empty(), "no host has a request");
    }

    #[tokio::test]
    async fn a_reader_finds_room_beside_fill_that_stands_still() {
        let budget = Arc::new(Budget::new(&Limits { max_requests: 8, ..Limits::default() }));
        let host: Arc<str> = "host".into();
        let fills: Vec<_> = std::iter::from_fn(|| budget.fill(&host, 1, WINDOW)).collect();
        assert_eq!(fills.len(), 6);
        // Now it says that it is overloaded, and the fills under way make no progress.
        budget.answered(&host, true);
        let reader = budget.demand(&host, 1).now_or_never().expect("there is room for a reader");
        assert!(budget.demand(&host, 1).now_or_never().is_none(), "and for no other: it is busy");
        assert!(budget.fill(&host, 1, WINDOW).is_none());
        drop((fills, reader));
        assert!(budget.demand(&host, 1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn the_end_of_a_stream_wakes_fill_and_a_stream_keeps_no_reader_away() {
        let budget = Arc::new(Budget::new(&Limits::default()));
        let host: Arc<str> = "host".into();
        let streaming = budget.stream(&host);
        drop(budget.demand(&host, 1).await);
        let changed = budget.changed();
        let notified = changed.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        drop(streaming);
        notified.await;
        assert!(budget.fill(&host, 1, WINDOW).is_some());
    }
}
