//! `soci convert`: from place to place, with the indexes built on the way.

use index::{ConvertOptions, Missing, Platforms, Report, Route, Version};
use oci::Platform;

use super::Tools;
use super::index_options::{BuildProgress, index_artifact, list, options, platforms_of};
use crate::args::Convert;
use crate::artifacts::Artifacts;
use crate::containerd::Containerd;
use crate::error::{Error, ErrorKind};
use crate::local_store::containerd_artifacts;
use crate::location::{ImagePlace, open_destination, open_source};

pub(super) async fn run(args: &Convert, tools: &Tools<'_>) -> Result<(), Error> {
    let (source, destination) = places(args)?;
    if source.is_containerd() || destination.is_containerd() {
        let work = async |containerd: &Containerd| {
            convert(args, &source, &destination, tools, Some(containerd)).await
        };
        return tools.leased("convert", work).await;
    }
    convert(args, &source, &destination, tools, None).await
}

fn places(args: &Convert) -> Result<(ImagePlace, ImagePlace), Error> {
    let missing = |what: &str| Error::new(ErrorKind::Invalid, format!("{what} needs to be specified"));
    let given = |word: &'_ Option<String>| word.clone().filter(|word| !word.is_empty());
    let source = &given(&args.source).ok_or_else(|| missing("source image"))?;
    let destination = &given(&args.destination).ok_or_else(|| missing("destination"))?;
    if !args.standalone {
        return Ok((ImagePlace::parse(source)?, ImagePlace::parse(destination)?));
    }
    let destination = match args.format.as_str() {
        "oci-archive" => ImagePlace::Archive(destination.into(), String::new()),
        "oci-dir" => ImagePlace::Alone(destination.into()),
        other => {
            let why = format!("unsupported output format {other:?}: must be \"oci-archive\" or \"oci-dir\"");
            return Err(Error::new(ErrorKind::Invalid, why));
        }
    };
    Ok((ImagePlace::of_path(source)?, destination))
}

/// `containerd`: where either place is in it, under a lease.
async fn convert(
    args: &Convert,
    source: &ImagePlace,
    destination: &ImagePlace,
    tools: &Tools<'_>,
    containerd: Option<&Containerd>,
) -> Result<(), Error> {
    let (tag, named) = target_of(destination)?;
    let artifacts = match destination.is_containerd() {
        true => Some(containerd_artifacts(tools.global)?),
        false => None,
    };
    artifacts.as_ref().map_or(Ok(()), Artifacts::check)?;
    let options = ConvertOptions {
        platforms: default_platforms(args, source)?,
        missing: match source {
            ImagePlace::Layout(..) | ImagePlace::Alone(_) | ImagePlace::Archive(..) => Missing::Drop,
            ImagePlace::Registry(_) | ImagePlace::Containerd(_) => Missing::Keep,
        },
        build: options(&args.building, artifacts.as_ref())?,
    };
    let from = open_source(source, &tools.registries, containerd).await?;
    let to = open_destination(destination, &tools.registries, containerd).await?;
    let route = Route { from: &*from.store, source: &from.name, to: &*to, tag: &tag };
    let hearing = BuildProgress::new(tools.output, &options.build);
    let report = index::convert(route, &options, &|event| hearing.hear(event)).await?;
    tell(&report, &named, tools);
    if let Some(artifacts) = artifacts {
        let mut made = hearing.made();
        made.extend(report.platforms.iter().filter_map(|(platform, indexed)| {
            let indexed = indexed.as_ref()?;
            let (_, image) = indexed.image;
            Some(index_artifact(&indexed.index, Version::V2, platform, image, report.image.digest))
        }));
        list(&artifacts, made, tools.output);
    }
    Ok(())
}

fn tell(report: &Report, named: &str, tools: &Tools<'_>) {
    for (platform, indexed) in &report.platforms {
        match indexed {
            Some(indexed) => {
                tools.output.line(&format!("platform {platform} -> index {}", indexed.index.digest));
            }
            None => tools.output.line(&format!("platform {platform} has no layer to index")),
        }
    }
    tools.output.line(&format!("created image {named}@{}", report.image.digest));
}

/// In containerd the Go tool's default, this machine's platform; elsewhere all, since a tag that loses platforms is a
/// broken tag.
fn default_platforms(args: &Convert, source: &ImagePlace) -> Result<Platforms, Error> {
    let default = match source.is_containerd() {
        true => Platforms::OneOf(Platform::host()),
        false => Platforms::All,
    };
    platforms_of(&args.building, default)
}

/// The tag to write, and the destination as the user is told of it. No tag is guessed, since it replaces what is
/// there.
fn target_of(destination: &ImagePlace) -> Result<(String, String), Error> {
    let in_layout = |transport: &str, path: &std::path::Path, name: &str| {
        let separator = if name.is_empty() { "" } else { ":" };
        (name.to_owned(), format!("{transport}:{}{separator}{name}", path.display()))
    };
    let form = "the destination image must be a tagged ref of the form \"registry/repository:tag\"";
    let refuse = |name: &dyn std::fmt::Display, why: &str| {
        Error::new(ErrorKind::Invalid, format!("{form}: {name} {why}"))
    };
    let tagged = |reference: &oci::Reference| match (reference.digest(), reference.tag()) {
        (Some(_), _) => Err(refuse(reference, "has a digest")),
        (None, None) => Err(refuse(reference, "has no tag")),
        (None, Some(tag)) => Ok(tag.to_owned()),
    };
    match destination {
        ImagePlace::Layout(folder, name) => Ok(in_layout("oci", folder, name)),
        ImagePlace::Alone(folder) => Ok(in_layout("oci", folder, "")),
        ImagePlace::Archive(file, name) => Ok(in_layout("oci-archive", file, name)),
        ImagePlace::Registry(reference) => Ok((tagged(reference)?, reference.to_string())),
        ImagePlace::Containerd(name) => {
            let reference: oci::Reference =
                name.parse().map_err(|cause| Error::from_oci(format!("{form}: {name}"), cause))?;
            tagged(&reference)?;
            // Under the very name that was given: the caller looks it up by that name.
            Ok((name.clone(), name.clone()))
        }
    }
}
