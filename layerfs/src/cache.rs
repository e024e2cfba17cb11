//! Spans on disk: one folder a layer, keyed by the layer's digest, shared by everything that names it.
//!
//! ```text
//! <root>/layers/boot                    the boot id under which the folder was last in use
//! <root>/layers/clean                   present after an orderly stop, written after a syncfs
//! <root>/layers/sha256/<hex>/ztoc       as fetched or built; mapped, never changed
//! <root>/layers/sha256/<hex>/data       the layer's uncompressed tar stream, sparse
//! <root>/layers/sha256/<hex>/spans      per span: state and checksum of its uncompressed bytes
//! ```
//!
//! Nothing is fsynced on the way. A killed process loses nothing, because the page cache is the kernel's: a
//! span's bytes are written before its record is. After an unclean stop of the *machine* (another boot id and
//! no clean mark) nothing here is believed: a ztoc counts once its digest was computed again, a span once its
//! checksum was. A write that fails leaves the span absent; a record that cannot be read is an absent span.
//! Eviction is in the order of least recent use over all layers, and punches holes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    sync::{Arc, Weak},
};

use lru::LruCache;
use oci::Digest;
use rustix::fs::{FallocateFlags, fallocate};
use xxhash_rust::xxh3::xxh3_64;
use ztoc::{SpanId, UncompressedOffset};

use crate::{error::Error, map::Map, sync::Mutex};

/// Of a ztoc: a layer of 10 GiB in 4 MiB spans has 84 MB of windows; four times that is hostile.
const MAX_ZTOC_BYTES: u64 = 512 << 20;
const MAGIC: [u8; 8] = *b"SOCISPN1";
const HEADER: u64 = 16;
const RECORD: u64 = 16;

/// All layers on one disk, and the order in which their spans go when room is needed.
#[derive(Debug)]
pub struct Store {
    layers: PathBuf,
    /// The last stop was unclean: what lies here is proven before it is believed.
    suspect: bool,
    /// Uncompressed bytes that may lie here; `None` = no limit.
    max_bytes: Option<u64>,
    eviction: Mutex<Eviction>,
}

#[derive(Debug)]
struct Eviction {
    order: LruCache<(u32, SpanId), u64>,
    used: u64,
    owners: Vec<Option<Weak<dyn Evict>>>,
}

/// The table that knows whether a span may go.
pub(crate) trait Evict: Send + Sync + std::fmt::Debug {
    /// Takes `span` off the disk; `false` when a reader is at it or has read it since the last call.
    fn evict(&self, span: SpanId) -> bool;
}

impl Store {
    /// Opens the folder `root`/layers, making it where it is missing.
    ///
    /// `max_bytes`: uncompressed bytes of spans to keep, `None` for no limit.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(root: &Path, max_bytes: Option<u64>) -> Result<Arc<Self>, Error> {
        let layers = root.join("layers");
        make_folder(&layers.join("sha256")).map_err(|e| Error::io("make folder of layers", e))?;
        let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let same_boot = fs::read(layers.join("boot")).is_ok_and(|last| !boot.is_empty() && last == boot);
        let clean = fs::remove_file(layers.join("clean")).is_ok();
        let fresh = !layers.join("boot").exists();
        fs::write(layers.join("boot"), &boot).map_err(|e| Error::io("write boot id of layers", e))?;
        let suspect = !(same_boot || clean || fresh);
        if suspect {
            tracing::warn!("the last stop was unclean: stored spans are verified again before use");
        }
        let eviction = Eviction { order: LruCache::unbounded(), used: 0, owners: Vec::new() };
        Ok(Arc::new(Self { layers, suspect, max_bytes, eviction: Mutex::new(eviction) }))
    }

    /// Leaves the mark of an orderly stop, once everything is on the disk.
    ///
    /// # Errors
    /// When the disk cannot be synced: the next start then verifies again, no harm is done.
    pub fn mark_clean(&self) -> Result<(), Error> {
        let folder = File::open(&self.layers).map_err(|e| Error::io("open folder of layers", e))?;
        rustix::fs::syncfs(&folder).map_err(|e| Error::io("sync folder of layers", e.into()))?;
        fs::write(self.layers.join("clean"), b"").map_err(|e| Error::io("write clean mark", e))
    }

    /// Opens one layer's folder, making it where it is missing.
    pub(crate) fn layer(self: &Arc<Self>, digest: &Digest) -> Result<LayerFiles, Error> {
        let folder = self.layers.join("sha256").join(digest.hex());
        make_folder(&folder).map_err(|e| Error::io(format!("make folder of layer {digest}"), e))?;
        let data = open_file(&folder.join("data"))?;
        let spans = open_file(&folder.join("spans"))?;
        Ok(LayerFiles { store: self.clone(), digest: *digest, folder, data, spans })
    }

    /// Removes a layer's folder; spans that are still being read stay readable until they are closed.
    ///
    /// # Errors
    /// When the folder cannot be removed; an absent one is no error.
    pub fn remove(&self, digest: &Digest) -> Result<(), Error> {
        match fs::remove_dir_all(self.layers.join("sha256").join(digest.hex())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove layer {digest}"), e))
            }
            _ => Ok(()),
        }
    }

    /// What `statfs` says of the disk that the layers lie on: a container sees the free space of the node.
    pub(crate) fn statfs(&self) -> io::Result<rustix::fs::StatVfs> {
        Ok(rustix::fs::statvfs(&self.layers)?)
    }

    /// A number for a table of spans, under which it says what it has; given back by [`Store::leave`].
    pub(crate) fn join(&self, owner: Weak<dyn Evict>) -> u32 {
        let mut eviction = self.eviction.lock();
        let free = eviction.owners.iter().position(Option::is_none);
        let number = free.unwrap_or(eviction.owners.len());
        if free.is_none() {
            eviction.owners.push(None);
        }
        eviction.owners[number] = Some(owner);
        u32::try_from(number).expect("fewer than 2^32 layers are open")
    }

    /// The table is gone; its spans stay on disk and are counted again when the layer is next opened.
    pub(crate) fn leave(&self, owner: u32) {
        let mut eviction = self.eviction.lock();
        let mine: Vec<_> = eviction.order.iter().map(|(k, _)| *k).filter(|k| k.0 == owner).collect();
        for key in mine {
            eviction.used -= eviction.order.pop(&key).unwrap_or(0);
        }
        eviction.owners[owner as usize] = None;
    }

    /// `bytes` of a span lie on the disk now. Others go if that is too much.
    pub(crate) fn landed(&self, owner: u32, span: SpanId, bytes: u64) {
        let rounds = {
            let mut eviction = self.eviction.lock();
            eviction.used += bytes;
            if let Some((_, old)) = eviction.order.push((owner, span), bytes) {
                eviction.used -= old;
            }
            eviction.order.len()
        };
        // Each span is looked at once: one that was read meanwhile goes to the back of the queue.
        for _ in 0..rounds {
            let Some((key, bytes, table)) = self.oldest() else { return };
            // Outside the lock: a hole is punched, and the last reference to a table may go here.
            let gone = key != (owner, span) && table.upgrade().is_none_or(|table| table.evict(key.1));
            let mut eviction = self.eviction.lock();
            if gone {
                eviction.used -= bytes;
            } else if eviction.owners[key.0 as usize].is_some() {
                eviction.order.push(key, bytes);
            }
        }
    }

    /// Whether what lands now pushes out something else, or soon will.
    pub(crate) fn nearly_full(&self) -> bool {
        self.max_bytes.is_some_and(|max| self.eviction.lock().used >= max / 10 * 9)
    }

    /// The span that was used longest ago, taken out of the order, if there is too much on the disk.
    fn oldest(&self) -> Option<Oldest> {
        let mut eviction = self.eviction.lock();
        if eviction.used <= self.max_bytes? {
            return None;
        }
        let (key, bytes) = eviction.order.pop_lru()?;
        let table = eviction.owners[key.0 as usize].clone()?;
        Some((key, bytes, table))
    }
}

/// A span in the order of eviction: its table's number and its own, its bytes, the table.
type Oldest = ((u32, SpanId), u64, Weak<dyn Evict>);

/// One layer's files.
#[derive(Debug)]
pub(crate) struct LayerFiles {
    store: Arc<Store>,
    digest: Digest,
    folder: PathBuf,
    data: File,
    spans: File,
}

/// One span as the `spans` file tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    Absent,
    Present,
    /// Present before an unclean stop.
    Unproven,
}

impl LayerFiles {
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The stored ztoc, if there is one with the digest `expected` (`None`: whatever the store once built).
    /// After an unclean stop its digest is computed again; one built here must then be built anew.
    pub(crate) fn ztoc(&self, expected: Option<&Digest>) -> Option<Arc<Map>> {
        let file = File::open(self.folder.join("ztoc")).ok()?;
        let length = file.metadata().ok()?.len();
        if length == 0 || length > MAX_ZTOC_BYTES {
            return None;
        }
        let noted = fs::read_to_string(self.folder.join("ztoc.digest")).ok()?.parse::<Digest>().ok()?;
        if expected.is_some_and(|expected| *expected != noted) {
            return None;
        }
        let map = Map::of(&file).ok()?;
        if self.store.suspect && Digest::sha256(map.as_ref()) != noted {
            tracing::warn!(layer = %self.digest, "the stored ztoc is damaged; it is fetched again");
            return None;
        }
        Some(Arc::new(map))
    }

    /// Stores a verified ztoc. Another one (other span borders) makes the old span records void.
    pub(crate) fn put_ztoc(&self, bytes: &[u8], digest: &Digest) -> Result<Arc<Map>, Error> {
        let doing = || format!("store ztoc of layer {}", self.digest);
        if bytes.len() as u64 > MAX_ZTOC_BYTES {
            return Err(Error::new(crate::ErrorKind::Unsupported, doing()));
        }
        self.spans.set_len(0).map_err(|e| Error::io(doing(), e))?;
        replace(&self.folder.join("ztoc"), bytes).map_err(|e| Error::io(doing(), e))?;
        replace(&self.folder.join("ztoc.digest"), digest.to_string().as_bytes())
            .map_err(|e| Error::io(doing(), e))?;
        let file = File::open(self.folder.join("ztoc")).map_err(|e| Error::io(doing(), e))?;
        Map::of(&file).map(Arc::new).map_err(|e| Error::io(doing(), e))
    }

    /// What is on disk of a layer of `count` spans. A file of another shape is an empty one.
    pub(crate) fn records(&self, count: u32) -> Vec<Record> {
        let mut header = [0; HEADER as usize];
        let valid = self.spans.read_exact_at(&mut header, 0).is_ok()
            && header[..8] == MAGIC
            && header[8..12] == count.to_le_bytes();
        if !valid {
            let mut header = MAGIC.to_vec();
            header.extend_from_slice(&count.to_le_bytes());
            header.extend_from_slice(&[0; 4]);
            if let Err(error) = self.spans.set_len(0).and_then(|()| self.spans.write_all_at(&header, 0)) {
                tracing::warn!(layer = %self.digest, %error, "start records of spans");
            }
            return vec![Record::Absent; count as usize];
        }
        let mut bytes = vec![0; count as usize * RECORD as usize];
        let read = read_up_to(&self.spans, &mut bytes, HEADER);
        bytes.truncate(read / RECORD as usize * RECORD as usize);
        let mut records: Vec<_> = bytes
            .chunks_exact(RECORD as usize)
            .map(|record| match (record[0], self.store.suspect) {
                (1, false) => Record::Present,
                (1, true) => Record::Unproven,
                _ => Record::Absent,
            })
            .collect();
        records.resize(count as usize, Record::Absent);
        records
    }

    /// Stores a verified span: its bytes first, then its record.
    pub(crate) fn put(&self, span: SpanId, at: UncompressedOffset, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, at.0)?;
        self.write_record(span, xxh3_64(bytes))
    }

    fn write_record(&self, span: SpanId, checksum: u64) -> io::Result<()> {
        let mut record = [0; RECORD as usize];
        record[0] = 1;
        record[8..].copy_from_slice(&checksum.to_le_bytes());
        self.spans.write_all_at(&record, HEADER + u64::from(span.0) * RECORD)
    }

    /// Reads stored bytes; short only where the file ends, which a caller treats as damage.
    pub(crate) fn read(&self, at: UncompressedOffset, buffer: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(buffer, at.0)
    }

    /// Whether a stored span still has the checksum of its record.
    pub(crate) fn prove(&self, span: SpanId, range: &Range<UncompressedOffset>) -> bool {
        let mut record = [0; RECORD as usize];
        let mut bytes = vec![0; usize::try_from(range.end.0 - range.start.0).unwrap_or(0)];
        self.spans.read_exact_at(&mut record, HEADER + u64::from(span.0) * RECORD).is_ok()
            && self.read(range.start, &mut bytes).is_ok()
            && record[8..] == xxh3_64(&bytes).to_le_bytes()
    }

    /// Takes a span off the disk: its record first, then its bytes.
    pub(crate) fn forget(&self, span: SpanId, range: &Range<UncompressedOffset>) {
        let record = [0; RECORD as usize];
        if let Err(error) = self.spans.write_all_at(&record, HEADER + u64::from(span.0) * RECORD) {
            tracing::warn!(layer = %self.digest, %error, "forget span");
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&self.data, flags, range.start.0, range.end.0 - range.start.0) {
            tracing::debug!(layer = %self.digest, %error, "punch hole");
        }
    }

    /// A sink for a whole uncompressed stream, which takes the place of `data` once it is complete.
    pub(crate) fn stream(&self) -> io::Result<Streamed> {
        static UNIQUE: AtomicU32 = AtomicU32::new(0);
        let number = UNIQUE.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("data.{}.{number}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Streamed { path, file: io::BufWriter::with_capacity(1 << 20, file), keep: false })
    }

    /// Puts a complete stream in the place of `data` and records all of its spans.
    pub(crate) fn adopt(
        &mut self,
        mut streamed: Streamed,
        ranges: &[Range<UncompressedOffset>],
    ) -> io::Result<()> {
        streamed.file.flush()?;
        self.spans.set_len(0)?;
        fs::rename(&streamed.path, self.folder.join("data"))?;
        streamed.keep = true;
        self.data = open_file(&self.folder.join("data")).map_err(io::Error::other)?;
        self.records(u32::try_from(ranges.len()).map_err(io::Error::other)?);
        let mut bytes = Vec::new();
        for (number, range) in (0u32..).zip(ranges) {
            bytes.resize(usize::try_from(range.end.0 - range.start.0).map_err(io::Error::other)?, 0);
            self.read(range.start, &mut bytes)?;
            self.write_record(SpanId(number), xxh3_64(&bytes))?;
        }
        Ok(())
    }
}

/// A stream on its way to the disk; gone again if it is not adopted.
#[derive(Debug)]
pub(crate) struct Streamed {
    path: PathBuf,
    pub(crate) file: io::BufWriter<File>,
    keep: bool,
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn open_file(path: &Path) -> Result<File, Error> {
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
    options.open(path).map_err(|e| Error::io("open file of layer", e))
}

/// Another name first, then the rename: a reader sees the old file or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let other = path.with_extension(format!("new{}", std::process::id()));
    let written = fs::write(&other, bytes).and_then(|()| fs::rename(&other, path));
    if written.is_err() {
        let _ = fs::remove_file(&other);
    }
    written
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> usize {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    read
}
