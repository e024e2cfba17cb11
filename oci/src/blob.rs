//! One blob, wherever it lives: its digest, its size if known, and any range of its bytes as a stream. A reader of
//! a range verifies it itself (a span has its own digest); a reader of the whole puts `verified`
//! around the stream. Implementations live in `registry`, in other crates' stores, and in `testing`.

use std::fmt::Debug;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};

use crate::digest::{Digest, Verifier};
use crate::error::{Error, ErrorKind};

/// A boxed future, so that the traits of this crate can be used as `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Chunks in order; after an error the stream ends.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// A blob of which ranges can be read, by many readers at once.
pub trait Blob: Send + Sync + Debug {
    fn digest(&self) -> &Digest;

    /// Its length in bytes, where known.
    fn size(&self) -> Option<u64>;

    /// The bytes of exactly `range` (offsets within the blob as stored, that is compressed offsets) in order,
    /// chunk by chunk. The stream ends after the last byte, or yields one error; it is never short without one.
    /// The bytes are not compared with the digest.
    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>>;

    /// How often its place has said so far that it has too much to do (429, 503): a caller that sees the number grow asks
    /// for less at once. Such answers are repeated here, so nothing else tells of them.
    fn busy_answers(&self) -> u64 {
        0
    }

    /// The whole blob, in order, not compared with the digest.
    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, Error>>;
}

/// The same stream, ending in `Corrupt` unless its bytes have `digest` (and are `size` many). A stream that
/// grows past `size` is cut there, before the byte too many is handed on; and the last byte is handed on only when all
/// are known to be right, since a reader that wants `size` bytes does not ask for more.
pub fn verified(source: ByteStream, digest: Digest, size: u64) -> ByteStream {
    let doing = format!("read blob {digest}");
    let start = Some((source, Some(Verifier::new(digest)), doing));
    Box::pin(stream::unfold(start, move |state| async move {
        let (mut source, mut verifier, doing) = state?;
        let corrupt = |why: String| Some((Err(Error::new(ErrorKind::Corrupt, &doing).because(why)), None));
        match source.next().await {
            Some(Ok(chunk)) => {
                let taken =
                    verifier.as_ref().map_or(size, Verifier::taken).saturating_add(chunk.len() as u64);
                if taken > size {
                    return corrupt(format!("it is longer than its {size} bytes"));
                }
                if let Some(open) = &mut verifier {
                    open.update(&chunk);
                }
                if let Some(complete) = verifier.take_if(|_| taken == size)
                    && let Err(error) = complete.finish(&doing)
                {
                    return Some((Err(error), None));
                }
                Some((Ok(chunk), Some((source, verifier, doing))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None => match verifier.map(|open| (open.taken(), open.finish(&doing))) {
                Some((taken, _)) if taken != size => {
                    corrupt(format!("it has {taken} bytes, expected {size}"))
                }
                Some((_, Err(error))) => Some((Err(error), None)),
                Some((_, Ok(()))) | None => None,
            },
        }
    }))
}

/// All of a stream in memory; more than `limit` bytes are refused as `Corrupt`.
pub async fn collect(mut source: ByteStream, limit: u64, doing: &str) -> Result<Bytes, Error> {
    let mut all = BytesMut::new();
    while let Some(chunk) = source.next().await {
        let chunk = chunk?;
        if all.len() as u64 + chunk.len() as u64 > limit {
            let error = Error::new(ErrorKind::Corrupt, doing);
            return Err(error.because(format!("it is longer than {limit} bytes")));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}
