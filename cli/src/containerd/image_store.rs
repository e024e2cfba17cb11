//! containerd's images and content as a store like any other. A tag is an image's full name.
//!
//! Manifests and image indexes get the labels by which containerd's garbage collector goes from an image to
//! everything it consists of, SOCI indexes and their ztocs among it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use index::manifest::{ARTIFACT_V1, ARTIFACT_V2};
use oci::blob::verified;
use oci::image::media_type::{is_index, of_document};
use oci::store::{MANIFEST_BYTES_MAX, Origin};
use oci::{Blob, BoxFuture, ByteStream, Digest, Index, Manifest, Reference, Store};

use super::{Containerd, Descriptor, Error, Labels};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct ImageStore {
    containerd: Containerd,
}

impl ImageStore {
    pub(crate) fn new(containerd: Containerd) -> ImageStore {
        ImageStore { containerd }
    }

    pub(crate) fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// The name under which containerd has an image that is called so: that very name, or the one Docker's rules make
    /// of it. With what it points at.
    pub(crate) async fn find(&self, name: &str) -> Result<(String, Descriptor), Error> {
        if let Some(target) = self.containerd.image(name).await? {
            return Ok((name.to_owned(), target));
        }
        if let Ok(reference) = name.parse::<Reference>() {
            let full = match (reference.tag(), reference.digest()) {
                (None, None) => format!("{reference}:latest"),
                _ => reference.to_string(),
            };
            if let Some(target) = self.containerd.image(&full).await? {
                return Ok((full, target));
            }
        }
        let namespace = self.containerd.namespace();
        let doing = format!("find image {name:?} in containerd's namespace {namespace:?}");
        Err(Error::new(super::ErrorKind::NotFound, doing).because("not found; see --namespace"))
    }

    async fn write(&self, descriptor: &Descriptor, bytes: Bytes, labels: &Labels) -> Result<(), oci::Error> {
        descriptor.verify(&bytes, &format!("write content {}", descriptor.digest))?;
        let whole: ByteStream = Box::pin(stream::once(std::future::ready(Ok(bytes))));
        self.containerd.write(descriptor, whole, labels).await.map_err(Error::into_oci)
    }
}

impl Store for ImageStore {
    fn name(&self) -> String {
        format!("containerd (namespace {})", self.containerd.namespace())
    }

    fn origin(&self) -> Option<Origin> {
        None
    }

    fn resolve<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<Descriptor, oci::Error>> {
        Box::pin(async move {
            let Ok(digest) = tag_or_digest.parse::<Digest>() else {
                return Ok(self.find(tag_or_digest).await.map_err(Error::into_oci)?.1);
            };
            let bytes = self.containerd.read_whole(&digest, MANIFEST_BYTES_MAX).await?;
            let unknown = || {
                let error = oci::Error::new(oci::ErrorKind::Unsupported, format!("find image {digest}"));
                error.because("it is neither a manifest nor an image index")
            };
            Ok(Descriptor::of(of_document(&bytes).ok_or_else(unknown)?, &bytes))
        })
    }

    fn read_manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, oci::Error>> {
        Box::pin(self.containerd.read_whole(&descriptor.digest, MANIFEST_BYTES_MAX))
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let Descriptor { digest, size, .. } = *descriptor;
        Arc::new(Content { containerd: self.containerd.clone(), digest, size })
    }

    fn has_blob<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<bool, oci::Error>> {
        Box::pin(async move {
            let size = self.containerd.size(&descriptor.digest).await;
            Ok(size.map_err(Error::into_oci)?.is_some())
        })
    }

    fn write_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), oci::Error>> {
        Box::pin(async move { self.write(descriptor, bytes, &Labels::new()).await })
    }

    fn write_from<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: &'a dyn Blob,
    ) -> BoxFuture<'a, Result<(), oci::Error>> {
        Box::pin(async move {
            let source = verified(source.read_all().await?, descriptor.digest, descriptor.size);
            self.containerd.write(descriptor, source, &Labels::new()).await.map_err(Error::into_oci)
        })
    }

    fn copy_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        from: &'a dyn Store,
    ) -> BoxFuture<'a, Result<(), oci::Error>> {
        Box::pin(async move {
            if self.has_blob(descriptor).await? {
                // What is there already must not be collected before the image stands.
                let held = self.containerd.adopt(&descriptor.digest, &Labels::new()).await;
                return held.map_err(Error::into_oci);
            }
            self.write_from(descriptor, &*from.blob(descriptor)).await
        })
    }

    fn write_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), oci::Error>> {
        Box::pin(async move {
            let labels = labels(descriptor, &bytes)?;
            self.write(descriptor, bytes, &labels).await
        })
    }

    fn write_referrer<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), oci::Error>> {
        // containerd keeps no referrers; the command that creates one labels the image.
        self.write_manifest(descriptor, bytes)
    }

    fn write_tag<'a>(
        &'a self,
        tag: &'a str,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), oci::Error>> {
        Box::pin(async move {
            self.write_manifest(descriptor, bytes).await?;
            self.containerd.tag(tag, descriptor).await.map_err(Error::into_oci)
        })
    }
}

/// What containerd's garbage collector must know of a document: all it points to.
fn labels(descriptor: &Descriptor, bytes: &[u8]) -> Result<Labels, oci::Error> {
    let doing = format!("label content {}", descriptor.digest);
    let mut labels = Labels::new();
    let mut refer = |kind: &str, digest: &Digest| {
        labels.insert(format!("containerd.io/gc.ref.content.{kind}"), digest.to_string());
    };
    if is_index(&descriptor.media_type) {
        for (number, entry) in Index::parse(bytes, &doing)?.manifests().iter().enumerate() {
            refer(&format!("m.{number}"), &entry.digest);
        }
        return Ok(labels);
    }
    let manifest = Manifest::parse(bytes, &doing)?;
    let soci = matches!(manifest.config.media_type.as_str(), ARTIFACT_V1 | ARTIFACT_V2);
    refer("config", &manifest.config.digest);
    for (number, layer) in manifest.layers().iter().enumerate() {
        refer(&format!("{}.{number}", if soci { "ztoc" } else { "l" }), &layer.digest);
    }
    Ok(labels)
}

/// A blob of the content store.
#[derive(Debug)]
struct Content {
    containerd: Containerd,
    digest: Digest,
    size: u64,
}

impl Blob for Content {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, oci::Error>> {
        Box::pin(async move {
            self.containerd.read(&self.digest, range.start, range.end.saturating_sub(range.start)).await
        })
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, oci::Error>> {
        self.read_range(0..self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::image::media_type::{OCI_INDEX, OCI_MANIFEST};

    #[test]
    fn documents_hold_what_they_point_to() {
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let point = |media_type: &str, text: &str| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":1}}"#, digest(text))
        };
        let check = |media_type: &str, document: String, expected: &[(&str, &str)]| {
            let descriptor = Descriptor::of(media_type, document.as_bytes());
            let expected: Labels = expected
                .iter()
                .map(|(kind, text)| {
                    (format!("containerd.io/gc.ref.content.{kind}"), digest(text).to_string())
                })
                .collect();
            assert_eq!(labels(&descriptor, document.as_bytes()).unwrap(), expected);
        };
        let manifest = |config: &str| {
            format!(
                r#"{{"schemaVersion":2,"config":{},"layers":[{},{}]}}"#,
                point(config, "c"),
                point("x", "1"),
                point("x", "2")
            )
        };
        check(OCI_MANIFEST, manifest("x"), &[("config", "c"), ("l.0", "1"), ("l.1", "2")]);
        check(OCI_MANIFEST, manifest(ARTIFACT_V2), &[("config", "c"), ("ztoc.0", "1"), ("ztoc.1", "2")]);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, point(OCI_MANIFEST, "1"));
        check(OCI_INDEX, index, &[("m.0", "1")]);
    }
}
