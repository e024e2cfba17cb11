//! A read: the bytes of a range, from the disk or as soon as they have been fetched.
//!
//! A reader pins the spans of its range, claims what is missing, waits for every flight, and copies. When a reader
//! wants only the beginning of a span it copies as soon as that beginning is on disk. Stored bytes that cannot be
//! read are a miss and are fetched again. A read ends with the right bytes or with an error, never with other
//! bytes.

use std::{collections::HashMap, ops::Range};

use bytes::Bytes;
use tokio::time::Instant;
use ztoc::{SpanId, UncompressedOffset};

use super::{
    Spans,
    claim::ClaimedBy,
    state::{SpanState, Word},
    table::Reached,
};
use crate::{
    error::{Error, ErrorKind},
    fetch::Engine,
    metrics::Tally,
    store::LayerId,
};

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

impl Spans {
    /// The bytes of `range`, when all of them are on disk; never waits for anything but the disk.
    pub(crate) fn read_ready(&self, range: &Range<UncompressedOffset>) -> Option<Result<Vec<u8>, Error>> {
        self.read_stored(range, &[])
    }

    /// Counts a reader that waits for `range`, as long as the value lives.
    pub(crate) fn waiting(&self, range: &Range<UncompressedOffset>) -> Waiting<'_> {
        self.engine.counters().waits_begun.add(1);
        self.tally.waits_begun.add(1);
        let spans = self.ztoc.spans().covering(range.clone());
        let tally = &self.tally;
        Waiting { engine: &self.engine, tally, layer: self.files.id(), spans, since: Instant::now() }
    }

    /// The bytes of `range`, fetched where they are missing. `file` is the file that is read: its other spans are
    /// likely to be read soon.
    pub(crate) async fn read(
        &self,
        range: Range<UncompressedOffset>,
        file: Range<UncompressedOffset>,
    ) -> Result<Vec<u8>, Error> {
        let file = self.ztoc.spans().covering(file);
        let spans = self.ztoc.spans().covering(range.clone());
        let _pins = self.table.pin(spans.clone());
        // Once a beginning was stored and could not be read, the reader waits for whole spans.
        let mut early = true;
        loop {
            if let Some(bytes) = self.read_ready(&range) {
                return bytes;
            }
            self.prove(spans.clone()).await;
            let mut in_memory = HashMap::new();
            let mut coming = Vec::new();
            for (span, flight, claimed_by) in self.demand(&spans, &file) {
                let bytes = if early { self.bytes_wanted(span, &range) } else { u64::MAX };
                match (flight.reach(bytes).await, claimed_by) {
                    (Reached::Beginning, _) => coming.push(span),
                    (Reached::Ended(Ok(Some(bytes))), _) => drop(in_memory.insert(span, bytes)),
                    (Reached::Ended(Ok(None)), _) => {}
                    (Reached::Ended(Err(error)), ClaimedBy::ThisReader) => return Err(error),
                    (Reached::Ended(Err(error)), ClaimedBy::Another) => {
                        tracing::debug!(span, %error, "a span that another request fetched did not arrive");
                    }
                }
            }
            if let Some(bytes) = self.assemble(&range, &in_memory, &coming) {
                return Ok(bytes);
            }
            early = coming.is_empty();
        }
    }

    /// The bytes of `range`. Of the spans `coming`, which the caller pinned before it saw them, enough is on disk.
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
                // The file lost bytes: a miss, not an error.
                tracing::warn!(
                    layer = %self.files.id(), %error,
                    "stored spans cannot be read; they are fetched again"
                );
                spans.for_each(|span| self.drop_damaged(SpanId(span)));
                None
            }
        }
    }

    /// Makes a stored span that could not be read an absent one.
    fn drop_damaged(&self, span: SpanId) {
        if self.table.take(span.0, Word::damage) {
            self.engine.counters().damaged.add(u64::from(!self.files.is_over()));
            self.damage.note(span.0);
            self.files.strike(span);
            self.files.store().struck(self.owner, span);
            self.settle(span, Err(Error::new(ErrorKind::Corrupt, "read a stored span")));
        }
    }

    /// How many bytes from the start of a span a reader of `range` needs.
    fn bytes_wanted(&self, span: u32, range: &Range<UncompressedOffset>) -> u64 {
        let whole = self.range(SpanId(span));
        whole.end.min(range.end).0.saturating_sub(whole.start.0)
    }

    /// Joins spans that are in memory with those that are stored or `coming`. `None` where a span is missing.
    fn assemble(
        &self,
        range: &Range<UncompressedOffset>,
        in_memory: &HashMap<u32, Bytes>,
        coming: &[u32],
    ) -> Option<Vec<u8>> {
        if in_memory.is_empty() {
            return self.read_stored(range, coming)?.ok();
        }
        let mut out = Vec::with_capacity(usize::try_from(range.end - range.start).ok()?);
        for span in self.ztoc.spans().covering(range.clone()) {
            let whole = self.range(SpanId(span));
            let part = whole.start.max(range.start)..whole.end.min(range.end);
            if let Some(bytes) = in_memory.get(&span) {
                let from = usize::try_from(part.start - whole.start).ok()?;
                let to = usize::try_from(part.end - whole.start).ok()?;
                out.extend_from_slice(bytes.get(from..to)?);
            } else {
                out.extend_from_slice(&self.read_stored(&part, coming)?.ok()?);
            }
        }
        Some(out)
    }
}
