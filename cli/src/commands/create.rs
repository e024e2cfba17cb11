//! `soci create`: v1 indexes for an image that stays as it is. In containerd they go to the local store, and a label of
//! the image keeps them. In a registry or a layout they refer to the image where it is.

use index::{CreateRoute, Created, Missing, Platforms, Version};
use oci::Platform;

use super::Tools;
use super::index_options::{BuildProgress, index_artifact, list, options, platforms_of};
use crate::args::Create;
use crate::containerd::{Containerd, ImageStore, Labels};
use crate::error::{Error, ErrorKind};
use crate::local_store::Local;
use crate::location::{ImagePlace, open_source};

/// By this label of an image containerd's garbage collector finds its index.
const INDEX_LABEL: &str = "containerd.io/gc.ref.content.soci-index";

pub(super) async fn run(args: &Create, tools: &Tools<'_>) -> Result<(), Error> {
    let image = args.image.as_deref();
    let image = image.ok_or_else(|| Error::new(ErrorKind::Invalid, "source image needs to be specified"))?;
    match ImagePlace::parse(image)? {
        ImagePlace::Containerd(name) => {
            tools
                .leased("create", async |containerd| in_containerd(&name, args, tools, containerd).await)
                .await
        }
        ImagePlace::Archive(..) => {
            let why = format!("{image}: an archive cannot be added to; use oci:FOLDER, or soci convert");
            Err(Error::new(ErrorKind::Unsupported, why))
        }
        place @ (ImagePlace::Registry(_) | ImagePlace::Layout(..) | ImagePlace::Alone(_)) => {
            let options = options(&args.building, None)?;
            let platforms = platforms_of(&args.building, Platforms::All)?;
            let opened = open_source(&place, &tools.registries, None).await?;
            let hearing = BuildProgress::new(tools.output, &options);
            let store = &*opened.store;
            let hear = |event: index::Event<'_>| hearing.hear(event);
            let missing = match place {
                ImagePlace::Layout(..) => Missing::Drop,
                _ => Missing::Keep,
            };
            let route =
                CreateRoute { from: store, source: &opened.name, to: store, platforms: &platforms, missing };
            let (_, created) = index::create(route, &options, &hear).await?;
            tell(&created, tools);
            Ok(())
        }
    }
}

async fn in_containerd(
    name: &str,
    args: &Create,
    tools: &Tools<'_>,
    containerd: &Containerd,
) -> Result<(), Error> {
    let artifacts = Local::artifacts(tools.global)?;
    artifacts.check()?;
    let options = options(&args.building, Some(&artifacts))?;
    let host = Platforms::OneOf(Platform::host());
    let platforms = platforms_of(&args.building, host)?;
    let store = ImageStore::new(containerd.clone());
    let (name, target) = store.find(name).await?;
    let local = Local::for_writing(tools.global, containerd).await?;
    let hearing = BuildProgress::new(tools.output, &options);
    let hear = |event: index::Event<'_>| hearing.hear(event);
    let missing = Missing::Keep;
    let route =
        CreateRoute { from: &store, source: &name, to: local.store(), platforms: &platforms, missing };
    let (image, created) = index::create(route, &options, &hear).await?;
    if let Local::Containerd(_) = local {
        containerd.label_image(&name, &target, labels(&created)).await?;
    }
    let mut made = hearing.made();
    made.extend(created.iter().map(|created| {
        let Created { platform, subject, index } = created;
        index_artifact(index, Version::V1, platform, subject.digest, image.digest)
    }));
    tell(&created, tools);
    list(&artifacts, made, tools.output);
    Ok(())
}

/// The Go tool has one label, so that of several platforms' indexes the last is kept and the others are collected.
/// Here each image manifest has its own beside it.
fn labels(created: &[Created]) -> Labels {
    let mut labels = Labels::new();
    for Created { subject, index, .. } in created {
        labels.insert(INDEX_LABEL.to_owned(), index.digest.to_string());
        // So much of a digest tells an image's manifests apart.
        let manifest = &subject.digest.hex()[..16];
        labels.insert(format!("{INDEX_LABEL}.{manifest}"), index.digest.to_string());
    }
    labels
}

fn tell(created: &[Created], tools: &Tools<'_>) {
    for Created { platform, index, .. } in created {
        tools.output.line(&format!("platform {platform} -> index {}", index.digest));
    }
}
