//! The verbs: what containerd asks of a snapshotter, and the one place where a Prepare branches.
//!
//! Nothing here holds a transaction across anything slow. A layer that cannot be lazy is never an error: it
//! is streamed into the store, or left to containerd, with a reason that is logged once.

pub(crate) mod needs;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use layerfs::{Family, Inherited, Layer, LowerEntry};
use oci::{Registry, Store as _};
use tokio::task::block_in_place;
use tracing::field::display;

use crate::{
    chain,
    counters::{Counters, Outcome, Prepared},
    error::{Error, ErrorKind},
    filter,
    folders::{self, Folders},
    images::Images,
    labels::{self, LayerRequest},
    layers::{Layers, Refusal},
    mapping,
    opening::{Opened, Opening},
    overlay::{self, Mount, Use},
    per_layer::Operation,
    plan::{self, First, Modes},
    reason::Reason,
    standing::Standing,
    store::{Commit, Kind, Lazy, Record, Store},
    sync::lock,
};

/// The snapshotter behind the gRPC door.
pub(crate) struct Snapshotter {
    folders: Folders,
    store: Store,
    images: Images,
    opening: Arc<Opening>,
    layers: Arc<Layers>,
    modes: Modes,
    /// Held from showing a layer to recording who stands on its slot, and from forgetting that to hiding it: in
    /// between, a slot that is about to be used looks unused.
    placing: Mutex<Standing>,
    counters: Arc<Counters>,
    /// Options of every overlay.
    overlay_options: Vec<String>,
}

/// Who says which layer a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    ByTheClient,
    /// Found out, see `search`.
    ByItsChain,
}

/// What the configuration says of snapshots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) modes: Modes,
    /// Options of every overlay.
    pub(crate) mount_options: &'a [String],
}

impl Snapshotter {
    pub(crate) fn new(
        root: &Path,
        images: Images,
        layers: Arc<Layers>,
        opening: Arc<Opening>,
        given: Given<'_>,
    ) -> Result<Self, Error> {
        let home = root.join("snapshotter");
        let (folders, present) = Folders::open(&home.join("snapshots"))?;
        let store = Store::open(&home.join("snapshots.redb"))?;
        present.into_iter().for_each(|id| store.skip_ids(id));
        if let Err(error) = folders.discard_unused(|| store.ids()) {
            tracing::error!(%error, "remove folders of snapshots that are gone");
        }
        let overlay_options = overlay::options(given.mount_options, &home);
        Ok(Self {
            folders,
            store,
            images,
            opening,
            layers,
            modes: given.modes,
            placing: Mutex::default(),
            counters: Arc::default(),
            overlay_options,
        })
    }

    /// Shows again what stands on layers of an earlier process. Local state only; what is lost of it is brought
    /// back by tasks that go on afterwards.
    pub(crate) fn restore(self: &Arc<Self>) -> Result<(), Error> {
        let mut slots: HashMap<u32, (Lazy, Vec<Registry>)> = HashMap::new();
        let (records, damaged) = self.store.readable()?;
        let mut standing = lock(&self.placing);
        if !damaged.is_empty() {
            standing.has_unknown();
        }
        for record in &records {
            let Some(lazy) = record.lazy.clone() else { continue };
            let registry = self.source(&record.labels);
            standing.add(lazy.slot, lazy.id(), registry.as_ref().map(Registry::name).as_deref());
            let (_, registries) = slots.entry(lazy.slot).or_insert_with(|| (lazy, Vec::new()));
            registries.extend(registry);
        }
        drop(standing);
        let lost = self.layers.restore(&slots);
        // What stands on the others is not known.
        if lost.is_empty() && damaged.is_empty() {
            self.layers.sweep(&slots.values().map(|(lazy, _)| lazy.id()).collect());
        }
        for slot in lost {
            let Some((lazy, registries)) = slots.remove(&slot) else { continue };
            let me = self.clone();
            tokio::spawn(async move {
                me.layers.recover(slot, &lazy, &registries).await;
                // Nobody may stand on it any more.
                me.release_unused(slot);
            });
        }
        for record in &records {
            if let Some(layer) = record.lazy.as_ref().and_then(|lazy| self.layers.shown(lazy.slot)) {
                self.compare_when_whole(&layer, &record.parent, &record.name);
            }
        }
        Ok(())
    }

    pub(crate) fn layers(&self) -> &Layers {
        &self.layers
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What is counted here and below.
    pub(crate) fn metrics(&self) -> Vec<Family> {
        [self.counters.families(), self.layers.metrics()].concat()
    }

    /// Unmounts; the last thing a daemon does.
    pub(crate) fn close(&self) {
        self.layers.close();
    }

    pub(crate) async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Error> {
        let first = plan::first(labels::asked(&labels), self.modes);
        // Database and folders are on a disk: others are served meanwhile.
        let record = block_in_place(|| self.create(Kind::Active, key, parent, labels))?;
        let (request, named) = match first {
            First::Writable => {
                self.counters.prepared(Prepared::Plain);
                return block_in_place(|| self.mounts_of(&record));
            }
            First::Leave(reason) => {
                self.left(key, None, reason, "no valid SOCI index found");
                return self.mounts_left(&record).await;
            }
            First::Try(request) => (*request, Named::ByTheClient),
            First::Search(target) => match self.images.layer(namespace(key), &target).await {
                Ok(request) => (request, Named::ByItsChain),
                Err((reason, why)) => {
                    self.left(key, None, reason, &why);
                    return self.mounts_left(&record).await;
                }
            },
        };
        match self.open_and_place(&record, &request, named).await {
            Ok(Ok(())) => Err(exists(&request.target)),
            Ok(Err((reason, why))) => {
                self.left(key, Some(&request), reason, &why);
                match reason {
                    Reason::NoParent => Ok(overlay::rebased(&self.folders.of(record.id))),
                    _ => self.mounts_left(&record).await,
                }
            }
            Err(error) => {
                block_in_place(|| self.abandon(&record));
                Err(error)
            }
        }
    }

    /// Shows a layer and commits its snapshot; the inner result says why containerd has to do it.
    async fn open_and_place(
        &self,
        record: &Record,
        request: &LayerRequest,
        named: Named,
    ) -> Result<Result<(), Refusal>, Error> {
        let there = block_in_place(|| -> Result<_, Error> {
            let there = self.target_exists(record, request)?;
            if let Some(Ok(())) = there {
                self.abandon(record);
            }
            Ok(there)
        });
        if let Some(answer) = there? {
            return Ok(answer);
        }
        let began = Instant::now();
        let namespace = namespace(&record.name);
        let image = match named {
            Named::ByTheClient => self.images.image(namespace, request).await,
            Named::ByItsChain => self.images.guessed(namespace, request).await,
        };
        let image = match image {
            Ok(image) => image,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let lowest = image.contents.layers.first().is_none_or(|lowest| lowest.digest == request.layer);
        if record.parent.is_empty() && !lowest {
            return Ok(Err((Reason::NoParent, PARENTLESS.into())));
        }
        match self.opening.open(&image, &request.layer).await {
            Ok(opened) => {
                let lazy = opened.reason.is_none();
                let placed = block_in_place(|| self.place(record, request, opened));
                if lazy && matches!(placed, Ok(Ok(()))) {
                    self.layers.durations().note(Operation::Mount, &request.layer, began.elapsed());
                }
                placed
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// For containerd to unpack a layer into.
    async fn mounts_left(&self, record: &Record) -> Result<Vec<Mount>, Error> {
        let asked = labels::asked(&record.labels);
        if record.parent.is_empty() && self.images.is_above(namespace(&record.name), asked).await {
            return Ok(overlay::rebased(&self.folders.of(record.id)));
        }
        block_in_place(|| self.mounts_of(record))
    }

    /// Takes back an active snapshot that nobody was told of.
    fn abandon(&self, record: &Record) {
        match self.store.remove(&record.name) {
            Ok(removed) => self.folders.discard(removed.id),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(key = record.name, %error, "take back a snapshot"),
        }
    }

    /// Whether the snapshot that is asked for is there already. containerd takes it only over the same parent:
    /// over another one (a lower layer that another namespace has under another name) it has to make its own.
    fn target_exists(
        &self,
        record: &Record,
        request: &LayerRequest,
    ) -> Result<Option<Result<(), Refusal>>, Error> {
        match self.store.get(&request.target) {
            Ok(target) if target.kind == Kind::Committed && target.parent == record.parent => {
                Ok(Some(Ok(())))
            }
            Ok(_) => {
                let why = format!("snapshot {} is there over another parent", request.target);
                Ok(Some(Err((Reason::OtherParent, why))))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn view(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Error> {
        let record = self.create(Kind::View, key, parent, labels)?;
        self.mounts_of(&record)
    }

    pub(crate) fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let record = self.store.get(key)?;
        if record.kind == Kind::Committed {
            let doing = format!("mounts of snapshot {key:?}: it is committed");
            return Err(Error::new(ErrorKind::FailedPrecondition, doing));
        }
        self.mounts_of(&record)
    }

    pub(crate) fn commit(
        &self,
        key: &str,
        name: &str,
        parent: String,
        labels: HashMap<String, String>,
    ) -> Result<(), Error> {
        let record = self.store.get(key)?;
        let usage = folders::disk_usage(&self.folders.files(record.id))
            .map_err(|e| Error::internal(format!("measure snapshot {key:?}"), e))?;
        self.store.commit(key, name, Commit { parent, labels, usage, lazy: None }).map(drop)
    }

    pub(crate) fn remove(&self, key: &str) -> Result<(), Error> {
        let (record, layer) = {
            let mut standing = lock(&self.placing);
            let record = self.store.remove(key)?;
            let layer = record.lazy.as_ref().and_then(|lazy| self.leave(&mut standing, lazy, &record.labels));
            (record, layer)
        };
        if let Some(layer) = layer {
            self.layers.forget(layer);
        }
        self.folders.discard(record.id);
        Ok(())
    }

    /// One snapshot fewer stands on `lazy`. What was shown there for the last time.
    fn leave(
        &self,
        standing: &mut Standing,
        lazy: &Lazy,
        labels: &HashMap<String, String>,
    ) -> Option<Arc<Layer>> {
        let place = self.source(labels).map(|registry| registry.name());
        let left = standing.remove(lazy.slot, lazy.id(), place.as_deref());
        if let Some(place) = place.filter(|_| left.place) {
            self.layers.disown(lazy.slot, &place);
        }
        left.slot.then(|| self.layers.release(lazy.slot)).flatten()
    }

    /// Where the layer of a stored snapshot can be had from.
    fn source(&self, labels: &HashMap<String, String>) -> Option<Registry> {
        labels::source(labels).and_then(|image| self.images.registry(&image).ok())
    }

    pub(crate) fn stat(&self, key: &str) -> Result<Record, Error> {
        self.store.get(key)
    }

    pub(crate) fn update(
        &self,
        name: &str,
        change: impl FnOnce(&mut HashMap<String, String>) -> Result<(), Error>,
    ) -> Result<Record, Error> {
        self.store.relabel(name, change)
    }

    /// Bytes on disk and inodes: of what is written to as it is now, of what containerd committed as it was then. A layer
    /// that is shown counts with what is stored of it now, in every snapshot that stands on it.
    pub(crate) fn usage(&self, key: &str) -> Result<(u64, u64), Error> {
        let record = self.store.get(key)?;
        let doing = || format!("measure snapshot {key:?}");
        match (record.kind, &record.lazy) {
            (Kind::Active, _) => {
                folders::disk_usage(&self.folders.files(record.id)).map_err(|e| Error::internal(doing(), e))
            }
            (_, Some(lazy)) => match self.layers.shown(lazy.slot) {
                Some(layer) => layer.disk_usage().map_err(|e| Error::internal(doing(), e)),
                None => Ok((0, 0)),
            },
            (Kind::View | Kind::Committed, None) => Ok(record.usage),
        }
    }

    pub(crate) fn list(&self, filters: &[String]) -> Result<Vec<Record>, Error> {
        let filters = filter::parse(filters)?;
        let (mut records, _) = self.store.readable()?;
        records.retain(|record| filter::matches(&filters, record));
        Ok(records)
    }

    /// Removes the folders of snapshots that are gone, and layers that nothing stands on; all of them are when it is back.
    pub(crate) fn cleanup(&self) -> Result<(), Error> {
        self.folders.sweep(|| self.store.ids())?;
        self.layers.cleanup().map_err(|e| Error::internal("clean up", e))
    }

    /// The folder first, then the record: a record always has its folder.
    fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Record, Error> {
        let owner = match mapping::root(&labels)? {
            Some(root) => Some(root),
            None => self.chain(parent)?.first().map(|above| self.root_owner(above)).transpose()?,
        };
        let id = self.store.new_id();
        let doing = || format!("make folders of snapshot {key:?}");
        let making = self.folders.make(id, kind, owner).map_err(|e| Error::internal(doing(), e))?;
        let record = self.store.create(id, kind, key, parent, labels);
        drop(making);
        if record.is_err() {
            self.folders.discard(id);
        }
        record
    }

    fn chain(&self, name: &str) -> Result<Vec<Record>, Error> {
        self.store.chain(name, usize::MAX)
    }

    /// Owner of a snapshot's root. Of a layer shown by ourselves the tree in memory is asked.
    fn root_owner(&self, record: &Record) -> Result<(u32, u32), Error> {
        if let Some(lazy) = &record.lazy {
            let root = self.layers.shown(lazy.slot).map(|layer| layer.below(b""));
            return Ok(match root {
                Some(LowerEntry::Directory(root)) => (root.uid, root.gid),
                _ => (0, 0),
            });
        }
        let doing = || format!("look at snapshot {:?}", record.name);
        let root = fs::symlink_metadata(self.folders.files(record.id));
        root.map(|root| (root.uid(), root.gid())).map_err(|e| Error::internal(doing(), e))
    }

    fn mounts_of(&self, record: &Record) -> Result<Vec<Mount>, Error> {
        let lowers = self.chain(&record.parent)?;
        let mapping = if self.is_shifted(record, lowers.first())? {
            Vec::new()
        } else {
            mapping::options(&record.labels)
        };
        let lowers: Vec<_> = lowers.iter().map(|lower| self.lower_path(lower)).collect();
        let what = if record.kind == Kind::View { Use::Look } else { Use::Write };
        Ok(overlay::mounts(&self.folders.of(record.id), what, &lowers, mapping, &self.overlay_options))
    }

    /// Whether the client has given the files below their new owners itself. It does so, file by file, where nobody
    /// told it that this snapshotter has the kernel do it (`capabilities`), and sends the labels all the same.
    fn is_shifted(&self, record: &Record, parent: Option<&Record>) -> Result<bool, Error> {
        let Some(parent) = parent.filter(|parent| parent.lazy.is_none()) else { return Ok(false) };
        match mapping::root(&record.labels) {
            Ok(Some(root)) if root != (0, 0) => Ok(self.root_owner(parent)? == root),
            _ => Ok(false),
        }
    }

    fn lower_path(&self, record: &Record) -> PathBuf {
        match &record.lazy {
            Some(lazy) => self.layers.path(lazy.slot),
            None => self.folders.files(record.id),
        }
    }

    /// The attributes of directories that the layer implies: those that a plain unpacking would have taken
    /// from the layers below. Where a link lies below, an unpacking would follow it, which a layer cannot show.
    fn inherited(&self, layer: &Layer, lowers: &[Record]) -> Result<Vec<Inherited>, Refusal> {
        let mut inherited = Vec::new();
        for path in layer.implied_directories() {
            for lower in lowers {
                let found = match &lower.lazy {
                    Some(lazy) => match self.layers.shown(lazy.slot) {
                        Some(layer) => layer.below(&path),
                        // What would be told now would be kept.
                        None => {
                            let why =
                                format!("layer {} below it is not served at the moment", lazy.layer.digest);
                            return Err((Reason::Internal, why));
                        }
                    },
                    None => folders::below(&self.folders.files(lower.id), &path),
                };
                match found {
                    LowerEntry::Absent => continue,
                    LowerEntry::Hidden => {}
                    LowerEntry::Directory(attributes) => inherited.push(attributes),
                    LowerEntry::Link => {
                        let path = String::from_utf8_lossy(&path).into_owned();
                        let why = format!("it has files in {path}, which is a link in a layer below");
                        return Err((Reason::UnsupportedLayer, why));
                    }
                }
                break;
            }
        }
        Ok(inherited)
    }

    /// Shows an opened layer over the layers below and commits its snapshot. The inner result says why it could
    /// not be shown; then containerd does it.
    fn place(
        &self,
        record: &Record,
        request: &LayerRequest,
        opened: Opened,
    ) -> Result<Result<(), Refusal>, Error> {
        let lowers = self.chain(&record.parent)?;
        let inherited = match self.inherited(&opened.layer, &lowers) {
            Ok(inherited) => inherited,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let whole = opened.layer.whole();
        if whole.and_then(|diff| chain::agrees(&record.parent, &request.target, &diff)) == Some(false) {
            let why = format!("its uncompressed bytes do not make the snapshot {}", request.target);
            return Ok(Err((Reason::OtherContent, why)));
        }
        let mut standing = lock(&self.placing);
        let slot = match self.layers.show(&opened.layer, &inherited) {
            Ok(slot) => slot,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut labels = record.labels.clone();
        if opened.reason != Some(Reason::NoIndex) {
            labels.insert(labels::HAS_INDEX.into(), "true".into());
        }
        labels.insert(labels::REMOTE.into(), "remote snapshot".into());
        labels::name(&mut labels, request);
        let lazy = Lazy { slot, layer: opened.descriptor, ztoc: opened.ztoc, inherited };
        let (id, place) = (lazy.id(), self.source(&labels).map(|registry| registry.name()));
        let commit = Commit { labels, lazy: Some(lazy), ..Commit::default() };
        if let Err(error) = self.store.commit(&record.name, &request.target, commit) {
            drop(standing);
            self.release_unused(slot);
            // Somebody was quicker.
            let there = self.target_exists(record, request)?;
            if error.kind() != ErrorKind::AlreadyExists {
                return Err(error);
            }
            if let Some(Ok(())) = there {
                self.abandon(record);
            }
            return there.ok_or(error);
        }
        standing.add(slot, id, place.as_deref());
        drop(standing);
        self.compare_when_whole(&opened.layer, &record.parent, &request.target);
        let key = &record.name;
        match opened.reason {
            None => {
                self.counters.prepared(Prepared::Lazy);
                tracing::info!(key, slot, layer = %request.layer, "remote-snapshot-prepared" = "true", "layer shown");
            }
            Some(reason) => {
                self.counters.prepared(Prepared::Whole(reason));
                self.counters.remember(outcome(key, Some(request), reason, None));
                tracing::info!(
                    key, slot, image = %request.image, layer = %request.layer, %reason,
                    "remote-snapshot-prepared" = "false", "local-snapshot-prepared" = "true", "layer fetched whole"
                );
            }
        }
        Ok(Ok(()))
    }

    /// What a layer's spans were verified against is what its ztoc says. Once all are there, the image's configuration
    /// has a word, too. It comes after readers have read: it is said aloud, and nothing is taken away from them.
    fn compare_when_whole(&self, layer: &Layer, parent: &str, name: &str) {
        let (digest, parent, name) = (*layer.digest(), parent.to_owned(), name.to_owned());
        let counters = self.counters.clone();
        layer.when_whole(move |diff| {
            let agrees = diff.and_then(|diff| chain::agrees(&parent, &name, diff));
            let diff = diff.map(display);
            counters.compared(agrees);
            match agrees {
                Some(true) => {
                    tracing::info!(layer = %digest, diff, "the layer is complete, and is what the image names");
                }
                None => tracing::info!(
                    layer = %digest, diff, name, "the layer is complete; whether it is what the image names cannot be told"
                ),
                Some(false) => tracing::error!(
                    layer = %digest, diff, name, reason = %Reason::OtherContent,
                    "the layer is complete, and is NOT what the image names; its index lies: remove the image"
                ),
            }
        });
    }

    /// Once for each layer that containerd has to do; which it is, where the client has said so.
    fn left(&self, key: &str, request: Option<&LayerRequest>, reason: Reason, why: &str) {
        self.counters.prepared(Prepared::Left(reason));
        self.counters.remember(outcome(key, request, reason, Some(why)));
        let image = request.map(|request| display(&request.image));
        let layer = request.map(|request| display(&request.layer));
        tracing::warn!(
            key, image, layer, %reason, why, "remote-snapshot-prepared" = "false",
            "defer-snapshot-runtime" = "true", "the layer is left to containerd"
        );
    }

    fn release_unused(&self, slot: u32) {
        let standing = lock(&self.placing);
        let layer = standing.is_free(slot).then(|| self.layers.release(slot)).flatten();
        drop(standing);
        if let Some(layer) = layer {
            self.layers.forget(layer);
        }
    }
}

/// A layer that was fetched whole, or left to containerd because of `left`.
fn outcome(key: &str, request: Option<&LayerRequest>, reason: Reason, left: Option<&str>) -> Outcome {
    Outcome {
        time: SystemTime::now(),
        key: key.to_owned(),
        image: request.map(|request| request.image.to_string()),
        layer: request.map(|request| request.layer),
        reason,
        why: left.unwrap_or_default().to_owned(),
        whole: left.is_none(),
    }
}

/// containerd's keys are `<namespace>/<counter>/<name>`; the header may be missing.
fn namespace(key: &str) -> &str {
    key.split_once('/').map_or("default", |(namespace, _)| namespace)
}

/// A snapshotter that is announced with `rebase` is asked for each layer by itself, with what is below it named with the
/// commit. An answer that there is nothing to pull would leave the layers below out.
const PARENTLESS: &str = "it has others below it and comes without a parent; for it to be lazy, `rebase` must not be among \
                          this snapshotter's capabilities in containerd's configuration";

/// containerd's agreed sign that there is nothing to pull.
fn exists(target: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("target snapshot {target:?}: already exists"))
}
