//! An OCI image layout: a folder with `oci-layout`, `index.json` and one file a blob. Names are the annotation
//! `org.opencontainers.image.ref.name` of `index.json`'s entries.
//!
//! Every file is written beside its place, synced, and moved there, so that a reader sees all of it or nothing;
//! `index.json` is written last. Two writers of one layout at a time lose each other's names, not content. What
//! is read is as hostile here as from a registry: manifests are bounded and compared with their digests.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{TryStreamExt, stream};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use crate::blob::{Blob, BoxFuture, ByteStream, collect, verified};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::image::{Descriptor, Index, canonical_json, media_type};
use crate::store::{MANIFEST_BYTES_MAX, Origin, Store};

/// The annotation of a name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The version of the layout, the only one there is.
const LAYOUT_VERSION: &str = "1.0.0";
/// Bytes of a blob read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// A layout in a folder. As a [`Store`], a tag is a name, and the empty tag the only entry or the one without name.
#[derive(Debug, Clone)]
pub struct Layout {
    folder: PathBuf,
    drafts: Arc<AtomicU64>,
}

impl Layout {
    /// A layout that is there. `NotFound` where it is not, `Unsupported` where it is of another version.
    pub async fn open(folder: impl Into<PathBuf>) -> Result<Layout, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let layout = Layout { folder: folder.into(), drafts: Arc::default() };
        let doing = format!("open OCI layout {}", layout.folder.display());
        let bytes = layout.read(&layout.folder.join("oci-layout"), &doing).await?;
        let marker: Marker = serde_json::from_slice(&bytes)
            .map_err(|cause| Error::new(ErrorKind::Corrupt, &doing).because(cause))?;
        if marker.image_layout_version == LAYOUT_VERSION {
            return Ok(layout);
        }
        let why = format!("its version is {:?}", marker.image_layout_version);
        Err(Error::new(ErrorKind::Unsupported, doing).because(why))
    }

    /// The same, made where it is not there yet.
    pub async fn create(folder: impl Into<PathBuf>) -> Result<Layout, Error> {
        let folder = folder.into();
        match Layout::open(&folder).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            known => return known,
        }
        let doing = format!("create OCI layout {}", folder.display());
        let blobs = folder.join("blobs").join("sha256");
        tokio::fs::create_dir_all(&blobs).await.map_err(|cause| Error::io(doing, cause))?;
        let layout = Layout { folder, drafts: Arc::default() };
        layout.write_index(&empty_index()).await?;
        let marker = format!("{{\"imageLayoutVersion\":\"{LAYOUT_VERSION}\"}}");
        layout.put(&layout.folder.join("oci-layout"), once(marker.into())).await?;
        Ok(layout)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    async fn read(&self, path: &Path, doing: &str) -> Result<Bytes, Error> {
        let file = tokio::fs::File::open(path).await.map_err(|cause| Error::io(doing, cause))?;
        let blob = Arc::new(file.into_std().await);
        let size = blob.metadata().map_err(|cause| Error::io(doing, cause))?.len();
        collect(pieces(blob, 0..size, doing.to_owned()), MANIFEST_BYTES_MAX, doing).await
    }

    async fn read_index(&self) -> Result<Index, Error> {
        let path = self.folder.join("index.json");
        let doing = format!("read {}", path.display());
        Index::parse(&self.read(&path, &doing).await?, &doing)
    }

    async fn write_index(&self, index: &Index) -> Result<(), Error> {
        self.put(&self.folder.join("index.json"), once(canonical_json(index).into())).await
    }

    /// A file, whole or not at all.
    async fn put(&self, path: &Path, mut source: ByteStream) -> Result<(), Error> {
        let doing = format!("write {}", path.display());
        let io = |cause| Error::io(&doing, cause);
        let number = self.drafts.fetch_add(1, Ordering::Relaxed);
        let draft = self.folder.join(format!(".draft-{}-{number}", std::process::id()));
        let written = async {
            let mut file = tokio::fs::File::create(&draft).await.map_err(io)?;
            while let Some(piece) = source.try_next().await? {
                file.write_all(&piece).await.map_err(io)?;
            }
            file.flush().await.map_err(io)?;
            file.sync_all().await.map_err(io)?;
            tokio::fs::rename(&draft, path).await.map_err(io)
        };
        let written = written.await;
        if written.is_err() {
            // What is left of a draft harms nobody; the first error is the one to tell.
            let _ = tokio::fs::remove_file(&draft).await;
        }
        written
    }

    async fn find(&self, name: &str) -> Result<Descriptor, Error> {
        let doing = format!("find image {name:?} in {}", self.folder.display());
        let entries = self.read_index().await?.manifests.unwrap_or_default();
        let by_digest: Option<Digest> = name.parse().ok();
        let fits = |entry: &&Descriptor| {
            by_digest == Some(entry.digest)
                || entry.annotations.get(REF_NAME).map_or("", String::as_str) == name
        };
        let found = entries.iter().find(fits).or_else(|| match (&entries[..], name) {
            ([only], "") => Some(only),
            _ => None,
        });
        if let Some(found) = found {
            // What is said about an image in its folder is not part of the image.
            return Ok(Descriptor { annotations: Default::default(), ..found.clone() });
        }
        let Some(digest) = by_digest else {
            let names: Vec<&str> =
                entries.iter().filter_map(|e| Some(e.annotations.get(REF_NAME)?.as_str())).collect();
            let why = format!("its names are: {}", names.join(", "));
            return Err(Error::new(ErrorKind::NotFound, doing).because(why));
        };
        let bytes = self.read(&self.path(&digest), &doing).await?;
        digest.verify(&bytes, &doing)?;
        let media_type =
            media_type::of_document(&bytes).ok_or_else(|| Error::new(ErrorKind::Unsupported, doing))?;
        Ok(Descriptor::of(media_type, &bytes))
    }
}

impl Store for Layout {
    fn name(&self) -> String {
        self.folder.display().to_string()
    }

    fn origin(&self) -> Option<Origin> {
        None
    }

    fn resolve<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<Descriptor, Error>> {
        Box::pin(self.find(tag_or_digest))
    }

    fn read_manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let doing = format!("read manifest {} in {}", descriptor.digest, self.folder.display());
            let bytes = self.read(&self.path(&descriptor.digest), &doing).await?;
            descriptor.verify(&bytes, &doing)?;
            Ok(bytes)
        })
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let path = self.path(&descriptor.digest);
        Arc::new(FileBlob { path, digest: descriptor.digest, size: descriptor.size })
    }

    fn has_blob<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move {
            let path = self.path(&descriptor.digest);
            tokio::fs::try_exists(&path)
                .await
                .map_err(|e| Error::io(format!("look for {}", path.display()), e))
        })
    }

    fn write_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            descriptor.verify(&bytes, &format!("write blob {}", descriptor.digest))?;
            self.put(&self.path(&descriptor.digest), once(bytes)).await
        })
    }

    fn copy_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        from: &'a dyn Store,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if self.has_blob(descriptor).await? {
                return Ok(());
            }
            let source = from.blob(descriptor).read_all().await?;
            let source = verified(source, descriptor.digest, descriptor.size);
            self.put(&self.path(&descriptor.digest), source).await
        })
    }

    fn write_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.write_blob(descriptor, bytes)
    }

    fn write_tag<'a>(
        &'a self,
        tag: &'a str,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.write_blob(descriptor, bytes).await?;
            let mut index = self.read_index().await?;
            let mut entry =
                Descriptor::new(descriptor.media_type.clone(), descriptor.digest, descriptor.size);
            if !tag.is_empty() {
                entry.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
            }
            let entries = index.manifests.get_or_insert_default();
            entries.retain(|old| old.annotations.get(REF_NAME).map_or("", String::as_str) != tag);
            entries.push(entry);
            self.write_index(&index).await
        })
    }
}

/// A blob that is a file.
#[derive(Debug)]
struct FileBlob {
    path: PathBuf,
    digest: Digest,
    size: u64,
}

impl Blob for FileBlob {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(async move {
            let doing = format!("read {}", self.path.display());
            if range.start > range.end || range.end > self.size {
                let why = format!("the blob has {} bytes, asked for {range:?}", self.size);
                return Err(Error::new(ErrorKind::Invalid, doing).because(why));
            }
            let file = tokio::fs::File::open(&self.path).await.map_err(|cause| Error::io(&doing, cause))?;
            Ok(pieces(Arc::new(file.into_std().await), range, doing))
        })
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, Error>> {
        self.read_range(0..self.size)
    }
}

/// A range of a file, piece by piece; a file that is shorter is `Corrupt`.
fn pieces(file: Arc<std::fs::File>, range: Range<u64>, doing: String) -> ByteStream {
    Box::pin(stream::try_unfold(range, move |range| {
        let (file, doing) = (file.clone(), doing.clone());
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + PIECE_BYTES);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; (end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start).map(|()| Bytes::from(bytes))
            });
            let read = read.await.map_err(|cause| Error::new(ErrorKind::Io, &doing).because(cause))?;
            let bytes = read.map_err(|cause| match cause.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    Error::new(ErrorKind::Corrupt, &doing).because("the file is shorter than its blob")
                }
                _ => Error::io(&doing, cause),
            })?;
            Ok(Some((bytes, end..range.end)))
        }
    }))
}

fn once(bytes: Bytes) -> ByteStream {
    Box::pin(stream::once(std::future::ready(Ok(bytes))))
}

fn empty_index() -> Index {
    Index {
        schema_version: 2,
        media_type: media_type::OCI_INDEX.to_owned(),
        artifact_type: String::new(),
        manifests: Some(Vec::new()),
        subject: None,
        annotations: Default::default(),
    }
}
