//! A store in memory: what was written, in which order, and a death on cue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::FaultyBlob;
use crate::blob::{Blob, BoxFuture, collect, verified};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::image::Descriptor;
use crate::store::{Origin, Store};

/// See the module. Cheap to clone; clones are the same store.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<Digest, Bytes>,
    manifests: BTreeMap<Digest, (String, Bytes)>,
    tags: BTreeMap<String, Digest>,
    journal: Vec<String>,
    writes_left: Option<usize>,
}

impl MemoryStore {
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Puts a blob there, and describes it.
    pub fn add_blob(&self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        self.state().blobs.insert(descriptor.digest, bytes);
        descriptor
    }

    /// Puts a manifest or image index there, and describes it.
    pub fn add_manifest(&self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        self.state().manifests.insert(descriptor.digest, (media_type.to_owned(), bytes));
        descriptor
    }

    pub fn add_tag(&self, tag: &str, digest: Digest) {
        self.state().tags.insert(tag.to_owned(), digest);
    }

    pub fn remove(&self, digest: &Digest) {
        let mut state = self.state();
        state.blobs.remove(digest);
        state.manifests.remove(digest);
    }

    /// After this many writes more, every write fails.
    pub fn die_after(&self, writes: usize) {
        self.state().writes_left = Some(writes);
    }

    pub fn tag(&self, tag: &str) -> Option<Digest> {
        self.state().tags.get(tag).copied()
    }

    pub fn manifest(&self, digest: &Digest) -> Option<Bytes> {
        self.state().manifests.get(digest).map(|(_, bytes)| bytes.clone())
    }

    pub fn has(&self, digest: &Digest) -> bool {
        let state = self.state();
        state.blobs.contains_key(digest) || state.manifests.contains_key(digest)
    }

    /// The writes so far: `blob DIGEST`, `manifest DIGEST`, `tag NAME`.
    pub fn journal(&self) -> Vec<String> {
        self.state().journal.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, entry: String, put: impl FnOnce(&mut State)) -> Result<(), Error> {
        let mut state = self.state();
        if let Some(left) = &mut state.writes_left {
            let Some(fewer) = left.checked_sub(1) else {
                return Err(Error::new(ErrorKind::Unreachable, format!("write {entry}")));
            };
            *left = fewer;
        }
        state.journal.push(entry);
        put(&mut state);
        Ok(())
    }

    fn put_manifest(&self, tag: Option<&str>, descriptor: &Descriptor, bytes: Bytes) -> Result<(), Error> {
        descriptor.verify(&bytes, "write manifest")?;
        let entry = tag.map_or_else(|| format!("manifest {}", descriptor.digest), |tag| format!("tag {tag}"));
        self.write(entry, |state| {
            state.manifests.insert(descriptor.digest, (descriptor.media_type.clone(), bytes));
            if let Some(tag) = tag {
                state.tags.insert(tag.to_owned(), descriptor.digest);
            }
        })
    }
}

impl Store for MemoryStore {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn origin(&self) -> Option<Origin> {
        None
    }

    fn resolve<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<Descriptor, Error>> {
        let state = self.state();
        let digest = tag_or_digest.parse().ok().or_else(|| state.tags.get(tag_or_digest).copied());
        let found = digest.and_then(|digest| {
            let (media_type, bytes) = state.manifests.get(&digest)?;
            Some(Descriptor::new(media_type.clone(), digest, bytes.len() as u64))
        });
        let missing = || Error::new(ErrorKind::NotFound, format!("find {tag_or_digest}"));
        Box::pin(std::future::ready(found.ok_or_else(missing)))
    }

    fn read_manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, Error>> {
        let missing = || Error::new(ErrorKind::NotFound, format!("read manifest {}", descriptor.digest));
        Box::pin(std::future::ready(self.manifest(&descriptor.digest).ok_or_else(missing)))
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let bytes = self.state().blobs.get(&descriptor.digest).cloned();
        let missing = bytes.is_none();
        let blob = FaultyBlob::new(bytes.unwrap_or_default(), 1 << 16);
        if missing {
            blob.fail_next(super::BlobFault::Refuse(ErrorKind::NotFound));
        }
        Arc::new(blob)
    }

    fn has_blob<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<bool, Error>> {
        let has = self.has(&descriptor.digest);
        Box::pin(std::future::ready(Ok(has)))
    }

    fn write_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let written = descriptor.verify(&bytes, "write blob").and_then(|()| {
            self.write(format!("blob {}", descriptor.digest), |state| {
                state.blobs.insert(descriptor.digest, bytes);
            })
        });
        Box::pin(std::future::ready(written))
    }

    fn write_from<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: &'a dyn Blob,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let source = verified(source.read_all().await?, descriptor.digest, descriptor.size);
            let bytes = collect(source, descriptor.size, "copy blob").await?;
            self.write_blob(descriptor, bytes).await
        })
    }

    fn write_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(std::future::ready(self.put_manifest(None, descriptor, bytes)))
    }

    fn write_referrer<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.write_manifest(descriptor, bytes)
    }

    fn write_tag<'a>(
        &'a self,
        tag: &'a str,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(std::future::ready(self.put_manifest(Some(tag), descriptor, bytes)))
    }
}
