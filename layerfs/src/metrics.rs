//! Metrics of the read path, every name in one table.
//!
//! Counting costs an addition; gauges are computed when a caller asks for the metrics. The caller decides on the
//! format.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::error::ErrorKind;

/// How to read the numbers of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Grows from the start of the process on.
    Counter,
    /// The value at this moment.
    Gauge,
    /// A number of events by size, from the start of the process on.
    Histogram,
}

/// The name of a metric, and its help text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// Its name, with its unit last.
    pub name: &'static str,
    /// How to read it.
    pub kind: Kind,
    /// Labels that distinguish its numbers; empty where there are fewer than two.
    pub labels: [&'static str; 2],
    /// The help text.
    pub help: &'static str,
}

const fn name(name: &'static str, kind: Kind, label: &'static str, help: &'static str) -> Name {
    Name { name, kind, labels: [label, ""], help }
}

pub(crate) const FUSE_REQUESTS: Name =
    name("soci_fuse_requests_total", Kind::Counter, "request", "requests of the kernel, by kind");
pub(crate) const LAYERS_SHOWN: Name =
    name("soci_layers_shown", Kind::Gauge, "", "layers shown in the FUSE mount, each over its lower layers");
const READS: Name = name(
    "soci_reads_total",
    Kind::Counter,
    "outcome",
    "reads of files: `ready` at once, `waited` for bytes to be fetched, or `failed`",
);
const READ_BYTES: Name = name("soci_read_bytes_total", Kind::Counter, "", "bytes of files that were read");
const READ_WAIT: Name =
    name("soci_read_wait_seconds", Kind::Histogram, "", "waiting time of reads that had to wait");
const READERS_WAITING: Name =
    name("soci_readers_waiting", Kind::Gauge, "", "reads that wait for bytes to be fetched");
const SPANS: Name = name(
    "soci_spans",
    Kind::Gauge,
    "state",
    "spans of open layers: `empty` are not on disk, `filling` are under way, `ready` are on disk, `unproven` are \
     on disk since before an unclean stop",
);
const SPAN_STORE_BYTES: Name =
    name("soci_span_store_bytes", Kind::Gauge, "", "uncompressed bytes of spans of open layers on disk");
const SPANS_LANDED: Name = name(
    "soci_spans_landed_total",
    Kind::Counter,
    "how",
    "spans that arrived: `stored`, `unstored` because the disk is full or fails, or `wrong`: the digest is right, \
     but the content does not fit the ztoc",
);
const SPANS_LOST: Name = name(
    "soci_spans_lost_total",
    Kind::Counter,
    "why",
    "spans that were on disk: `evicted` to make room, or `damaged` and fetched again",
);
const FETCHES: Name = name(
    "soci_fetch_requests_total",
    Kind::Counter,
    "priority",
    "requests for spans: `demand` of readers, `ahead` of them, or `fill`",
);
const FETCH_BYTES: Name =
    name("soci_fetch_bytes_total", Kind::Counter, "priority", "compressed bytes of spans that arrived");
const FETCH_FAILURES: Name = name(
    "soci_fetch_failures_total",
    Kind::Counter,
    "kind",
    "requests for spans that failed in part or whole; most are made again",
);
const FETCH_HEDGED: Name = name(
    "soci_fetch_hedged_total",
    Kind::Counter,
    "",
    "readers' requests that took long and were made a second time",
);
const FETCH_BUSY: Name = name(
    "soci_fetch_busy_total",
    Kind::Counter,
    "",
    "requests that a registry first answered with 429 or 503",
);
const IN_FLIGHT_REQUESTS: Name =
    name("soci_fetch_requests_in_flight", Kind::Gauge, "", "requests for spans under way");
const IN_FLIGHT_BYTES: Name = name(
    "soci_fetch_in_flight_bytes",
    Kind::Gauge,
    "",
    "compressed bytes of spans that are requested and not stored yet",
);
const PANICS: Name = name(
    "soci_panics_total",
    Kind::Counter,
    "",
    "panics that were caught; each is a defect, and an error for one reader",
);

/// A metric and its numbers.
#[derive(Debug, Clone)]
pub struct Family {
    /// The metric.
    pub name: Name,
    /// Numbers by the values of the labels; an empty value where there is no label.
    pub values: Vec<([Cow<'static, str>; 2], Value)>,
}

/// One number, or a histogram.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// One number.
    Number(u64),
    /// How many events were up to each bound, in seconds; how many there were; the sum of their seconds.
    Histogram {
        /// Bounds, and how many events were not above each.
        up_to: Vec<(f64, u64)>,
        /// How many events there were.
        count: u64,
        /// The sum of their seconds.
        sum: f64,
    },
}

impl Family {
    pub(crate) fn of(name: Name, values: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        Self {
            name,
            values: values.into_iter().map(|(label, value)| (labels(label), Value::Number(value))).collect(),
        }
    }

    /// A family of one number.
    pub fn one(name: Name, value: u64) -> Self {
        Self::of(name, [("", value)])
    }
}

/// The values of the labels of a metric with one label.
fn labels(value: &'static str) -> [Cow<'static, str>; 2] {
    [value.into(), "".into()]
}

/// A number that grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds in milliseconds: from a page on disk to a registry that was away for minutes.
const BOUNDS: [u64; 12] = [1, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000, 300_000];

#[derive(Debug, Default)]
pub(crate) struct WaitHistogram {
    /// One more than there are bounds, for events above all of them.
    by_bound: [Counter; BOUNDS.len() + 1],
    micros: Counter,
}

impl WaitHistogram {
    pub(crate) fn note(&self, waited: Duration) {
        let millis = waited.as_secs_f64() * 1e3;
        let place = BOUNDS.iter().position(|bound| millis <= *bound as f64).unwrap_or(BOUNDS.len());
        self.by_bound[place].add(1);
        self.micros.add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
    }

    fn value(&self) -> Value {
        let mut count = 0;
        let counts = self.by_bound.iter().map(|counter| {
            count += counter.now();
            count
        });
        let mut counts: Vec<u64> = counts.collect();
        let count = counts.pop().unwrap_or(0);
        let up_to = BOUNDS.iter().map(|bound| *bound as f64 / 1e3).zip(counts).collect();
        Value::Histogram { up_to, count, sum: self.micros.now() as f64 / 1e6 }
    }
}

/// Everything that the read path counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) reads_ready: Counter,
    pub(crate) reads_waited: Counter,
    pub(crate) reads_failed: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) waits: WaitHistogram,
    pub(crate) waits_begun: Counter,
    pub(crate) stored: Counter,
    pub(crate) unstored: Counter,
    pub(crate) wrong: Counter,
    pub(crate) evicted: Counter,
    pub(crate) damaged: Counter,
    pub(crate) hedged: Counter,
    pub(crate) busy: Counter,
    pub(crate) panics: Counter,
    pub(crate) demand: Fetches,
    pub(crate) ahead: Fetches,
    pub(crate) fill: Fetches,
    failures: [Counter; ErrorKind::ALL.len()],
}

#[derive(Debug, Default)]
pub(crate) struct Fetches {
    pub(crate) requests: Counter,
    pub(crate) bytes: Counter,
}

/// Counters of one layer alone.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) reads: Counter,
    pub(crate) reads_failed: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) waits_begun: Counter,
    pub(crate) waits_ended: Counter,
    pub(crate) demand_requests: Counter,
    pub(crate) background_spans: Counter,
    pub(crate) background_failed: Counter,
}

impl Tally {
    /// Reads that wait.
    pub(crate) fn waiting(&self) -> u64 {
        // In this order: a wait that has ended had begun.
        let ended = self.waits_ended.now();
        self.waits_begun.now().saturating_sub(ended)
    }
}

/// Gauges that other parts hold, at this moment.
pub(crate) struct Gauges {
    /// Spans by state: empty, filling, ready, unproven.
    pub(crate) spans: [u64; 4],
    pub(crate) store_bytes: u64,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
}

impl Counters {
    pub(crate) fn failed(&self, kind: ErrorKind) {
        if let Some(place) = ErrorKind::ALL.iter().position(|known| *known == kind) {
            self.failures[place].add(1);
        }
    }

    pub(crate) fn families(&self, now: &Gauges) -> Vec<Family> {
        let [empty, filling, ready, unproven] = now.spans;
        let fetches = [("demand", &self.demand), ("ahead", &self.ahead), ("fill", &self.fill)];
        let waited = self.waits.value();
        let over = match &waited {
            Value::Histogram { count, .. } => *count,
            Value::Number(_) => 0,
        };
        let reads = [
            ("ready", self.reads_ready.now()),
            ("waited", self.reads_waited.now()),
            ("failed", self.reads_failed.now()),
        ];
        let landed =
            [("stored", self.stored.now()), ("unstored", self.unstored.now()), ("wrong", self.wrong.now())];
        let failures =
            ErrorKind::ALL.iter().zip(&self.failures).map(|(kind, count)| (kind.as_str(), count.now()));
        vec![
            Family::of(READS, reads),
            Family::one(READ_BYTES, self.read_bytes.now()),
            Family { name: READ_WAIT, values: vec![(labels(""), waited)] },
            Family::one(READERS_WAITING, self.waits_begun.now().saturating_sub(over)),
            Family::of(
                SPANS,
                [("empty", empty), ("filling", filling), ("ready", ready), ("unproven", unproven)],
            ),
            Family::one(SPAN_STORE_BYTES, now.store_bytes),
            Family::of(SPANS_LANDED, landed),
            Family::of(SPANS_LOST, [("evicted", self.evicted.now()), ("damaged", self.damaged.now())]),
            Family::of(FETCHES, fetches.map(|(label, of)| (label, of.requests.now()))),
            Family::of(FETCH_BYTES, fetches.map(|(label, of)| (label, of.bytes.now()))),
            Family::of(FETCH_FAILURES, failures),
            Family::one(FETCH_HEDGED, self.hedged.now()),
            Family::one(FETCH_BUSY, self.busy.now()),
            Family::one(IN_FLIGHT_REQUESTS, now.requests),
            Family::one(IN_FLIGHT_BYTES, now.bytes),
            Family::one(PANICS, self.panics.now()),
        ]
    }
}
