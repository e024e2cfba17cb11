//! What goes out to people: log lines, counters, metrics.

pub(crate) mod log;
pub(crate) mod outcomes;
pub(crate) mod per_layer;
