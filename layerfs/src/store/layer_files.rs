//! One layer's folder: its ztoc, its uncompressed bytes, the records of its spans, and its diff ID.
//!
//! Every write goes through one gate: the store must be open, and the folder's lease must not be over. Bytes come
//! verified from `spans` and `stream`. A read returns stored bytes or an error, which the caller treats as a miss.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use oci::Digest;
use rustix::fs::{FallocateFlags, fallocate};
use xxhash_rust::xxh3::xxh3_64;
use ztoc::{SpanId, UncompressedOffset};

use super::{
    LayerId, Store,
    lease::FolderLease,
    records::{SpanRecords, StoredState},
    replace,
};
use crate::{
    error::{self, Error, ErrorKind},
    raw::Map,
};

/// Of a ztoc. A layer of 10 GiB in 4 MiB spans has 84 MB of windows; a ztoc of more than four times that is hostile.
const MAX_ZTOC_BYTES: u64 = 512 << 20;

/// The open folder of one layer.
#[derive(Debug)]
pub(crate) struct LayerFiles {
    store: Arc<Store>,
    id: LayerId,
    lease: Arc<FolderLease>,
    folder: PathBuf,
    data: File,
    spans: SpanRecords,
}

impl LayerFiles {
    pub(super) fn open(
        store: Arc<Store>,
        id: LayerId,
        lease: Arc<FolderLease>,
        folder: PathBuf,
    ) -> Result<Self, Error> {
        let data = open_file(&folder.join("data"))?;
        let spans = SpanRecords::new(open_file(&folder.join("spans"))?);
        Ok(Self { store, id, lease, folder, data, spans })
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn id(&self) -> &LayerId {
        &self.id
    }

    /// Writes to the folder, unless the store is closed or the lease is over; not to be nested.
    fn write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let closed = self.store.closed.read();
        let _writing = self.lease.write();
        if *closed {
            return Err(io::Error::other("the store is closed"));
        }
        if self.lease.is_over() {
            return Err(io::Error::other("the layer was opened anew"));
        }
        write()
    }

    /// The stored ztoc. A ztoc of an older generation is used once its digest was computed again.
    pub(crate) fn ztoc(&self) -> Option<Arc<Map>> {
        let file = File::open(self.folder.join("ztoc")).ok()?;
        let length = file.metadata().ok()?.len();
        if length == 0 || length > MAX_ZTOC_BYTES {
            return None;
        }
        let noted = fs::read_to_string(self.folder.join("ztoc.digest")).ok()?;
        let (digest, generation) = noted.split_once(' ')?;
        let digest = digest.parse::<Digest>().ok()?;
        if self.id.ztoc.is_some_and(|expected| expected != digest) {
            return None;
        }
        let map = Map::of(&file).ok()?;
        if generation.trim().parse() != Ok(self.store.generation) {
            if Digest::sha256(map.as_ref()) != digest {
                tracing::warn!(layer = %self.id, "the stored ztoc is damaged; it is fetched again");
                return None;
            }
            self.note_ztoc(&digest).ok()?;
        }
        Some(Arc::new(map))
    }

    fn note_ztoc(&self, digest: &Digest) -> io::Result<()> {
        let text = format!("{digest} {}", self.store.generation);
        self.write(|| replace(&self.folder.join("ztoc.digest"), text.as_bytes()))
    }

    /// Stores a verified ztoc.
    pub(crate) fn put_ztoc(&self, bytes: &[u8], digest: &Digest) -> Result<Arc<Map>, Error> {
        let doing = || format!("store ztoc of layer {}", self.id);
        if bytes.len() as u64 > MAX_ZTOC_BYTES {
            return Err(Error::new(ErrorKind::Unsupported, doing()));
        }
        self.write(|| replace(&self.folder.join("ztoc"), bytes)).map_err(|e| Error::io(doing(), e))?;
        self.note_ztoc(digest).map_err(|e| Error::io(doing(), e))?;
        let file = File::open(self.folder.join("ztoc")).map_err(|e| Error::io(doing(), e))?;
        Map::of(&file).map(Arc::new).map_err(|e| Error::io(doing(), e))
    }

    /// Which spans of a layer of `count` spans are stored. A file of records of another shape is emptied.
    pub(crate) fn records(&self, count: u32) -> Vec<StoredState> {
        if let Some(records) = self.spans.read(count, self.store.generation) {
            return records;
        }
        let emptied = self.write(|| self.spans.clear());
        if let Err(error) = emptied.and_then(|()| self.note_proven(count)) {
            tracing::warn!(
                layer = %self.id, %error,
                "the records of a layer's spans cannot be written; its spans are fetched again after the \
                 next start"
            );
        }
        vec![StoredState::Absent; count as usize]
    }

    /// Notes that every record of a layer of `count` spans is of this generation.
    pub(crate) fn note_proven(&self, count: u32) -> io::Result<()> {
        self.write(|| self.spans.write_header(count, self.store.generation))
    }

    /// Stores a part of a verified span. Its record is written when all parts are stored.
    pub(crate) fn put_piece(&self, at: UncompressedOffset, bytes: &[u8]) -> io::Result<()> {
        self.put(|| self.data.write_all_at(bytes, at.0))
    }

    /// Records a span whose bytes are stored. `tail`: the bytes stored behind the last span, where they reach to the
    /// end of the stream.
    pub(crate) fn put_record(&self, span: SpanId, checksum: u64, tail: Option<u64>) -> io::Result<()> {
        self.put(|| self.spans.write(span, checksum, tail))
    }

    /// Writes, and notes whether the disk is full.
    fn put(&self, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.write(|| {
            let stored = write();
            match &stored {
                Ok(()) => self.store.eviction.set_full(false),
                Err(error) if error::kind_of(error) == ErrorKind::Full => self.store.eviction.set_full(true),
                Err(_) => {}
            }
            stored
        })
    }

    /// How many bytes behind the last span are stored with it, where that is known.
    pub(crate) fn tail(&self, last: SpanId) -> Option<u64> {
        self.spans.tail(last)
    }

    /// Forgets the bytes behind the last span: they have no checksum, so that an unclean stop may have damaged them.
    pub(crate) fn forget_tail(&self, last: SpanId) {
        if let Err(error) = self.write(|| self.spans.forget_tail(last)) {
            tracing::debug!(layer = %self.id, %error, "forget the bytes behind the last span");
        }
    }

    /// The digest of the whole uncompressed stream, if it was ever computed.
    pub(crate) fn diff_id(&self) -> Option<Digest> {
        fs::read_to_string(self.folder.join("whole")).ok()?.trim().parse().ok()
    }

    /// Keeps the digest of the whole uncompressed stream.
    pub(crate) fn put_diff_id(&self, digest: &Digest) -> io::Result<()> {
        self.write(|| replace(&self.folder.join("whole"), digest.to_string().as_bytes()))
    }

    /// Reads stored bytes. An error at the end of the file, or because the lease is over, is a miss to the caller.
    pub(crate) fn read(&self, at: UncompressedOffset, buffer: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(buffer, at.0)?;
        // Checked last: as long as the lease was not over no other table punched holes.
        if self.lease.is_over() {
            return Err(io::Error::other("the layer was opened anew"));
        }
        Ok(())
    }

    /// Bytes on disk and inodes of the layer's folder.
    pub(crate) fn disk_usage(&self) -> io::Result<(u64, u64)> {
        let (mut bytes, mut inodes) = (fs::metadata(&self.folder)?.blocks() * 512, 1);
        for entry in fs::read_dir(&self.folder)? {
            // A file that is being replaced may be gone.
            let Ok(found) = entry?.metadata() else { continue };
            bytes += found.blocks() * 512;
            inodes += 1;
        }
        Ok((bytes, inodes))
    }

    /// Whether the layer was opened anew; then failed reads and writes mean no damage.
    pub(crate) fn is_over(&self) -> bool {
        self.lease.is_over()
    }

    /// Whether the stored bytes of a span have the checksum of its record.
    pub(crate) fn has_its_checksum(&self, span: SpanId, range: &Range<UncompressedOffset>) -> bool {
        let Some(checksum) = self.spans.checksum(span) else { return false };
        let mut bytes = vec![0; usize::try_from(range.end.0 - range.start.0).unwrap_or(0)];
        self.read(range.start, &mut bytes).is_ok() && checksum == xxh3_64(&bytes)
    }

    /// Records a span as absent; its bytes stay. Returns whether that was written.
    pub(crate) fn strike(&self, span: SpanId) -> bool {
        let struck = self.write(|| self.spans.strike(span));
        if let Err(error) = &struck {
            tracing::warn!(
                layer = %self.id, %error,
                "a damaged span cannot be recorded as absent; it is found damaged again after the next start"
            );
        }
        struck.is_ok()
    }

    /// Removes a span without readers from the disk: its record first, then its bytes.
    pub(crate) fn forget(&self, span: SpanId, range: &Range<UncompressedOffset>) {
        if range.start >= range.end {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let gone = self.write(|| {
            self.spans.strike(span)?;
            Ok(fallocate(&self.data, flags, range.start.0, range.end.0 - range.start.0)?)
        });
        if let Err(error) = gone {
            tracing::debug!(layer = %self.id, %error, "remove a span from the disk");
        }
        self.store.eviction.set_full(false);
    }

    /// A sink for a whole uncompressed stream, which becomes `data` once it is complete.
    pub(crate) fn stream(&self) -> io::Result<StreamSink> {
        // One name is enough: a layer is streamed once at a time. A killed process's file is overwritten.
        let path = self.folder.join("data.new");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(StreamSink { path, file: io::BufWriter::with_capacity(1 << 20, file), keep: false })
    }

    /// Puts a complete stream in the place of `data` and records all of its spans.
    pub(crate) fn adopt(
        &mut self,
        mut streamed: StreamSink,
        ranges: &[Range<UncompressedOffset>],
    ) -> io::Result<()> {
        streamed.file.flush()?;
        self.write(|| {
            self.spans.clear()?;
            fs::rename(&streamed.path, self.folder.join("data"))
        })?;
        streamed.keep = true;
        self.data = open_file(&self.folder.join("data")).map_err(io::Error::other)?;
        self.records(u32::try_from(ranges.len()).map_err(io::Error::other)?);
        let mut bytes = Vec::new();
        for (number, range) in (0u32..).zip(ranges) {
            bytes.resize(usize::try_from(range.end.0 - range.start.0).map_err(io::Error::other)?, 0);
            self.read(range.start, &mut bytes)?;
            self.write(|| self.spans.write(SpanId(number), xxh3_64(&bytes), None))?;
        }
        Ok(())
    }
}

/// A stream on its way to the disk; removed when dropped, unless it was adopted.
#[derive(Debug)]
pub(crate) struct StreamSink {
    path: PathBuf,
    pub(crate) file: io::BufWriter<File>,
    keep: bool,
}

impl Drop for StreamSink {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open_file(path: &Path) -> Result<File, Error> {
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
    options.open(path).map_err(|e| Error::io("open file of layer", e))
}
