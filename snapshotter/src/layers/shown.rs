//! A layer as a snapshot's record names it: where it is shown, and what it takes to show it again after a restart.

use layerfs::{Inherited, LayerId};
use oci::Descriptor;
use serde::{Deserialize, Serialize};

/// An image's layer in a slot of the FUSE connection. It is stored as JSON in the snapshot database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShownLayer {
    /// Slot of the connection.
    pub(crate) slot: u32,
    /// The layer as the image's manifest describes it.
    pub(crate) layer: Descriptor,
    /// The ztoc that the image's index names. None for a layer whose ztoc this daemon built.
    pub(crate) ztoc: Option<Descriptor>,
    /// Attributes of the directories that the layer implies without containing them.
    pub(crate) inherited: Vec<Inherited>,
}

impl ShownLayer {
    pub(crate) fn id(&self) -> LayerId {
        LayerId { layer: self.layer.digest, ztoc: self.ztoc.as_ref().map(|ztoc| ztoc.digest) }
    }
}
