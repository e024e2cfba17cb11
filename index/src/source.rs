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

/// How deep image indexes may lie in each other. A builder that puts an image and its attestation into an index of their
/// own makes two.
pub(crate) const NESTING_MAX: usize = 4;

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
    /// The image indexes inside it, at any depth, that are there.
    pub(crate) nested: BTreeMap<Digest, Index>,
    /// The manifests in those that are there.
    pub(crate) inner: BTreeMap<Digest, Manifest>,
    /// each manifest's platform, where it has one or its configuration says
    platforms: Vec<(Platform, Digest)>,
    single: bool,
}

/// What is still allowed to be read of an image.
struct Budget<'a> {
    manifests: usize,
    bytes: u64,
    /// For errors.
    doing: &'a str,
}

impl Budget<'_> {
    fn take(&mut self, bytes: usize) -> Result<(), Error> {
        let too_much = |why: String| Error::new(ErrorKind::Unsupported, self.doing).because(why);
        self.manifests = self
            .manifests
            .checked_sub(1)
            .ok_or_else(|| too_much(format!("it has more than {MANIFESTS_MAX} manifests")))?;
        self.bytes = self
            .bytes
            .checked_sub(bytes as u64)
            .ok_or_else(|| too_much(format!("its manifests have more than {MANIFEST_BYTES_TOTAL} bytes")))?;
        Ok(())
    }
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
            nested: BTreeMap::new(),
            inner: BTreeMap::new(),
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
        let mut source = Source {
            target,
            index: Index::of(Vec::new()),
            manifests: BTreeMap::new(),
            nested: BTreeMap::new(),
            inner: BTreeMap::new(),
            platforms: Vec::new(),
            single: false,
        };
        let mut budget = Budget { manifests: MANIFESTS_MAX, bytes: MANIFEST_BYTES_TOTAL, doing };
        for entry in index.manifests().iter().filter(|entry| !is_soci_index(entry)) {
            if is_index(&entry.media_type) {
                source.read_nested(from, entry, entry.platform.as_ref(), NESTING_MAX, &mut budget).await?;
                continue;
            }
            let manifest = match source.manifests.get(&entry.digest) {
                Some(manifest) => Some(manifest.clone()),
                None => read_entry(from, entry, &mut budget).await?,
            };
            let platform = platform_of(from, entry, None, manifest.as_ref()).await?;
            source.platforms.extend(platform.map(|platform| (platform, entry.digest)));
            source.manifests.extend(manifest.map(|manifest| (entry.digest, manifest)));
        }
        source.index = index;
        Ok(source)
    }

    /// Reads an image index inside the image index. `platform` is that of the entry that names it.
    async fn read_nested(
        &mut self,
        from: &dyn Store,
        nested: &Descriptor,
        platform: Option<&Platform>,
        depth: usize,
        budget: &mut Budget<'_>,
    ) -> Result<(), Error> {
        if self.nested.contains_key(&nested.digest) {
            return Ok(());
        }
        if depth == 0 {
            let why = format!("image indexes nested more than {NESTING_MAX} deep");
            return Err(Error::new(ErrorKind::Unsupported, budget.doing).because(why));
        }
        let bytes = match from.read_manifest(nested).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == oci::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        budget.take(bytes.len())?;
        let index = Index::parse(&bytes, budget.doing)?;
        if index.manifests().len() > MANIFESTS_MAX {
            let why = format!("an index in it has more than {MANIFESTS_MAX} manifests");
            return Err(Error::new(ErrorKind::Unsupported, budget.doing).because(why));
        }
        for entry in index.manifests().iter().filter(|entry| !is_soci_index(entry)) {
            let own = entry.platform.as_ref().or(platform);
            if is_index(&entry.media_type) {
                Box::pin(self.read_nested(from, entry, own, depth - 1, budget)).await?;
                continue;
            }
            if self.inner.contains_key(&entry.digest) {
                continue;
            }
            let Some(manifest) = read_entry(from, entry, budget).await? else { continue };
            let found = platform_of(from, entry, platform, Some(&manifest)).await?;
            self.platforms.extend(found.map(|found| (found, entry.digest)));
            self.inner.insert(entry.digest, manifest);
        }
        self.nested.insert(nested.digest, index);
        Ok(())
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
            let wanted = platform.normalized();
            if chosen.iter().any(|(other, _)| other.normalized() == wanted) {
                continue;
            }
            // Of an image with and one without a feature, the one that was asked for.
            let same = self.platforms.iter().find(|(other, _)| other.normalized() == wanted);
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
        self.manifests.get(digest).or_else(|| self.inner.get(digest)).ok_or_else(|| absent(platform))
    }

    /// The manifest as an image index has it, or as the name alone does.
    pub(crate) fn entry(&self, digest: &Digest) -> Descriptor {
        let indexes = std::iter::once(&self.index).chain(self.nested.values());
        let listed = indexes.flat_map(Index::manifests).find(|entry| entry.digest == *digest);
        listed.unwrap_or(&self.target).clone()
    }

    /// Whether any layer of these platforms is big enough for a ztoc.
    pub(crate) fn has_candidate(&self, targets: &[(Platform, Digest)], min: u64) -> bool {
        let images = targets.iter().filter_map(|(platform, digest)| self.manifest(platform, digest).ok());
        images.flat_map(Manifest::layers).any(|layer| layer.size >= min)
    }
}

/// The manifest of an entry; none if the store does not have it, or it is something else.
async fn read_entry(
    from: &dyn Store,
    entry: &Descriptor,
    budget: &mut Budget<'_>,
) -> Result<Option<Manifest>, Error> {
    if !is_manifest(&entry.media_type) {
        return Ok(None);
    }
    match from.read_manifest(entry).await {
        Ok(bytes) => {
            budget.take(bytes.len())?;
            Ok(Some(Manifest::parse(&bytes, budget.doing)?))
        }
        Err(error) if error.kind() == oci::ErrorKind::NotFound => {
            debug!(digest = %entry.digest, "entry is not there");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The platform of an entry: its own, that of the index it is in, or the one that its configuration names.
async fn platform_of(
    from: &dyn Store,
    entry: &Descriptor,
    around: Option<&Platform>,
    manifest: Option<&Manifest>,
) -> Result<Option<Platform>, Error> {
    match (&entry.platform, manifest) {
        (Some(platform), _) => Ok(Some(platform.clone())),
        // An artifact without a platform is no image.
        (None, Some(manifest)) if is_image(manifest) => match around {
            Some(platform) => Ok(Some(platform.clone())),
            None => Ok(Some(read_platform(from, manifest).await?)),
        },
        (None, _) => Ok(None),
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

/// The normalized platform an image's configuration names.
async fn read_platform(from: &dyn Store, manifest: &Manifest) -> Result<Platform, Error> {
    let config = &manifest.config;
    let doing = format!("read configuration {}", config.digest);
    if config.size > MANIFEST_BYTES_MAX {
        let why = format!("it has {} bytes; more than {MANIFEST_BYTES_MAX} are not read", config.size);
        return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
    }
    let bytes = read_blob(from, config, MANIFEST_BYTES_MAX, &doing).await?;
    Ok(Config::parse(&bytes, &doing)?.platform.normalized())
}

fn is_image(manifest: &Manifest) -> bool {
    matches!(manifest.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG | "")
}

fn absent(platform: &Platform) -> Error {
    Error::new(ErrorKind::NotFound, format!("image manifest for {platform}"))
}
