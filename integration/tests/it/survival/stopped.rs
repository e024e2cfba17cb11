//! The daemon is stopped, in every way there is: frozen, with SIGTERM, with and without a service manager that keeps its
//! descriptors, with the whole machine.

use std::{
    fs,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    daemon::{Daemon, signal_pid},
    lab::Lab,
    machine::{binaries, long},
    process::wait_until,
};
use rustix::{
    cmsg_space,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::Signal,
};
use serde_json::Value;

use super::scene::{LIMIT, Scene, is_alive, read_loose};

#[test]
fn containerd_readers_wait_for_a_frozen_worker() -> Result<()> {
    let scene = Scene::new("frozen", "")?;
    let root = scene.container("one")?;
    let workers = scene.daemon.workers();
    ensure!(scene.daemon.signal_workers(Signal::STOP) == 1);
    thread::scope(|scope| {
        let reading = scope.spawn(|| read_loose(&root, 0));
        // Nothing to wait for: that nothing happens is what is to be seen.
        thread::sleep(Duration::from_secs(if long() { 30 } else { 2 }));
        ensure!(!reading.is_finished(), "no worker can have answered");
        scene.daemon.signal_workers(Signal::CONT);
        reading.join().expect("it does not panic")
    })?;
    ensure!(scene.daemon.workers() == workers, "it was not replaced");
    Ok(())
}

#[test]
fn containerd_readers_get_their_bytes_from_a_daemon_whose_disk_is_full() -> Result<()> {
    let scene = Scene::on_small_disk("full", "[span_store]\nmin_free = 0\n", 24 << 20)?;
    let root = scene.container("one")?;
    // Twice what there is room for, and most of it a second time after a process that knew of it is gone.
    for numbers in [0..48, 0..24] {
        let before = scene.daemon.starts();
        for number in numbers {
            read_loose(&root, number)?;
        }
        let disk = rustix::fs::statvfs(scene.daemon.root())?;
        let free = disk.f_bavail * disk.f_frsize;
        ensure!(free < 2 << 20, "{free} bytes are free");
        scene.daemon.signal_workers(Signal::KILL);
        scene.daemon.wait_for_start(before)?;
    }
    read_loose(&root, 47)
}

#[test]
fn containerd_a_daemon_that_no_container_needs_leaves_nothing() -> Result<()> {
    let scene = Scene::new("unneeded", "")?;
    scene.container("one")?;
    scene.remove("one")?;
    let worker = scene.daemon.workers();
    scene.daemon.stop();
    ensure!(!is_alive(worker[0]) && scene.mount()?.is_none());
    for left in ["s.sock", "root/handover.sock"] {
        ensure!(!scene.lab.path().join("soci").join(left).exists(), "{left}");
    }
    ensure!(scene.daemon.root().join("layers/clean").exists(), "everything is on the disk");
    Ok(())
}

#[test]
fn containerd_a_stopped_daemon_serves_on_as_long_as_containers_need_it() -> Result<()> {
    let scene = Scene::new("needed", "")?;
    let root = scene.container("one")?;
    let (mount, worker) = (scene.mount()?, scene.daemon.workers()[0]);
    scene.daemon.stop();
    let said = scene.daemon.wait_for_log("for which containers", |line| line.get("needed_by").is_some())?;
    ensure!(said["needed_by"].as_str().is_some_and(|keys| keys.contains("/one")), "{said}");
    ensure!(said["pid"].as_u64() == Some(u64::from(worker)), "{said}");
    ensure!(is_alive(worker));
    read_loose(&root, 0)?;
    // containerd is refused at once.
    ensure!(scene.containerd.ctr(&["snapshots", "--snapshotter", "soci", "ls"]).is_err());
    scene.daemon.start_again()?;
    ensure!(scene.mount()? == mount && !is_alive(worker));
    read_loose(&root, 1)?;
    scene.wait_for_calls()?;
    // Again, and this time the container goes.
    let worker = scene.daemon.workers()[0];
    scene.daemon.stop();
    ensure!(is_alive(worker));
    scene.containerd.ctr(&["tasks", "rm", "-f", "one"])?;
    wait_until("its end", LIMIT, || Ok((!is_alive(worker)).then_some(())))?;
    ensure!(scene.mount()?.is_none());
    // And once more, with a signal of its own for the worker.
    scene.daemon.start_again()?;
    scene.wait_for_calls()?;
    let root = scene.container("two")?;
    let worker = scene.daemon.workers()[0];
    signal_pid(worker, Signal::TERM);
    read_loose(&root, 2)?;
    scene.daemon.stop();
    ensure!(is_alive(worker), "while it has a supervisor, the signal is not for it");
    signal_pid(worker, Signal::TERM);
    wait_until("its end", LIMIT, || Ok((!is_alive(worker)).then_some(())))?;
    ensure!(scene.mount()?.is_none() && read_loose(&root, 3).is_err());
    Ok(())
}

#[test]
fn containerd_a_supervisor_that_dies_while_it_stops_takes_nothing_with_it() -> Result<()> {
    let scene = Scene::new("impatient", "")?;
    let root = scene.container("one")?;
    let (mount, worker) = (scene.mount()?, scene.daemon.workers()[0]);
    // It is told to stop, and when it has done so no supervisor is there to be told that containers need it.
    signal_pid(worker, Signal::STOP);
    scene.daemon.signal(Signal::TERM);
    scene.daemon.wait_for_log("a stop", |line| line["msg"] == "stopping")?;
    scene.daemon.kill_supervisor();
    signal_pid(worker, Signal::CONT);
    // Not asked of the first process, which is gone.
    wait_until("the worker to see its end", LIMIT, || {
        let said = scene.daemon.logs();
        let of =
            |line: &Value| line["msg"].as_str().is_some_and(|said| said.contains("the supervisor is gone"));
        Ok(said.iter().any(of).then_some(()))
    })?;
    ensure!(is_alive(worker) && scene.mount()? == mount);
    read_loose(&root, 0)?;
    scene.daemon.start_again()?;
    ensure!(scene.mount()? == mount && !is_alive(worker));
    read_loose(&root, 1)
}

#[test]
fn containerd_a_list_of_slots_that_is_lost_makes_no_wrong_bytes() -> Result<()> {
    let scene = Scene::new("listless", "")?;
    let root = scene.container("one")?;
    read_loose(&root, 0)?;
    let before = scene.daemon.starts();
    fs::write(scene.daemon.root().join("slots.json"), "damaged")?;
    scene.daemon.signal_workers(Signal::KILL);
    scene.daemon.wait_for_start(before)?;
    // What was known of the old ones is stale, and never something else.
    if let Err(error) = read_loose(&root, 1) {
        let why = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        ensure!(why == Some(rustix::io::Errno::STALE.raw_os_error()), "{error:#}");
    }
    // What is mounted anew is right, once the kernel asks again for the layers' folders: after a second.
    let mut number = 1;
    wait_until("a new container", LIMIT, || {
        number += 1;
        Ok(scene.container(&format!("new{number}")).ok().map(|root| read_loose(&root, 2)))
    })?
}

/// A datagram, and the descriptors that came with it.
fn receive(socket: &UnixDatagram) -> Result<(String, Vec<OwnedFd>)> {
    let (mut bytes, mut space) = (vec![0; 4096], [MaybeUninit::uninit(); cmsg_space!(ScmRights(4))]);
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    Ok((String::from_utf8(bytes[..got.bytes].to_vec())?, descriptors))
}

/// A service manager, as far as it concerns us: it listens, and keeps what it is given.
struct Manager {
    socket: UnixDatagram,
    kept: Vec<(String, OwnedFd)>,
    said: Vec<String>,
}

impl Manager {
    const SOCKET: &str = "notify.sock";

    fn new(lab: &Lab) -> Result<Manager> {
        let socket = UnixDatagram::bind(lab.path().join(Manager::SOCKET))?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(Manager { socket, kept: Vec::new(), said: Vec::new() })
    }

    /// Listens until a process says that.
    fn hear(&mut self, wanted: &str) -> Result<()> {
        loop {
            let (text, descriptors) = receive(&self.socket)?;
            let name =
                text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default().to_owned();
            if text.contains("FDSTOREREMOVE=1") {
                self.kept.retain(|(kept, _)| *kept != name);
            } else if text.contains("FDSTORE=1") {
                self.kept.extend(descriptors.into_iter().map(|descriptor| (name.clone(), descriptor)));
            }
            self.said.extend(text.lines().map(ToOwned::to_owned));
            if text.lines().any(|line| line == wanted) {
                return Ok(());
            }
        }
    }

    /// The variables and descriptors of a unit that has a store of descriptors.
    fn start(&self, lab: &Lab, name: &str) -> Result<std::sync::Arc<integration::process::Process>> {
        let folder = lab.path().join("soci");
        let mut command = lab.command("sh");
        let listen = match self.kept.len() {
            0 => "",
            2 => "exec 3<&0 4>&1 >&2 </dev/null; LISTEN_PID=$$ LISTEN_FDS=2 ",
            other => bail!("{other} descriptors were kept"),
        };
        command.arg("-c").arg(format!("{listen}exec \"$@\"")).arg("sh").arg(binaries()?.daemon);
        command.arg("--address").arg(Daemon::address_in(lab)).arg("--root").arg(folder.join("root"));
        command.arg("--config").arg(folder.join("config.toml")).args(["--log-level", "debug"]);
        command.env("NOTIFY_SOCKET", lab.path().join(Manager::SOCKET)).env("FDSTORE", "8");
        command.env("WATCHDOG_USEC", "2000000");
        let mut kept = self.kept.iter();
        let mut next =
            || kept.next().map_or(Ok(Stdio::null()), |(_, kept)| kept.try_clone().map(Stdio::from));
        if !self.kept.is_empty() {
            let names: Vec<_> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
            command.env("LISTEN_FDNAMES", names.join(":"));
        }
        let (first, second) = (next()?, next()?);
        lab.start_with(name, command, first, (!self.kept.is_empty()).then_some(second))
    }
}

#[test]
fn containerd_what_a_service_manager_keeps_outlives_every_process() -> Result<()> {
    let scene = Scene::new("kept", "")?;
    scene.daemon.stop();
    let mut manager = Manager::new(&scene.lab)?;
    let first = manager.start(&scene.lab, "kept1")?;
    manager.hear("READY=1")?;
    ensure!(manager.kept.len() == 2, "{:?}", manager.said);
    manager.hear("WATCHDOG=1")?;
    scene.wait_for_calls()?;
    let root = scene.container("one")?;
    read_loose(&root, 0)?;
    let mount = scene.mount()?;
    first.signal(Signal::TERM);
    manager.hear("STOPPING=1")?;
    ensure!(first.wait_exit(LIMIT)?.success());
    let of_the_daemon = |pid: &u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("soci-snapshotter-grpc")
    };
    ensure!(!scene.lab.processes().iter().any(of_the_daemon), "no process is left");
    ensure!(scene.mount()? == mount);
    thread::scope(|scope| -> Result<()> {
        let reading = scope.spawn(|| read_loose(&root, 1));
        let second = manager.start(&scene.lab, "kept2").context("start with what was kept")?;
        let mut manager = manager;
        manager.hear("READY=1")?;
        reading.join().expect("it does not panic").context("a read that began while no worker was there")?;
        ensure!(scene.mount()? == mount, "it is the same mount");
        read_loose(&root, 2)?;
        scene.wait_for_calls()?;
        scene.remove("one")?;
        second.signal(Signal::TERM);
        ensure!(second.wait_exit(LIMIT)?.success());
        Ok(())
    })?;
    ensure!(scene.mount()?.is_none(), "no container needed it");
    Ok(())
}

#[test]
fn containerd_after_a_reboot_without_a_network_what_is_local_runs() -> Result<()> {
    let scene = Scene::new("reboot", "[fetch]\nread_timeout_sec = 2\n")?;
    let root = scene.container("one")?;
    read_loose(&root, 0)?;
    scene.remove("one")?;
    // The machine: everything is gone at once, nothing was said, and another boot has another name.
    scene.containerd.kill();
    let workers = scene.daemon.workers();
    scene.daemon.kill();
    workers.into_iter().for_each(|worker| signal_pid(worker, Signal::KILL));
    wait_until("their end", LIMIT, || {
        if let Some(mount) = scene.mount()? {
            drop(mount);
            let _ =
                rustix::mount::unmount(scene.daemon.root().join("fuse"), rustix::mount::UnmountFlags::DETACH);
        }
        Ok(scene.mount()?.is_none().then_some(()))
    })?;
    let noted = scene.daemon.root().join("layers/boot");
    let generation = fs::read_to_string(&noted)?;
    let (_, generation) = generation.split_once(' ').context("a boot and a generation")?;
    fs::write(&noted, format!("another-boot {generation}"))?;
    scene.stage.link.cut();
    scene.daemon.start_again()?;
    scene.containerd.restart()?;
    let root = scene.container("two")?;
    read_loose(&root, 0).context("what was read before is on the disk")?;
    let error = read_loose(&root, 40).expect_err("it has not been fetched, and cannot be");
    let said = scene.daemon.wait_for_log("why", |line| {
        line["msg"].as_str().is_some_and(|text| text.contains("read of a file failed"))
    })?;
    ensure!(said["error"].as_str().is_some_and(|why| !why.is_empty()), "{said} {error:#}");
    scene.stage.link.restore();
    read_loose(&root, 2)
}
