//! An OCI image layout: `oci-layout`, `index.json` and one file a blob, in a folder or in a tar. Names are the
//! annotation `org.opencontainers.image.ref.name` of `index.json`'s entries.
//!
//! In a folder every file is written beside its place, synced, and moved there, so that a reader sees all of it or
//! nothing; `index.json` is written last. Two writers of one layout at a time lose each other's names, not content.
//! A tar is written anew, and there is nothing of it before its tag is written. What is read is as hostile here as
//! from a registry: manifests are bounded and compared with their digests.

mod names;
mod backing;
mod archive;
mod draft;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use serde::Deserialize;

use self::archive::Archive;
use self::backing::{Backing, blocking, pieces};
use self::names::Found;
use crate::blob::{Blob, BoxFuture, ByteStream, collect, verified};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::image::{Descriptor, Index, Manifest, canonical_json, media_type};
use crate::store::{MANIFEST_BYTES_MAX, Origin, Store};

/// The version of the layout, the only one there is.
const LAYOUT_VERSION: &str = "1.0.0";
const MARKER: &str = "oci-layout";
const INDEX: &str = "index.json";

/// A layout. As a [`Store`], a tag is a name; the empty tag is the only image, or the one without a name, or, where
/// `index.json` lists several platforms without names, the image index that they are together.
#[derive(Debug, Clone)]
pub struct Layout {
    backing: Backing,
    alone: Alone,
}

/// Whether an image that is written takes the place of all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    Yes,
    No,
}

impl Layout {
    /// A layout that is there, in a folder. `NotFound` where it is not, `Unsupported` where it is of another version.
    pub async fn open(folder: impl Into<PathBuf>) -> Result<Layout, Error> {
        Layout { backing: Backing::Folder(folder.into()), alone: Alone::No }.checked().await
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
        let layout = Layout { backing: Backing::Folder(folder), alone: Alone::No };
        if layout.backing.has(INDEX).await? {
            let error = Error::new(ErrorKind::Unsupported, format!("create OCI layout {}", layout.name()));
            return Err(error.because("there is an index.json that belongs to something else"));
        }
        layout.write_index(&Index::of(Vec::new())).await?;
        layout.write_marker().await?;
        Ok(layout)
    }

    /// A layout that is there, in a tar that is not compressed.
    pub async fn open_archive(file: impl Into<PathBuf>) -> Result<Layout, Error> {
        let file = file.into();
        let archive = blocking("open OCI archive", move || Archive::open(&file)).await?;
        Layout { backing: Backing::Archive(Arc::new(archive)), alone: Alone::No }.checked().await
    }

    /// A new one, in a tar that takes the place of `file` when its tag is written.
    pub async fn create_archive(file: impl Into<PathBuf>) -> Result<Layout, Error> {
        let file = file.into();
        let archive = blocking("create OCI archive", move || Archive::create(&file)).await?;
        Ok(Layout { backing: Backing::Archive(Arc::new(archive)), alone: Alone::No })
    }

    /// The same layout, in which the next image that is written becomes the only one that is listed.
    #[must_use]
    pub fn alone(self) -> Layout {
        Layout { alone: Alone::Yes, ..self }
    }

    /// What refers to a manifest and is of this artifact type, in the order in which it was listed.
    pub async fn referrers(&self, digest: &Digest, artifact_type: &str) -> Result<Vec<Descriptor>, Error> {
        let doing = format!("list referrers of {digest} in {}", self.name());
        let index = self.read_index().await?;
        let mut found = Vec::new();
        for entry in names::artifacts(&index, artifact_type) {
            let manifest = Manifest::parse(&self.read_manifest(entry).await?, &doing)?;
            if manifest.subject.is_some_and(|subject| subject.digest == *digest) {
                found.push(entry.clone());
            }
        }
        Ok(found)
    }

    /// Takes a blob away, and its mention in `index.json`; nothing to do where it is not there.
    pub async fn remove(&self, digest: &Digest) -> Result<(), Error> {
        let doing = format!("remove {digest} from {}", self.name());
        let Backing::Folder(folder) = &self.backing else {
            let error = Error::new(ErrorKind::Unsupported, doing);
            return Err(error.because("an archive cannot be changed"));
        };
        let mut index = self.read_index().await?;
        let entries = index.manifests.get_or_insert_default();
        let before = entries.len();
        entries.retain(|entry| entry.digest != *digest);
        if entries.len() < before {
            self.write_index(&index).await?;
        }
        match tokio::fs::remove_file(folder.join(file_of(digest))).await {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(Error::io(doing, cause)),
            _ => Ok(()),
        }
    }

    /// The digests of all blobs, in no order.
    pub async fn blobs(&self) -> Result<Vec<Digest>, Error> {
        let doing = format!("list blobs of {}", self.name());
        let Backing::Folder(folder) = &self.backing else {
            let error = Error::new(ErrorKind::Unsupported, doing);
            return Err(error.because("it is an archive"));
        };
        let folder = folder.join("blobs").join("sha256");
        let io = |cause| Error::io(&doing, cause);
        let mut entries = tokio::fs::read_dir(folder).await.map_err(io)?;
        let mut found = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(io)? {
            found.extend(format!("sha256:{}", entry.file_name().to_string_lossy()).parse::<Digest>());
        }
        Ok(found)
    }

    /// A blob in memory, compared with its digest; larger than `limit` is `Corrupt`.
    pub async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Bytes, Error> {
        let name = file_of(digest);
        let doing = format!("read {}", self.backing.say(&name));
        let (file, range) = self.backing.open(&name, &doing).await?;
        let bytes = collect(pieces(file, range, doing.clone()), limit, &doing).await?;
        digest.verify(&bytes, &doing)?;
        Ok(bytes)
    }

    /// The first `length` bytes of a blob, or all of them where they are fewer.
    pub async fn head(&self, digest: &Digest, length: u64) -> Result<ByteStream, Error> {
        let name = file_of(digest);
        let doing = format!("read {}", self.backing.say(&name));
        let (file, range) = self.backing.open(&name, &doing).await?;
        let end = range.end.min(range.start.saturating_add(length));
        Ok(pieces(file, range.start..end, doing))
    }

    async fn checked(self) -> Result<Layout, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let doing = format!("open OCI layout {}", self.name());
        let bytes = self.read(MARKER, &doing).await?;
        let marker: Marker = serde_json::from_slice(&bytes)
            .map_err(|cause| Error::new(ErrorKind::Corrupt, &doing).because(cause))?;
        if marker.image_layout_version == LAYOUT_VERSION {
            return Ok(self);
        }
        let why = format!("its version is {:?}", marker.image_layout_version);
        Err(Error::new(ErrorKind::Unsupported, doing).because(why))
    }

    async fn read(&self, name: &str, doing: &str) -> Result<Bytes, Error> {
        let (file, range) = self.backing.open(name, doing).await?;
        collect(pieces(file, range, doing.to_owned()), MANIFEST_BYTES_MAX, doing).await
    }

    async fn read_index(&self) -> Result<Index, Error> {
        let doing = format!("read {}", self.backing.say(INDEX));
        match self.read(INDEX, &doing).await {
            Ok(bytes) => Index::parse(&bytes, &doing),
            // An archive that is being written has none yet.
            Err(error) if self.is_draft() && error.kind() == ErrorKind::NotFound => Ok(Index::of(Vec::new())),
            Err(error) => Err(error),
        }
    }

    fn is_draft(&self) -> bool {
        matches!(&self.backing, Backing::Archive(archive) if archive.member(MARKER).is_none())
    }

    async fn write_index(&self, index: &Index) -> Result<(), Error> {
        self.put(INDEX, canonical_json(index).into()).await
    }

    async fn write_marker(&self) -> Result<(), Error> {
        let marker = format!("{{\"imageLayoutVersion\":\"{LAYOUT_VERSION}\"}}");
        self.put(MARKER, marker.into()).await
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        let size = bytes.len() as u64;
        self.backing.put(name, size, Box::pin(stream::once(std::future::ready(Ok(bytes))))).await
    }

    /// The image index that entries of `index.json` are together: that very document where there is nothing else in it.
    async fn together(&self, entries: Vec<Descriptor>) -> Result<Bytes, Error> {
        let doing = format!("read {}", self.backing.say(INDEX));
        let bytes = self.read(INDEX, &doing).await?;
        let whole = Index::parse(&bytes, &doing)?;
        if whole.manifests() == entries {
            return Ok(bytes);
        }
        Ok(canonical_json(&Index::of(entries)).into())
    }

    async fn find(&self, name: &str) -> Result<Descriptor, Error> {
        let doing = format!("find image {name:?} in {}", self.name());
        let digest = match names::find(&self.read_index().await?, name) {
            Found::Entry(entry) => return Ok(*entry),
            Found::Platforms(entries) => {
                return Ok(Descriptor::of(media_type::OCI_INDEX, &self.together(entries).await?));
            }
            Found::Nothing(names) => {
                let why = format!("its names are: {}", names.join(", "));
                return Err(Error::new(ErrorKind::NotFound, doing).because(why));
            }
            Found::Unlisted(digest) => digest,
        };
        let bytes = self.read_blob(&digest, MANIFEST_BYTES_MAX).await?;
        let media_type =
            media_type::of_document(&bytes).ok_or_else(|| Error::new(ErrorKind::Unsupported, doing))?;
        Ok(Descriptor::of(media_type, &bytes))
    }
}

impl Store for Layout {
    fn name(&self) -> String {
        self.backing.path().display().to_string()
    }

    fn origin(&self) -> Option<Origin> {
        None
    }

    fn resolve<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<Descriptor, Error>> {
        Box::pin(self.find(tag_or_digest))
    }

    fn read_manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let doing = format!("read manifest {} in {}", descriptor.digest, self.name());
            let bytes = match self.read(&file_of(&descriptor.digest), &doing).await {
                // It may be the image index that entries of `index.json` are together.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let Found::Platforms(entries) = names::find(&self.read_index().await?, "") else {
                        return Err(error);
                    };
                    let together = self.together(entries).await?;
                    if Digest::sha256(&together) != descriptor.digest {
                        return Err(error);
                    }
                    together
                }
                read => read?,
            };
            descriptor.verify(&bytes, &doing)?;
            Ok(bytes)
        })
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let Descriptor { digest, size, .. } = *descriptor;
        Arc::new(FileBlob { backing: self.backing.clone(), name: file_of(&digest), digest, size })
    }

    fn has_blob<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move { self.backing.has(&file_of(&descriptor.digest)).await })
    }

    fn write_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            descriptor.verify(&bytes, &format!("write blob {}", descriptor.digest))?;
            // In an archive a member twice is a member too many.
            if matches!(self.backing, Backing::Archive(_)) && self.has_blob(descriptor).await? {
                return Ok(());
            }
            self.put(&file_of(&descriptor.digest), bytes).await
        })
    }

    fn write_from<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: &'a dyn Blob,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let source = verified(source.read_all().await?, descriptor.digest, descriptor.size);
            self.backing.put(&file_of(&descriptor.digest), descriptor.size, source).await
        })
    }

    fn write_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.write_blob(descriptor, bytes)
    }

    fn write_referrer<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.write_blob(descriptor, bytes).await?;
            let mut index = self.read_index().await?;
            names::list(&mut index, descriptor);
            self.write_index(&index).await
        })
    }

    fn write_tag<'a>(
        &'a self,
        tag: &'a str,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.write_blob(descriptor, bytes).await?;
            let mut index = match self.alone {
                Alone::Yes => Index::of(Vec::new()),
                Alone::No => self.read_index().await?,
            };
            names::name(&mut index, tag, descriptor);
            self.write_index(&index).await?;
            let Backing::Archive(archive) = self.backing.clone() else { return Ok(()) };
            self.write_marker().await?;
            blocking("write OCI archive", move || archive.finish()).await
        })
    }
}

/// Where a blob lies in a layout.
fn file_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// A blob that is a file, or part of one.
#[derive(Debug)]
struct FileBlob {
    backing: Backing,
    name: String,
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
            let doing = format!("read {}", self.backing.say(&self.name));
            if range.start > range.end || range.end > self.size {
                let why = format!("the blob has {} bytes, asked for {range:?}", self.size);
                return Err(Error::new(ErrorKind::Invalid, doing).because(why));
            }
            let (file, whole) = self.backing.open(&self.name, &doing).await?;
            if range.end > whole.end - whole.start {
                let error = Error::new(ErrorKind::Corrupt, doing);
                return Err(error.because("the file is shorter than its blob"));
            }
            Ok(pieces(file, whole.start + range.start..whole.start + range.end, doing))
        })
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, Error>> {
        self.read_range(0..self.size)
    }
}
