//! What a conversion needs of a place that holds images: find an image by tag or digest, read manifests and
//! blobs, write blobs, write manifests, set a tag. A registry's repository is one; an OCI layout and
//! containerd's content store are others. A store holds *one* repository's worth of names.
//!
//! Writing is by content: what is written has the digest it was announced with, or the call fails and nothing
//! is there. Writing twice is no error. Only `Store::write_tag` changes what a reader of a tag sees.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;

use crate::blob::{Blob, BoxFuture, collect};
use crate::error::{Error, ErrorKind};
use crate::image::Descriptor;

/// Manifests and image indexes longer than this are refused. Registries take 4 MiB (the distribution
/// specification's number for what must be accepted); twice that leaves room, and bounds memory.
pub const MANIFEST_BYTES_MAX: u64 = 8 << 20;

/// Where a registry's repository is: what another repository needs to mount a blob from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `host[:port]`, normalized
    pub registry: String,
    pub repository: String,
}

/// A small blob of a store in memory, compared with its digest and size; larger than `limit` is `Corrupt` unasked.
pub async fn read_blob(
    store: &dyn Store,
    descriptor: &Descriptor,
    limit: u64,
    doing: &str,
) -> Result<Bytes, Error> {
    if descriptor.size > limit {
        let why = format!("it has {} bytes; more than {limit} are not read", descriptor.size);
        return Err(Error::new(ErrorKind::Corrupt, doing).because(why));
    }
    let stream = store.blob(descriptor).read_all().await?;
    let bytes = collect(stream, limit, doing).await?;
    descriptor.verify(&bytes, doing)?;
    Ok(bytes)
}

/// See the module. Errors speak of the store by its [`name`](Store::name).
pub trait Store: Send + Sync + Debug {
    /// As messages name it: `host/repository`, a folder.
    fn name(&self) -> String;

    /// The repository behind it, if it is one.
    fn origin(&self) -> Option<Origin>;

    /// What a tag, or a digest written out, stands for: media type, digest, size. `NotFound` if nothing.
    fn resolve<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<Descriptor, Error>>;

    /// A manifest or image index, compared with the descriptor's digest; at most [`MANIFEST_BYTES_MAX`].
    fn read_manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, Error>>;

    /// A blob; whether it exists shows when it is read.
    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob>;

    /// Whether the blob is there already.
    fn has_blob<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<bool, Error>>;

    /// Bytes in memory as a blob; refused as `Corrupt` when they do not fit the descriptor.
    fn write_blob<'a>(&'a self, descriptor: &'a Descriptor, bytes: Bytes)
    -> BoxFuture<'a, Result<(), Error>>;

    /// A blob whose bytes come from somewhere else, streamed through and never held whole. The source may be read
    /// more than once, where a transfer breaks; the bytes are compared with the descriptor.
    fn write_from<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: &'a dyn Blob,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// A blob of another store: nothing to do where it is there already, mounted where both are repositories of
    /// one registry, else streamed through.
    fn copy_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        from: &'a dyn Store,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if self.has_blob(descriptor).await? {
                return Ok(());
            }
            self.write_from(descriptor, &*from.blob(descriptor)).await
        })
    }

    /// A manifest or image index under its digest; what it names must be there before.
    fn write_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// The same, for a manifest with a subject: a client that asks what refers to the subject finds it from now on. The
    /// descriptor says its artifact type.
    fn write_referrer<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// The same, and the tag points to it from now on.
    fn write_tag<'a>(
        &'a self,
        tag: &'a str,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>>;
}
