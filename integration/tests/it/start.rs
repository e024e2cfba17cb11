//! What is fetched before the first read.

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::{LOG_LIMIT, soci, with_containerd},
    images::{Image, Layer, Tar, push_image, tar::Entry},
    lab::Lab,
    link::Link,
    machine::binaries,
    process::wait_until,
    reference::mount,
    registry::Registry,
};
use oci::Digest;
use serde_json::Value;

use crate::{
    image::{SMALL, noise},
    read_path::{NO_FILL, pull, reasons},
};

const SIZE: usize = 300_000;

fn file(seed: u64) -> Entry {
    Entry::file(format!("file{seed}"), noise(seed, SIZE))
}

/// Bytes of layers that have come over the line in answers to ranged requests that are complete.
fn ranged(link: &Link) -> u64 {
    let whole = link.exchanges().into_iter().filter(|exchange| {
        let range = exchange.range.as_deref().and_then(|range| range.strip_prefix("bytes="));
        let ends = range.and_then(|range| range.split_once('-'));
        let length =
            ends.and_then(|(first, last)| Some(last.parse::<u64>().ok()? + 1 - first.parse::<u64>().ok()?));
        exchange.status == 206 && length == Some(exchange.body_bytes)
    });
    whole.map(|exchange| exchange.body_bytes).sum()
}

#[test]
fn containerd_what_a_prefetch_artifact_names_comes_unasked() -> Result<()> {
    let lab = Lab::new("prefetch")?;
    let registry = Registry::start(&lab)?;
    let between = Entry::file("between", noise(99, 20 * SIZE));
    let layer = Layer::gzip(&Tar::new([file(0), between, file(1)]).bytes());
    push_image(registry.host(), "app:plain", &Image::new(vec![layer]))?;
    let place = |tag: &str| format!("docker://{}/app:{tag}", registry.host());
    let (from, to) = (place("plain"), place("soci"));
    let words = [&["convert", "--prefetch-file", "/file1"], SMALL, &[&from, &to]].concat();
    soci(&lab, &binaries()?, &words)?;
    let link = Link::new(&lab, registry.host())?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &format!("{}/app:soci", link.host()))?;
    let loaded = |line: &Value| line["msg"] == "Successfully loaded prefetch artifact";
    let loaded = daemon.wait_for_log("the artifact", loaded)?;
    let wanted = loaded["spans"].as_u64().context("it says how many spans it names")?;
    ensure!(wanted > 0, "{loaded}");
    wait_until("its spans", LOG_LIMIT, || {
        let address = daemon.address();
        let words = ["status", "--json", "--daemon-address", &address.to_string_lossy()];
        let status: Value = serde_json::from_str(&soci(&lab, &binaries()?, &words)?)?;
        Ok((status["layers"][0]["spans"]["ready"].as_u64() >= Some(wanted)).then_some(()))
    })?;
    link.cut();
    let mounted = mount(&lab, &containerd, "soci")?;
    ensure!(std::fs::read(mounted.path().join("file1"))? == noise(1, SIZE), "file1 has other bytes");
    ensure!(ranged(&link) < SIZE as u64 * 2, "and nothing else came: {}", ranged(&link));
    link.restore();
    ensure!(std::fs::read(mounted.path().join("file0"))? == noise(0, SIZE), "file0 has other bytes");
    Ok(())
}

/// An image whose configuration names other layers than it has, and an index that says nothing of it: no span is wrong,
/// but the whole is. A lazy layer is found out when it is complete; one that comes whole is not taken.
#[test]
fn containerd_layers_that_the_configuration_does_not_name_are_found_out() -> Result<()> {
    let lab = Lab::new("liar")?;
    let registry = Registry::start(&lab)?;
    let mut liar = Layer::gzip(&Tar::new([file(0)]).bytes());
    liar.diff_id = Digest::sha256(b"something else");
    push_image(registry.host(), "app:plain", &Image::new(vec![liar.clone()]))?;
    let place = |tag: &str| format!("docker://{}/app:{tag}", registry.host());
    let convert = |from: &str, to: &str, words: &[&str]| {
        soci(&lab, &binaries()?, &[&["convert"], words, &[&place(from), &place(to)]].concat())
    };
    convert("plain", "lazy", SMALL)?;
    liar.diff_id = Digest::sha256(b"and something else, of which containerd has no snapshot yet");
    // A layer that is large enough, so that there is an index, above the one that is not.
    let large = Layer::gzip(&Tar::new([Entry::file("large", noise(7, 3 * SIZE))]).bytes());
    push_image(registry.host(), "app:both", &Image::new(vec![liar, large]))?;
    convert("both", "whole", &["--span-size", "65536", "--min-layer-size", "500000"])?;
    let (daemon, containerd) = with_containerd(&lab, "")?;
    pull(&lab, &containerd, &format!("{}/app:lazy", registry.host()))?;
    let found_out = |line: &Value| line["level"] == "error" && line["reason"] == "other_content";
    daemon.wait_for_log("the lie about the lazy layer", found_out)?;
    let refused = pull(&lab, &containerd, &format!("{}/app:whole", registry.host()));
    ensure!(refused.is_err(), "containerd took a layer with another diff ID");
    ensure!(reasons(&daemon).contains(&"other_content".to_owned()), "{:?}", reasons(&daemon));
    Ok(())
}

#[test]
fn containerd_all_layers_are_opened_when_the_first_is_asked_for() -> Result<()> {
    let lab = Lab::new("opening")?;
    let registry = Registry::start(&lab)?;
    let layers: Vec<_> = (0..6).map(|seed| Layer::gzip(&Tar::new([file(seed)]).bytes())).collect();
    push_image(registry.host(), "app:plain", &Image::new(layers))?;
    let place = |tag: &str| format!("docker://{}/app:{tag}", registry.host());
    let (from, to) = (place("plain"), place("soci"));
    soci(&lab, &binaries()?, &[&["convert"], SMALL, &[&from, &to]].concat())?;
    let link = Link::new(&lab, registry.host())?;
    let (daemon, containerd) = with_containerd(&lab, "")?;
    pull(&lab, &containerd, &format!("{}/app:soci", link.host()))?;
    ensure!(daemon.prepared() == [true; 6], "{:?}", daemon.prepared());
    // Everything comes by itself, each layer and each ztoc once. What is complete is compared as a whole with what the
    // image's configuration names, layer by layer.
    let right = |line: &Value| line["msg"] == "the layer is complete and matches the image";
    wait_until("all of it", LOG_LIMIT, || {
        Ok((daemon.logs().iter().filter(|line| right(line)).count() == 6).then_some(()))
    })?;
    link.cut();
    let mounted = mount(&lab, &containerd, "soci")?;
    for seed in 0..6 {
        let found = std::fs::read(mounted.path().join(format!("file{seed}")))?;
        ensure!(found == noise(seed, SIZE), "file{seed} has other bytes");
    }
    let blobs = link.exchanges().into_iter().filter(|exchange| exchange.path.contains("/blobs/"));
    let mut asked: Vec<_> = blobs.map(|exchange| (exchange.path, exchange.range)).collect();
    let all = asked.len();
    asked.sort();
    asked.dedup();
    ensure!(asked.len() == all, "something was asked for twice: {asked:?}");
    Ok(())
}
