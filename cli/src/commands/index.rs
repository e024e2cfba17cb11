//! `soci index`: the indexes there are, what an index says, and how to be rid of one.

use index::{Missing, Platforms, SociIndex};
use oci::image::media_type::OCI_MANIFEST;
use oci::store::MANIFEST_BYTES_MAX;
use oci::{Digest, ErrorKind as OciErrorKind, Platform, Store};
use serde::Serialize;
use ztoc::Ztoc;

use super::Tools;
use crate::args::{IndexList, IndexRemove};
use crate::artifacts::{Artifact, Kind};
use crate::containerd::ImageStore;
use crate::error::{Error, ErrorKind};
use crate::files::read_file;
use crate::local_store::Local;
use crate::location::BlobPlace;
use crate::time;

/// A row of the list; an index whose image has several names has several.
#[derive(Serialize)]
struct Listed {
    digest: Digest,
    size: u64,
    image_ref: String,
    platform: String,
    media_type: &'static str,
    manifest_version: String,
    /// RFC 3339
    created: String,
    /// seconds
    #[serde(skip)]
    age: u64,
}

/// Lists the indexes of the local store, newest first.
pub(super) async fn list(args: &IndexList, tools: &Tools<'_>) -> Result<(), Error> {
    let artifacts = Local::artifacts(tools.global)?.read()?;
    let mut found: Vec<&Artifact> = artifacts.values().filter(|a| a.kind == Kind::Index).collect();
    let platforms: Result<Vec<Platform>, oci::Error> =
        args.platform.iter().map(|text| text.parse()).collect();
    let platforms = platforms?;
    if let Some(image) = &args.image {
        let of = of_image(image, &platforms, tools).await?;
        found.retain(|artifact| of.contains(&artifact.of) || artifact.image.is_some_and(|i| of.contains(&i)));
    }
    if !platforms.is_empty() {
        let fits = |artifact: &Artifact| {
            let platform: Option<Platform> = artifact.platform.parse().ok();
            platform.is_some_and(|platform| platforms.iter().any(|wanted| wanted.matches(&platform)))
        };
        found.retain(|artifact| fits(artifact));
    }
    found.sort_by_key(|artifact| std::cmp::Reverse((artifact.created, artifact.digest)));
    if args.listing.quiet && !args.listing.json {
        for artifact in found {
            tools.output.line(&artifact.digest.to_string());
        }
        return Ok(());
    }
    // The names are a courtesy: without containerd there are none.
    let names = match tools.containerd().await {
        Ok(containerd) => containerd.images().await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let mut rows = Vec::new();
    for artifact in found {
        let of = |target: &Digest| artifact.image == Some(*target) || artifact.of == *target;
        let mut called: Vec<&str> =
            names.iter().filter(|(_, target)| of(target)).map(|(name, _)| name.as_str()).collect();
        if called.is_empty() {
            called.push("");
        }
        rows.extend(called.into_iter().map(|name| row(artifact, name)));
    }
    print(rows, args, tools);
    Ok(())
}

fn row(artifact: &Artifact, name: &str) -> Listed {
    Listed {
        digest: artifact.digest,
        size: artifact.size,
        image_ref: name.to_owned(),
        platform: artifact.platform.clone(),
        media_type: OCI_MANIFEST,
        manifest_version: artifact.version.clone(),
        created: time::rfc3339(time::seconds(artifact.created)),
        age: time::seconds(time::now().saturating_sub(artifact.created)),
    }
}

fn print(rows: Vec<Listed>, args: &IndexList, tools: &Tools<'_>) {
    if args.listing.json {
        tools.output.json(&rows);
        return;
    }
    let head = ["DIGEST", "SIZE", "IMAGE REF", "PLATFORM", "MEDIA TYPE", "MANIFEST VERSION", "CREATED"];
    let rows = rows.into_iter().map(|row| {
        [
            row.digest.to_string(),
            row.size.to_string(),
            row.image_ref,
            row.platform,
            row.media_type.to_owned(),
            row.manifest_version,
            format!("{} ago", time::span(row.age)),
        ]
    });
    tools.output.table(head, &rows.collect::<Vec<_>>());
}

/// What the indexes of an image may be listed under: its image index, and the manifests of these platforms (all where
/// none are named).
async fn of_image(image: &str, platforms: &[Platform], tools: &Tools<'_>) -> Result<Vec<Digest>, Error> {
    let images = ImageStore::new(tools.containerd().await?);
    let (name, target) = images.find(image).await?;
    let wanted = match platforms {
        [] => Platforms::All,
        these => Platforms::These(these.to_vec()),
    };
    let (_, manifests) = index::images(&images, &name, Missing::Drop, &wanted).await?;
    let mut of: Vec<Digest> = manifests.into_iter().map(|image| image.descriptor.digest).collect();
    of.push(target.digest);
    Ok(of)
}

/// Prints an index as it is stored, indented.
pub(super) async fn info(place: &str, tools: &Tools<'_>) -> Result<(), Error> {
    let wrong = || {
        let message = "the provided digest is of ztoc not SOCI index. Use \"soci ztoc info\" command to get \
                       detailed info of ztoc";
        Error::new(ErrorKind::Invalid, message)
    };
    let (digest, bytes) = match BlobPlace::parse(place)? {
        BlobPlace::File(path) => {
            let bytes = read_file(&path, MANIFEST_BYTES_MAX)?;
            (Digest::sha256(&bytes), bytes.into())
        }
        BlobPlace::Local(digest) => {
            let is_ztoc = Local::artifacts(tools.global)?
                .read()
                .is_ok_and(|list| list.get(&digest).is_some_and(|artifact| artifact.kind == Kind::Ztoc));
            if is_ztoc {
                return Err(wrong());
            }
            (digest, Local::open(tools.global).await?.read(&digest, MANIFEST_BYTES_MAX).await?)
        }
        BlobPlace::Registry(reference, digest) => {
            let registry = tools.registries.open(&reference)?;
            match registry.manifest(&digest.to_string()).await {
                Ok((_, bytes)) => (digest, bytes),
                Err(error) => {
                    let blob = oci::Descriptor::new("", digest, 0);
                    if error.kind() == OciErrorKind::NotFound
                        && registry.has_blob(&blob).await.unwrap_or(false)
                    {
                        return Err(wrong());
                    }
                    return Err(error.into());
                }
            }
        }
    };
    if let Err(error) = SociIndex::parse(digest, &bytes) {
        if index::Prefetch::parse(&bytes).is_ok() {
            let message = "the provided digest belongs to a prefetch artifact. Use `soci prefetch info`";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        return Err(if Ztoc::from_vec(bytes.into()).is_ok() { wrong() } else { error.into() });
    }
    tools.output.indented(&bytes);
    Ok(())
}

/// Takes indexes out of the list, and those that no image holds out of the store. Their ztocs stay, as other indexes may
/// name them.
pub(super) async fn remove(args: &IndexRemove, tools: &Tools<'_>) -> Result<(), Error> {
    let artifacts = Local::artifacts(tools.global)?;
    let listed = artifacts.read()?;
    let mut digests = Vec::new();
    match &args.image {
        Some(_) if !args.digests.is_empty() => {
            let why = "please provide either index digests or image ref, but not both";
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Some(image) => {
            let of = of_image(image, &[], tools).await?;
            let indexes = listed.values().filter(|a| a.kind == Kind::Index);
            let indexes =
                indexes.filter(|a| of.contains(&a.of) || a.image.is_some_and(|image| of.contains(&image)));
            digests.extend(indexes.map(|artifact| artifact.digest));
        }
        None => {
            for text in &args.digests {
                let digest: Digest = text.parse()?;
                match listed.get(&digest).map(|artifact| artifact.kind) {
                    Some(Kind::Index) => digests.push(digest),
                    Some(Kind::Ztoc | Kind::Prefetch) => {
                        let why = format!("the digest {digest} does not correspond to an index");
                        return Err(Error::new(ErrorKind::Invalid, why));
                    }
                    None => {
                        let why = format!("the index of the digest {digest} doesn't exist");
                        return Err(Error::new(ErrorKind::NotFound, why));
                    }
                }
            }
        }
    }
    if digests.is_empty() {
        return Ok(());
    }
    let local = Local::open(tools.global).await?;
    for digest in &digests {
        // A v2 index is part of an image, perhaps of several: it goes with the last of them.
        if listed.get(digest).is_some_and(|artifact| artifact.version == "v1") {
            local.delete(digest).await?;
        }
    }
    artifacts.change(|list| list.remove(&digests))
}
