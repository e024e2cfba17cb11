//! `soci image pull`: what a client with the right labels does, against any containerd.
//!
//! containerd 1.6's own `ctr` sends no labels, so a remote snapshotter never learns which layer is meant. This command
//! makes the calls of `ctr image pull`. Manifest and config go into the content store, and every layer is prepared with
//! the labels of containerd's CRI plugin. A layer that the snapshotter does not show is downloaded and unpacked as usual.
//! The image record comes last.

use std::time::{Duration, Instant};

use futures::stream;
use oci::{
    ByteStream, Descriptor, Digest, Index, Manifest, Platform, Reference, Registry, image::media_type,
};

use oci_spec::image::ImageConfiguration;
use proto::containerd::types::Mount;

use super::Tools;
use crate::{
    args::Pull,
    containerd::{Containerd, Labels, Prepared},
    error::{Error, ErrorKind},
    output::Output,
};

/// How often the layers are gone through when containerd's collector removes one of them meanwhile.
const ATTEMPTS: u32 = 3;
/// containerd calls a snapshotter that was away again after at most some seconds.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// A config is JSON of some kilobytes; what registries allow for a manifest is plenty.
const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// What to pull, and into what.
struct Options {
    image: Reference,
    snapshotter: String,
    platform: Platform,
    /// A SOCI index to be used instead of the one that the image names.
    index: Option<Digest>,
}

/// An image of one platform, as the registry has it.
struct Resolved {
    /// What the name points at: an image index or a manifest.
    target: Descriptor,
    documents: Vec<(Descriptor, bytes::Bytes, Labels)>,
    manifest: Descriptor,
    layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
}

pub(super) async fn pull(args: &Pull, tools: &Tools<'_>) -> Result<(), Error> {
    let options = Options {
        image: args.image.strip_prefix("docker://").unwrap_or(&args.image).parse()?,
        snapshotter: args.snapshotter.clone(),
        platform: args.platform.as_deref().map_or_else(|| Ok(Platform::host()), str::parse)?,
        index: args.soci_index_digest.as_deref().map(str::parse).transpose()?,
    };
    let registry = tools.registries.open(&options.image)?;
    let resolved = resolve(&options, &registry).await?;
    let work = async |containerd: &Containerd| {
        Pulling { options: &options, registry: &registry, containerd, resolved: &resolved }
            .all(tools.output)
            .await
    };
    tools.leased("pull", work).await
}

/// A pull under way.
struct Pulling<'a> {
    options: &'a Options,
    registry: &'a Registry,
    containerd: &'a Containerd,
    resolved: &'a Resolved,
}

impl Pulling<'_> {
    async fn all(&self, output: &Output) -> Result<(), Error> {
        for (descriptor, bytes, labels) in &self.resolved.documents {
            let whole: ByteStream = Box::pin(stream::iter([Ok(bytes.clone())]));
            self.containerd.write(descriptor, whole, labels).await?;
        }
        let mut told = 0;
        let mut attempts = 1;
        while !self.layers(&mut told, attempts < ATTEMPTS, output).await? {
            attempts += 1;
        }
        let name = self.options.image.to_string();
        self.containerd.tag(&name, &self.resolved.target).await?;
        output.line(&format!("pulled {name} {}", self.resolved.target.digest));
        Ok(())
    }

    /// All layers, from the lowest up. `told` counts those that a line was printed for. False: containerd's collector has
    /// removed a layer that was there a moment ago, and `may_repeat`.
    async fn layers(&self, told: &mut usize, may_repeat: bool, output: &Output) -> Result<bool, Error> {
        let snapshotter = self.options.snapshotter.as_str();
        let mut parent = String::new();
        for (number, layer) in self.resolved.layers.iter().enumerate() {
            let chain = chain_id(&parent, &self.resolved.diff_ids[number]);
            let how = match self.layer(number, &parent, &chain, output).await {
                Err(error) if error.kind() == ErrorKind::NotFound && may_repeat && !parent.is_empty() => {
                    if self.containerd.has_snapshot(snapshotter, &parent).await? {
                        return Err(error);
                    }
                    return Ok(false);
                }
                how => how?,
            };
            if number >= *told {
                output.line(&format!("layer {} {how}", layer.digest));
                *told = number + 1;
            }
            parent = chain;
        }
        Ok(true)
    }

    /// Calls the snapshotter through containerd. After an outage of the snapshotter, containerd does not call it for some
    /// seconds.
    async fn patiently<T>(
        &self,
        output: &Output,
        call: impl AsyncFn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        loop {
            match call().await {
                Err(error) if error.kind() == ErrorKind::Unreachable && began.elapsed() < PATIENCE => {
                    output.tell(&format!("soci: {}; trying again", error.chain()));
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    /// One layer; the answer says how it got there.
    async fn layer(
        &self,
        number: usize,
        parent: &str,
        chain: &str,
        output: &Output,
    ) -> Result<&'static str, Error> {
        let snapshotter = self.options.snapshotter.as_str();
        let has = async || self.containerd.has_snapshot(snapshotter, chain).await;
        if self.patiently(output, has).await? {
            return Ok("exists");
        }
        let key = format!("extract-{}-{number} {chain}", std::process::id());
        let labels = layer_labels(self.options, self.resolved, number, chain);
        let prepare = async || self.containerd.prepare(snapshotter, &key, parent, labels.clone()).await;
        let mounts = match self.patiently(output, prepare).await? {
            Prepared::Exists if self.containerd.has_snapshot(snapshotter, chain).await? => return Ok("lazy"),
            Prepared::Exists => {
                let doing = format!("prepare layer: snapshot key {key:?} is taken; remove it, or pull again");
                return Err(Error::new(ErrorKind::Io, doing));
            }
            Prepared::Mounts(mounts) => mounts,
        };
        let unpacked = async {
            self.unpack(number, mounts).await?;
            self.containerd.commit(snapshotter, &key, chain, labels).await
        };
        if let Err(error) = unpacked.await {
            self.containerd.discard(snapshotter, &key).await;
            return Err(error);
        }
        Ok("unpacked")
    }

    /// Downloads a layer and lets containerd unpack it into `mounts`.
    async fn unpack(&self, number: usize, mounts: Vec<Mount>) -> Result<(), Error> {
        let layer = &self.resolved.layers[number];
        let blob = self.registry.blob(&layer.digest, Some(layer.size));
        let bytes = blob.read_all().await.map_err(|e| Error::from_oci("fetch layer", e))?;
        self.containerd.write(layer, bytes, &Labels::new()).await?;
        let found = self.containerd.apply(layer, mounts).await?;
        if found == self.resolved.diff_ids[number].to_string() {
            return Ok(());
        }
        let doing = format!("unpack layer {}: its diff ID is {found}, not the config's", layer.digest);
        Err(Error::new(ErrorKind::Corrupt, doing))
    }
}

fn layer_labels(options: &Options, resolved: &Resolved, number: usize, chain: &str) -> Labels {
    let mut above = String::new();
    for layer in &resolved.layers[number..] {
        let digest = layer.digest.to_string();
        // containerd refuses labels of more than 4 096 bytes, name and value together.
        if above.len() + digest.len() + 1 > 4_000 {
            break;
        }
        if !above.is_empty() {
            above.push(',');
        }
        above.push_str(&digest);
    }
    let mut labels = Labels::from([
        ("containerd.io/snapshot.ref".to_owned(), chain.to_owned()),
        ("containerd.io/snapshot/cri.image-ref".to_owned(), options.image.to_string()),
        ("containerd.io/snapshot/cri.manifest-digest".to_owned(), resolved.manifest.digest.to_string()),
        ("containerd.io/snapshot/cri.layer-digest".to_owned(), resolved.layers[number].digest.to_string()),
        ("containerd.io/snapshot/cri.image-layers".to_owned(), above),
        ("containerd.io/snapshot/remote/soci.size".to_owned(), resolved.layers[number].size.to_string()),
    ]);
    if let Some(index) = &options.index {
        labels.insert("containerd.io/snapshot/remote/soci.index.digest".to_owned(), index.to_string());
    }
    labels
}

async fn resolve(options: &Options, registry: &Registry) -> Result<Resolved, Error> {
    let doing = || format!("pull {}", options.image);
    let from_oci = |e| Error::from_oci(doing(), e);
    let mut documents = Vec::new();
    let (target, bytes) = registry.manifest(&options.image.target()).await.map_err(from_oci)?;
    let (manifest, bytes) = if media_type::is_index(&target.media_type) {
        let index = Index::parse(&bytes, &doing()).map_err(from_oci)?;
        let chosen = index.manifests().iter().find(|entry| is_for(entry, &options.platform)).cloned();
        let Some(chosen) = chosen else {
            let why = format!("{}: it has no image for {}; see --platform", doing(), options.platform);
            return Err(Error::new(ErrorKind::NotFound, why));
        };
        let children = index.manifests().iter().enumerate();
        let labels = children
            .map(|(n, entry)| (format!("containerd.io/gc.ref.content.m.{n}"), entry.digest.to_string()));
        let labels = labels.collect();
        documents.push((target.clone(), bytes, labels));
        registry.manifest(&chosen.digest.to_string()).await.map_err(from_oci)?
    } else {
        (target.clone(), bytes)
    };
    let parsed = Manifest::parse(&bytes, &doing()).map_err(from_oci)?;
    let layers = parsed.layers().to_vec();
    let config = registry.blob_bytes(&parsed.config, MAX_CONFIG_BYTES).await.map_err(from_oci)?;
    let parsed_config = ImageConfiguration::from_reader(&config[..]);
    let parsed_config = parsed_config.map_err(|e| Error::new(ErrorKind::Corrupt, doing()).because(e))?;
    let diff_ids: Vec<Digest> = parsed_config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|id| id.parse())
        .collect::<Result<_, _>>()
        .map_err(from_oci)?;
    if diff_ids.len() != layers.len() {
        let why =
            format!("{}: its config has {} layers, its manifest {}", doing(), diff_ids.len(), layers.len());
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    let mut labels =
        Labels::from([("containerd.io/gc.ref.content.config".to_owned(), parsed.config.digest.to_string())]);
    for (number, layer) in layers.iter().enumerate() {
        labels.insert(format!("containerd.io/gc.ref.content.l.{number}"), layer.digest.to_string());
    }
    documents.push((manifest.clone(), bytes, labels));
    // The top snapshot hangs on the config: it lives as long as the image does.
    let top = diff_ids.iter().fold(String::new(), |parent, diff_id| chain_id(&parent, diff_id));
    let snapshot = format!("containerd.io/gc.ref.snapshot.{}", options.snapshotter);
    documents.push((parsed.config.clone(), config, Labels::from([(snapshot, top)])));
    // Children before parents: containerd finds every reference in place.
    documents.reverse();
    Ok(Resolved { target, documents, manifest, layers, diff_ids })
}

/// The image of a platform; a SOCI index in the same image index carries the same platform.
fn is_for(entry: &Descriptor, platform: &Platform) -> bool {
    entry.artifact_type.is_empty()
        && media_type::is_manifest(&entry.media_type)
        && entry.platform.as_ref().is_some_and(|found| found.matches(platform))
}

/// OCI image specification, layer chain IDs.
fn chain_id(parent: &str, diff_id: &Digest) -> String {
    if parent.is_empty() {
        return diff_id.to_string();
    }
    Digest::sha256(format!("{parent} {diff_id}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let first = chain_id("", &digest("a"));
        assert_eq!(first, digest("a").to_string());
        let expected = Digest::sha256(format!("{} {}", digest("a"), digest("b")).as_bytes());
        assert_eq!(chain_id(&first, &digest("b")), expected.to_string());
    }

    #[test]
    fn a_soci_index_is_not_taken_for_the_image() {
        let platform = Platform::new("linux", "amd64", "");
        let mut image = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256(b"image"), 1);
        image.platform = Some(platform.clone());
        assert!(is_for(&image, &platform));
        image.artifact_type = "application/vnd.amazon.soci.index.v2+json".into();
        assert!(!is_for(&image, &platform));
    }
}
