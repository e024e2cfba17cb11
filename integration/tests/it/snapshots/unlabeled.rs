//! Clients that say which snapshot they want and not which image it is of: `ctr`, and others that do without the labels.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::{
    containerd::{Containerd, Options},
    daemon::{Daemon, with_containerd},
    images::{Image, push_image},
    lab::Lab,
    link::Link,
    machine::{ensure_debian, skip},
    parts,
    process::wait_until,
};
use oci::Digest;
use serde_json::Value;
use tonic::Code;

use crate::{
    conformance::client::{Stage, code},
    image::{SMALL, noise, stage},
    read_path::{NO_FILL, reasons},
};
use integration::images::{Layer, Tar, tar::Entry};

/// For containerd to come back to a daemon that was away.
const AGAIN_LIMIT: Duration = Duration::from_secs(60);
/// Without `enable_remote_snapshot_annotations`, so that there are no labels.
const UNPACKS: &str = "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                       platform = \"linux\"\nsnapshotter = \"soci\"\n";

/// A shell, a file that no test reads, and a small layer above.
fn layers() -> Result<Vec<Layer>> {
    ensure_debian(&["busybox-static"])?;
    let busybox = std::fs::read("/bin/busybox")?;
    let shell = Tar::new([
        Entry::directory("bin"),
        Entry::file("bin/busybox", busybox).mode(0o755),
        Entry::symlink("bin/sh", "busybox"),
    ]);
    let ballast = Tar::new([Entry::file("ballast", noise(12, 20 << 20))]);
    let top = Tar::new([Entry::file("hello", b"from the layer\n")]);
    Ok([shell, ballast, top].map(|tar| Layer::gzip(&tar.bytes())).to_vec())
}

fn shown(daemon: &Daemon) -> usize {
    daemon.prepared().into_iter().filter(|lazy| *lazy).count()
}

#[test]
fn containerd_ctr_pulls_lazily_on_containerd_2_without_labels() -> Result<()> {
    let binaries = match parts::containerd_2() {
        Ok(binaries) => binaries,
        Err(error) => {
            skip(&format!("ctr of containerd 2 without labels: {error:#}"));
            return Ok(());
        }
    };
    let lab = Lab::new("ctr2")?;
    let stage = stage(&lab, layers()?, &["--min-layer-size", "0"])?;
    // containerd notes a registry without its port, so that this one has none.
    let pid = std::process::id().to_be_bytes();
    let host = format!("127.{}.{}.{}", 64 + pid[1] % 64, pid[2], pid[3]);
    let link = Link::at(&lab, stage.registry.host(), &format!("{host}:80"))?;
    let lazy = format!("{host}/app:soci");
    let daemon = Daemon::start(&lab, &format!("{}{NO_FILL}", Daemon::configuration(&lab)))?;
    let proxies = vec![("soci".to_owned(), daemon.address())];
    let options = Options { proxies, extra: UNPACKS.into(), binaries: Some(binaries), ..Options::default() };
    let containerd = Containerd::start_with(&lab, options)?;
    link.reset();
    containerd.pull(&lazy, "soci")?;
    ensure!(reasons(&daemon).is_empty() && shown(&daemon) == 3, "{:?}", daemon.logs());
    let said = containerd.run(&lazy, "soci", "c", &["/bin/busybox", "cat", "/hello"])?;
    ensure!(said == "from the layer\n", "{said}");
    let all: u64 = stage.pushed.layers.iter().map(|layer| layer.size).sum();
    let fetched = link.traffic().down;
    ensure!(fetched * 4 < all, "{fetched} of {all} bytes were fetched: it was not lazy");
    // What was found out is kept: after a restart the layers know where their bytes are.
    daemon.restart()?;
    // containerd connects again in its own time.
    let words = ["/bin/busybox", "md5sum", "/ballast"];
    let said = wait_until("a container after the restart", AGAIN_LIMIT, || {
        Ok(containerd.run(&lazy, "soci", "c2", &words).ok())
    })?;
    ensure!(said.contains("/ballast"), "{said}");
    Ok(())
}

/// `ctr` of 1.6 fetches everything and unpacks then, with nothing but a key: there is nothing to be lazy about.
#[test]
fn containerd_ctr_pulls_in_full_on_containerd_1() -> Result<()> {
    let lab = Lab::new("ctr1")?;
    let stage = stage(&lab, layers()?, SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    containerd.pull(&stage.lazy, "soci")?;
    let said = containerd.run(&stage.lazy, "soci", "c", &["/bin/busybox", "cat", "/hello"])?;
    ensure!(said == "from the layer\n", "{said}");
    ensure!(shown(&daemon) == 0 && reasons(&daemon).is_empty(), "{:?}", daemon.logs());
    Ok(())
}

/// A registry on a port that containerd has not noted, and no image that tells it: left, and at once.
#[test]
fn containerd_ctr_pulls_in_full_from_a_port_that_is_not_noted() -> Result<()> {
    let binaries = match parts::containerd_2() {
        Ok(binaries) => binaries,
        Err(error) => {
            skip(&format!("ctr of containerd 2 without labels: {error:#}"));
            return Ok(());
        }
    };
    let lab = Lab::new("ctr2port")?;
    let stage = stage(&lab, layers()?, SMALL)?;
    let daemon = Daemon::start(&lab, &format!("{}{NO_FILL}", Daemon::configuration(&lab)))?;
    let proxies = vec![("soci".to_owned(), daemon.address())];
    let options = Options { proxies, extra: UNPACKS.into(), binaries: Some(binaries), ..Options::default() };
    let containerd = Containerd::start_with(&lab, options)?;
    containerd.pull(&stage.plain, "soci")?;
    ensure!(reasons(&daemon) == ["no_labels"; 3], "{:?}", daemon.logs());
    let said = containerd.run(&stage.plain, "soci", "c", &["/bin/busybox", "cat", "/hello"])?;
    ensure!(said == "from the layer\n", "{said}");
    Ok(())
}

/// As `ctr` of 2 asks, on the containerd of Debian 12: its images are found from their chain IDs alone, and what is not
/// there is left.
#[test]
fn containerd_layers_are_found_from_their_chain_ids() -> Result<()> {
    let lab = Lab::new("chains")?;
    let layers = layers()?;
    let mut chains = vec![layers[0].diff_id];
    for layer in &layers[1..] {
        let below = chains[chains.len() - 1];
        chains.push(Digest::sha256(format!("{below} {}", layer.diff_id).as_bytes()));
    }
    let stage = stage(&lab, layers, SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    // Another image, with an index of its own; and one of the same layers that has none and came earlier.
    let other = Layer::gzip(&Tar::new([Entry::file("other", noise(13, 100_000))]).bytes());
    let unindexed = other.diff_id;
    let pushed = push_image(stage.registry.host(), "other:plain", &Image::new(vec![other]))?;
    for image in [&pushed.reference, &stage.plain, &stage.lazy] {
        containerd.ctr(&["content", "fetch", "--plain-http", "--metadata-only", image])?;
    }
    let namespace = containerd.namespace().to_owned();
    let client = Stage::of(lab, daemon)?;
    let ask = |namespace: &str, number: usize, chain: &Digest, parent: &str| {
        let key = format!("{namespace}/{number}/extract-1 {chain}");
        client.prepare_with(&key, parent, &[("containerd.io/snapshot.ref", &chain.to_string())])
    };
    // No namespace has it.
    let nowhere = Digest::sha256(b"nothing");
    ensure!(code(ask(&namespace, 1, &nowhere, "")) == Code::Ok);
    ensure!(code(ask("another", 2, &chains[0], "")) == Code::Ok);
    ensure!(reasons(&client.daemon) == ["no_labels", "no_labels"], "{:?}", reasons(&client.daemon));
    let mut parent = String::new();
    for (number, chain) in chains.iter().enumerate() {
        let answer = ask(&namespace, 3 + number, chain, &parent);
        ensure!(
            code(answer.clone()) == Code::AlreadyExists,
            "{number}: {answer:?} {:?}",
            client.daemon.logs()
        );
        let seen = client.stat(&chain.to_string())?;
        let label = |name: &str| seen.labels.get(&format!("containerd.io/snapshot/cri.{name}")).cloned();
        ensure!(label("layer-digest") == Some(stage.pushed.layers[number].digest.to_string()), "{seen:?}");
        ensure!(label("image-ref").is_some_and(|image| image.starts_with(stage.link.host())), "{seen:?}");
        parent = chain.to_string();
    }
    ensure!(reasons(&client.daemon).len() == 2, "{:?}", reasons(&client.daemon));
    // One that leads nowhere is not followed again soon, and the reason stays.
    for number in 10..12 {
        ensure!(code(ask(&namespace, number, &unindexed, "")) == Code::Ok);
    }
    ensure!(reasons(&client.daemon)[2..] == ["no_index"; 2], "{:?}", reasons(&client.daemon));
    Ok(())
}

/// Everything in containerd's store is as its digest says; what only claims to be the configuration is not believed.
#[test]
fn containerd_a_note_that_names_another_configuration_is_not_believed() -> Result<()> {
    let lab = Lab::new("notes")?;
    let layers = layers()?;
    let chain = layers[0].diff_id.to_string();
    let stage = stage(&lab, layers, SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    let other = Layer::gzip(&Tar::new([Entry::file("other", noise(14, 1000))]).bytes());
    let pushed = push_image(stage.registry.host(), "other:plain", &Image::new(vec![other]))?;
    for image in [&pushed.reference, &stage.lazy] {
        containerd.ctr(&["content", "fetch", "--plain-http", "--metadata-only", image])?;
    }
    // The other image's manifest now says that its configuration is the first one's, and the first one's says nothing.
    let manifest = crate::image::manifest(stage.registry.host(), "app", "soci")?;
    let document: Value = integration::images::document(stage.registry.host(), "app", &manifest)?;
    let config = document["config"]["digest"].as_str().unwrap_or_default();
    let note = "containerd.io/gc.ref.content.config";
    let liar = pushed.manifest.digest.to_string();
    containerd.ctr(&["content", "label", &liar, &format!("{note}={config}")])?;
    containerd.ctr(&["content", "label", &manifest, &format!("{note}=")])?;
    let key = format!("{}/1/extract-1 {chain}", containerd.namespace());
    let client = Stage::of(lab, daemon)?;
    client.prepare_with(&key, "", &[("containerd.io/snapshot.ref", &chain)])?;
    ensure!(reasons(&client.daemon) == ["no_labels"], "{:?}", reasons(&client.daemon));
    // With the note as it was, it is found.
    containerd.ctr(&["content", "label", &manifest, &format!("{note}={config}")])?;
    let again = client.prepare_with(&format!("{key}2"), "", &[("containerd.io/snapshot.ref", &chain)]);
    ensure!(code(again) == Code::AlreadyExists, "{:?}", client.daemon.logs());
    Ok(())
}
