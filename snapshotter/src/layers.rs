//! Layers in use: opened once each, shown in slots, shown again after a restart, released.
//!
//! A layer is opened by one caller at a time, whoever comes first; the others find it open. It is known by its own
//! digest *and* that of the ztoc it is read by: what one image's ztoc says of a layer is not shown to another image
//! that has another. One that was streamed whole and verified by its own digest serves everybody. Which snapshots
//! stand on a slot is the database's knowledge; this room is told when a slot is free.

pub(crate) mod quarantine;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use index::prefetch::Prefetch;
use layerfs::{Connection, Engine, Family, Inherited, Kind, Layer, LayerId, Name, Store};
use oci::{Descriptor, Patience, Registry, Store as _};
use tokio::sync::Semaphore;

use crate::{
    error::told,
    layers::quarantine::Quarantine,
    reason::Reason,
    snapshots::store::Lazy,
    sync::lock,
    telemetry::per_layer::{self, Durations, Operation},
};

/// A ztoc larger than this is refused before it is fetched: windows of a layer of 40 GiB in 4 MiB spans.
const MAX_ZTOC_BYTES: u64 = 384 << 20;
/// Bytes in a permit: a semaphore counts in 32 bits.
const UNIT: u64 = 1024;
/// A registry that is silent for longer is one whose ztoc we do without: an answer takes less than a second, and one
/// that has to be asked for again comes within a few.
const ZTOC_SILENCE: Duration = Duration::from_secs(10);
/// A ztoc of no size may take so long, and a second more for each so many bytes. On a line slower than that nothing is
/// quick; the layer, some hundred times as long, least of all.
const ZTOC_TOTAL: Duration = Duration::from_secs(60);
const ZTOC_BYTES_A_SECOND: u64 = 256 << 10;
/// As many bytes as the most spans that an artifact may name take.
const MAX_PREFETCH_BYTES: u64 = 16 << 20;
/// How long a stop waits for spans that are being stored: a few on a busy machine.
const FINISH_LIMIT: Duration = Duration::from_secs(2);
/// Layers of one registry that are streamed whole at once.
const STREAMS: usize = 4;
/// Of all registries: each holds a thread, and there are to be some left for calls.
const ALL_STREAMS: usize = 32;
/// Registries, generously; of those that nothing comes from nothing is kept.
const MOST_HOSTS: usize = 256;

const QUARANTINED: Name = Name {
    name: "soci_layers_quarantined",
    kind: Kind::Gauge,
    labels: ["", ""],
    help: "layers that processes crashed on: they are not served until the daemon is started anew",
};

type Gate = Arc<tokio::sync::Mutex<()>>;

/// Why a layer could not be opened.
pub(crate) type Refusal = (Reason, String);

fn another_size(known: &Layer, stated: u64) -> Refusal {
    let (layer, size) = (known.digest(), known.compressed_size());
    (Reason::ZtocInvalid, format!("layer {layer} has {size} bytes, and {stated} in the image's manifest"))
}

fn ztoc_patience(bytes: u64) -> Patience {
    let total = ZTOC_TOTAL + Duration::from_secs(bytes / ZTOC_BYTES_A_SECOND);
    Patience { silence: ZTOC_SILENCE, total }
}

/// From one registry.
#[derive(Debug)]
struct Lane {
    /// Layers that are streamed whole.
    streams: Semaphore,
    /// Bytes of ztocs, in units.
    ztocs: Semaphore,
}

impl Default for Lane {
    fn default() -> Self {
        Self { streams: Semaphore::new(STREAMS), ztocs: Semaphore::new((MAX_ZTOC_BYTES / UNIT) as usize) }
    }
}

/// All layers of the daemon.
#[derive(Debug)]
pub(crate) struct Layers {
    store: Arc<Store>,
    engine: Arc<Engine>,
    /// Of the connection, which never changes.
    mount: PathBuf,
    connection: Mutex<Connection>,
    /// Open layers, as long as anything shows them, and the gate in front of opening and removing.
    open: Mutex<HashMap<LayerId, (Gate, Weak<Layer>)>>,
    shown: Mutex<HashMap<u32, Arc<Layer>>>,
    /// What may be on its way from each registry: one that is slow is waited for by nobody else.
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
    streams: Semaphore,
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
            open: Mutex::default(),
            shown: Mutex::default(),
            lanes: Mutex::default(),
            streams: Semaphore::new(ALL_STREAMS),
            durations: Durations::default(),
            fill,
            quarantine,
        }
    }

    /// Begins to answer the kernel. `lost` is called when the connection is ended and not by us.
    pub(crate) fn serve(&self, lost: impl FnOnce() + Send + 'static) -> Result<(), layerfs::Error> {
        lock(&self.connection).serve(lost)
    }

    fn lane(&self, registry: &Registry) -> Arc<Lane> {
        let origin = registry.name();
        let host = origin.split('/').next().unwrap_or_default();
        let mut lanes = lock(&self.lanes);
        if lanes.len() >= MOST_HOSTS {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        lanes.entry(host.to_owned()).or_default().clone()
    }

    fn gate(&self, id: &LayerId) -> Gate {
        lock(&self.open).entry(*id).or_default().0.clone()
    }

    fn opened(&self, id: &LayerId) -> Option<Arc<Layer>> {
        let open = lock(&self.open).get(id).and_then(|(_, layer)| layer.upgrade());
        open.or_else(|| lock(&self.shown).values().find(|shown| shown.id() == id).cloned())
    }

    fn note(&self, layer: &Arc<Layer>) {
        let mut open = lock(&self.open);
        open.retain(|_, (gate, layer)| layer.strong_count() > 0 || Arc::strong_count(gate) > 1);
        open.entry(*layer.id()).or_default().1 = Arc::downgrade(layer);
    }

    fn check(&self, id: &LayerId) -> Result<(), Refusal> {
        if self.quarantine.holds(id) {
            return Err((Reason::Quarantined, format!("processes crashed on layer {id}")));
        }
        Ok(())
    }

    /// What is open or in the store under `id`. A manifest that gives the layer another size lies: what others read is
    /// not opened anew for it.
    async fn at_hand(&self, id: &LayerId, size: u64) -> Result<Option<Arc<Layer>>, Refusal> {
        let found = match self.opened(id) {
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
        // A ztoc is mapped, checked and made into a tree: milliseconds, or more on a cold disk.
        let stored = tokio::task::spawn_blocking(move || Layer::stored(&store, &engine, &wanted)).await;
        match stored {
            Ok(Ok(layer)) => layer,
            Ok(Err(error)) => {
                tracing::warn!(layer = %id, %error, "what is stored of a layer is not used");
                None
            }
            Err(error) => {
                tracing::error!(layer = %id, %error, "open a stored layer");
                None
            }
        }
    }

    /// A layer with the ztoc `ztoc` of its index, from the store or the registry.
    pub(crate) async fn lazy(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        ztoc: &Descriptor,
    ) -> Result<Arc<Layer>, Refusal> {
        let own = LayerId { layer: layer.digest, ztoc: None };
        self.check(&own).and_then(|()| self.check(&LayerId { ztoc: Some(ztoc.digest), ..own }))?;
        let gate = self.gate(&own);
        let held = gate.lock().await;
        if let Some(opened) = self.at_hand(&own, layer.size).await? {
            return Ok(self.sourced(opened, registry, layer));
        }
        drop(held);
        let id = LayerId { ztoc: Some(ztoc.digest), ..own };
        let gate = self.gate(&id);
        let _held = gate.lock().await;
        if let Some(opened) = self.at_hand(&id, layer.size).await? {
            return Ok(self.sourced(opened, registry, layer));
        }
        let opened = self.fetched(registry, layer, ztoc).await?;
        if opened.compressed_size() != layer.size {
            let refusal = another_size(&opened, layer.size);
            drop(opened);
            // The gate is ours, and nobody has it open.
            if let Err(error) = self.store.remove(&id) {
                tracing::warn!(layer = %id, %error, "remove a layer from the store");
            }
            return Err(refusal);
        }
        Ok(self.sourced(opened, registry, layer))
    }

    async fn fetched(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        ztoc: &Descriptor,
    ) -> Result<Arc<Layer>, Refusal> {
        if ztoc.size > MAX_ZTOC_BYTES {
            return Err((Reason::ZtocInvalid, format!("ztoc {} has {} bytes", ztoc.digest, ztoc.size)));
        }
        let room = u32::try_from(ztoc.size.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let lane = self.lane(registry);
        let _room = lane.ztocs.acquire_many(room).await.map_err(|e| (Reason::Internal, e.to_string()))?;
        let doing = format!("fetch ztoc {}", ztoc.digest);
        let fetch = ztoc_patience(ztoc.size).bound(&doing, registry.blob_bytes(ztoc, MAX_ZTOC_BYTES));
        let began = Instant::now();
        let bytes =
            fetch.await.flatten().map_err(|e| (Reason::of_registry(&e, Reason::ZtocInvalid), told(&e)))?;
        self.durations.note(Operation::ZtocFetch, &layer.digest, began.elapsed());
        let (store, engine) = (self.store.clone(), self.engine.clone());
        let (layer, ztoc) = (layer.digest, ztoc.digest);
        let created =
            tokio::task::spawn_blocking(move || Layer::create(&store, &engine, &layer, &ztoc, &bytes)).await;
        created
            .map_err(|e| (Reason::Internal, e.to_string()))?
            .map_err(|e| (Reason::of_layer(&e), e.to_string()))
    }

    /// A layer without a ztoc that can be used: whole.
    pub(crate) async fn stream(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        compression: ztoc::Compression,
    ) -> Result<Arc<Layer>, Refusal> {
        let own = LayerId { layer: layer.digest, ztoc: None };
        self.check(&own)?;
        let gate = self.gate(&own);
        let _held = gate.lock().await;
        if let Some(opened) = self.at_hand(&own, layer.size).await? {
            return Ok(self.sourced(opened, registry, layer));
        }
        let lane = self.lane(registry);
        let closed = |e: tokio::sync::AcquireError| (Reason::Internal, e.to_string());
        let _turn = lane.streams.acquire().await.map_err(closed)?;
        let _thread = self.streams.acquire().await.map_err(closed)?;
        let blob = registry.blob(&layer.digest, Some(layer.size));
        let origin = registry.name();
        let streamed = Layer::stream(&self.store, &self.engine, &origin, blob, compression).await;
        let streamed = streamed.map_err(|e| (Reason::of_layer(&e), e.to_string()))?;
        Ok(self.sourced(streamed, registry, layer))
    }

    /// Has what the artifact names brought first. Nobody waits for it, and nothing fails without it.
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

    fn sourced(&self, opened: Arc<Layer>, registry: &Registry, layer: &Descriptor) -> Arc<Layer> {
        opened.add_source(&registry.name(), registry.blob(&layer.digest, Some(layer.size)));
        if self.fill {
            opened.start_fill();
        }
        self.note(&opened);
        opened
    }

    /// Shows a layer over its lower layers and returns its slot.
    pub(crate) fn show(&self, layer: &Layer, inherited: &[Inherited]) -> Result<u32, Refusal> {
        let layer = layer.inheriting(inherited);
        let slot = lock(&self.connection)
            .show(&layer, inherited)
            .map_err(|e| (Reason::of_layer(&e), e.to_string()))?;
        self.keep(slot, layer);
        Ok(slot)
    }

    fn keep(&self, slot: u32, layer: Arc<Layer>) {
        self.note(&layer);
        lock(&self.shown).entry(slot).or_insert(layer);
    }

    /// The layer in a slot.
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

    /// The folder a slot is seen at. Nobody of ours opens it.
    pub(crate) fn path(&self, slot: u32) -> PathBuf {
        layerfs::slot_path(&self.mount, slot)
    }

    /// No snapshot stands on the slot any more. What it showed is to be forgotten: with the last slot of a layer its bytes
    /// go, too.
    pub(crate) fn release(&self, slot: u32) -> Option<Arc<Layer>> {
        lock(&self.connection).hide(slot);
        lock(&self.shown).remove(&slot)
    }

    /// No snapshot is of an image from `place` that stands on the layer of this slot.
    pub(crate) fn disown(&self, slot: u32, place: &str) {
        if let Some(layer) = self.shown(slot) {
            layer.remove_source(place);
        }
    }

    /// What is stored of a layer goes, unless somebody else has it open.
    pub(crate) fn forget(&self, layer: Arc<Layer>) {
        let id = *layer.id();
        drop(layer);
        // Who is just opening it has the gate, and keeps what is there.
        let gate = self.gate(&id);
        let Ok(_held) = gate.try_lock() else { return };
        if self.opened(&id).is_none()
            && let Err(error) = self.store.remove(&id)
        {
            tracing::warn!(layer = %id, %error, "remove a layer from the store");
        }
    }

    /// What was forgotten is off the disk when this is back.
    pub(crate) fn cleanup(&self) -> Result<(), layerfs::Error> {
        self.store.sweep()
    }

    /// Shows again what an earlier process showed, from the disk alone. Answers with those whose ztoc is lost.
    pub(crate) fn restore(&self, slots: &HashMap<u32, (Lazy, Vec<Registry>)>) -> Vec<u32> {
        let mut lost = Vec::new();
        let opened = self.open_stored(slots.values().map(|(lazy, _)| lazy.id()).collect());
        for (slot, (lazy, registries)) in slots {
            lock(&self.connection).skip(*slot);
            if self.quarantine.holds(&lazy.id()) {
                tracing::error!(
                    slot, layer = %lazy.layer.digest, reason = %Reason::Quarantined,
                    "the layer is not served: processes crashed on it; a new start of the daemon tries again"
                );
                lock(&self.connection).refuse(*slot);
                continue;
            }
            let Some(layer) = opened.get(&lazy.id()) else {
                lost.push(*slot);
                continue;
            };
            for registry in registries {
                self.sourced(layer.clone(), registry, &lazy.layer);
            }
            self.show_again(*slot, lazy, layer);
        }
        lost
    }

    /// Opens what the store has of these layers, as many at once as there are cores: each is a pass over a ztoc.
    fn open_stored(&self, ids: HashSet<LayerId>) -> HashMap<LayerId, Arc<Layer>> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(ids.len());
        let (left, opened) = (Mutex::new(ids.into_iter()), Mutex::new(HashMap::new()));
        let open = || {
            loop {
                // In a statement of its own: the lock is held for no longer.
                let next = lock(&left).next();
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

    /// Removes what is stored of slots and layers that nothing stands on.
    pub(crate) fn sweep(&self, used: &HashSet<LayerId>) {
        if let Err(error) = lock(&self.connection).forget_unshown() {
            tracing::warn!(%error, "forget slots that nothing stands on");
        }
        if let Err(error) = self.store.retain(used) {
            tracing::warn!(%error, "remove layers that nothing stands on");
        }
    }

    fn show_again(&self, slot: u32, lazy: &Lazy, layer: &Arc<Layer>) {
        let layer = layer.inheriting(&lazy.inherited);
        match lock(&self.connection).show_again(slot, &layer, &lazy.inherited) {
            Ok(()) => {}
            Err(error) => return tracing::error!(slot, %error, "show a layer again"),
        }
        self.keep(slot, layer);
    }

    /// Brings a layer back whose ztoc was lost with the machine's last minutes.
    pub(crate) async fn recover(&self, slot: u32, lazy: &Lazy, registries: &[Registry]) {
        for registry in registries {
            let brought = match (&lazy.ztoc, index::compression_of(&lazy.layer.media_type)) {
                (Some(ztoc), _) => self.lazy(registry, &lazy.layer, ztoc).await,
                (None, Some(compression)) => self.stream(registry, &lazy.layer, compression).await,
                (None, None) => continue,
            };
            match brought {
                Ok(layer) => return self.show_again(slot, lazy, &layer),
                Err((reason, why)) => tracing::error!(slot, %reason, why, "bring a lost layer back"),
            }
        }
        tracing::error!(slot, layer = %lazy.layer.digest, "the layer is lost; remove the image and pull it again");
    }

    /// A line for people.
    pub(crate) fn summary(&self) -> String {
        format!("serving {} layers", lock(&self.shown).len())
    }

    /// Ends the connection, then all writing, and leaves the store marked as whole.
    pub(crate) fn close(&self) {
        if let Err(error) = lock(&self.connection).unmount() {
            tracing::warn!(%error, "the FUSE mount stays");
        }
        lock(&self.shown).clear();
        self.rest();
    }

    /// Ends all writing, and leaves the store marked as whole; what is asked for is served on, and not kept.
    pub(crate) fn rest(&self) {
        self.engine.finish(FINISH_LIMIT);
        if let Err(error) = self.store.close() {
            tracing::warn!(%error, "the next start verifies what is stored");
        }
    }
}
