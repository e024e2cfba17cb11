//! The status: which layers are shown, and which snapshots use them.
//!
//! Each request puts it together from the database and the layers in memory. No file is opened for it.

use std::collections::{BTreeSet, HashMap};

use layerfs::LayerStatus;
use oci::Digest;

use crate::{
    error::Error,
    images::{chain_id, labels},
    layers::shown::ShownLayer,
    reason::Reason,
    snapshots::{dependents, snapshotter::Snapshotter, store::Record},
    telemetry::outcomes::NotLazyLayer,
};

/// The status of a shown layer.
#[derive(Debug)]
pub(crate) struct LayerRow {
    pub(crate) slot: u32,
    pub(crate) mountpoint: String,
    pub(crate) digest: Digest,
    /// None for a layer that was fetched whole.
    pub(crate) ztoc: Option<Digest>,
    /// None for a layer that could not be shown again, and is being fetched.
    pub(crate) layer: Option<LayerStatus>,
    /// Compressed bytes, as the image's manifest says.
    pub(crate) size: u64,
    pub(crate) snapshots: BTreeSet<String>,
    /// Keys of the active and view snapshots above it.
    pub(crate) users: BTreeSet<String>,
    pub(crate) images: BTreeSet<String>,
    /// Why it was fetched whole, if that is known.
    pub(crate) reason: Option<Reason>,
    pub(crate) compared: Compared,
}

/// How a complete layer compares with the image's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    NotYet,
    Right,
    Wrong,
    /// The layer is complete, and the snapshot's name does not tell.
    Unknown,
}

/// The status of the daemon.
#[derive(Debug)]
pub(crate) struct Status {
    /// By slot.
    pub(crate) shown: Vec<LayerRow>,
    pub(crate) not_lazy: Vec<(Reason, u64)>,
    /// The newest first.
    pub(crate) recent: Vec<NotLazyLayer>,
}

impl Snapshotter {
    /// Reads the database, so it blocks.
    pub(crate) fn status(&self) -> Result<Status, Error> {
        let records = self.list(&[])?;
        let recent = self.outcomes().recent();
        let mut shown: HashMap<u32, LayerRow> = HashMap::new();
        for record in &records {
            let Some(found) = &record.shown else { continue };
            let entry = shown.entry(found.slot).or_insert_with(|| self.look(found, record, &recent));
            entry.snapshots.insert(record.name.clone());
            entry.images.extend(labels::image(&record.labels).map(|image| image.to_string()));
            entry.compared = entry.compared.and(compared(entry.layer.as_ref(), record));
        }
        for (slot, key) in dependents::slots(&records) {
            shown.get_mut(&slot).map(|entry| entry.users.insert(key.to_owned()));
        }
        let mut shown: Vec<_> = shown.into_values().collect();
        shown.sort_by_key(|entry| entry.slot);
        Ok(Status { shown, not_lazy: self.outcomes().reasons(), recent })
    }

    fn look(&self, shown: &ShownLayer, record: &Record, recent: &[NotLazyLayer]) -> LayerRow {
        let digest = shown.layer.digest;
        let whole = recent.iter().find(|layer| layer.whole && layer.layer == Some(digest));
        let has_no_index = !labels::has_index(&record.labels);
        let reason = match (&shown.ztoc, whole) {
            (Some(_), _) => None,
            (None, _) if has_no_index => Some(Reason::NoIndex),
            (None, whole) => whole.map(|outcome| outcome.reason),
        };
        LayerRow {
            slot: shown.slot,
            mountpoint: self.layers().path(shown.slot).to_string_lossy().into_owned(),
            digest,
            ztoc: shown.ztoc.as_ref().map(|ztoc| ztoc.digest),
            layer: self.layers().shown(shown.slot).map(|layer| layer.status()),
            size: shown.layer.size,
            snapshots: BTreeSet::new(),
            users: BTreeSet::new(),
            images: BTreeSet::new(),
            reason,
            compared: Compared::NotYet,
        }
    }
}

impl Compared {
    /// The worse of two snapshots' comparisons of the same layer.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Wrong, _) | (_, Self::Wrong) => Self::Wrong,
            (Self::Right, _) | (_, Self::Right) => Self::Right,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::NotYet, Self::NotYet) => Self::NotYet,
        }
    }
}

fn compared(layer: Option<&LayerStatus>, record: &Record) -> Compared {
    let Some(diff) = layer.and_then(|layer| layer.whole) else { return Compared::NotYet };
    match chain_id::agrees(&record.parent, &record.name, &diff) {
        Some(true) => Compared::Right,
        Some(false) => Compared::Wrong,
        None => Compared::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_comparisons_the_worse_counts() {
        use Compared::{NotYet, Right, Unknown, Wrong};
        for (one, other, expected) in [
            (NotYet, NotYet, NotYet),
            (NotYet, Right, Right),
            (Unknown, Right, Right),
            (Right, Wrong, Wrong),
            (NotYet, Unknown, Unknown),
        ] {
            assert_eq!((one.and(other), other.and(one)), (expected, expected), "{one:?} {other:?}");
        }
    }
}
