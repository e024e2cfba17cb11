//! The SOCI index manifest, both versions: layer digest -> ztoc descriptor, written as an OCI manifest whose
//! config's media type says what it is. Pure.
//!
//! It is written in canonical form, because a consumer may encode it again and compare digests. It is hostile when read:
//! its fetcher bounds its size, it must say which version it is, and only entries count that name a layer.

use std::collections::BTreeMap;

use oci::image::media_type::{OCI_MANIFEST, OCTET_STREAM};
use oci::{Descriptor, Digest, Manifest, canonical_json};

use crate::error::{Error, ErrorKind};

/// Artifact types: what a config's media type says of an index.
pub const ARTIFACT_V1: &str = "application/vnd.amazon.soci.index.v1+json";
pub const ARTIFACT_V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// The media type of a prefetch artifact, which stands beside ztocs.
pub const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";

/// Annotations of a ztoc's descriptor.
pub const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
pub const LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
pub const SPAN_SIZE: &str = "com.amazon.soci.span-size";
pub const DISABLE_XATTRS: &str = "com.amazon.soci.disable-xattrs";
/// Annotation of an index.
pub const BUILD_TOOL: &str = "com.amazon.soci.build-tool-identifier";
/// Annotation of an image manifest: its index's digest.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
/// Annotation of an index's descriptor in an image index: the digest of the image manifest it belongs to.
pub const IMAGE_MANIFEST_DIGEST: &str = "com.amazon.soci.image-manifest-digest";

/// The config blob of every index.
pub const EMPTY_CONFIG: &[u8] = b"{}";

/// The two versions of the manifest. They differ in how an image comes to its index: v1 is found as a referrer
/// of the image, v2 stands beside it in the image index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    V1,
    V2,
}

impl Version {
    pub fn artifact_type(self) -> &'static str {
        match self {
            Version::V1 => ARTIFACT_V1,
            Version::V2 => ARTIFACT_V2,
        }
    }

    /// As lists name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V1 => "v1",
            Version::V2 => "v2",
        }
    }
}

/// An index as a consumer wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SociIndex {
    pub digest: Digest,
    pub version: Version,
    /// by the digest of the layer as it is stored
    pub ztocs: BTreeMap<Digest, Descriptor>,
    /// prefetch artifacts, in the same way
    pub prefetch: BTreeMap<Digest, Descriptor>,
    /// what a v1 index refers to
    pub subject: Option<Digest>,
}

impl SociIndex {
    /// Reads an index. `Corrupt` if it is no manifest, `Unsupported` if it is one of something else.
    pub fn parse(digest: Digest, bytes: &[u8]) -> Result<SociIndex, Error> {
        let doing = format!("read SOCI index {digest}");
        let manifest = Manifest::parse(bytes, &doing)?;
        let version = match manifest.config.media_type.as_str() {
            ARTIFACT_V1 => Version::V1,
            ARTIFACT_V2 => Version::V2,
            other => {
                let why = format!("unknown index version {other:?}");
                return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
            }
        };
        if !manifest.media_type.is_empty() && manifest.media_type != OCI_MANIFEST {
            let why = format!("its media type is {:?}", manifest.media_type);
            return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
        }
        let (mut ztocs, mut prefetch) = (BTreeMap::new(), BTreeMap::new());
        for descriptor in manifest.layers.unwrap_or_default() {
            let layer = descriptor.annotations.get(LAYER_DIGEST).and_then(|text| text.parse().ok());
            match (layer, descriptor.media_type.as_str()) {
                // Of several ztocs for one layer the last counts, as for the Go tools; of prefetch artifacts the first.
                (Some(layer), OCTET_STREAM) => _ = ztocs.insert(layer, descriptor),
                (Some(layer), PREFETCH) => _ = prefetch.entry(layer).or_insert(descriptor),
                _ => {}
            }
        }
        let subject = manifest.subject.map(|subject| subject.digest);
        Ok(SociIndex { digest, version, ztocs, prefetch, subject })
    }

    /// The ztoc of a layer; None where the index leaves it out.
    pub fn ztoc(&self, layer: &Digest) -> Option<&Descriptor> {
        self.ztocs.get(layer)
    }
}

/// Whether consumers of this ztoc are told that the layer has no extended attributes.
pub fn disables_xattrs(ztoc: &Descriptor) -> bool {
    let value = ztoc.annotations.get(DISABLE_XATTRS);
    value.is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "TRUE" | "true" | "True"))
}

/// The descriptor of a new ztoc of `layer`, without the optional annotations.
pub fn describe_ztoc(ztoc: &[u8], layer: &Descriptor, span_size: u64) -> Descriptor {
    let mut descriptor = Descriptor::of(OCTET_STREAM, ztoc);
    descriptor.annotations = BTreeMap::from([
        (LAYER_DIGEST.to_owned(), layer.digest.to_string()),
        (LAYER_MEDIA_TYPE.to_owned(), layer.media_type.clone()),
        (SPAN_SIZE.to_owned(), span_size.to_string()),
    ]);
    descriptor
}

/// Writes a v2 index; `ztocs` in the order of the image's layers.
pub fn encode_v2(ztocs: Vec<Descriptor>, build_tool: &str) -> Vec<u8> {
    encode(Version::V2, ztocs, None, build_tool)
}

/// Writes a v1 index of the image whose manifest `image` describes.
pub fn encode_v1(ztocs: Vec<Descriptor>, image: &Descriptor, build_tool: &str) -> Vec<u8> {
    let subject = Descriptor::new(image.media_type.clone(), image.digest, image.size);
    encode(Version::V1, ztocs, Some(subject), build_tool)
}

fn encode(
    version: Version,
    ztocs: Vec<Descriptor>,
    subject: Option<Descriptor>,
    build_tool: &str,
) -> Vec<u8> {
    canonical_json(&Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: String::new(),
        config: Descriptor::of(version.artifact_type(), EMPTY_CONFIG),
        layers: Some(ztocs),
        subject,
        annotations: BTreeMap::from([(BUILD_TOOL.to_owned(), build_tool.to_owned())]),
    })
}
