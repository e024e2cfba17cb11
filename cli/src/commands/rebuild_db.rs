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
use crate::artifacts::{Artifact, Kind, List};
use crate::containerd::Stored;
use crate::error::Error;
use crate::local_store::Local;
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

type Places = BTreeMap<Digest, Vec<Place>>;

pub(super) async fn run(tools: &Tools<'_>) -> Result<(), Error> {
    let artifacts = Local::artifacts(tools.global)?;
    let began = time::now();
    let local = Local::open(tools.global).await?;
    let stored = local.blobs().await?;
    let there: BTreeMap<Digest, Option<u64>> = stored.iter().map(|blob| (blob.digest, blob.size)).collect();
    let (mut indexes, mut places) = (Vec::new(), Places::new());
    for blob in &stored {
        let Some(bytes) = document(&local, blob).await? else { continue };
        if let Ok(index) = SociIndex::parse(blob.digest, &bytes) {
            indexes.push((index, bytes.len() as u64));
        } else if of_document(&bytes).is_some_and(|media_type| is_index(&media_type)) {
            for (digest, place) in entries(blob.digest, &bytes) {
                places.entry(digest).or_default().push(place);
            }
        }
    }
    let mut found = List::default();
    for (index, size) in indexes {
        let parts = index.ztocs.iter().map(|part| (Kind::Ztoc, part));
        let parts = parts.chain(index.prefetch.iter().map(|part| (Kind::Prefetch, part)));
        for (kind, (layer, part)) in parts.filter(|(_, (_, part))| there.contains_key(&part.digest)) {
            found.insert(of_part(kind, layer, part));
        }
        if let Some(subject) = index.subject.filter(|subject| !places.contains_key(subject)) {
            // An image that is a single manifest: no index lists it, and its configuration names its platform.
            let platform = platform_of(&local, &subject).await.unwrap_or_default();
            places.insert(subject, vec![Place { of: subject, image: subject, platform }]);
        }
        of_index(&index, size, &places).into_iter().for_each(|artifact| found.insert(artifact));
    }
    artifacts.replace(found, began)
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
    Some(Config::parse(&bytes, doing).ok()?.platform.normalized().to_string())
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

/// An artifact for each image manifest that the index belongs to; none for one that belongs to no image.
fn of_index(index: &SociIndex, size: u64, places: &Places) -> Vec<Artifact> {
    let key = match index.version {
        Version::V1 => index.subject,
        Version::V2 => Some(index.digest),
    };
    let places = key.and_then(|key| places.get(&key)).into_iter().flatten();
    let artifact = |place: &Place| Artifact {
        digest: index.digest,
        size,
        kind: Kind::Index,
        of: place.of,
        image: Some(place.image),
        version: index.version.as_str().to_owned(),
        platform: place.platform.clone(),
        span_size: 0,
        created: time::now(),
        built: false,
    };
    places.map(artifact).collect()
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
        built: false,
    }
}
