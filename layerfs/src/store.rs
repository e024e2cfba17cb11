//! Spans on disk: one folder a layer, keyed by the layer's digest, shared by everything that names it.
//!
//! ```text
//! <root>/layers/boot                    the boot id under which the folder was last in use, and the generation
//! <root>/layers/clean                   present after an orderly stop, written after a syncfs
//! <root>/layers/sha256/<hex>/<id>/      one layer as one ztoc has it
//!     ztoc, ztoc.digest                 as fetched or built; mapped, never changed
//!     data                              the layer's uncompressed tar stream, sparse
//!     spans                             per span: state and checksum of its uncompressed bytes
//!     whole                             digest of the uncompressed stream, once all of it was there
//! <root>/layers/rubbish/                layers that were removed, on their way off the disk
//! ```
//!
//! `<id>` is the digest of the index's ztoc, or `own` for a layer that was streamed whole and verified by its own
//! digest: what one image's ztoc says of a layer is not believed for another image that has another.
//!
//! Nothing is fsynced on the way. A killed process loses nothing, because the page cache is the kernel's: a
//! span's bytes are written before its record is. An unclean stop of the *machine* (another boot id and no clean
//! mark) begins a new generation, and what is of an older one is not believed: a ztoc counts once its digest was
//! computed again, a span once its checksum was, whichever process comes to it. A write that fails leaves the
//! span absent; a record that cannot be read is an absent span. Eviction is in the order of least recent use over
//! all layers, and punches holes.
//!
//! A folder has one table of spans that believes in it: who opens it last. An older one may live on as long as
//! its last request is under way; from then on it writes nothing, and what it reads does not count, because the
//! new one punches holes that the old one's pins do not hold off. After the mark of an orderly stop nothing is
//! written by anybody: it says that everything is on the disk.

mod trash;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    sync::{Arc, Weak},
};

use lru::LruCache;
use oci::Digest;
use rustix::fs::{FallocateFlags, fallocate};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};
use ztoc::{SpanId, UncompressedOffset};

use self::trash::Trash;
use crate::{
    crash_notes::{CrashNotes, InProgress, LayerMark},
    error::{self, Error, ErrorKind},
    raw::Map,
    sync::{Mutex, RwLock},
};

/// Of a ztoc: a layer of 10 GiB in 4 MiB spans has 84 MB of windows; four times that is hostile.
const MAX_ZTOC_BYTES: u64 = 512 << 20;
const OWN: &str = "own";
const TRASH: &str = "rubbish";
/// Free bytes on a disk that had none, for it to be tried again: some spans' worth.
const ROOM_AGAIN: u64 = 64 << 20;
const MAGIC: [u8; 8] = *b"SOCISPN1";
const HEADER: u64 = 16;
const RECORD: u64 = 16;

/// A layer, as one table of files has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerId {
    /// Digest of the layer as stored in a registry.
    pub layer: Digest,
    /// Digest of its ztoc; none for one that was built here, from the whole verified layer.
    pub ztoc: Option<Digest>,
}

impl LayerId {
    /// It in one word.
    pub fn mark(&self) -> LayerMark {
        let mut hash = Xxh3::new();
        hash.update(self.layer.to_string().as_bytes());
        hash.update(self.ztoc.map(|ztoc| ztoc.to_string()).unwrap_or_default().as_bytes());
        LayerMark(hash.digest().max(1))
    }
}

impl std::fmt::Display for LayerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.layer.fmt(f)
    }
}

/// What the store may take of its disk; the default is all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Uncompressed bytes of spans to keep; `None` = no limit.
    pub max_bytes: Option<u64>,
    pub min_free: MinFree,
}

/// What has to stay free on the disk, for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    Bytes(u64),
    /// Of its size.
    Percent(u8),
}

impl Default for MinFree {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

/// All layers on one disk, and the order in which their spans go when room is needed.
#[derive(Debug)]
pub struct Store {
    layers: PathBuf,
    /// One more after each unclean stop: what is of an older one is proven before it is believed.
    generation: u32,
    /// That is on the disk, for whoever comes next to know that what is older is in doubt.
    is_noted: bool,
    /// Nothing is written any more; held for reading while something is.
    closed: RwLock<bool>,
    /// The last write has failed for lack of room.
    full: AtomicBool,
    room: DiskLimits,
    eviction: Mutex<Eviction>,
    /// Who opened a layer's folder last.
    leases: Mutex<HashMap<LayerId, Weak<FolderLease>>>,
    work: Arc<CrashNotes>,
    trash: Trash,
}

/// The right to believe in a layer's folder, and to write there.
#[derive(Debug, Default)]
struct FolderLease {
    over: AtomicBool,
    /// Held for reading by who writes.
    writing: RwLock<()>,
}

impl FolderLease {
    /// Returns when the last write of its holder is done.
    fn end(&self) {
        self.over.store(true, Ordering::Release);
        drop(self.writing.write());
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
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

    /// Adds how many of its spans are empty, filling, ready and unproven.
    fn count(&self, states: &mut [u64; 4]);
}

impl Store {
    /// Opens the folder `root`/layers, making it where it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(root: &Path, room: DiskLimits) -> Result<Arc<Self>, Error> {
        Self::open_noting(root, room, Arc::default())
    }

    /// The same; which layers something is under way with is noted.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_noting(root: &Path, room: DiskLimits, work: Arc<CrashNotes>) -> Result<Arc<Self>, Error> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::open_on(root, room, &boot, work)
    }

    /// The same on a boot of that id.
    pub(crate) fn open_on(
        root: &Path,
        room: DiskLimits,
        boot: &str,
        work: Arc<CrashNotes>,
    ) -> Result<Arc<Self>, Error> {
        let layers = root.join("layers");
        make_folder(&layers.join("sha256")).map_err(|e| Error::io("make folder of layers", e))?;
        let noted = fs::read_to_string(layers.join("boot")).ok();
        let known = noted.as_deref().and_then(|text| text.split_once(' '));
        let known = known.and_then(|(last_boot, last)| Some((last_boot, last.trim().parse::<u32>().ok()?)));
        let clean = fs::remove_file(layers.join("clean")).is_ok();
        let same_boot = |last_boot| !boot.trim().is_empty() && last_boot == boot.trim();
        let generation = match known {
            Some((last_boot, last)) if clean || same_boot(last_boot) => last,
            Some((_, last)) => last.wrapping_add(1),
            // The first, or the note was lost with the power: its bytes are on the disk no sooner than others. What
            // is there may be of any generation, so this one is to be none that ever was.
            None => xxh3_64(boot.trim().as_bytes()) as u32,
        };
        if noted.is_some() && known.is_none_or(|(_, last)| last != generation) {
            tracing::warn!("the last stop was unclean: what is stored is verified again before use");
        }
        let note = format!("{} {generation}", boot.trim());
        let mut is_noted = true;
        if clean || noted.as_deref() != Some(&note) {
            // On the disk before anything is written under it: a mark that came back would be believed.
            let written = replace(&layers.join("boot"), note.as_bytes());
            if let Err(error) = written.and_then(|()| File::open(&layers)?.sync_all()) {
                tracing::error!(%error, "write boot id of layers: what is fetched is not kept until the next start");
                is_noted = false;
            }
        }
        let trash = Trash::open(layers.join(TRASH)).map_err(|e| Error::io("remove layers", e))?;
        let eviction = Eviction { order: LruCache::unbounded(), used: 0, owners: Vec::new() };
        let closed = RwLock::default();
        *closed.write() = !is_noted;
        Ok(Arc::new(Self {
            layers,
            generation,
            is_noted,
            closed,
            full: AtomicBool::new(false),
            room,
            eviction: Mutex::new(eviction),
            leases: Mutex::default(),
            work,
            trash,
        }))
    }

    /// Something is under way with a layer, until the value is dropped.
    pub(crate) fn at(&self, layer: LayerMark) -> InProgress {
        self.work.at(layer)
    }

    /// Ends all writing, and leaves the mark of an orderly stop once everything is on the disk.
    ///
    /// # Errors
    /// When the disk cannot be synced: the next start then verifies again, no harm is done.
    pub fn close(&self) -> Result<(), Error> {
        *self.closed.write() = true;
        if !self.is_noted {
            return Ok(());
        }
        let folder = File::open(&self.layers).map_err(|e| Error::io("open folder of layers", e))?;
        rustix::fs::syncfs(&folder).map_err(|e| Error::io("sync folder of layers", e.into()))?;
        fs::write(self.layers.join("clean"), b"").map_err(|e| Error::io("write clean mark", e))
    }

    fn folder(&self, id: &LayerId) -> PathBuf {
        let name = id.ztoc.map_or_else(|| OWN.to_owned(), |ztoc| ztoc.hex());
        self.layers.join("sha256").join(id.layer.hex()).join(name)
    }

    /// Opens one layer's folder, making it where it is missing. Who had it open has it no longer.
    pub(crate) fn layer(self: &Arc<Self>, id: &LayerId) -> Result<LayerFiles, Error> {
        let folder = self.folder(id);
        make_folder(&folder).map_err(|e| Error::io(format!("make folder of layer {id}"), e))?;
        let lease = self.lease(id);
        let data = open_file(&folder.join("data"))?;
        let spans = open_file(&folder.join("spans"))?;
        Ok(LayerFiles { store: self.clone(), id: *id, lease, folder, data, spans })
    }

    fn lease(&self, id: &LayerId) -> Arc<FolderLease> {
        let lease = Arc::new(FolderLease::default());
        let mut leases = self.leases.lock();
        leases.retain(|_, lease| lease.strong_count() > 0);
        let before = leases.insert(*id, Arc::downgrade(&lease));
        if let Some(before) = before.and_then(|before| before.upgrade()) {
            before.end();
        }
        lease
    }

    /// The same, where there is one with a ztoc.
    pub(crate) fn existing(self: &Arc<Self>, id: &LayerId) -> Option<LayerFiles> {
        self.folder(id).join("ztoc").exists().then(|| self.layer(id).ok()).flatten()
    }

    /// Removes the folders of all layers but `used`: what a killed process was about to bring or to remove.
    ///
    /// # Errors
    /// When the folder of layers cannot be read.
    pub fn retain(&self, used: &HashSet<LayerId>) -> Result<(), Error> {
        let doing = |e| Error::io("look for layers that nothing uses", e);
        let folders: HashSet<PathBuf> = used.iter().map(|id| self.folder(id)).collect();
        for layer in fs::read_dir(self.layers.join("sha256")).map_err(doing)?.flatten() {
            for one in fs::read_dir(layer.path()).into_iter().flatten().flatten() {
                if !folders.contains(&one.path()) {
                    let _ = self.trash.take(&one.path());
                }
            }
            let _ = fs::remove_dir(layer.path()); // stays where something is left in it
        }
        Ok(())
    }

    /// What was removed is off the disk when this is back.
    ///
    /// # Errors
    /// When it cannot be looked for.
    pub fn sweep(&self) -> Result<(), Error> {
        self.trash.empty().map_err(|e| Error::io("look for removed layers", e))
    }

    /// Removes a layer's folder: it is out of the way at once, and off the disk in a while. Spans that are still being
    /// read stay readable until they are closed.
    ///
    /// # Errors
    /// When the folder cannot be removed; an absent one is no error.
    pub fn remove(&self, id: &LayerId) -> Result<(), Error> {
        let folder = self.folder(id);
        match self.trash.take(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(format!("remove layer {id}"), e)),
            _ => {
                let _ = folder.parent().map(fs::remove_dir); // stays where another ztoc has something in it
                Ok(())
            }
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

    /// Spans of all open layers that are empty, filling, ready and unproven, and the uncompressed bytes on the disk.
    pub(crate) fn counts(&self) -> ([u64; 4], u64) {
        let eviction = self.eviction.lock();
        let tables: Vec<_> = eviction.owners.iter().flatten().filter_map(Weak::upgrade).collect();
        let used = eviction.used;
        // Outside the lock: the last reference to a table asks for it.
        drop(eviction);
        let mut states = [0; 4];
        tables.iter().for_each(|table| table.count(&mut states));
        (states, used)
    }

    /// These spans lie on the disk now, with so many bytes each. Others go if that is too much.
    pub(crate) fn landed(&self, owner: u32, spans: impl IntoIterator<Item = (SpanId, u64)>) {
        let mut newest = None;
        let rounds = {
            let mut eviction = self.eviction.lock();
            for (span, bytes) in spans {
                eviction.used += bytes;
                if let Some((_, old)) = eviction.order.push((owner, span), bytes) {
                    eviction.used -= old;
                }
                newest = Some((owner, span));
            }
            eviction.order.len()
        };
        // Each span is looked at once: one that was read meanwhile goes to the back of the queue.
        for _ in 0..rounds {
            let Some((key, bytes, table)) = self.oldest() else { return };
            // Outside the lock: a hole is punched. The table lives until its span is back in the order.
            let table = table.upgrade();
            let gone = Some(key) != newest && table.as_ref().is_none_or(|table| table.evict(key.1));
            let mut eviction = self.eviction.lock();
            if gone {
                eviction.used -= bytes;
            } else {
                eviction.order.push(key, bytes);
            }
            drop(eviction);
            drop(table);
        }
    }

    /// Whether what lands now pushes out something else or finds no room, or soon will.
    pub(crate) fn nearly_full(&self) -> bool {
        if self.full.load(Ordering::Acquire) {
            let free = self.statfs().map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
            if free < ROOM_AGAIN {
                return true;
            }
            // Whoever took the room has given it back; nobody may have written since.
            self.full.store(false, Ordering::Release);
        }
        let most = self.room.max_bytes.unwrap_or(u64::MAX);
        self.eviction.lock().used >= most / 10 * 9 || self.is_short_of(11)
    }

    /// Whether less than so many tenths of what is to stay free on the disk is free.
    fn is_short_of(&self, tenths: u64) -> bool {
        if self.room.min_free == MinFree::Bytes(0) {
            return false;
        }
        let Ok(disk) = self.statfs() else { return false };
        let (block, all, free) = (disk.f_frsize, disk.f_blocks, disk.f_bavail);
        let least = match self.room.min_free {
            MinFree::Bytes(bytes) => bytes,
            MinFree::Percent(part) => all.saturating_mul(block) / 100 * u64::from(part.min(100)),
        };
        free.saturating_mul(block) < (least / 10).saturating_mul(tenths)
    }

    /// The span that was used longest ago, taken out of the order, if there is too much on the disk.
    fn oldest(&self) -> Option<Oldest> {
        let short = self.is_short_of(10);
        let mut eviction = self.eviction.lock();
        if eviction.used <= self.room.max_bytes.unwrap_or(u64::MAX) && !short {
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
    id: LayerId,
    lease: Arc<FolderLease>,
    folder: PathBuf,
    data: File,
    spans: File,
}

/// One span as the `spans` file tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoredState {
    Absent,
    Present,
    /// Present before an unclean stop.
    Unproven,
}

impl LayerFiles {
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn id(&self) -> &LayerId {
        &self.id
    }

    /// Does what writes to the folder, unless the time for that is over; not to be nested.
    fn write<T>(&self, what: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let closed = self.store.closed.read();
        let _writing = self.lease.writing.read();
        if *closed {
            return Err(io::Error::other("the store is closed"));
        }
        if self.lease.is_over() {
            return Err(io::Error::other("the layer was opened anew"));
        }
        what()
    }

    /// The stored ztoc. One of an older generation counts once its digest was computed again.
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

    /// What is on disk of a layer of `count` spans. A file of another shape is an empty one.
    pub(crate) fn records(&self, count: u32) -> Vec<StoredState> {
        let mut header = [0; HEADER as usize];
        let valid = self.spans.read_exact_at(&mut header, 0).is_ok()
            && header[..8] == MAGIC
            && header[8..12] == count.to_le_bytes();
        if !valid {
            let emptied = self.write(|| self.spans.set_len(0));
            if let Err(error) = emptied.and_then(|()| self.note_proven(count)) {
                tracing::warn!(layer = %self.id, %error, "start records of spans");
            }
            return vec![StoredState::Absent; count as usize];
        }
        let believed = header[12..16] == self.store.generation.to_le_bytes();
        let mut bytes = vec![0; count as usize * RECORD as usize];
        let read = read_up_to(&self.spans, &mut bytes, HEADER);
        bytes.truncate(read / RECORD as usize * RECORD as usize);
        let mut records: Vec<_> = bytes
            .chunks_exact(RECORD as usize)
            .map(|record| match (record[0], believed) {
                (1, true) => StoredState::Present,
                (1, false) => StoredState::Unproven,
                _ => StoredState::Absent,
            })
            .collect();
        records.resize(count as usize, StoredState::Absent);
        records
    }

    /// Every record of a layer of `count` spans is of this generation: all older ones were proven or are gone.
    pub(crate) fn note_proven(&self, count: u32) -> io::Result<()> {
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&count.to_le_bytes());
        header.extend_from_slice(&self.store.generation.to_le_bytes());
        self.write(|| self.spans.write_all_at(&header, 0))
    }

    /// Stores a part of a verified span. Its record comes when all of it is there.
    pub(crate) fn put_piece(&self, at: UncompressedOffset, bytes: &[u8]) -> io::Result<()> {
        self.put(|| self.data.write_all_at(bytes, at.0))
    }

    /// Records a span whose bytes are stored. `tail`: of the last one, how many bytes behind it were stored, too, where
    /// those are all that there are.
    pub(crate) fn put_record(&self, span: SpanId, checksum: u64, tail: Option<u64>) -> io::Result<()> {
        self.put(|| self.write_record(span, checksum, tail))
    }

    fn put(&self, what: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.write(|| {
            let stored = what();
            match &stored {
                Ok(()) => self.store.full.store(false, Ordering::Release),
                Err(error) if error::kind_of(error) == ErrorKind::Full => {
                    self.store.full.store(true, Ordering::Release);
                }
                Err(_) => {}
            }
            stored
        })
    }

    fn write_record(&self, span: SpanId, checksum: u64, tail: Option<u64>) -> io::Result<()> {
        let mut record = [0; RECORD as usize];
        // In 56 bits, one more than there are.
        record[..8].copy_from_slice(&tail.map_or(0, |tail| (tail + 1) << 8).to_le_bytes());
        record[0] = 1;
        record[8..].copy_from_slice(&checksum.to_le_bytes());
        self.spans.write_all_at(&record, HEADER + u64::from(span.0) * RECORD)
    }

    /// How many bytes behind the last span are stored with it, where that is known.
    pub(crate) fn tail(&self, last: SpanId) -> Option<u64> {
        let mut record = [0; 8];
        self.spans.read_exact_at(&mut record, HEADER + u64::from(last.0) * RECORD).ok()?;
        (u64::from_le_bytes(record) >> 8).checked_sub(1)
    }

    /// What lies behind the last span has no checksum: after an unclean stop it is not known any more.
    pub(crate) fn forget_tail(&self, last: SpanId) {
        let at = HEADER + u64::from(last.0) * RECORD + 1;
        if let Err(error) = self.write(|| self.spans.write_all_at(&[0; 7], at)) {
            tracing::debug!(layer = %self.id, %error, "forget what lies behind the last span");
        }
    }

    /// The digest of the whole stream, if it was ever computed.
    pub(crate) fn whole(&self) -> Option<Digest> {
        fs::read_to_string(self.folder.join("whole")).ok()?.trim().parse().ok()
    }

    /// Keeps the digest of the whole stream.
    pub(crate) fn put_whole(&self, digest: &Digest) -> io::Result<()> {
        self.write(|| replace(&self.folder.join("whole"), digest.to_string().as_bytes()))
    }

    /// Reads stored bytes; short only where the file ends, which a caller treats as damage, as it does the end of
    /// its lease.
    pub(crate) fn read(&self, at: UncompressedOffset, buffer: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(buffer, at.0)?;
        // Looked at last: until it was over nobody else punched holes.
        if self.lease.is_over() {
            return Err(io::Error::other("the layer was opened anew"));
        }
        Ok(())
    }

    /// Bytes on disk and inodes of the layer's folder.
    pub(crate) fn disk_usage(&self) -> io::Result<(u64, u64)> {
        let (mut bytes, mut inodes) = (fs::metadata(&self.folder)?.blocks() * 512, 1);
        for entry in fs::read_dir(&self.folder)? {
            // One that is being replaced may be gone.
            let Ok(found) = entry?.metadata() else { continue };
            bytes += found.blocks() * 512;
            inodes += 1;
        }
        Ok((bytes, inodes))
    }

    /// Whether somebody else has opened the layer: nothing is wrong with what cannot be read any more.
    pub(crate) fn is_over(&self) -> bool {
        self.lease.is_over()
    }

    /// Whether a stored span still has the checksum of its record.
    pub(crate) fn prove(&self, span: SpanId, range: &Range<UncompressedOffset>) -> bool {
        let mut record = [0; RECORD as usize];
        let mut bytes = vec![0; usize::try_from(range.end.0 - range.start.0).unwrap_or(0)];
        self.spans.read_exact_at(&mut record, HEADER + u64::from(span.0) * RECORD).is_ok()
            && self.read(range.start, &mut bytes).is_ok()
            && record[8..] == xxh3_64(&bytes).to_le_bytes()
    }

    /// Strikes a span off: it is absent, whatever its bytes are.
    pub(crate) fn strike(&self, span: SpanId) -> bool {
        let struck = self.write(|| self.strike_record(span));
        if let Err(error) = &struck {
            tracing::warn!(layer = %self.id, %error, "strike off a span");
        }
        struck.is_ok()
    }

    fn strike_record(&self, span: SpanId) -> io::Result<()> {
        self.spans.write_all_at(&[0; RECORD as usize], HEADER + u64::from(span.0) * RECORD)
    }

    /// Takes a span that nobody reads off the disk: its record first, then its bytes.
    pub(crate) fn forget(&self, span: SpanId, range: &Range<UncompressedOffset>) {
        if range.start >= range.end {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let gone = self.write(|| {
            self.strike_record(span)?;
            Ok(fallocate(&self.data, flags, range.start.0, range.end.0 - range.start.0)?)
        });
        if let Err(error) = gone {
            tracing::debug!(layer = %self.id, %error, "take a span off the disk");
        }
        self.store.full.store(false, Ordering::Release);
    }

    /// A sink for a whole uncompressed stream, which takes the place of `data` once it is complete.
    pub(crate) fn stream(&self) -> io::Result<Streamed> {
        // One name: who streams a layer is alone with it, and what a killed process left is overwritten.
        let path = self.folder.join("data.new");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(Streamed { path, file: io::BufWriter::with_capacity(1 << 20, file), keep: false })
    }

    /// Puts a complete stream in the place of `data` and records all of its spans.
    pub(crate) fn adopt(
        &mut self,
        mut streamed: Streamed,
        ranges: &[Range<UncompressedOffset>],
    ) -> io::Result<()> {
        streamed.file.flush()?;
        self.write(|| {
            self.spans.set_len(0)?;
            fs::rename(&streamed.path, self.folder.join("data"))
        })?;
        streamed.keep = true;
        self.data = open_file(&self.folder.join("data")).map_err(io::Error::other)?;
        self.records(u32::try_from(ranges.len()).map_err(io::Error::other)?);
        let mut bytes = Vec::new();
        for (number, range) in (0u32..).zip(ranges) {
            bytes.resize(usize::try_from(range.end.0 - range.start.0).map_err(io::Error::other)?, 0);
            self.read(range.start, &mut bytes)?;
            self.write(|| self.write_record(SpanId(number), xxh3_64(&bytes), None))?;
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
