//! A layer without a ztoc: streamed whole, once, through the builder of ztocs into the store.
//!
//! What arrives is inflated and written to the disk at once. At the end the layer's digest is compared, every span
//! is recorded with a checksum, and the ztoc that the builder made is stored. Only then does the layer count as
//! stored: a stream that ends badly, or is too slow, leaves nothing behind. A pull waits for the stream, so a
//! registry that sends almost nothing is given up.

use std::{io::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use oci::{Blob, Digest};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use ztoc::{Builder, Compression, Options, SpanId, Ztoc};

use crate::{
    error::{Error, ErrorKind},
    raw::Map,
    store::LayerFiles,
};

/// Chunks between the network and the builder: a few, so that neither waits for each hand-over.
const QUEUE: usize = 16;
/// Bytes a second that a source has to send, on average over [`RATE_PERIOD`]. A slow DSL line sends ten times as
/// much; at this rate a layer of 100 MiB takes an hour, and containerd's own pull with its retries is the better
/// choice.
const MIN_RATE: u64 = 32 << 10;
/// Time over which the rate is averaged: longer than a registry takes to fail over, shorter than clients wait.
const RATE_PERIOD: Duration = Duration::from_secs(60);

/// Streams a layer into its folder. Returns the folder and the ztoc that was built.
pub(crate) async fn whole(
    files: LayerFiles,
    blob: Arc<dyn Blob>,
    compression: Compression,
) -> Result<(LayerFiles, Arc<Map>), Error> {
    let doing = format!("stream layer {}", blob.digest());
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    let expected = *blob.digest();
    let build = tokio::task::spawn_blocking(move || build(files, receiver, compression, &expected));
    let sent = match blob.read_all().await {
        Ok(stream) => send(stream, sender, &doing).await,
        Err(error) => {
            drop(sender);
            Err(Error::blob(&doing, error))
        }
    };
    // The builder is waited for in any case: when this returns, no thread writes to the store for this stream.
    let built = build.await.map_err(|e| Error::with(ErrorKind::Corrupt, doing, e))?;
    sent.and(built)
}

/// How much a source sent, and how long it took. Time in which the builder was busy does not count.
#[derive(Debug, Default)]
struct Rate {
    bytes: u64,
    waited: Duration,
}

impl Rate {
    /// Whether a whole period has passed with less than [`MIN_RATE`]; a period that was fast enough begins anew.
    fn is_too_slow(&mut self) -> bool {
        if self.waited < RATE_PERIOD {
            return false;
        }
        let is_too_slow = (self.bytes as f64) < self.waited.as_secs_f64() * MIN_RATE as f64;
        if !is_too_slow {
            *self = Self::default();
        }
        is_too_slow
    }
}

async fn send(
    mut stream: impl Stream<Item = Result<Bytes, oci::Error>> + Unpin,
    builder: mpsc::Sender<Bytes>,
    doing: &str,
) -> Result<(), Error> {
    let mut rate = Rate::default();
    loop {
        let asked = Instant::now();
        let next = timeout(RATE_PERIOD.saturating_sub(rate.waited), stream.next()).await;
        rate.waited += asked.elapsed();
        let chunk = match next {
            Ok(Some(chunk)) => Some(chunk.map_err(|e| Error::blob(doing, e))?),
            Ok(None) => return Ok(()),
            Err(_) => None,
        };
        rate.bytes += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if rate.is_too_slow() {
            let (bytes, seconds) = (rate.bytes, rate.waited.as_secs());
            let why = format!(
                "{doing}: the source sent {bytes} bytes in {seconds} s; the minimum is {MIN_RATE} bytes a \
                 second"
            );
            return Err(Error::new(ErrorKind::Unreachable, why));
        }
        if let Some(chunk) = chunk
            && builder.send(chunk).await.is_err()
        {
            return Ok(()); // the builder ended, and has the error
        }
    }
}

fn build(
    mut files: LayerFiles,
    mut chunks: mpsc::Receiver<Bytes>,
    compression: Compression,
    expected: &Digest,
) -> Result<(LayerFiles, Arc<Map>), Error> {
    let doing = || format!("stream layer {expected}");
    let mut sink = files.stream().map_err(|e| Error::io(doing(), e))?;
    let mut builder = Builder::new(compression, &Options::default()).map_err(|e| Error::ztoc(doing(), e))?;
    while let Some(chunk) = chunks.blocking_recv() {
        builder.push(&chunk, &mut sink.file).map_err(|e| Error::ztoc(doing(), e))?;
    }
    let built = builder.finish(&mut sink.file).map_err(|e| Error::ztoc(doing(), e))?;
    let whole = built.whole.ok_or_else(|| Error::new(ErrorKind::Io, doing()))?;
    let found = Digest::from_sha256(whole.layer);
    if found != *expected {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("{}: its bytes have the digest {found}", doing()),
        ));
    }
    sink.file.flush().map_err(|e| Error::io(doing(), e))?;
    let ztoc = Ztoc::from_vec(built.ztoc).map_err(|e| Error::ztoc(doing(), e))?;
    let table = ztoc.spans();
    let ranges: Vec<_> = (0..table.len())
        .map(|span| table.uncompressed(SpanId(span)))
        .map(|range| range.start..range.end.max(range.start))
        .collect();
    files.adopt(sink, &ranges).map_err(|e| Error::io(doing(), e))?;
    files.put_diff_id(&Digest::from_sha256(whole.diff_id)).map_err(|e| Error::io(doing(), e))?;
    // Last: without a ztoc the layer does not count as stored.
    let map = files.put_ztoc(ztoc.as_bytes(), &Digest::sha256(ztoc.as_bytes()))?;
    Ok((files, map))
}

#[cfg(test)]
mod tests {
    use futures::stream::{self, BoxStream};
    use tokio::time::sleep;

    use super::*;

    /// Chunks of `bytes` bytes, one every `pause`.
    fn chunks(bytes: usize, pause: Duration, count: usize) -> BoxStream<'static, Result<Bytes, oci::Error>> {
        let chunk = move |sent| async move {
            sleep(pause).await;
            (sent < count).then(|| (Ok(Bytes::from(vec![0; bytes])), sent + 1))
        };
        stream::unfold(0, chunk).boxed()
    }

    /// The outcome, the bytes that reached the builder, and the seconds it took.
    async fn sent(
        stream: BoxStream<'static, Result<Bytes, oci::Error>>,
        building: Duration,
    ) -> (Result<(), Error>, usize, u64) {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(1);
        let builder = async {
            let mut bytes = 0;
            while let Some(chunk) = receiver.recv().await {
                bytes += chunk.len();
                sleep(building).await;
            }
            bytes
        };
        let began = Instant::now();
        let (outcome, bytes) = futures::join!(send(stream, sender, "stream a layer"), builder);
        (outcome, bytes, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_sends_almost_nothing_is_given_up() {
        let second = Duration::from_secs(1);
        let (outcome, bytes, seconds) = sent(chunks(31 << 10, second, 1_000), Duration::ZERO).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.to_string().contains("the minimum is 32768 bytes a second"), "{error}");
        assert!(seconds <= 61 && bytes <= 61 * (31 << 10), "{bytes} bytes in {seconds} s");
        let silent = stream::pending().boxed();
        let (outcome, bytes, seconds) = sent(silent, Duration::ZERO).await;
        assert_eq!((outcome.unwrap_err().kind(), bytes, seconds), (ErrorKind::Unreachable, 0, 60));
        // Fast at first, silent later.
        let fades = chunks(1 << 20, second, 90).chain(stream::pending()).boxed();
        let (outcome, bytes, seconds) = sent(fades, Duration::ZERO).await;
        assert_eq!((outcome.unwrap_err().kind(), bytes), (ErrorKind::Unreachable, 90 << 20));
        assert!(seconds > 120, "the last period began anew: {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_source_and_a_busy_builder_are_waited_for() {
        let (outcome, bytes, _) = sent(chunks(33 << 10, Duration::from_secs(1), 600), Duration::ZERO).await;
        assert!(outcome.is_ok());
        assert_eq!(bytes, 600 * (33 << 10));
        let (outcome, bytes, _) = sent(chunks(100, Duration::ZERO, 50), Duration::from_secs(30)).await;
        assert!(outcome.is_ok(), "the source is fast; the disk is not");
        assert_eq!(bytes, 5_000);
    }
}
