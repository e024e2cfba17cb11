//! The registry is away, for a while or for good, and containers run. A reader of bytes that are not there yet waits and
//! then gets them. A reader of names and attributes does not notice.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::{LOG_LIMIT, soci, with_containerd},
    images::{Image, Layer, Tar, push_image, tar::Entry},
    lab::Lab,
    link::Link,
    machine::{binaries, ensure_debian, long},
    process::wait_until,
    reference::{Unpacked, mount, mount_snapshot},
    registry::Registry,
};

use crate::{
    image::{SMALL, noise, stage},
    read_path::{NO_FILL, pull},
};

const SIZE: usize = 150_000;
/// A reader's longest pause between two attempts, what the requests under way take to fail, and a busy machine.
const END_LIMIT: Duration = Duration::from_secs(120);
/// Against a hang: these programs need milliseconds.
const PROGRAM_LIMIT: Duration = Duration::from_secs(60);

type Reader = (u64, JoinHandle<std::io::Result<Vec<u8>>>);

/// Files that share no span, so that each reader waits for his own.
fn layer(seeds: std::ops::Range<u64>) -> Layer {
    let files = seeds.map(|seed| Entry::file(format!("data/file{seed}"), noise(seed, SIZE)));
    Layer::gzip(&Tar::new(files).bytes())
}

fn path(folder: &Path, seed: u64) -> PathBuf {
    folder.join(format!("data/file{seed}"))
}

fn readers(folder: &Path, seeds: std::ops::Range<u64>) -> Vec<Reader> {
    let start = |seed| {
        let path = path(folder, seed);
        (seed, thread::spawn(move || fs::read(path)))
    };
    seeds.map(start).collect()
}

/// All of them come to their end with the right bytes.
fn ensure_right(readers: Vec<Reader>) -> Result<()> {
    let ended = || Ok(readers.iter().all(|(_, reader)| reader.is_finished()).then_some(()));
    wait_until("the end of all readers", END_LIMIT, ended)?;
    for (seed, reader) in readers {
        let bytes = reader.join().expect("a reader does not panic").with_context(|| format!("file{seed}"))?;
        ensure!(bytes == noise(seed, SIZE), "file{seed} has other bytes");
    }
    Ok(())
}

#[test]
fn containerd_readers_outlast_an_outage() -> Result<()> {
    let lab = Lab::new("outage")?;
    let registry = Registry::start(&lab)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    // On one line connections end; on the other they stand, and nothing comes any more.
    let lines = [Link::new(&lab, registry.host())?, Link::new(&lab, registry.host())?];
    let mut mounted: Vec<Unpacked<'_>> = Vec::new();
    let seeds = [0..8, 8..16];
    for (number, (line, seeds)) in lines.iter().zip(&seeds).enumerate() {
        let image = Image::new(vec![layer(seeds.clone())]);
        push_image(registry.host(), &format!("app{number}:plain"), &image)?;
        let place = |tag: &str| format!("docker://{}/app{number}:{tag}", registry.host());
        let (from, to) = (place("plain"), place("soci"));
        soci(&lab, &binaries()?, &[&["convert"], SMALL, &[&from, &to]].concat())?;
        pull(&lab, &containerd, &format!("{}/app{number}:soci", line.host()))?;
        mounted.push(mount_snapshot(&lab, &containerd, "soci", &image.chain_id())?);
    }
    lines[0].cut();
    lines[1].stall();
    let all = mounted.iter().zip(seeds).flat_map(|(image, seeds)| readers(image.path(), seeds));
    let all: Vec<Reader> = all.collect();
    daemon.wait_for_log("a reader's fetch is tried again", |line| line["msg"] == "fetch spans again")?;
    // How long it lasts is what this is about.
    thread::sleep(Duration::from_secs(if long() { 300 } else { 20 }));
    let early = all.iter().filter(|(_, reader)| reader.is_finished()).count();
    ensure!(early == 0, "{early} readers have ended without a registry");
    for line in &lines {
        line.restore();
    }
    ensure_right(all)
}

#[test]
fn containerd_a_reader_does_not_wait_for_ever() -> Result<()> {
    let lab = Lab::new("patience")?;
    let stage = stage(&lab, vec![layer(0..1)], SMALL)?;
    let (_daemon, containerd) = with_containerd(&lab, &format!("{NO_FILL}[fetch]\nread_timeout_sec = 1\n"))?;
    pull(&lab, &containerd, &stage.lazy)?;
    let mounted = mount(&lab, &containerd, "soci")?;
    stage.link.cut();
    let error = fs::read(path(mounted.path(), 0)).expect_err("there is no registry");
    ensure!(error.raw_os_error() == Some(5), "{error}");
    stage.link.restore();
    ensure_right(readers(mounted.path(), 0..1))
}

#[test]
fn containerd_metadata_never_waits() -> Result<()> {
    ensure_debian(&["findutils", "coreutils", "attr"])?;
    let lab = Lab::new("metadata")?;
    // Names enough that a listing takes several requests, and attributes to ask for.
    let names = (0..500).map(|number| {
        Entry::file(format!("names/{}/file{number}", number % 7), b"")
            .xattr("user.number", number.to_string())
    });
    let names =
        names.chain([Entry::symlink("names/link", "0"), Entry::hard_link("names/hard", "names/0/file0")]);
    let layers = vec![layer(0..16), Layer::gzip(&Tar::new(names).bytes())];
    let stage = stage(&lab, layers, SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &stage.lazy)?;
    let mounted = mount(&lab, &containerd, "soci")?;
    stage.registry.stop();
    let stuck = readers(mounted.path(), 0..16);
    daemon.wait_for_log("a reader's fetch is tried again", |line| line["msg"] == "fetch spans again")?;
    // Each has asked: the kernel has their requests, and we have not answered.
    wait_until("sixteen readers that wait", LOG_LIMIT, || Ok((waiting(&stuck) == 16).then_some(())))?;
    let run = |words: &[&str]| {
        let mut command = lab.command(words[0]);
        command.args(&words[1..]).current_dir(mounted.path());
        lab.run(command, PROGRAM_LIMIT)
    };
    let found = run(&["find", ".", "-ls"])?;
    ensure!(found.lines().count() == 500 + 7 + 2 + 1 + 1 + 1 + 16, "{} lines", found.lines().count());
    let said = run(&["find", ".", "-type", "f", "-exec", "stat", "--format", "%n %s %h %i", "{}", "+"])?;
    ensure!(said.lines().count() == 500 + 1 + 16, "{} lines", said.lines().count());
    let said = run(&["ls", "-lR"])?;
    ensure!(said.contains("file499") && said.contains("150000"), "{said}");
    let said = run(&["getfattr", "--recursive", "--dump", "--match=-", "."])?;
    ensure!(said.contains("user.number=\"499\""), "{said}");
    ensure!(waiting(&stuck) == 16, "all readers still wait");
    stage.registry.restart()?;
    ensure_right(stuck)
}

fn waiting(readers: &[Reader]) -> usize {
    readers.iter().filter(|(_, reader)| !reader.is_finished()).count()
}
