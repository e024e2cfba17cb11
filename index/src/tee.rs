//! One pass over a layer: its bytes go through a ztoc builder while they are read, and on to the store that the layer is
//! copied to. The processor's work is done away from the async threads, and what waits in between is bounded.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{TryStreamExt, stream};
use oci::blob::verified;
use oci::{Blob, BoxFuture, ByteStream, Descriptor, Digest, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use ztoc::{Builder, Built, Compression, Options};

use crate::error::{Error, ErrorKind};

/// Bytes of a layer between where they come from and the builder: what a fast disk gives in a millisecond, and more
/// than a network gives while a block is inflated.
const BYTES_WAITING_MAX: usize = 2 << 20;
/// The same in pieces, however small they are.
const PIECES_WAITING_MAX: usize = 256;

/// What a builder makes of a layer, or why it makes nothing.
pub(crate) type Outcome = Result<Built, ztoc::Error>;

/// A layer to be read. As a [`Blob`], reading all of it feeds a builder on the way.
#[derive(Debug)]
pub(crate) struct TeeBlob {
    layer: Arc<dyn Blob>,
    descriptor: Descriptor,
    compression: Compression,
    options: Options,
    state: Arc<Mutex<State>>,
    /// compressed bytes read so far
    read: watch::Sender<u64>,
}

/// The last reading.
#[derive(Debug, Default)]
struct State {
    builder: Option<JoinHandle<Outcome>>,
    /// the builder was given all there is
    whole: bool,
}

impl TeeBlob {
    pub(crate) fn new(
        from: &dyn Store,
        layer: &Descriptor,
        compression: Compression,
        options: Options,
    ) -> TeeBlob {
        TeeBlob {
            layer: from.blob(layer),
            descriptor: layer.clone(),
            compression,
            options,
            state: Arc::default(),
            read: watch::Sender::new(0),
        }
    }

    /// Reads the layer and builds its ztoc. `to`: a store that has not the layer and gets it on the way. `heard` is told
    /// how many more bytes have come. The outer error is that of a layer that cannot be read or copied, or is not what
    /// its descriptor says: what the inner result rests on are the right bytes.
    pub(crate) async fn run(
        &self,
        to: Option<&dyn Store>,
        heard: &(dyn Fn(u64) + Sync),
    ) -> Result<Outcome, Error> {
        self.watched(self.through(to), heard).await
    }

    async fn through(&self, to: Option<&dyn Store>) -> Result<Outcome, Error> {
        let layer = &self.descriptor;
        let doing = format!("build ztoc of layer {}", layer.digest);
        if let Some(to) = to {
            to.write_from(layer, self).await?;
            // A store may find meanwhile that it has the layer, and read no further.
            if let Some(builder) = self.builder_of_all() {
                return joined(builder, &doing).await;
            }
        }
        let mut pieces = verified(self.read_all().await?, layer.digest, layer.size);
        while pieces.try_next().await?.is_some() {}
        drop(pieces);
        let builder = self.builder_of_all();
        let builder = builder.ok_or_else(|| Error::new(ErrorKind::Io, &doing).because("it was not read"))?;
        joined(builder, &doing).await
    }

    fn builder_of_all(&self) -> Option<JoinHandle<Outcome>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.whole { state.builder.take() } else { None }
    }

    async fn watched<T>(&self, work: impl Future<Output = T>, heard: &(dyn Fn(u64) + Sync)) -> T {
        let mut read = self.read.subscribe();
        let mut told = 0;
        let mut tell = |now: u64| {
            heard(now.saturating_sub(told));
            told = told.max(now);
        };
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    tell(*self.read.borrow());
                    return done;
                }
                Ok(()) = read.changed() => tell(*read.borrow_and_update()),
            }
        }
    }

    /// The same bytes, on their way past a new builder.
    fn feed(&self, source: ByteStream) -> Result<ByteStream, oci::Error> {
        let doing = format!("read blob {}", self.descriptor.digest);
        let builder = Builder::new(self.compression, &self.options)
            .map_err(|cause| oci::Error::new(oci::ErrorKind::Invalid, &doing).because(cause))?;
        let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
        let builder = tokio::task::spawn_blocking(move || build(builder, pieces));
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) =
            State { builder: Some(builder), whole: false };
        self.read.send_replace(0);
        let feed = Feed {
            source,
            doing,
            size: self.descriptor.size,
            taken: 0,
            sender: Some(sender),
            room: Arc::new(Semaphore::new(BYTES_WAITING_MAX)),
            state: self.state.clone(),
            read: self.read.clone(),
        };
        Ok(Box::pin(stream::try_unfold(feed, Feed::next)))
    }
}

impl Blob for TeeBlob {
    fn digest(&self) -> &Digest {
        &self.descriptor.digest
    }

    fn size(&self) -> Option<u64> {
        Some(self.descriptor.size)
    }

    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, oci::Error>> {
        self.layer.read_range(range)
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, oci::Error>> {
        Box::pin(async move { self.feed(self.layer.read_all().await?) })
    }
}

/// A piece, and its part of the room there is.
type Piece = (Bytes, Option<OwnedSemaphorePermit>);

/// One reading under way.
struct Feed {
    source: ByteStream,
    doing: String,
    size: u64,
    taken: u64,
    /// None: the builder has given up, and wants no more
    sender: Option<mpsc::Sender<Piece>>,
    room: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
    read: watch::Sender<u64>,
}

impl Feed {
    async fn next(mut self) -> Result<Option<(Bytes, Feed)>, oci::Error> {
        let corrupt =
            |feed: &Feed, why: String| oci::Error::new(oci::ErrorKind::Corrupt, &feed.doing).because(why);
        let Some(piece) = self.source.try_next().await? else {
            if self.taken != self.size {
                return Err(corrupt(&self, format!("it has {} bytes, expected {}", self.taken, self.size)));
            }
            self.end();
            return Ok(None);
        };
        self.taken += piece.len() as u64;
        if self.taken > self.size {
            return Err(corrupt(&self, format!("it is longer than its {} bytes", self.size)));
        }
        if let Some(sender) = &self.sender {
            let wanted = u32::try_from(piece.len().min(BYTES_WAITING_MAX)).unwrap_or(u32::MAX);
            // It is never closed.
            let permit = self.room.clone().acquire_many_owned(wanted).await.ok();
            if sender.send((piece.clone(), permit)).await.is_err() {
                self.sender = None;
            }
        }
        self.read.send_replace(self.taken);
        if self.taken == self.size {
            // A reader that wants so many bytes need not ask again.
            self.end();
        }
        Ok(Some((piece, self)))
    }

    /// The builder has all there is.
    fn end(&mut self) {
        self.sender = None;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).whole = true;
    }
}

/// Ends when the sender goes, at the latest when the reading is dropped.
fn build(mut builder: Builder, mut pieces: mpsc::Receiver<Piece>) -> Outcome {
    let mut sink = std::io::sink();
    while let Some((piece, permit)) = pieces.blocking_recv() {
        builder.push(&piece, &mut sink)?;
        drop(permit);
    }
    builder.finish(&mut sink)
}

async fn joined(builder: JoinHandle<Outcome>, doing: &str) -> Result<Outcome, Error> {
    builder.await.map_err(|cause| Error::new(ErrorKind::Io, doing).because(cause))
}
