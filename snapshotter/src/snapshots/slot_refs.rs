//! Which slots of the connection snapshots use, and where their layers come from.
//!
//! The database knows all of this; the counts here spare a pass over it at every removal. One lock is held from showing
//! a layer to recording its snapshot, and from forgetting a snapshot to hiding its layer. In between, a slot that a
//! Prepare is about to use looks unused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use layerfs::{Layer, LayerId};

use crate::{
    error::Error,
    layers::{Layers, shown::ShownLayer},
    reason::NotLazy,
    sync::lock,
};

/// What happened to a layer that was to be shown.
#[derive(Debug)]
pub(crate) enum Placed {
    /// It is shown in this slot, and its snapshot is recorded.
    Slot(u32),
    NotShown(NotLazy),
    NotRecorded(Error),
}

/// Slots by the snapshots that use them; layers that nothing uses any more are hidden and removed.
#[derive(Debug)]
pub(crate) struct SlotRefs {
    layers: Arc<Layers>,
    counts: Mutex<SlotCounts>,
}

impl SlotRefs {
    pub(crate) fn new(layers: Arc<Layers>) -> Self {
        Self { layers, counts: Mutex::default() }
    }

    /// Counts the snapshots of an earlier process: each with its layer and the repository that its image names.
    /// With `has_unreadable`, there are snapshots whose records cannot be read, so no slot is ever free.
    pub(crate) fn restore<'a>(
        &self,
        snapshots: impl Iterator<Item = (&'a ShownLayer, Option<String>)>,
        has_unreadable: bool,
    ) {
        let mut counts = lock(&self.counts);
        counts.has_unreadable = has_unreadable;
        for (shown, repository) in snapshots {
            counts.add(shown.slot, shown.id(), repository.as_deref());
        }
    }

    /// Shows a layer with `show`, which answers with its slot, and records the snapshot that uses the slot with `record`. The
    /// slot is released if that fails.
    pub(crate) fn place(
        &self,
        id: LayerId,
        repository: Option<&str>,
        show: impl FnOnce() -> Result<u32, NotLazy>,
        record: impl FnOnce(u32) -> Result<(), Error>,
    ) -> Placed {
        let mut counts = lock(&self.counts);
        let slot = match show() {
            Ok(slot) => slot,
            Err(not_lazy) => return Placed::NotShown(not_lazy),
        };
        if let Err(error) = record(slot) {
            drop(counts);
            self.release_unused(slot);
            return Placed::NotRecorded(error);
        }
        counts.add(slot, id, repository);
        Placed::Slot(slot)
    }

    /// Removes a snapshot from the database with `remove`, which answers with its layer and the repository that its
    /// image names. What nothing uses any more is hidden and removed.
    pub(crate) fn remove<T>(
        &self,
        remove: impl FnOnce() -> Result<T, Error>,
        layer: impl FnOnce(&T) -> Option<(ShownLayer, Option<String>)>,
    ) -> Result<T, Error> {
        let (removed, unused) = {
            let mut counts = lock(&self.counts);
            let removed = remove()?;
            let unused = layer(&removed).and_then(|(shown, repository)| {
                let released = counts.remove(shown.slot, shown.id(), repository.as_deref());
                if let Some(repository) = repository.filter(|_| released.repository) {
                    self.layers.remove_source(shown.slot, &repository);
                }
                released.slot.then(|| self.layers.release(shown.slot)).flatten()
            });
            (removed, unused)
        };
        self.forget(unused);
        Ok(removed)
    }

    /// Hides the layer of a slot that no snapshot uses.
    pub(crate) fn release_unused(&self, slot: u32) {
        let counts = lock(&self.counts);
        let unused = counts.is_free(slot).then(|| self.layers.release(slot)).flatten();
        drop(counts);
        self.forget(unused);
    }

    fn forget(&self, unused: Option<Arc<Layer>>) {
        if let Some(layer) = unused {
            self.layers.forget(layer);
        }
    }
}

/// Pure: how many snapshots use each slot, and each repository of a layer.
#[derive(Debug, Default)]
struct SlotCounts {
    slots: HashMap<u32, usize>,
    /// By layer, and for each layer by repository (`HOST/REPOSITORY`).
    repositories: HashMap<LayerId, HashMap<String, usize>>,
    has_unreadable: bool,
}

/// What no snapshot uses any more.
#[derive(Debug, Default, PartialEq, Eq)]
struct Released {
    slot: bool,
    /// The layer is no longer needed from this repository, but from others.
    repository: bool,
}

impl SlotCounts {
    fn add(&mut self, slot: u32, layer: LayerId, repository: Option<&str>) {
        *self.slots.entry(slot).or_default() += 1;
        let repositories = self.repositories.entry(layer).or_default();
        if let Some(repository) = repository {
            *repositories.entry(repository.to_owned()).or_default() += 1;
        }
    }

    fn remove(&mut self, slot: u32, layer: LayerId, repository: Option<&str>) -> Released {
        if let Some(count) = self.slots.get_mut(&slot) {
            *count -= 1;
            if *count == 0 {
                self.slots.remove(&slot);
            }
        }
        let mut released = Released { slot: self.is_free(slot), repository: false };
        let Some(repositories) = self.repositories.get_mut(&layer) else { return released };
        if let Some((name, count)) = repository.and_then(|name| Some((name, repositories.get_mut(name)?))) {
            *count -= 1;
            if *count == 0 {
                repositories.remove(name);
                released.repository = !repositories.is_empty();
            }
        }
        if repositories.is_empty() {
            self.repositories.remove(&layer);
        }
        released
    }

    fn is_free(&self, slot: u32) -> bool {
        !self.has_unreadable && !self.slots.contains_key(&slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_snapshot_releases_its_slot_once() {
        let layer = |name: &str| LayerId { layer: oci::Digest::sha256(name.as_bytes()), ztoc: None };
        let mut counts = SlotCounts::default();
        // The same layer over two others, from two repositories; another layer.
        for (slot, name, repository) in
            [(1, "a", Some("x/app")), (2, "a", Some("x/app")), (2, "a", Some("y/app")), (3, "b", None)]
        {
            counts.add(slot, layer(name), repository);
        }
        let mut remove = |slot, name, repository| {
            let released = counts.remove(slot, layer(name), repository);
            (released.slot, released.repository)
        };
        assert_eq!(remove(1, "a", Some("x/app")), (true, false), "slot 2 still needs x/app");
        assert_eq!(remove(2, "a", Some("x/app")), (false, true));
        assert_eq!(remove(2, "a", Some("y/app")), (true, false), "the last repository goes with the layer");
        assert_eq!(remove(3, "b", None), (true, false));
        assert_eq!(remove(3, "b", None), (true, false), "an unknown slot is free");
        assert!(counts.slots.is_empty() && counts.repositories.is_empty());
        counts.has_unreadable = true;
        counts.add(4, layer("a"), None);
        assert_eq!(counts.remove(4, layer("a"), None), Released::default());
    }
}
