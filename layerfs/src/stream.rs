//! A layer without a ztoc: whole, once, through the builder of ztocs into the store.
//!
//! The store has no second way of being present. What arrives here is inflated and written to the disk as it
//! comes, verified as a whole by the layer's digest (and complete: every span present, with a checksum), and
//! gets the ztoc it should have had. Only then does it take its place; a stream that ends badly leaves
//! nothing behind.

use std::{io::Write, sync::Arc};

use bytes::Bytes;
use futures::StreamExt;
use oci::{Blob, Digest};
use tokio::sync::mpsc;
use ztoc::{Builder, Compression, Options, SpanId, Ztoc};

use crate::{
    error::{Error, ErrorKind},
    raw::Map,
    store::LayerFiles,
};

/// Chunks between the network and the builder: a few, so that neither waits for each hand-over.
const QUEUE: usize = 16;

pub(crate) async fn whole(
    files: LayerFiles,
    blob: Arc<dyn Blob>,
    compression: Compression,
) -> Result<(LayerFiles, Arc<Map>), Error> {
    let doing = format!("stream layer {}", blob.digest());
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    let expected = *blob.digest();
    let build = tokio::task::spawn_blocking(move || build(files, receiver, compression, &expected));
    let sent = send(&blob, sender, &doing).await;
    // The builder is waited for in any case: when this returns, nothing of ours writes to the store.
    let built = build.await.map_err(|e| Error::with(ErrorKind::Corrupt, doing, e))?;
    sent.and(built)
}

async fn send(blob: &Arc<dyn Blob>, builder: mpsc::Sender<Bytes>, doing: &str) -> Result<(), Error> {
    let mut stream = blob.read_all().await.map_err(|e| Error::blob(doing, e))?;
    while let Some(chunk) = stream.next().await {
        if builder.send(chunk.map_err(|e| Error::blob(doing, e))?).await.is_err() {
            break; // the builder has an error to tell
        }
    }
    Ok(())
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
    // Last: without it nothing of the layer counts.
    let map = files.put_ztoc(ztoc.as_bytes(), &Digest::sha256(ztoc.as_bytes()))?;
    Ok((files, map))
}
