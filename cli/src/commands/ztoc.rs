//! `soci ztoc`: what a ztoc says, and one file of a layer by means of it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use oci::blob::{Blob, collect};
use oci::{Digest, Error as OciError, ErrorKind as OciErrorKind};
use serde::Serialize;
use ztoc::{EntryKind, UncompressedOffset, Ztoc};

use crate::args::GetFile;
use crate::error::{Error, ErrorKind};
use crate::output::Output;
use crate::place::{BlobPlace, Registries};

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

pub(super) async fn info(place: &str, registries: &Registries, output: &Output) -> Result<(), Error> {
    let ztoc = open(place, registries).await?;
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
    output.json(&Info {
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
pub(super) async fn get_file(args: &GetFile, registries: &Registries, output: &Output) -> Result<(), Error> {
    let invalid = |message: &str| Error::new(ErrorKind::Invalid, message);
    let (Some(place), Some(name)) = (&args.ztoc, &args.name) else {
        return Err(invalid("please provide both a ztoc digest and a filename to extract"));
    };
    let Some(layer) = &args.layer else {
        return Err(invalid(
            "please provide the layer of the ztoc: --layer docker://HOST/REPOSITORY@sha256:…",
        ));
    };
    let ztoc = open(place, registries).await?;
    let range = locate(&ztoc, name)?;
    let layer = Layer::open(layer, registries)?;
    let mut spans = std::collections::BTreeMap::new();
    for span in ztoc.spans().covering(range.clone()) {
        let span = ztoc::SpanId(span);
        let compressed = ztoc.spans().compressed(span);
        spans.insert(span.0, layer.read(compressed.start.0..compressed.end.0).await?);
    }
    let doing = format!("extract {name}");
    let bytes = ztoc
        .extract(range, &mut |span, _| Ok(spans.remove(&span.0).unwrap_or_default()))
        .map_err(|cause| failed(&doing, cause))?;
    match &args.output {
        None => output.bytes(&bytes),
        Some(path) => {
            std::fs::write(path, bytes).map_err(|e| Error::io(format!("write {}", path.display()), e))?;
        }
    }
    Ok(())
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

enum Layer {
    Remote(Arc<dyn Blob>),
    File(File),
}

impl Layer {
    fn open(place: &str, registries: &Registries) -> Result<Layer, Error> {
        match BlobPlace::parse(place)? {
            BlobPlace::File(path) => {
                let file = File::open(&path).map_err(|e| Error::io(format!("open {}", path.display()), e))?;
                Ok(Layer::File(file))
            }
            BlobPlace::Registry(reference, digest) => {
                Ok(Layer::Remote(registries.open(&reference)?.blob(&digest, None)))
            }
        }
    }

    async fn read(&self, range: std::ops::Range<u64>) -> Result<Vec<u8>, Error> {
        let length = range.end.saturating_sub(range.start);
        match self {
            Layer::Remote(blob) => {
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

async fn open(place: &str, registries: &Registries) -> Result<Ztoc, Error> {
    let bytes = match BlobPlace::parse(place)? {
        BlobPlace::File(path) => read_file(&path, ZTOC_BYTES_MAX)?,
        BlobPlace::Registry(reference, digest) => {
            let registry = registries.open(&reference)?;
            let fetched = fetch(&*registry.blob(&digest, None), &digest).await;
            match fetched {
                Ok(bytes) => bytes,
                Err(error) => {
                    let missing = error.kind() == OciErrorKind::NotFound;
                    if missing && registry.manifest(&digest.to_string()).await.is_ok() {
                        let message = "the provided digest belongs to a SOCI index. Use `soci index info` to \
                                       get the detailed information about it";
                        return Err(Error::new(ErrorKind::Invalid, message));
                    }
                    return Err(error.into());
                }
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

/// A file of at most `limit` bytes.
pub(super) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let doing = format!("read {}", path.display());
    let io = |cause| Error::io(doing.clone(), cause);
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(ErrorKind::Unsupported, format!("{doing}: it is longer than {limit} bytes")));
    }
    Ok(bytes)
}

fn failed(doing: &str, cause: ztoc::Error) -> Error {
    let kind = match cause.kind() {
        ztoc::ErrorKind::Corrupt => ErrorKind::Corrupt,
        ztoc::ErrorKind::Unsupported | ztoc::ErrorKind::TooLarge => ErrorKind::Unsupported,
        ztoc::ErrorKind::Io => ErrorKind::Io,
    };
    Error::new(kind, doing).because(cause)
}
