//! The layers of an image in, their ztocs out. Each layer is read once: on its way through the builder it is compared
//! with its descriptor and, where it has to be copied, copied. Layers run side by side under a limit. A layer that
//! gets no ztoc is named with its reason; a layer that is not what its descriptor says fails the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci::store::read_blob;
use oci::{Descriptor, Digest, Manifest, Store};
use tracing::{debug, info};
use ztoc::{Compression, MAX_ZTOC_BYTES, Whole, Ztoc};

use crate::error::{Error, ErrorKind};
use crate::layer_format::{self, algorithm};
use crate::manifest::{DISABLE_XATTRS, PREFETCH, describe_ztoc};
use crate::prefetch::{self, Prefetch, Spans, Wanted};
use crate::tee::TeeBlob;

/// Layers built side by side: enough to keep two processors busy while a third layer waits for its network.
const LAYERS_AT_ONCE: usize = 2;
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
    /// files that a container wants at its start: the spans they lie in are listed beside the ztocs
    pub prefetch: Vec<String>,
    /// by their layers, ztocs of this span size that the target may have from an earlier build. One that is there
    /// and is what it should be is taken, any other built anew.
    pub known: BTreeMap<Digest, Descriptor>,
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
            prefetch: Vec::new(),
            known: BTreeMap::new(),
        }
    }
}

/// Progress, for a caller that shows it.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// a layer's bytes begin to come
    Begun(&'a Descriptor),
    /// so many more of them (compressed) have come
    Read(&'a Digest, u64),
    /// a layer is done with; each once, however many images share it
    Done(&'a LayerReport),
    /// a layer's prefetch artifact
    Prefetch { layer: &'a Digest, artifact: &'a Descriptor },
    /// a file to prefetch that no layer with a ztoc has
    NoSuchFile(&'a str),
}

/// Hears of everything, from any thread.
pub type Observer<'a> = &'a (dyn Fn(Event<'_>) + Sync);

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
    /// the same, and it was there already
    Known(Box<Descriptor>),
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
    /// its bytes have its digest, and are not what its media type says, or are damaged
    Unreadable(String),
    /// it is to be fetched from its URLs, and the source does not have it
    Foreign,
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
            Skip::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Skip::Foreign => {
                write!(f, "is to be fetched from the URLs that the manifest names, and is not in the source")
            }
        }
    }
}

/// Builds the ztocs of image after image, each layer once, however many images share it.
pub struct LayerIndexer<'a> {
    from: &'a dyn Store,
    to: &'a dyn Store,
    copies: Copies,
    options: &'a BuildOptions,
    files: Vec<Wanted>,
    done: BTreeMap<(Digest, String), Done>,
}

/// Whether layers whose ztocs are built are copied on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    Layers,
    Nothing,
}

/// A layer that was done with, and where in it the files to prefetch are.
struct Done {
    outcome: Outcome,
    files: Vec<Option<Spans>>,
}

impl<'a> LayerIndexer<'a> {
    /// Layers come from `from`; ztocs go to `to` as soon as they are made.
    pub fn new(
        from: &'a dyn Store,
        to: &'a dyn Store,
        copies: Copies,
        options: &'a BuildOptions,
    ) -> LayerIndexer<'a> {
        let files = options.prefetch.iter();
        let files = files.filter_map(|path| Wanted::parse(path));
        LayerIndexer { from, to, copies, options, files: files.collect(), done: BTreeMap::new() }
    }

    /// What an image's index lists: the ztocs in the order of the layers, then the prefetch artifacts in that order.
    /// Empty where no layer gets a ztoc.
    pub async fn build(
        &mut self,
        image: &Manifest,
        observer: Observer<'_>,
    ) -> Result<Vec<Descriptor>, Error> {
        let mut wanted: Vec<(Descriptor, Result<Compression, String>)> = Vec::new();
        for layer in image.layers().iter().filter(|layer| layer.media_type != PREFETCH) {
            let compression = algorithm(&layer.media_type)?;
            if !self.done.contains_key(&key(layer))
                && !wanted.iter().any(|(other, _)| key(other) == key(layer))
            {
                wanted.push((layer.clone(), compression));
            }
        }
        // The largest first: it would be waited for alone at the end.
        wanted.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
        while !wanted.is_empty() {
            // The same bytes under two media types are not written twice at once.
            let mut digests = BTreeSet::new();
            let (round, rest) = wanted.into_iter().partition(|(layer, _)| digests.insert(layer.digest));
            wanted = rest;
            self.round(round, observer).await?;
        }
        let mut entries: Vec<Descriptor> =
            image.layers().iter().filter_map(|layer| self.ztoc(layer)).collect();
        if !entries.is_empty() {
            entries.extend(self.prefetch(image, observer).await?);
        }
        Ok(entries)
    }

    /// These layers, side by side.
    async fn round(
        &mut self,
        layers: Vec<(Descriptor, Result<Compression, String>)>,
        observer: Observer<'_>,
    ) -> Result<(), Error> {
        let this = &*self;
        let mut outcomes = stream::iter(layers)
            .map(|(layer, compression)| async move {
                let done = this.one(&layer, compression, observer).await?;
                Ok::<_, Error>((layer, done))
            })
            .buffer_unordered(LAYERS_AT_ONCE);
        let mut fresh = Vec::new();
        while let Some((layer, done)) = outcomes.try_next().await? {
            let report = LayerReport { layer, outcome: done.outcome };
            observer(Event::Done(&report));
            fresh.push((key(&report.layer), Done { outcome: report.outcome, files: done.files }));
        }
        drop(outcomes);
        self.done.extend(fresh);
        Ok(())
    }

    fn ztoc(&self, layer: &Descriptor) -> Option<Descriptor> {
        match &self.done.get(&key(layer))?.outcome {
            Outcome::Ztoc(ztoc) | Outcome::Known(ztoc) => Some(Descriptor::clone(ztoc)),
            Outcome::Skipped(_) => None,
        }
    }

    /// Each file is looked for from the topmost layer down, among those that have a ztoc.
    async fn prefetch(&self, image: &Manifest, observer: Observer<'_>) -> Result<Vec<Descriptor>, Error> {
        let mut found: BTreeMap<usize, Vec<Spans>> = BTreeMap::new();
        for (number, wanted) in self.files.iter().enumerate() {
            let in_layer = |layer: &Descriptor| self.done.get(&key(layer))?.files.get(number).copied()?;
            let layers = image.layers().iter().enumerate().rev();
            match layers.filter_map(|(at, layer)| Some((at, in_layer(layer)?))).next() {
                Some((at, spans)) => found.entry(at).or_default().push(spans),
                None => observer(Event::NoSuchFile(&wanted.typed)),
            }
        }
        let mut artifacts = Vec::new();
        for (at, spans) in found {
            let layer = &image.layers()[at].digest;
            let bytes = Prefetch::of(spans).encode();
            let descriptor = prefetch::describe(&bytes, layer);
            self.to.write_blob(&descriptor, bytes.into()).await?;
            observer(Event::Prefetch { layer, artifact: &descriptor });
            artifacts.push(descriptor);
        }
        Ok(artifacts)
    }

    async fn one(
        &self,
        layer: &Descriptor,
        compression: Result<Compression, String>,
        observer: Observer<'_>,
    ) -> Result<Done, Error> {
        let min = self.options.min_layer_size;
        let skipped = |skip| Ok(Done { outcome: Outcome::Skipped(skip), files: Vec::new() });
        if layer.size < min {
            return skipped(Skip::TooSmall { min });
        }
        let compression = match compression {
            Ok(compression) => compression,
            Err(name) => return skipped(Skip::Compression(name)),
        };
        if !layer.urls.is_empty() && !self.from.has_blob(layer).await? {
            return skipped(Skip::Foreign);
        }
        if let Some((bytes, ztoc)) = self.known(layer, compression).await {
            let descriptor = self.describe(layer, &bytes, Xattrs::of(&ztoc));
            let files = prefetch::spans_of(&ztoc, &self.files);
            // It is there, and must not be taken away before the index names it.
            self.to.write_blob(&descriptor, bytes).await?;
            return Ok(Done { outcome: Outcome::Known(Box::new(descriptor)), files });
        }
        info!(layer = %layer.digest, size = layer.size, "build ztoc");
        let doing = format!("build ztoc of layer {}", layer.digest);
        let pass = TeeBlob::new(self.from, layer, compression, self.ztoc_options());
        let to = if self.wants(layer).await? { Some(self.to) } else { None };
        observer(Event::Begun(layer));
        let heard = |bytes| observer(Event::Read(&layer.digest, bytes));
        let built = match pass.run(to, &heard).await? {
            Ok(built) => built,
            Err(error) => match error.kind() {
                ztoc::ErrorKind::Unsupported | ztoc::ErrorKind::TooLarge => {
                    return skipped(Skip::Inexpressible(error.to_string()));
                }
                // The bytes have the layer's digest: they are what the image has, and other layers can be indexed.
                ztoc::ErrorKind::Corrupt => {
                    return skipped(Skip::Unreadable(self.unreadable(layer, compression, &error).await));
                }
                ztoc::ErrorKind::Io => return Err(failed(error, &doing)),
            },
        };
        let xattrs = if built.has_xattrs || built.has_opaque { Xattrs::Some } else { Xattrs::None };
        let bytes = Bytes::from(built.ztoc);
        let descriptor = self.describe(layer, &bytes, xattrs);
        let files = if self.files.is_empty() {
            Vec::new()
        } else {
            let ztoc = Ztoc::open(Arc::new(bytes.clone())).map_err(|error| failed(error, &doing))?;
            prefetch::spans_of(&ztoc, &self.files)
        };
        self.to.write_blob(&descriptor, bytes).await?;
        Ok(Done { outcome: Outcome::Ztoc(Box::new(descriptor)), files })
    }

    /// Why a layer's bytes cannot be read: they are of another format, which their beginning tells, or they are damaged.
    async fn unreadable(&self, layer: &Descriptor, expected: Compression, error: &ztoc::Error) -> String {
        let beginning = 0..layer.size.min(layer_format::BEGINNING);
        let first = match self.from.blob(layer).read_range(beginning).await {
            Ok(stream) => oci::blob::collect(stream, layer_format::BEGINNING, "read layer").await,
            Err(error) => Err(error),
        };
        match first.ok().and_then(|first| layer_format::by_bytes(&first)) {
            Some(found) if found != layer_format::name(expected) => {
                format!("its bytes are {found}, and its media type is {:?}", layer.media_type)
            }
            _ => error.to_string(),
        }
    }

    /// Whether the layer is to be copied while it is read: not where it is there already, nor where a registry can
    /// mount it from a neighbor.
    async fn wants(&self, layer: &Descriptor) -> Result<bool, Error> {
        if self.copies == Copies::Nothing || !layer.urls.is_empty() {
            return Ok(false);
        }
        let registry = |store: &dyn Store| store.origin().map(|origin| origin.registry);
        if registry(self.to).is_some() && registry(self.from) == registry(self.to) {
            return Ok(false);
        }
        Ok(!self.to.has_blob(layer).await?)
    }

    fn ztoc_options(&self) -> ztoc::Options {
        ztoc::Options {
            span_size: self.options.span_size,
            build_tool: self.options.build_tool.clone(),
            // The reader of the layer compares it with its digest.
            whole: Whole::Ignored,
        }
    }

    fn describe(&self, layer: &Descriptor, bytes: &[u8], xattrs: Xattrs) -> Descriptor {
        let mut descriptor = describe_ztoc(bytes, layer, self.options.span_size);
        if xattrs == Xattrs::None && self.options.xattrs == XattrOptimization::Annotate {
            descriptor.annotations.insert(DISABLE_XATTRS.to_owned(), "true".to_owned());
        }
        descriptor
    }

    /// A ztoc from an earlier build, if it is there and is what would be built. Anything else is no error: it is
    /// built.
    async fn known(&self, layer: &Descriptor, compression: Compression) -> Option<(Bytes, Ztoc)> {
        let descriptor = self.options.known.get(&layer.digest)?;
        let doing = format!("read ztoc {}", descriptor.digest);
        let read = read_blob(self.to, descriptor, MAX_ZTOC_BYTES, &doing).await;
        let bytes = read.inspect_err(|error| debug!("build again: {error}")).ok()?;
        let ztoc = Ztoc::open(Arc::new(bytes.clone()));
        let ztoc = ztoc.inspect_err(|error| debug!("build again: {error}")).ok()?;
        let same = ztoc.compression() == compression
            && ztoc.compressed_size() == layer.size
            && ztoc.spans().span_size() == self.options.span_size
            && ztoc.build_tool() == self.options.build_tool.as_bytes();
        same.then_some((bytes, ztoc))
    }
}

/// Whether a layer has anything that a consumer shows as an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Xattrs {
    Some,
    None,
}

impl Xattrs {
    fn of(ztoc: &Ztoc) -> Xattrs {
        let has = ztoc.entries().any(|entry| entry.has_xattrs() || entry.name().ends_with(b".wh..wh..opq"));
        if has { Xattrs::Some } else { Xattrs::None }
    }
}

impl fmt::Debug for LayerIndexer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerIndexer")
            .field("from", &self.from)
            .field("done", &self.done.len())
            .finish_non_exhaustive()
    }
}

pub(crate) fn failed(error: ztoc::Error, doing: &str) -> Error {
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
