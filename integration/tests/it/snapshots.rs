//! Snapshots as containerd knows them, where its suite asks for less: answers, usage, removal, mounts.

mod load;
mod mapped;
mod rebased;
mod unlabeled;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::{Daemon, LOG_LIMIT, with_containerd},
    lab::Lab,
    machine::{Binaries, binaries},
    process::{output, wait_until},
};
use proto::containerd::{
    services::snapshots::v1::{CleanupRequest, Kind},
    types::Mount,
};
use tonic::Code;

use crate::{
    conformance::{
        client::{Stage, code, map},
        content::{Mounted, apply, file},
    },
    image::{noise, stage},
    read_path::{NO_FILL, pull},
};
use integration::images::{Layer, Tar, tar::Entry};

/// Folders of snapshots.
fn folders(daemon: &Daemon) -> Result<BTreeSet<String>> {
    let home = daemon.root().join("snapshotter/snapshots");
    let names = fs::read_dir(home)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

fn option<'a>(mounts: &'a [Mount], name: &str) -> Option<&'a str> {
    let value = |option: &'a String| option.strip_prefix(name)?.strip_prefix('=');
    mounts.first()?.options.iter().find_map(value)
}

#[test]
fn fuse_snapshots_answer_as_containerds_own() -> Result<()> {
    let stage = Stage::new("answers")?;
    for (what, found) in [
        ("stat", code(stage.stat("none"))),
        ("mounts", code(stage.mounts("none"))),
        ("usage", code(stage.usage("none"))),
        ("remove", code(stage.remove("none"))),
        ("commit", code(stage.commit("name", "none"))),
        ("prepare", code(stage.prepare("key", "none"))),
        ("view", code(stage.view("key", "none"))),
    ] {
        ensure!(found == Code::NotFound, "{what} of nothing: {found:?}");
    }
    stage.prepare("active", "")?;
    stage.prepare("other", "")?;
    stage.commit_with("one", "other", "", &[("kept", "yes"), ("empty", "")])?;
    stage.view("view", "one")?;
    let rows = [
        ("a parent that is not committed", code(stage.prepare("key", "active")), Code::InvalidArgument),
        ("the same of a view", code(stage.view("key", "view")), Code::InvalidArgument),
        ("an empty key", code(stage.prepare("", "")), Code::InvalidArgument),
        ("mounts of what is committed", code(stage.mounts("one")), Code::FailedPrecondition),
        ("commit of a view", code(stage.commit("new", "view")), Code::FailedPrecondition),
        ("commit of what is committed", code(stage.commit("new", "one")), Code::FailedPrecondition),
        ("commit to a name in use", code(stage.commit("one", "active")), Code::AlreadyExists),
        ("removal of a parent", code(stage.remove("one")), Code::FailedPrecondition),
        ("a filter that is none", code(stage.list(&["name=x"])), Code::InvalidArgument),
    ];
    for (what, found, expected) in rows {
        ensure!(found == expected, "{what}: {found:?} instead of {expected:?}");
    }
    let one = stage.stat("one")?;
    ensure!(one.labels == map(&[("kept", "yes")]) && one.created == one.updated, "{one:?}");
    ensure!(stage.names(&["labels.kept~=/^y/,kind==committed"])? == ["one"]);

    // What is removed is nowhere any more, and its key is free.
    stage.remove("view")?;
    ensure!(code(stage.stat("view")) == Code::NotFound && code(stage.mounts("view")) == Code::NotFound);
    ensure!(!stage.names(&[])?.contains(&"view".to_owned()));
    let before = one.created;
    stage.prepare("view", "one")?;
    ensure!(stage.stat("view")?.created > before && stage.stat("view")?.kind == Kind::Active);
    Ok(())
}

#[test]
fn fuse_snapshots_usage_is_live_and_then_what_it_was() -> Result<()> {
    let stage = Stage::new("usage")?;
    let mounts = stage.prepare("active", "")?;
    let (empty, inodes) = stage.usage("active")?;
    ensure!(inodes == 1, "its own folder: {inodes}");
    let mounted = Mounted::at(&stage.work.join("m"), &mounts)?;
    apply(mounted.path(), &[file("one", &"x".repeat(100_000), 0o644), file("two", "", 0o644)])?;
    fs::hard_link(mounted.path().join("one"), mounted.path().join("three"))?;
    let (bytes, inodes) = stage.usage("active")?;
    ensure!((100_000..130_000).contains(&(bytes - empty)) && inodes == 3, "{bytes} {inodes}");
    mounted.end()?;
    stage.commit("one", "active")?;
    ensure!(stage.usage("one")? == (bytes, inodes));
    stage.view("view", "one")?;
    ensure!(stage.usage("view")? == (0, 0), "a view has nothing of its own");
    Ok(())
}

/// Bytes on disk and inodes of what is stored of layers.
fn stored(daemon: &Daemon) -> Result<(i64, i64)> {
    let (mut bytes, mut inodes) = (0, 0);
    let mut open: Vec<PathBuf> = vec![];
    for layer in fs::read_dir(daemon.root().join("layers/sha256"))? {
        open.extend(
            fs::read_dir(layer?.path())?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()?,
        );
    }
    while let Some(path) = open.pop() {
        let found = fs::symlink_metadata(&path)?;
        if found.is_dir() {
            let inside = fs::read_dir(&path)?.map(|entry| entry.map(|entry| entry.path()));
            open.extend(inside.collect::<Result<Vec<_>, _>>()?);
        }
        bytes += i64::try_from(found.blocks() * 512)?;
        inodes += 1;
    }
    Ok((bytes, inodes))
}

#[test]
fn containerd_usage_of_a_lazy_layer_is_what_is_on_disk_now() -> Result<()> {
    let lab = Lab::new("lazyusage")?;
    let tar = Tar::new([Entry::file("big", noise(1, 8 << 20)), Entry::file("small", noise(2, 1000))]);
    let image = stage(&lab, vec![Layer::gzip(&tar.bytes())], &["--min-layer-size", "0"])?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &image.lazy)?;
    let client = Stage::of(lab, daemon)?;
    let [name] = client.names(&["kind==committed"])?.try_into().ok().context("one layer")?;
    let usage = client.usage(&name)?;
    ensure!(usage == stored(&client.daemon)?, "{usage:?} {:?}", stored(&client.daemon)?);
    ensure!(usage.0 > 0 && usage.0 < 1 << 20 && usage.1 > 1, "a ztoc, and nothing of the files: {usage:?}");
    let view = client.view("view", &name)?;
    let mounted = Mounted::at(&client.work.join("m"), &view)?;
    ensure!(fs::read(mounted.path().join("big"))? == noise(1, 8 << 20));
    wait_until("its spans on disk", LOG_LIMIT, || {
        let usage = client.usage(&name)?;
        Ok((usage.0 >= 8 << 20 && usage == stored(&client.daemon)?).then_some(()))
    })?;
    ensure!(client.usage(&name)?.0 < 10 << 20, "sparse, and not twice");
    mounted.end()
}

/// As many files as take longer to remove than any transaction.
fn fill(folder: &Path) -> Result<()> {
    for number in 0..200 {
        let folder = folder.join(number.to_string());
        fs::create_dir(&folder)?;
        for number in 0..100 {
            fs::write(folder.join(number.to_string()), b"")?;
        }
    }
    Ok(())
}

#[test]
fn fuse_snapshots_removal_does_not_wait_for_the_tree_and_cleanup_does() -> Result<()> {
    let stage = Stage::new("removal")?;
    for key in ["one", "two"] {
        let mounts = stage.prepare(key, "")?;
        fill(Path::new(&mounts[0].source))?;
    }
    let began = std::time::Instant::now();
    stage.remove("one")?;
    stage.remove("two")?;
    let removed = began.elapsed();
    let left = folders(&stage.daemon)?.len();
    ensure!(code(stage.stat("one")) == Code::NotFound);
    // The key is free at once, and its new folder is not the old one.
    let again = stage.prepare("one", "")?;
    ensure!(fs::read_dir(&again[0].source)?.next().is_none());
    stage.cleanup()?;
    let cleaned = began.elapsed();
    ensure!(folders(&stage.daemon)?.len() == 1, "{:?}", folders(&stage.daemon)?);
    // Forty thousand files do not go in the time of two transactions.
    ensure!(
        left > 0,
        "the trees were gone when the removals came back, after {removed:?} ({cleaned:?} with Cleanup)"
    );
    Ok(())
}

#[test]
fn fuse_snapshots_orphans_are_found_at_start_and_by_cleanup() -> Result<()> {
    let stage = Stage::new("orphans")?;
    stage.prepare("kept", "")?;
    let kept = folders(&stage.daemon)?;
    let home = stage.daemon.root().join("snapshotter/snapshots");
    let orphan = |number: u32| {
        let folder = home.join(number.to_string());
        fs::create_dir_all(folder.join("fs/deep"))?;
        fs::write(folder.join("fs/deep/file"), b"x")
    };
    orphan(4000)?;
    stage.cleanup()?;
    ensure!(folders(&stage.daemon)? == kept, "{:?}", folders(&stage.daemon)?);
    stage.daemon.kill();
    orphan(5000)?;
    stage.daemon.restart()?;
    wait_until("the end of the orphan", LOG_LIMIT, || Ok((folders(&stage.daemon)? == kept).then_some(())))?;
    // Its number is not given again while anything of it may be there.
    stage.prepare("new", "")?;
    let new: Vec<_> = folders(&stage.daemon)?.difference(&kept).cloned().collect();
    ensure!(new.len() == 1 && new[0].parse::<u32>()? > 5000, "{new:?}");
    Ok(())
}

#[test]
fn fuse_snapshots_cleanup_leaves_what_is_being_made() -> Result<()> {
    let stage = Stage::new("making")?;
    let (client, runtime) = (stage.client(), stage.runtime());
    let cleaning = {
        let mut client = client.clone();
        runtime.spawn(async move {
            for _ in 0..200 {
                client.cleanup(CleanupRequest::default()).await?;
            }
            Ok::<_, tonic::Status>(())
        })
    };
    for number in 0..200 {
        let mounts = stage.prepare(&format!("key{number}"), "")?;
        ensure!(Path::new(&mounts[0].source).is_dir(), "{mounts:?}");
    }
    runtime.block_on(cleaning)??;
    for number in 0..200 {
        let mounts = stage.mounts(&format!("key{number}"))?;
        ensure!(Path::new(&mounts[0].source).is_dir(), "{mounts:?}");
    }
    Ok(())
}

#[test]
fn fuse_overlays_have_containerds_options() -> Result<()> {
    let configuration = "[snapshotter]\nmount_options = [\"volatile\"]\n";
    let stage = Stage::with("options", configuration)?;
    stage.prepare("a", "")?;
    stage.commit("one", "a")?;
    let mounts = stage.prepare("b", "one")?;
    let home = stage.daemon.root().canonicalize()?.join("snapshotter/snapshots");
    let home = home.display();
    let mut expected = vec![
        format!("workdir={home}/2/work"),
        format!("upperdir={home}/2/fs"),
        format!("lowerdir={home}/1/fs"),
        "volatile".to_owned(),
    ];
    if Path::new("/sys/module/overlay/parameters/index").exists() {
        expected.push("index=off".to_owned());
    }
    ensure!(mounts[0].options == expected, "{mounts:?}");
    let mounted = Mounted::at(&stage.work.join("m"), &mounts)?;
    let seen = fs::read_to_string("/proc/self/mountinfo")?;
    let line = seen.lines().find(|line| line.contains(mounted.path().to_str().unwrap_or_default()));
    ensure!(line.is_some_and(|line| line.contains("volatile")), "{line:?}");
    mounted.end()
}

#[test]
fn fuse_overlays_in_a_user_namespace_keep_their_marks_among_the_users_attributes() -> Result<()> {
    let lab = Lab::new("userns")?;
    let real = binaries()?;
    let wrapper = lab.path().join("wrapped");
    let text =
        format!("#!/bin/sh\nexec unshare --user --map-root-user --mount {} \"$@\"\n", real.daemon.display());
    fs::write(&wrapper, text)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let daemon =
        Daemon::start_from(&lab, &Daemon::configuration(&lab), Binaries { daemon: wrapper, ..real })?;
    let stage = Stage::of(lab, daemon)?;
    stage.prepare("a", "")?;
    stage.commit("one", "a")?;
    let mounts = stage.prepare("b", "one")?;
    ensure!(mounts[0].options.contains(&"userxattr".to_owned()), "{mounts:?}");
    Ok(())
}

#[test]
fn fuse_root_of_the_other_daemon_is_left_alone() -> Result<()> {
    let lab = Lab::new("foreign")?;
    let root = lab.folder("root")?;
    fs::create_dir_all(root.join("snapshotter/snapshots/1/fs"))?;
    fs::write(root.join("snapshotter/metadata.db"), b"bolt")?;
    let mut command = lab.command(binaries()?.daemon);
    command.arg("--root").arg(&root).arg("--address").arg(lab.path().join("s.sock"));
    let output = output(command, Duration::from_secs(30))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{said}");
    ensure!(said.contains("snapshotter/metadata.db") && said.contains("--root"), "{said}");
    let inside: BTreeSet<_> =
        fs::read_dir(&root)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    ensure!(inside.len() == 1 && root.join("snapshotter/snapshots/1/fs").is_dir(), "{inside:?}");
    ensure!(fs::read(root.join("snapshotter/metadata.db"))? == b"bolt");
    Ok(())
}
