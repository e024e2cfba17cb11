//! An image as it is in its store: its image index, the manifests that are there, and which of them is for which
//! platform. Read once, before anything is built of it.

use std::collections::BTreeMap;

use oci::image::media_type::{DOCKER_CONFIG, OCI_CONFIG, OCI_INDEX, is_index, is_manifest};
use oci::store::{MANIFEST_BYTES_MAX, read_blob};
use oci::{Config, Descriptor, Digest, Index, Manifest, Platform, Store};
use tracing::debug;

use crate::error::{Error, ErrorKind};
use crate::rewrite::{index_of_one, is_soci_index};

/// Manifests of one image that are read at most: platforms, attestations and SOCI indexes of all there are.
const MANIFESTS_MAX: usize = 512;

/// Bytes of them, together: hundreds of platforms with hundreds of layers each.
const MANIFEST_BYTES_TOTAL: u64 = 64 << 20;

/// Which platforms get an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    All,
    /// in this order; one that the image lacks is an error
    These(Vec<Platform>),
    /// this one, unless the image is a single manifest: then its own
    OneOf(Platform),
}

/// What becomes of entries of the image index that the store has not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Missing {
    /// they stay as they are: a registry has them, or never had
    #[default]
    Keep,
    /// they go, as from a copy of some platforms of an image in a folder
    Drop,
}

/// An image of one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// as it was asked for
    pub platform: Platform,
    /// as the image index has it
    pub descriptor: Descriptor,
    pub manifest: Manifest,
}

/// What a name stands for, and the images of the platforms wanted.
pub async fn images(
    from: &dyn Store,
    name: &str,
    missing: Missing,
    platforms: &Platforms,
) -> Result<(Descriptor, Vec<Image>), Error> {
    let source = Source::read(from, name, missing).await?;
    let chosen = source.choose(platforms)?.into_iter().map(|(platform, digest)| {
        let manifest = source.manifest(&platform, &digest)?.clone();
        Ok::<_, Error>(Image { descriptor: source.entry(&digest), manifest, platform })
    });
    Ok((source.target.clone(), chosen.collect::<Result<_, _>>()?))
}

/// The image as it is.
#[derive(Debug)]
pub(crate) struct Source {
    /// what its name stands for
    pub(crate) target: Descriptor,
    pub(crate) index: Index,
    /// of the index's entries those that are there and are manifests of images (or attestations)
    pub(crate) manifests: BTreeMap<Digest, Manifest>,
    /// each entry's platform, where it has one or its configuration says
    platforms: Vec<(Platform, Digest)>,
    single: bool,
}

impl Source {
    /// Reads an image by tag or digest.
    pub(crate) async fn read(from: &dyn Store, name: &str, missing: Missing) -> Result<Source, Error> {
        let doing = format!("read image {} {name}", from.name());
        let mut target = from.resolve(name).await?;
        let mut bytes = from.read_manifest(&target).await?;
        if missing == Missing::Drop && is_index(&target.media_type) {
            let index = present(from, Index::parse(&bytes, &doing)?, &doing).await?;
            match index.manifests() {
                [only] if is_manifest(&only.media_type) => {
                    target = only.clone();
                    bytes = from.read_manifest(&target).await?;
                }
                _ => bytes = oci::canonical_json(&index).into(),
            }
        }
        if is_index(&target.media_type) {
            return Source::of_index(from, target, Index::parse(&bytes, &doing)?, &doing).await;
        }
        if !is_manifest(&target.media_type) {
            let why = format!("its media type is {:?}", target.media_type);
            return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
        }
        let manifest = Manifest::parse(&bytes, &doing)?;
        let platform = read_platform(from, &manifest).await?;
        Ok(Source {
            index: index_of_one(&target, platform.clone()),
            manifests: BTreeMap::from([(target.digest, manifest)]),
            platforms: vec![(platform, target.digest)],
            single: true,
            target,
        })
    }

    async fn of_index(
        from: &dyn Store,
        target: Descriptor,
        index: Index,
        doing: &str,
    ) -> Result<Source, Error> {
        if index.manifests().len() > MANIFESTS_MAX {
            let why = format!("it has more than {MANIFESTS_MAX} manifests");
            return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
        }
        let (mut manifests, mut platforms) = (BTreeMap::new(), Vec::new());
        let mut left = MANIFEST_BYTES_TOTAL;
        for entry in index.manifests().iter().filter(|entry| !is_soci_index(entry)) {
            if !manifests.contains_key(&entry.digest) && is_manifest(&entry.media_type) {
                match from.read_manifest(entry).await {
                    Ok(bytes) => {
                        left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                            let why = format!("its manifests have more than {MANIFEST_BYTES_TOTAL} bytes");
                            Error::new(ErrorKind::Unsupported, doing).because(why)
                        })?;
                        manifests.insert(entry.digest, Manifest::parse(&bytes, doing)?);
                    }
                    Err(error) if error.kind() == oci::ErrorKind::NotFound => {
                        debug!(digest = %entry.digest, "entry is not there");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let platform = match (&entry.platform, manifests.get(&entry.digest)) {
                (Some(platform), _) => Some(platform.clone()),
                // An artifact without a platform is nobody's image.
                (None, Some(manifest)) if is_image(manifest) => Some(read_platform(from, manifest).await?),
                (None, _) => None,
            };
            platforms.extend(platform.map(|platform| (platform, entry.digest)));
        }
        Ok(Source { target, index, manifests, platforms, single: false })
    }

    /// The platforms wanted, each with its image manifest; each platform once.
    pub(crate) fn choose(&self, wanted: &Platforms) -> Result<Vec<(Platform, Digest)>, Error> {
        let all = || {
            let known = self.platforms.iter().filter(|(platform, _)| !platform.is_unknown());
            known.map(|(platform, _)| platform.clone()).collect()
        };
        let platforms: Vec<Platform> = match wanted {
            Platforms::These(these) => these.clone(),
            Platforms::OneOf(platform) if !self.single => vec![platform.clone()],
            Platforms::OneOf(_) | Platforms::All => all(),
        };
        let mut chosen: Vec<(Platform, Digest)> = Vec::new();
        for platform in platforms {
            let wanted = platform.normalised();
            if chosen.iter().any(|(other, _)| other.normalised() == wanted) {
                continue;
            }
            // Of an image with and one without a feature, the one that was asked for.
            let same = self.platforms.iter().find(|(other, _)| other.normalised() == wanted);
            let found = same.or_else(|| self.platforms.iter().find(|(other, _)| platform.matches(other)));
            let (_, digest) = found.ok_or_else(|| absent(&platform))?;
            chosen.push((platform, *digest));
        }
        if chosen.is_empty() {
            let error = Error::new(ErrorKind::NotFound, "choose platforms");
            return Err(error.because("the image names no platform"));
        }
        Ok(chosen)
    }

    /// The manifest of a platform that was chosen.
    pub(crate) fn manifest(&self, platform: &Platform, digest: &Digest) -> Result<&Manifest, Error> {
        self.manifests.get(digest).ok_or_else(|| absent(platform))
    }

    /// The manifest as the image index has it, or as the name alone does.
    pub(crate) fn entry(&self, digest: &Digest) -> Descriptor {
        let listed = self.index.manifests().iter().find(|entry| entry.digest == *digest);
        listed.unwrap_or(&self.target).clone()
    }

    /// Whether any layer of these platforms is big enough for a ztoc.
    pub(crate) fn has_candidate(&self, targets: &[(Platform, Digest)], min: u64) -> bool {
        let images = targets.iter().filter_map(|(_, digest)| self.manifests.get(digest));
        images.flat_map(Manifest::layers).any(|layer| layer.size >= min)
    }
}

/// The index without the entries that the store has not.
async fn present(from: &dyn Store, mut index: Index, doing: &str) -> Result<Index, Error> {
    let mut kept = Vec::new();
    for entry in index.manifests.take().unwrap_or_default() {
        if from.has_blob(&entry).await? {
            kept.push(entry);
        }
    }
    if kept.is_empty() {
        let error = Error::new(ErrorKind::NotFound, doing);
        return Err(error.because("manifest list contains no entries with available blobs"));
    }
    index.media_type = OCI_INDEX.to_owned();
    index.manifests = Some(kept);
    Ok(index)
}

/// The normalised platform an image's configuration names.
async fn read_platform(from: &dyn Store, manifest: &Manifest) -> Result<Platform, Error> {
    let config = &manifest.config;
    let doing = format!("read configuration {}", config.digest);
    if config.size > MANIFEST_BYTES_MAX {
        let why = format!("it has {} bytes; more than {MANIFEST_BYTES_MAX} are not read", config.size);
        return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
    }
    let bytes = read_blob(from, config, MANIFEST_BYTES_MAX, &doing).await?;
    Ok(Config::parse(&bytes, &doing)?.platform.normalised())
}

fn is_image(manifest: &Manifest) -> bool {
    matches!(manifest.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG | "")
}

fn absent(platform: &Platform) -> Error {
    Error::new(ErrorKind::NotFound, format!("image manifest for {platform}"))
}
