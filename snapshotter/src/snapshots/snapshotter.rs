//! The verbs: what containerd asks of a snapshotter. Prepare has a room of its own.
//!
//! Nothing here holds a transaction across anything slow.

use std::{collections::HashMap, path::Path, sync::Arc};

use layerfs::{Family, Layer};
use tracing::field::display;

use crate::{
    error::{Error, ErrorKind},
    images::{chain_id, image_index::Images, labels, opening::Opening, plan::Modes},
    layers::Layers,
    reason::Reason,
    snapshots::{
        dependents, filter,
        folders::{self, Folders},
        idmap,
        lowers::{Lowers, Owner},
        overlay::{self, Mount, Use},
        slot_refs::SlotRefs,
        store::{Commit, Kind, Record, Store},
    },
    telemetry::outcomes::Outcomes,
};

/// The snapshotter behind the gRPC door.
pub(crate) struct Snapshotter {
    pub(super) folders: Folders,
    pub(super) store: Store,
    pub(super) images: Images,
    pub(super) opening: Arc<Opening>,
    pub(super) layers: Arc<Layers>,
    pub(super) modes: Modes,
    pub(super) slots: SlotRefs,
    pub(super) outcomes: Arc<Outcomes>,
    /// Options of every overlay.
    overlay_options: Vec<String>,
}

/// What the configuration says of snapshots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotOptions<'a> {
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
        options: SnapshotOptions<'_>,
    ) -> Result<Self, Error> {
        let home = root.join("snapshotter");
        let (folders, present) = Folders::open(&home.join("snapshots"))?;
        let store = Store::open(&home.join("snapshots.redb"))?;
        present.into_iter().for_each(|id| store.skip_ids(id));
        if let Err(error) = folders.discard_unused(|| store.ids()) {
            tracing::error!(%error, "remove folders of snapshots that are gone");
        }
        let overlay_options = overlay::options(options.mount_options, &home);
        let (slots, modes) = (SlotRefs::new(layers.clone()), options.modes);
        let outcomes = Arc::default();
        Ok(Self { folders, store, images, opening, layers, modes, slots, outcomes, overlay_options })
    }

    pub(crate) fn layers(&self) -> &Layers {
        &self.layers
    }

    pub(crate) fn outcomes(&self) -> &Outcomes {
        &self.outcomes
    }

    /// The metrics of the snapshotter and its layers.
    pub(crate) fn metrics(&self) -> Vec<Family> {
        [self.outcomes.families(), self.layers.metrics()].concat()
    }

    /// Unmounts: the last thing a daemon does.
    pub(crate) fn close(&self) {
        self.layers.close();
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
        self.store.commit(key, name, Commit { parent, labels, usage, shown: None }).map(drop)
    }

    /// Removes a snapshot. Its layer's bytes go with the last snapshot that uses them.
    pub(crate) fn remove(&self, key: &str) -> Result<(), Error> {
        let layer = |record: &Record| Some((record.shown.clone()?, labels::repository(&record.labels)));
        let record = self.slots.remove(|| self.store.remove(key), layer)?;
        self.folders.discard(record.id);
        Ok(())
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
        match (record.kind, &record.shown) {
            (Kind::Active, _) => {
                folders::disk_usage(&self.folders.files(record.id)).map_err(|e| Error::internal(doing(), e))
            }
            (_, Some(shown)) => match self.layers.shown(shown.slot) {
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

    /// Keys of the active and view snapshots with a shown layer below them, in order.
    pub(crate) fn dependents(&self) -> Result<Vec<String>, Error> {
        Ok(dependents::keys(&self.store.all()?))
    }

    /// Makes the folder first, then the record: a record always has its folder.
    pub(super) fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Record, Error> {
        let owner: Option<Owner> = match idmap::root(&labels)? {
            Some(root) => Some(root),
            None => self.lowers(parent)?.root_owner()?,
        };
        let id = self.store.new_id();
        let failed = |e| Error::internal(format!("make folders of snapshot {key:?}"), e);
        let making = self.folders.make(id, kind, owner).map_err(failed)?;
        let record = self.store.create(id, kind, key, parent, labels);
        drop(making);
        if record.is_err() {
            self.folders.discard(id);
        }
        record
    }

    /// The snapshot `parent` and what lies below it.
    pub(super) fn lowers(&self, parent: &str) -> Result<Lowers, Error> {
        Ok(Lowers::new(self.store.chain(parent, usize::MAX)?, &self.layers, &self.folders))
    }

    pub(super) fn mounts_of(&self, record: &Record) -> Result<Vec<Mount>, Error> {
        let lowers = self.lowers(&record.parent)?;
        let mapping = match idmap::root(&record.labels) {
            Ok(Some(root)) if root != (0, 0) && lowers.unpacked_root_owner()? == Some(root) => Vec::new(),
            _ => idmap::options(&record.labels),
        };
        let purpose = if record.kind == Kind::View { Use::Look } else { Use::Write };
        let own = self.folders.of(record.id);
        Ok(overlay::mounts(&own, purpose, &lowers.paths(), mapping, &self.overlay_options))
    }

    /// Compares a layer with the image's configuration once all its bytes are there. Its spans were verified against its
    /// ztoc before any of them was read. This last comparison comes after reads, so it is reported, and nothing is taken
    /// away from readers.
    pub(super) fn compare_when_complete(&self, layer: &Layer, parent: &str, name: &str) {
        let (digest, parent, name) = (*layer.digest(), parent.to_owned(), name.to_owned());
        let outcomes = self.outcomes.clone();
        // After a restart, layers that were compared before are no news.
        let was_complete = layer.whole().is_some();
        layer.when_whole(move |diff_id| {
            let agrees = diff_id.and_then(|diff_id| chain_id::agrees(&parent, &name, diff_id));
            let diff_id = diff_id.map(display);
            outcomes.compared(agrees);
            match agrees {
                Some(true) if was_complete => {
                    tracing::debug!(layer = %digest, diff = diff_id, "the layer is complete and matches the image");
                }
                Some(true) => {
                    tracing::info!(layer = %digest, diff = diff_id, "the layer is complete and matches the image");
                }
                None if diff_id.is_none() => tracing::info!(
                    layer = %digest, name,
                    "the layer's diff ID could not be computed; it is not compared with the image"
                ),
                None => tracing::info!(
                    layer = %digest, diff = diff_id, name,
                    "the layer is complete; the snapshot's name does not tell whether it matches the image"
                ),
                Some(false) => tracing::error!(
                    layer = %digest, diff = diff_id, name, reason = %Reason::OtherContent,
                    "layer content does not match the image's diff ID: its SOCI index is wrong; remove the image"
                ),
            }
        });
    }
}
