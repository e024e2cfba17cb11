//! Layers in use: opened once each, shown in slots, shown again after a restart, released.
//!
//! One task at a time opens a layer; the others wait and find it open. A layer is known by its own digest *and* the
//! digest of the ztoc it is read by, so one image's ztoc never describes the layer to another image. A layer that was
//! streamed whole and verified by its own digest serves every image. The database knows which snapshots use a slot;
//! `snapshots::slot_refs` tells this room when a slot is free.

pub(crate) mod fetch_limits;
pub(crate) mod open_layers;
pub(crate) mod shown;
pub(crate) mod stoppable;
pub(crate) mod quarantine;

use std::{
    collections::{HashMap, HashSet},
    error,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use index::prefetch::Prefetch;
use layerfs::{Connection, Engine, Family, Inherited, Kind, Layer, LayerId, Name, Store};
use oci::{Descriptor, Registry, Store as _};

use crate::{
    layers::{
        fetch_limits::{FetchLimits, MAX_ZTOC_BYTES, ztoc_patience},
        open_layers::OpenLayers,
        quarantine::Quarantine,
        shown::ShownLayer,
        stoppable::{Stop, StoppableBlob, never},
    },
    reason::{NotLazy, Reason},
    sync::lock,
    telemetry::per_layer::{self, Durations, Operation},
};

/// The size of a prefetch artifact that names as many spans as an artifact may.
const MAX_PREFETCH_BYTES: u64 = 16 << 20;
/// How long a stop waits for spans that are being stored: a few on a busy machine.
const FINISH_LIMIT: Duration = Duration::from_secs(2);

const QUARANTINED: Name = Name {
    name: "soci_layers_quarantined",
    kind: Kind::Gauge,
    labels: ["", ""],
    help: "layers that workers crashed on: they are not served until the daemon is restarted or upgraded",
};

fn another_size(known: &Layer, stated: u64) -> NotLazy {
    let (layer, size) = (known.digest(), known.compressed_size());
    let detail = format!("layer {layer} has {size} bytes, but the image's manifest says {stated}");
    NotLazy::new(Reason::ZtocInvalid, detail)
}

/// All layers of the daemon.
#[derive(Debug)]
pub(crate) struct Layers {
    store: Arc<Store>,
    engine: Arc<Engine>,
    /// Of the connection, which never changes.
    mount: PathBuf,
    connection: Mutex<Connection>,
    open: OpenLayers,
    /// Layers to be removed once nothing has them open.
    unused: Mutex<HashSet<LayerId>>,
    /// By slot.
    shown: Mutex<HashMap<u32, Arc<Layer>>>,
    limits: FetchLimits,
    durations: Durations,
    fill: bool,
    quarantine: Quarantine,
}

impl Layers {
    pub(crate) fn new(
        store: Arc<Store>,
        engine: Arc<Engine>,
        connection: Connection,
        fill: bool,
        quarantine: Quarantine,
    ) -> Self {
        Self {
            store,
            engine,
            mount: connection.mounted().path().to_owned(),
            connection: Mutex::new(connection),
            open: OpenLayers::default(),
            unused: Mutex::default(),
            shown: Mutex::default(),
            limits: FetchLimits::default(),
            durations: Durations::default(),
            fill,
            quarantine,
        }
    }

    /// Begins to answer the kernel. `lost` is called when the connection ends and the worker has not unmounted.
    pub(crate) fn serve(&self, lost: impl FnOnce() + Send + 'static) -> Result<(), layerfs::Error> {
        lock(&self.connection).serve(lost)
    }

    fn check(&self, id: &LayerId) -> Result<(), NotLazy> {
        if self.quarantine.holds(id) {
            return Err(NotLazy::new(Reason::Quarantined, format!("workers crashed on layer {id}")));
        }
        Ok(())
    }

    /// The layer if it is open or stored under `id`. A manifest that gives the layer another size is wrong, and other
    /// readers of the layer must not notice it.
    async fn open_or_stored(&self, id: &LayerId, size: u64) -> Result<Option<Arc<Layer>>, NotLazy> {
        let found = match self.open.get(id) {
            Some(open) => Some(open),
            None => self.stored(id).await,
        };
        match found {
            Some(layer) if layer.compressed_size() != size => Err(another_size(&layer, size)),
            found => Ok(found),
        }
    }

    async fn stored(&self, id: &LayerId) -> Option<Arc<Layer>> {
        let (store, engine, wanted) = (self.store.clone(), self.engine.clone(), *id);
        // The ztoc is mapped, checked and made into a tree. That takes milliseconds, or more on a cold disk.
        let stored = tokio::task::spawn_blocking(move || Layer::stored(&store, &engine, &wanted)).await;
        match stored {
            Ok(Ok(layer)) => layer,
            Ok(Err(error)) => {
                tracing::warn!(layer = %id, %error, "a stored layer cannot be used; it is fetched again");
                None
            }
            Err(error) => {
                tracing::error!(layer = %id, %error, "open a stored layer");
                None
            }
        }
    }

    /// A layer with the ztoc that its index names, from the store or the registry.
    pub(crate) async fn lazy(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        ztoc: &Descriptor,
    ) -> Result<Arc<Layer>, NotLazy> {
        let own = LayerId { layer: layer.digest, ztoc: None };
        self.check(&own).and_then(|()| self.check(&LayerId { ztoc: Some(ztoc.digest), ..own }))?;
        let gate = self.open.gate(&own);
        let held = gate.lock().await;
        if let Some(opened) = self.open_or_stored(&own, layer.size).await? {
            return Ok(self.with_source(opened, registry, layer));
        }
        drop(held);
        let id = LayerId { ztoc: Some(ztoc.digest), ..own };
        let gate = self.open.gate(&id);
        let _held = gate.lock().await;
        if let Some(opened) = self.open_or_stored(&id, layer.size).await? {
            return Ok(self.with_source(opened, registry, layer));
        }
        let opened = self.fetched(registry, layer, ztoc).await?;
        if opened.compressed_size() != layer.size {
            let refusal = another_size(&opened, layer.size);
            drop(opened);
            // This task holds the gate, and has dropped the only open value.
            if let Err(error) = self.store.remove(&id) {
                tracing::warn!(layer = %id, %error, "remove a layer from the store");
            }
            return Err(refusal);
        }
        Ok(self.with_source(opened, registry, layer))
    }

    async fn fetched(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        ztoc: &Descriptor,
    ) -> Result<Arc<Layer>, NotLazy> {
        if ztoc.size > MAX_ZTOC_BYTES {
            let detail = format!("ztoc {} has {} bytes, more than {MAX_ZTOC_BYTES}", ztoc.digest, ztoc.size);
            return Err(NotLazy::new(Reason::ZtocInvalid, detail));
        }
        let _room = self.limits.ztoc(registry, ztoc.size).await.map_err(|e| NotLazy::internal(&e))?;
        let doing = format!("fetch ztoc {}", ztoc.digest);
        let fetch = ztoc_patience(ztoc.size).bound(&doing, registry.blob_bytes(ztoc, MAX_ZTOC_BYTES));
        let began = Instant::now();
        let bytes = fetch.await.flatten().map_err(|e| NotLazy::of_registry(&e, Reason::ZtocInvalid))?;
        self.durations.note(Operation::ZtocFetch, &layer.digest, began.elapsed());
        let (store, engine) = (self.store.clone(), self.engine.clone());
        let (layer, ztoc) = (layer.digest, ztoc.digest);
        let create = move || Layer::create(&store, &engine, &layer, &ztoc, &bytes);
        let created = tokio::task::spawn_blocking(create).await.map_err(|e| NotLazy::internal(&e))?;
        created.map_err(|e| NotLazy::of_layer(&e))
    }

    /// A layer without a usable ztoc, streamed whole, unless it is stopped before.
    pub(crate) async fn stream(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        compression: ztoc::Compression,
        stop: Stop,
    ) -> Result<Arc<Layer>, NotLazy> {
        let own = LayerId { layer: layer.digest, ztoc: None };
        self.check(&own)?;
        let gate = self.open.gate(&own);
        let _held = gate.lock().await;
        if let Some(opened) = self.open_or_stored(&own, layer.size).await? {
            return Ok(self.with_source(opened, registry, layer));
        }
        let _room = self.limits.stream(registry).await.map_err(|e| NotLazy::internal(&e))?;
        let blob = StoppableBlob::new(registry.blob(&layer.digest, Some(layer.size)), stop);
        let origin = registry.name();
        let streamed = Layer::stream(&self.store, &self.engine, &origin, blob, compression).await;
        let streamed = streamed.map_err(|e| match error::Error::source(&e) {
            // The builder could not read the bytes: they are damaged, or not what the media type says.
            Some(cause) if cause.is::<ztoc::Error>() => NotLazy::new(Reason::UnsupportedLayer, e.to_string()),
            _ => NotLazy::of_layer(&e),
        })?;
        Ok(self.with_source(streamed, registry, layer))
    }

    /// Fetches the spans first that the artifact names. Nothing waits for them, and nothing fails without the artifact.
    pub(crate) async fn replay(&self, registry: &Registry, layer: &Layer, artifact: &Descriptor) {
        let read = async {
            let bytes = registry.blob_bytes(artifact, MAX_PREFETCH_BYTES).await.map_err(|e| e.to_string())?;
            Prefetch::parse(&bytes).map_err(|e| e.to_string())
        };
        match read.await {
            Ok(prefetch) => {
                let of = |run: &index::prefetch::Spans| {
                    Some(u32::try_from(run.start).ok()?..=u32::try_from(run.end).ok()?)
                };
                let mut runs = prefetch.spans.clone();
                runs.sort_by_key(|run| run.priority);
                let wanted: Vec<_> = runs.iter().filter_map(of).collect();
                let spans: u64 =
                    wanted.iter().map(|run| u64::from(run.end() - run.start().min(run.end())) + 1).sum();
                layer.want(wanted);
                tracing::info!(
                    layer = %layer.digest(), digest = %artifact.digest, spans,
                    "Successfully loaded prefetch artifact"
                );
            }
            Err(error) => {
                tracing::warn!(layer = %layer.digest(), digest = %artifact.digest, error, "no prefetch");
            }
        }
    }

    fn with_source(&self, opened: Arc<Layer>, registry: &Registry, layer: &Descriptor) -> Arc<Layer> {
        opened.add_source(&registry.name(), registry.blob(&layer.digest, Some(layer.size)));
        if self.fill {
            opened.start_fill();
        }
        self.open.add(opened.id(), &opened);
        opened
    }

    /// Shows a layer over its lower layers and returns its slot.
    pub(crate) fn show(&self, layer: &Layer, inherited: &[Inherited]) -> Result<u32, NotLazy> {
        let layer = layer.inheriting(inherited);
        let slot = lock(&self.connection).show(&layer, inherited).map_err(|e| NotLazy::of_layer(&e))?;
        self.set_shown(slot, layer);
        Ok(slot)
    }

    fn set_shown(&self, slot: u32, layer: Arc<Layer>) {
        self.open.add(layer.id(), &layer);
        lock(&self.shown).entry(slot).or_insert(layer);
    }

    /// The layer in a slot, if it is served.
    pub(crate) fn shown(&self, slot: u32) -> Option<Arc<Layer>> {
        lock(&self.shown).get(&slot).cloned()
    }

    pub(crate) fn metrics(&self) -> Vec<Family> {
        let shown: Vec<_> = lock(&self.shown).iter().map(|(slot, layer)| (*slot, layer.clone())).collect();
        let mut shown: Vec<_> = shown.into_iter().map(|(slot, layer)| (self.path(slot), layer)).collect();
        shown.sort_by(|(one, _), (other, _)| one.cmp(other));
        let connection = lock(&self.connection).metrics();
        let quarantined = Family::one(QUARANTINED, self.quarantine.len() as u64);
        let per_layer = per_layer::families(&shown, &self.durations);
        [self.engine.metrics(&self.store), connection, vec![quarantined], per_layer].concat()
    }

    pub(crate) fn durations(&self) -> &Durations {
        &self.durations
    }

    /// The folder at which a slot is seen. The daemon itself must never open it: it would wait for itself.
    pub(crate) fn path(&self, slot: u32) -> PathBuf {
        layerfs::slot_path(&self.mount, slot)
    }

    /// Hides the layer of a slot that no snapshot uses any more. The caller passes it to [`Layers::forget`].
    pub(crate) fn release(&self, slot: u32) -> Option<Arc<Layer>> {
        lock(&self.connection).hide(slot);
        lock(&self.shown).remove(&slot)
    }

    /// The layer of this slot is no longer needed from `repository`, which is `HOST/REPOSITORY`.
    pub(crate) fn remove_source(&self, slot: u32, repository: &str) {
        if let Some(layer) = self.shown(slot) {
            layer.remove_source(repository);
        }
    }

    /// Removes what is stored of a layer. While something still has it open it stays, and the next removal or
    /// cleanup tries again.
    pub(crate) fn forget(&self, layer: Arc<Layer>) {
        let id = *layer.id();
        drop(layer);
        lock(&self.unused).insert(id);
        self.remove_unused();
    }

    fn remove_unused(&self) {
        let unused: Vec<_> = lock(&self.unused).iter().copied().collect();
        for id in unused {
            // A task that is opening the layer holds the gate, and keeps what is stored.
            let gate = self.open.gate(&id);
            let Ok(_held) = gate.try_lock() else { continue };
            if self.open.get(&id).is_some() {
                continue;
            }
            lock(&self.unused).remove(&id);
            if let Err(error) = self.store.remove(&id) {
                tracing::warn!(layer = %id, %error, "remove a layer from the store");
            }
        }
    }

    /// Removes what snapshots no longer use. When this returns, it is off the disk.
    pub(crate) fn cleanup(&self) -> Result<(), layerfs::Error> {
        self.remove_unused();
        self.store.sweep()
    }

    /// Shows again what an earlier process showed, from the disk alone. Answers with the slots whose ztoc is lost.
    pub(crate) fn restore(&self, slots: &HashMap<u32, (ShownLayer, Vec<Registry>)>) -> Vec<u32> {
        let mut lost = Vec::new();
        let opened = self.open_stored(slots.values().map(|(shown, _)| shown.id()).collect());
        for (slot, (shown, registries)) in slots {
            lock(&self.connection).skip(*slot);
            if self.quarantine.holds(&shown.id()) {
                tracing::error!(
                    slot, layer = %shown.layer.digest, reason = %Reason::Quarantined,
                    "the layer is not served because workers crashed on it; restart or upgrade the daemon to try it again"
                );
                lock(&self.connection).refuse(*slot);
                continue;
            }
            let Some(layer) = opened.get(&shown.id()) else {
                lost.push(*slot);
                continue;
            };
            for registry in registries {
                self.with_source(layer.clone(), registry, &shown.layer);
            }
            self.show_again(*slot, shown, layer);
        }
        lost
    }

    /// Opens those of these layers that are stored, as many at once as there are cores: each is a pass over a ztoc.
    fn open_stored(&self, ids: HashSet<LayerId>) -> HashMap<LayerId, Arc<Layer>> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(ids.len());
        let (waiting, opened) = (Mutex::new(ids.into_iter()), Mutex::new(HashMap::new()));
        let open = || {
            loop {
                // A statement of its own, so that the lock is held for this line only.
                let next = lock(&waiting).next();
                let Some(id) = next else { return };
                if self.quarantine.holds(&id) {
                    continue;
                }
                match Layer::stored(&self.store, &self.engine, &id) {
                    Ok(Some(layer)) => drop(lock(&opened).insert(id, layer)),
                    Ok(None) => {}
                    Err(error) => tracing::error!(layer = %id, %error, "open a layer again"),
                }
            }
        };
        thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(open))));
        opened.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes slots and layers that no snapshot uses.
    pub(crate) fn sweep(&self, used: &HashSet<LayerId>) {
        if let Err(error) = lock(&self.connection).forget_unshown() {
            tracing::warn!(%error, "forget slots that no snapshot uses");
        }
        if let Err(error) = self.store.retain(used) {
            tracing::warn!(%error, "remove layers that no snapshot uses");
        }
    }

    fn show_again(&self, slot: u32, shown: &ShownLayer, layer: &Arc<Layer>) {
        let layer = layer.inheriting(&shown.inherited);
        match lock(&self.connection).show_again(slot, &layer, &shown.inherited) {
            Ok(()) => {}
            Err(error) => return tracing::error!(slot, %error, "show a layer again"),
        }
        self.set_shown(slot, layer);
    }

    /// Fetches a layer again whose ztoc was lost when the machine crashed.
    pub(crate) async fn recover(&self, slot: u32, shown: &ShownLayer, registries: &[Registry]) {
        for registry in registries {
            let opened = match (&shown.ztoc, index::compression_of(&shown.layer.media_type)) {
                (Some(ztoc), _) => self.lazy(registry, &shown.layer, ztoc).await,
                (None, Some(compression)) => self.stream(registry, &shown.layer, compression, never()).await,
                (None, None) => continue,
            };
            match opened {
                Ok(layer) => return self.show_again(slot, shown, &layer),
                Err(NotLazy { reason, detail }) => {
                    tracing::error!(slot, %reason, why = detail, "fetch a lost layer again");
                }
            }
        }
        tracing::error!(slot, layer = %shown.layer.digest, "the layer is lost; remove the image and pull it again");
    }

    /// A status line.
    pub(crate) fn summary(&self) -> String {
        format!("serving {} layers", lock(&self.shown).len())
    }

    /// Unmounts, ends all writing, and marks the store as complete.
    pub(crate) fn close(&self) {
        if let Err(error) = lock(&self.connection).unmount() {
            tracing::warn!(%error, "the FUSE mount stays");
        }
        lock(&self.shown).clear();
        self.stop_writing();
    }

    /// Ends all writing, and marks the store as complete. Reads are still served, and what they fetch is not stored.
    pub(crate) fn stop_writing(&self) {
        self.engine.finish(FINISH_LIMIT);
        if let Err(error) = self.store.close() {
            tracing::warn!(%error, "the next start verifies what is stored");
        }
    }
}
