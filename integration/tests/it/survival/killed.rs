//! The worker dies: at random moments, at its start, by its own fault; the supervisor dies; both.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::signal_pid,
    machine::{long, say, skip},
    process::wait_until,
};
use rustix::process::Signal;
use serde_json::Value;

use super::scene::{LIMIT, Scene, is_alive, read_loose};
use crate::adoption::readers::Readers;

/// Less than what is read, so that bytes have to be fetched again and again.
const SMALL_STORE: &str = "[span_store]\nmax_bytes = 33554432\nmin_free = 0\n";

#[test]
fn containerd_readers_in_containers_outlive_workers_that_are_killed_at_any_moment() -> Result<()> {
    let scene = Scene::new("killed", SMALL_STORE)?;
    let kills = if long() { 200 } else { 12 };
    let roots = [scene.container("one")?, scene.container("two")?];
    let readers: Vec<_> = roots.iter().map(|root| Readers::start(&scene.lab, root)).collect::<Result<_>>()?;
    let mut state = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let seed = state;
    for kill in 0..kills {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // A moment as any other, every fourth before the worker can have come far.
        let is_early = kill % 4 == 3;
        thread::sleep(Duration::from_millis(if is_early { state % 40 } else { 50 + state % 800 }));
        let before = scene.daemon.starts();
        let context = || format!("kill {kill}, seed {seed}");
        wait_until("a worker", LIMIT, || Ok((scene.daemon.signal_workers(Signal::KILL) > 0).then_some(())))
            .with_context(context)?;
        if !is_early {
            scene.daemon.wait_for_start(before).with_context(context)?;
        }
        for reader in &readers {
            reader.still_read().with_context(context)?;
        }
    }
    for reader in &readers {
        let said = reader.finish(2 * LIMIT).with_context(|| format!("after {kills} kills, seed {seed}"))?;
        say(&format!("{kills} kills of the worker; {said}"));
    }
    // containerd is served as before.
    scene.remove("one")?;
    scene.container("three")?;
    Ok(())
}

/// What the kernel gives so much memory and no more. Gone when dropped, once nothing is in it.
struct Poor {
    group: PathBuf,
    /// Where the kernel says which process it killed.
    events: &'static str,
}

impl Poor {
    /// `None`: this machine has no such groups.
    fn new(name: &str, bytes: u64) -> Result<Option<Poor>> {
        let all = Path::new("/sys/fs/cgroup");
        let (parent, limit, swap, events) = if all.join("memory/cgroup.procs").exists() {
            (all.join("memory"), "memory.limit_in_bytes", ("memory.swappiness", "0"), "memory.oom_control")
        } else {
            (all.to_owned(), "memory.max", ("memory.swap.max", "0"), "memory.events")
        };
        let group = parent.join(name);
        if fs::create_dir(&group).is_err() || !group.join(limit).exists() {
            let _ = fs::remove_dir(&group);
            return Ok(None);
        }
        let poor = Poor { group, events };
        fs::write(poor.group.join(limit), bytes.to_string())?;
        // Without swap there is nothing to be set.
        let _ = fs::write(poor.group.join(swap.0), swap.1);
        Ok(Some(poor))
    }

    fn add(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.group.join("cgroup.procs"), pid.to_string())?)
    }

    fn killed(&self) -> Result<u64> {
        let said = fs::read_to_string(self.group.join(self.events))?;
        let count = said.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.context("a count of kills")?.trim().parse()?)
    }
}

impl Drop for Poor {
    fn drop(&mut self) {
        let emptied = || Ok(fs::remove_dir(&self.group).is_ok().then_some(()));
        let _ = wait_until("an empty group", LIMIT, emptied);
    }
}

#[test]
fn containerd_readers_outlive_workers_that_the_kernel_kills_for_lack_of_memory() -> Result<()> {
    let scene = Scene::new("poor", SMALL_STORE)?;
    let Some(poor) = Poor::new(&format!("{}-poor", scene.lab.word()), 2 << 20)? else {
        skip("a kill for lack of memory: there are no groups of processes to limit it here");
        return Ok(());
    };
    let root = scene.container("one")?;
    let readers = Readers::start(&scene.lab, &root)?;
    for kill in 0..3 {
        let before = scene.daemon.starts();
        let [worker] = scene.daemon.workers().try_into().ok().context("one worker")?;
        // What it has it keeps; of what it needs to bring something there is not enough.
        poor.add(worker)?;
        scene.daemon.wait_for_start(before).with_context(|| format!("kill {kill}"))?;
        ensure!(poor.killed()? == kill + 1, "it was the kernel");
        readers.still_read()?;
    }
    say(&format!("3 kills for lack of memory; {}", readers.finish(LIMIT)?));
    Ok(())
}

#[test]
fn containerd_workers_that_die_at_their_start_are_followed_by_one_that_serves() -> Result<()> {
    let scene = Scene::new("atstart", "")?;
    let root = scene.container("one")?;
    let before = scene.daemon.starts();
    let mut killed = Vec::new();
    while killed.len() < 7 {
        wait_until("a worker", LIMIT, || {
            let next = scene.daemon.workers().into_iter().find(|pid| !killed.contains(pid));
            next.inspect(|pid| {
                signal_pid(*pid, Signal::KILL);
                killed.push(*pid);
            });
            Ok(next.map(drop))
        })?;
    }
    ensure!(scene.daemon.starts() <= before + 1, "they died before they served");
    read_loose(&root, 0)?;
    let delays: Vec<_> =
        scene.daemon.logs().into_iter().filter_map(|line| line.get("delay").cloned()).collect();
    let expected = ["0ns", "0ns", "100ms", "200ms", "400ms", "800ms"];
    // The first one died while it served; of the others one may have come so far, too.
    ensure!(delays.len() == 7 && delays.contains(&Value::from("400ms")), "{delays:?}, not {expected:?}");
    scene.daemon.wait_for_start(before)?;
    read_loose(&root, 1)
}

#[test]
fn containerd_a_typo_in_the_configuration_is_reported_and_does_no_harm() -> Result<()> {
    let scene = Scene::new("typo", "")?;
    let root = scene.container("one")?;
    let file = scene.lab.path().join("soci/config.toml");
    let right = fs::read_to_string(&file)?;
    fs::write(&file, format!("[fetch]\nhedge = 5\n{right}"))?;
    let workers = scene.daemon.workers();
    scene.daemon.signal(Signal::HUP);
    let said = |line: &Value| line["error"].as_str().is_some_and(|error| error.contains("fetch.hedge"));
    scene.daemon.wait_for_log("what is wrong", said)?;
    ensure!(scene.daemon.workers() == workers, "the worker is still the same");
    // One that is started again has the configuration that was right.
    let before = scene.daemon.starts();
    scene.daemon.signal_workers(Signal::KILL);
    scene.daemon.wait_for_start(before)?;
    read_loose(&root, 0)?;
    fs::write(&file, right)?;
    let before = scene.daemon.starts();
    scene.daemon.signal(Signal::HUP);
    scene.daemon.wait_for_start(before)?;
    read_loose(&root, 1)
}

#[test]
fn containerd_a_layer_that_workers_crash_on_is_left_alone() -> Result<()> {
    let scene = Scene::new("poison", SMALL_STORE)?;
    let root = scene.container("one")?;
    let held = || -> Result<bool> {
        let noted = fs::read(scene.daemon.root().join("quarantine.json")).unwrap_or_default();
        let noted: Value = serde_json::from_slice(&noted).unwrap_or_default();
        Ok(noted["held"].as_array().is_some_and(|held| !held.is_empty()))
    };
    // There is no layer that makes us crash. One is at work nearly always, and each crash is taken for its doing.
    let reader = thread::spawn({
        let big = root.join("big");
        move || {
            loop {
                match fs::File::open(&big).and_then(|file| {
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
                    std::io::copy(&mut &file, &mut std::io::sink())
                }) {
                    Ok(_) => {}
                    Err(error) => return error,
                }
            }
        }
    });
    for crash in 0.. {
        ensure!(crash < 40, "nothing was at work in 40 crashes");
        let before = scene.daemon.starts();
        thread::sleep(Duration::from_millis(100));
        scene.daemon.signal_workers(Signal::ABORT);
        scene.daemon.wait_for_start(before)?;
        if held()? {
            break;
        }
    }
    let error = reader.join().expect("it does not panic");
    ensure!(error.raw_os_error() == Some(libc::EIO), "{error}");
    let said = scene.daemon.logs();
    let of = |line: &&Value| line["reason"] == "quarantined" && line["level"] == "error";
    ensure!(said.iter().any(|line| of(&line)), "it is said");
    // A killed worker changes nothing; a new start tries again.
    let before = scene.daemon.starts();
    scene.daemon.signal_workers(Signal::KILL);
    scene.daemon.wait_for_start(before)?;
    ensure!(held()? && fs::read(root.join("big")).is_err());
    scene.daemon.restart()?;
    ensure!(!held()?);
    read_loose(&root, 2)?;
    ensure!(fs::read(root.join("big"))?.len() == 64 << 20);
    Ok(())
}

#[test]
fn containerd_a_worker_outlives_its_supervisor_and_the_next_one_takes_over() -> Result<()> {
    let scene = Scene::new("orphan", SMALL_STORE)?;
    let root = scene.container("one")?;
    let readers = Readers::start(&scene.lab, &root)?;
    let (mount, orphan) = (scene.mount()?, scene.daemon.workers());
    ensure!(mount.is_some() && orphan.len() == 1);
    scene.daemon.kill_supervisor();
    read_loose(&root, 0)?;
    // containerd is served, too.
    let second = scene.container("two")?;
    read_loose(&second, 1)?;
    scene.daemon.start_again()?;
    readers.still_read()?;
    ensure!(scene.mount()? == mount, "it is the same mount");
    let worker = scene.daemon.workers();
    ensure!(worker.len() == 1 && worker != orphan, "{worker:?} after {orphan:?}");
    ensure!(!is_alive(orphan[0]), "the one before is gone");
    read_loose(&root, 2)?;
    read_loose(&scene.container("three")?, 3)?;
    // While it lives, no daemon takes over.
    let before = scene.daemon.logs().len();
    let mut second = scene.lab.command(integration::machine::binaries()?.daemon);
    second.arg("--root").arg(scene.daemon.root()).arg("--address").arg(scene.lab.path().join("other.sock"));
    second.arg("--config").arg(scene.lab.path().join("soci/config.toml"));
    let refused = integration::process::output(second, LIMIT)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("another soci-snapshotter-grpc (process"), "{said}");
    ensure!(scene.daemon.logs().len() >= before);
    let said = readers.finish(LIMIT)?;
    say(&format!("the supervisor killed; {said}"));
    Ok(())
}

#[test]
fn containerd_when_both_are_killed_the_next_start_names_the_containers_that_lost_the_mount() -> Result<()> {
    let scene = Scene::new("both", "")?;
    let root = scene.container("one")?;
    read_loose(&root, 0)?;
    let mount = scene.mount()?;
    // First the one that would start another.
    let workers = scene.daemon.workers();
    scene.daemon.kill_supervisor();
    for worker in &workers {
        signal_pid(*worker, Signal::KILL);
    }
    wait_until("their end", LIMIT, || Ok((!workers.iter().any(|pid| is_alive(*pid))).then_some(())))?;
    ensure!(read_loose(&root, 1).is_err(), "a read of an unserved mount is an error, and soon");
    scene.daemon.start_again()?;
    ensure!(scene.mount()?.is_some() && scene.mount()? != mount, "another mount");
    let lost =
        scene.daemon.wait_for_log("the containers that lost it", |line| line.get("containers").is_some())?;
    ensure!(lost["containers"].as_str().is_some_and(|keys| keys.contains("/one")), "{lost}");
    scene.wait_for_calls()?;
    scene.remove("one")?;
    read_loose(&scene.container("two")?, 1)
}
