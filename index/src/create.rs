//! A v1 index for each platform of an image: ztocs, and a manifest whose subject is the image manifest. The image
//! stays as it is; a client finds the index by asking what refers to the image.

use bytes::Bytes;
use oci::image::media_type::OCI_MANIFEST;
use oci::{Descriptor, Platform, Store};

use crate::build::{BuildOptions, Copies, LayerIndexer, Observer};
use crate::error::{Error, ErrorKind};
use crate::manifest::{EMPTY_CONFIG, Version, encode_v1};
use crate::source::{Missing, Platforms, Source};

/// An index that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// as it was asked for
    pub platform: Platform,
    /// the image manifest it refers to
    pub subject: Descriptor,
    /// the index, with its artifact type
    pub index: Descriptor,
}

/// From where to where, and for which platforms.
#[derive(Debug, Clone, Copy)]
pub struct CreateRoute<'a> {
    pub from: &'a dyn Store,
    /// tag or digest
    pub source: &'a str,
    /// where ztocs and indexes go
    pub to: &'a dyn Store,
    pub platforms: &'a Platforms,
    pub missing: Missing,
}

/// Builds the indexes of an image, and writes them. A platform
/// none of whose layers gets a ztoc gets no index; if that goes for every one, the call fails with
/// [`ErrorKind::NoZtocs`]. Also says what the name stands for.
pub async fn create(
    route: CreateRoute<'_>,
    options: &BuildOptions,
    observer: Observer<'_>,
) -> Result<(Descriptor, Vec<Created>), Error> {
    let CreateRoute { from, source, to, platforms, missing } = route;
    let image = Source::read(from, source, missing).await?;
    let targets = image.choose(platforms)?;
    if image.has_candidate(&targets, options.min_layer_size) {
        // A caller that may not write learns it before the layers are read.
        let empty = Descriptor::of(Version::V1.artifact_type(), EMPTY_CONFIG);
        to.write_blob(&empty, Bytes::from_static(EMPTY_CONFIG)).await?;
    }
    let mut layers = LayerIndexer::new(from, to, Copies::Nothing, options);
    let mut created = Vec::new();
    for (platform, digest) in targets {
        let entries = layers.build(image.manifest(&platform, &digest)?, observer).await?;
        if entries.is_empty() {
            continue;
        }
        let subject = image.entry(&digest);
        let bytes = encode_v1(entries, &subject, &options.build_tool);
        let mut index = Descriptor::of(OCI_MANIFEST, &bytes);
        index.artifact_type = Version::V1.artifact_type().to_owned();
        to.write_referrer(&index, bytes.into()).await?;
        created.push(Created { platform, subject, index });
    }
    if created.is_empty() {
        return Err(Error::new(ErrorKind::NoZtocs, format!("create index of {source}")));
    }
    Ok((image.target, created))
}
