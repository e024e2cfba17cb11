//! Another process unmounts the mount, or ends its connection.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::process::wait_until;
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Signal,
};

use super::scene::{LIMIT, Scene, read_loose};

#[test]
fn containerd_a_mount_that_is_taken_away_comes_back_without_a_read_error() -> Result<()> {
    let scene = Scene::new("taken", "")?;
    let root = scene.container("one")?;
    let mount = scene.mount()?;
    unmount(scene.daemon.root().join("fuse"), UnmountFlags::DETACH)?;
    read_loose(&root, 0)?;
    // No worker knows it by its path.
    let before = scene.daemon.starts();
    scene.daemon.signal_workers(Signal::KILL);
    scene.daemon.wait_for_start(before)?;
    read_loose(&root, 1)?;
    ensure!(scene.mount()? == mount, "the same, at its place");
    read_loose(&scene.container("two")?, 2)?;
    // Nor does a daemon that takes it over from a worker.
    scene.daemon.kill_supervisor();
    unmount(scene.daemon.root().join("fuse"), UnmountFlags::DETACH)?;
    scene.daemon.start_again()?;
    read_loose(&root, 3)
}

/// The kernel tells the supervisor of each change of mounts. By itself it looks every ten seconds only, which would be too
/// late at least once in three times.
#[test]
fn containerd_a_mount_that_is_taken_away_is_put_back_at_once() -> Result<()> {
    let scene = Scene::new("put-back", "")?;
    let mount = scene.mount()?.context("a mount")?;
    for _ in 0..3 {
        unmount(scene.daemon.root().join("fuse"), UnmountFlags::DETACH)?;
        wait_until("the mount is back", Duration::from_secs(5), || {
            Ok(scene.mount()?.filter(|found| *found == mount))
        })?;
    }
    read_loose(&scene.container("after")?, 0)
}

#[test]
fn containerd_after_a_connection_that_was_ended_there_is_another_one() -> Result<()> {
    let scene = Scene::new("aborted", "")?;
    let root = scene.container("one")?;
    let mount = scene.mount()?.context("a mount")?;
    let before = scene.daemon.starts();
    let control = scene.lab.folder("control")?;
    abort(&control, &mount).with_context(|| format!("end connection {mount}"))?;
    // Only the kernel tells the daemon.
    scene.daemon.wait_for_start(before)?;
    ensure!(read_loose(&root, 0).is_err(), "what was ended is ended");
    let said =
        scene.daemon.wait_for_log("the containers that lost it", |line| line.get("containers").is_some())?;
    ensure!(said["containers"].as_str().is_some_and(|keys| keys.contains("/one")), "{said}");
    let anew = scene.mount()?;
    ensure!(anew.is_some() && anew.as_ref() != Some(&mount), "{anew:?} after {mount}");
    scene.wait_for_calls()?;
    wait_until("a container", LIMIT, || {
        let made = scene.container("two");
        Ok(made.ok())
    })
    .and_then(|root| read_loose(&root, 1))
}

/// What an administrator does to a file system that hangs. `mount` is its device's number.
fn abort(control: &Path, mount_number: &str) -> Result<()> {
    let minor = mount_number.rsplit_once(':').context("two numbers")?.1;
    mount("control", control, "fusectl", MountFlags::empty(), None)?;
    let aborted = fs::write(control.join(minor).join("abort"), "1");
    unmount(control, UnmountFlags::DETACH)?;
    Ok(aborted?)
}
