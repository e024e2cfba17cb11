//! A span that has arrived: verified, inflated and stored piece by piece.
//!
//! The pieces are small enough to stay in a processor's cache between inflating, checksum and copy to the kernel. A
//! reader that wants the beginning of a span reads it as soon as it is on disk. A span that cannot be stored (the
//! disk is full, or has lost this span before) is handed to its readers in memory. Every flight ends, also after a
//! panic.
//!
//! A request ends only the flights that it claimed itself. It may outlive them: a copy of a span can arrive a second
//! time, or a failure can be noticed late. The span may have been evicted by then, and another request fetches it.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;
use ztoc::{Inflating, SpanId};

use super::{Claim, SpanOutcome, Spans, table::Flight};
use crate::{
    error::{Error, ErrorKind},
    fetch::SpanSink,
    metrics::Tally,
};

/// Bytes that are inflated and stored at a time.
const PIECE: usize = 256 << 10;
/// Bytes that are stored behind the last span: the padding of a tar's last record. The diff ID of a layer with more
/// padding is not checked.
pub(super) const MAX_TAIL: u64 = 1 << 20;

/// What one request delivers to: a run of spans of one layer, and their flights.
#[derive(Debug)]
pub(super) struct RequestSink {
    spans: Arc<Spans>,
    claims: Vec<Claim>,
}

impl RequestSink {
    pub(super) fn new(spans: Arc<Spans>, claims: Vec<Claim>) -> Self {
        Self { spans, claims }
    }

    /// The flight that this request claimed, unless it ends or has ended already. The caller has to end it.
    fn begin_landing(&self, span: SpanId) -> Option<&Arc<Flight<SpanOutcome>>> {
        // Neighbors, in order.
        let first = self.claims.first()?.span;
        let claim = self.claims.get(span.0.checked_sub(first)? as usize)?;
        claim.flight.begin_landing().then_some(&claim.flight)
    }
}

impl SpanSink for RequestSink {
    fn is_awaited(&self, span: SpanId) -> bool {
        // A reader that waits has it pinned.
        self.spans.table.is_pinned(span.0)
    }

    fn land(&self, span: SpanId, compressed: &[u8]) -> Result<(), Error> {
        let spans = &self.spans;
        let _noted = spans.files.store().note(spans.files.id().mark());
        let inflating = spans.inflating(span, compressed)?;
        let Some(flight) = self.begin_landing(span) else { return Ok(()) };
        let mut end = FlightEnd { spans, span, outcome: None };
        let outcome = spans.store(span, inflating, flight, compressed);
        let counters = spans.engine.counters();
        match &outcome {
            Ok(None) => counters.stored.add(1),
            Ok(Some(_)) => counters.unstored.add(1),
            Err(_) => counters.wrong.add(1),
        }
        end.outcome = Some(outcome);
        Ok(())
    }

    fn tally(&self) -> Option<&Tally> {
        Some(&self.spans.tally)
    }

    fn fail(&self, span: SpanId, error: Error) {
        if self.begin_landing(span).is_some() {
            self.spans.settle(span, Err(error));
        }
    }
}

/// Ends a flight when dropped, also in a panic.
pub(super) struct FlightEnd<'a> {
    pub(super) spans: &'a Spans,
    pub(super) span: SpanId,
    pub(super) outcome: Option<SpanOutcome>,
}

impl Drop for FlightEnd<'_> {
    fn drop(&mut self) {
        let panicked = || Err(Error::new(ErrorKind::Io, "store a span: the storing thread panicked"));
        self.spans.settle(self.span, self.outcome.take().unwrap_or_else(panicked));
    }
}

/// Why a span is not on disk.
enum StoreFailure {
    /// The compressed bytes do not inflate to what the ztoc says.
    Wrong(ztoc::Error),
    Disk(std::io::Error),
}

impl Spans {
    fn wrong(&self, span: SpanId, error: ztoc::Error) -> Error {
        Error::ztoc(format!("verify span {span} of layer {}", self.files.id()), error)
    }

    /// Verifies the digest of a span. The last span is inflated to the end of the stream where that is possible.
    fn inflating<'a>(&'a self, span: SpanId, compressed: &'a [u8]) -> Result<Inflating<'a>, Error> {
        if self.is_last(span)
            && let Ok(to_the_end) = self.ztoc.inflating_to_the_end(compressed, MAX_TAIL)
        {
            return Ok(to_the_end);
        }
        self.ztoc.inflating(span, compressed).map_err(|error| self.wrong(span, error))
    }

    fn store(
        &self,
        span: SpanId,
        inflating: Inflating<'_>,
        flight: &Flight<SpanOutcome>,
        compressed: &[u8],
    ) -> SpanOutcome {
        if !self.damage.is_unreadable(span.0) {
            let to_the_end = inflating.is_to_the_end();
            let mut stored = self.store_pieces(span, inflating, flight);
            if to_the_end && matches!(stored, Err(StoreFailure::Wrong(_))) {
                // Perhaps only the bytes behind the span are wrong, which arrived together with its last bytes.
                let alone = self.ztoc.inflating(span, compressed).map_err(StoreFailure::Wrong);
                stored = alone.and_then(|alone| self.store_pieces(span, alone, flight));
            }
            match stored {
                Ok(()) => return Ok(None),
                Err(StoreFailure::Wrong(error)) => return Err(self.wrong(span, error)),
                Err(StoreFailure::Disk(error)) => {
                    tracing::warn!(
                        layer = %self.files.id(), span = span.0, %error,
                        "a span cannot be stored; its readers get it from memory"
                    );
                }
            }
        }
        let mut bytes = Vec::new();
        let inflated = self.ztoc.inflate_span(span, compressed, &mut bytes);
        inflated.map(|()| Some(Bytes::from(bytes))).map_err(|error| self.wrong(span, error))
    }

    fn store_pieces(
        &self,
        span: SpanId,
        mut inflating: Inflating<'_>,
        flight: &Flight<SpanOutcome>,
    ) -> Result<(), StoreFailure> {
        let length = self.length(span);
        let start = self.range(span).start;
        let (mut checksum, mut stored) = (Xxh3::new(), 0);
        let mut piece = Vec::with_capacity(PIECE);
        let mut more = true;
        let mut tail_known = inflating.is_to_the_end();
        while more {
            piece.clear();
            more = match inflating.more(&mut piece) {
                Ok(more) => more,
                // The span is complete; no file has bytes behind it.
                Err(_) if stored + piece.len() as u64 >= length => {
                    tail_known = false;
                    false
                }
                Err(error) => return Err(StoreFailure::Wrong(error)),
            };
            self.files.put_piece(start + stored, &piece).map_err(StoreFailure::Disk)?;
            let own = usize::try_from(length.saturating_sub(stored)).unwrap_or(usize::MAX).min(piece.len());
            checksum.update(&piece[..own]);
            stored += piece.len() as u64;
            flight.advance(stored.min(length));
        }
        let tail = Some(stored.saturating_sub(length)).filter(|_| tail_known);
        self.files.put_record(span, checksum.digest(), tail).map_err(StoreFailure::Disk)
    }
}
