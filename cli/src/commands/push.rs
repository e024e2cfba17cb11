//! `soci push`: the newest local v1 index of an image to a registry, with everything it lists. The image itself is
//! not pushed. A v2 index goes with its image, which any client pushes.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use index::manifest::ARTIFACT_V1;
use index::{Missing, Platforms};
use oci::{Descriptor, Digest, Layout, Manifest, Platform, Reference, Registry, Store};

use super::Tools;
use super::index_options::platforms;
use crate::args::Push;
use crate::artifacts::{Artifact, Kind};
use crate::containerd::ImageStore;
use crate::error::{Error, ErrorKind};
use crate::local_store::Local;
use crate::location::ImagePlace;
use crate::output::Output;

/// Uploads side by side where the user says 0.
const UPLOADS: usize = 3;

/// What to do where the registry has an index of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Warn,
    Skip,
    Allow,
}

impl Existing {
    fn parse(text: &str) -> Result<Existing, Error> {
        match text {
            "warn" => Ok(Existing::Warn),
            "skip" => Ok(Existing::Skip),
            "allow" => Ok(Existing::Allow),
            other => {
                let expected = "expected types [warn skip allow]";
                let why = format!("unexpected value for flag existing-index: {other}, {expected}");
                Err(Error::new(ErrorKind::Invalid, why))
            }
        }
    }
}

/// An index to push, and the image manifest it refers to.
struct Pushing {
    index: Digest,
    image: Digest,
}

pub(super) async fn run(args: &Push, tools: &Tools<'_>) -> Result<(), Error> {
    let invalid = |message: &str| Error::new(ErrorKind::Invalid, message);
    let image = args.image.as_deref();
    let image = image.ok_or_else(|| invalid("please provide an image reference to push"))?;
    let existing = Existing::parse(&args.existing_index)?;
    let (local, name, found) = match ImagePlace::parse(image)? {
        ImagePlace::Containerd(name) => from_local(&name, args, tools).await?,
        ImagePlace::Layout(folder, name) => from_layout(folder, &name, args).await?,
        ImagePlace::Registry(_) | ImagePlace::Alone(_) | ImagePlace::Archive(..) => {
            let why = format!("{image}: pushed is from containerd or from oci:FOLDER");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
    };
    let to = match &args.destination {
        Some(to) => to.strip_prefix("docker://").unwrap_or(to),
        None => name.as_deref().ok_or_else(|| invalid("please say where to: docker://HOST/REPOSITORY"))?,
    };
    let reference: Reference = to.parse()?;
    let registry = tools.registries.clone().with_user(args.user.as_deref()).open(&reference)?;
    let pusher = Pusher { from: &*local, to: &registry, existing, args, output: tools.output };
    for pushing in found {
        pusher.push(&pushing).await?;
    }
    Ok(())
}

fn wanted(args: &Push, default: Platforms) -> Result<Platforms, Error> {
    match args.all_platforms {
        true => Ok(Platforms::All),
        false => platforms(&args.platform, default),
    }
}

/// The store, the image's name, and the newest v1 index of each platform, by the list of artifacts.
async fn from_local(
    name: &str,
    args: &Push,
    tools: &Tools<'_>,
) -> Result<(Box<dyn Store>, Option<String>, Vec<Pushing>), Error> {
    let images = ImageStore::new(tools.containerd().await?);
    let (name, _) = images.find(name).await?;
    let local = Local::open(tools.global).await?;
    let artifacts = Local::artifacts(tools.global)?.read()?;
    let wanted = wanted(args, Platforms::OneOf(Platform::host()))?;
    let (_, manifests) = index::images(&images, &name, Missing::Keep, &wanted).await?;
    let mut found = Vec::new();
    for image in manifests {
        let digest = image.descriptor.digest;
        let indexes = artifacts.values().filter(|a| a.kind == Kind::Index && a.of == digest);
        let (first, second): (Vec<&Artifact>, Vec<&Artifact>) = indexes.partition(|a| a.version == "v1");
        if !second.is_empty() {
            tools.output.line(
                "[WARN] Skippping SOCI index manifest v2. You should push the whole image with higher level tools \
                 like finch or nerdctl.",
            );
        }
        // An artifact that was only found here does not take the place of one that was built here.
        let newest = first.into_iter().max_by_key(|artifact| (artifact.built, artifact.created));
        let newest = newest.ok_or_else(|| nothing_for(&image.platform))?;
        found.push(Pushing { index: newest.digest, image: digest });
    }
    let store: Box<dyn Store> = match local {
        Local::Containerd(store) => Box::new(store),
        Local::Soci(layout) => Box::new(layout),
    };
    Ok((store, Some(name), found))
}

async fn from_layout(
    folder: std::path::PathBuf,
    name: &str,
    args: &Push,
) -> Result<(Box<dyn Store>, Option<String>, Vec<Pushing>), Error> {
    let layout = Layout::open(folder).await?;
    let wanted = wanted(args, Platforms::All)?;
    let (_, manifests) = index::images(&layout, name, Missing::Drop, &wanted).await?;
    let mut found = Vec::new();
    for image in manifests {
        let digest = image.descriptor.digest;
        let referrers = layout.referrers(&digest, ARTIFACT_V1).await?;
        let newest = referrers.last().ok_or_else(|| nothing_for(&image.platform))?;
        found.push(Pushing { index: newest.digest, image: digest });
    }
    Ok((Box::new(layout), None, found))
}

fn nothing_for(platform: &Platform) -> Error {
    let why = format!("could not find any soci index manifest v1 to push for platform {platform}");
    Error::new(ErrorKind::NotFound, why)
}

/// What pushes have in common.
struct Pusher<'a> {
    from: &'a dyn Store,
    to: &'a Registry,
    existing: Existing,
    args: &'a Push,
    output: &'a Output,
}

impl Pusher<'_> {
    fn say(&self, line: &str) {
        if !self.args.quiet {
            self.output.line(line);
        }
    }

    async fn push(&self, pushing: &Pushing) -> Result<(), Error> {
        if self.existing != Existing::Allow && self.is_there(pushing).await? {
            return Ok(());
        }
        match self.args.quiet {
            true => self.output.line(&pushing.index.to_string()),
            false => self.say(&format!("pushing soci index with digest: {}", pushing.index)),
        }
        let doing = format!("read SOCI index {}", pushing.index);
        let mut index = self.from.resolve(&pushing.index.to_string()).await?;
        let bytes = self.from.read_manifest(&index).await?;
        let manifest = Manifest::parse(&bytes, &doing)?;
        let parts = std::iter::once(&manifest.config).chain(manifest.layers());
        let parts: BTreeMap<Digest, &Descriptor> = parts.map(|part| (part.digest, part)).collect();
        let uploads = match self.args.max_concurrent_uploads {
            0 => UPLOADS,
            uploads => usize::from(uploads),
        };
        let parts = stream::iter(parts.into_values()).map(|part| self.part(part));
        parts.buffer_unordered(uploads).try_collect::<()>().await?;
        self.say(&format!("pushing artifact with digest: {}", pushing.index));
        index.artifact_type = ARTIFACT_V1.to_owned();
        self.to.write_referrer(&index, bytes).await?;
        self.say(&format!("successfully pushed artifact with digest: {}", pushing.index));
        Ok(())
    }

    /// Whether the registry has an index of the image, and that is enough.
    async fn is_there(&self, pushing: &Pushing) -> Result<bool, Error> {
        self.say("checking if a soci index already exists in remote repository...");
        let there = self.to.referrers(&pushing.image, Some(ARTIFACT_V1)).await;
        let there = there.map_err(|cause| Error::from_oci("failed to fetch list of referrers", cause))?;
        let Some(one) = there.first().map(|index| index.digest) else { return Ok(false) };
        if self.existing == Existing::Skip {
            self.say(&format!(
                "soci index found in remote repository with digest: {one}: skipping pushing artifacts for image \
                 manifest: {}",
                pushing.image
            ));
            return Ok(true);
        }
        self.output.line(&match there.len() {
            1 => format!(
                "[WARN] soci index found in remote repository with digest: {one}: pushing index anyway"
            ),
            _ => "[WARN] multiple soci indices found in remote repository: pushing index anyway".to_owned(),
        });
        Ok(false)
    }

    async fn part(&self, part: &Descriptor) -> Result<(), Error> {
        if self.to.has_blob(part).await? {
            self.say(&format!("skipped artifact with digest: {}", part.digest));
            return Ok(());
        }
        self.say(&format!("pushing artifact with digest: {}", part.digest));
        self.to.copy_blob(part, self.from).await?;
        self.say(&format!("successfully pushed artifact with digest: {}", part.digest));
        Ok(())
    }
}
