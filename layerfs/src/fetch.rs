//! The engine that brings spans: wishes by priority in, verified and inflated spans out.
//!
//! A wish is a run of neighbouring spans of one layer, asked for as one range. Each span is cut out of the
//! stream as soon as its last byte has arrived, verified against its digest and inflated on a thread for
//! such work, and handed to whoever wished for it, while the rest of the range is still coming. What could
//! not be had is handed over as an error: every span of a wish lands, and one that lands twice (it came
//! behind one that had to be asked for again) is ignored the second time.
//!
//! A failed attempt moves on to the next source. Faults that may pass (a source cannot be reached, a span with a
//! wrong digest) are tried again here; demand tries for `read_timeout`, fill gives up after one round and leaves
//! it to the next. A refusal is final when every source refused.

use std::{
    fmt::Debug,
    ops::Range,
    panic::AssertUnwindSafe,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use oci::{Blob, Digest};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::Instant,
};
use ztoc::{SpanId, Ztoc};

use crate::{
    budget::{Budget, Limits},
    error::{Error, ErrorKind},
};

/// A digest that stays wrong this often is not a fault of the line.
const WRONG_DIGESTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Who waits for a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// A reader.
    Demand,
    /// Nobody.
    Fill,
}

/// Takes what a wish brings. Called on threads that may block.
pub(crate) trait Landing: Send + Sync + Debug {
    fn landed(&self, span: SpanId, outcome: Result<Vec<u8>, Error>);
}

/// Neighbouring spans of one layer, to be brought.
#[derive(Debug)]
pub(crate) struct Wish {
    /// Where it can be had, at least one; asked in this order, and round again.
    pub(crate) sources: Vec<Arc<dyn Blob>>,
    pub(crate) ztoc: Arc<Ztoc>,
    pub(crate) spans: Range<u32>,
    pub(crate) priority: Priority,
    pub(crate) landing: Arc<dyn Landing>,
}

impl Wish {
    fn digest(&self) -> &Digest {
        self.sources[0].digest()
    }
}

/// A wish that a reader waits for, as long as it lives.
struct Demand(Arc<Engine>);

impl Demand {
    fn of(engine: &Arc<Engine>) -> Self {
        engine.demand.fetch_add(1, Ordering::AcqRel);
        Self(engine.clone())
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        if self.0.demand.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.calm.notify_waiters();
        }
    }
}

/// One for the daemon.
#[derive(Debug)]
pub struct Engine {
    runtime: Handle,
    limits: Limits,
    budget: Budget,
    /// Wishes that a reader waits for.
    demand: AtomicUsize,
    calm: Notify,
    /// One layer at a time is compared with its checksums: it takes a thread, and the disk.
    proving: Arc<Semaphore>,
}

/// Work on the disk that nobody waits for.
pub(crate) trait Prove: Send + Sync + 'static {
    fn prove_stored(&self);
}

impl Engine {
    /// `runtime` carries the requests; its blocking threads verify and inflate.
    pub fn new(runtime: Handle, limits: Limits) -> Arc<Self> {
        let budget = Budget::new(&limits);
        let proving = Arc::new(Semaphore::new(1));
        Arc::new(Self { runtime, limits, budget, demand: AtomicUsize::new(0), calm: Notify::new(), proving })
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Compares a layer with its checksums, after those that came before it.
    pub(crate) fn prove(&self, layer: Arc<impl Prove>) {
        let proving = self.proving.clone();
        self.runtime.spawn(async move {
            let turn = proving.acquire_owned().await;
            let proven = tokio::task::spawn_blocking(move || layer.prove_stored()).await;
            if let Err(error) = proven {
                tracing::error!(%error, "compare a layer with its checksums");
            }
            drop(turn);
        });
    }

    /// Returns when no reader waits for anything.
    pub(crate) async fn calm(&self) {
        loop {
            let calm = self.calm.notified();
            if self.demand.load(Ordering::Acquire) == 0 {
                return;
            }
            calm.await;
        }
    }

    /// Starts on `wish` and returns at once. Every span of it lands, one way or the other.
    pub(crate) fn wish(self: &Arc<Self>, wish: Wish) -> tokio::task::JoinHandle<()> {
        let engine = self.clone();
        let demand = (wish.priority == Priority::Demand).then(|| Demand::of(self));
        self.runtime.spawn(async move {
            let granted = AssertUnwindSafe(engine.grant(&wish)).catch_unwind().await;
            let error = granted.unwrap_or_else(|_| {
                tracing::error!(layer = %wish.digest(), "fetching spans made us panic");
                Some(Error::new(ErrorKind::Io, "fetch spans"))
            });
            if let Some(error) = error {
                for span in wish.spans.clone() {
                    wish.landing.landed(SpanId(span), Err(error.clone()));
                }
            }
            drop(demand);
        })
    }

    /// The error, if not everything of the wish has landed.
    async fn grant(&self, wish: &Wish) -> Option<Error> {
        let started = Instant::now();
        let mut next = wish.spans.start;
        let mut pause = FIRST_PAUSE;
        let mut refusals = vec![0; wish.sources.len()];
        for turn in 0.. {
            let source = turn % wish.sources.len();
            let before = next;
            let Err(error) = self.attempt(wish, &wish.sources[source], &mut next).await else { return None };
            if next > before {
                pause = FIRST_PAUSE;
                refusals.fill(0);
            }
            refusals[source] += match error.kind() {
                ErrorKind::Unreachable | ErrorKind::Io => 0,
                ErrorKind::Corrupt => 1,
                ErrorKind::NotFound | ErrorKind::Denied | ErrorKind::Unsupported | ErrorKind::Full => {
                    WRONG_DIGESTS
                }
            };
            let refused = refusals.iter().all(|count| *count >= WRONG_DIGESTS);
            let round = source + 1 == wish.sources.len();
            let patient = match wish.priority {
                Priority::Demand => started.elapsed() + pause < self.limits.read_timeout,
                Priority::Fill => !round,
            };
            if refused || !patient {
                return Some(error);
            }
            tracing::debug!(layer = %wish.digest(), span = next, %error, "fetch spans again");
            if round {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        None
    }

    /// One request for what is left of the wish. `next` is the first span that has not landed.
    async fn attempt(&self, wish: &Wish, blob: &Arc<dyn Blob>, next: &mut u32) -> Result<(), Error> {
        let table = wish.ztoc.spans();
        let first = *next;
        let range =
            table.compressed(SpanId(first)).start.0..table.compressed(SpanId(wish.spans.end - 1)).end.0;
        let plain =
            table.uncompressed(SpanId(first)).start.0..table.uncompressed(SpanId(wish.spans.end - 1)).end.0;
        // What is held at once: a range as it came, or its spans inflated, whichever is more.
        let bytes = (range.end - range.start).max(plain.end.saturating_sub(plain.start));
        let _permit = match wish.priority {
            Priority::Demand => self.budget.demand(bytes).await,
            Priority::Fill => self.budget.fill(bytes).await,
        };
        let doing = || format!("fetch spans {first}..{} of layer {}", wish.spans.end, wish.digest());
        let mut stream = blob.read_range(range.clone()).await.map_err(|e| Error::blob(doing(), e))?;
        let mut buffer = BytesMut::new();
        let mut buffer_at = range.start;
        let mut arrived = first;
        let mut work = JoinSet::new();
        while arrived < wish.spans.end {
            let Some(chunk) = stream.next().await else { break };
            match chunk {
                Ok(chunk) => buffer.extend_from_slice(&chunk),
                Err(error) => {
                    self.settle(work, next).await?;
                    return Err(Error::blob(doing(), error));
                }
            }
            while arrived < wish.spans.end {
                let span = table.compressed(SpanId(arrived));
                let have = buffer_at + buffer.len() as u64;
                if span.end.0 > have {
                    break;
                }
                let body = Bytes::copy_from_slice(
                    &buffer[to_usize(span.start.0 - buffer_at)..to_usize(span.end.0 - buffer_at)],
                );
                // A span that starts inside a byte shares that byte with the one before it.
                let following = if arrived + 1 < wish.spans.end {
                    table.compressed(SpanId(arrived + 1)).start.0
                } else {
                    span.end.0
                };
                let done = following.min(have).saturating_sub(buffer_at);
                let _ = buffer.split_to(to_usize(done));
                buffer_at += done;
                self.spawn_work(&mut work, wish, SpanId(arrived), body);
                arrived += 1;
            }
        }
        self.settle(work, next).await?;
        if arrived < wish.spans.end {
            return Err(Error::new(ErrorKind::Unreachable, format!("{}: the stream ended early", doing())));
        }
        Ok(())
    }

    fn spawn_work(
        &self,
        work: &mut JoinSet<(u32, Result<(), Error>)>,
        wish: &Wish,
        span: SpanId,
        body: Bytes,
    ) {
        let (ztoc, landing) = (wish.ztoc.clone(), wish.landing.clone());
        let layer = *wish.digest();
        work.spawn_blocking_on(
            move || {
                let mut out = Vec::new();
                let inflated = ztoc.inflate_span(span, &body, &mut out);
                let outcome = inflated
                    .map(|()| landing.landed(span, Ok(out)))
                    .map_err(|e| Error::ztoc(format!("verify span {} of layer {layer}", span.0), e));
                (span.0, outcome)
            },
            &self.runtime,
        );
    }

    /// Waits for the spans under work; `next` moves past those that landed in one piece from the front.
    async fn settle(&self, mut work: JoinSet<(u32, Result<(), Error>)>, next: &mut u32) -> Result<(), Error> {
        let mut outcomes = Vec::new();
        while let Some(joined) = work.join_next().await {
            outcomes.push(joined.map_err(|e| Error::with(ErrorKind::Corrupt, "inflate span", e))?);
        }
        outcomes.sort_by_key(|(span, _)| *span);
        for (span, outcome) in outcomes {
            outcome?;
            *next = span + 1;
        }
        Ok(())
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a range of one request fits into memory")
}
