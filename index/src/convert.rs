//! An image in a store -> the same image with SOCI indexes, in the same store or another. Read, build, rewrite,
//! write, in that order and each once. The source is never touched; the same input and options give the same
//! bytes. The tag is written last: a reader sees the old image or the new one, whole.
//!
//! A platform none of whose layers gets a ztoc stays in the image without an index. If that goes for every platform
//! asked for, the conversion is an error (`ErrorKind::NoZtocs`), and nothing is tagged.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci::image::media_type::is_index;
use oci::{Descriptor, Digest, Index, Manifest, Platform, Store};
use tracing::{debug, info};

use crate::build::{BuildOptions, Copies, LayerIndexer, Observer};
use crate::error::{Error, ErrorKind};
use crate::manifest::{EMPTY_CONFIG, Version, encode_v2};
use crate::rewrite::{Nested, NewIndex, Rewritten, rewrite};
use crate::source::{Missing, NESTING_MAX, Platforms, Source};

/// Blobs copied side by side: two keep a link busy while one waits for its registry to settle.
const COPIES_AT_ONCE: usize = 3;

/// From where to where.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    pub from: &'a dyn Store,
    /// tag or digest
    pub source: &'a str,
    pub to: &'a dyn Store,
    pub tag: &'a str,
}

/// How to convert.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    pub platforms: Platforms,
    pub missing: Missing,
    pub build: BuildOptions,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// the new image index
    pub image: Descriptor,
    /// each platform asked for, and its SOCI index if it got one
    pub platforms: Vec<(Platform, Option<Indexed>)>,
}

/// A platform's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexed {
    pub index: Descriptor,
    /// the image manifest before the conversion, and as it was written
    pub image: (Digest, Digest),
}

/// See the module.
pub async fn convert(
    route: Route<'_>,
    options: &ConvertOptions,
    observer: Observer<'_>,
) -> Result<Report, Error> {
    let source = Source::read(route.from, route.source, options.missing).await?;
    let targets = source.choose(&options.platforms)?;
    if source.has_candidate(&targets, options.build.min_layer_size) {
        // First of all the smallest thing that has to be written: a caller that may not write learns it now and not after
        // the layers were read.
        let empty = Descriptor::of(Version::V2.artifact_type(), EMPTY_CONFIG);
        route.to.write_blob(&empty, Bytes::from_static(EMPTY_CONFIG)).await?;
    }

    let mut layers = LayerIndexer::new(route.from, route.to, Copies::Layers, &options.build);
    let mut built = Vec::new();
    let mut platforms = Vec::new();
    for (platform, digest) in targets {
        let entries = layers.build(source.manifest(&platform, &digest)?, observer).await?;
        let soci = (!entries.is_empty()).then(|| {
            let bytes = encode_v2(entries, &options.build.build_tool);
            NewIndex { image: digest, platform: platform.clone(), bytes }
        });
        platforms.push((platform, digest, soci.is_some()));
        built.extend(soci);
    }
    if built.is_empty() {
        return Err(Error::new(ErrorKind::NoZtocs, format!("convert {}", route.source)));
    }
    let nested = Nested { indexes: &source.nested, manifests: &source.inner };
    let rewritten = rewrite(source.index.clone(), &source.manifests, nested, &built);
    let chosen: BTreeSet<Digest> = platforms.iter().map(|(_, digest, _)| *digest).collect();
    write(route, &source, &chosen, &built, &rewritten).await?;
    let mut indexes = built.iter();
    let platforms = platforms.into_iter().map(|(platform, image, has_index)| {
        let index = if has_index { indexes.next() } else { None };
        let indexed = index.map(|soci| Indexed {
            index: soci.descriptor(),
            image: (image, rewritten.renamed.get(&image).copied().unwrap_or(image)),
        });
        (platform, indexed)
    });
    Ok(Report { platforms: platforms.collect(), image: rewritten.index.0 })
}

/// Everything the image consists of, what is pointed to before what points to it.
async fn write(
    route: Route<'_>,
    source: &Source,
    chosen: &BTreeSet<Digest>,
    built: &[NewIndex],
    rewritten: &Rewritten,
) -> Result<(), Error> {
    let to = route.to;
    let (asked, others): (Vec<_>, Vec<_>) =
        source.manifests.iter().partition(|(digest, _)| chosen.contains(digest));
    copy_blobs(route, asked.into_iter().flat_map(|(_, manifest)| blobs_of(manifest))).await?;
    for (digest, manifest) in others {
        copy_rest(route, digest, manifest).await?;
    }
    let inside = source.inner.iter().filter(|(digest, _)| chosen.contains(digest));
    copy_blobs(route, inside.flat_map(|(_, manifest)| blobs_of(manifest))).await?;
    copy_beside(route, source, rewritten).await?;
    // Entries that were not rewritten and stay: earlier SOCI indexes, image indexes inside this one.
    let kept = |entry: &&Descriptor| {
        let mut new = rewritten.manifests.iter().map(|(descriptor, _)| descriptor.digest);
        let made = built.iter().any(|soci| soci.descriptor().digest == entry.digest);
        !made && !new.any(|digest| digest == entry.digest)
    };
    let index = Index::parse(&rewritten.index.1, "read the new image index")?;
    let mut copied = BTreeSet::new();
    for entry in index.manifests().iter().filter(kept) {
        copy_tree(route, entry, NESTING_MAX, &mut copied).await?;
    }
    for soci in built {
        to.write_manifest(&soci.descriptor(), soci.bytes.clone().into()).await?;
    }
    for (descriptor, bytes) in &rewritten.manifests {
        to.write_manifest(descriptor, bytes.clone().into()).await?;
    }
    let (descriptor, bytes) = &rewritten.index;
    to.write_tag(route.tag, descriptor, bytes.clone().into()).await?;
    info!(image = %descriptor.digest, tag = route.tag, "converted");
    Ok(())
}

/// What stays as it is in nested indexes that were rewritten: attestations, images of other platforms.
async fn copy_beside(route: Route<'_>, source: &Source, rewritten: &Rewritten) -> Result<(), Error> {
    let changed = source.nested.iter().filter(|(digest, _)| rewritten.renamed.contains_key(digest));
    let mut copied = BTreeSet::new();
    for entry in changed.flat_map(|(_, index)| index.manifests()) {
        if rewritten.renamed.contains_key(&entry.digest) || copied.contains(&entry.digest) {
            continue;
        }
        match source.inner.get(&entry.digest) {
            Some(manifest) => {
                copy_rest(route, &entry.digest, manifest).await?;
                let bytes = route.from.read_manifest(entry).await?;
                route.to.write_manifest(entry, bytes).await?;
                copied.insert(entry.digest);
            }
            None => copy_tree(route, entry, NESTING_MAX, &mut copied).await?,
        }
    }
    Ok(())
}

/// Configuration and layers. A layer that is fetched from elsewhere by its URLs is in no store.
fn blobs_of(manifest: &Manifest) -> impl Iterator<Item = &Descriptor> {
    let here = manifest.layers().iter().filter(|layer| layer.urls.is_empty());
    std::iter::once(&manifest.config).chain(here)
}

async fn copy_blobs(route: Route<'_>, blobs: impl Iterator<Item = &Descriptor>) -> Result<(), Error> {
    // Images of several platforms share layers.
    let unique: BTreeMap<Digest, &Descriptor> = blobs.map(|blob| (blob.digest, blob)).collect();
    stream::iter(unique.into_values())
        .map(|blob| route.to.copy_blob(blob, route.from))
        .buffer_unordered(COPIES_AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(())
}

/// The blobs of a manifest that was not asked for. Within one store, what is not there was not there before: a client
/// pulls the blobs of one platform only. Elsewhere the image would lose them.
async fn copy_rest(route: Route<'_>, digest: &Digest, manifest: &Manifest) -> Result<(), Error> {
    match copy_blobs(route, blobs_of(manifest)).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        copied => return copied,
    }
    if route.from.name() == route.to.name() {
        debug!(%digest, "of this manifest not everything is there");
        return Ok(());
    }
    let error = Error::new(ErrorKind::NotFound, format!("copy manifest {digest}"));
    let why = format!("{} has not all of its layers; pull every platform first", route.from.name());
    Err(error.because(why))
}

/// A manifest or image index as it is, with everything below it. What the source lacks is left out, as it was.
/// `copied` has those that were copied, each once however often it is named.
async fn copy_tree(
    route: Route<'_>,
    entry: &Descriptor,
    depth: usize,
    copied: &mut BTreeSet<Digest>,
) -> Result<(), Error> {
    if !copied.insert(entry.digest) {
        return Ok(());
    }
    let bytes = match route.from.read_manifest(entry).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == oci::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let doing = format!("copy {}", entry.digest);
    if is_index(&entry.media_type) {
        if depth == 0 {
            let error = Error::new(ErrorKind::Unsupported, doing);
            return Err(error.because(format!("image indexes nested more than {NESTING_MAX} deep")));
        }
        for child in Index::parse(&bytes, &doing)?.manifests() {
            Box::pin(copy_tree(route, child, depth - 1, copied)).await?;
        }
    } else {
        copy_blobs(route, blobs_of(&Manifest::parse(&bytes, &doing)?)).await?;
    }
    route.to.write_manifest(entry, bytes).await?;
    Ok(())
}
