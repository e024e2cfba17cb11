//! The junction of a read: who has a span, who is fetching it, who waits.
//!
//! A reader comes with a range of uncompressed bytes. When every span of it is on disk it is served at once,
//! on its own thread, without a lock. Otherwise it claims what is missing (each span is claimed by one reader
//! only: single flight), hands the claims to the engine as one request a run, waits until all have landed, and
//! reads; where it wants only the beginning of a span it waits for that. There is one way for a span to become ready,
//! whoever asked for it (`landing`).
//!
//! A reader that waits has its spans pinned, so that what lands stays until it has read. A span that cannot be
//! stored (the disk is full) is handed to those who wait for it in memory and is absent afterwards: slower, never
//! an error. Who joined somebody else's fetch and sees it fail tries for itself: a background fill gives up soon,
//! a reader does not.

mod landing;
mod fill_order;
mod state;
mod status;
mod table;
mod diff_id;
#[cfg(test)]
mod schedules;

use std::{
    collections::{HashMap, VecDeque},
    io,
    ops::{Range, RangeInclusive},
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    sync::{Arc, Weak},
};

use bytes::Bytes;
use oci::Blob;
use tokio::time::Instant;
use ztoc::{SpanId, UncompressedOffset, Ztoc};

use crate::{
    error::{Error, ErrorKind},
    fetch::{
        Engine, FetchRequest, FillScope, FillSource, FillStep, Priority, Source, SpanSink as _, StoredCheck,
    },
    metrics::Tally,
    spans::{
        diff_id::DiffIdCheck,
        fill_order::FillOrder,
        state::{SpanState, Word},
        table::{Claims, Flight, Reached, Table},
    },
    store::{Evict, LayerFiles, LayerId, StoredState},
    sync::{self, Mutex, RwLock},
};

pub use status::{LayerCounts, LayerStatus, SourceStatus, SpanCounts};

/// A reader that goes through a layer in tar order finds up to this many spans ahead of it.
const MOST_AHEAD: u32 = 8;
/// Spans wanted first: more than a start needs, and a bound on what an artifact can make us remember.
const MOST_WANTED: usize = 1 << 16;

/// Repositories that one layer is had from. Each is one of an image that is there, so only many images of one base come to
/// that; those that failed last go first.
const MOST_SOURCES: usize = 256;
/// A span that could not be read so often is no longer stored.
const MOST_DAMAGED: u32 = 2;

/// All spans of one layer.
#[derive(Debug)]
pub(crate) struct Spans {
    ztoc: Arc<Ztoc>,
    files: LayerFiles,
    table: Table<SpanOutcome>,
    /// The newest first.
    sources: RwLock<Vec<Source>>,
    engine: Arc<Engine>,
    /// Our number in the store's order of eviction.
    owner: u32,
    /// Spans whose checksum was not compared yet.
    doubtful: AtomicU32,
    /// The span after the last one demanded, and how far ahead the last demand looked.
    ahead: Mutex<(u32, u32)>,
    /// When a reader last had to wait; 0 for never.
    last_demand: AtomicU64,
    /// Everything that is missing is to be brought, not only what is wanted.
    filling: AtomicBool,
    /// Where fill goes on.
    fill_order: Mutex<FillOrder>,
    /// Spans to be brought before all others that nobody waits for.
    wanted: Mutex<VecDeque<u32>>,
    /// How often each span could not be read after it had been stored.
    damaged: Mutex<HashMap<u32, u32>>,
    whole: Mutex<DiffIdCheck>,
    tally: Tally,
    weak_self: Weak<Self>,
}

/// How a span's flight ends. `Some(bytes)`: it could not be stored, here it is.
type SpanOutcome = Result<Option<Bytes>, Error>;

/// A reader that waits; counted until it is dropped.
pub(crate) struct Waiting<'a> {
    engine: &'a Engine,
    tally: &'a Tally,
    layer: &'a LayerId,
    spans: Range<u32>,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waited = self.since.elapsed();
        self.engine.counters().waits.note(waited);
        self.tally.waits_ended.add(1);
        let waited = waited.as_millis();
        tracing::debug!(layer = %self.layer, spans = ?self.spans, waited, "a reader had to wait");
    }
}

/// Who wished for the span of a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClaimedBy {
    Ours,
    Others,
}

impl Spans {
    pub(crate) fn open(ztoc: Arc<Ztoc>, files: LayerFiles, engine: Arc<Engine>) -> Arc<Self> {
        let count = ztoc.spans().len();
        let records = files.records(count);
        let present = (0u32..).zip(&records).filter(|(_, record)| **record == StoredState::Present);
        let present: Vec<_> = present.map(|(span, _)| SpanId(span)).collect();
        let doubtful = records.iter().filter(|record| **record == StoredState::Unproven).count();
        let table = Table::new(records.iter().map(|record| match record {
            StoredState::Absent => SpanState::Empty,
            StoredState::Present => SpanState::Ready,
            StoredState::Unproven => SpanState::Unproven,
        }));
        let spans = Arc::new_cyclic(|weak_self: &Weak<Self>| Self {
            owner: files.store().join(weak_self.clone()),
            doubtful: AtomicU32::new(u32::try_from(doubtful).expect("not more than there are")),
            sources: RwLock::default(),
            ahead: Mutex::default(),
            last_demand: AtomicU64::new(0),
            filling: AtomicBool::new(false),
            fill_order: Mutex::default(),
            wanted: Mutex::default(),
            damaged: Mutex::default(),
            whole: Mutex::new(DiffIdCheck::new(files.whole())),
            tally: Tally::default(),
            weak_self: weak_self.clone(),
            ztoc,
            files,
            table,
            engine,
        });
        let present = present.into_iter().map(|span| (span, spans.length(span)));
        spans.files.store().landed(spans.owner, present);
        if doubtful == 0 {
            spans.note_proven();
        }
        spans
    }

    pub(crate) fn ztoc(&self) -> &Arc<Ztoc> {
        &self.ztoc
    }

    /// Where the layer can be had from: `origin` names the place, so that one that is known already is only
    /// moved to the front.
    pub(crate) fn add_source(&self, origin: &str, source: Arc<dyn Blob>) {
        let mut sources = self.sources.write();
        sources.retain(|known| *known.origin != *origin);
        sources.insert(0, Source::new(origin, source));
        if sources.len() > MOST_SOURCES {
            let failing = sources.iter().rposition(Source::is_failing);
            sources.remove(failing.unwrap_or(MOST_SOURCES));
        }
    }

    /// The layer is not had from there any more; the last place stays.
    pub(crate) fn remove_source(&self, origin: &str) {
        let mut sources = self.sources.write();
        if sources.len() > 1 {
            sources.retain(|known| *known.origin != *origin);
        }
    }

    /// WaitHistogram until nothing is on its way.
    #[cfg(test)]
    pub(crate) async fn settled(&self) {
        for span in 0..self.ztoc.spans().len() {
            let flight = self.table.claims().under_way(span);
            if let Some(flight) = flight {
                let _ = flight.reach(u64::MAX).await;
            }
        }
    }

    /// What is counted for this layer alone.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Spans that are not on disk.
    pub(crate) fn missing(&self) -> u32 {
        self.table.missing()
    }

    /// Bytes on disk and inodes of all that is stored.
    pub(crate) fn disk_usage(&self) -> io::Result<(u64, u64)> {
        self.files.disk_usage()
    }

    /// Whether anything on disk is still to be compared with its checksum.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Acquire) > 0
    }

    fn range(&self, span: SpanId) -> Range<UncompressedOffset> {
        let range = self.ztoc.spans().uncompressed(span);
        range.start..range.end.max(range.start)
    }

    fn is_last(&self, span: SpanId) -> bool {
        span.0 + 1 == self.ztoc.spans().len()
    }

    fn length(&self, span: SpanId) -> u64 {
        let range = self.range(span);
        range.end - range.start
    }

    /// The bytes of `range`, when all of them are on disk; never waits for anything but the disk.
    pub(crate) fn read_ready(&self, range: &Range<UncompressedOffset>) -> Option<Result<Vec<u8>, Error>> {
        self.read_stored(range, &[])
    }

    /// The same where enough of the spans `coming`, which the caller has pinned since before, was seen to be there.
    fn read_stored(
        &self,
        range: &Range<UncompressedOffset>,
        coming: &[u32],
    ) -> Option<Result<Vec<u8>, Error>> {
        let spans = self.ztoc.spans().covering(range.clone());
        let _pins = self.table.pin(spans.clone());
        let is_there = |span| self.table.state(span) == SpanState::Ready || coming.contains(&span);
        if !spans.clone().all(is_there) {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
        match self.files.read(range.start, &mut bytes) {
            Ok(()) => Some(Ok(bytes)),
            Err(error) => {
                // A file that lost bytes under us: a miss, not an error.
                tracing::warn!(layer = %self.files.id(), %error, "stored spans cannot be read; fetched again");
                spans.for_each(|span| self.drop_damaged(SpanId(span)));
                None
            }
        }
    }

    /// A disk that takes a span and does not give it back is not given it again.
    fn is_unreadable(&self, span: u32) -> bool {
        self.damaged.lock().get(&span).is_some_and(|times| *times >= MOST_DAMAGED)
    }

    /// What is missing is what the disk does not give back.
    fn is_rest_unreadable(&self) -> bool {
        let damaged = self.damaged.lock();
        let unreadable = damaged.values().filter(|times| **times >= MOST_DAMAGED).count();
        unreadable > 0 && self.missing() as usize <= unreadable
    }

    fn drop_damaged(&self, span: SpanId) {
        if self.table.take(span.0, Word::damage) {
            self.engine.counters().damaged.add(u64::from(!self.files.is_over()));
            *self.damaged.lock().entry(span.0).or_insert(0) += 1;
            self.files.strike(span);
            self.settle(span, Err(Error::new(ErrorKind::Corrupt, "read a stored span")));
        }
    }

    /// A reader waits for `range` as long as this lives.
    pub(crate) fn waiting(&self, range: &Range<UncompressedOffset>) -> Waiting<'_> {
        self.engine.counters().waits_begun.add(1);
        self.tally.waits_begun.add(1);
        let spans = self.ztoc.spans().covering(range.clone());
        let tally = &self.tally;
        Waiting { engine: &self.engine, tally, layer: self.files.id(), spans, since: Instant::now() }
    }

    /// The bytes of `range`, fetched where they are missing; the rest of `file` is likely to be wanted soon.
    pub(crate) async fn read(
        &self,
        range: Range<UncompressedOffset>,
        file: Range<UncompressedOffset>,
    ) -> Result<Vec<u8>, Error> {
        let file = self.ztoc.spans().covering(file);
        let spans = self.ztoc.spans().covering(range.clone());
        let _pins = self.table.pin(spans.clone());
        // Once the beginning was there and could not be read, all of it is waited for.
        let mut early = true;
        loop {
            if let Some(bytes) = self.read_ready(&range) {
                return bytes;
            }
            self.prove(spans.clone()).await;
            let mut in_memory = HashMap::new();
            let mut coming = Vec::new();
            for (span, flight, whose) in self.demand(&spans, &file) {
                let wanted = if early { self.wanted_of(span, &range) } else { u64::MAX };
                match (flight.reach(wanted).await, whose) {
                    (Reached::Beginning, _) => coming.push(span),
                    (Reached::Ended(Ok(Some(bytes))), _) => drop(in_memory.insert(span, bytes)),
                    (Reached::Ended(Ok(None)), _) => {}
                    (Reached::Ended(Err(error)), ClaimedBy::Ours) => return Err(error),
                    (Reached::Ended(Err(error)), ClaimedBy::Others) => {
                        tracing::debug!(span, %error, "what others fetched did not come");
                    }
                }
            }
            if let Some(bytes) = self.assemble(&range, &in_memory, &coming) {
                return Ok(bytes);
            }
            early = coming.is_empty();
        }
    }

    /// Compares what is on disk since before an unclean stop with its checksum.
    async fn prove(&self, spans: Range<u32>) {
        for span in spans.filter(|span| self.table.state(*span) == SpanState::Unproven) {
            let Some(me) = self.weak_self.upgrade() else { return };
            let proven = self.engine.runtime().spawn_blocking(move || me.prove_one(SpanId(span)));
            if let Err(error) = proven.await {
                tracing::error!(layer = %self.files.id(), span, %error, "compare a span with its checksum");
            }
        }
    }

    fn prove_one(&self, span: SpanId) {
        if !self.table.take(span.0, Word::doubt) {
            return;
        }
        let range = self.range(span);
        if self.files.prove(span, &range) {
            if self.is_last(span) {
                self.files.forget_tail(span);
            }
            self.settle(span, Ok(None));
        } else {
            self.files.strike(span);
            self.settle(span, Err(Error::new(ErrorKind::Corrupt, "compare stored span with its checksum")));
        }
        if self.doubtful.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.note_proven();
        }
    }

    fn note_proven(&self) {
        if let Err(error) = self.files.note_proven(self.ztoc.spans().len()) {
            tracing::warn!(layer = %self.files.id(), %error, "note that spans are proven");
        }
    }

    /// Up to which of its bytes a span is wanted by who reads `range`.
    fn wanted_of(&self, span: u32, range: &Range<UncompressedOffset>) -> u64 {
        let whole = self.range(SpanId(span));
        whole.end.min(range.end).0.saturating_sub(whole.start.0)
    }

    /// Joins spans that could not be stored with those that could, or are `coming`. `None` where something is missing.
    fn assemble(
        &self,
        range: &Range<UncompressedOffset>,
        have: &HashMap<u32, Bytes>,
        coming: &[u32],
    ) -> Option<Vec<u8>> {
        if have.is_empty() {
            return self.read_stored(range, coming)?.ok();
        }
        let mut out = Vec::with_capacity(usize::try_from(range.end - range.start).ok()?);
        for span in self.ztoc.spans().covering(range.clone()) {
            let whole = self.range(SpanId(span));
            let part = whole.start.max(range.start)..whole.end.min(range.end);
            if let Some(bytes) = have.get(&span) {
                let from = usize::try_from(part.start - whole.start).ok()?;
                let to = usize::try_from(part.end - whole.start).ok()?;
                out.extend_from_slice(bytes.get(from..to)?);
            } else {
                out.extend_from_slice(&self.read_stored(&part, coming)?.ok()?);
            }
        }
        Some(out)
    }

    /// Claims what is missing of `spans`, and what a reader in tar order will want next, requests for it, and
    /// hands back all flights to wait for.
    fn demand(
        &self,
        spans: &Range<u32>,
        file: &Range<u32>,
    ) -> Vec<(u32, Arc<Flight<SpanOutcome>>, ClaimedBy)> {
        let mut claimed = Vec::new();
        let mut waits = Vec::new();
        {
            let mut claims = self.table.claims();
            for span in spans.clone() {
                if let Some(flight) = claims.under_way(span) {
                    waits.push((span, flight, ClaimedBy::Others));
                } else if let Some(flight) = claims.claim(span) {
                    waits.push((span, flight, ClaimedBy::Ours));
                    claimed.push(span);
                }
            }
            if let Some(last) = claimed.last().copied() {
                let end = last.saturating_add(self.look_ahead(spans)).min(self.ztoc.spans().len());
                claimed.extend((last + 1..end).take_while(|span| claims.claim(*span).is_some()));
            }
        }
        if !waits.is_empty() {
            let end = claimed.last().map_or(spans.end, |last| spans.end.max(last + 1));
            self.fill_order.lock().demanded(spans.start..end, file.clone());
            self.last_demand.store(self.engine.demanded(), Ordering::Release);
        }
        if !waits.is_empty() {
            self.engine.hurry();
        }
        for request in self.requests(&claimed, Priority::Demand) {
            self.engine.fetch(request);
        }
        waits
    }

    /// 1, 2, 4 … spans while demands follow each other in tar order. Counts the demanded span itself.
    fn look_ahead(&self, spans: &Range<u32>) -> u32 {
        let mut ahead = self.ahead.lock();
        let follows = spans.start <= ahead.0 && ahead.0 <= spans.end && ahead.0 != 0;
        let count = if follows { (ahead.1 * 2).clamp(1, MOST_AHEAD) } else { 1 };
        *ahead = (spans.end + count - 1, count);
        count
    }

    /// Has everything brought, as long as this lives. Once; nothing to do later.
    pub(crate) fn fill(&self) {
        if !self.filling.swap(true, Ordering::AcqRel) {
            self.engine.fill(self.weak_self.clone());
        }
    }

    /// Has these spans brought before the others that nobody waits for, in this order. What the layer does not have
    /// is ignored.
    pub(crate) fn want(&self, spans: impl IntoIterator<Item = RangeInclusive<u32>>) {
        let last = self.ztoc.spans().len().saturating_sub(1);
        let known = spans.into_iter().map(|run| *run.start()..=(*run.end()).min(last));
        let mut wanted = self.wanted.lock();
        let room = MOST_WANTED.saturating_sub(wanted.len());
        wanted.extend(known.flatten().take(room));
        drop(wanted);
        self.engine.fill(self.weak_self.clone());
    }

    /// Whether a span is to be brought: it is not on disk, nobody brings it, and it would stay there.
    fn is_to_bring(&self, span: u32) -> bool {
        self.table.state(span) == SpanState::Empty && !self.is_unreadable(span)
    }

    /// Whether something is wanted that nobody is bringing.
    fn wants(&self) -> bool {
        self.wanted.lock().iter().any(|span| self.is_to_bring(*span))
    }

    /// Claims a run of missing spans of up to `bytes` compressed bytes: of those that are wanted, else near where
    /// readers had to wait.
    fn claim_run(&self, bytes: u64, which: FillScope) -> (Vec<u32>, Priority) {
        let count = self.ztoc.spans().len();
        let mut claims = self.table.claims();
        let mut wanted = self.wanted.lock();
        // What does not come stays wanted.
        wanted.retain(|span| self.table.state(*span) != SpanState::Ready && !self.is_unreadable(*span));
        let mut rest = wanted.make_contiguous();
        while let Some(first) = rest.first().copied() {
            let fits = |(span, _): &(u32, _)| *span == first || self.compressed(first..span + 1) <= bytes;
            let run = (first..).zip(rest.iter()).take_while(|(next, span)| next == *span).take_while(fits);
            let run = run.count();
            let end = first + u32::try_from(run).expect("not more than there are spans");
            let claimed = self.claim_within(&mut claims, first..end, bytes);
            if !claimed.is_empty() {
                return (claimed, Priority::Ahead);
            }
            rest = &mut rest[run..];
        }
        drop(wanted);
        if !self.filling.load(Ordering::Acquire) {
            return (Vec::new(), Priority::Fill);
        }
        let is_missing = |span| self.is_to_bring(span);
        let mut near = self.fill_order.lock();
        if let Some(spans) = near.next(count, is_missing) {
            return (self.claim_within(&mut claims, spans, bytes), Priority::Ahead);
        }
        let far = if which == FillScope::Any { near.next_far(count, is_missing) } else { None };
        let claimed = far.map(|spans| self.claim_within(&mut claims, spans, bytes));
        (claimed.unwrap_or_default(), Priority::Fill)
    }

    /// Compressed bytes of a run of spans.
    fn compressed(&self, spans: Range<u32>) -> u64 {
        let table = self.ztoc.spans();
        let end = table.compressed(SpanId(spans.end - 1)).end.0;
        end.saturating_sub(table.compressed(SpanId(spans.start)).start.0)
    }

    fn claim_within(&self, claims: &mut Claims<'_, SpanOutcome>, range: Range<u32>, bytes: u64) -> Vec<u32> {
        let mut claimed: Vec<u32> = Vec::new();
        for span in range {
            let first = *claimed.first().unwrap_or(&span);
            if !claimed.is_empty() && self.compressed(first..span + 1) > bytes {
                break;
            }
            if !self.is_unreadable(span) && claims.claim(span).is_some() {
                claimed.push(span);
            } else if !claimed.is_empty() {
                break;
            }
        }
        claimed
    }

    /// Wishes for claimed spans, one a run of neighbours. Claims are given back if there is nowhere to ask.
    fn requests(&self, claimed: &[u32], priority: Priority) -> Vec<FetchRequest> {
        let mut sources = self.sources.read().clone();
        // A place that did not have it is asked again when the others do not have it either.
        sources.sort_by_cached_key(Source::is_failing);
        let sink = self.weak_self.upgrade().filter(|_| !sources.is_empty());
        let Some(sink) = sink else {
            let error = Error::new(ErrorKind::NotFound, "fetch spans of a layer without a source");
            claimed.iter().for_each(|span| self.fail(SpanId(*span), error.clone()));
            return Vec::new();
        };
        let mut requests = Vec::new();
        let mut rest = claimed;
        while let Some(first) = rest.first().copied() {
            let run = (first..).zip(rest).take_while(|(expected, span)| expected == *span).count();
            let end = first + u32::try_from(run).expect("not more than there are spans");
            rest = &rest[run..];
            let (sources, ztoc, sink) = (sources.clone(), self.ztoc.clone(), sink.clone());
            requests.push(FetchRequest { sources, ztoc, spans: first..end, priority, sink });
        }
        requests
    }

    fn settle(&self, span: SpanId, outcome: SpanOutcome) {
        let stored = matches!(outcome, Ok(None));
        let flight = self.table.end(span.0, stored);
        if stored {
            self.files.store().landed(self.owner, [(span, self.length(span))]);
        }
        if let Some(flight) = flight {
            flight.tell(outcome);
        }
        if stored {
            self.begin_check_if_complete();
        }
    }
}

impl FillSource for Spans {
    fn last_demand(&self) -> u64 {
        if self.wants() { u64::MAX } else { self.last_demand.load(Ordering::Acquire) }
    }

    fn host(&self) -> Option<Arc<str>> {
        self.sources.read().first().map(|source| source.host.clone())
    }

    fn is_urgent(&self) -> bool {
        self.wants() || self.filling.load(Ordering::Acquire) && self.fill_order.lock().has_places()
    }

    fn next_step(&self, bytes: u64, which: FillScope) -> FillStep {
        // Who opened the layer anew brings what is missing.
        let done = self.missing() == 0 || self.is_rest_unreadable() || self.files.is_over();
        if done || !self.filling.load(Ordering::Acquire) && self.wanted.lock().is_empty() {
            return FillStep::Done;
        }
        if self.files.store().nearly_full() {
            return FillStep::NoRoom;
        }
        let (claimed, priority) = self.claim_run(bytes, which);
        let none = if which == FillScope::Urgent { FillStep::NotUrgent } else { FillStep::Others };
        self.requests(&claimed, priority).pop().map_or(none, FillStep::Fetch)
    }
}

impl StoredCheck for Spans {
    fn check_stored(&self) {
        (0..self.ztoc.spans().len()).for_each(|span| self.prove_one(SpanId(span)));
    }
}

impl Evict for Spans {
    fn evict(&self, span: SpanId) -> bool {
        if !self.table.evict(span.0) {
            return false;
        }
        self.files.forget(span, &self.range(span));
        self.engine.counters().evicted.add(1);
        self.settle(span, Err(Error::new(ErrorKind::Full, "read a span that was just evicted")));
        true
    }

    fn count(&self, states: &mut [u64; 4]) {
        for span in 0..self.ztoc.spans().len() {
            states[self.table.state(span) as usize] += 1;
        }
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        self.files.store().leave(self.owner);
    }
}
