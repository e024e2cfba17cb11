//! `soci rebuild-db`: the list of artifacts, made anew from the local store. Indexes of both versions are found by
//! what they are, their ztocs and prefetch artifacts by what the indexes say of them.

use std::collections::BTreeMap;

use index::manifest::{ARTIFACT_V2, IMAGE_MANIFEST_DIGEST, SPAN_SIZE};
use index::{SociIndex, Version};
use oci::image::media_type::{is_index, of_document};
use oci::store::MANIFEST_BYTES_MAX;
use oci::{Config, Descriptor, Digest, Index, Manifest};
use tracing::debug;

use super::Tools;
use crate::artifacts::{Artifact, ByDigest, Kind};
use crate::error::Error;
use crate::local::Local;
use crate::store::Stored;
use crate::time;

/// Nothing shorter is a manifest.
const DOCUMENT_BYTES_MIN: u64 = 10;
/// By so many bytes a document is told from a layer.
const PEEK: u64 = 32;

/// Where something that an image index lists belongs.
#[derive(Clone)]
struct Place {
    /// of a SOCI index its image manifest, of an image manifest itself
    of: Digest,
    image: Digest,
    platform: String,
}

type Places = BTreeMap<Digest, Place>;

pub(super) async fn run(tools: &Tools<'_>) -> Result<(), Error> {
    let artifacts = Local::artifacts(tools.global)?;
    let local = Local::open(tools.global).await?;
    let stored = local.blobs().await?;
    let there: BTreeMap<Digest, Option<u64>> = stored.iter().map(|blob| (blob.digest, blob.size)).collect();
    let (mut indexes, mut places) = (Vec::new(), Places::new());
    for blob in &stored {
        let Some(bytes) = document(&local, blob).await? else { continue };
        if let Ok(index) = SociIndex::parse(blob.digest, &bytes) {
            indexes.push((index, bytes.len() as u64));
        } else if of_document(&bytes).is_some_and(|media_type| is_index(&media_type)) {
            places.extend(entries(blob.digest, &bytes));
        }
    }
    let mut found = ByDigest::new();
    for (index, size) in indexes {
        let parts = index.ztocs.iter().map(|part| (Kind::Ztoc, part));
        let parts = parts.chain(index.prefetch.iter().map(|part| (Kind::Prefetch, part)));
        for (kind, (layer, part)) in parts.filter(|(_, (_, part))| there.contains_key(&part.digest)) {
            found.insert(part.digest, of_part(kind, layer, part));
        }
        if let Some(subject) = index.subject.filter(|subject| !places.contains_key(subject)) {
            // An image that is a single manifest: nobody lists it, its configuration knows its platform.
            let platform = platform_of(&local, &subject).await.unwrap_or_default();
            places.insert(subject, Place { of: subject, image: subject, platform });
        }
        found.extend(of_index(&index, size, &places).map(|artifact| (index.digest, artifact)));
    }
    artifacts.replace(found)
}

/// A blob that may be a document, whole. One that goes while we look was not meant to stay.
async fn document(local: &Local, blob: &Stored) -> Result<Option<bytes::Bytes>, Error> {
    if blob.size.is_some_and(|size| !(DOCUMENT_BYTES_MIN..=MANIFEST_BYTES_MAX).contains(&size)) {
        return Ok(None);
    }
    let start = local.peek(blob, PEEK).await;
    let is_json = start.is_ok_and(|start| start.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{'));
    if !is_json {
        return Ok(None);
    }
    match local.read(&blob.digest, MANIFEST_BYTES_MAX).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => {
            debug!(digest = %blob.digest, "leave out: {}", error.chain());
            Ok(None)
        }
    }
}

/// None where the store has not the whole image, as a store of our own.
async fn platform_of(local: &Local, manifest: &Digest) -> Option<String> {
    let doing = "read image manifest";
    let bytes = local.read(manifest, MANIFEST_BYTES_MAX).await.ok()?;
    let config = Manifest::parse(&bytes, doing).ok()?.config.digest;
    let bytes = local.read(&config, MANIFEST_BYTES_MAX).await.ok()?;
    Some(Config::parse(&bytes, doing).ok()?.platform.normalised().to_string())
}

fn entries(image: Digest, bytes: &[u8]) -> Vec<(Digest, Place)> {
    let index = Index::parse(bytes, "read image index");
    let entries = index.ok().and_then(|index| index.manifests).unwrap_or_default();
    let places = entries.into_iter().filter_map(|entry| {
        let of = match entry.artifact_type.as_str() {
            ARTIFACT_V2 => entry.annotations.get(IMAGE_MANIFEST_DIGEST)?.parse().ok()?,
            _ => entry.digest,
        };
        let platform = entry.platform.map(|platform| platform.to_string()).unwrap_or_default();
        Some((entry.digest, Place { of, image, platform }))
    });
    places.collect()
}

/// None: an index that belongs to no image.
fn of_index(index: &SociIndex, size: u64, places: &Places) -> Option<Artifact> {
    let key = match index.version {
        Version::V1 => index.subject?,
        Version::V2 => index.digest,
    };
    let Place { of, image, platform } = places.get(&key)?.clone();
    Some(Artifact {
        digest: index.digest,
        size,
        kind: Kind::Index,
        of,
        image: Some(image),
        version: index.version.as_str().to_owned(),
        platform,
        span_size: 0,
        created: time::now(),
    })
}

fn of_part(kind: Kind, layer: &Digest, part: &Descriptor) -> Artifact {
    let span_size = part.annotations.get(SPAN_SIZE).and_then(|text| text.parse().ok());
    Artifact {
        digest: part.digest,
        size: part.size,
        kind,
        of: *layer,
        image: None,
        version: String::new(),
        platform: String::new(),
        span_size: span_size.unwrap_or(0),
        created: time::now(),
    }
}
