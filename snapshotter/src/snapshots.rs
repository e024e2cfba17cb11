//! containerd's snapshot model.

pub(crate) mod status;
pub(crate) mod dependents;
pub(crate) mod snapshotter;
pub(crate) mod slot_refs;
pub(crate) mod overlay;
pub(crate) mod idmap;
pub(crate) mod filter;
pub(crate) mod folders;
pub(crate) mod store;
