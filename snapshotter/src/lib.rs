//! The daemon: containerd's snapshot verbs over gRPC, and the place where the parts are wired together.
//!
//! Its first process is a supervisor, which holds the mount and the socket and keeps a worker alive (`process`). The
//! worker takes containerd's calls (`api`) and hands plain values to `snapshots`. There a Prepare is decided
//! (`snapshots::prepare`): `images` finds the image's index and opens its layers, `layers` shows them in slots, and the
//! database remembers them. Every outcome that is not a lazily loaded layer is a [`Reason`].
//!
//! Modules are listed in the order in which a request meets them. Imports point down the list.

/// Flags of the program.
mod args;
/// Supervisor and worker: two processes that share one mount.
mod process;
/// The doors: gRPC and HTTP become plain values and back.
mod api;
/// containerd's snapshot model: the verbs, the database, the folders, the mounts.
mod snapshots;
/// From the labels of a Prepare to an opened layer.
mod images;
/// Open and shown layers.
mod layers;
/// Log lines and counters.
mod telemetry;
/// The configuration file.
mod config;
/// Unix sockets and their addresses.
mod socket;
/// Why a layer is not lazy.
mod reason;
/// A lock without poisoning.
mod sync;
/// What a verb can answer besides success.
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
