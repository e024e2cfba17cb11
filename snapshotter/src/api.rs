//! The doors: gRPC and HTTP become plain values and back.

pub(crate) mod server;
pub(crate) mod snapshots;
pub(crate) mod control;
pub(crate) mod metrics;
pub(crate) mod health;
