//! The identity of a stored layer: its digest, and the digest of the ztoc that describes it.
//!
//! Two ztocs of one layer are two layers here: what one image's ztoc says is not used for an image with another ztoc.

use std::fmt;

use oci::Digest;
use xxhash_rust::xxh3::Xxh3;

use crate::crash_notes::LayerMark;

/// A layer as one ztoc describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerId {
    /// Digest of the layer as stored in a registry.
    pub layer: Digest,
    /// Digest of its ztoc; `None` for one that was built here, from the whole verified layer.
    pub ztoc: Option<Digest>,
}

impl LayerId {
    /// A hash of both digests, for notes that have to be small.
    pub fn mark(&self) -> LayerMark {
        let mut hash = Xxh3::new();
        hash.update(self.layer.to_string().as_bytes());
        hash.update(self.ztoc.map(|ztoc| ztoc.to_string()).unwrap_or_default().as_bytes());
        LayerMark(hash.digest().max(1))
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layer.fmt(f)
    }
}
