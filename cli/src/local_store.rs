//! The local store: where `create` puts what it builds and where `list`, `info` and `push` find it. containerd's
//! content, or a layout of our own (`--content-store soci`); and the list of artifacts that goes with it.

use bytes::Bytes;
use oci::{Digest, Layout, Store};

use crate::args::{ContentStore, DEFAULT_ADDRESS, Global};
use crate::artifacts::Artifacts;
use crate::containerd::{Containerd, ImageStore, Stored};
use crate::error::{Error, ErrorKind};

/// See the module.
#[derive(Debug)]
pub(crate) enum Local {
    Containerd(ImageStore),
    Soci(Layout),
}

impl Local {
    /// Opens the store that `--content-store` names, to read from it. A layout that does not exist yet holds nothing:
    /// `NotFound`.
    pub(crate) async fn open(global: &Global) -> Result<Local, Error> {
        Ok(match global.content_store {
            ContentStore::Containerd => {
                Local::of(Containerd::connect(&global.address, &global.namespace).await?)
            }
            ContentStore::Soci => Local::Soci(Layout::open(global.root.join("content")).await?),
        })
    }

    pub(crate) fn of(containerd: Containerd) -> Local {
        Local::Containerd(ImageStore::new(containerd))
    }

    /// The same to write to: containerd's under the lease of `containerd`, or the layout, made if need be.
    pub(crate) async fn for_writing(global: &Global, containerd: &Containerd) -> Result<Local, Error> {
        Ok(match global.content_store {
            ContentStore::Containerd => Local::of(containerd.clone()),
            ContentStore::Soci => Local::Soci(Layout::create(global.root.join("content")).await?),
        })
    }

    /// The list that goes with the store.
    pub(crate) fn artifacts(global: &Global) -> Result<Artifacts, Error> {
        match global.content_store {
            ContentStore::Containerd => containerd_artifacts(global),
            ContentStore::Soci => Artifacts::of(&global.root, "soci"),
        }
    }

    pub(crate) fn store(&self) -> &dyn Store {
        match self {
            Local::Containerd(store) => store,
            Local::Soci(layout) => layout,
        }
    }

    /// A blob of at most `limit` bytes, compared with its digest.
    pub(crate) async fn read(&self, digest: &Digest, limit: u64) -> Result<Bytes, Error> {
        let read = match self {
            Local::Containerd(store) => store.containerd().read_whole(digest, limit).await,
            Local::Soci(layout) => layout.read_blob(digest, limit).await,
        };
        read.map_err(|error| match error.kind() {
            oci::ErrorKind::NotFound => {
                // What the Go tool says here, word for word.
                Error::new(ErrorKind::NotFound, format!("couldn't retrieve artifact for {digest}, not found"))
            }
            _ => error.into(),
        })
    }

    /// Takes a blob away.
    pub(crate) async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        match self {
            Local::Containerd(store) => store.containerd().delete(digest).await,
            Local::Soci(layout) => Ok(layout.remove(digest).await?),
        }
    }

    /// All blobs, in no order. Of a layout's the size is not known.
    pub(crate) async fn blobs(&self) -> Result<Vec<Stored>, Error> {
        match self {
            Local::Containerd(store) => store.containerd().list().await,
            Local::Soci(layout) => {
                let digests = layout.blobs().await?;
                Ok(digests.into_iter().map(|digest| Stored { digest, size: None }).collect())
            }
        }
    }

    /// The first bytes of a blob, at most `length`; to see what it may be.
    pub(crate) async fn peek(&self, stored: &Stored, length: u64) -> Result<Bytes, Error> {
        let (length, doing) = (stored.size.unwrap_or(length).min(length), "look into a blob");
        let bytes = match self {
            Local::Containerd(store) => store.containerd().read(&stored.digest, 0, length).await?,
            Local::Soci(layout) => layout.head(&stored.digest, length).await?,
        };
        Ok(oci::blob::collect(bytes, length, doing).await?)
    }
}

/// The list of what lies in containerd's store, of this namespace; one at another address is another store.
pub(crate) fn containerd_artifacts(global: &Global) -> Result<Artifacts, Error> {
    let path = global.address.strip_prefix("unix://").unwrap_or(&global.address);
    let other = match path {
        DEFAULT_ADDRESS => String::new(),
        path => format!("-{}", &Digest::sha256(path.as_bytes()).hex()[..8]),
    };
    Artifacts::of(&global.root, &format!("containerd-{}{other}", global.namespace))
}
