//! Finds the image of a layer by the name of its snapshot, for a client that sends no labels.
//!
//! containerd has fetched an image's manifest and configuration before it prepares the first layer. The search goes
//! through containerd's manifests, the last used first, until one has the layer's chain ID in its configuration. Digests
//! prove that this is the right layer, whichever image it was found through.
//!
//! The registry is the one that containerd notes for the manifest. That note has no port, so the port is taken from the
//! name of another image of the same repository. A pull of many layers reads each document once.
//!
//! Every step is bounded. When a limit is reached, the layer is not lazy, and nothing else changes. An image whose
//! registry was guessed wrong is not tried again for a minute.

use std::{
    collections::HashMap,
    net::IpAddr,
    str::FromStr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use oci::{Digest, Manifest, Reference};
use serde::Deserialize;
use tokio::{net::TcpStream, sync::OnceCell, time::timeout};

use crate::{
    images::{
        chain_id,
        containerd::{Containerd, Listed},
        labels::LayerRequest,
        plan::MAX_LAYERS,
    },
    reason::{NotLazy, Reason},
    sync::lock,
};

/// A few kilobytes from a process on this machine. A pull is not delayed for longer.
const PATIENCE: Duration = Duration::from_secs(1);
/// A pull prepares its layers one right after the other.
const KEEP: Duration = Duration::from_secs(5);
/// Manifests whose configuration is read; the one that is being pulled is among the first.
const MOST_READ: usize = 64;
/// Namespaces with a pull at the same time, generously.
const MOST_NAMESPACES: usize = 16;
/// How long a registry on this machine or at an address may take to be there.
const KNOCK: Duration = Duration::from_millis(200);
/// How long an image is not tried again whose registry had no index, or did not answer.
const DOUBT: Duration = Duration::from_secs(60);
const MOST_DOUBTED: usize = 1024;

/// Images whose layers were asked for lately.
#[derive(Debug)]
pub(crate) struct Search {
    containerd: Arc<Containerd>,
    /// By namespace. One search holds it at a time, and the next finds the result.
    known: tokio::sync::Mutex<HashMap<String, Known>>,
    /// Manifests without a result: when, and why.
    doubted: Mutex<HashMap<Digest, (Instant, NotLazy)>>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    /// The images that were read, the last used first.
    images: Vec<Arc<Chains>>,
}

/// One image: its layers by their chain IDs, and its repository, once it has been asked for.
#[derive(Debug)]
struct Chains {
    listed: Listed,
    layers: HashMap<Digest, Digest>,
    /// The chain ID of its lowest one.
    lowest: Option<Digest>,
    image: OnceCell<Option<Reference>>,
}

impl Search {
    pub(crate) fn new(containerd: Arc<Containerd>) -> Self {
        Self { containerd, known: tokio::sync::Mutex::default(), doubted: Mutex::default() }
    }

    /// Remembers for a minute that an image could not be used.
    pub(crate) fn doubt(&self, manifest: Digest, why: NotLazy) {
        let mut doubted = lock(&self.doubted);
        doubted.retain(|_, (since, _)| since.elapsed() < DOUBT);
        if doubted.len() < MOST_DOUBTED {
            doubted.insert(manifest, (Instant::now(), why));
        }
    }

    /// The request, or why its image could not be used lately.
    fn checked(&self, request: LayerRequest) -> Result<LayerRequest, NotLazy> {
        match lock(&self.doubted).get(&request.manifest) {
            Some((since, why)) if since.elapsed() < DOUBT => Err(why.clone()),
            _ => Ok(request),
        }
    }

    /// The layer whose snapshot is to be called `target`, in an image that containerd has in this namespace.
    pub(crate) async fn layer(&self, namespace: &str, target: &str) -> Result<LayerRequest, NotLazy> {
        let found = self.find_in_time(namespace, target).await;
        let why =
            "the client does not name the image, and no image in containerd is known to have this layer";
        self.checked(found.ok_or_else(|| NotLazy::new(Reason::NoLabels, why))?)
    }

    /// Whether the snapshot is known to be one of an image's that has others below it.
    pub(crate) async fn is_above(&self, namespace: &str, target: &str) -> bool {
        let Ok(wanted) = Digest::from_str(target) else { return false };
        // The search remembers the images that it read, even without a result.
        self.find_in_time(namespace, target).await;
        let known = self.known.lock().await;
        let images = known.get(namespace).map_or(&[][..], |known| &known.images);
        images.iter().any(|image| image.layers.contains_key(&wanted) && image.lowest != Some(wanted))
    }

    async fn find_in_time(&self, namespace: &str, target: &str) -> Option<LayerRequest> {
        timeout(PATIENCE, self.find(namespace, target)).await.unwrap_or_else(|_| {
            tracing::debug!(namespace, target, "the image of the layer could not be found in time");
            None
        })
    }

    async fn find(&self, namespace: &str, target: &str) -> Option<LayerRequest> {
        let wanted = Digest::from_str(target).ok()?;
        let mut known = self.known.lock().await;
        known.retain(|_, known| known.since.elapsed() < KEEP);
        let before = known.get(namespace).map_or(&[][..], |known| &known.images);
        if let Some(image) = before.iter().find(|image| image.layers.contains_key(&wanted)) {
            return self.request(namespace, image, target, &wanted).await;
        }
        let before: HashMap<_, _> =
            before.iter().map(|image| (image.listed.manifest, image.clone())).collect();
        let (mut images, mut found) = (Vec::new(), None);
        for listed in self.containerd.manifests(namespace).await?.into_iter().take(MOST_READ) {
            let image = match before.get(&listed.manifest) {
                Some(image) => Some(image.clone()),
                None => self.read(namespace, listed).await.map(Arc::new),
            };
            let Some(image) = image else { continue };
            images.push(image.clone());
            if image.layers.contains_key(&wanted) {
                found = self.request(namespace, &image, target, &wanted).await;
                break;
            }
        }
        if known.len() >= MOST_NAMESPACES {
            known.clear();
        }
        known.insert(namespace.to_owned(), Known { since: Instant::now(), images });
        found
    }

    async fn request(
        &self,
        namespace: &str,
        image: &Chains,
        target: &str,
        wanted: &Digest,
    ) -> Option<LayerRequest> {
        let layer = *image.layers.get(wanted)?;
        let source = image.image.get_or_init(|| self.source(namespace, &image.listed)).await.clone()?;
        let manifest = image.listed.manifest;
        Some(LayerRequest { target: target.to_owned(), image: source, manifest, layer, index: None })
    }

    /// Reads and verifies an image's two documents. None if they are not those of an image.
    async fn read(&self, namespace: &str, listed: Listed) -> Option<Chains> {
        let config = self.containerd.content(namespace, &listed.config).await?;
        let manifest = self.containerd.content(namespace, &listed.manifest).await?;
        let manifest = Manifest::parse(&manifest, "read image manifest").ok()?;
        // Any client can write the label that led here. The manifest itself names its configuration.
        if manifest.config.digest != listed.config {
            return None;
        }
        let layers: Vec<_> = manifest.layers().iter().map(|layer| layer.digest).collect();
        let chains = chains(&config, &layers)?;
        let lowest = chains.first().map(|(chain, _)| *chain);
        Some(Chains { listed, layers: chains.into_iter().collect(), lowest, image: OnceCell::new() })
    }

    /// The reference of the image in its registry.
    async fn source(&self, namespace: &str, listed: &Listed) -> Option<Reference> {
        let names = self.containerd.names(namespace).await;
        let names: Vec<_> = names.iter().filter_map(|name| Reference::from_str(name).ok()).collect();
        for (host, repository) in &listed.sources {
            let with_port = names
                .iter()
                .find(|name| name.repository() == repository && host_of(name.registry()) == host)
                .map(|name| name.with_digest(listed.manifest));
            if with_port.is_some() {
                return with_port;
            }
            let name = format!("{host}/{repository}@{}", listed.manifest);
            if let Ok(image) = Reference::from_str(&name)
                && is_there(host).await
            {
                return Some(image);
            }
        }
        None
    }
}

/// A registry's host without its port.
fn host_of(registry: &str) -> &str {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether a registry can be reached without a port. A registry on this machine, or at an address, mostly has a port, and
/// then nothing listens on the default ports.
async fn is_there(host: &str) -> bool {
    if host != "localhost" && host.parse::<IpAddr>().is_err() {
        return true;
    }
    for port in [443, 80] {
        if let Ok(Ok(_)) = timeout(KNOCK, TcpStream::connect((host, port))).await {
            return true;
        }
    }
    false
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// Each layer's chain ID and digest, the lowest first, from the image's configuration. None where that is not an image's,
/// or one with other layers.
fn chains(config: &[u8], layers: &[Digest]) -> Option<Vec<(Digest, Digest)>> {
    let config: Config = serde_json::from_slice(config).ok()?;
    let diffs = config.rootfs.diff_ids;
    if diffs.len() != layers.len() || diffs.len() > MAX_LAYERS {
        return None;
    }
    let mut found = Vec::with_capacity(layers.len());
    let mut below = None;
    for (diff, layer) in diffs.iter().zip(layers) {
        let own = chain_id::id(below.as_ref(), &Digest::from_str(diff).ok()?);
        found.push((own, *layer));
        below = Some(own);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_their_ports() {
        for (registry, host) in [
            ("docker.io", "docker.io"),
            ("127.0.0.1:5000", "127.0.0.1"),
            ("localhost:80", "localhost"),
            ("[::1]:5000", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(host_of(registry), host, "{registry}");
        }
    }

    #[test]
    fn layers_have_the_chain_ids_of_the_configuration() {
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let layers = ["a", "b", "b"].map(digest);
        let diffs = ["da", "db", "db"].map(digest);
        let config = format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":["{}","{}","{}"]}}}}"#,
            diffs[0], diffs[1], diffs[2]
        );
        let found = chains(config.as_bytes(), &layers).unwrap();
        let first = diffs[0];
        let second = digest(&format!("{first} {}", diffs[1]));
        let third = digest(&format!("{second} {}", diffs[2]));
        assert_eq!(found, [(first, layers[0]), (second, layers[1]), (third, layers[2])]);
        assert_eq!(chains(config.as_bytes(), &layers[1..]), None, "another number of layers");
        for bad in ["", "{}", "[]", r#"{"rootfs":{}}"#, r#"{"rootfs":{"diff_ids":["x","sha256:1","y"]}}"#] {
            assert_eq!(chains(bad.as_bytes(), &layers), None, "{bad}");
        }
    }
}
