//! containerd's snapshot model: the verbs, and what they stand on.

pub(crate) mod status;
pub(crate) mod restore;
pub(crate) mod prepare;
pub(crate) mod snapshotter;
pub(crate) mod dependents;
pub(crate) mod slot_refs;
pub(crate) mod lowers;
pub(crate) mod overlay;
pub(crate) mod idmap;
pub(crate) mod filter;
pub(crate) mod folders;
pub(crate) mod store;
