//! A blob in this process that comes no faster than the line would bring it, and costs next to nothing: what is left
//! of the processors is the engine's.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use oci::{Blob, BoxFuture, ByteStream, Digest};
use tokio::time::Instant;

/// What an answer comes in.
const CHUNK: usize = 64 << 10;
/// What an idle line has saved up at most: it is asked in steps of a timer's tick.
const BURST: Duration = Duration::from_millis(5);

/// A line that several blobs share.
#[derive(Debug)]
pub(crate) struct Line {
    bytes_per_second: u64,
    round_trip: Duration,
    /// When it will be free of what was promised so far.
    free_at: Mutex<Instant>,
}

impl Line {
    pub(crate) fn new(bytes_per_second: u64, round_trip: Duration) -> Arc<Line> {
        Arc::new(Line { bytes_per_second, round_trip, free_at: Mutex::new(Instant::now()) })
    }

    async fn carry(&self, bytes: usize) {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let done = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *free_at = (*free_at).max(now.checked_sub(BURST).unwrap_or(now)) + cost;
            *free_at
        };
        tokio::time::sleep_until(done).await;
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Paced {
    digest: Digest,
    bytes: Bytes,
    line: Arc<Line>,
}

impl Paced {
    pub(crate) fn new(digest: Digest, bytes: Bytes, line: &Arc<Line>) -> Paced {
        Paced { digest, bytes, line: line.clone() }
    }
}

impl Blob for Paced {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> Option<u64> {
        Some(self.bytes.len() as u64)
    }

    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, oci::Error>> {
        let answer = self.bytes.slice(range.start as usize..range.end as usize);
        Box::pin(async move {
            tokio::time::sleep(self.line.round_trip).await;
            let line = self.line.clone();
            let chunks = (0..answer.len()).step_by(CHUNK);
            let chunks = chunks.map(move |at| answer.slice(at..answer.len().min(at + CHUNK)));
            let paced = stream::iter(chunks).then(move |chunk| {
                let line = line.clone();
                async move {
                    line.carry(chunk.len()).await;
                    Ok(chunk)
                }
            });
            Ok(Box::pin(paced) as ByteStream)
        })
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, oci::Error>> {
        self.read_range(0..self.bytes.len() as u64)
    }
}
