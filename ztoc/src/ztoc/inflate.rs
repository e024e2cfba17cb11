//! From compressed bytes to uncompressed ones: a span is compared with its digest, then inflated from its checkpoint.
//!
//! The caller brings the compressed bytes. A span inflates to what the ztoc says, to the byte. A stream
//! that ends early, or is damaged, is an error and never a short or padded answer.

use std::fmt;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::Ztoc;
use crate::error::Error;
use crate::gzip::{self, Until, WINDOW};
use crate::units::{self, CompressedOffset, SpanId};
use crate::zinfo::Compression;

/// The most that is reserved ahead of inflating, in bytes: spans of usual size, and no more on the word of a
/// ztoc alone.
const MAX_RESERVED: u64 = 32 << 20;

/// What is copied of an uncompressed span at a time, where the caller has no room of its own.
const PIECE: usize = 256 << 10;

impl Ztoc {
    /// Compares a span's compressed bytes with its digest. Cannot be left out: nothing else protects them.
    pub fn verify_span(&self, span: SpanId, compressed: &[u8]) -> Result<(), Error> {
        let range = self.known(span)?;
        if compressed.len() as u64 != range.end - range.start {
            return Err(Error::corrupt(format!("verify span {span}: wrong length")));
        }
        let digest: [u8; 32] = Sha256::digest(compressed).into();
        if digest != *self.spans().digest(span) {
            return Err(Error::corrupt(format!("verify span {span}: wrong digest")));
        }
        Ok(())
    }

    /// Verifies a span; what it inflates to, exactly the bytes of its uncompressed range, comes in pieces.
    pub fn inflating<'a>(&'a self, span: SpanId, compressed: &'a [u8]) -> Result<Inflating<'a>, Error> {
        self.verify_span(span, compressed)?;
        let len = units::length(&self.spans().uncompressed(span));
        self.resumed(span, compressed, Until::Bytes(len))
    }

    /// Like [`Ztoc::inflating`] for the last span, but goes on to the end of the layer: behind the tar's
    /// end marker there may be padding, which is no file's but belongs to what a diff ID is the digest of. At
    /// most `limit` bytes of it, else [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge). All spans before, and
    /// this, are the whole tar stream.
    pub fn inflating_to_the_end<'a>(
        &'a self,
        compressed: &'a [u8],
        limit: u64,
    ) -> Result<Inflating<'a>, Error> {
        let last = self.spans().len().checked_sub(1).map(SpanId);
        let last = last.ok_or_else(|| Error::corrupt("inflate the last span: there is none"))?;
        self.verify_span(last, compressed)?;
        let len = units::length(&self.spans().uncompressed(last));
        self.resumed(last, compressed, Until::End { limit: len.saturating_add(limit) })
    }

    /// Verifies a span and inflates it: exactly the bytes of its uncompressed range, to the end of `out`. After
    /// an error `out` is as it was.
    pub fn inflate_span(&self, span: SpanId, compressed: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.inflating(span, compressed)?.all(out)
    }

    fn known(&self, span: SpanId) -> Result<Range<CompressedOffset>, Error> {
        if self.spans().contains(span) {
            Ok(self.spans().compressed(span))
        } else {
            Err(Error::corrupt(format!("verify span {span}: no such span")))
        }
    }

    fn resumed<'a>(
        &'a self,
        span: SpanId,
        compressed: &'a [u8],
        until: Until,
    ) -> Result<Inflating<'a>, Error> {
        let from = match self.compression() {
            Compression::Uncompressed => From::Plain(plain(compressed, until)?),
            Compression::Gzip => {
                let checkpoint = self.spans().checkpoint(span);
                let checkpoint = checkpoint.ok_or_else(|| Error::corrupt("inflate span: no checkpoint"))?;
                From::Gzip(gzip::Resumed::new(checkpoint, self.window(span)?, compressed, until)?)
            }
        };
        let least = units::length(&self.spans().uncompressed(span));
        let to_the_end = matches!(until, Until::End { .. });
        Ok(Inflating { span, from, least, compressed: compressed.len() as u64, to_the_end })
    }

    pub(super) fn window(&self, span: SpanId) -> Result<&[u8], Error> {
        const ZEROS: &[u8; WINDOW] = &[0; WINDOW];
        let windows = self.windows();
        match windows.at(span.index()) {
            None => Ok(ZEROS),
            Some(at) => at
                .checked_add(WINDOW)
                .and_then(|end| self.as_bytes().get(at..end))
                .ok_or_else(|| Error::corrupt("inflate span: the window is gone")),
        }
    }
}

/// A verified span on its way to its uncompressed bytes. What has come when an error does is not to be believed less
/// than the ztoc is: the stream was the one that it tells of.
pub struct Inflating<'a> {
    span: SpanId,
    from: From<'a>,
    /// Bytes that have to come.
    least: u64,
    compressed: u64,
    to_the_end: bool,
}

enum From<'a> {
    Plain(&'a [u8]),
    Gzip(gzip::Resumed<'a>),
}

impl fmt::Debug for Inflating<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflating")
            .field("span", &self.span)
            .field("least", &self.least)
            .finish_non_exhaustive()
    }
}

impl Inflating<'_> {
    /// Whether it goes on to the end of the layer, beyond the last span.
    pub fn is_to_the_end(&self) -> bool {
        self.to_the_end
    }

    /// Appends everything to `out`. After an error `out` is as it was.
    ///
    /// # Errors
    /// As [`Inflating::more`].
    pub fn all(mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        // deflate cannot shrink more than about a thousandfold
        let likely = self.least.min(MAX_RESERVED).min(self.compressed.saturating_mul(1032));
        out.reserve_exact(usize::try_from(likely).unwrap_or(0));
        let before = out.len();
        loop {
            match self.more(out) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    out.truncate(before);
                    return Err(error);
                }
            }
        }
    }

    /// Appends what comes next to `out`, at most what it has room for (some is made where it has none). False when
    /// all has come.
    ///
    /// # Errors
    /// When the stream is damaged, or shorter or longer than the ztoc has it.
    pub fn more(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        let before = out.len();
        let more = match &mut self.from {
            From::Plain(rest) => {
                if out.capacity() == out.len() {
                    out.reserve(rest.len().min(PIECE));
                }
                let (now, later) = rest.split_at(rest.len().min(out.capacity() - out.len()));
                out.extend_from_slice(now);
                *rest = later;
                Ok(!later.is_empty())
            }
            From::Gzip(resumed) => resumed.more(out),
        };
        self.least = self.least.saturating_sub((out.len() - before) as u64);
        let short = more.as_ref().is_ok_and(|more| !more && self.least > 0);
        let more = if short { Err(Error::corrupt("the stream ends early")) } else { more };
        more.map_err(|error| {
            let kind = error.kind();
            error.within(kind, format!("inflate span {}", self.span))
        })
    }
}

/// What of an uncompressed span is its tar's.
fn plain(compressed: &[u8], until: Until) -> Result<&[u8], Error> {
    let bytes = match until {
        Until::Bytes(len) => usize::try_from(len).ok().and_then(|len| compressed.get(..len)),
        Until::End { limit } if compressed.len() as u64 > limit => {
            return Err(Error::too_large("inflate span: more bytes than the limit"));
        }
        Until::End { .. } => Some(compressed),
    };
    bytes.ok_or_else(|| Error::corrupt("inflate span: the layer ends early"))
}
