//! Layers in use: opened once each, shown in slots, shown again after a restart, released.
//!
//! A layer is opened by one caller at a time, whoever comes first; the others find it open. Which snapshots
//! stand on a slot is the database's knowledge; this room is told when a slot is free.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use layerfs::{Connection, Engine, Inherited, Layer, Store};
use oci::{Descriptor, Digest, Registry};

use crate::reason::Reason;

/// A ztoc larger than this is refused before it is fetched: windows of a layer of 40 GiB in 4 MiB spans.
const MAX_ZTOC_BYTES: u64 = 384 << 20;

type Gate = Arc<tokio::sync::Mutex<()>>;

/// Why a layer could not be opened.
pub(crate) type Refusal = (Reason, String);

/// All layers of the daemon.
#[derive(Debug)]
pub(crate) struct Layers {
    store: Arc<Store>,
    engine: Arc<Engine>,
    connection: Mutex<Connection>,
    /// Open layers, as long as anything shows them, and the gate in front of opening.
    open: Mutex<HashMap<Digest, (Gate, Weak<Layer>)>>,
    shown: Mutex<HashMap<u32, Arc<Layer>>>,
    fill: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Layers {
    pub(crate) fn new(store: Arc<Store>, engine: Arc<Engine>, connection: Connection, fill: bool) -> Self {
        Self {
            store,
            engine,
            connection: Mutex::new(connection),
            open: Mutex::default(),
            shown: Mutex::default(),
            fill,
        }
    }

    fn gate(&self, layer: &Digest) -> Gate {
        lock(&self.open).entry(*layer).or_default().0.clone()
    }

    fn opened(&self, layer: &Digest) -> Option<Arc<Layer>> {
        let open = lock(&self.open).get(layer).and_then(|(_, layer)| layer.upgrade());
        open.or_else(|| lock(&self.shown).values().find(|shown| shown.digest() == layer).cloned())
    }

    fn note(&self, layer: &Arc<Layer>) {
        let mut open = lock(&self.open);
        open.retain(|_, (gate, layer)| layer.strong_count() > 0 || Arc::strong_count(gate) > 1);
        open.entry(*layer.digest()).or_default().1 = Arc::downgrade(layer);
    }

    /// A layer with the ztoc `ztoc` of its index, from the store or the registry.
    pub(crate) async fn lazy(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        ztoc: &Descriptor,
    ) -> Result<Arc<Layer>, Refusal> {
        let gate = self.gate(&layer.digest);
        let _gate = gate.lock().await;
        let source = registry.blob(&layer.digest, Some(layer.size));
        if let Some(open) = self.opened(&layer.digest) {
            open.add_source(source);
            return Ok(open);
        }
        // Whatever ztoc the store has of this layer serves, the index's or one built here.
        let stored = Layer::stored(&self.store, &self.engine, &layer.digest, None);
        let opened = if let Ok(Some(opened)) = stored {
            opened
        } else {
            if ztoc.size > MAX_ZTOC_BYTES {
                return Err((Reason::ZtocInvalid, format!("ztoc {} has {} bytes", ztoc.digest, ztoc.size)));
            }
            let bytes = registry
                .blob_bytes(ztoc, MAX_ZTOC_BYTES)
                .await
                .map_err(|e| (Reason::of_registry(&e, Reason::ZtocInvalid), e.to_string()))?;
            Layer::create(&self.store, &self.engine, &layer.digest, &ztoc.digest, &bytes)
                .map_err(|e| (Reason::of_layer(&e), e.to_string()))?
        };
        if opened.compressed_size() != layer.size {
            let why = format!("ztoc {} is of a layer of another size than {}", ztoc.digest, layer.digest);
            return Err((Reason::ZtocInvalid, why));
        }
        opened.add_source(source);
        self.note(&opened);
        Ok(opened)
    }

    /// A layer without a ztoc that can be used: whole.
    pub(crate) async fn stream(
        &self,
        registry: &Registry,
        layer: &Descriptor,
        compression: ztoc::Compression,
    ) -> Result<Arc<Layer>, Refusal> {
        let gate = self.gate(&layer.digest);
        let _gate = gate.lock().await;
        let source = registry.blob(&layer.digest, Some(layer.size));
        if let Some(open) = self.opened(&layer.digest) {
            open.add_source(source);
            return Ok(open);
        }
        let stored = Layer::stored(&self.store, &self.engine, &layer.digest, None);
        let opened = match stored {
            Ok(Some(opened)) if opened.compressed_size() == layer.size => opened,
            _ => Layer::stream(&self.store, &self.engine, source.clone(), compression)
                .await
                .map_err(|e| (Reason::of_layer(&e), e.to_string()))?,
        };
        opened.add_source(source);
        self.note(&opened);
        Ok(opened)
    }

    /// Shows a layer over its lower layers and returns its slot.
    pub(crate) fn show(&self, layer: &Layer, inherited: &[Inherited]) -> Result<u32, Refusal> {
        let layer = layer.inheriting(inherited);
        let slot = lock(&self.connection)
            .show(&layer, inherited)
            .map_err(|e| (Reason::of_layer(&e), e.to_string()))?;
        if self.fill {
            layer.start_fill();
        }
        lock(&self.shown).entry(slot).or_insert(layer);
        Ok(slot)
    }

    /// The layer in a slot.
    pub(crate) fn shown(&self, slot: u32) -> Option<Arc<Layer>> {
        lock(&self.shown).get(&slot).cloned()
    }

    /// The folder a slot is seen at. Nobody of ours opens it.
    pub(crate) fn path(&self, slot: u32) -> std::path::PathBuf {
        lock(&self.connection).slot_path(slot)
    }

    /// No snapshot stands on the slot any more. With the last slot of a layer its bytes go, too.
    pub(crate) fn release(&self, slot: u32) {
        if let Err(error) = lock(&self.connection).hide(slot) {
            tracing::warn!(slot, %error, "hide a slot");
        }
        let Some(layer) = lock(&self.shown).remove(&slot) else { return };
        let digest = *layer.digest();
        drop(layer);
        if self.opened(&digest).is_none()
            && let Err(error) = self.store.remove(&digest)
        {
            tracing::warn!(layer = %digest, %error, "remove a layer from the store");
        }
    }

    /// Shows again what an earlier process showed, from the disk alone. `sources`: where the layer of a slot
    /// can be had from; slots that are not among them stand for nothing and go.
    pub(crate) fn restore(&self, sources: &HashMap<u32, Vec<Registry>>) {
        let records = lock(&self.connection).records();
        for record in records {
            let Some(registries) = sources.get(&record.number) else {
                self.release(record.number);
                continue;
            };
            let Some(digest) = record.layer() else { continue };
            let layer = self.opened(&digest).map_or_else(
                || Layer::stored(&self.store, &self.engine, &digest, None),
                |layer| Ok(Some(layer)),
            );
            match layer {
                Ok(Some(layer)) => {
                    for registry in registries {
                        layer.add_source(registry.blob(&digest, Some(layer.compressed_size())));
                    }
                    if let Err((reason, why)) = self.show(&layer, &record.inherited) {
                        tracing::error!(slot = record.number, %reason, %why, "show a layer again");
                    }
                }
                Ok(None) => {
                    tracing::error!(slot = record.number, layer = %digest, "the layer's ztoc is gone");
                }
                Err(error) => tracing::error!(slot = record.number, %error, "open a layer again"),
            }
        }
    }

    /// Leaves the store marked as whole.
    pub(crate) fn close(&self) {
        if let Err(error) = self.store.mark_clean() {
            tracing::warn!(%error, "the next start verifies what is stored");
        }
        if let Err(error) = lock(&self.connection).unmount() {
            tracing::warn!(%error, "the FUSE mount stays");
        }
    }
}
