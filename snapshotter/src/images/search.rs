//! Which image a layer is of, where the client has not said so: found from the chain ID that its snapshot is to have.
//!
//! containerd has fetched an image's manifest and configuration before it prepares the first layer. So its manifests are
//! looked through, those that were touched last first, until one's configuration has the layer at some place of its
//! chain: the one that is being pulled has just been touched. What is found is by its own digests the right layer,
//! whichever of several images with the same one it was found through; the repository is the one that containerd notes
//! having it from. It does not note a port: that is taken from other images of the same repository, where there are any.
//! A pull of many layers reads each document once. There are limits to all of it, and beyond them nothing is found, which
//! costs no more than laziness; and an image whose registry was guessed wrong is not tried again soon.

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

/// Some kilobytes from a neighbour's memory: a pull is not held up for longer.
const PATIENCE: Duration = Duration::from_secs(1);
/// A pull prepares its layers one right after the other.
const KEEP: Duration = Duration::from_secs(5);
/// Manifests whose configuration is read; the one that is being pulled is among the first.
const MOST_READ: usize = 64;
/// Namespaces with a pull at the same time, generously.
const MOST_NAMESPACES: usize = 16;
/// How long a registry on this machine or at an address may take to be there.
const KNOCK: Duration = Duration::from_millis(200);
/// For how long an image is left alone whose registry did not have its index, or was not there.
const DOUBT: Duration = Duration::from_secs(60);
const MOST_DOUBTED: usize = 1024;

/// Images whose layers were asked for lately.
#[derive(Debug)]
pub(crate) struct Search {
    containerd: Arc<Containerd>,
    /// By namespace. Whoever searches holds it: the others find what was found.
    known: tokio::sync::Mutex<HashMap<String, Known>>,
    /// Manifests that led nowhere, when, and why.
    doubted: Mutex<HashMap<Digest, (Instant, NotLazy)>>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    /// Those looked at, the one touched last first.
    images: Vec<Arc<Chains>>,
}

/// One image: its layers by the chain IDs they make, and where it is from, once somebody wants to know.
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

    /// What was found led nowhere: nobody waits for it again soon.
    pub(crate) fn doubt(&self, manifest: Digest, why: NotLazy) {
        let mut doubted = lock(&self.doubted);
        doubted.retain(|_, (since, _)| since.elapsed() < DOUBT);
        if doubted.len() < MOST_DOUBTED {
            doubted.insert(manifest, (Instant::now(), why));
        }
    }

    /// The request as it is, or why it would lead nowhere.
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
            "the client does not say which image it is of, and containerd has none that is known to have it";
        self.checked(found.ok_or_else(|| NotLazy::new(Reason::NoLabels, why))?)
    }

    /// Whether the snapshot is known to be one of an image's that has others below it.
    pub(crate) async fn is_above(&self, namespace: &str, target: &str) -> bool {
        let Ok(wanted) = Digest::from_str(target) else { return false };
        // What it looked at is known then, also where that led nowhere.
        self.find_in_time(namespace, target).await;
        let known = self.known.lock().await;
        let images = known.get(namespace).map_or(&[][..], |known| &known.images);
        images.iter().any(|image| image.layers.contains_key(&wanted) && image.lowest != Some(wanted))
    }

    async fn find_in_time(&self, namespace: &str, target: &str) -> Option<LayerRequest> {
        timeout(PATIENCE, self.find(namespace, target)).await.unwrap_or_else(|_| {
            tracing::debug!(namespace, target, "which image the layer is of could not be found in time");
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

    /// Both documents are verified by their digests; those of other things than images are left out.
    async fn read(&self, namespace: &str, listed: Listed) -> Option<Chains> {
        let config = self.containerd.content(namespace, &listed.config).await?;
        let manifest = self.containerd.content(namespace, &listed.manifest).await?;
        let manifest = Manifest::parse(&manifest, "read image manifest").ok()?;
        // The note that led here is anybody's; the manifest itself says which configuration is its own.
        if manifest.config.digest != listed.config {
            return None;
        }
        let layers: Vec<_> = manifest.layers().iter().map(|layer| layer.digest).collect();
        let chains = chains(&config, &layers)?;
        let lowest = chains.first().map(|(chain, _)| *chain);
        Some(Chains { listed, layers: chains.into_iter().collect(), lowest, image: OnceCell::new() })
    }

    /// Where the image can be had from.
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

/// A registry of a name of its own mostly has no port in it. One on this machine, or at an address, mostly has: then
/// nobody listens where it would be without.
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
