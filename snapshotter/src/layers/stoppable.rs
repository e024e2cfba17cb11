//! A layer's blob whose stream can be ended from outside.
//!
//! A stream into the store cannot be dropped half-way: its builder would go on writing. It is ended with an error
//! instead, after which the store removes what has arrived.

use std::{ops::Range, sync::Arc};

use futures::{StreamExt, future::Either};
use oci::{Blob, BoxFuture, ByteStream, Digest, Error, ErrorKind};
use tokio::sync::watch;

/// Why the stream ends early, once that is known.
pub(crate) type Stop = watch::Receiver<Option<String>>;

/// For a stream that nothing ends early.
pub(crate) fn never() -> Stop {
    watch::channel(None).1
}

/// See the module.
#[derive(Debug)]
pub(crate) struct StoppableBlob {
    blob: Arc<dyn Blob>,
    stop: Stop,
}

impl StoppableBlob {
    pub(crate) fn new(blob: Arc<dyn Blob>, stop: Stop) -> Arc<Self> {
        Arc::new(Self { blob, stop })
    }
}

impl Blob for StoppableBlob {
    fn digest(&self) -> &Digest {
        self.blob.digest()
    }

    fn size(&self) -> Option<u64> {
        self.blob.size()
    }

    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        self.blob.read_range(range)
    }

    fn busy_answers(&self) -> u64 {
        self.blob.busy_answers()
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(async move {
            let digest = *self.blob.digest();
            let stop = Box::pin(stopped(self.stop.clone(), digest));
            let stream = match futures::future::select(stop, self.blob.read_all()).await {
                Either::Left((error, _)) => return Err(error),
                Either::Right((stream, _)) => stream?,
            };
            let stop = stopped(self.stop.clone(), digest);
            let until = futures::stream::once(stop).map(Err);
            let chunks = stream.map(Some).chain(futures::stream::iter([None]));
            let merged = futures::stream::select(chunks, until.map(Some));
            // The stream's own end ends it, and so does the first error.
            let ended = merged.take_while(|chunk| futures::future::ready(chunk.is_some()));
            Ok(Box::pin(ended.filter_map(futures::future::ready)) as ByteStream)
        })
    }
}

/// Waits for the stop; for ever when the other end is gone without one.
async fn stopped(mut stop: Stop, layer: Digest) -> Error {
    let why = stop.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    let Some(why) = why else { return futures::future::pending().await };
    Error::new(ErrorKind::Unsupported, format!("stream layer {layer}")).because(why)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{FutureExt, stream};

    use super::*;

    /// Yields one chunk, then waits for ever, or ends.
    #[derive(Debug)]
    struct OneChunk {
        digest: Digest,
        ends: bool,
    }

    impl Blob for OneChunk {
        fn digest(&self) -> &Digest {
            &self.digest
        }

        fn size(&self) -> Option<u64> {
            None
        }

        fn read_range(&self, _: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
            self.read_all()
        }

        fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, Error>> {
            let first = stream::iter([Ok(Bytes::from_static(b"x"))]);
            let stream: ByteStream =
                if self.ends { Box::pin(first) } else { Box::pin(first.chain(stream::pending())) };
            Box::pin(async move { Ok(stream) })
        }
    }

    fn blob(ends: bool) -> Arc<OneChunk> {
        Arc::new(OneChunk { digest: Digest::sha256(b"layer"), ends })
    }

    #[test]
    fn a_stream_ends_with_the_reason_it_is_stopped_for() {
        let (stop, stopped) = watch::channel(None);
        let stoppable = StoppableBlob::new(blob(false), stopped);
        let mut stream = stoppable.read_all().now_or_never().unwrap().unwrap();
        assert_eq!(stream.next().now_or_never().unwrap().unwrap().unwrap(), "x");
        assert!(stream.next().now_or_never().is_none(), "nothing has stopped it");
        stop.send_replace(Some("because".into()));
        let error = stream.next().now_or_never().unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "because");
    }

    #[test]
    fn a_stream_that_nothing_stops_ends_by_itself() {
        let (stop, stopped) = watch::channel(None);
        let stoppable = StoppableBlob::new(blob(true), stopped);
        let stream = stoppable.read_all().now_or_never().unwrap().unwrap();
        let chunks: Vec<_> = stream.map(Result::unwrap).collect().now_or_never().expect("it ends");
        assert_eq!(chunks, ["x"]);
        drop(stop);
    }

    #[test]
    fn a_stream_that_was_stopped_before_does_not_begin() {
        let (_stop, stopped) = watch::channel(Some("before".to_owned()));
        let stoppable = StoppableBlob::new(blob(true), stopped);
        assert!(stoppable.read_all().now_or_never().unwrap().is_err());
    }
}
