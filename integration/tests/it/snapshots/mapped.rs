//! Containers with users of their own: what the mounts say, and what a container sees.

use std::{os::unix::fs::MetadataExt, path::PathBuf};

use anyhow::{Result, ensure};
use integration::{
    containerd::{Containerd, Options},
    daemon::Daemon,
    lab::Lab,
    machine::{ensure_debian, skip},
    parts,
};
use tonic::Code;

use super::option;
use crate::{
    conformance::client::{Labels, Stage, code},
    image::{noise, stage},
    read_path::{NO_FILL, reasons},
};
use integration::images::{Layer, Tar, tar::Entry};

const MAPPED: Labels<'_> = &[
    ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
    ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
];

#[test]
fn fuse_mappings_are_options_of_the_mounts_and_are_remembered() -> Result<()> {
    let stage = Stage::new("mapping")?;
    stage.prepare("a", "")?;
    stage.commit("one", "a")?;
    stage.prepare("b", "one")?;
    stage.commit("two", "b")?;
    let maps = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"];
    let mut all = Vec::new();
    for (key, parent, kind) in [("w0", "", "bind"), ("w1", "one", "overlay"), ("w2", "two", "overlay")] {
        let mounts = stage.prepare_with(key, parent, MAPPED)?;
        ensure!(mounts[0].r#type == kind && mounts[0].options[..2] == maps, "{key}: {mounts:?}");
        let own = option(&mounts, "upperdir").unwrap_or(&mounts[0].source);
        let own = std::fs::metadata(own)?;
        ensure!((own.uid(), own.gid()) == (100_000, 200_000), "{key} is the container's root's");
        all.push((key, mounts));
    }
    for (key, parent, kind) in [("v1", "one", "bind"), ("v2", "two", "overlay")] {
        let mounts = stage.view_with(key, parent, MAPPED)?;
        ensure!(mounts[0].r#type == kind && mounts[0].options[..2] == maps, "{key}: {mounts:?}");
        all.push((key, mounts));
    }
    let one = stage.prepare_with("users only", "one", &MAPPED[..1])?;
    ensure!(one[0].options[0] == maps[0] && !one[0].options[1].starts_with("gidmap"), "{one:?}");
    for bad in ["", "0:1", "1:100000:5", "0:-1:5", "x"].map(|map| ("containerd.io/snapshot/uidmapping", map))
    {
        let expected = if bad.1.is_empty() { Code::Ok } else { Code::InvalidArgument };
        ensure!(code(stage.prepare_with(&format!("bad {}", bad.1), "one", &[bad])) == expected, "{bad:?}");
    }
    stage.daemon.restart()?;
    for (key, mounts) in all {
        ensure!(stage.mounts(key)? == mounts, "{key} after a restart");
    }
    Ok(())
}

/// What containerd's client does where `remap-ids` was not announced: a snapshot in which every owner is shifted already,
/// and a container's on it, with the labels all the same.
#[test]
fn fuse_mappings_are_not_done_twice() -> Result<()> {
    let stage = Stage::new("shifted")?;
    stage.prepare("a", "")?;
    stage.commit("one", "a")?;
    let mounts = stage.prepare("remap", "one")?;
    let own = option(&mounts, "upperdir").unwrap_or_default();
    std::os::unix::fs::chown(own, Some(100_000), Some(200_000))?;
    stage.commit("shifted", "remap")?;
    let mounts = stage.prepare_with("container", "shifted", MAPPED)?;
    ensure!(mounts[0].options.iter().all(|option| !option.contains("idmap")), "{mounts:?}");
    let own = std::fs::metadata(option(&mounts, "upperdir").unwrap_or_default())?;
    ensure!((own.uid(), own.gid()) == (100_000, 200_000));
    Ok(())
}

/// A shell and files of several owners, in two layers.
fn owned() -> Result<Vec<Layer>> {
    ensure_debian(&["busybox-static"])?;
    let busybox = std::fs::read("/bin/busybox")?;
    let shell = Tar::new([
        Entry::directory("./").owner(0, 0),
        Entry::directory("bin"),
        Entry::directory("proc"),
        Entry::directory("dev"),
        Entry::directory("sys"),
        Entry::file("bin/busybox", busybox).mode(0o755),
        Entry::symlink("bin/sh", "busybox"),
    ]);
    let files = Tar::new([
        Entry::directory("srv").owner(1000, 1001),
        Entry::file("srv/file", b"text").owner(7, 8),
        Entry::file("ballast", noise(11, 20 << 20)),
    ]);
    Ok(vec![Layer::gzip(&shell.bytes()), Layer::gzip(&files.bytes())])
}

/// Not announced with `remap-ids`: containerd changes the owners itself, and with this option nothing but them is copied.
const METACOPY: &str = "[snapshotter]\nmount_options = [\"metacopy=on\"]\n";

#[test]
fn containerd_a_container_with_users_of_its_own_is_lazy_and_sees_the_right_owners() -> Result<()> {
    users_of_its_own("mapped", METACOPY, &[], parts::containerd_2())
}

/// 2.1 and 2.2 clone one mount for all layers, of which ours is no part; 2.3 clones what is mounted below it, too.
#[test]
fn containerd_has_the_kernel_map_the_users_of_a_container() -> Result<()> {
    users_of_its_own("mapping", "", &["remap-ids"], parts::containerd_from(2, 3))
}

fn users_of_its_own(
    word: &str,
    configuration: &str,
    capabilities: &'static [&'static str],
    binaries: Result<PathBuf>,
) -> Result<()> {
    let binaries = match binaries {
        Ok(binaries) => binaries,
        Err(error) => {
            skip(&format!("users of a container's own on containerd 2: {error:#}"));
            return Ok(());
        }
    };
    let lab = Lab::new(word)?;
    let stage = stage(&lab, owned()?, &["--min-layer-size", "0"])?;
    let daemon = Daemon::start(&lab, &format!("{}{NO_FILL}{configuration}", Daemon::configuration(&lab)))?;
    let proxies = vec![("soci".to_owned(), daemon.address())];
    let options = Options { proxies, capabilities, binaries: Some(binaries), ..Options::default() };
    let containerd = Containerd::start_with(&lab, options)?;
    integration::daemon::pull(&lab, &integration::machine::binaries()?, &containerd, &stage.lazy)?;
    ensure!(reasons(&daemon).is_empty(), "{:?}", reasons(&daemon));
    stage.link.reset();
    let script = "stat -c %u:%g / /bin/busybox /srv /srv/file; cat /srv/file; echo; echo new > /srv/new && \
                  stat -c %u:%g /srv/new; cat /proc/self/uid_map";
    let words = [
        "run",
        "--rm",
        "--snapshotter",
        "soci",
        "--uidmap",
        "0:100000:65536",
        "--gidmap",
        "0:200000:65536",
        "--remap-labels",
        &stage.lazy,
        "mapped",
        "/bin/busybox",
        "sh",
        "-c",
        script,
    ];
    let said = containerd.ctr(&words)?;
    let lines: Vec<_> = said.lines().map(str::trim).collect();
    ensure!(lines[..6] == ["0:0", "0:0", "1000:1001", "7:8", "text", "0:0"], "{said}");
    ensure!(lines[6].split_whitespace().eq(["0", "100000", "65536"]), "{said}");
    let all: u64 = stage.pushed.layers.iter().map(|layer| layer.size).sum();
    let fetched = stage.link.traffic().down;
    ensure!(fetched * 4 < all, "{fetched} of {all} bytes were fetched: it was not lazy");
    Ok(())
}
