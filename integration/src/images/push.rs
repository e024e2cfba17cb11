//! From memory to a registry: blobs first, then what names them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use bytes::Bytes;
use oci::image::media_type;
use oci::{
    Anonymous, BoxFuture, Client, ClientOptions, Credential, Credentials, Descriptor, Index, Manifest,
    Reference, Registry, Store, canonical_json,
};

use super::Image;

/// One user of one registry.
#[derive(Debug, Clone)]
pub struct Login {
    pub user: String,
    pub password: String,
}

/// Where an image is, and what it consists of there.
#[derive(Debug, Clone)]
pub struct PushedImage {
    /// `host/repository:tag`
    pub reference: String,
    pub manifest: Descriptor,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// A tag for several platforms.
#[derive(Debug, Clone)]
pub struct PushedIndex {
    /// `host/repository:tag`
    pub reference: String,
    pub index: Descriptor,
    pub images: Vec<PushedImage>,
}

impl Credentials for Login {
    fn for_host<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Option<Credential>> {
        let credential = Credential { username: self.user.clone(), secret: self.password.clone() };
        Box::pin(std::future::ready(Some(credential)))
    }
}

/// Pushes to `host` under `name`, `repository:tag`.
pub fn push_image(host: &str, name: &str, image: &Image) -> Result<PushedImage> {
    push(host, name, Arc::new(Anonymous), image)
}

pub fn push_image_as(login: Login, host: &str, name: &str, image: &Image) -> Result<PushedImage> {
    push(host, name, Arc::new(login), image)
}

/// Pushes an image index; each image under the platform it has.
pub fn push_index(host: &str, name: &str, images: &[Image]) -> Result<PushedIndex> {
    let (reference, registry) = open(host, name, Arc::new(Anonymous))?;
    blocking(async {
        let mut pushed = Vec::new();
        let mut manifests = Vec::new();
        for image in images {
            let image_pushed = write_image(&registry, &reference, image).await?;
            let mut descriptor = image_pushed.manifest.clone();
            descriptor.platform = Some(image.platform.clone());
            manifests.push(descriptor);
            pushed.push(image_pushed);
        }
        let bytes = canonical_json(&Index::of(manifests));
        let index = Descriptor::of(media_type::OCI_INDEX, &bytes);
        registry.write_tag(&reference.target(), &index, Bytes::from(bytes)).await?;
        Ok(PushedIndex { reference: format!("{host}/{name}"), index, images: pushed })
    })
}

/// What a tag or digest stands for in `repository`: a manifest, an image index, a SOCI index.
pub fn document(host: &str, repository: &str, tag_or_digest: &str) -> Result<serde_json::Value> {
    let (_, registry) = open(host, repository, Arc::new(Anonymous))?;
    blocking(async { Ok(serde_json::from_slice(&registry.manifest(tag_or_digest).await?.1)?) })
}

fn push(host: &str, name: &str, who: Arc<dyn Credentials>, image: &Image) -> Result<PushedImage> {
    let (reference, registry) = open(host, name, who)?;
    blocking(async {
        let pushed = write_image(&registry, &reference, image).await?;
        let (_, bytes) = registry.manifest(&pushed.manifest.digest.to_string()).await?;
        registry.write_tag(&reference.target(), &pushed.manifest, bytes).await?;
        Ok(pushed)
    })
    .with_context(|| format!("push {host}/{name}"))
}

fn open(host: &str, name: &str, who: Arc<dyn Credentials>) -> Result<(Reference, Registry)> {
    let reference: Reference = format!("{host}/{name}").parse()?;
    let registry = Registry::new(&Client::new(ClientOptions::default())?, &reference, who)?;
    Ok((reference, registry))
}

/// Everything but the tag.
async fn write_image(registry: &Registry, reference: &Reference, image: &Image) -> Result<PushedImage> {
    let mut layers = Vec::new();
    for layer in &image.layers {
        let size = u64::try_from(layer.bytes.len())?;
        let descriptor = Descriptor::new(&layer.media_type, layer.digest, size);
        if !registry.has_blob(&descriptor).await? {
            registry.write_blob(&descriptor, layer.bytes.clone()).await?;
        }
        layers.push(descriptor);
    }
    let bytes = image.configuration();
    let config = Descriptor::of(media_type::OCI_CONFIG, &bytes);
    registry.write_blob(&config, Bytes::from(bytes)).await?;
    let bytes = canonical_json(&Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        artifact_type: String::new(),
        config: config.clone(),
        layers: Some(layers.clone()),
        subject: None,
        annotations: BTreeMap::new(),
    });
    let manifest = Descriptor::of(media_type::OCI_MANIFEST, &bytes);
    registry.write_manifest(&manifest, Bytes::from(bytes)).await?;
    let name = format!("{}/{}:{}", reference.registry(), reference.repository(), reference.target());
    Ok(PushedImage { reference: name, manifest, config, layers })
}

/// Waits for a future on a thread and runtime of its own, so that callers with a runtime may call it too.
pub(crate) fn blocking<T: Send>(future: impl Future<Output = Result<T>> + Send) -> Result<T> {
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("make a runtime")?.block_on(future)
        });
        waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
