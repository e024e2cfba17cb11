//! `soci create`: v1 indexes for an image that stays as it is. In containerd they go to the local store and are held
//! by a label of the image; in a registry or a layout they refer to the image where it is.

use index::{Created, Platforms, Version};
use oci::{Platform, Store};

use super::Tools;
use super::building::{Hearing, index_artifact, options, platforms};
use crate::args::Create;
use crate::error::{Error, ErrorKind};
use crate::local::Local;
use crate::place::{ImagePlace, open_source};
use crate::store::{Containerd, ImageStore, Labels};

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
        place @ (ImagePlace::Registry(_) | ImagePlace::Layout(..)) => {
            let options = options(&args.building, None)?;
            let platforms = platforms(&args.building.platform, args.building.all_platforms, Platforms::All)?;
            let opened = open_source(&place, &tools.registries, None).await?;
            let hearing = Hearing::new(tools.output, &options);
            let store = &*opened.store;
            let hear = |event: index::Event<'_>| hearing.hear(event);
            let (_, created) = index::create(store, &opened.name, store, &platforms, &options, &hear).await?;
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
    let options = options(&args.building, Some(&artifacts))?;
    let host = Platforms::OneOf(Platform::host());
    let platforms = platforms(&args.building.platform, args.building.all_platforms, host)?;
    let store = ImageStore::new(containerd.clone());
    let (name, _) = store.find(name).await?;
    let local = Local::for_writing(tools.global, containerd).await?;
    let hearing = Hearing::new(tools.output, &options);
    let hear = |event: index::Event<'_>| hearing.hear(event);
    let to: &dyn Store = local.store();
    let (image, created) = index::create(&store, &name, to, &platforms, &options, &hear).await?;
    if let Local::Containerd(_) = local {
        containerd.label_image(&name, labels(&created)).await?;
    }
    let mut made = hearing.made();
    made.extend(created.iter().map(|created| {
        let Created { platform, subject, index } = created;
        index_artifact(index, Version::V1, platform, subject.digest, image.digest)
    }));
    artifacts.add(made)?;
    tell(&created, tools);
    Ok(())
}

/// The Go tool has one label, so that of several platforms' indexes the last is kept and the others are collected.
/// Here each platform has its own beside it.
fn labels(created: &[Created]) -> Labels {
    let mut labels = Labels::new();
    for Created { platform, index, .. } in created {
        labels.insert(INDEX_LABEL.to_owned(), index.digest.to_string());
        if created.len() > 1 {
            let platform = platform.to_string().replace('/', "-");
            labels.insert(format!("{INDEX_LABEL}.{platform}"), index.digest.to_string());
        }
    }
    labels
}

fn tell(created: &[Created], tools: &Tools<'_>) {
    for Created { platform, index, .. } in created {
        tools.output.line(&format!("platform {platform} -> index {}", index.digest));
    }
}
