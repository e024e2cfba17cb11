//! The status of a layer: how much of it is on disk, its sources, its counters. Computed when a caller asks.

use oci::Digest;
use ztoc::SpanId;

use super::{SpanState, Spans};
use crate::{fetch::Source, metrics::Tally};

/// The state of a layer at one moment. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStatus {
    /// Compressed bytes of the layer, as stored in a registry.
    pub compressed: u64,
    /// Uncompressed bytes of the layer.
    pub uncompressed: u64,
    /// Compressed bytes whose spans are on disk.
    pub fetched: u64,
    /// Uncompressed bytes on disk.
    pub stored: u64,
    /// How many spans are in which state.
    pub spans: SpanCounts,
    /// Sources, the newest first.
    pub sources: Vec<SourceStatus>,
    /// Reads that wait for bytes now.
    pub readers_waiting: u64,
    /// Digest of all uncompressed bytes, where it is known.
    pub whole: Option<Digest>,
    /// Counters since the layer was opened.
    pub counts: LayerCounts,
}

/// Spans by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpanCounts {
    /// Not on disk.
    pub empty: u32,
    /// Under way.
    pub filling: u32,
    /// On disk.
    pub ready: u32,
    /// On disk since before an unclean stop.
    pub unproven: u32,
}

/// A source of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStatus {
    /// `HOST/REPOSITORY`.
    pub origin: String,
    /// Why the last request to it failed, if it did.
    pub failing: Option<String>,
}

/// Counters of one layer since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerCounts {
    /// Reads of its files.
    pub reads: u64,
    /// Reads that ended with an error.
    pub reads_failed: u64,
    /// Uncompressed bytes that were read.
    pub read_bytes: u64,
    /// Requests to registries that a reader waited for.
    pub demand_requests: u64,
    /// Background spans that landed.
    pub background_spans: u64,
    /// Background spans that could not be fetched.
    pub background_failed: u64,
}

impl LayerCounts {
    fn of(tally: &Tally) -> Self {
        Self {
            reads: tally.reads.now(),
            reads_failed: tally.reads_failed.now(),
            read_bytes: tally.read_bytes.now(),
            demand_requests: tally.demand_requests.now(),
            background_spans: tally.background_spans.now(),
            background_failed: tally.background_failed.now(),
        }
    }
}

impl Spans {
    pub(crate) fn status(&self) -> LayerStatus {
        let (mut spans, mut fetched, mut stored) = (SpanCounts::default(), 0, 0);
        for span in (0..self.ztoc.spans().len()).map(SpanId) {
            let count = match self.table.state(span.0) {
                SpanState::Empty => &mut spans.empty,
                SpanState::Filling => &mut spans.filling,
                state @ (SpanState::Ready | SpanState::Unproven) => {
                    fetched += self.compressed(span.0..span.0 + 1);
                    stored += self.length(span);
                    if state == SpanState::Ready { &mut spans.ready } else { &mut spans.unproven }
                }
            };
            *count += 1;
        }
        let compressed = self.ztoc.compressed_size();
        // Neighbors may share a byte, and no span contains the headers.
        let all = spans.empty + spans.filling == 0;
        let fetched = if all { compressed } else { u64::min(fetched, compressed) };
        let source = |source: &Source| SourceStatus {
            origin: source.origin.to_string(),
            failing: source.failing.lock().clone(),
        };
        LayerStatus {
            compressed,
            uncompressed: self.ztoc.uncompressed_size(),
            fetched,
            stored,
            spans,
            sources: self.sources.read().iter().map(source).collect(),
            readers_waiting: self.tally.waiting(),
            whole: self.diff_id(),
            counts: LayerCounts::of(&self.tally),
        }
    }
}
