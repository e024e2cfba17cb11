//! What `create` and `convert` have in common: options as typed become options in force, and what the builder tells
//! becomes lines, bars and the list of artifacts.

use std::sync::{Mutex, PoisonError};

use index::manifest::LAYER_DIGEST;
use index::{BuildOptions, Event, LayerReport, Outcome, Platforms, Skip, XattrOptimization};
use oci::{Descriptor, Digest, Platform};

use crate::args::Building;
use crate::artifacts::{Artifact, Artifacts, Kind};
use crate::error::{Error, ErrorKind};
use crate::files::read_file;
use crate::output::Output;
use crate::time;

/// A list of files to prefetch longer than this is refused.
const FILES_BYTES_MAX: u64 = 64 << 20;

/// `known`: the list in which ztocs of earlier builds are found, where there is one.
pub(super) fn options(args: &Building, known: Option<&Artifacts>) -> Result<BuildOptions, Error> {
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
    let mut options = BuildOptions { span_size, min_layer_size, xattrs, ..BuildOptions::default() };
    options.prefetch = args.prefetch_file.clone();
    if let Some(path) = &args.prefetch_files_json {
        let doing = format!("read {}", path.display());
        let bytes = read_file(path, FILES_BYTES_MAX)?;
        let files: Vec<String> = serde_json::from_slice(&bytes).map_err(|cause| {
            Error::new(ErrorKind::Invalid, format!("{doing}: not a JSON array of strings")).because(cause)
        })?;
        options.prefetch.extend(files);
    }
    if let Some(known) = known.filter(|_| !args.force) {
        let list = known.read()?;
        // It is unknown which tool built an artifact that was only found.
        let ztocs = list.values().filter(|artifact| artifact.kind == Kind::Ztoc && artifact.built);
        let ztocs = ztocs.filter(|artifact| artifact.span_size == span_size);
        options.known = ztocs.map(|ztoc| (ztoc.of, Descriptor::new("", ztoc.digest, ztoc.size))).collect();
    }
    Ok(options)
}

/// Platforms as typed; `default` where none are.
pub(super) fn platforms(typed: &[String], default: Platforms) -> Result<Platforms, Error> {
    if typed.is_empty() {
        return Ok(default);
    }
    let parsed: Result<Vec<Platform>, oci::Error> = typed.iter().map(|text| text.parse()).collect();
    Ok(Platforms::These(parsed?))
}

/// The same where all can be asked for, too.
pub(super) fn platforms_of(args: &Building, default: Platforms) -> Result<Platforms, Error> {
    match args.all_platforms {
        true => Ok(Platforms::All),
        false => platforms(&args.platform, default),
    }
}

/// Lists what was made, behind a success: what is not listed is there all the same.
pub(super) fn list(artifacts: &Artifacts, made: Vec<Artifact>, output: &Output) {
    if let Err(error) = artifacts.add(made) {
        output.tell(&format!("{}; soci rebuild-db lists what was made", error.chain()));
    }
}

/// Hears what the builder tells.
pub(super) struct BuildProgress<'a> {
    output: &'a Output,
    span_size: u64,
    made: Mutex<Vec<Artifact>>,
}

impl<'a> BuildProgress<'a> {
    pub(super) fn new(output: &'a Output, options: &BuildOptions) -> BuildProgress<'a> {
        BuildProgress { output, span_size: options.span_size, made: Mutex::default() }
    }

    pub(super) fn hear(&self, event: Event<'_>) {
        match event {
            Event::Begun(layer) => self.output.begun(&layer.digest.to_string(), layer.size),
            Event::Read(layer, bytes) => self.output.read(&layer.to_string(), bytes),
            Event::Done(report) => {
                self.output.ended(&report.layer.digest.to_string());
                self.output.line(&told(report));
                if let Outcome::Ztoc(ztoc) | Outcome::Known(ztoc) = &report.outcome {
                    self.note(Kind::Ztoc, ztoc, &report.layer.digest, self.span_size);
                }
            }
            Event::Prefetch { layer, artifact } => {
                let line = format!("Created prefetch artifact for layer {layer}: {}", artifact.digest);
                self.output.line(&line);
                self.note(Kind::Prefetch, artifact, layer, 0);
            }
            Event::NoSuchFile(path) => {
                self.output.tell(&format!("soci: prefetch file {path} not found in any layer"));
            }
        }
    }

    fn note(&self, kind: Kind, artifact: &Descriptor, layer: &Digest, span_size: u64) {
        debug_assert_eq!(artifact.annotations.get(LAYER_DIGEST), Some(&layer.to_string()));
        let artifact = Artifact {
            digest: artifact.digest,
            size: artifact.size,
            kind,
            of: *layer,
            image: None,
            version: String::new(),
            platform: String::new(),
            span_size,
            created: time::now(),
            built: true,
        };
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(artifact);
    }

    /// The artifacts made, to be listed.
    pub(super) fn made(self) -> Vec<Artifact> {
        self.made.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An index as it is listed. `of`: the image manifest; `image`: what the image's name stands for.
pub(super) fn index_artifact(
    index: &Descriptor,
    version: index::Version,
    platform: &Platform,
    of: Digest,
    image: Digest,
) -> Artifact {
    Artifact {
        digest: index.digest,
        size: index.size,
        kind: Kind::Index,
        of,
        image: Some(image),
        version: version.as_str().to_owned(),
        platform: platform.to_string(),
        span_size: 0,
        created: time::now(),
        built: true,
    }
}

/// A layer's line, as the Go tool writes it.
fn told(report: &LayerReport) -> String {
    let LayerReport { layer, outcome } = report;
    match outcome {
        Outcome::Ztoc(ztoc) => format!("layer {} -> ztoc {}", layer.digest, ztoc.digest),
        Outcome::Known(ztoc) => format!("layer {} -> ztoc {} (already exists)", layer.digest, ztoc.digest),
        Outcome::Skipped(skip) => {
            let size = match skip {
                Skip::TooSmall { .. } => format!("size {} ", layer.size),
                Skip::Compression(_) | Skip::Inexpressible(_) | Skip::Unreadable(_) | Skip::Foreign => {
                    String::new()
                }
            };
            // The image's own words: none of them may pass for a line of ours.
            let media_type = layer.media_type.escape_debug();
            format!("ztoc skipped - layer {} ({media_type}) {size}{skip}", layer.digest)
        }
    }
}
