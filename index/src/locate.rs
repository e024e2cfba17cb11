//! From an image manifest to its SOCI index: a digest given by hand, else the manifest's annotation (v2), else
//! the registry's referrers (v1, off unless asked for). What is found is fetched by digest, compared with it, and
//! parsed. An annotation that points to nothing is an error and no reason to look further: the image says it has
//! an index.

use oci::{Digest, Manifest, Registry};
use tracing::debug;

use crate::error::{Error, ErrorKind};
use crate::manifest::{ARTIFACT_V1, INDEX_DIGEST, SociIndex};

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// an index named by hand: nothing else is looked at
    pub explicit: Option<Digest>,
    pub annotation: Lookup,
    pub referrers: Lookup,
}

/// Whether a source is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    On,
    Off,
}

impl Default for Sources {
    fn default() -> Sources {
        Sources { explicit: None, annotation: Lookup::On, referrers: Lookup::Off }
    }
}

/// The index of the image whose manifest is `image`, or None if it has none. `manifest`: its bytes, where the
/// caller has them (and has compared them with the digest); else they are fetched if needed.
pub async fn locate(
    registry: &Registry,
    image: &Digest,
    manifest: Option<&[u8]>,
    sources: &Sources,
) -> Result<Option<SociIndex>, Error> {
    if let Some(digest) = &sources.explicit {
        return fetch(registry, digest).await.map(Some);
    }
    if sources.annotation == Lookup::On {
        let fetched;
        let bytes = match manifest {
            Some(bytes) => bytes,
            None => {
                fetched = registry.manifest(&image.to_string()).await?.1;
                &fetched
            }
        };
        if let Some(digest) = annotated(bytes)? {
            return fetch(registry, &digest).await.map(Some);
        }
    }
    if sources.referrers == Lookup::On {
        let found = registry.referrers(image, Some(ARTIFACT_V1)).await?;
        if let Some(first) = found.first() {
            debug!(%image, index = %first.digest, of = found.len(), "referrer");
            return fetch(registry, &first.digest).await.map(Some);
        }
    }
    Ok(None)
}

/// The index an image manifest names in its annotation.
pub fn annotated(manifest: &[u8]) -> Result<Option<Digest>, Error> {
    let doing = "read image manifest";
    let manifest = Manifest::parse(manifest, doing)?;
    let Some(text) = manifest.annotations.get(INDEX_DIGEST).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let digest: Result<Digest, oci::Error> = text.parse();
    digest.map(Some).map_err(|cause| Error::new(ErrorKind::Corrupt, doing).because(cause))
}

/// An index by its digest.
pub async fn fetch(registry: &Registry, digest: &Digest) -> Result<SociIndex, Error> {
    let (_, bytes) = registry.manifest(&digest.to_string()).await?;
    SociIndex::parse(*digest, &bytes)
}
