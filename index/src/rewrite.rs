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
    let mut rewriting =
        Rewriting { nested, built, renamed: BTreeMap::new(), written: Vec::new(), indexes: BTreeMap::new() };
    let mut entries = index.manifests.take().unwrap_or_default();
    for entry in entries.iter_mut().filter(|entry| !is_soci_index(entry)) {
        if nested.indexes.contains_key(&entry.digest) {
            rewriting.index(entry);
        } else if let Some(manifest) = manifests.get(&entry.digest) {
            let soci = rewriting.built_for(&entry.digest);
            rewriting.manifest(entry, manifest, soci);
        }
    }
    let Rewriting { renamed, written, .. } = rewriting;
    follow(&mut entries, &renamed);
    for new in built {
        place(&mut entries, describe(new, &renamed));
    }
    index.media_type = OCI_INDEX.to_owned();
    index.manifests = Some(entries);
    let bytes = canonical_json(&index);
    Rewritten { manifests: written, index: (Descriptor::of(OCI_INDEX, &bytes), bytes), renamed }
}

/// What has been rewritten so far.
struct Rewriting<'a> {
    nested: Nested<'a>,
    built: &'a [NewIndex],
    renamed: BTreeMap<Digest, Digest>,
    written: Vec<(Descriptor, Vec<u8>)>,
    /// Nested indexes that were looked at, each once however often it is named: what it became, if it changed.
    indexes: BTreeMap<Digest, Option<Descriptor>>,
}

impl<'a> Rewriting<'a> {
    fn built_for(&self, image: &Digest) -> Option<&'a NewIndex> {
        self.built.iter().rev().find(|new| new.image == *image)
    }

    /// Rewrites the manifest of an entry, and has the entry name it by its new digest.
    fn manifest(&mut self, entry: &mut Descriptor, manifest: &Manifest, soci: Option<&NewIndex>) {
        let (bytes, annotations) = rewrite_manifest(manifest.clone(), soci);
        entry.annotations.retain(|key, _| key.starts_with(ATTESTATION_PREFIX));
        entry.annotations.extend(annotations);
        self.write(entry, Descriptor::of(OCI_MANIFEST, &bytes), bytes);
    }

    /// Rewrites a nested index if an image in it got an index. What is in it is written before it.
    fn index(&mut self, entry: &mut Descriptor) {
        if let Some(known) = self.indexes.get(&entry.digest) {
            if let Some(new) = known {
                (entry.digest, entry.size, entry.media_type) = (new.digest, new.size, new.media_type.clone());
            }
            return;
        }
        let Some(mut index) = self.nested.indexes.get(&entry.digest).cloned() else { return };
        let (old, mut has_changed) = (entry.digest, false);
        let mut entries = index.manifests.take().unwrap_or_default();
        for inner in &mut entries {
            let before = inner.digest;
            if self.nested.indexes.contains_key(&before) {
                self.index(inner);
            } else if let Some(manifest) = self.nested.manifests.get(&before)
                && let Some(soci) = self.built_for(&before)
            {
                self.manifest(inner, manifest, Some(soci));
            }
            has_changed |= inner.digest != before;
        }
        if !has_changed {
            self.indexes.insert(old, None);
            return;
        }
        follow(&mut entries, &self.renamed);
        index.media_type = OCI_INDEX.to_owned();
        index.manifests = Some(entries);
        let bytes = canonical_json(&index);
        let new = Descriptor::of(OCI_INDEX, &bytes);
        self.indexes.insert(old, Some(new.clone()));
        self.write(entry, new, bytes);
    }

    fn write(&mut self, entry: &mut Descriptor, new: Descriptor, bytes: Vec<u8>) {
        if self.renamed.insert(entry.digest, new.digest).is_none() {
            self.written.push((new.clone(), bytes));
        }
        (entry.digest, entry.size, entry.media_type) = (new.digest, new.size, new.media_type);
    }
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
