//! Prepare: the one place that decides what happens to a layer of an image.
//!
//! The labels are parsed once. Then the snapshot is recorded, the layer is opened, shown in a slot and committed, and
//! containerd hears that there is nothing to pull. A layer that cannot be lazy is never an error: it is streamed into
//! the store, or left to containerd, with a reason that is logged once. No transaction is open meanwhile.

use std::{
    collections::HashMap,
    time::{Instant, SystemTime},
};

use tokio::task::block_in_place;

use crate::{
    error::{Error, ErrorKind},
    images::{
        chain_id,
        image_index::Image,
        labels::{self, LayerRequest, PrepareRequest},
        opening::Opened,
        plan::{self, FromLabels},
    },
    layers::shown::ShownLayer,
    reason::{NotLazy, Reason},
    snapshots::{
        overlay::{self, Mount},
        slot_refs::Placed,
        snapshotter::Snapshotter,
        store::{Commit, Kind, Record},
    },
    telemetry::{
        outcomes::{NotLazyLayer, PrepareOutcome},
        per_layer::Operation,
    },
};

/// How the daemon learned which layer a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LayerSource {
    /// The client's labels name it.
    Labels,
    /// `images::search` found it by the snapshot's name.
    ChainId,
}

/// What happened to the layer of a Prepare.
#[derive(Debug)]
enum Prepared {
    /// It is shown, and its snapshot is committed.
    Shown,
    /// Its snapshot was there before.
    AlreadyThere,
    /// containerd has to fetch and unpack it.
    Left(NotLazy),
}

impl Snapshotter {
    /// Makes the active snapshot `key`, or shows the layer that the labels ask for.
    ///
    /// # Errors
    /// `AlreadyExists` for a layer that is shown now: containerd's agreed sign that there is nothing to pull.
    pub(crate) async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Error> {
        let request = PrepareRequest::parse(&labels);
        // Database and folders are on a disk: other requests are served meanwhile.
        let record = block_in_place(|| self.create(Kind::Active, key, parent, labels))?;
        let (layer, source) = match plan::from_labels(request.clone(), self.modes) {
            FromLabels::Writable => {
                self.outcomes.prepared(PrepareOutcome::Plain);
                return block_in_place(|| self.mounts_of(&record));
            }
            FromLabels::Leave(not_lazy) => return self.leave(&record, request, None, not_lazy).await,
            FromLabels::Search(target) => match self.images.layer(namespace(key), &target).await {
                Ok(layer) => (layer, LayerSource::ChainId),
                Err(not_lazy) => return self.leave(&record, request, None, not_lazy).await,
            },
            FromLabels::Try(layer) => (*layer, LayerSource::Labels),
        };
        match self.prepare_layer(&record, &layer, source).await {
            Ok(Prepared::Shown | Prepared::AlreadyThere) => Err(already_exists(&layer.target)),
            Ok(Prepared::Left(not_lazy)) => self.leave(&record, request, Some(&layer), not_lazy).await,
            Err(error) => {
                block_in_place(|| self.abandon(&record));
                Err(error)
            }
        }
    }

    async fn prepare_layer(
        &self,
        record: &Record,
        layer: &LayerRequest,
        source: LayerSource,
    ) -> Result<Prepared, Error> {
        if let Some(existing) = block_in_place(|| self.existing(record, layer))? {
            return Ok(existing);
        }
        let began = Instant::now();
        let namespace = namespace(&record.name);
        let image = match source {
            LayerSource::Labels => self.images.image(namespace, layer).await,
            LayerSource::ChainId => self.images.guessed(namespace, layer).await,
        };
        let image = match image {
            Ok(image) => image,
            Err(not_lazy) => return Ok(Prepared::Left(not_lazy)),
        };
        if record.parent.is_empty() && !is_lowest(&image, layer) {
            return Ok(Prepared::Left(NotLazy::new(Reason::NoParent, WITHOUT_PARENT)));
        }
        let opened = match self.opening.open(&image, &layer.layer).await {
            Ok(opened) => opened,
            Err(not_lazy) => return Ok(Prepared::Left(not_lazy)),
        };
        let (open, reason) = (opened.layer.clone(), opened.reason);
        block_in_place(|| {
            let prepared = self.show(record, layer, opened);
            if !matches!(prepared, Ok(Prepared::Shown)) {
                self.layers.forget(open);
            } else if reason.is_none() {
                self.layers.durations().note(Operation::Mount, &layer.layer, began.elapsed());
            }
            prepared
        })
    }

    /// What there is to say if the target snapshot exists. containerd takes it only over the same parent. Over another
    /// one (a lower layer that another namespace has under another name), containerd has to make its own.
    fn existing(&self, record: &Record, layer: &LayerRequest) -> Result<Option<Prepared>, Error> {
        match self.store.get(&layer.target) {
            Ok(target) if target.kind == Kind::Committed && target.parent == record.parent => {
                self.abandon(record);
                Ok(Some(Prepared::AlreadyThere))
            }
            Ok(_) => {
                let detail = format!("snapshot {} exists over another parent", layer.target);
                Ok(Some(Prepared::Left(NotLazy::new(Reason::OtherParent, detail))))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Shows an opened layer over the layers below and commits its snapshot.
    fn show(&self, record: &Record, layer: &LayerRequest, opened: Opened) -> Result<Prepared, Error> {
        let inherited = match self.lowers(&record.parent)?.inherited(&opened.layer) {
            Ok(inherited) => inherited,
            Err(not_lazy) => return Ok(Prepared::Left(not_lazy)),
        };
        let diff_id = opened.layer.whole();
        let agrees = diff_id.and_then(|diff_id| chain_id::agrees(&record.parent, &layer.target, &diff_id));
        if agrees == Some(false) {
            let detail = format!("its uncompressed bytes do not make the snapshot {}", layer.target);
            return Ok(Prepared::Left(NotLazy::new(Reason::OtherContent, detail)));
        }
        let Opened { layer: open, descriptor, ztoc, reason } = opened;
        let labels = layer.recorded(&record.labels, reason != Some(Reason::NoIndex));
        let repository = labels::repository(&labels);
        let show = || self.layers.show(&open, &inherited);
        let commit = |slot| {
            let shown = ShownLayer { slot, layer: descriptor, ztoc, inherited: inherited.clone() };
            let commit = Commit { labels, shown: Some(shown), ..Commit::default() };
            self.store.commit(&record.name, &layer.target, commit).map(drop)
        };
        let slot = match self.slots.place(*open.id(), repository.as_deref(), show, commit) {
            Placed::Slot(slot) => slot,
            Placed::NotShown(not_lazy) => return Ok(Prepared::Left(not_lazy)),
            // Another Prepare may have committed the target first.
            Placed::NotRecorded(error) if error.kind() == ErrorKind::AlreadyExists => {
                return self.existing(record, layer)?.ok_or(error);
            }
            Placed::NotRecorded(error) => return Err(error),
        };
        self.compare_when_complete(&open, &record.parent, &layer.target);
        self.report_shown(&record.name, layer, slot, reason);
        Ok(Prepared::Shown)
    }

    fn report_shown(&self, key: &str, layer: &LayerRequest, slot: u32, reason: Option<Reason>) {
        let Some(reason) = reason else {
            self.outcomes.prepared(PrepareOutcome::Lazy);
            tracing::info!(key, slot, layer = %layer.layer, "remote-snapshot-prepared" = "true", "layer shown");
            return;
        };
        self.outcomes.prepared(PrepareOutcome::Whole(reason));
        self.outcomes.remember(not_lazy_layer(key, Some(layer), reason, None));
        tracing::info!(
            key, slot, image = %layer.image, layer = %layer.layer, %reason,
            "remote-snapshot-prepared" = "false", "local-snapshot-prepared" = "true", "layer fetched whole"
        );
    }

    /// Reports a layer that is left to containerd, and answers with the mounts to unpack it into.
    async fn leave(
        &self,
        record: &Record,
        request: PrepareRequest,
        layer: Option<&LayerRequest>,
        NotLazy { reason, detail }: NotLazy,
    ) -> Result<Vec<Mount>, Error> {
        self.outcomes.prepared(PrepareOutcome::Left(reason));
        self.outcomes.remember(not_lazy_layer(&record.name, layer, reason, Some(&detail)));
        tracing::warn!(
            key = record.name,
            image = layer.map(|layer| display(&layer.image)),
            layer = layer.map(|layer| display(&layer.layer)),
            %reason, why = detail, "remote-snapshot-prepared" = "false",
            "defer-snapshot-runtime" = "true", "the layer is left to containerd"
        );
        let lacks_parent = reason == Reason::NoParent
            || (record.parent.is_empty() && self.images.is_above(namespace(&record.name), request).await);
        if lacks_parent {
            return Ok(overlay::rebased(&self.folders.of(record.id)));
        }
        block_in_place(|| self.mounts_of(record))
    }

    /// Takes back an active snapshot that containerd was not told of.
    fn abandon(&self, record: &Record) {
        match self.store.remove(&record.name) {
            Ok(removed) => self.folders.discard(removed.id),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(key = record.name, %error, "take back a snapshot"),
        }
    }
}

fn is_lowest(image: &Image, layer: &LayerRequest) -> bool {
    image.contents.layers.first().is_none_or(|lowest| lowest.digest == layer.layer)
}

/// A layer that was fetched whole, or left to containerd because of `left`.
fn not_lazy_layer(
    key: &str,
    layer: Option<&LayerRequest>,
    reason: Reason,
    left: Option<&str>,
) -> NotLazyLayer {
    NotLazyLayer {
        time: SystemTime::now(),
        key: key.to_owned(),
        image: layer.map(|layer| layer.image.to_string()),
        layer: layer.map(|layer| layer.layer),
        reason,
        detail: left.unwrap_or_default().to_owned(),
        whole: left.is_none(),
    }
}

/// containerd's keys are `<namespace>/<counter>/<name>`; the namespace may be missing.
fn namespace(key: &str) -> &str {
    key.split_once('/').map_or("default", |(namespace, _)| namespace)
}

/// With the capability `rebase`, containerd prepares each layer by itself and names the layers below it with the commit.
/// An answer that there is nothing to pull would leave the layers below out.
const WITHOUT_PARENT: &str = "it has others below it and comes without a parent; for it to be lazy, remove `rebase` from this \
                              snapshotter's capabilities in containerd's configuration";

fn already_exists(target: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("target snapshot {target:?}: already exists"))
}
