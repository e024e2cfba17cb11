//! `soci verify`: every ztoc of an image is built anew from its layer and compared with the one that the image's
//! index names. It tells whether an index that was built elsewhere can be trusted.

use index::manifest::ARTIFACT_V1;
use index::{Event, Image, Missing, Platforms, SociIndex, Verdict};
use oci::{Digest, Layout, Store};
use serde::Serialize;

use super::Tools;
use super::index_options::platforms;
use crate::args::Verify;
use crate::artifacts::Kind;
use crate::error::{Error, ErrorKind};
use crate::local_store::Local;
use crate::location::{ImagePlace, Opened, open_source};

/// What was found of one layer.
#[derive(Serialize)]
struct Checked {
    platform: String,
    layer: Digest,
    ztoc: Option<Digest>,
    verdict: String,
    /// the ztoc may be relied on
    #[serde(skip)]
    good: bool,
}

pub(super) async fn run(args: &Verify, tools: &Tools<'_>) -> Result<(), Error> {
    let place = ImagePlace::parse(&args.image)?;
    let containerd = match place.is_containerd() {
        true => Some(tools.containerd().await?),
        false => None,
    };
    let mut opened = open_source(&place, &tools.registries, containerd.as_ref()).await?;
    if let Some(containerd) = containerd {
        opened.name = crate::containerd::ImageStore::new(containerd).find(&opened.name).await?.0;
    }
    let wanted = platforms(&args.platform, Platforms::All)?;
    // Elsewhere there may be a copy of some platforms.
    let missing = match place {
        ImagePlace::Registry(_) => Missing::Keep,
        ImagePlace::Layout(..)
        | ImagePlace::Alone(_)
        | ImagePlace::Archive(..)
        | ImagePlace::Containerd(_) => Missing::Drop,
    };
    let (_, images) = index::images(&*opened.store, &opened.name, missing, &wanted).await?;
    let mut checked = Vec::new();
    for image in &images {
        let found = find(image, &place, &opened, tools).await?;
        check(image, found, &opened, &mut checked, tools).await?;
    }
    print(&checked, args, tools);
    let ztocs = checked.iter().filter(|layer| layer.ztoc.is_some()).count();
    let wrong = checked.iter().filter(|layer| !layer.good).count();
    if wrong > 0 {
        let why = format!("{wrong} of {ztocs} ztocs are not known to be true; build the index anew");
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    if ztocs == 0 {
        let why = format!("{}: no SOCI index was found", args.image);
        return Err(Error::new(ErrorKind::NotFound, why));
    }
    Ok(())
}

/// An image's index and the store its ztocs are in: what the manifest names, else what refers to the manifest.
async fn find(
    image: &Image,
    place: &ImagePlace,
    opened: &Opened,
    tools: &Tools<'_>,
) -> Result<Option<(SociIndex, Box<dyn Store>)>, Error> {
    let annotated = image.manifest.annotations.get(index::manifest::INDEX_DIGEST);
    let same = async || {
        Ok::<_, Error>(match place {
            ImagePlace::Containerd(_) => None,
            _ => Some(open_source(place, &tools.registries, None).await?.store),
        })
    };
    let of = image.descriptor.digest;
    let (digest, store): (Digest, Option<Box<dyn Store>>) = match (annotated, place) {
        (Some(digest), _) => (digest.parse()?, same().await?),
        (None, ImagePlace::Registry(reference)) => {
            let registry = tools.registries.open(reference)?;
            match registry.referrers(&of, Some(ARTIFACT_V1)).await?.first() {
                Some(first) => (first.digest, Some(Box::new(registry))),
                None => return Ok(None),
            }
        }
        (None, ImagePlace::Layout(folder, _) | ImagePlace::Alone(folder)) => {
            let layout = Layout::open(folder).await?;
            match layout.referrers(&of, ARTIFACT_V1).await?.last() {
                Some(last) => (last.digest, Some(Box::new(layout))),
                None => return Ok(None),
            }
        }
        (None, ImagePlace::Containerd(_)) => {
            let artifacts = Local::artifacts(tools.global)?.read()?;
            let indexes = artifacts.values().filter(|a| a.kind == Kind::Index && a.of == of);
            match indexes.max_by_key(|artifact| artifact.created) {
                Some(newest) => (newest.digest, None),
                None => return Ok(None),
            }
        }
        (None, ImagePlace::Archive(..)) => return Ok(None),
    };
    let store = match store {
        Some(store) => store,
        None => match Local::open(tools.global).await? {
            Local::Containerd(store) => Box::new(store),
            Local::Soci(layout) => Box::new(layout) as Box<dyn Store>,
        },
    };
    let descriptor = store
        .resolve(&digest.to_string())
        .await
        .map_err(|cause| Error::from_oci(format!("{} names the SOCI index {digest}", opened.name), cause))?;
    let index = SociIndex::parse(digest, &store.read_manifest(&descriptor).await?)?;
    Ok(Some((index, store)))
}

async fn check(
    image: &Image,
    found: Option<(SociIndex, Box<dyn Store>)>,
    opened: &Opened,
    checked: &mut Vec<Checked>,
    tools: &Tools<'_>,
) -> Result<(), Error> {
    let hear = |event: Event<'_>| match event {
        Event::Begun(layer) => tools.output.begun(&layer.digest.to_string(), layer.size),
        Event::Read(layer, bytes) => tools.output.read(&layer.to_string(), bytes),
        Event::Done(_) | Event::Prefetch { .. } | Event::NoSuchFile(_) => {}
    };
    for layer in image.manifest.layers() {
        let pair = found.as_ref().and_then(|(index, store)| Some((index.ztoc(&layer.digest)?, store)));
        let (verdict, good) = match pair {
            None => ("no ztoc".to_owned(), true),
            Some((ztoc, store)) => {
                let verdict = index::verify(&*opened.store, layer, &**store, ztoc, &hear).await;
                tools.output.ended(&layer.digest.to_string());
                match verdict? {
                    Verdict::Same => ("true, byte for byte".to_owned(), true),
                    Verdict::True => ("true".to_owned(), true),
                    doubt @ (Verdict::False(_) | Verdict::Unknown(_)) => (doubt.to_string(), false),
                }
            }
        };
        checked.push(Checked {
            platform: image.platform.to_string(),
            layer: layer.digest,
            ztoc: pair.map(|(ztoc, _)| ztoc.digest),
            verdict,
            good,
        });
    }
    Ok(())
}

fn print(checked: &[Checked], args: &Verify, tools: &Tools<'_>) {
    if args.json {
        tools.output.json(&checked);
        return;
    }
    let rows = checked.iter().map(|layer| {
        let ztoc = layer.ztoc.map(|ztoc| ztoc.to_string()).unwrap_or_default();
        [layer.platform.clone(), layer.layer.to_string(), ztoc, layer.verdict.clone()]
    });
    tools.output.table(["PLATFORM", "LAYER DIGEST", "ZTOC DIGEST", "VERDICT"], &rows.collect::<Vec<_>>());
}
