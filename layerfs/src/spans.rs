//! All spans of one layer: which are on disk, which are being fetched, which readers wait.
//!
//! A reader asks for a range of uncompressed bytes (`read`). When every span of the range is on disk, the reader's
//! own thread copies the bytes, without a lock. Otherwise the reader claims the missing spans (`claim`). Each span
//! is claimed once, whichever readers want it. The claims go to the engine as one request for each run of
//! neighbors; the engine delivers each span to `landing`, which stores it and wakes the readers.
//!
//! A reader that waits has its spans pinned, so that eviction cannot remove them before they are copied. A span
//! that cannot be stored because the disk is full is handed to its readers in memory: slower, never an error. A
//! reader that joined another reader's request, or a background request, and sees it fail makes a request of its
//! own.
//!
//! The layer's folder (`store`) holds the bytes; `table` holds the state of each span; `damage` counts reads that the
//! disk failed; `fill_order` decides what the background fetches next.

mod read;
mod claim;
mod prove;
mod diff_id;
mod landing;
mod damage;
mod fill_order;
mod status;
mod table;
mod state;
#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64},
    sync::{Arc, Weak},
};

use bytes::Bytes;
use oci::Blob;
use ztoc::{SpanId, UncompressedOffset, Ztoc};

use crate::{
    error::{Error, ErrorKind},
    fetch::{Engine, Source},
    metrics::Tally,
    spans::{
        claim::LookAhead, damage::Damage, diff_id::DiffIdCheck, fill_order::FillOrder, state::SpanState,
        table::Table,
    },
    store::{Evict, EvictAttempt, LayerFiles, StoredState},
    sync::{self, Mutex, RwLock},
};

pub use status::{LayerCounts, LayerStatus, SourceStatus, SpanCounts};

/// Sources of one layer. Each is the repository of an image on this node, so that only many images over one base
/// reach the limit. The sources that failed last are dropped first.
const MAX_SOURCES: usize = 256;

/// How the flight of a span ends. `Ok(None)`: the span is stored. `Ok(Some(bytes))`: it could not be stored; these
/// are its uncompressed bytes.
type SpanOutcome = Result<Option<Bytes>, Error>;

/// A span that one request fetches.
#[derive(Debug)]
struct Claim {
    span: u32,
    flight: Arc<table::Flight<SpanOutcome>>,
}

/// All spans of one layer.
#[derive(Debug)]
pub(crate) struct Spans {
    ztoc: Arc<Ztoc>,
    files: LayerFiles,
    table: Table<SpanOutcome>,
    /// The newest first.
    sources: RwLock<Vec<Source>>,
    engine: Arc<Engine>,
    /// This table's number in the store's order of eviction.
    owner: u32,
    /// Spans whose checksum was not compared since an unclean stop.
    unproven: AtomicU32,
    look_ahead: Mutex<LookAhead>,
    /// When a reader last had to wait, as the engine counts time; 0 for never.
    last_demand: AtomicU64,
    /// The background fetches every missing span, not only the wanted ones.
    filling: AtomicBool,
    fill_order: Mutex<FillOrder>,
    /// Spans that the background fetches before all others.
    wanted: Mutex<VecDeque<u32>>,
    damage: Damage,
    diff_id_check: Mutex<DiffIdCheck>,
    tally: Tally,
    weak_self: Weak<Self>,
}

impl Spans {
    /// The spans of the layer whose folder `files` is, as its records tell.
    pub(crate) fn open(ztoc: Arc<Ztoc>, files: LayerFiles, engine: Arc<Engine>) -> Arc<Self> {
        let count = ztoc.spans().len();
        let records = files.records(count);
        let present = (0u32..).zip(&records).filter(|(_, record)| **record == StoredState::Present);
        let present: Vec<_> = present.map(|(span, _)| SpanId(span)).collect();
        let unproven = records.iter().filter(|record| **record == StoredState::Unproven).count();
        let table = Table::new(records.iter().map(|record| match record {
            StoredState::Absent => SpanState::Empty,
            StoredState::Present => SpanState::Ready,
            StoredState::Unproven => SpanState::Unproven,
        }));
        let spans = Arc::new_cyclic(|weak_self: &Weak<Self>| Self {
            owner: files.store().join(weak_self.clone()),
            unproven: AtomicU32::new(u32::try_from(unproven).expect("a layer has fewer than 2^32 spans")),
            sources: RwLock::default(),
            look_ahead: Mutex::default(),
            last_demand: AtomicU64::new(0),
            filling: AtomicBool::new(false),
            fill_order: Mutex::default(),
            wanted: Mutex::default(),
            damage: Damage::default(),
            diff_id_check: Mutex::new(DiffIdCheck::new(files.diff_id())),
            tally: Tally::default(),
            weak_self: weak_self.clone(),
            ztoc,
            files,
            table,
            engine,
        });
        let present = present.into_iter().map(|span| (span, spans.length(span)));
        spans.files.store().landed(spans.owner, present);
        if unproven == 0 {
            spans.note_proven();
        }
        spans
    }

    pub(crate) fn ztoc(&self) -> &Arc<Ztoc> {
        &self.ztoc
    }

    /// Adds a source of the layer's bytes. `origin` names it: adding a known origin again moves it to the front.
    pub(crate) fn add_source(&self, origin: &str, source: Arc<dyn Blob>) {
        let mut sources = self.sources.write();
        sources.retain(|known| *known.origin != *origin);
        sources.insert(0, Source::new(origin, source));
        if sources.len() > MAX_SOURCES {
            let failing = sources.iter().rposition(Source::is_failing);
            sources.remove(failing.unwrap_or(MAX_SOURCES));
        }
    }

    /// Forgets a source, unless it is the last one.
    pub(crate) fn remove_source(&self, origin: &str) {
        let mut sources = self.sources.write();
        if sources.len() > 1 {
            sources.retain(|known| *known.origin != *origin);
        }
    }

    /// Waits until no span is under way.
    #[cfg(test)]
    pub(crate) async fn settled(&self) {
        for span in 0..self.ztoc.spans().len() {
            let flight = self.table.claims().under_way(span);
            if let Some(flight) = flight {
                let _ = flight.reach(u64::MAX).await;
            }
        }
    }

    /// The counters of this layer alone.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Spans that are not on disk.
    pub(crate) fn missing(&self) -> u32 {
        self.table.missing()
    }

    /// Bytes on disk and inodes of the layer's folder.
    pub(crate) fn disk_usage(&self) -> io::Result<(u64, u64)> {
        self.files.disk_usage()
    }

    /// The uncompressed bytes of a span.
    fn range(&self, span: SpanId) -> Range<UncompressedOffset> {
        let range = self.ztoc.spans().uncompressed(span);
        range.start..range.end.max(range.start)
    }

    fn is_last(&self, span: SpanId) -> bool {
        span.0 + 1 == self.ztoc.spans().len()
    }

    /// Uncompressed bytes of a span.
    fn length(&self, span: SpanId) -> u64 {
        let range = self.range(span);
        range.end - range.start
    }

    /// Ends the flight of a span. To be called only by the one task that may end it.
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

impl Evict for Spans {
    fn evict(&self, span: SpanId) -> EvictAttempt {
        if !self.table.evict(span.0) {
            return EvictAttempt::InUse;
        }
        self.files.forget(span, &self.range(span));
        self.engine.counters().evicted.add(1);
        self.settle(span, Err(Error::new(ErrorKind::Full, "read a span that was just evicted")));
        EvictAttempt::Evicted
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
