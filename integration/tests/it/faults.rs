//! What is broken on the way: each a stated fall-back or an error, and never a wrong byte.

mod cells;
mod ecr;
mod outage;
mod prefetch;
pub(crate) mod table;

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use anyhow::{Context, Result, ensure};
use integration::{
    containerd::Containerd,
    daemon::{soci, with_containerd},
    images::{Image, Layer, Tar, document, push_image, tar::Entry},
    lab::Lab,
    link::{Answer, Fault, Link, When},
    machine::binaries,
    reference::mount,
    registry::Registry,
};
use serde_json::Value;
use tonic::Code;

use crate::{
    conformance::client::{Stage as Snapshots, code},
    image::{SMALL, Stage, noise, stage},
    read_path::{NO_FILL, pull, reasons},
};

const SIZE: usize = 600_000;

fn one_file() -> Vec<Layer> {
    vec![Layer::gzip(&Tar::new([Entry::file("file", noise(9, SIZE))]).bytes())]
}

/// Digests of the ztocs that the converted image names.
fn ztocs(lab: &Lab, stage: &Stage) -> Result<Vec<String>> {
    let registry = stage.registry.host();
    let manifest = fs::read_dir(blobs(stage))?; // the index is the blob whose config says so
    let mut found = Vec::new();
    for prefix in manifest.flatten() {
        for blob in fs::read_dir(prefix.path())?.flatten() {
            let bytes = fs::read(blob.path().join("data"))?;
            let Ok(document) = serde_json::from_slice::<Value>(&bytes) else { continue };
            if document["config"]["mediaType"] == "application/vnd.amazon.soci.index.v2+json" {
                let layers = document["layers"].as_array().context("an index has layers")?.clone();
                found.extend(layers.iter().filter_map(|layer| layer["digest"].as_str()).map(str::to_owned));
            }
        }
    }
    ensure!(!found.is_empty(), "the registry {registry} has an index");
    let place = format!("docker://{registry}/app@{}", found[0]);
    soci(lab, &binaries()?, &["ztoc", "info", &place])?;
    Ok(found)
}

fn blobs(stage: &Stage) -> PathBuf {
    stage.registry.storage().join("docker/registry/v2/blobs/sha256")
}

/// The one file of the image that was pulled, read whole.
fn read_file(lab: &Lab, containerd: &Containerd) -> Result<std::io::Result<Vec<u8>>> {
    let mounted = mount(lab, containerd, "soci")?;
    Ok(fs::read(mounted.path().join("file")))
}

#[test]
fn containerd_an_image_without_an_index_is_left_to_containerd() -> Result<()> {
    let lab = Lab::new("noindex")?;
    let stage = stage(&lab, one_file(), SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    let layers = pull(&lab, &containerd, &stage.plain)?;
    ensure!(layers.iter().all(|line| line.ends_with(" unpacked")), "{layers:?}");
    ensure!(reasons(&daemon) == ["no_index"], "{:?}", reasons(&daemon));
    daemon.wait_for_log("the words that tools look for", |line| {
        line["why"].as_str().is_some_and(|text| text.contains("no valid SOCI index found"))
    })?;
    ensure!(read_file(&lab, &containerd)?? == noise(9, SIZE));
    Ok(())
}

#[test]
fn containerd_a_missing_ztoc_is_a_layer_fetched_whole() -> Result<()> {
    let lab = Lab::new("noztoc")?;
    let stage = stage(&lab, one_file(), SMALL)?;
    for ztoc in ztocs(&lab, &stage)? {
        let hex = ztoc.strip_prefix("sha256:").context("a digest")?;
        fs::remove_dir_all(blobs(&stage).join(&hex[..2]).join(hex))?;
    }
    stage.registry.restart()?; // it remembers what it had
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &stage.lazy)?;
    ensure!(reasons(&daemon) == ["ztoc_invalid"], "{:?}", reasons(&daemon));
    ensure!(read_file(&lab, &containerd)?? == noise(9, SIZE));
    Ok(())
}

#[test]
fn containerd_a_ztoc_with_other_bytes_is_a_layer_fetched_whole() -> Result<()> {
    let lab = Lab::new("badztoc")?;
    let stage = stage(&lab, one_file(), SMALL)?;
    for ztoc in ztocs(&lab, &stage)? {
        stage.link.flip_byte(&ztoc, 50);
    }
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &stage.lazy)?;
    ensure!(reasons(&daemon) == ["ztoc_invalid"], "{:?}", reasons(&daemon));
    ensure!(read_file(&lab, &containerd)?? == noise(9, SIZE));
    Ok(())
}

#[test]
fn containerd_a_span_with_a_flipped_byte_is_an_io_error_and_never_a_wrong_byte() -> Result<()> {
    let lab = Lab::new("badspan")?;
    let stage = stage(&lab, one_file(), SMALL)?;
    let layer = stage.pushed.layers[0].clone();
    stage.link.flip_byte(&layer.digest.to_string(), layer.size / 2);
    let (_daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &stage.lazy)?;
    let error = read_file(&lab, &containerd)?.expect_err("the middle of the layer is a lie");
    ensure!(error.raw_os_error() == Some(5), "{error}");
    stage.link.lift();
    ensure!(read_file(&lab, &containerd)?? == noise(9, SIZE));
    Ok(())
}

#[test]
fn containerd_a_reader_waits_while_the_registry_is_away() -> Result<()> {
    let lab = Lab::new("away")?;
    let stage = stage(&lab, one_file(), SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &stage.lazy)?;
    let mounted = mount(&lab, &containerd, "soci")?;
    stage.link.cut();
    let file = mounted.path().join("file");
    // Names and attributes are there without it.
    ensure!(fs::metadata(&file)?.size() == SIZE as u64);
    let reader = std::thread::spawn(move || fs::read(file));
    daemon.wait_for_log("the fetch is tried again", |line| line["msg"] == "fetch spans again")?;
    ensure!(!reader.is_finished());
    stage.link.restore();
    let bytes = reader.join().expect("the reader does not panic")?;
    ensure!(bytes == noise(9, SIZE));
    Ok(())
}

#[test]
fn privileged_convert_says_what_is_wrong_and_leaves_no_tag() -> Result<()> {
    let lab = Lab::new("convert")?;
    let registry = Registry::start(&lab)?;
    let link = Link::new(&lab, registry.host())?;
    push_image(registry.host(), "app:plain", &Image::new(one_file()))?;
    let binaries = binaries()?;
    let good = format!("docker://{}/app:plain", registry.host());
    let through = format!("docker://{}/app:plain", link.host());
    let to = format!("docker://{}/app:out", registry.host());
    let fails = |words: &[&str]| match soci(&lab, &binaries, words) {
        Ok(said) => panic!("{words:?} went well: {said}"),
        Err(error) => format!("{error:#}"),
    };
    let closed = format!("docker://127.0.0.1:{}/app:plain", closed_port()?);
    let said = fails(&["convert", &closed, &to]);
    ensure!(said.contains("refused"), "{said}");
    let said = fails(&["convert", "docker://nowhere.invalid/app:plain", &to]);
    ensure!(said.contains("nowhere.invalid") && said.contains("dns"), "{said}");
    let said = fails(&["convert", &good.replace(":plain", ":none"), &to]);
    ensure!(said.contains("not found"), "{said}");
    let said = fails(&["convert", &good, &to]); // smaller than 10 MiB
    ensure!(said.contains("no ztocs created"), "{said}");
    link.flip_byte("blobs/", 4000);
    let said = fails(&["convert", "--min-layer-size", "0", &through, &to]);
    ensure!(said.contains("digest"), "{said}");
    let tags = soci(&lab, &binaries, &["ztoc", "info", &to]);
    ensure!(tags.is_err());
    let manifests = registry.storage().join("docker/registry/v2/repositories/app/_manifests/tags/out");
    ensure!(!manifests.exists(), "nothing stands under the destination tag");
    link.lift();
    soci(&lab, &binaries, &["convert", "--min-layer-size", "0", &through, &to])?;
    ensure!(manifests.exists());
    Ok(())
}

/// A port on which no process listens: one that was free a moment ago.
fn closed_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Another image with the same layer and another size: it is refused, and nothing of ours is touched.
#[test]
fn containerd_a_manifest_that_lies_about_a_layers_size_leaves_others_alone() -> Result<()> {
    let lab = Lab::new("sizelie")?;
    let stage = stage(&lab, one_file(), SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &stage.lazy)?;
    let mounted = mount(&lab, &containerd, "soci")?;
    let read = |from: u64, to: u64| -> Result<()> {
        let mut bytes = vec![0; usize::try_from(to - from)?];
        let file = fs::File::open(mounted.path().join("file"))?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, from)?;
        ensure!(bytes == noise(9, SIZE)[usize::try_from(from)?..usize::try_from(to)?]);
        Ok(())
    };
    read(0, 100_000)?;
    let digest = crate::image::manifest(stage.registry.host(), "app", "soci")?;
    let mut lying = document(stage.registry.host(), "app", &digest)?;
    let layer = lying["layers"][0]["digest"].as_str().context("a digest")?.to_owned();
    lying["layers"][0]["size"] = (lying["layers"][0]["size"].as_u64().context("a size")? + 1).into();
    let (body, media_type) = (lying.to_string(), lying["mediaType"].as_str().unwrap_or_default().to_owned());
    let digest = oci::Digest::sha256(body.as_bytes()).to_string();
    let answer = Answer::new(200).header("Content-Type", &media_type).body(&body);
    stage.link.inject(Fault::Answer(answer), When::path(digest.clone()));
    let labels = [
        ("containerd.io/snapshot.ref", digest.as_str()),
        ("containerd.io/snapshot/cri.image-ref", stage.lazy.as_str()),
        ("containerd.io/snapshot/cri.manifest-digest", digest.as_str()),
        ("containerd.io/snapshot/cri.layer-digest", layer.as_str()),
    ];
    let client = Snapshots::of(lab.clone(), daemon)?;
    ensure!(code(client.prepare_with("default/1/extract x", "", &labels)) == Code::Ok, "left to containerd");
    ensure!(reasons(&client.daemon) == ["ztoc_invalid"], "{:?}", reasons(&client.daemon));
    stage.link.reset();
    read(0, 100_000)?;
    ensure!(stage.link.traffic().down == 0, "what was there is there");
    read(300_000, 400_000)?;
    read(300_000, 400_000)?;
    let lost = |line: &Value| line["msg"].as_str().is_some_and(|said| said.contains("fetched again"));
    ensure!(!client.daemon.logs().iter().any(lost));
    Ok(())
}
