//! The zinfo, the half of a ztoc that cuts a layer into spans. It tells which span an offset is in, which compressed
//! bytes a span is, and what their digest has to be.
//!
//! A `SpanTable` is made when a ztoc is opened, from its checkpoints or by arithmetic, and never changes.
//! Every span but the last has at least one byte on either side. Compressed ranges of neighbors overlap by
//! one byte where a span begins in the middle of a byte. The last span ends where the layer ends; its
//! uncompressed range may be empty, when the tar ended long before the layer did.

use std::ops::Range;

use crate::error::Error;
use crate::gzip::Checkpoint;
use crate::uncompressed;
use crate::units::{CompressedOffset, SpanId, UncompressedOffset};

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// One or more gzip members.
    Gzip,
    /// A tar as it is.
    Uncompressed,
}

/// The spans of one layer.
#[derive(Debug)]
pub struct SpanTable {
    places: Places,
    span_size: u64,
    compressed_size: u64,
    uncompressed_size: u64,
    digests: Vec<[u8; 32]>,
}

#[derive(Debug)]
enum Places {
    Checkpoints(Vec<Checkpoint>),
    Arithmetic,
}

/// What a [`SpanTable`] is made of, as a ztoc states it.
pub(crate) struct Stated {
    pub(crate) span_size: u64,
    pub(crate) compressed_size: u64,
    pub(crate) uncompressed_size: u64,
    pub(crate) max_span_id: i32,
    pub(crate) digests: Vec<[u8; 32]>,
}

impl SpanTable {
    /// The spans of a gzipped layer.
    pub(crate) fn gzip(stated: Stated, checkpoints: Vec<Checkpoint>) -> Result<SpanTable, Error> {
        let bad = |what: &'static str| Err(Error::corrupt(what));
        if checkpoints.is_empty() {
            return bad("read span table: no checkpoint");
        }
        for checkpoint in &checkpoints {
            let in_range = checkpoint.input <= MAX_OFFSET && checkpoint.output <= MAX_OFFSET;
            if !in_range || checkpoint.bits > 7 || (checkpoint.bits != 0 && checkpoint.input == 0) {
                return bad("read span table: impossible checkpoint");
            }
        }
        for pair in checkpoints.windows(2) {
            if pair[0].output >= pair[1].output || pair[0].first_byte() >= pair[1].input {
                return bad("read span table: a span without bytes");
            }
        }
        SpanTable::new(stated, checkpoints.len(), Places::Checkpoints(checkpoints))
    }

    /// The spans of a layer that is not compressed; `size` is the one its zinfo states.
    pub(crate) fn plain(stated: Stated, size: u64) -> Result<SpanTable, Error> {
        let Some(count) = uncompressed::spans(size, stated.span_size) else {
            return Err(Error::corrupt("read span table: impossible span size"));
        };
        SpanTable::new(stated, count as usize, Places::Arithmetic)
    }

    fn new(stated: Stated, count: usize, places: Places) -> Result<SpanTable, Error> {
        if i64::from(stated.max_span_id) != i64::try_from(count).unwrap_or(i64::MAX) - 1 {
            return Err(Error::corrupt("read span table: the last span is not the one stated"));
        }
        if stated.digests.len() != count {
            return Err(Error::corrupt("read span table: not one digest for each span"));
        }
        Ok(SpanTable {
            places,
            span_size: stated.span_size,
            compressed_size: stated.compressed_size,
            uncompressed_size: stated.uncompressed_size,
            digests: stated.digests,
        })
    }

    /// How many spans there are; 0 for a layer of no bytes only.
    pub fn len(&self) -> u32 {
        // at most `i32::MAX + 1`, see `new`
        self.digests.len() as u32
    }

    /// Whether the layer has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// The span size the ztoc was made with, in uncompressed bytes. Gzipped spans are longer than this.
    pub fn span_size(&self) -> u64 {
        self.span_size
    }

    /// The span of an offset; the last one for offsets behind the end (span 0 when there is none at all).
    pub fn span_of(&self, offset: UncompressedOffset) -> SpanId {
        SpanId(match &self.places {
            Places::Checkpoints(checkpoints) => {
                let after = checkpoints.partition_point(|checkpoint| checkpoint.output <= offset.0);
                after.saturating_sub(1) as u32
            }
            Places::Arithmetic => {
                uncompressed::span_of(offset.0, self.span_size).min(self.len().saturating_sub(1))
            }
        })
    }

    /// The numbers of the spans that hold at least one byte of `range`.
    pub fn covering(&self, range: Range<UncompressedOffset>) -> Range<u32> {
        let first = self.span_of(range.start).0;
        if range.start >= range.end || self.is_empty() {
            return first..first;
        }
        first..self.span_of(UncompressedOffset(range.end.0 - 1)).0 + 1
    }

    /// The last span of a file as the original lists it: the span of the offset *behind* its last byte, which
    /// is one too many when the file ends where a span begins. Not kept below [`SpanTable::len`] when the
    /// layer is not compressed. For listings and prefetch lists that have to be the same.
    pub fn end_span_as_listed(&self, end: UncompressedOffset) -> SpanId {
        match &self.places {
            Places::Checkpoints(_) => self.span_of(end),
            Places::Arithmetic => SpanId(uncompressed::span_of(end.0, self.span_size)),
        }
    }

    /// The compressed bytes of a span, for a range request. Empty if there is no such span.
    pub fn compressed(&self, span: SpanId) -> Range<CompressedOffset> {
        let last = span.0.saturating_add(1) >= self.len();
        let (start, end) = match &self.places {
            Places::Checkpoints(checkpoints) => (
                checkpoints.get(span.index()).map_or(self.compressed_size, Checkpoint::first_byte),
                checkpoints
                    .get(span.index().saturating_add(1))
                    .map_or(self.compressed_size, |next| next.input),
            ),
            Places::Arithmetic => self.arithmetic(span, last, self.compressed_size),
        };
        CompressedOffset(start)..CompressedOffset(end.max(start))
    }

    /// The uncompressed bytes of a span. Empty if there is no such span.
    pub fn uncompressed(&self, span: SpanId) -> Range<UncompressedOffset> {
        let last = span.0.saturating_add(1) >= self.len();
        let (start, end) = match &self.places {
            Places::Checkpoints(checkpoints) => (
                checkpoints.get(span.index()).map_or(self.uncompressed_size, |checkpoint| checkpoint.output),
                checkpoints
                    .get(span.index().saturating_add(1))
                    .map_or(self.uncompressed_size, |next| next.output),
            ),
            Places::Arithmetic => self.arithmetic(span, last, self.uncompressed_size),
        };
        UncompressedOffset(start)..UncompressedOffset(end.max(start))
    }

    fn arithmetic(&self, span: SpanId, last: bool, size: u64) -> (u64, u64) {
        let start = uncompressed::start(span.0, self.span_size);
        (start, if last { size } else { start.saturating_add(self.span_size) })
    }

    /// The SHA-256 of a span's compressed bytes.
    ///
    /// # Panics
    /// When there is no such span.
    pub fn digest(&self, span: SpanId) -> &[u8; 32] {
        &self.digests[span.index()]
    }

    /// Whether there is such a span.
    pub fn contains(&self, span: SpanId) -> bool {
        span.0 < self.len()
    }

    /// The checkpoint of a span; nothing where spans begin by arithmetic.
    pub(crate) fn checkpoint(&self, span: SpanId) -> Option<Checkpoint> {
        match &self.places {
            Places::Checkpoints(checkpoints) => checkpoints.get(span.index()).copied(),
            Places::Arithmetic => None,
        }
    }
}

/// Offsets are stored as signed numbers; beyond this they are negative.
pub(crate) const MAX_OFFSET: u64 = i64::MAX as u64;
