//! A v1 index for each platform of an image: ztocs, and a manifest whose subject is the image manifest. The image
//! stays as it is; who looks for its index asks what refers to it.

use bytes::Bytes;
use oci::image::media_type::OCI_MANIFEST;
use oci::{Descriptor, Platform, Store};

use crate::build::{BuildOptions, Copies, Layers, Observer};
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

/// Builds the indexes of the image that `source` (tag or digest) names in `from`, and writes them to `to`. A platform
/// none of whose layers gets a ztoc gets no index; if that goes for every one, the call fails with
/// [`ErrorKind::NoZtocs`]. Also says what the name stands for.
pub async fn create(
    from: &dyn Store,
    source: &str,
    to: &dyn Store,
    platforms: &Platforms,
    options: &BuildOptions,
    observer: Observer<'_>,
) -> Result<(Descriptor, Vec<Created>), Error> {
    let image = Source::read(from, source, Missing::Keep).await?;
    let targets = image.choose(platforms)?;
    if image.has_candidate(&targets, options.min_layer_size) {
        // Who may not write learns it before the layers were read.
        let empty = Descriptor::of(Version::V1.artifact_type(), EMPTY_CONFIG);
        to.write_blob(&empty, Bytes::from_static(EMPTY_CONFIG)).await?;
    }
    let mut layers = Layers::new(from, to, Copies::Nothing, options);
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
