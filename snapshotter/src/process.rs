//! Two processes that share one mount: a supervisor that holds it, and a worker that serves it.

pub(crate) mod supervisor;
pub(crate) mod worker;
pub(crate) mod resources;
pub(crate) mod handover;
pub(crate) mod systemd;
pub(crate) mod channel;
pub(crate) mod descriptors;
pub(crate) mod go_state;
pub(crate) mod mount_users;
