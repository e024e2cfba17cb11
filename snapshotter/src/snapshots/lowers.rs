//! What lies below a snapshot: its chain of parents, each with the folder that overlayfs mounts and a way to look into it.
//!
//! A layer that the daemon shows is looked at in memory. The daemon never opens its own mount: it would wait for itself.

use std::{fs, io, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc};

use layerfs::{Inherited, Layer, LowerEntry};
use oci::Digest;

use crate::{
    error::Error,
    layers::Layers,
    reason::{NotLazy, Reason},
    snapshots::{
        folders::{self, Folders},
        store::Record,
    },
};

/// The snapshots below another one, the topmost first.
#[derive(Debug)]
pub(crate) struct Lowers(Vec<Lower>);

#[derive(Debug)]
struct Lower {
    name: String,
    /// What overlayfs mounts.
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A layer that the daemon shows. No value while it is not served.
    Shown(Digest, Option<Arc<Layer>>),
    /// Files on the local disk, which containerd unpacked.
    Unpacked,
}

/// User and group.
pub(crate) type Owner = (u32, u32);

impl Lowers {
    /// `chain` is the parent and its ancestors, the parent first.
    pub(crate) fn new(chain: Vec<Record>, layers: &Layers, folders: &Folders) -> Self {
        let lower = |record: Record| match record.shown {
            Some(shown) => Lower {
                name: record.name,
                path: layers.path(shown.slot),
                content: Content::Shown(shown.layer.digest, layers.shown(shown.slot)),
            },
            None => Lower { name: record.name, path: folders.files(record.id), content: Content::Unpacked },
        };
        Self(chain.into_iter().map(lower).collect())
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|lower| lower.path.clone()).collect()
    }

    /// Owner of the topmost snapshot's root folder. None without a snapshot below.
    pub(crate) fn root_owner(&self) -> Result<Option<Owner>, Error> {
        self.0.first().map(Lower::root_owner).transpose()
    }

    /// Owner of the topmost snapshot's root folder, if containerd unpacked that snapshot.
    pub(crate) fn unpacked_root_owner(&self) -> Result<Option<Owner>, Error> {
        match self.0.first() {
            Some(lower) if matches!(lower.content, Content::Unpacked) => lower.root_owner().map(Some),
            _ => Ok(None),
        }
    }

    /// The attributes of directories that the layer implies: those that a plain unpacking takes from the layers
    /// below. An unpacking follows a symlink below, which a layer cannot show.
    pub(crate) fn inherited(&self, layer: &Layer) -> Result<Vec<Inherited>, NotLazy> {
        let mut inherited = Vec::new();
        for path in layer.implied_directories() {
            for lower in &self.0 {
                match lower.look(&path)? {
                    LowerEntry::Absent => continue,
                    LowerEntry::Hidden => {}
                    LowerEntry::Directory(attributes) => inherited.push(attributes),
                    LowerEntry::Link => {
                        let path = String::from_utf8_lossy(&path).into_owned();
                        let detail = format!("it has files in {path}, which is a symlink in a layer below");
                        return Err(NotLazy::new(Reason::UnsupportedLayer, detail));
                    }
                }
                break;
            }
        }
        Ok(inherited)
    }
}

impl Lower {
    fn root_owner(&self) -> Result<Owner, Error> {
        match &self.content {
            // Whatever the layer says of its root, it is shown as containerd makes it.
            Content::Shown(..) => Ok((0, 0)),
            Content::Unpacked => {
                let failed = |e: io::Error| Error::internal(format!("look at snapshot {:?}", self.name), e);
                let root = fs::symlink_metadata(&self.path).map_err(failed)?;
                Ok((root.uid(), root.gid()))
            }
        }
    }

    /// What this snapshot has at `path`.
    fn look(&self, path: &[u8]) -> Result<LowerEntry, NotLazy> {
        match &self.content {
            Content::Shown(_, Some(layer)) => Ok(layer.below(path)),
            // An answer without this layer would be kept for good.
            Content::Shown(digest, None) => {
                let detail = format!("layer {digest} below it is not served at the moment");
                Err(NotLazy::new(Reason::Internal, detail))
            }
            Content::Unpacked => Ok(folders::below(&self.path, path)),
        }
    }
}
