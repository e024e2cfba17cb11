//! From a Prepare's labels to an opened layer.

pub(crate) mod opening;
pub(crate) mod image_index;
pub(crate) mod search;
pub(crate) mod plan;
pub(crate) mod chain_id;
pub(crate) mod labels;
pub(crate) mod containerd;
