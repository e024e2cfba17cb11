//! `soci ztoc`: the ztocs there are, what a ztoc says, and one file of a layer by means of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use index::{Missing, Platforms, SociIndex};
use oci::blob::{Blob, collect};
use oci::store::MANIFEST_BYTES_MAX;
use oci::{Descriptor, Digest, Error as OciError, ErrorKind as OciErrorKind, Store};
use serde::Serialize;
use ztoc::{EntryKind, SpanId, UncompressedOffset, Ztoc};

use super::Tools;
use crate::args::{GetFile, ZtocList};
use crate::artifacts::{Artifact, Kind, List};
use crate::containerd::ImageStore;
use crate::error::{Error, ErrorKind};
use crate::files::read_file;
use crate::local_store::Local;
use crate::location::BlobPlace;
use crate::output::Output;

/// A ztoc takes a third of a percent of its layer and more; none of a layer that exists comes near this.
const ZTOC_BYTES_MAX: u64 = 1 << 30;
/// Links are followed by the very name they hold; one that leads on this often leads nowhere.
const LINKS_MAX: usize = 16;

/// What `info` prints, member for member as the Go tool does.
#[derive(Serialize)]
struct Info {
    version: String,
    build_tool: String,
    size: u64,
    span_size: u64,
    num_spans: u32,
    num_files: usize,
    num_multi_span_files: usize,
    /// none is `null`
    files: Option<Vec<FileInfo>>,
}

#[derive(Serialize)]
struct FileInfo {
    filename: String,
    offset: u64,
    size: u64,
    r#type: &'static str,
    start_span: u32,
    end_span: u32,
}

/// A row of the list as JSON.
#[derive(Serialize)]
struct Listed {
    digest: Digest,
    size: u64,
    layer_digest: Digest,
    span_size: u64,
}

/// Lists the ztocs of the local store.
pub(super) async fn list(args: &ZtocList, tools: &Tools<'_>) -> Result<(), Error> {
    let artifacts = Local::artifacts(tools.global)?.read()?;
    let of_image = match &args.image_ref {
        Some(image) => Some(of_image(image, &artifacts, tools).await?),
        None => None,
    };
    let only: Option<Digest> = args.ztoc_digest.as_deref().map(str::parse).transpose()?;
    let wanted = |artifact: &&Artifact| {
        artifact.kind == Kind::Ztoc
            && only.is_none_or(|only| only == artifact.digest)
            && of_image.as_ref().is_none_or(|these| these.contains(&artifact.digest))
    };
    let found: Vec<&Artifact> = artifacts.values().filter(wanted).collect();
    if found.is_empty() && only.is_some() && of_image.is_some() {
        let why = "the specified ztoc doesn't exist or is not associated with the specified image";
        return Err(Error::new(ErrorKind::NotFound, why));
    }
    if args.listing.json {
        let row = |artifact: &&Artifact| Listed {
            digest: artifact.digest,
            size: artifact.size,
            layer_digest: artifact.of,
            span_size: artifact.span_size,
        };
        tools.output.json(&found.iter().map(row).collect::<Vec<_>>());
    } else if args.listing.quiet {
        for artifact in found {
            tools.output.line(&artifact.digest.to_string());
        }
    } else {
        let row = |artifact: &&Artifact| {
            [artifact.digest.to_string(), artifact.size.to_string(), artifact.of.to_string()]
        };
        tools.output.table(["DIGEST", "SIZE", "LAYER DIGEST"], &found.iter().map(row).collect::<Vec<_>>());
    }
    Ok(())
}

/// The ztocs that the local indexes of an image name.
async fn of_image(image: &str, artifacts: &List, tools: &Tools<'_>) -> Result<BTreeSet<Digest>, Error> {
    let images = ImageStore::new(tools.containerd().await?);
    let (name, target) = images.find(image).await?;
    let (_, manifests) = index::images(&images, &name, Missing::Drop, &Platforms::All).await?;
    let of = |artifact: &&Artifact| {
        artifact.kind == Kind::Index
            && (artifact.image == Some(target.digest)
                || manifests.iter().any(|image| image.descriptor.digest == artifact.of))
    };
    let local = Local::open(tools.global).await?;
    let mut found = BTreeSet::new();
    for index in artifacts.values().filter(of) {
        let bytes = match local.read(&index.digest, MANIFEST_BYTES_MAX).await {
            Ok(bytes) => bytes,
            // It was collected since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        found.extend(SociIndex::parse(index.digest, &bytes)?.ztocs.into_values().map(|ztoc| ztoc.digest));
    }
    Ok(found)
}

pub(super) async fn info(place: &str, tools: &Tools<'_>) -> Result<(), Error> {
    let ztoc = open(place, tools).await?;
    let spans = ztoc.spans();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let files: Vec<FileInfo> = ztoc
        .entries()
        .map(|entry| {
            let start = entry.data().start;
            FileInfo {
                filename: text(entry.name()),
                offset: start.0,
                size: entry.size(),
                r#type: entry.kind().as_str(),
                start_span: spans.span_of(start).0,
                end_span: spans
                    .end_span_as_listed(UncompressedOffset(start.0.saturating_add(entry.size())))
                    .0,
            }
        })
        .collect();
    tools.output.json(&Info {
        version: text(ztoc.version()),
        build_tool: text(ztoc.build_tool()),
        size: ztoc.as_bytes().len() as u64,
        span_size: spans.span_size(),
        num_spans: spans.len(),
        num_files: ztoc.len(),
        num_multi_span_files: files.iter().filter(|file| file.start_span != file.end_span).count(),
        files: Some(files).filter(|files| !files.is_empty()),
    });
    Ok(())
}

/// Prints a file's bytes as they are, or writes them to a file.
pub(super) async fn get_file(args: &GetFile, tools: &Tools<'_>) -> Result<(), Error> {
    let invalid = |message: &str| Error::new(ErrorKind::Invalid, message);
    let (Some(place), Some(name)) = (&args.ztoc, &args.name) else {
        return Err(invalid("please provide both a ztoc digest and a filename to extract"));
    };
    let ztoc = open(place, tools).await?;
    let range = locate(&ztoc, name)?;
    let layer =
        Layer::open(args.layer.as_deref(), &BlobPlace::parse(place)?, ztoc.compressed_size(), tools).await?;
    let mut sink = match &args.output {
        None => Sink::Output(tools.output),
        Some(path) => {
            let file = File::create(path).map_err(|e| Error::io(format!("write {}", path.display()), e))?;
            Sink::File(file, path)
        }
    };
    let table = ztoc.spans();
    let mut at = range.start;
    while at < range.end {
        // As many spans as are inflated side by side, and no more than that in memory.
        let spans = table.covering(at..range.end).take(SPANS_AT_ONCE).map(SpanId);
        let mut compressed = BTreeMap::new();
        let mut end = at;
        for span in spans {
            let place = table.compressed(span);
            compressed.insert(span.0, layer.read(place.start.0..place.end.0).await?);
            end = table.uncompressed(span).end.min(range.end);
        }
        let bytes = ztoc
            .extract(at..end, &mut |span, _| Ok(compressed.remove(&span.0).unwrap_or_default()))
            .map_err(|cause| failed(&format!("extract {name}"), cause))?;
        sink.write(&bytes)?;
        at = end;
    }
    Ok(())
}

/// Spans that are fetched before they are inflated: 4 MiB each, as a rule.
const SPANS_AT_ONCE: usize = 8;

enum Sink<'a> {
    Output(&'a Output),
    File(File, &'a Path),
}

impl Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Sink::Output(output) => output.bytes(bytes),
            Sink::File(file, path) => {
                let written = file.write_all(bytes);
                written.map_err(|cause| Error::io(format!("write {}", path.display()), cause))?;
            }
        }
        Ok(())
    }
}

/// Where the bytes of a file lie; a hard link's are those of the file it names.
fn locate(ztoc: &Ztoc, name: &str) -> Result<std::ops::Range<UncompressedOffset>, Error> {
    let absent = || Error::new(ErrorKind::NotFound, format!("file {name} does not exist in metadata"));
    let mut entry = ztoc.find(name.as_bytes()).ok_or_else(absent)?;
    for _ in 0..LINKS_MAX {
        match entry.kind() {
            EntryKind::Regular => return Ok(entry.data()),
            EntryKind::HardLink | EntryKind::Symlink => {
                entry = ztoc.find(entry.link_target()).ok_or_else(absent)?;
            }
            EntryKind::Directory | EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => break,
        }
    }
    let message = format!("{name} is a {} and has no bytes", entry.kind().as_str());
    Err(Error::new(ErrorKind::Invalid, message))
}

/// Where the spans of a layer come from.
enum Layer {
    Blob(Arc<dyn Blob>),
    File(File),
}

impl Layer {
    /// `ztoc`: the place of its ztoc; the list of artifacts knows the layer of one in the local store.
    async fn open(
        layer: Option<&str>,
        ztoc: &BlobPlace,
        size: u64,
        tools: &Tools<'_>,
    ) -> Result<Layer, Error> {
        let place = match (layer, ztoc) {
            (Some(layer), _) => BlobPlace::parse(layer)?,
            (None, BlobPlace::Local(digest)) => {
                let artifacts = Local::artifacts(tools.global)?.read()?;
                let unknown = || {
                    let why = format!(
                        "{digest} is not in the list of artifacts; try running \"soci rebuild-db\" first"
                    );
                    Error::new(ErrorKind::NotFound, why)
                };
                BlobPlace::Local(artifacts.get(digest).ok_or_else(unknown)?.of)
            }
            (None, _) => {
                let why = "please provide the layer of the ztoc: --layer docker://HOST/REPOSITORY@sha256:…";
                return Err(Error::new(ErrorKind::Invalid, why));
            }
        };
        Ok(match place {
            BlobPlace::File(path) => {
                let file = File::open(&path).map_err(|e| Error::io(format!("open {}", path.display()), e))?;
                Layer::File(file)
            }
            BlobPlace::Registry(reference, digest) => {
                Layer::Blob(tools.registries.open(&reference)?.blob(&digest, Some(size)))
            }
            // Layers are always containerd's.
            BlobPlace::Local(digest) => {
                let store = ImageStore::new(tools.containerd().await?);
                Layer::Blob(store.blob(&Descriptor::new("", digest, size)))
            }
        })
    }

    async fn read(&self, range: std::ops::Range<u64>) -> Result<Vec<u8>, Error> {
        let length = range.end.saturating_sub(range.start);
        match self {
            Layer::Blob(blob) => {
                Ok(collect(blob.read_range(range).await?, length, "fetch span").await?.into())
            }
            Layer::File(file) => {
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
                std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, range.start)
                    .map_err(|cause| Error::io("read span", cause))?;
                Ok(bytes)
            }
        }
    }
}

async fn open(place: &str, tools: &Tools<'_>) -> Result<Ztoc, Error> {
    let wrong = || {
        let message = "the provided digest belongs to a SOCI index. Use `soci index info` to get the detailed \
                       information about it";
        Error::new(ErrorKind::Invalid, message)
    };
    let bytes = match BlobPlace::parse(place)? {
        BlobPlace::File(path) => read_file(&path, ZTOC_BYTES_MAX)?,
        BlobPlace::Local(digest) => {
            let bytes = Local::open(tools.global).await?.read(&digest, ZTOC_BYTES_MAX).await?;
            if SociIndex::parse(digest, &bytes).is_ok() {
                return Err(wrong());
            }
            if index::Prefetch::parse(&bytes).is_ok() {
                let message = "the provided digest belongs to a prefetch artifact. Use `soci prefetch info`";
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            bytes.into()
        }
        BlobPlace::Registry(reference, digest) => {
            let registry = tools.registries.open(&reference)?;
            match fetch(&*registry.blob(&digest, None), &digest).await {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == OciErrorKind::NotFound => {
                    let is_manifest = registry.manifest(&digest.to_string()).await.is_ok();
                    return Err(if is_manifest { wrong() } else { error.into() });
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    Ztoc::from_vec(bytes).map_err(|cause| failed(&format!("read ztoc {place}"), cause))
}

async fn fetch(blob: &dyn Blob, digest: &Digest) -> Result<Vec<u8>, OciError> {
    let doing = format!("fetch ztoc {digest}");
    let bytes = collect(blob.read_all().await?, ZTOC_BYTES_MAX, &doing).await?;
    digest.verify(&bytes, &doing)?;
    Ok(bytes.into())
}

fn failed(doing: &str, cause: ztoc::Error) -> Error {
    let kind = match cause.kind() {
        ztoc::ErrorKind::Corrupt => ErrorKind::Corrupt,
        ztoc::ErrorKind::Unsupported | ztoc::ErrorKind::TooLarge => ErrorKind::Unsupported,
        ztoc::ErrorKind::Io => ErrorKind::Io,
    };
    Error::new(kind, doing).because(cause)
}
