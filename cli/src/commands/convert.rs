//! `soci convert`: flags become options, places become stores, and `index` does the work.

use index::{BuildOptions, ConvertOptions, LayerReport, Outcome, Platforms, Route, Skip, XattrOptimization};
use oci::{Layout, Platform, Store};

use crate::args::Convert;
use crate::error::{Error, ErrorKind};
use crate::output::Output;
use crate::place::{ImagePlace, Registries};

pub(super) async fn run(args: &Convert, registries: &Registries, output: &Output) -> Result<(), Error> {
    let missing = |what: &str| Error::new(ErrorKind::Invalid, format!("{what} needs to be specified"));
    let source = args.source.as_deref().ok_or_else(|| missing("source image"))?;
    let destination = args.destination.as_deref().ok_or_else(|| missing("destination"))?;
    let options = options(args)?;
    let (source, destination) = (ImagePlace::parse(source)?, ImagePlace::parse(destination)?);
    let (tag, named) = target_of(&destination)?;

    let (from, source): (Box<dyn Store>, String) = match source {
        ImagePlace::Registry(reference) => (Box::new(registries.open(&reference)?), reference.target()),
        ImagePlace::Layout(folder, name) => (Box::new(Layout::open(folder).await?), name),
    };
    let to: Box<dyn Store> = match destination {
        ImagePlace::Registry(reference) => Box::new(registries.open(&reference)?),
        ImagePlace::Layout(folder, _) => Box::new(Layout::create(folder).await?),
    };
    let route = Route { from: &*from, source: &source, to: &*to, tag: &tag };
    let report = index::convert(route, &options, &|layer| output.line(&told(layer))).await?;
    for (platform, soci) in &report.platforms {
        match soci {
            Some(soci) => output.line(&format!("platform {platform} -> index {soci}")),
            None => output.line(&format!("platform {platform} has no layer to index")),
        }
    }
    output.line(&format!("created image {named}@{}", report.image.digest));
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

/// The tag to write, and the destination as the user is told of it. No tag is guessed, since it replaces what is
/// there.
fn target_of(destination: &ImagePlace) -> Result<(String, String), Error> {
    let reference = match destination {
        ImagePlace::Layout(folder, name) => {
            let separator = if name.is_empty() { "" } else { ":" };
            return Ok((name.clone(), format!("oci:{}{separator}{name}", folder.display())));
        }
        ImagePlace::Registry(reference) => reference,
    };
    let refuse = |why: &str| {
        let form = "the destination image must be a tagged ref of the form \"registry/repository:tag\"";
        Error::new(ErrorKind::Invalid, format!("{form}: {reference} {why}"))
    };
    if reference.digest().is_some() {
        return Err(refuse("has a digest"));
    }
    let tag = reference.tag().ok_or_else(|| refuse("has no tag"))?;
    Ok((tag.to_owned(), reference.to_string()))
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
