//! From compressed bytes to uncompressed ones: a span is compared with its digest, then inflated from its checkpoint.
//!
//! The caller brings the compressed bytes. What a span may inflate to is what the ztoc says, to the byte; a
//! stream that ends early, or is damaged, is an error and never a short or padded answer.

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

    /// Verifies a span and inflates it: exactly the bytes of its uncompressed range, to the end of `out`. After
    /// an error `out` is as it was.
    pub fn inflate_span(&self, span: SpanId, compressed: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.verify_span(span, compressed)?;
        let len = units::length(&self.spans().uncompressed(span));
        self.inflate(span, compressed, Until::Bytes(len), out)
    }

    /// Like [`Ztoc::inflate_span`] for the last span, but goes on to the end of the layer: behind the tar's
    /// end marker there may be padding, which is no file's but belongs to what a diff ID is the digest of. At
    /// most `limit` bytes of it, else [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge). All spans before, and this, are the whole tar stream.
    pub fn inflate_last_span_with_tail(
        &self,
        compressed: &[u8],
        limit: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let Some(last) = self.spans().len().checked_sub(1).map(SpanId) else {
            // no span: a layer of no bytes
            return if compressed.is_empty() { Ok(()) } else { self.known(SpanId(0)).map(|_| ()) };
        };
        self.verify_span(last, compressed)?;
        let before = out.len();
        let len = units::length(&self.spans().uncompressed(last));
        self.inflate(last, compressed, Until::End { limit: len.saturating_add(limit) }, out)?;
        if ((out.len() - before) as u64) < len {
            out.truncate(before);
            return Err(Error::corrupt("inflate span: the stream ends early"));
        }
        Ok(())
    }

    fn known(&self, span: SpanId) -> Result<Range<CompressedOffset>, Error> {
        if self.spans().contains(span) {
            Ok(self.spans().compressed(span))
        } else {
            Err(Error::corrupt(format!("verify span {span}: no such span")))
        }
    }

    fn inflate(&self, span: SpanId, compressed: &[u8], until: Until, out: &mut Vec<u8>) -> Result<(), Error> {
        let before = out.len();
        match self.compression() {
            Compression::Uncompressed => copy(compressed, until, out),
            Compression::Gzip => {
                let (Until::Bytes(len) | Until::End { limit: len }) = until;
                // deflate cannot shrink more than about a thousandfold
                let likely = len.min(MAX_RESERVED).min((compressed.len() as u64).saturating_mul(1032));
                out.reserve_exact(usize::try_from(likely).unwrap_or(0));
                let checkpoint = self.spans().checkpoint(span);
                let checkpoint = checkpoint.ok_or_else(|| Error::corrupt("inflate span: no checkpoint"))?;
                gzip::resume(checkpoint, self.window(span)?, compressed, until, out)
            }
        }
        .map_err(|error| {
            out.truncate(before);
            let kind = error.kind();
            error.within(kind, format!("inflate span {span}"))
        })
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

fn copy(compressed: &[u8], until: Until, out: &mut Vec<u8>) -> Result<(), Error> {
    let bytes = match until {
        Until::Bytes(len) => usize::try_from(len).ok().and_then(|len| compressed.get(..len)),
        Until::End { limit } if compressed.len() as u64 > limit => {
            return Err(Error::too_large("inflate span: more bytes than the limit"));
        }
        Until::End { .. } => Some(compressed),
    };
    out.extend_from_slice(bytes.ok_or_else(|| Error::corrupt("inflate span: the layer ends early"))?);
    Ok(())
}
