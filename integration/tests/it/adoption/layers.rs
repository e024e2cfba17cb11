//! Layers in a folder, where each worker finds them: as a registry has them, with their ztocs, and the list of those
//! that are shown, the first in slot 1.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use futures::stream;
use integration::images::Layer;
use oci::{
    Blob, Digest, Error, ErrorKind,
    blob::{BoxFuture, ByteStream},
};

const SPAN: u64 = 1 << 20;
const CHUNK: usize = 64 << 10;
/// A line of some 30 MB/s, so that at any moment something is under way.
const PACE: Duration = Duration::from_millis(2);

/// A layer by the names of its files.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) layer: Digest,
    pub(crate) ztoc: Digest,
}

/// Adds a layer to the folder and to the list.
pub(crate) fn add(root: &Path, tar: &[u8]) -> Result<Kept> {
    // Not the fastest level: it makes one block of everything, and so one span.
    let layer = Layer::gzip(tar);
    let options = ztoc::Options { span_size: SPAN, ..ztoc::Options::default() };
    let built = ztoc::build(&layer.bytes[..], ztoc::Compression::Gzip, &options)?;
    let kept = Kept { layer: layer.digest, ztoc: Digest::sha256(&built.ztoc) };
    fs::create_dir_all(root.join("blobs"))?;
    fs::write(root.join("blobs").join(kept.layer.hex()), &layer.bytes)?;
    fs::write(root.join("blobs").join(kept.ztoc.hex()), &built.ztoc)?;
    let mut list = list(root)?;
    list.push(kept.clone());
    let pairs: Vec<_> = list.iter().map(|kept| [kept.layer.to_string(), kept.ztoc.to_string()]).collect();
    fs::write(root.join("list"), serde_json::to_vec(&pairs)?)?;
    Ok(kept)
}

/// Those that are shown, in the order of their slots.
pub(crate) fn list(root: &Path) -> Result<Vec<Kept>> {
    let Ok(bytes) = fs::read(root.join("list")) else { return Ok(Vec::new()) };
    let pairs: Vec<[String; 2]> = serde_json::from_slice(&bytes)?;
    pairs.iter().map(|[layer, ztoc]| Ok(Kept { layer: layer.parse()?, ztoc: ztoc.parse()? })).collect()
}

/// A layer's bytes from its file, not faster than a line.
#[derive(Debug)]
pub(crate) struct Slow {
    digest: Digest,
    file: File,
    size: u64,
}

impl Slow {
    pub(crate) fn open(root: &Path, digest: &Digest) -> Result<Slow> {
        let file = File::open(root.join("blobs").join(digest.hex()))?;
        let size = file.metadata()?.len();
        Ok(Slow { digest: *digest, file, size })
    }
}

impl Blob for Slow {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let read = self.file.read_exact_at(&mut bytes, range.start);
        let read = read.map_err(|error| Error::new(ErrorKind::Io, "read a blob's file").because(error));
        Box::pin(async move {
            read?;
            let chunks = stream::unfold(Bytes::from(bytes), |mut rest| async move {
                if rest.is_empty() {
                    return None;
                }
                tokio::time::sleep(PACE).await;
                Some((Ok(rest.split_to(CHUNK.min(rest.len()))), rest))
            });
            Ok(Box::pin(chunks) as ByteStream)
        })
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, Error>> {
        self.read_range(0..self.size)
    }
}
