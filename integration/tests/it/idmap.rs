//! A slot with other owners: what containerd makes of a layer for a container with users of its own.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    images::{Tar, tar::Entry},
    lab::Lab,
    process::{Process, idmapped_clone, run, wait_until},
};
use layerfs::{Connection, DiskLimits, Engine, Layer, Limits, Slots, Store};
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, UnmountFlags, move_mount, unmount},
};

use crate::adoption::layers::{Slow, add};

const LIMIT: Duration = Duration::from_secs(30);
const SHIFT: u32 = 100_000;

/// A user namespace in which 0 to 65535 are `SHIFT` and so on outside.
fn shifted_users(lab: &Lab) -> Result<File> {
    let mut command = lab.command("unshare");
    command.args(["--user", "sleep", "infinity"]);
    let process = Process::start("users", command, &lab.path().join("users.log"))?;
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user"));
    let (pid, ours) = (process.pid().to_string(), of("self")?);
    process.wait_until("its namespace", LIMIT, || Ok((of(&pid)? != ours).then_some(())))?;
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), format!("0 {SHIFT} 65536")).context("map users")?;
    }
    // It lives as long as this is open.
    Ok(File::open(format!("/proc/{pid}/ns/user"))?)
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let found = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    Ok((found.uid(), found.gid()))
}

#[test]
fn fuse_idmapped_clone_of_a_slot_shows_shifted_owners() -> Result<()> {
    let lab = Lab::new("idmap")?;
    let root = lab.folder("root")?;
    let tar = Tar::new([
        Entry::directory("./").owner(0, 0),
        Entry::directory("home").owner(1000, 1001),
        Entry::file("home/file", b"bytes").owner(7, 8).mode(0o640),
        Entry::symlink("home/link", "file").owner(9, 10),
    ]);
    let kept = add(&root, &tar.bytes())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let _inside = runtime.enter();
    let store = Store::open(&root, DiskLimits::default())?;
    let engine = Engine::new(runtime.handle().clone(), Limits::default());
    let slots = Slots::open(root.join("slots.json"))?;
    let connection = Connection::mount(&root.join("fuse"), slots, &store, &engine)?;
    let ztoc = fs::read(root.join("blobs").join(kept.ztoc.hex()))?;
    let layer = Layer::create(&store, &engine, &kept.layer, &kept.ztoc, &ztoc)?;
    layer.add_source("file", std::sync::Arc::new(Slow::open(&root, &kept.layer)?));
    let slot = connection.slot_path(connection.show(&layer, &[])?);

    let clone = idmapped_clone(&slot, &shifted_users(&lab)?).context("clone a slot with other owners")?;
    let shifted = lab.folder("shifted")?;
    move_mount(&clone, "", CWD, &shifted, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let rows = [("", 0, 0), ("home", 1000, 1001), ("home/file", 7, 8), ("home/link", 9, 10)];
    for (path, uid, gid) in rows {
        ensure!(owner(&shifted.join(path))? == (SHIFT + uid, SHIFT + gid), "{path}");
        ensure!(owner(&slot.join(path))? == (uid, gid), "{path}: the slot itself is as it was");
    }
    ensure!(fs::read(shifted.join("home/file"))? == b"bytes");
    ensure!(
        fs::symlink_metadata(shifted.join("home/file"))?.ino() == fs::metadata(slot.join("home/file"))?.ino()
    );

    // As containerd puts it below a container.
    let merged = lab.folder("merged")?;
    let (upper, work) = (lab.folder("upper")?, lab.folder("work")?);
    let options =
        format!("lowerdir={},upperdir={},workdir={}", shifted.display(), upper.display(), work.display());
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged);
    run(mount, LIMIT)?;
    for (path, uid, gid) in rows.into_iter().skip(1) {
        ensure!(owner(&merged.join(path))? == (SHIFT + uid, SHIFT + gid), "{path} in the overlay");
    }
    ensure!(fs::read(merged.join("home/file"))? == b"bytes");
    fs::write(merged.join("home/file"), b"changed").context("copy up")?;
    ensure!(owner(&upper.join("home/file"))? == (SHIFT + 7, SHIFT + 8));
    for folder in [&merged, &shifted] {
        unmount(folder, UnmountFlags::DETACH)?;
    }
    wait_until("its mounts' end", LIMIT, || {
        Ok(lab.mounts().iter().all(|mount| *mount == root.join("fuse")).then_some(()))
    })
}
