//! The layers of an image in, their ztocs out. Each layer streams once from its blob through `ztoc::Builder` and
//! is kept nowhere; on the way its digest and size are compared with its descriptor. Layers run side by side
//! under a limit, the processor's work away from the async threads. A layer that gets no ztoc is named with its
//! reason; a layer that is not what its descriptor says fails the whole.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci::blob::verified;
use oci::image::media_type::{DOCKER_LAYER, OCI_LAYER, OCI_LAYER_PREFIX};
use oci::{ByteStream, Descriptor, Digest, Manifest, Store};
use tokio::sync::mpsc;
use tracing::info;
use ztoc::{Builder, Built, Compression};

use crate::error::{Error, ErrorKind};
use crate::manifest::{DISABLE_XATTRS, PREFETCH, describe_ztoc};

/// Layers built side by side: enough to keep two processors busy while a third layer waits for its network.
const LAYERS_AT_ONCE: usize = 2;
/// Pieces of a layer between the network and the builder; some 16 KiB each.
const PIECES_WAITING_MAX: usize = 64;
/// Smaller layers are quicker fetched whole; the Go tool's number.
pub const MIN_LAYER_SIZE: u64 = 10 << 20;

/// How ztocs are made.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// uncompressed bytes between checkpoints
    pub span_size: u64,
    /// layers of fewer (compressed) bytes get no ztoc
    pub min_layer_size: u64,
    /// what the ztocs and the index say they were built by; part of every digest
    pub build_tool: String,
    pub xattrs: XattrOptimization,
}

/// Whether ztocs of layers without extended attributes say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrOptimization {
    Annotate,
    Off,
}

impl Default for BuildOptions {
    fn default() -> BuildOptions {
        BuildOptions {
            span_size: ztoc::DEFAULT_SPAN_SIZE,
            min_layer_size: MIN_LAYER_SIZE,
            build_tool: ztoc::DEFAULT_BUILD_TOOL.to_owned(),
            xattrs: XattrOptimization::Off,
        }
    }
}

/// What became of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerReport {
    pub layer: Descriptor,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// the descriptor as it stands in the index
    Ztoc(Box<Descriptor>),
    Skipped(Skip),
}

/// Why a layer has no ztoc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    TooSmall {
        min: u64,
    },
    /// the compression its media type names
    Compression(String),
    /// the layer is sound and a ztoc cannot express it
    Inexpressible(String),
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Skip::TooSmall { min } => write!(f, "is less than min-layer-size {min}"),
            Skip::Compression(name) => {
                write!(
                    f,
                    "is compressed in an unsupported format. expect: [tar, gzip, unknown] but got {name:?}"
                )
            }
            Skip::Inexpressible(why) => write!(f, "cannot be indexed: {why}"),
        }
    }
}

/// Builds the ztocs of image after image, each layer once, however many images share it.
pub struct Layers<'a> {
    from: &'a dyn Store,
    to: &'a dyn Store,
    options: &'a BuildOptions,
    done: BTreeMap<(Digest, String), Outcome>,
}

impl<'a> Layers<'a> {
    /// Layers come from `from`; ztocs go to `to` as soon as they are made.
    pub fn new(from: &'a dyn Store, to: &'a dyn Store, options: &'a BuildOptions) -> Layers<'a> {
        Layers { from, to, options, done: BTreeMap::new() }
    }

    /// The ztocs of an image's layers, in the order of the layers; empty where no layer gets one. `report` hears
    /// of each layer that was not met before.
    pub async fn build(
        &mut self,
        image: &Manifest,
        report: &(dyn Fn(&LayerReport) + Sync),
    ) -> Result<Vec<Descriptor>, Error> {
        let mut wanted = Vec::new();
        for layer in image.layers() {
            if layer.media_type == PREFETCH {
                continue;
            }
            let compression = algorithm(&layer.media_type)?;
            if !self.done.contains_key(&key(layer))
                && !wanted.iter().any(|(other, _)| key(other) == key(layer))
            {
                wanted.push((layer.clone(), compression));
            }
        }
        let this = &*self;
        let mut outcomes = stream::iter(wanted)
            .map(|(layer, compression)| async move {
                let outcome = this.one(&layer, compression).await?;
                Ok::<_, Error>(LayerReport { layer, outcome })
            })
            .buffer_unordered(LAYERS_AT_ONCE);
        let mut fresh = Vec::new();
        while let Some(layer) = outcomes.try_next().await? {
            report(&layer);
            fresh.push(layer);
        }
        drop(outcomes);
        self.done.extend(fresh.into_iter().map(|report| (key(&report.layer), report.outcome)));
        let ztocs = image.layers().iter().filter_map(|layer| match self.done.get(&key(layer)) {
            Some(Outcome::Ztoc(ztoc)) => Some(Descriptor::clone(ztoc)),
            Some(Outcome::Skipped(_)) | None => None,
        });
        Ok(ztocs.collect())
    }

    async fn one(
        &self,
        layer: &Descriptor,
        compression: Result<Compression, String>,
    ) -> Result<Outcome, Error> {
        let min = self.options.min_layer_size;
        if layer.size < min {
            return Ok(Outcome::Skipped(Skip::TooSmall { min }));
        }
        let compression = match compression {
            Ok(compression) => compression,
            Err(name) => return Ok(Outcome::Skipped(Skip::Compression(name))),
        };
        info!(layer = %layer.digest, size = layer.size, "build ztoc");
        let options =
            ztoc::Options { span_size: self.options.span_size, build_tool: self.options.build_tool.clone() };
        let doing = format!("build ztoc of layer {}", layer.digest);
        let builder = Builder::new(compression, &options).map_err(|e| failed(e, &doing))?;
        let source = self.from.blob(layer).read_all().await?;
        let source = verified(source, layer.digest, layer.size);
        let built = match run(builder, source, &doing).await? {
            Ok(built) => built,
            Err(error) => match error.kind() {
                ztoc::ErrorKind::Unsupported | ztoc::ErrorKind::TooLarge => {
                    return Ok(Outcome::Skipped(Skip::Inexpressible(error.to_string())));
                }
                ztoc::ErrorKind::Corrupt | ztoc::ErrorKind::Io => return Err(failed(error, &doing)),
            },
        };
        let mut ztoc = describe_ztoc(&built.ztoc, layer, self.options.span_size);
        let plain = !built.has_xattrs && !built.has_opaque;
        if plain && self.options.xattrs == XattrOptimization::Annotate {
            ztoc.annotations.insert(DISABLE_XATTRS.to_owned(), "true".to_owned());
        }
        self.to.write_blob(&ztoc, built.ztoc.into()).await?;
        Ok(Outcome::Ztoc(Box::new(ztoc)))
    }
}

impl fmt::Debug for Layers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layers")
            .field("from", &self.from)
            .field("done", &self.done.len())
            .finish_non_exhaustive()
    }
}

/// A layer through a builder. The outer error is the stream's: broken, or not the layer it should be. The stream
/// is read to its end even after the builder has refused, so that no refusal rests on bytes that were wrong.
async fn run(
    mut builder: Builder,
    mut source: ByteStream,
    doing: &str,
) -> Result<Result<Built, ztoc::Error>, Error> {
    let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES_WAITING_MAX);
    // It ends when `sender` goes, at the latest when this future is dropped.
    let work = tokio::task::spawn_blocking(move || {
        let mut sink = std::io::sink();
        while let Some(piece) = pieces.blocking_recv() {
            builder.push(&piece, &mut sink)?;
        }
        builder.finish(&mut sink)
    });
    let mut sender = Some(sender);
    while let Some(piece) = source.try_next().await? {
        if let Some(open) = &sender
            && open.send(piece).await.is_err()
        {
            sender = None;
        }
    }
    drop(sender);
    work.await.map_err(|cause| Error::new(ErrorKind::Io, doing).because(cause))
}

fn failed(error: ztoc::Error, doing: &str) -> Error {
    let kind = match error.kind() {
        ztoc::ErrorKind::Corrupt => ErrorKind::Corrupt,
        ztoc::ErrorKind::Unsupported | ztoc::ErrorKind::TooLarge => ErrorKind::Unsupported,
        ztoc::ErrorKind::Io => ErrorKind::Io,
    };
    Error::new(kind, doing).because(error)
}

fn key(layer: &Descriptor) -> (Digest, String) {
    (layer.digest, layer.media_type.clone())
}

/// How a layer of this media type is compressed, if it is one that can be read.
pub fn compression_of(media_type: &str) -> Option<Compression> {
    algorithm(media_type).ok()?.ok()
}

/// How a layer of this media type is compressed, or the name of a compression we cannot index. A media type
/// that is no layer's is an error: the image is of a kind we do not know.
fn algorithm(media_type: &str) -> Result<Result<Compression, String>, Error> {
    let (base, suffixes) = media_type.split_once('+').unwrap_or((media_type, ""));
    if let Some(rest) = base.strip_prefix("application/vnd.docker.image.rootfs.")
        && let Some(kind) = rest.strip_prefix("foreign.diff.").or_else(|| rest.strip_prefix("diff."))
    {
        match kind {
            "tar" => return Ok(Ok(Compression::Uncompressed)),
            "tar.gzip" => return Ok(Ok(Compression::Gzip)),
            "tar.zstd" if media_type.starts_with(DOCKER_LAYER) => return Ok(Err("zstd".to_owned())),
            _ => {}
        }
    }
    if let Some(kind) = base.strip_prefix(OCI_LAYER_PREFIX) {
        // Of several suffixes the Go tool looks at the last in the order of the alphabet.
        let last = suffixes.split('+').max().unwrap_or_default();
        return match (kind, last) {
            ("v1.tar" | "nondistributable.v1.tar", "gzip") => Ok(Ok(Compression::Gzip)),
            ("v1.tar", "") if media_type == OCI_LAYER => Ok(Ok(Compression::Uncompressed)),
            ("v1.tar" | "nondistributable.v1.tar", "") => Ok(Err("unknown".to_owned())),
            ("v1.tar" | "nondistributable.v1.tar", other) => Ok(Err(other.to_owned())),
            _ => not_a_layer(media_type),
        };
    }
    not_a_layer(media_type)
}

fn not_a_layer<T>(media_type: &str) -> Result<T, Error> {
    let why = format!("not a layer mediaType: {media_type:?}");
    Err(Error::new(ErrorKind::Unsupported, "build ztocs").because(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms() {
        let check = |media_type: &str, expected: Option<Result<Compression, &str>>| {
            let found = algorithm(media_type).ok();
            let found = found.as_ref().map(|found| found.as_ref().map_err(String::as_str));
            let expected = expected.as_ref().map(|expected| expected.as_ref().map_err(|name| *name));
            assert_eq!(found, expected, "{media_type}");
        };
        use Compression::{Gzip, Uncompressed};
        check("application/vnd.oci.image.layer.v1.tar+gzip", Some(Ok(Gzip)));
        check("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Ok(Gzip)));
        check("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", Some(Ok(Gzip)));
        check("application/vnd.oci.image.layer.v1.tar", Some(Ok(Uncompressed)));
        check("application/vnd.oci.image.layer.nondistributable.v1.tar", Some(Err("unknown")));
        check("application/vnd.oci.image.layer.v1.tar+zstd", Some(Err("zstd")));
        check("application/vnd.oci.image.layer.v1.tar+lz4", Some(Err("lz4")));
        check("application/vnd.oci.image.layer.v2.tar", None);
        check("application/vnd.docker.image.rootfs.diff.tar", Some(Ok(Uncompressed)));
        check("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Ok(Gzip)));
        check("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Ok(Gzip)));
        check("application/vnd.docker.image.rootfs.diff.tar.zstd", Some(Err("zstd")));
        check("application/vnd.docker.image.rootfs.foreign.diff.tar.zstd", None);
        check("application/vnd.in-toto+json", None);
        check("", None);
    }
}
