//! Restore: after a start, shows the layers again that an earlier process showed.
//!
//! It reads local state only. A layer whose ztoc is lost is fetched again by a task that goes on afterwards.

use std::{collections::HashMap, sync::Arc};

use oci::Registry;

use crate::{
    error::Error,
    images::labels,
    layers::shown::ShownLayer,
    snapshots::{snapshotter::Snapshotter, store::Record},
};

/// By slot: a layer, and the registries that it can be fetched from.
type Slots = HashMap<u32, (ShownLayer, Vec<Registry>)>;

impl Snapshotter {
    /// Shows again what snapshots use.
    ///
    /// # Errors
    /// When the database cannot be read. One damaged record is no error.
    pub(crate) fn restore(self: &Arc<Self>) -> Result<(), Error> {
        let (records, damaged) = self.store.readable()?;
        let slots = self.used_slots(&records, !damaged.is_empty());
        let lost = self.layers.restore(&slots);
        // With a damaged record, it is not known which layers are used.
        if lost.is_empty() && damaged.is_empty() {
            self.layers.sweep(&slots.values().map(|(shown, _)| shown.id()).collect());
        }
        self.recover(lost, slots);
        for record in &records {
            if let Some(layer) = record.shown.as_ref().and_then(|shown| self.layers.shown(shown.slot)) {
                self.compare_when_complete(&layer, &record.parent, &record.name);
            }
        }
        Ok(())
    }

    fn used_slots(&self, records: &[Record], has_damaged: bool) -> Slots {
        let shown = records.iter().filter_map(|record| Some((record, record.shown.as_ref()?)));
        let counted = shown.clone().map(|(record, shown)| (shown, labels::repository(&record.labels)));
        self.slots.restore(counted, has_damaged);
        let mut slots = Slots::new();
        for (record, shown) in shown {
            let (_, registries) = slots.entry(shown.slot).or_insert_with(|| (shown.clone(), Vec::new()));
            let image = labels::image(&record.labels);
            registries.extend(image.and_then(|image| self.images.registry(&image).ok()));
        }
        slots
    }

    /// Fetches the lost layers again, each in a task.
    fn recover(self: &Arc<Self>, lost: Vec<u32>, mut slots: Slots) {
        for slot in lost {
            let Some((shown, registries)) = slots.remove(&slot) else { continue };
            let snapshotter = self.clone();
            tokio::spawn(async move {
                snapshotter.layers.recover(slot, &shown, &registries).await;
                // The last snapshot that uses the slot may have been removed meanwhile.
                snapshotter.slots.release_unused(slot);
            });
        }
    }
}
