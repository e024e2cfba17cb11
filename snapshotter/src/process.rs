//! Two processes that share one mount: a supervisor that holds it, and a worker that serves it.
//!
//! The supervisor starts first: it mounts, locks the root and listens. It starts the worker, which is the same program
//! with these descriptors inherited. The next worker or the next daemon gets them, too.

pub(crate) mod supervisor;
pub(crate) mod worker;
pub(crate) mod resources;
pub(crate) mod handover;
pub(crate) mod systemd;
pub(crate) mod channel;
pub(crate) mod descriptors;
pub(crate) mod go_state;
pub(crate) mod mount_users;

use std::path::Path;

use anyhow::Context;

/// Serves on the socket `address` with all state under `root`, until a signal. This process is the supervisor, or its
/// worker if a supervisor started it. `config` is the path of the configuration, and whether it must be there.
///
/// # Errors
/// When something that everything needs is missing: the root, `/dev/fuse`, the socket, the database.
pub fn run(address: &str, root: &Path, config: (&Path, bool)) -> anyhow::Result<()> {
    match descriptors::of_supervisor() {
        None => supervisor::run(address, root, config),
        Some(inherited) => {
            worker::run(address, root, inherited.context("take the descriptors of the supervisor")?)
        }
    }
}
