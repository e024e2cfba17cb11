//! Commits that name the parent, and why `rebase` is not announced.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use integration::{
    containerd::{Containerd, Options},
    daemon::{Daemon, with_containerd},
    lab::Lab,
    machine::skip,
    parts,
    reference::{Unpacked, mount},
    tree::{Skip, assert_same, walk},
};
use oci::Digest;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tonic::Code;

use super::option;
use crate::{
    conformance::{
        client::{Stage, code},
        content::{Change, Mounted, apply, file},
    },
    image::{SMALL, noise, stage, zoo},
    read_path::{NO_FILL, reasons},
};
use integration::{
    images::{Image, Layer, Tar, push_image, tar::Entry},
    link::{Fault, Link, When},
    registry::Registry,
};

#[test]
fn fuse_snapshots_made_without_a_parent_get_it_with_the_commit() -> Result<()> {
    let stage = Stage::new("rebase")?;
    let write = |key: &str, changes: &[Change]| {
        let mounted = Mounted::at(&stage.work.join("m"), &stage.prepare(key, "")?)?;
        apply(mounted.path(), changes)?;
        mounted.end()
    };
    // In any order, as layers that are unpacked side by side.
    write("high", &[file("b", "high", 0o644)])?;
    write("low", &[file("a", "low", 0o644), file("b", "low", 0o644)])?;
    stage.prepare("active", "")?;
    ensure!(code(stage.commit_with("two", "high", "one", &[])) == Code::NotFound, "it is not there yet");
    ensure!(code(stage.commit_with("two", "high", "active", &[])) == Code::FailedPrecondition);
    ensure!(stage.stat("high")?.parent.is_empty(), "what was refused changed nothing");
    stage.commit("one", "low")?;
    stage.commit_with("two", "high", "one", &[])?;
    ensure!(stage.stat("two")?.parent == "one");
    ensure!(code(stage.remove("one")) == Code::FailedPrecondition, "it has a child now");
    stage.prepare("third", "one")?;
    ensure!(code(stage.commit_with("three", "third", "two", &[])) == Code::InvalidArgument, "it has another");
    let mounted = Mounted::at(&stage.work.join("m"), &stage.view("view", "two")?)?;
    ensure!(fs::read_to_string(mounted.path().join("a"))? == "low");
    ensure!(fs::read_to_string(mounted.path().join("b"))? == "high");
    mounted.end()
}

/// As containerd asks a snapshotter that is announced with `rebase`: labels of a layer that has others below it, and no
/// parent.
#[test]
fn containerd_lazy_layers_without_their_parent_are_left_to_containerd_with_whiteouts() -> Result<()> {
    let lab = Lab::new("parentless")?;
    let layers: Vec<_> = (0..2)
        .map(|n| Layer::gzip(&Tar::new([Entry::file(format!("{n}"), vec![n; 1000])]).bytes()))
        .collect();
    let chains = [
        layers[0].diff_id,
        Digest::sha256(format!("{} {}", layers[0].diff_id, layers[1].diff_id).as_bytes()),
    ];
    let image = stage(&lab, layers, SMALL)?;
    let manifest = crate::image::manifest(image.registry.host(), "app", "soci")?;
    let (daemon, _containerd) = with_containerd(&lab, NO_FILL)?;
    let client = Stage::of(lab, daemon)?;
    let key = |number: usize| format!("default/{number}/extract {}", chains[number]);
    let ask = |number: usize, parent: &str| {
        let (chain, layer) = (chains[number].to_string(), image.pushed.layers[number].digest.to_string());
        let labels = [
            ("containerd.io/snapshot.ref", chain.as_str()),
            ("containerd.io/snapshot/cri.image-ref", image.lazy.as_str()),
            ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str()),
            ("containerd.io/snapshot/cri.layer-digest", layer.as_str()),
        ];
        client.prepare_with(&key(number), parent, &labels)
    };
    ensure!(code(ask(0, "")) == Code::AlreadyExists, "the lowest one has no parent");
    let mounts = ask(1, "")?;
    ensure!(reasons(&client.daemon) == ["no_parent"], "{:?}", reasons(&client.daemon));
    // What has containerd write whiteouts as overlayfs reads them, and no folder below to look into.
    let upper = option(&mounts, "upperdir").unwrap_or_default();
    ensure!(mounts.len() == 1 && mounts[0].r#type == "overlay" && !upper.is_empty(), "{mounts:?}");
    ensure!(option(&mounts, "lowerdir").is_none(), "{mounts:?}");
    fs::write(Path::new(upper).join("1"), [1; 1000])?;
    mknodat(CWD, Path::new(upper).join("0"), FileType::CharacterDevice, Mode::empty(), 0)?;
    client.commit_with(&chains[1].to_string(), &key(1), &chains[0].to_string(), &[])?;
    let mounted = Mounted::at(&client.work.join("m"), &client.view("view", &chains[1].to_string())?)?;
    ensure!(fs::read(mounted.path().join("1"))? == [1; 1000] && !mounted.path().join("0").exists());
    mounted.end()?;
    client.remove("view")?;
    client.remove(&chains[1].to_string())?;
    // With its parent it is lazy.
    ensure!(code(ask(1, &chains[0].to_string())) == Code::AlreadyExists);
    ensure!(client.stat(&chains[1].to_string())?.parent == chains[0].to_string());
    // Asked again, by another pull: it is there, and the new key is not.
    ensure!(code(ask(1, &chains[0].to_string())) == Code::AlreadyExists);
    ensure!(client.names(&["kind!=committed"])?.is_empty());
    Ok(())
}

/// An image without an index, and a containerd that does not have its manifest: the registry tells of the layers below.
#[test]
fn containerd_a_layer_without_index_or_parent_gets_whiteouts_if_only_the_registry_has_its_manifest()
-> Result<()> {
    let lab = Lab::new("parentless-plain")?;
    let layers: Vec<_> = (0..2)
        .map(|n| Layer::gzip(&Tar::new([Entry::file(format!("{n}"), vec![n; 1000])]).bytes()))
        .collect();
    let low = layers[0].diff_id;
    let high = Digest::sha256(format!("{low} {}", layers[1].diff_id).as_bytes());
    let registry = Registry::start(&lab)?;
    let pushed = push_image(registry.host(), "app:plain", &Image::new(layers))?;
    let (daemon, _containerd) = with_containerd(&lab, NO_FILL)?;
    let client = Stage::of(lab, daemon)?;
    let image = format!("{}/app:plain", registry.host());
    let ask = |chain: &Digest, number: usize| {
        let (chain, manifest) = (chain.to_string(), pushed.manifest.digest.to_string());
        let layer = pushed.layers[number].digest.to_string();
        let labels = [
            ("containerd.io/snapshot.ref", chain.as_str()),
            ("containerd.io/snapshot/cri.image-ref", image.as_str()),
            ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str()),
            ("containerd.io/snapshot/cri.layer-digest", layer.as_str()),
        ];
        client.prepare_with(&format!("default/{number}/extract {chain}"), "", &labels)
    };
    let lowest = ask(&low, 0)?;
    ensure!(lowest[0].r#type == "bind", "{lowest:?}");
    let above = ask(&high, 1)?;
    ensure!(reasons(&client.daemon) == ["no_index", "no_index"], "{:?}", reasons(&client.daemon));
    ensure!(above[0].r#type == "overlay" && option(&above, "lowerdir").is_none(), "{above:?}");
    Ok(())
}

/// containerd fetches every layer above one that is left to it. Streams of those end, even one that stands still.
#[test]
fn containerd_streams_end_above_a_layer_that_turns_out_to_be_unreadable() -> Result<()> {
    let lab = Lab::new("left-below")?;
    let tar = Tar::new([Entry::file("low", b"low")]).bytes();
    // Its first bytes are those of gzip, and the rest is not.
    let unreadable = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &noise(8, 50_000)].concat();
    let low = Layer::compressed(unreadable, Digest::sha256(&tar));
    let high = Layer::gzip(&Tar::new([Entry::file("high", noise(9, 500_000))]).bytes());
    let chains = [low.diff_id, Digest::sha256(format!("{} {}", low.diff_id, high.diff_id).as_bytes())];
    let registry = Registry::start(&lab)?;
    let pushed = push_image(registry.host(), "app:plain", &Image::new(vec![low, high]))?;
    let link = Link::new(&lab, registry.host())?;
    let stalled = pushed.layers[1].digest.to_string();
    let stall = link.inject(Fault::Stall { after: 1000 }, When::path(&stalled));
    let (daemon, _containerd) = with_containerd(&lab, &format!("[unindexed]\nmode = \"store\"\n{NO_FILL}"))?;
    let client = Stage::of(lab, daemon)?;
    let image = format!("{}/app:plain", link.host());
    let ask = |number: usize, parent: &str| {
        let (chain, manifest) = (chains[number].to_string(), pushed.manifest.digest.to_string());
        let layer = pushed.layers[number].digest.to_string();
        let labels = [
            ("containerd.io/snapshot.ref", chain.as_str()),
            ("containerd.io/snapshot/cri.image-ref", image.as_str()),
            ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str()),
            ("containerd.io/snapshot/cri.layer-digest", layer.as_str()),
        ];
        client.prepare_with(&format!("default/{number}/extract {chain}"), parent, &labels)
    };
    ensure!(code(ask(0, "")) == Code::Ok, "containerd unpacks it");
    client.commit(&chains[0].to_string(), &format!("default/0/extract {}", chains[0]))?;
    // With the stream it would wait for the end of the stall, which never comes.
    ensure!(code(ask(1, &chains[0].to_string())) == Code::Ok, "so it unpacks the layer above, too");
    ensure!(reasons(&client.daemon).last().is_some_and(|reason| reason == "unsupported_layer"));
    stall.lift();
    Ok(())
}

/// Not lazy, and right: also what a layer removes.
#[test]
fn containerd_images_are_unpacked_side_by_side_where_rebase_is_announced() -> Result<()> {
    const PARALLEL: &str = r#"
        [plugins."io.containerd.transfer.v1.local"]
        max_concurrent_unpacks = 4
        [[plugins."io.containerd.transfer.v1.local".unpack_config]]
        platform = "linux"
        snapshotter = "soci"
        [[plugins."io.containerd.transfer.v1.local".unpack_config]]
        platform = "linux"
        snapshotter = "overlayfs"
    "#;
    let binaries = match parts::containerd_from(2, 2) {
        Ok(binaries) => binaries,
        Err(error) => {
            skip(&format!("layers that containerd unpacks side by side: {error:#}"));
            return Ok(());
        }
    };
    let lab = Lab::new("parallel")?;
    let image = stage(&lab, zoo(), SMALL)?;
    let daemon = Daemon::start(&lab, &format!("{}{NO_FILL}", Daemon::configuration(&lab)))?;
    let proxies = vec![("soci".to_owned(), daemon.address())];
    let (capabilities, binaries, extra) = (&["rebase"][..], Some(binaries), PARALLEL.into());
    let containerd =
        Containerd::start_with(&lab, Options { proxies, capabilities, binaries, extra, cri: None })?;
    let truth = Unpacked::image(&lab, &containerd, &image.plain)?.tree()?;
    for reference in [&image.plain, &image.lazy] {
        containerd.pull(reference, "soci")?;
        let mounted = mount(&lab, &containerd, "soci")?;
        let skip = Skip { top: true, directory_mtimes: true, ..Skip::default() };
        assert_same(&truth, &walk(mounted.path())?, &skip);
        drop(mounted);
        containerd.ctr(&["images", "rm", "--sync", reference])?;
    }
    ensure!(daemon.prepared().iter().all(|lazy| !lazy), "{:?}", daemon.prepared());
    Ok(())
}
