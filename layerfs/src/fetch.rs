//! The engine that fetches spans: requests in, verified and stored spans out.
//!
//! A request is a run of neighboring spans of one layer, fetched as one range. Each span is cut out of the stream as
//! soon as its last byte has arrived (`attempt`). Threads for such work (`inflate`) hand it to the request's sink,
//! which verifies, inflates and stores it, while the rest of the range is still arriving. A span that cannot be
//! fetched reaches the sink as an error. So every span of a request ends once.
//!
//! A failed attempt moves on to the next source. Faults that may pass are tried again here: a source cannot be
//! reached, or denies access until credentials are renewed, or sends a span with a wrong digest. Demand tries for
//! `read_timeout`. Fill gives up after one round over the sources and tries again later. An absent blob is final when
//! every source lacks it, and so is a digest that stays wrong. A reader's request that takes far longer than such
//! requests do is made a second time beside the first, for at most a twentieth of the bytes.
//!
//! The engine itself fetches spans for which no reader waits (`background`). It keeps the line busy while a span is
//! missing, but never so full that a reader queues behind much (`budget`, `pace`).

mod attempt;
mod background;
mod budget;
mod inflate;
mod pace;
#[cfg(test)]
mod tests;

use std::{
    fmt::Debug,
    ops::Range,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    sync::{Arc, Weak},
    time::Duration,
};

use futures::FutureExt;
use oci::{Blob, Digest};
use tokio::{runtime::Handle, sync::Semaphore, time::Instant};
use ztoc::{SpanId, Ztoc};

use crate::{
    error::{Error, ErrorKind},
    fetch::{
        background::Background,
        budget::{Budget, Permit, Streaming},
        inflate::Inflaters,
        pace::Line,
    },
    metrics::{Counters, Family, Gauges, Tally},
    store::Store,
    sync::Mutex,
};

pub(crate) use background::{FillScope, FillSource, FillStep};
pub use budget::Limits;

/// A digest that stays wrong this often, over more than a second, is not a fault of the line.
const WRONG_DIGESTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often [`Engine::finish`] looks whether every span that has arrived is stored: less than a span takes.
const FINISHING: Duration = Duration::from_millis(5);
/// One of this many bytes that readers ask for may be fetched a second time.
const HEDGED_PART: i64 = 20;
/// Bytes that may be fetched a second time before the first request; also the most that is saved up.
const HEDGED_FIRST: i64 = 16 << 20;

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// A reader waits for it.
    Demand,
    /// No reader waits, but one is likely to, soon.
    Ahead,
    /// No reader is likely to wait soon.
    Fill,
}

/// Takes the spans that a request fetches. Called on threads that may block.
pub(crate) trait SpanSink: Send + Sync + Debug {
    /// Whether a reader waits for `span`.
    fn is_awaited(&self, span: SpanId) -> bool;

    /// Takes the compressed bytes of a span and verifies them. After `Ok` the span has ended, stored or not.
    ///
    /// # Errors
    /// When they are not the span's bytes; another attempt may fetch the right ones.
    fn land(&self, span: SpanId, compressed: &[u8]) -> Result<(), Error>;

    /// Ends a span that will not arrive.
    fn fail(&self, span: SpanId, error: Error);

    /// The counters of its layer alone, if it has any.
    fn tally(&self) -> Option<&Tally> {
        None
    }
}

/// A place from which a layer can be fetched.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Its name: `HOST/REPOSITORY`.
    pub(crate) origin: Arc<str>,
    /// The host, which limits are for.
    pub(crate) host: Arc<str>,
    pub(crate) blob: Arc<dyn Blob>,
    /// Why the last request failed; `None` after a success.
    pub(crate) failing: Arc<Mutex<Option<String>>>,
}

impl Source {
    pub(crate) fn new(origin: &str, blob: Arc<dyn Blob>) -> Self {
        Self { origin: origin.into(), host: host_of(origin), blob, failing: Arc::default() }
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing.lock().is_some()
    }
}

fn host_of(origin: &str) -> Arc<str> {
    origin.split('/').next().unwrap_or_default().into()
}

/// Neighboring spans of one layer, to be fetched.
#[derive(Debug)]
pub(crate) struct FetchRequest {
    /// At least one; asked in this order, and round again.
    pub(crate) sources: Vec<Source>,
    pub(crate) ztoc: Arc<Ztoc>,
    pub(crate) spans: Range<u32>,
    pub(crate) priority: Priority,
    pub(crate) sink: Arc<dyn SpanSink>,
}

impl FetchRequest {
    fn digest(&self) -> &Digest {
        self.sources[0].blob.digest()
    }

    /// The range of compressed bytes from the span `first` on.
    fn range_from(&self, first: u32) -> Range<u64> {
        let table = self.ztoc.spans();
        table.compressed(SpanId(first)).start.0..table.compressed(SpanId(self.spans.end - 1)).end.0
    }

    /// Compressed bytes of the whole request.
    pub(crate) fn bytes(&self) -> u64 {
        let range = self.range_from(self.spans.start);
        range.end.saturating_sub(range.start)
    }
}

/// A request under way, shared by its attempts.
#[derive(Debug)]
struct FetchInProgress {
    request: FetchRequest,
    /// By position in the request.
    landed: Box<[AtomicBool]>,
}

impl FetchInProgress {
    fn new(request: FetchRequest) -> Self {
        let landed = request.spans.clone().map(|_| AtomicBool::new(false)).collect();
        Self { request, landed }
    }

    /// The spans that have not landed.
    fn missing(&self) -> impl Iterator<Item = u32> {
        let spans = self.request.spans.clone().zip(&self.landed);
        spans.filter(|(_, landed)| !landed.load(Ordering::Acquire)).map(|(span, _)| span)
    }

    fn next(&self) -> Option<u32> {
        self.missing().next()
    }

    fn land(&self, span: SpanId, compressed: &[u8]) -> Result<(), Error> {
        self.request.sink.land(span, compressed)?;
        self.landed[(span.0 - self.request.spans.start) as usize].store(true, Ordering::Release);
        Ok(())
    }
}

/// Fetches spans for all layers of a daemon.
#[derive(Debug)]
pub struct Engine {
    runtime: Handle,
    limits: Limits,
    budget: Arc<Budget>,
    inflaters: Arc<Inflaters>,
    line: Mutex<Line>,
    counters: Arc<Counters>,
    background: Background,
    /// Bytes that may be fetched a second time now.
    hedge: AtomicI64,
    /// When a reader last had to wait, in milliseconds since the engine began.
    demanded: AtomicU64,
    began: Instant,
    /// One layer at a time is compared with its checksums: that takes a thread, and the disk.
    proving: Arc<Semaphore>,
}

/// A comparison of stored bytes with their checksums, which no reader waits for.
pub(crate) trait StoredCheck: Send + Sync + 'static {
    fn check_stored(&self);
}

impl Engine {
    /// Begins an engine. `runtime` runs the requests; its blocking threads verify and inflate.
    pub fn new(runtime: Handle, limits: Limits) -> Arc<Self> {
        let counters = Arc::<Counters>::default();
        let engine = Arc::new(Self {
            budget: Arc::new(Budget::new(&limits)),
            inflaters: Inflaters::new(runtime.clone(), limits.max_bytes_in_flight, counters.clone()),
            counters,
            runtime,
            limits,
            line: Mutex::default(),
            background: Background::default(),
            hedge: AtomicI64::new(HEDGED_FIRST),
            demanded: AtomicU64::new(0),
            began: Instant::now(),
            proving: Arc::new(Semaphore::new(1)),
        });
        let (new_work, room) = (engine.background.changed(), engine.budget.changed());
        engine.runtime.spawn(background::run(Arc::downgrade(&engine), new_work, room));
        engine
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Returns when every span that has arrived is stored, at the latest after `limit`. A reader has its bytes before
    /// the rest of their span is on disk; a process that stops in between has to fetch the span again. Blocks.
    pub fn finish(&self, limit: Duration) {
        let began = Instant::now();
        while !self.inflaters.is_idle() && began.elapsed() < limit {
            std::thread::sleep(FINISHING);
        }
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The metrics of reads, spans and fetches, and of the store.
    pub fn metrics(&self, store: &Store) -> Vec<Family> {
        let (requests, bytes) = self.budget.in_flight();
        let (spans, store_bytes) = store.counts();
        self.counters.families(&Gauges { spans, store_bytes, requests, bytes })
    }

    /// Compares a layer with its checksums, after the layers that came before it.
    pub(crate) fn prove(&self, layer: Arc<impl StoredCheck>) {
        let proving = self.proving.clone();
        self.runtime.spawn(async move {
            let turn = proving.acquire_owned().await;
            let proven = tokio::task::spawn_blocking(move || layer.check_stored()).await;
            if let Err(error) = proven {
                tracing::error!(
                    %error,
                    "a layer was not compared with its checksums: the thread panicked; its spans are \
                     compared when they are read"
                );
            }
            drop(turn);
        });
    }

    /// Runs `work`, which takes a thread and the disk, once no reader has had to wait for a while. Does not run it if
    /// the engine is gone by then.
    pub(crate) fn when_quiet(self: &Arc<Self>, work: impl FnOnce() + Send + 'static) {
        let (engine, proving) = (Arc::downgrade(self), self.proving.clone());
        self.runtime.spawn(async move {
            loop {
                let Some(quiet) = engine.upgrade().map(|engine| engine.quiet()) else { return };
                if quiet >= background::STARTED {
                    break;
                }
                tokio::time::sleep(background::STARTED - quiet).await;
            }
            let _turn = proving.acquire_owned().await;
            if let Err(error) = tokio::task::spawn_blocking(work).await {
                tracing::error!(
                    %error,
                    "the diff ID of a layer was not computed: the thread panicked; please report this"
                );
            }
        });
    }

    /// Fetches in the background what `table` wants, as long as it lives and a span is missing.
    pub(crate) fn fill(&self, table: Weak<dyn FillSource>) {
        self.background.add(table);
    }

    /// Keeps fill away from the host of `origin` as long as the value lives: a pull waits for a layer that is
    /// streamed whole from there.
    pub(crate) fn streaming(&self, origin: &str) -> Streaming {
        self.budget.stream(&host_of(origin))
    }

    /// Starts a reader's request and returns at once. Every span of it ends, stored or not.
    pub(crate) fn fetch(self: &Arc<Self>, request: FetchRequest) {
        let engine = self.clone();
        self.runtime.spawn(async move { engine.run(request, None).await });
    }

    /// To be called when a reader begins to wait: perhaps for a span that has arrived, and its neighbors are likely
    /// to be read next.
    pub(crate) fn hurry(&self) {
        self.inflaters.start();
        self.background.changed().notify_one();
    }

    /// Notes that a reader has to wait now. Returns the time in milliseconds since the engine began; at least 1.
    pub(crate) fn demanded(&self) -> u64 {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.demanded.fetch_max(now, Ordering::AcqRel).max(now)
    }

    /// How long no reader had to wait.
    fn quiet(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.demanded.load(Ordering::Acquire)))
    }

    /// Ends every span of a request; false when some could not be fetched. `permit`: room for the first attempt.
    async fn run(&self, request: FetchRequest, permit: Option<Permit>) -> bool {
        let fetch = Arc::new(FetchInProgress::new(request));
        let attempts = AssertUnwindSafe(self.attempts(&fetch, permit)).catch_unwind();
        let limit = match fetch.request.priority {
            Priority::Demand => self.limits.read_timeout,
            Priority::Ahead | Priority::Fill => Duration::MAX,
        };
        let error = match tokio::time::timeout(limit, attempts).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                self.counters.panics.add(1);
                tracing::error!(
                    layer = %fetch.request.digest(),
                    "a fetch of spans panicked: its readers get an error; please report this"
                );
                Some(Error::new(ErrorKind::Io, "fetch spans"))
            }
            Err(_) => {
                let layer = fetch.request.digest();
                let why =
                    format!("fetch spans of layer {layer}: no source delivered within {} s", limit.as_secs());
                Some(Error::new(ErrorKind::Unreachable, why))
            }
        };
        if let Some(tally) = fetch.request.sink.tally().filter(|_| fetch.request.priority != Priority::Demand)
        {
            let missing = fetch.missing().count() as u64;
            tally.background_failed.add(missing);
            tally.background_spans.add(fetch.landed.len() as u64 - missing);
        }
        let Some(error) = error else { return true };
        // The spans that landed may have been evicted since, and another request may fetch them: they are not
        // touched.
        for span in fetch.missing() {
            fetch.request.sink.fail(SpanId(span), error.clone());
        }
        false
    }

    /// The error, if not every span of the request has landed.
    async fn attempts(&self, fetch: &Arc<FetchInProgress>, mut permit: Option<Permit>) -> Option<Error> {
        let request = &fetch.request;
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut refusals = vec![0; request.sources.len()];
        for turn in 0.. {
            let source = turn % request.sources.len();
            let before = fetch.next();
            let attempt = match request.priority {
                Priority::Demand => self.hedged(fetch, source).await,
                Priority::Ahead | Priority::Fill => self.attempt(fetch, source, permit.take()).await,
            };
            let Err(error) = attempt else { return None };
            if fetch.next() > before {
                pause = FIRST_PAUSE;
                refusals.fill(0);
            }
            refusals[source] += match error.kind() {
                // Credentials are renewed, by this daemon or by its user.
                ErrorKind::Unreachable | ErrorKind::Io | ErrorKind::Denied => 0,
                ErrorKind::Corrupt => 1,
                ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Full => WRONG_DIGESTS,
            };
            let refused = refusals.iter().all(|count| *count >= WRONG_DIGESTS);
            let round = source + 1 == request.sources.len();
            let patient = match request.priority {
                Priority::Demand => started.elapsed() + pause < self.limits.read_timeout,
                Priority::Ahead | Priority::Fill => !round,
            };
            if refused || !patient {
                return Some(error);
            }
            tracing::debug!(layer = %request.digest(), span = fetch.next(), %error, "fetch spans again");
            if round {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        None
    }

    /// One attempt; beside it a second one from the next source, if the first takes unusually long. The first that
    /// succeeds counts; the spans that either of them fetched are stored.
    async fn hedged(&self, fetch: &Arc<FetchInProgress>, source: usize) -> Result<(), Error> {
        let bytes = fetch.request.bytes();
        let cost = i64::try_from(bytes).unwrap_or(i64::MAX);
        let saved = |saved: i64| Some(saved.saturating_add(cost / HEDGED_PART).min(HEDGED_FIRST));
        let _ = self.hedge.fetch_update(Ordering::AcqRel, Ordering::Acquire, saved);
        let patience = self.line.lock().patience(bytes);
        let mut first = std::pin::pin!(self.attempt(fetch, source, None));
        tokio::select! {
            outcome = &mut first => return outcome,
            () = tokio::time::sleep(patience) => {}
        }
        let spend = |saved: i64| (saved >= cost).then(|| saved - cost);
        let affordable = self.hedge.fetch_update(Ordering::AcqRel, Ordering::Acquire, spend).is_ok();
        if !self.limits.hedge || !affordable {
            return first.await;
        }
        self.counters.hedged.add(1);
        tracing::debug!(
            layer = %fetch.request.digest(), ?patience,
            "a request takes long; it is made a second time"
        );
        let next = (source + 1) % fetch.request.sources.len();
        let mut second = std::pin::pin!(self.attempt(fetch, next, None));
        tokio::select! {
            outcome = &mut first => if outcome.is_ok() { outcome } else { second.await },
            outcome = &mut second => if outcome.is_ok() { outcome } else { first.await },
        }
    }
}
