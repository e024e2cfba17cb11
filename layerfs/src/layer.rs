//! One layer: nodes, names, attributes, and the bytes of files.
//!
//! Names and attributes come from the tree in memory and never wait. A read is cut at the end of the file and
//! becomes a range of uncompressed bytes, which `spans` reads or fetches. The first read of a file also compares
//! the file's tar header with the table of files (`header_check`). A layer opens from a ztoc at hand, from the
//! store, or by streaming it whole. Views of one layer over different lower layers share its bytes and differ in
//! inherited attributes.

mod header_check;

use std::{fmt, future::Future, io, ops::RangeInclusive, pin::Pin, sync::Arc};

use oci::{Blob, Digest};
use ztoc::{EntryKind, Ztoc};

use crate::{
    crash_notes::LayerMark,
    error::{Error, ErrorKind},
    fetch::Engine,
    layer::header_check::{HeaderCheck, HeaderStep},
    metrics::Tally,
    raw::Map,
    spans::{LayerStatus, Spans},
    store::{LayerFiles, LayerId, Store},
    stream,
    tree::{Attributes, Child, Inherited, NodeId, NodeKind, Tree},
};

/// Bytes of one span, which is held in memory as a whole. A deflate block without end makes a span as long as the
/// layer; above this limit the layer is not shown lazily.
const MAX_SPAN_BYTES: u64 = 256 << 20;

/// What a layer has at a path, as a layer above it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LowerEntry {
    /// A directory, with the attributes that a directory above takes from it.
    Directory(Inherited),
    /// A symbolic link, there or on the way.
    Link,
    /// Nothing, and entries of layers below are hidden.
    Hidden,
    /// Nothing; a layer below may have something.
    Absent,
}

/// The answer to a read: at once, or when its bytes have been fetched.
pub(crate) enum ReadAnswer {
    Ready(Result<Vec<u8>, Error>),
    Later(Pin<Box<dyn Future<Output = Result<Vec<u8>, Error>> + Send>>),
}

/// What all views of a layer share: its bytes, and which headers were compared.
struct Content {
    id: LayerId,
    mark: LayerMark,
    spans: Arc<Spans>,
    headers: HeaderCheck,
}

/// One layer as a directory tree. Cheap to clone into a variant with other inherited attributes.
pub struct Layer {
    content: Arc<Content>,
    tree: Tree,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer").field("digest", self.digest()).finish_non_exhaustive()
    }
}

impl Layer {
    /// Opens a layer whose ztoc is at hand: `bytes`, verified by the caller against `ztoc`. They are stored.
    /// Bytes of the layer come from the sources added later.
    ///
    /// # Errors
    /// For a ztoc that is malformed, that no extraction could have made, or whose spans are too long.
    pub fn create(
        store: &Arc<Store>,
        engine: &Arc<Engine>,
        layer: &Digest,
        ztoc: &Digest,
        bytes: &[u8],
    ) -> Result<Arc<Self>, Error> {
        let id = LayerId { layer: *layer, ztoc: Some(*ztoc) };
        let _noted = store.note(id.mark());
        let files = store.layer(&id)?;
        let opened = files.put_ztoc(bytes, ztoc).and_then(|map| Self::with(files, map, engine));
        if opened.is_err() {
            store.remove(&id)?;
        }
        opened
    }

    /// Opens a layer from the store, if the store has it. No network.
    ///
    /// # Errors
    /// As [`Layer::create`].
    pub fn stored(
        store: &Arc<Store>,
        engine: &Arc<Engine>,
        id: &LayerId,
    ) -> Result<Option<Arc<Self>>, Error> {
        let _noted = store.note(id.mark());
        let Some(files) = store.existing(id) else { return Ok(None) };
        let Some(map) = files.ztoc() else { return Ok(None) };
        Self::with(files, map, engine).map(Some)
    }

    /// Fetches a layer that has no ztoc: streams it whole, once, through the builder of ztocs into the store,
    /// verified by its digest. `origin` names the source of the blob.
    ///
    /// # Errors
    /// When the blob cannot be fetched, arrives too slowly, has another digest, is of a kind that cannot be read,
    /// or does not fit on the disk. Nothing of it is kept then.
    pub async fn stream(
        store: &Arc<Store>,
        engine: &Arc<Engine>,
        origin: &str,
        blob: Arc<dyn Blob>,
        compression: ztoc::Compression,
    ) -> Result<Arc<Self>, Error> {
        let id = LayerId { layer: *blob.digest(), ztoc: None };
        let (_noted, _streaming) = (store.note(id.mark()), engine.streaming(origin));
        match stream::whole(store.layer(&id)?, blob, compression).await {
            Ok((files, map)) => Self::with(files, map, engine),
            Err(error) => {
                store.remove(&id)?;
                Err(error)
            }
        }
    }

    fn with(files: LayerFiles, map: Arc<Map>, engine: &Arc<Engine>) -> Result<Arc<Self>, Error> {
        let id = *files.id();
        let ztoc = Arc::new(open_ztoc(&id, map)?);
        let tree = Tree::new(ztoc.clone())?;
        let spans = Spans::open(ztoc.clone(), files, engine.clone());
        if spans.has_unproven() {
            engine.prove(spans.clone());
        }
        let content = Content { id, mark: id.mark(), spans, headers: HeaderCheck::new(ztoc.len()) };
        Ok(Arc::new(Self { content: Arc::new(content), tree }))
    }

    /// The same layer over other lower layers: directories that it only implies get the attributes they have there.
    pub fn inheriting(&self, inherited: &[Inherited]) -> Arc<Self> {
        Arc::new(Self { content: self.content.clone(), tree: self.tree.inheriting(inherited) })
    }

    /// Paths of the directories that the layer implies but does not contain.
    pub fn implied_directories(&self) -> Vec<Vec<u8>> {
        self.tree.implied()
    }

    /// What a layer above finds at `path`, a path relative to the root.
    pub fn below(&self, path: &[u8]) -> LowerEntry {
        let mut at = NodeId::ROOT;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let Some(next) = self.tree.lookup(at, part) else {
                return if self.tree.opaque(at) { LowerEntry::Hidden } else { LowerEntry::Absent };
            };
            at = next;
            match self.tree.kind(at) {
                NodeKind::Directory => {}
                NodeKind::Symlink => return LowerEntry::Link,
                _ => return LowerEntry::Hidden,
            }
        }
        let attributes = self.tree.attributes(at);
        LowerEntry::Directory(Inherited {
            path: path.to_vec(),
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            xattrs: self.tree.xattrs(at).into_iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect(),
        })
    }

    /// The digests of the layer and of its ztoc.
    pub fn id(&self) -> &LayerId {
        &self.content.id
    }

    /// The same as one number.
    pub(crate) fn mark(&self) -> LayerMark {
        self.content.mark
    }

    /// Digest of the layer as stored in a registry.
    pub fn digest(&self) -> &Digest {
        &self.content.id.layer
    }

    /// Bytes of the layer as stored in a registry, as the ztoc says.
    pub fn compressed_size(&self) -> u64 {
        self.content.spans.ztoc().compressed_size()
    }

    /// How many nodes it has; they are numbered from 0.
    pub fn node_count(&self) -> u32 {
        self.tree.len()
    }

    /// Spans in all, and spans that are not on disk yet.
    pub fn spans(&self) -> (u32, u32) {
        (self.content.spans.ztoc().spans().len(), self.content.spans.missing())
    }

    /// How much of the layer is on disk, its sources and its counters, at this moment.
    pub fn status(&self) -> LayerStatus {
        self.content.spans.status()
    }

    pub(crate) fn tally(&self) -> &Tally {
        self.content.spans.tally()
    }

    /// Bytes on disk and inodes of the layer's folder now.
    ///
    /// # Errors
    /// When its folder cannot be read.
    pub fn disk_usage(&self) -> io::Result<(u64, u64)> {
        self.content.spans.disk_usage()
    }

    /// Adds a source of the layer's bytes. `origin` names it. The source added last is asked first, the others when
    /// it fails.
    pub fn add_source(&self, origin: &str, blob: Arc<dyn Blob>) {
        self.content.spans.add_source(origin, blob);
    }

    /// Forgets a source, unless it is the last one.
    pub fn remove_source(&self, origin: &str) {
        self.content.spans.remove_source(origin);
    }

    /// Has the background fetch every missing span. It ends with the last reference to the layer; a second call does
    /// nothing.
    pub fn start_fill(&self) {
        self.content.spans.fill();
    }

    /// Has the background fetch these spans before all others, also without [`Layer::start_fill`]. Numbers that the
    /// layer does not have are ignored.
    pub fn want(&self, spans: impl IntoIterator<Item = RangeInclusive<u32>>) {
        self.content.spans.want(spans);
    }

    /// The digest of the layer's whole uncompressed stream, where it is known.
    pub fn whole(&self) -> Option<Digest> {
        self.content.spans.diff_id()
    }

    /// Calls `listener` with the digest of the layer's whole uncompressed stream, which is to be the diff ID that
    /// the image names. That is at once where it is known, else once every span is on disk and no reader waits.
    /// `None`: the digest stays unknown. A layer that is never complete never calls it.
    pub fn when_whole(&self, listener: impl FnOnce(Option<&Digest>) + Send + 'static) {
        self.content.spans.when_diff_id_known(Box::new(listener));
    }

    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.tree.contains(node)
    }

    pub(crate) fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.tree.lookup(parent, name)
    }

    pub(crate) fn parent(&self, node: NodeId) -> NodeId {
        self.tree.parent(node)
    }

    pub(crate) fn children(&self, node: NodeId, skip: usize) -> impl Iterator<Item = Child<'_>> {
        self.tree.children(node, skip)
    }

    pub(crate) fn attributes(&self, node: NodeId) -> Attributes {
        self.tree.attributes(node)
    }

    pub(crate) fn link_target(&self, node: NodeId) -> Option<&[u8]> {
        self.tree.link_target(node)
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// `size` bytes of a regular file from `offset` on, or as many as there are.
    pub(crate) fn read(&self, node: NodeId, offset: u64, size: u32) -> ReadAnswer {
        let entry = self.tree.entry(node).filter(|_| self.tree.kind(node) == NodeKind::Regular);
        let Some(entry) = entry else {
            return ReadAnswer::Ready(Err(Error::new(ErrorKind::Io, "read something that is not a file")));
        };
        let data = entry.data();
        let end = offset.saturating_add(u64::from(size)).min(data.end - data.start);
        if offset >= end {
            return ReadAnswer::Ready(Ok(Vec::new()));
        }
        let range = data.start + offset..data.start + end;
        let content = self.content.clone();
        match content.headers.begin(&content.id, &content.spans, &entry) {
            Err(error) => ReadAnswer::Ready(Err(error)),
            Ok(HeaderStep::Done) => {
                if let Some(bytes) = content.spans.read_ready(&range) {
                    return ReadAnswer::Ready(bytes);
                }
                ReadAnswer::Later(Box::pin(async move {
                    let _waiting = content.spans.waiting(&range);
                    content.spans.read(range, data).await
                }))
            }
            Ok(HeaderStep::Fetch(header)) => {
                let index = entry.index();
                ReadAnswer::Later(Box::pin(async move {
                    let _waiting = content.spans.waiting(&range);
                    // Both at once: nearly always the same span, else its neighbor in the same request.
                    let header = content.spans.read(header, data.clone());
                    let (header, bytes) = futures::join!(header, content.spans.read(range, data));
                    let entry = content.spans.ztoc().entry(index);
                    content.headers.compare(&content.id, &entry, &header?)?;
                    bytes
                }))
            }
        }
    }
}

fn open_ztoc(id: &LayerId, bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Result<Ztoc, Error> {
    let doing = || format!("open ztoc of layer {id}");
    let ztoc = Ztoc::open(bytes).map_err(|e| Error::ztoc(doing(), e))?;
    let table = ztoc.spans();
    for span in (0..table.len()).map(ztoc::SpanId) {
        let (stored, plain) = (table.compressed(span), table.uncompressed(span));
        let longest =
            (stored.end.0.saturating_sub(stored.start.0)).max(plain.end.0.saturating_sub(plain.start.0));
        if longest > MAX_SPAN_BYTES {
            let why =
                format!("{}: span {} has {longest} bytes, too long to be held in memory", doing(), span.0);
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
    }
    let end = ztoc
        .entries()
        .filter(|entry| entry.kind() == EntryKind::Regular)
        .map(|entry| entry.data().end.0)
        .max();
    if end.is_some_and(|end| end > ztoc.uncompressed_size()) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("{}: a file ends behind the end of the layer", doing()),
        ));
    }
    Ok(ztoc)
}

#[cfg(test)]
mod tests;
