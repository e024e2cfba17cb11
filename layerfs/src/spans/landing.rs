//! A span that has arrived: verified, inflated and stored piece by piece.
//!
//! The pieces are small enough to stay in a processor's cache between inflating, checksum and copy to the kernel, and
//! who waits for the beginning of a span reads it as soon as that lies on the disk. What cannot be stored (no
//! room, or what is stored there cannot be read) is handed in memory to those who wait. Whatever happens, also a
//! panic, the flight ends.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;
use ztoc::{Inflating, SpanId};

use super::{Flight, SpanOutcome, Spans};
use crate::{
    error::{Error, ErrorKind},
    fetch::SpanSink,
    metrics::Tally,
};

/// Inflated and stored at a time.
const PIECE: usize = 256 << 10;
/// Behind the last span: the padding of a tar's last record. What has more is not compared as a whole.
const MAX_TAIL: u64 = 1 << 20;

impl SpanSink for Spans {
    fn is_awaited(&self, span: SpanId) -> bool {
        // Who waits has it pinned.
        self.table.is_pinned(span.0)
    }

    fn land(&self, span: SpanId, compressed: &[u8]) -> Result<(), Error> {
        let _at = self.files.store().at(self.files.id().mark());
        let to_the_end =
            if self.is_last(span) { self.ztoc.inflating_to_the_end(compressed, MAX_TAIL).ok() } else { None };
        let inflating = to_the_end.map_or_else(|| self.ztoc.inflating(span, compressed), Ok);
        let inflating = inflating.map_err(|error| self.wrong(span, error))?;
        let Some(flight) = self.table.first(span.0) else {
            return Ok(()); // it came a second time
        };
        let mut ending = FlightEnd { spans: self, span, outcome: None };
        let outcome = self.store(span, inflating, &flight, compressed);
        let counters = self.engine.counters();
        match &outcome {
            Ok(None) => counters.stored.add(1),
            Ok(Some(_)) => counters.unstored.add(1),
            Err(_) => counters.wrong.add(1),
        }
        ending.outcome = Some(outcome);
        Ok(())
    }

    fn tally(&self) -> Option<&Tally> {
        Some(&self.tally)
    }

    fn fail(&self, span: SpanId, error: Error) {
        if self.table.first(span.0).is_some() {
            self.settle(span, Err(error));
        }
    }
}

/// The end of a flight, which comes in any case.
struct FlightEnd<'a> {
    spans: &'a Spans,
    span: SpanId,
    outcome: Option<SpanOutcome>,
}

impl Drop for FlightEnd<'_> {
    fn drop(&mut self) {
        let panicked = || Err(Error::new(ErrorKind::Io, "store a span: something of ours panicked"));
        self.spans.settle(self.span, self.outcome.take().unwrap_or_else(panicked));
    }
}

/// Why a span did not get onto the disk.
enum StoreFailure {
    /// The stream is not what the ztoc says, and never will be.
    Wrong(ztoc::Error),
    Disk(std::io::Error),
}

impl Spans {
    fn wrong(&self, span: SpanId, error: ztoc::Error) -> Error {
        Error::ztoc(format!("verify span {span} of layer {}", self.files.id()), error)
    }

    fn store(
        &self,
        span: SpanId,
        inflating: Inflating<'_>,
        flight: &Arc<Flight<SpanOutcome>>,
        compressed: &[u8],
    ) -> SpanOutcome {
        if !self.is_unreadable(span.0) {
            let to_the_end = inflating.is_to_the_end();
            let mut stored = self.store_pieces(span, inflating, flight);
            if to_the_end && matches!(stored, Err(StoreFailure::Wrong(_))) {
                // Perhaps only behind it, in what came together with its last bytes.
                let alone = self.ztoc.inflating(span, compressed).map_err(StoreFailure::Wrong);
                stored = alone.and_then(|alone| self.store_pieces(span, alone, flight));
            }
            match stored {
                Ok(()) => return Ok(None),
                Err(StoreFailure::Wrong(error)) => return Err(self.wrong(span, error)),
                Err(StoreFailure::Disk(error)) => {
                    tracing::warn!(layer = %self.files.id(), span = span.0, %error, "store span; served unstored");
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
        let (mut checksum, mut came) = (Xxh3::new(), 0);
        let mut piece = Vec::with_capacity(PIECE);
        let mut more = true;
        let mut tail_known = inflating.is_to_the_end();
        while more {
            piece.clear();
            more = match inflating.more(&mut piece) {
                Ok(more) => more,
                // What follows the span is no file's.
                Err(_) if came + piece.len() as u64 >= length => {
                    tail_known = false;
                    false
                }
                Err(error) => return Err(StoreFailure::Wrong(error)),
            };
            self.files.put_piece(start + came, &piece).map_err(StoreFailure::Disk)?;
            let own = usize::try_from(length.saturating_sub(came)).unwrap_or(usize::MAX).min(piece.len());
            checksum.update(&piece[..own]);
            came += piece.len() as u64;
            flight.advance(came.min(length));
        }
        let tail = Some(came.saturating_sub(length)).filter(|_| tail_known);
        self.files.put_record(span, checksum.digest(), tail).map_err(StoreFailure::Disk)
    }
}

#[cfg(test)]
mod tests;
