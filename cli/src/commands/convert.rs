//! `soci convert`: flags become options, places become stores, and `index` does the work.

use index::{BuildOptions, ConvertOptions, LayerReport, Outcome, Platforms, Route, Skip, XattrOptimization};
use oci::{Platform, Reference};

use crate::args::Convert;
use crate::error::{Error, ErrorKind};
use crate::output::Output;
use crate::place::{ImagePlace, Registries};

pub(super) async fn run(args: &Convert, registries: &Registries, output: &Output) -> Result<(), Error> {
    let missing = |what: &str| Error::new(ErrorKind::Invalid, format!("{what} needs to be specified"));
    let source = args.source.as_deref().ok_or_else(|| missing("source image"))?;
    let destination = args.destination.as_deref().ok_or_else(|| missing("destination"))?;
    let options = options(args)?;
    let ImagePlace::Registry(source) = ImagePlace::parse(source)?;
    let ImagePlace::Registry(destination) = ImagePlace::parse(destination)?;
    let tag = tag_of(&destination)?;

    let from = registries.open(&source)?;
    let to = registries.open(&destination)?;
    let target = source.target();
    let route = Route { from: &from, source: &target, to: &to, tag: &tag };
    let report = index::convert(route, &options, &|layer| output.line(&told(layer))).await?;
    for (platform, soci) in &report.platforms {
        match soci {
            Some(soci) => output.line(&format!("platform {platform} -> index {soci}")),
            None => output.line(&format!("platform {platform} has no layer to index")),
        }
    }
    output.line(&format!("created image {destination}@{}", report.image.digest));
    Ok(())
}

fn options(args: &Convert) -> Result<ConvertOptions, Error> {
    let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
    let span_size =
        u64::try_from(args.span_size).map_err(|_| invalid("span size must be >= 0".to_owned()))?;
    if span_size == 0 {
        return Err(invalid("span size must be more than 0".to_owned()));
    }
    let min_layer_size =
        u64::try_from(args.min_layer_size).map_err(|_| invalid("min layer size must be >= 0".to_owned()))?;
    if let Some(other) = args.optimizations.iter().find(|name| *name != "xattr") {
        return Err(invalid(format!("optimization {other} is not a valid optimization [xattr]")));
    }
    let xattrs =
        if args.optimizations.is_empty() { XattrOptimization::Off } else { XattrOptimization::Annotate };
    let platforms = if args.all_platforms || args.platform.is_empty() {
        Platforms::All
    } else {
        let parsed: Result<Vec<Platform>, oci::Error> =
            args.platform.iter().map(|text| text.parse()).collect();
        Platforms::These(parsed?)
    };
    let build = BuildOptions { span_size, min_layer_size, xattrs, ..BuildOptions::default() };
    Ok(ConvertOptions { platforms, build })
}

/// The tag to write; nothing is guessed, since it replaces what is there.
fn tag_of(destination: &Reference) -> Result<String, Error> {
    let refuse = |why: &str| {
        let form = "the destination image must be a tagged ref of the form \"registry/repository:tag\"";
        Error::new(ErrorKind::Invalid, format!("{form}: {destination} {why}"))
    };
    if destination.digest().is_some() {
        return Err(refuse("has a digest"));
    }
    destination.tag().map(str::to_owned).ok_or_else(|| refuse("has no tag"))
}

/// A layer's line, as the Go tool writes it.
fn told(report: &LayerReport) -> String {
    let LayerReport { layer, outcome } = report;
    match outcome {
        Outcome::Ztoc(ztoc) => format!("layer {} -> ztoc {}", layer.digest, ztoc.digest),
        Outcome::Skipped(skip) => {
            let size = match skip {
                Skip::TooSmall { .. } => format!("size {} ", layer.size),
                Skip::Compression(_) | Skip::Inexpressible(_) => String::new(),
            };
            format!("ztoc skipped - layer {} ({}) {size}{skip}", layer.digest, layer.media_type)
        }
    }
}
