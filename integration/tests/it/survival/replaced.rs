//! The program is replaced while containers read, by one that works, by one that does not.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Result, ensure};
use integration::{
    daemon::Daemon,
    images::{Layer, Tar, tar::Entry},
    link::{Fault, When},
    machine::{Binaries, binaries, skip},
    process::wait_until,
};
use rustix::process::Signal;

use super::scene::{LIMIT, Scene, read_loose};
use crate::adoption::readers::Readers;

const SMALL_STORE: &str = "[span_store]\nmax_bytes = 33554432\nmin_free = 0\n";

#[test]
fn containerd_another_program_serves_and_no_container_notices() -> Result<()> {
    let scene = Scene::new("upgrade", SMALL_STORE)?;
    let root = scene.container("one")?;
    let readers = Readers::start(&scene.lab, &root)?;
    let mount = scene.mount()?;
    for round in 0..3 {
        let (before, workers) = (scene.daemon.starts(), scene.daemon.workers());
        scene.daemon.signal(Signal::HUP);
        // Calls meanwhile are answered, by the one or the other.
        wait_until("another worker", LIMIT, || {
            scene.containerd.ctr(&["snapshots", "--snapshotter", "soci", "ls"])?;
            Ok((scene.daemon.starts() > before && scene.daemon.workers() != workers).then_some(()))
        })?;
        read_loose(&root, round)?;
        readers.still_read()?;
    }
    ensure!(scene.mount()? == mount);
    read_loose(&scene.container("two")?, 10)?;
    readers.finish(LIMIT).map(drop)
}

/// Puts a program in another's place, as a package manager does.
fn install(program: &Path, place: &Path) -> Result<()> {
    let new = place.with_extension("new");
    fs::copy(program, &new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(&new, place)?)
}

/// Two versions have to understand each other: what is on the disk, what the supervisor tells its worker, and what a worker
/// hands over. `SOCI_PREVIOUS` is a folder with the programs of an earlier version.
#[test]
fn containerd_an_earlier_version_is_upgraded_under_a_container() -> Result<()> {
    let Some(previous) = std::env::var_os("SOCI_PREVIOUS") else {
        skip("an upgrade from an earlier version: SOCI_PREVIOUS names no folder with its programs");
        return Ok(());
    };
    let ours = binaries()?;
    let folder = integration::lab::Lab::new("versions")?;
    let place = folder.path().join("soci-snapshotter-grpc");
    install(&Path::new(&previous).join("soci-snapshotter-grpc"), &place)?;
    let scene = Scene::from("previous", Binaries { daemon: place.clone(), ..ours.clone() })?;
    let root = scene.container("one")?;
    let readers = Readers::start(&scene.lab, &root)?;
    let mount = scene.mount()?;
    // The old supervisor starts a worker of the new version.
    install(&ours.daemon, &place)?;
    let before = scene.daemon.starts();
    scene.daemon.signal(Signal::HUP);
    scene.daemon.wait_for_start(before)?;
    readers.still_read()?;
    read_loose(&root, 0)?;
    // A new daemon takes over from the worker of an old one, with its root.
    scene.daemon.kill_supervisor();
    scene.daemon.start_again()?;
    ensure!(scene.mount()? == mount);
    readers.still_read()?;
    read_loose(&root, 1)?;
    scene.wait_for_calls()?;
    read_loose(&scene.container("two")?, 2)?;
    readers.finish(LIMIT).map(drop)
}

/// After a stop, a daemon of this version shows what an earlier one showed, with its bytes.
#[test]
fn containerd_the_state_of_an_earlier_version_is_adopted() -> Result<()> {
    let Some(previous) = std::env::var_os("SOCI_PREVIOUS") else {
        skip("the state of an earlier version: SOCI_PREVIOUS names no folder with its programs");
        return Ok(());
    };
    let ours = binaries()?;
    let folder = integration::lab::Lab::new("state")?;
    let place = folder.path().join("soci-snapshotter-grpc");
    install(&Path::new(&previous).join("soci-snapshotter-grpc"), &place)?;
    let scene = Scene::from("adopted", Binaries { daemon: place.clone(), ..ours.clone() })?;
    read_loose(&scene.container("one")?, 0)?;
    scene.remove("one")?;
    scene.daemon.stop();
    install(&ours.daemon, &place)?;
    scene.daemon.start_again()?;
    scene.containerd.restart()?;
    scene.stage.link.cut();
    // Read before the stop, so it is on the disk.
    read_loose(&scene.container("two")?, 0)?;
    scene.stage.link.restore();
    read_loose(&scene.container("three")?, 1)
}

#[test]
fn fuse_a_program_that_does_not_work_does_not_stay() -> Result<()> {
    let lab = integration::lab::Lab::new("broken")?;
    let ours = binaries()?;
    let place = lab.path().join("soci-snapshotter-grpc");
    install(&ours.daemon, &place)?;
    let installed = Binaries { daemon: place.clone(), ..ours.clone() };
    let daemon = Daemon::start_from(&lab, &Daemon::configuration(&lab), installed)?;
    let said = |text: &str| {
        daemon.wait_for_log(text, |line| line["msg"].as_str().is_some_and(|said| said.contains(text)))
    };
    // Not even a program: nothing changes.
    let workers = daemon.workers();
    fs::write(lab.path().join("text"), "not a program")?;
    install(&lab.path().join("text"), &place)?;
    daemon.signal(Signal::HUP);
    said("the program stays as it is")?;
    ensure!(daemon.workers() == workers);
    // One that says its version, and ends: after a few the one before serves again.
    let before = daemon.starts();
    install(Path::new("/bin/true"), &place)?;
    daemon.signal(Signal::HUP);
    said("the program before it is started again")?;
    daemon.wait_for_start(before)?;
    ensure!(daemon.workers() != workers);
    // The command sees both: what becomes of a program, and why another one is not taken.
    let upgrade = || {
        let mut command = lab.command(&ours.soci);
        command.args(["daemon", "upgrade", "--daemon-address"]).arg(daemon.address());
        integration::process::output(command, LIMIT)
    };
    install(&ours.daemon, &place)?;
    let workers = daemon.workers();
    let upgraded = upgrade()?;
    let said = String::from_utf8(upgraded.stdout)?;
    ensure!(upgraded.status.success() && said.contains(" serves, process "), "{said}");
    ensure!(daemon.workers() != workers && said.contains(&daemon.workers()[0].to_string()));
    install(&lab.path().join("text"), &place)?;
    let refused = upgrade()?;
    let said = String::from_utf8(refused.stderr)?;
    ensure!(!refused.status.success() && said.contains(&place.display().to_string()), "{said}");
    daemon.stop();
    Ok(())
}

/// Bytes are asked for while the worker is not there: neither a wrong nor a missing one.
#[test]
fn containerd_pulls_go_on_while_the_program_is_replaced() -> Result<()> {
    let scene = Scene::new("pulling", "")?;
    let registry = scene.stage.registry.host();
    let layers = (0..12).map(|number| {
        let bytes = crate::image::noise(1000 + number, 200_000);
        Layer::gzip(&Tar::new([Entry::file(format!("file{number}"), bytes)]).bytes())
    });
    let image = integration::images::Image::new(layers.collect());
    integration::images::push_image(registry, "other:plain", &image)?;
    let (from, to) = (format!("docker://{registry}/other:plain"), format!("docker://{registry}/other:soci"));
    integration::daemon::soci(&scene.lab, &binaries()?, &["convert", "--min-layer-size", "0", &from, &to])?;
    let image = format!("{}/other:soci", scene.stage.link.host());
    for _ in 0..3 {
        let before = scene.daemon.starts();
        std::thread::scope(|scope| -> Result<()> {
            let pulling = scope
                .spawn(|| integration::daemon::pull(&scene.lab, &binaries()?, &scene.containerd, &image));
            scene.daemon.signal(Signal::HUP);
            let pulled = pulling.join().expect("it does not panic")?;
            ensure!(!pulled.is_empty());
            Ok(())
        })?;
        scene.daemon.wait_for_start(before)?;
        scene.containerd.ctr(&["images", "rm", "--sync", &image])?;
    }
    Ok(())
}

/// A layer that is fetched whole, and slowly, is finished first; other calls are answered meanwhile.
#[test]
fn containerd_calls_are_answered_while_a_slow_one_is_finished() -> Result<()> {
    let scene = Scene::new("slowly", "")?;
    let registry = scene.stage.registry.host();
    let layers = [300_000, 20_000].map(|bytes: usize| {
        let file = Entry::file(format!("file{bytes}"), crate::image::noise(bytes as u64, bytes));
        Layer::gzip(&Tar::new([file]).bytes())
    });
    let small = layers[1].digest;
    integration::images::push_image(
        registry,
        "other:plain",
        &integration::images::Image::new(layers.into()),
    )?;
    let (from, to) = (format!("docker://{registry}/other:plain"), format!("docker://{registry}/other:soci"));
    integration::daemon::soci(
        &scene.lab,
        &binaries()?,
        &["convert", "--min-layer-size", "100000", &from, &to],
    )?;
    let image = format!("{}/other:soci", scene.stage.link.host());
    let folders =
        || Ok::<_, anyhow::Error>(fs::read_dir(scene.daemon.root().join("snapshotter/snapshots"))?.count());
    let there = folders()?;
    let stalled = scene.stage.link.inject(Fault::Stall { after: 100 }, When::path(small.to_string()));
    let (before, workers) = (scene.daemon.starts(), scene.daemon.workers());
    std::thread::scope(|scope| -> Result<()> {
        let pulling =
            scope.spawn(|| integration::daemon::pull(&scene.lab, &binaries()?, &scene.containerd, &image));
        // The second of its snapshots has been asked for, and is not there yet.
        wait_until("the slow one", LIMIT, || Ok((folders()? == there + 2).then_some(())))?;
        stalled.wait_for(1)?;
        let upgrade = || {
            let mut command = scene.lab.command(&binaries()?.soci);
            command.args(["daemon", "upgrade", "--daemon-address"]).arg(scene.daemon.address());
            integration::process::run(command, LIMIT)
        };
        let upgrades = [(); 2].map(|()| scope.spawn(upgrade));
        let said = |line: &serde_json::Value| line["msg"] == "another program is going to serve";
        scene.daemon.wait_for_log("an upgrade", said)?;
        for _ in 0..3 {
            scene.containerd.ctr(&["snapshots", "--snapshotter", "soci", "ls"])?;
        }
        ensure!(scene.daemon.workers() == workers, "it finishes first what was begun");
        stalled.lift();
        pulling.join().expect("it does not panic")?;
        for upgrade in upgrades {
            upgrade.join().expect("it does not panic")?;
        }
        scene.daemon.wait_for_start(before)
    })?;
    let ends =
        |line: &serde_json::Value| line["msg"].as_str().is_some_and(|msg| msg.contains("still under way"));
    ensure!(!scene.daemon.logs().iter().any(ends), "nothing was broken off");
    Ok(())
}
