//! What the daemon itself counts: what became of each Prepare, and of each layer that is complete. Of the last layers
//! that were not lazy it remembers which they were.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use layerfs::{Family, Kind, Name, Value};
use oci::Digest;

use crate::{reason::Reason, sync::lock};

/// Layers that were not lazy, remembered: those of a few pulls.
const MAX_REMEMBERED: usize = 256;
/// Characters of a sentence that is remembered; a registry may have put its part in.
const MAX_DETAIL: usize = 500;

const PREPARED: Name = Name {
    name: "soci_snapshots_prepared_total",
    kind: Kind::Counter,
    labels: ["outcome", ""],
    help: "snapshots prepared: a layer shown as `lazy`, or fetched `whole`, or `left` to containerd; or `plain`, a \
           container's own or a layer of a client that does not say which",
};
const NOT_LAZY: Name = Name {
    name: "soci_layers_not_lazy_total",
    kind: Kind::Counter,
    labels: ["reason", ""],
    help: "layers fetched whole or left to containerd, by reason",
};
const COMPARED: Name = Name {
    name: "soci_layers_compared_total",
    kind: Kind::Counter,
    labels: ["outcome", ""],
    help: "complete layers compared with the image's configuration: `right`, `wrong`, or `unknown` where its \
           end is not known or the snapshot's name does not tell",
};

/// What became of a Prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrepareOutcome {
    Plain,
    Lazy,
    Whole(Reason),
    Left(Reason),
}

/// A layer that was not lazy.
#[derive(Debug, Clone)]
pub(crate) struct NotLazyLayer {
    pub(crate) time: SystemTime,
    /// Of the snapshot that was prepared.
    pub(crate) key: String,
    /// Image and layer, where the client said which they are.
    pub(crate) image: Option<String>,
    pub(crate) layer: Option<Digest>,
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// Fetched whole here; else left to containerd.
    pub(crate) whole: bool,
}

/// What the daemon itself counts.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    plain: AtomicU64,
    lazy: AtomicU64,
    whole: AtomicU64,
    left: AtomicU64,
    reasons: [AtomicU64; Reason::ALL.len()],
    right: AtomicU64,
    wrong: AtomicU64,
    unknown: AtomicU64,
    /// The newest in front.
    recent: Mutex<VecDeque<NotLazyLayer>>,
}

impl Outcomes {
    pub(crate) fn prepared(&self, outcome: PrepareOutcome) {
        let (counter, reason) = match outcome {
            PrepareOutcome::Plain => (&self.plain, None),
            PrepareOutcome::Lazy => (&self.lazy, None),
            PrepareOutcome::Whole(reason) => (&self.whole, Some(reason)),
            PrepareOutcome::Left(reason) => (&self.left, Some(reason)),
        };
        counter.fetch_add(1, Relaxed);
        if let Some(place) = Reason::ALL.iter().position(|known| Some(*known) == reason) {
            self.reasons[place].fetch_add(1, Relaxed);
        }
    }

    /// A layer was not lazy.
    pub(crate) fn remember(&self, mut layer: NotLazyLayer) {
        layer.detail = layer.detail.chars().take(MAX_DETAIL).collect();
        let mut recent = lock(&self.recent);
        recent.truncate(MAX_REMEMBERED - 1);
        recent.push_front(layer);
    }

    /// The last layers that were not lazy, the newest first.
    pub(crate) fn recent(&self) -> Vec<NotLazyLayer> {
        lock(&self.recent).iter().cloned().collect()
    }

    /// How many layers were not lazy, by reasons that occurred.
    pub(crate) fn reasons(&self) -> Vec<(Reason, u64)> {
        let counts = Reason::ALL.iter().copied().zip(self.reasons.iter().map(|count| count.load(Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// A complete layer `agrees` with the image's configuration, or not, or that cannot be told.
    pub(crate) fn compared(&self, agrees: Option<bool>) {
        let counter = match agrees {
            Some(true) => &self.right,
            Some(false) => &self.wrong,
            None => &self.unknown,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn families(&self) -> Vec<Family> {
        let of = |name, values: &[(&'static str, &AtomicU64)]| Family {
            name,
            values: values
                .iter()
                .map(|(label, count)| ([(*label).into(), "".into()], Value::Number(count.load(Relaxed))))
                .collect(),
        };
        let reasons: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).zip(&self.reasons).collect();
        vec![
            of(
                PREPARED,
                &[("lazy", &self.lazy), ("whole", &self.whole), ("left", &self.left), ("plain", &self.plain)],
            ),
            of(NOT_LAZY, &reasons),
            of(COMPARED, &[("right", &self.right), ("wrong", &self.wrong), ("unknown", &self.unknown)]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_number() {
        let counters = Outcomes::default();
        for reason in Reason::ALL {
            counters.prepared(PrepareOutcome::Left(*reason));
        }
        counters.prepared(PrepareOutcome::Whole(Reason::NoZtoc));
        counters.prepared(PrepareOutcome::Lazy);
        let families = counters.families();
        let of = |name: &str| families.iter().find(|family| family.name.name == name).unwrap();
        for (reason, value) in &of("soci_layers_not_lazy_total").values {
            assert_eq!(*value, Value::Number(if reason[0] == "no_ztoc" { 2 } else { 1 }), "{reason:?}");
        }
        let left = Value::Number(Reason::ALL.len() as u64);
        assert!(of("soci_snapshots_prepared_total").values.contains(&(["left".into(), "".into()], left)));
        assert_eq!(counters.reasons().len(), Reason::ALL.len());
    }

    #[test]
    fn the_last_outcomes_are_remembered_and_no_more() {
        let counters = Outcomes::default();
        for number in 0..MAX_REMEMBERED + 10 {
            counters.remember(NotLazyLayer {
                time: SystemTime::UNIX_EPOCH,
                key: number.to_string(),
                image: None,
                layer: None,
                reason: Reason::Internal,
                detail: "ä".repeat(MAX_DETAIL + 1),
                whole: false,
            });
        }
        let recent = counters.recent();
        assert_eq!(recent.len(), MAX_REMEMBERED);
        assert_eq!(recent[0].key, (MAX_REMEMBERED + 9).to_string());
        assert_eq!(recent[0].detail.chars().count(), MAX_DETAIL);
    }
}
