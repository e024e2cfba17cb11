//! Commits that name the parent, and why `rebase` is not announced.

use anyhow::{Result, ensure};
use integration::{daemon::with_containerd, lab::Lab};
use oci::Digest;
use tonic::Code;

use crate::{
    conformance::{
        client::{Stage, code},
        content::{Change, Mounted, apply, file},
    },
    image::{SMALL, stage},
    read_path::NO_FILL,
};
use integration::images::{Layer, Tar, tar::Entry};

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
    ensure!(std::fs::read_to_string(mounted.path().join("a"))? == "low");
    ensure!(std::fs::read_to_string(mounted.path().join("b"))? == "high");
    mounted.end()
}

/// As containerd asks a snapshotter that is announced with `rebase`: labels of a layer that has others below it, and no
/// parent.
#[test]
fn containerd_lazy_layers_without_their_parent_are_refused_and_not_left_without_it() -> Result<()> {
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
    let ask = |number: usize, parent: &str| {
        let (chain, layer) = (chains[number].to_string(), image.pushed.layers[number].digest.to_string());
        let labels = [
            ("containerd.io/snapshot.ref", chain.as_str()),
            ("containerd.io/snapshot/cri.image-ref", image.lazy.as_str()),
            ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str()),
            ("containerd.io/snapshot/cri.layer-digest", layer.as_str()),
        ];
        client.prepare_with(&format!("default/{number}/extract {chain}"), parent, &labels)
    };
    ensure!(code(ask(0, "")) == Code::AlreadyExists, "the lowest one has no parent");
    let refused = ask(1, "").expect_err("the other one has");
    ensure!(refused.code() == Code::FailedPrecondition && refused.message().contains("rebase"), "{refused}");
    ensure!(
        client.names(&[])? == [chains[0].to_string()],
        "and nothing is left of it: {:?}",
        client.names(&[])
    );
    ensure!(code(ask(1, &chains[0].to_string())) == Code::AlreadyExists);
    ensure!(client.stat(&chains[1].to_string())?.parent == chains[0].to_string());
    // Asked again, by another pull: it is there, and the new key is not.
    ensure!(code(ask(1, &chains[0].to_string())) == Code::AlreadyExists);
    ensure!(client.names(&["kind!=committed"])?.is_empty());
    Ok(())
}
