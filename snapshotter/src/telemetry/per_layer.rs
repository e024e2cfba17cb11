//! The metrics of each shown layer, under the names of the Go daemon. A layer that is hidden has no metrics any more, so
//! that Prometheus keeps no more of them than the node has layers.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use layerfs::{Family, Kind, Layer, LayerCounts, LayerId, Name, Value};
use oci::Digest;

use crate::sync::lock;

const OPERATION: [&str; 2] = ["operation_type", "layer"];
const PLACE: [&str; 2] = ["digest", "mountpoint"];

const COUNT: Name = Name {
    name: "soci_fs_operation_count",
    kind: Kind::Counter,
    labels: OPERATION,
    help: "of a layer: `synchronous_read_count` reads of its files, `fuse_file_read_failure_count` those that failed, \
           `synchronous_read_remote_registry_fetch_count` requests that a reader waited for, \
           `background_span_fetch_count` spans that were fetched while no reader waited for them, `background_span_fetch_failure_count` \
           those that could not be fetched",
};
const SERVED: Name = Name {
    name: "soci_fs_bytes_served",
    kind: Kind::Gauge,
    labels: OPERATION,
    help: "of a layer: `synchronous_bytes_served` bytes of its files that were read",
};
const DURATION: Name = Name {
    name: "soci_fs_operation_duration_milliseconds",
    kind: Kind::Histogram,
    labels: OPERATION,
    help: "of a layer: `mount` how long until it was shown lazily, `ztoc_fetch` how long until its ztoc was there",
};
const FETCHED: Name = Name {
    name: "soci_fs_layer_fetched_size_bytes",
    kind: Kind::Gauge,
    labels: PLACE,
    help: "compressed bytes of a layer whose spans are on disk",
};
const SIZE: Name = Name {
    name: "soci_fs_layer_size_bytes",
    kind: Kind::Gauge,
    labels: PLACE,
    help: "compressed bytes of a layer",
};

/// Upper bounds in milliseconds: 1, 2, 4 … 16384.
const BOUNDS: usize = 15;
/// How long the numbers of a layer are kept that is not shown: it may be, soon.
const KEEP: Duration = Duration::from_secs(600);
/// Layers whose numbers are kept: more than a node shows.
const MOST: usize = 8192;

/// What takes time, once for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Operation {
    Mount,
    ZtocFetch,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::ZtocFetch => "ztoc_fetch",
        }
    }
}

/// How long operations took, by layer.
#[derive(Debug, Default)]
pub(crate) struct Durations(Mutex<HashMap<(Operation, Digest), Histogram>>);

#[derive(Debug)]
struct Histogram {
    /// How many took not longer than each bound, and longer than the one before; the last: longer than all.
    counts: [u64; BOUNDS + 1],
    sum: f64,
    last: Instant,
}

impl Histogram {
    fn value(&self) -> Value {
        let mut count = 0;
        let mut up_to = Vec::with_capacity(BOUNDS);
        for (place, counted) in self.counts.iter().enumerate() {
            count += counted;
            if place < BOUNDS {
                up_to.push(((1_u64 << place) as f64, count));
            }
        }
        Value::Histogram { up_to, count, sum: self.sum }
    }
}

impl Durations {
    pub(crate) fn note(&self, operation: Operation, layer: &Digest, took: Duration) {
        let mut known = lock(&self.0);
        let key = (operation, *layer);
        if known.len() >= MOST && !known.contains_key(&key) {
            known.retain(|_, histogram| histogram.last.elapsed() < KEEP);
            if known.len() >= MOST {
                return;
            }
        }
        let now = Instant::now();
        let histogram =
            known.entry(key).or_insert_with(|| Histogram { counts: [0; BOUNDS + 1], sum: 0.0, last: now });
        let millis = took.as_secs_f64() * 1e3;
        let place = (0..BOUNDS).find(|place| millis <= (1_u64 << place) as f64).unwrap_or(BOUNDS);
        histogram.counts[place] += 1;
        histogram.sum += millis;
        histogram.last = now;
    }

    /// Of the layers `shown`, in order; the others' are forgotten after a while.
    fn values(&self, shown: &HashSet<Digest>) -> Vec<([Cow<'static, str>; 2], Value)> {
        let mut known = lock(&self.0);
        known.retain(|(_, layer), it| shown.contains(layer) || it.last.elapsed() < KEEP);
        let values = known.iter().filter(|((_, layer), _)| shown.contains(layer));
        let mut values: Vec<_> = values.map(|(key, histogram)| (*key, histogram.value())).collect();
        values.sort_by_key(|(key, _)| (key.0, key.1.to_string()));
        values
            .into_iter()
            .map(|((operation, layer), value)| (of(operation.as_str(), &layer), value))
            .collect()
    }
}

fn of(operation: &'static str, layer: &Digest) -> [Cow<'static, str>; 2] {
    [operation.into(), layer.to_string().into()]
}

/// Of the layers that are shown, with their folders.
pub(crate) fn families(shown: &[(PathBuf, Arc<Layer>)], durations: &Durations) -> Vec<Family> {
    let (mut fetched, mut sizes) = (Vec::new(), Vec::new());
    let mut counted: HashSet<LayerId> = HashSet::new();
    let mut counts: BTreeMap<String, (Digest, LayerCounts)> = BTreeMap::new();
    for (folder, layer) in shown {
        let (digest, status) = (*layer.digest(), layer.status());
        let labels = [Cow::from(digest.to_string()), Cow::from(folder.to_string_lossy().into_owned())];
        fetched.push((labels.clone(), Value::Number(status.fetched)));
        sizes.push((labels, Value::Number(status.compressed)));
        // One that is shown in several places has its numbers once; two that are read by other ztocs share theirs.
        if counted.insert(*layer.id()) {
            let (_, sum) = counts.entry(digest.to_string()).or_insert((digest, LayerCounts::default()));
            *sum = added(*sum, status.counts);
        }
    }
    let count = |operation: &'static str, number: fn(&LayerCounts) -> u64| -> Vec<_> {
        let values = counts.values();
        values.map(|(layer, sum)| (of(operation, layer), Value::Number(number(sum)))).collect()
    };
    let operations = [
        count("synchronous_read_count", |it| it.reads),
        count("fuse_file_read_failure_count", |it| it.reads_failed),
        count("synchronous_read_remote_registry_fetch_count", |it| it.demand_requests),
        count("background_span_fetch_count", |it| it.background_spans),
        count("background_span_fetch_failure_count", |it| it.background_failed),
    ];
    let digests = counts.values().map(|(digest, _)| *digest).collect();
    vec![
        Family { name: COUNT, values: operations.concat() },
        Family { name: SERVED, values: count("synchronous_bytes_served", |it| it.read_bytes) },
        Family { name: DURATION, values: durations.values(&digests) },
        Family { name: FETCHED, values: fetched },
        Family { name: SIZE, values: sizes },
    ]
}

fn added(one: LayerCounts, other: LayerCounts) -> LayerCounts {
    LayerCounts {
        reads: one.reads + other.reads,
        reads_failed: one.reads_failed + other.reads_failed,
        read_bytes: one.read_bytes + other.read_bytes,
        demand_requests: one.demand_requests + other.demand_requests,
        background_spans: one.background_spans + other.background_spans,
        background_failed: one.background_failed + other.background_failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_of_layers_that_are_shown() {
        let [shown, hidden] = ["shown", "hidden"].map(|text| Digest::sha256(text.as_bytes()));
        let durations = Durations::default();
        for millis in [0, 1, 3, 16_384, 16_385] {
            durations.note(Operation::Mount, &shown, Duration::from_millis(millis));
        }
        durations.note(Operation::ZtocFetch, &hidden, Duration::from_millis(1));
        let values = durations.values(&HashSet::from([shown]));
        let [(labels, Value::Histogram { up_to, count, sum })] = &values[..] else { panic!("{values:?}") };
        assert_eq!(labels, &of("mount", &shown));
        assert_eq!((*count, sum.round()), (5, 32_773.0));
        assert_eq!((up_to[0], up_to[1], up_to[2]), ((1.0, 2), (2.0, 2), (4.0, 3)));
        assert_eq!(up_to[BOUNDS - 1], (16_384.0, 4));
        // It may be shown soon.
        assert_eq!(durations.values(&HashSet::from([hidden])).len(), 1);
    }

    #[test]
    fn a_node_remembers_so_many_layers_and_no_more() {
        let durations = Durations::default();
        for number in 0..MOST + 10 {
            durations.note(Operation::Mount, &Digest::sha256(&number.to_le_bytes()), Duration::ZERO);
        }
        assert_eq!(lock(&durations.0).len(), MOST);
    }
}
