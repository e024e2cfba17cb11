//! What the daemon itself counts: what became of each Prepare, and of each layer that is complete.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use layerfs::{Family, Kind, Name, Value};

use crate::reason::Reason;

const PREPARED: Name = Name {
    name: "soci_snapshots_prepared_total",
    kind: Kind::Counter,
    label: "outcome",
    help: "snapshots prepared: a layer shown as `lazy`, or fetched `whole`, or `left` to containerd; or `plain`, a \
           container's own or a layer of a client that does not say which",
};
const NOT_LAZY: Name = Name {
    name: "soci_layers_not_lazy_total",
    kind: Kind::Counter,
    label: "reason",
    help: "layers fetched whole or left to containerd, by reason",
};
const COMPARED: Name = Name {
    name: "soci_layers_compared_total",
    kind: Kind::Counter,
    label: "outcome",
    help: "complete layers compared with the image's configuration: `right`, `wrong`, or `unknown` where its \
           end is not known or the snapshot's name does not tell",
};

/// What became of a Prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prepared {
    Plain,
    Lazy,
    Whole(Reason),
    Left(Reason),
}

/// What the daemon itself counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    plain: AtomicU64,
    lazy: AtomicU64,
    whole: AtomicU64,
    left: AtomicU64,
    reasons: [AtomicU64; Reason::ALL.len()],
    right: AtomicU64,
    wrong: AtomicU64,
    unknown: AtomicU64,
}

impl Counters {
    pub(crate) fn prepared(&self, what: Prepared) {
        let (counter, reason) = match what {
            Prepared::Plain => (&self.plain, None),
            Prepared::Lazy => (&self.lazy, None),
            Prepared::Whole(reason) => (&self.whole, Some(reason)),
            Prepared::Left(reason) => (&self.left, Some(reason)),
        };
        counter.fetch_add(1, Relaxed);
        if let Some(place) = Reason::ALL.iter().position(|known| Some(*known) == reason) {
            self.reasons[place].fetch_add(1, Relaxed);
        }
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
                .map(|(label, count)| (*label, Value::Number(count.load(Relaxed))))
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
        let counters = Counters::default();
        for reason in Reason::ALL {
            counters.prepared(Prepared::Left(*reason));
        }
        counters.prepared(Prepared::Whole(Reason::NoZtoc));
        counters.prepared(Prepared::Lazy);
        let families = counters.families();
        let of = |name: &str| families.iter().find(|family| family.name.name == name).unwrap();
        for (reason, value) in &of("soci_layers_not_lazy_total").values {
            assert_eq!(*value, Value::Number(if *reason == "no_ztoc" { 2 } else { 1 }), "{reason}");
        }
        let left = Value::Number(Reason::ALL.len() as u64);
        assert!(of("soci_snapshots_prepared_total").values.contains(&("left", left)));
    }
}
