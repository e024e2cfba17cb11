//! Spans on disk: one folder for each layer and ztoc, shared by every image that names the layer.
//!
//! ```text
//! <root>/layers/boot                    boot id under which the folder was last in use, and the generation
//! <root>/layers/clean                   present after an orderly stop, written after a syncfs
//! <root>/layers/sha256/<hex>/<id>/      one layer as one ztoc describes it (`layer_files`)
//!     ztoc, ztoc.digest                 as fetched or built; mapped, never changed
//!     data                              the layer's uncompressed tar stream, sparse
//!     spans                             per span: state and checksum of its uncompressed bytes (`records`)
//!     whole                             digest of the uncompressed stream, once it was computed
//! <root>/layers/rubbish/                folders of removed layers that are still being deleted (`trash`)
//! ```
//!
//! `<id>` is the digest of the index's ztoc, or `own` for a layer that was streamed whole and verified by its own
//! digest. What the ztoc of one image says about a layer is not used for an image with another ztoc.
//!
//! Nothing is fsynced on the way. A killed process loses nothing, because the page cache is the kernel's: the bytes
//! of a span are written before its record. An unclean stop of the *machine* (another boot id and no clean mark)
//! begins a new generation. A ztoc of an older generation is used once its digest was computed again, and a span
//! once its checksum was compared. A write that fails leaves the span absent. A record that cannot be read is an
//! absent span.
//!
//! After the mark of an orderly stop nothing is written: the mark says that everything is on the disk.

mod layer_id;
mod layer_files;
mod records;
mod eviction;
mod lease;
mod generation;
mod trash;

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use ztoc::SpanId;

use crate::{
    crash_notes::{CrashNotes, InProgress, LayerMark},
    error::Error,
    store::{eviction::Eviction, lease::Leases, trash::TrashFolder},
    sync::{Mutex, RwLock},
};

pub use eviction::{DiskLimits, MinFree};
pub(crate) use eviction::{Evict, EvictAttempt};
pub(crate) use layer_files::LayerFiles;
pub use layer_id::LayerId;
pub(crate) use records::StoredState;
pub use trash::{Trash, TrashPause};

const OWN: &str = "own";
const RUBBISH: &str = "rubbish";

/// All layers on one disk.
#[derive(Debug)]
pub struct Store {
    layers: PathBuf,
    /// One more after each unclean stop.
    generation: u32,
    /// The generation is on the disk, so that the next start knows what is older.
    is_noted: bool,
    /// Nothing is written any more; held for reading during a write.
    closed: RwLock<bool>,
    eviction: Eviction,
    leases: Leases,
    notes: Arc<CrashNotes>,
    trash: TrashFolder,
}

impl Store {
    /// Opens the folder `root`/layers, making it where it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(root: &Path, limits: DiskLimits) -> Result<Arc<Self>, Error> {
        Self::open_noting(root, limits, Arc::default())
    }

    /// Opens the folder like [`Store::open`], and notes in `notes` which layers threads work on.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_noting(root: &Path, limits: DiskLimits, notes: Arc<CrashNotes>) -> Result<Arc<Self>, Error> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::open_on(root, limits, &boot, notes)
    }

    /// Opens the folder on the boot with the id `boot`.
    pub(crate) fn open_on(
        root: &Path,
        limits: DiskLimits,
        boot: &str,
        notes: Arc<CrashNotes>,
    ) -> Result<Arc<Self>, Error> {
        let layers = root.join("layers");
        make_folder(&layers.join("sha256")).map_err(|e| Error::io("make folder of layers", e))?;
        let (generation, is_noted) = generation::begin(&layers, boot.trim());
        let trash = TrashFolder::open(layers.join(RUBBISH)).map_err(|e| Error::io("remove layers", e))?;
        Ok(Arc::new(Self {
            eviction: Eviction::new(layers.clone(), limits),
            layers,
            generation,
            is_noted,
            closed: RwLock::new(!is_noted),
            leases: Mutex::default(),
            notes,
            trash,
        }))
    }

    /// Notes that a thread works on a layer, until the value is dropped.
    pub(crate) fn note(&self, layer: LayerMark) -> InProgress {
        self.notes.note(layer)
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

    /// Opens one layer's folder, making it where it is missing. This ends the lease of the table that had it open.
    pub(crate) fn layer(self: &Arc<Self>, id: &LayerId) -> Result<LayerFiles, Error> {
        let folder = self.folder(id);
        make_folder(&folder).map_err(|e| Error::io(format!("make folder of layer {id}"), e))?;
        let lease = lease::take(&self.leases, id);
        LayerFiles::open(self.clone(), *id, lease, folder)
    }

    /// Opens one layer's folder, if it has a ztoc.
    pub(crate) fn existing(self: &Arc<Self>, id: &LayerId) -> Option<LayerFiles> {
        self.folder(id).join("ztoc").exists().then(|| self.layer(id).ok()).flatten()
    }

    /// Removes the folders of all layers but `used`: a killed process left them unfinished, or did not remove them.
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
            let _ = fs::remove_dir(layer.path()); // stays while it has a folder of another ztoc
        }
        Ok(())
    }

    /// Returns once all removed layers are off the disk.
    ///
    /// # Errors
    /// When removed layers cannot be listed.
    pub fn sweep(&self) -> Result<(), Error> {
        self.trash.empty().map_err(|e| Error::io("look for removed layers", e))
    }

    /// Removes a layer's folder: it leaves its place at once, and the disk later. Readers that have it open can
    /// read its spans until they close it.
    ///
    /// # Errors
    /// When the folder cannot be removed; an absent one is no error.
    pub fn remove(&self, id: &LayerId) -> Result<(), Error> {
        let folder = self.folder(id);
        match self.trash.take(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(format!("remove layer {id}"), e)),
            _ => {
                let _ = folder.parent().map(fs::remove_dir); // stays while it has a folder of another ztoc
                Ok(())
            }
        }
    }

    /// The `statfs` of the disk that holds the layers: containers see the free space of the node.
    pub(crate) fn statfs(&self) -> io::Result<rustix::fs::StatVfs> {
        self.eviction.statfs()
    }

    /// Registers a table of spans for eviction. Returns its number, which [`Store::leave`] frees.
    pub(crate) fn join(&self, owner: Weak<dyn Evict>) -> u32 {
        self.eviction.join(owner)
    }

    /// Forgets a table. Its spans stay on disk and are counted again when the layer is next opened.
    pub(crate) fn leave(&self, owner: u32) {
        self.eviction.leave(owner);
    }

    /// Spans of all open layers that are empty, filling, ready and unproven, and the uncompressed bytes on disk.
    pub(crate) fn counts(&self) -> ([u64; 4], u64) {
        self.eviction.counts()
    }

    /// Counts spans that are on disk now, each with its uncompressed bytes, and evicts others if that is too much.
    pub(crate) fn landed(&self, owner: u32, spans: impl IntoIterator<Item = (SpanId, u64)>) {
        self.eviction.landed(owner, spans);
    }

    /// Stops counting a span that was on disk and became absent without being evicted.
    pub(crate) fn struck(&self, owner: u32, span: SpanId) {
        self.eviction.struck(owner, span);
    }

    /// Whether a span that lands now finds no room or evicts another, or soon will.
    pub(crate) fn nearly_full(&self) -> bool {
        self.eviction.nearly_full()
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes under another name and renames: a reader sees the old file or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let other = path.with_extension(format!("new{}", std::process::id()));
    let written = fs::write(&other, bytes).and_then(|()| fs::rename(&other, path));
    if written.is_err() {
        let _ = fs::remove_file(&other);
    }
    written
}
