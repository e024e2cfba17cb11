//! An image in a store -> the same image with SOCI indexes, in the same store or another. Read, build, rewrite,
//! write, in that order and each once. The source is never touched; the same input and options give the same
//! bytes. The tag is written last: whoever reads it sees the old image or the new one, whole.
//!
//! A platform none of whose layers gets a ztoc stays in the image without an index; if that goes for every
//! platform asked for, the conversion is an error ([`ErrorKind::NoZtocs`]) and nothing is tagged.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci::image::media_type::{OCI_MANIFEST, is_index, is_manifest};
use oci::store::MANIFEST_BYTES_MAX;
use oci::{Config, Descriptor, Digest, Index, Manifest, Platform, Store};
use tracing::{debug, info};

use crate::build::{BuildOptions, LayerReport, Layers};
use crate::error::{Error, ErrorKind};
use crate::manifest::{EMPTY_CONFIG, Version, encode_v2};
use crate::rewrite::{NewIndex, Rewritten, index_of_one, is_soci_index, rewrite};

/// Blobs copied side by side: two keep a link busy while one waits for its registry to settle.
const COPIES_AT_ONCE: usize = 3;
/// An image index inside an image index inside … : nobody makes more.
const NESTING_MAX: usize = 4;
/// Manifests of one image that are read at most: platforms, attestations and SOCI indexes of all there are.
const MANIFESTS_MAX: usize = 512;

/// From where to where.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    pub from: &'a dyn Store,
    /// tag or digest
    pub source: &'a str,
    pub to: &'a dyn Store,
    pub tag: &'a str,
}

/// Which platforms get an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    All,
    /// in this order; one that the image lacks is an error
    These(Vec<Platform>),
}

/// How to convert.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    pub platforms: Platforms,
    pub build: BuildOptions,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// the new image index
    pub image: Descriptor,
    /// each platform asked for, and its SOCI index if it got one
    pub platforms: Vec<(Platform, Option<Digest>)>,
}

/// See the module. `report` hears of each layer as it is done with.
pub async fn convert(
    route: Route<'_>,
    options: &ConvertOptions,
    report: &(dyn Fn(&LayerReport) + Sync),
) -> Result<Report, Error> {
    let source = read_source(route.from, route.source).await?;
    let targets = choose(&source, &options.platforms)?;
    if has_candidate(&source, &targets, options.build.min_layer_size) {
        // First of all the smallest thing that has to be written: who may not write learns it now and not after
        // the layers were read.
        let empty = Descriptor::of(Version::V2.artifact_type(), EMPTY_CONFIG);
        route.to.write_blob(&empty, Bytes::from_static(EMPTY_CONFIG)).await?;
    }

    let mut layers = Layers::new(route.from, route.to, &options.build);
    let mut built = Vec::new();
    let mut platforms = Vec::new();
    for (platform, digest) in targets {
        let image = source.manifests.get(&digest).ok_or_else(|| absent(&platform))?;
        let ztocs = layers.build(image, report).await?;
        let soci = (!ztocs.is_empty()).then(|| {
            let bytes = encode_v2(ztocs, &options.build.build_tool);
            NewIndex { image: digest, platform: platform.clone(), bytes }
        });
        platforms.push((platform, soci.as_ref().map(|soci| Digest::sha256(&soci.bytes))));
        built.extend(soci);
    }
    if built.is_empty() {
        return Err(Error::new(ErrorKind::NoZtocs, format!("convert {}", route.source)));
    }
    let rewritten = rewrite(source.index.clone(), &source.manifests, &built);
    write(route, &source, &built, &rewritten).await?;
    Ok(Report { image: rewritten.index.0, platforms })
}

/// The image as it is.
struct Source {
    index: Index,
    /// of the index's entries those that are there and are manifests of images (or attestations)
    manifests: BTreeMap<Digest, Manifest>,
    /// each entry's platform, where it has one or its configuration says
    platforms: Vec<(Platform, Digest)>,
}

async fn read_source(from: &dyn Store, name: &str) -> Result<Source, Error> {
    let doing = format!("read image {} {name}", from.name());
    let target = from.resolve(name).await?;
    let bytes = from.read_manifest(&target).await?;
    let (index, known) = if is_index(&target.media_type) {
        (Index::parse(&bytes, &doing)?, None)
    } else if is_manifest(&target.media_type) {
        let manifest = Manifest::parse(&bytes, &doing)?;
        let platform = read_platform(from, &manifest).await?;
        (index_of_one(&target, platform), Some((target.digest, manifest)))
    } else {
        let why = format!("its media type is {:?}", target.media_type);
        return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
    };
    if index.manifests().len() > MANIFESTS_MAX {
        let why = format!("it has more than {MANIFESTS_MAX} manifests");
        return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
    }
    let mut source = Source { manifests: known.into_iter().collect(), index, platforms: Vec::new() };
    for entry in source.index.manifests().iter().filter(|entry| !is_soci_index(entry)) {
        if !source.manifests.contains_key(&entry.digest) && is_manifest(&entry.media_type) {
            match from.read_manifest(entry).await {
                Ok(bytes) => {
                    let manifest = Manifest::parse(&bytes, &doing)?;
                    source.manifests.insert(entry.digest, manifest);
                }
                Err(error) if error.kind() == oci::ErrorKind::NotFound => {
                    debug!(digest = %entry.digest, "entry is not there");
                }
                Err(error) => return Err(error.into()),
            }
        }
        let platform = match (&entry.platform, source.manifests.get(&entry.digest)) {
            (Some(platform), _) => Some(platform.clone()),
            (None, Some(manifest)) => Some(read_platform(from, manifest).await?),
            (None, None) => None,
        };
        source.platforms.extend(platform.map(|platform| (platform, entry.digest)));
    }
    Ok(source)
}

/// The normalised platform an image's configuration names.
async fn read_platform(from: &dyn Store, manifest: &Manifest) -> Result<Platform, Error> {
    let config = &manifest.config;
    let doing = format!("read configuration {}", config.digest);
    if config.size > MANIFEST_BYTES_MAX {
        let why = format!("it has {} bytes; more than {MANIFEST_BYTES_MAX} are not read", config.size);
        return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
    }
    let stream = from.blob(config).read_all().await?;
    let bytes = oci::blob::collect(stream, config.size, &doing).await?;
    config.verify(&bytes, &doing)?;
    Ok(Config::parse(&bytes, &doing)?.platform.normalised())
}

/// The platforms to index, each with its image manifest; each platform once.
fn choose(source: &Source, wanted: &Platforms) -> Result<Vec<(Platform, Digest)>, Error> {
    let platforms: Vec<Platform> = match wanted {
        Platforms::These(these) => these.clone(),
        Platforms::All => {
            let known = source.platforms.iter().filter(|(platform, _)| !platform.is_unknown());
            known.map(|(platform, _)| platform.clone()).collect()
        }
    };
    let mut chosen: Vec<(Platform, Digest)> = Vec::new();
    for platform in platforms {
        if chosen.iter().any(|(other, _)| other.matches(&platform)) {
            continue;
        }
        let found = source.platforms.iter().find(|(other, _)| platform.matches(other));
        let (_, digest) = found.ok_or_else(|| absent(&platform))?;
        chosen.push((platform, *digest));
    }
    if chosen.is_empty() {
        let error = Error::new(ErrorKind::NotFound, "choose platforms");
        return Err(error.because("the image names no platform"));
    }
    Ok(chosen)
}

/// Whether any layer is big enough for a ztoc.
fn has_candidate(source: &Source, targets: &[(Platform, Digest)], min: u64) -> bool {
    let images = targets.iter().filter_map(|(_, digest)| source.manifests.get(digest));
    images.flat_map(Manifest::layers).any(|layer| layer.size >= min)
}

fn absent(platform: &Platform) -> Error {
    Error::new(ErrorKind::NotFound, format!("image manifest for {platform}"))
}

/// Everything the image consists of, what is pointed to before what points to it.
async fn write(
    route: Route<'_>,
    source: &Source,
    built: &[NewIndex],
    rewritten: &Rewritten,
) -> Result<(), Error> {
    let to = route.to;
    let blobs = source.manifests.values().flat_map(blobs_of);
    copy_blobs(route, blobs).await?;
    // Entries that were not rewritten and stay: earlier SOCI indexes, image indexes inside this one.
    let kept = |entry: &&Descriptor| {
        let mut new = rewritten.manifests.iter().map(|(descriptor, _)| descriptor.digest);
        let made = built.iter().any(|soci| Digest::sha256(&soci.bytes) == entry.digest);
        !made && !new.any(|digest| digest == entry.digest)
    };
    let index = Index::parse(&rewritten.index.1, "read the new image index")?;
    for entry in index.manifests().iter().filter(kept) {
        copy_tree(route, entry, NESTING_MAX).await?;
    }
    for soci in built {
        let descriptor = Descriptor::of(OCI_MANIFEST, &soci.bytes);
        to.write_manifest(&descriptor, soci.bytes.clone().into()).await?;
    }
    for (descriptor, bytes) in &rewritten.manifests {
        to.write_manifest(descriptor, bytes.clone().into()).await?;
    }
    let (descriptor, bytes) = &rewritten.index;
    to.write_tag(route.tag, descriptor, bytes.clone().into()).await?;
    info!(image = %descriptor.digest, tag = route.tag, "converted");
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

/// A manifest or image index as it is, with everything below it. What the source lacks is left out, as it was.
async fn copy_tree(route: Route<'_>, entry: &Descriptor, depth: usize) -> Result<(), Error> {
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
            Box::pin(copy_tree(route, child, depth - 1)).await?;
        }
    } else {
        copy_blobs(route, blobs_of(&Manifest::parse(&bytes, &doing)?)).await?;
    }
    route.to.write_manifest(entry, bytes).await?;
    Ok(())
}
