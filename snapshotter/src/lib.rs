//! The daemon: containerd's snapshot verbs over gRPC, and the place where the parts are wired together.
//!
//! Its first process is a `supervisor`, which holds the mount and the socket and keeps a `worker` alive; that builds a
//! `daemon` and serves.
//!
//! containerd calls `service`, which hands plain values to `snapshotter`. There a Prepare is decided: `labels`
//! says which layer it is about, `plan` what to do with it, `images` finds the image's index, `layers` opens
//! and shows the layer, `store` remembers, `overlay` makes the mounts. Every outcome that is not a lazily
//! loaded layer is a [`Reason`]. Modules are listed in the order in which a request meets them; imports point
//! down the list.

mod args;
mod process;
mod api;
mod snapshots;
mod images;
mod layers;
mod telemetry;
mod config;
mod socket;
mod reason;
mod sync;
mod error;

pub use args::{Args, Command, ConfigCommand, DEFAULT_CONFIG};
pub use config::{Address, Config, Remark, Unindexed, commented as config_commented, plain as config_plain};
pub use error::{Error, ErrorKind};
pub use process::run;
pub use reason::Reason;
pub use telemetry::log::{Format, fatal_line, start as start_logging};

/// The commit this was built from, where the build said so (`SOCI_REVISION`).
pub const REVISION: &str = match option_env!("SOCI_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
