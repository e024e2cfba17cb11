//! Old image index and new SOCI indexes in, new image index out; pure. Every manifest that was read is written again in
//! canonical form, with the names of the OCI types. A manifest that got an index points to it, and the index's descriptor
//! points back. The same input gives the same bytes, and those are the Go tool's, but for this:
//!
//! - The Go tool drops the annotations of attestation descriptors, and with them what they attest. Here they
//!   stay, and point to the image manifest under its new digest.
//! - The Go tool also rewrites the SOCI indexes already there, into nothing useful, before it replaces them; and
//!   fails when one is not replaced. Here they are left alone until replaced.
//! - The Go tool does not look into nested image indexes. Here the images in them get their indexes, too.

use std::collections::BTreeMap;

use oci::image::media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use oci::{Descriptor, Digest, Index, Manifest, Platform, canonical_json};

use crate::manifest::{ARTIFACT_V2, IMAGE_MANIFEST_DIGEST, INDEX_DIGEST};

/// Annotations that tie an attestation to its image begin so.
const ATTESTATION_PREFIX: &str = "vnd.docker.reference.";
/// Of these, the one that holds the image manifest's digest.
const ATTESTATION_DIGEST: &str = "vnd.docker.reference.digest";

/// A SOCI index made for one image manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewIndex {
    /// the image manifest it was made for, by its digest before the rewriting
    pub image: Digest,
    /// the platform as it was asked for
    pub platform: Platform,
    /// the index's own bytes
    pub bytes: Vec<u8>,
}

impl NewIndex {
    pub fn descriptor(&self) -> Descriptor {
        let mut descriptor = Descriptor::of(OCI_MANIFEST, &self.bytes);
        descriptor.artifact_type = ARTIFACT_V2.to_owned();
        descriptor
    }
}

/// Everything to be written, in that order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// the image manifests, each once, and behind them the nested indexes that name them
    pub manifests: Vec<(Descriptor, Vec<u8>)>,
    /// the image index, last
    pub index: (Descriptor, Vec<u8>),
    /// what each manifest's digest became
    pub renamed: BTreeMap<Digest, Digest>,
}

/// The image index to work on where the source is one manifest.
pub fn index_of_one(target: &Descriptor, platform: Platform) -> Index {
    let mut entry = target.clone();
    entry.platform = Some(platform);
    Index::of(vec![entry])
}

/// Whether an entry of an image index is a SOCI index (v2).
pub fn is_soci_index(entry: &Descriptor) -> bool {
    entry.artifact_type == ARTIFACT_V2
}

/// The image indexes inside an image index, at any depth, and the manifests in them.
#[derive(Debug, Clone, Copy)]
pub struct Nested<'a> {
    pub indexes: &'a BTreeMap<Digest, Index>,
    pub manifests: &'a BTreeMap<Digest, Manifest>,
}

/// Rewrites `index`. `manifests` holds, by digest, the manifests of the entries that were there to be read;
/// entries without one stay as they are. `built` is in the order of the platforms. Of the nested indexes, those are
/// rewritten that have an image that got an index, and in them those images alone.
pub fn rewrite(
    mut index: Index,
    manifests: &BTreeMap<Digest, Manifest>,
    nested: Nested<'_>,
    built: &[NewIndex],
) -> Rewritten {
    let mut renamed = BTreeMap::new();
    let mut written = Vec::new();
    let mut entries = index.manifests.take().unwrap_or_default();
    for entry in entries.iter_mut().filter(|entry| !is_soci_index(entry)) {
        if let Some(inner) = nested.indexes.get(&entry.digest) {
            rewrite_nested(entry, inner.clone(), nested, built, &mut renamed, &mut written);
            continue;
        }
        let Some(manifest) = manifests.get(&entry.digest) else { continue };
        let soci = built.iter().rev().find(|new| new.image == entry.digest);
        rewrite_entry(entry, manifest, soci, &mut renamed, &mut written);
    }
    follow(&mut entries, &renamed);
    for new in built {
        place(&mut entries, describe(new, &renamed));
    }
    index.media_type = OCI_INDEX.to_owned();
    index.manifests = Some(entries);
    let bytes = canonical_json(&index);
    Rewritten { manifests: written, index: (Descriptor::of(OCI_INDEX, &bytes), bytes), renamed }
}

/// Rewrites the manifest of an entry, and has the entry name it by its new digest.
fn rewrite_entry(
    entry: &mut Descriptor,
    manifest: &Manifest,
    soci: Option<&NewIndex>,
    renamed: &mut BTreeMap<Digest, Digest>,
    written: &mut Vec<(Descriptor, Vec<u8>)>,
) {
    let (bytes, annotations) = rewrite_manifest(manifest.clone(), soci);
    let new = Descriptor::of(OCI_MANIFEST, &bytes);
    if renamed.insert(entry.digest, new.digest).is_none() {
        written.push((new.clone(), bytes));
    }
    entry.annotations.retain(|key, _| key.starts_with(ATTESTATION_PREFIX));
    entry.annotations.extend(annotations);
    (entry.digest, entry.size, entry.media_type) = (new.digest, new.size, new.media_type);
}

/// Rewrites a nested index if an image in it got an index. What is in it is written before it.
fn rewrite_nested(
    entry: &mut Descriptor,
    mut index: Index,
    nested: Nested<'_>,
    built: &[NewIndex],
    renamed: &mut BTreeMap<Digest, Digest>,
    written: &mut Vec<(Descriptor, Vec<u8>)>,
) {
    let mut has_changed = false;
    let mut entries = index.manifests.take().unwrap_or_default();
    for inner in &mut entries {
        let before = inner.digest;
        if let Some(index) = nested.indexes.get(&before) {
            rewrite_nested(inner, index.clone(), nested, built, renamed, written);
        } else if let Some(manifest) = nested.manifests.get(&before)
            && let Some(soci) = built.iter().rev().find(|new| new.image == before)
        {
            rewrite_entry(inner, manifest, Some(soci), renamed, written);
        }
        has_changed |= inner.digest != before;
    }
    if !has_changed {
        return;
    }
    follow(&mut entries, renamed);
    index.media_type = OCI_INDEX.to_owned();
    index.manifests = Some(entries);
    let bytes = canonical_json(&index);
    let new = Descriptor::of(OCI_INDEX, &bytes);
    if renamed.insert(entry.digest, new.digest).is_none() {
        written.push((new.clone(), bytes));
    }
    (entry.digest, entry.size, entry.media_type) = (new.digest, new.size, new.media_type);
}

/// Attestations and SOCI indexes name their image by its new digest.
fn follow(entries: &mut [Descriptor], renamed: &BTreeMap<Digest, Digest>) {
    for entry in entries {
        let key = if is_soci_index(entry) { IMAGE_MANIFEST_DIGEST } else { ATTESTATION_DIGEST };
        if let Some(value) = entry.annotations.get_mut(key)
            && let Some(new) = value.parse().ok().and_then(|old: Digest| renamed.get(&old))
        {
            *value = new.to_string();
        }
    }
}

fn rewrite_manifest(mut manifest: Manifest, soci: Option<&NewIndex>) -> (Vec<u8>, BTreeMap<String, String>) {
    manifest.media_type = OCI_MANIFEST.to_owned();
    manifest.config.media_type = OCI_CONFIG.to_owned();
    if let Some(soci) = soci {
        let digest = Digest::sha256(&soci.bytes).to_string();
        manifest.annotations.insert(INDEX_DIGEST.to_owned(), digest);
    }
    (canonical_json(&manifest), manifest.annotations)
}

fn describe(new: &NewIndex, renamed: &BTreeMap<Digest, Digest>) -> Descriptor {
    let image = renamed.get(&new.image).unwrap_or(&new.image);
    let mut descriptor = new.descriptor();
    descriptor.annotations.insert(IMAGE_MANIFEST_DIGEST.to_owned(), image.to_string());
    descriptor.platform = Some(new.platform.clone());
    descriptor
}

/// In the place of the index of the same platform, else at the end.
fn place(entries: &mut Vec<Descriptor>, new: Descriptor) {
    let same = |entry: &&mut Descriptor| {
        let platforms = entry.platform.as_ref().zip(new.platform.as_ref());
        is_soci_index(entry) && platforms.is_some_and(|(a, b)| a.normalized() == b.normalized())
    };
    match entries.iter_mut().find(same) {
        Some(entry) => *entry = new,
        None => entries.push(new),
    }
}
