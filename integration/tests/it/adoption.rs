//! One mount, and processes that serve it one after the other, killed as they are. The test is the supervisor: it made
//! the mount, has its descriptor and what was agreed with the kernel, and starts a worker whenever one is gone. No
//! program that reads may notice more than a pause.

pub(crate) mod layers;
pub(crate) mod readers;
mod supervisor;
mod worker;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    images::{Tar, tar::Entry},
    lab::Lab,
    machine::say,
    process::{output, wait_until},
};
use serde_json::Value;

use crate::image::noise;
use readers::{Readers, forget};
use supervisor::{Stage, Supervisor};

const KILLS: u32 = 16;
/// For what takes some seconds on a machine that has nothing else to do.
const LIMIT: Duration = Duration::from_secs(240);

/// Folders of files, links and absences for walking readers.
fn small(seed: u64) -> Tar {
    let mut tar = Tar::new([Entry::directory("tree")]);
    for folder in 0..12 {
        tar = tar.with(Entry::directory(format!("tree/{folder}")).mtime(1_000_000 + folder, 5));
        for file in 0..20 {
            let path = format!("tree/{folder}/{file}");
            let bytes = noise(seed + (folder as u64) * 100 + file, 3000 + 500 * file as usize);
            tar = tar.with(Entry::file(&path, bytes).owner(folder as u32, file as u32));
        }
        let hard = Entry::hard_link(format!("tree/{folder}/hard"), format!("tree/{folder}/3"));
        tar = tar.with(hard.owner(folder as u32, 3));
        tar = tar.with(Entry::symlink(format!("tree/{folder}/link"), "../5"));
    }
    tar
}

/// The numbers of everything below `top`, asked of the kernel.
fn numbers(top: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![top.to_owned()]);
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
        found.insert(path, metadata.ino());
    }
    Ok(found)
}

/// Slot and base, as stored.
fn bases(root: &Path) -> Result<Vec<(u64, u64)>> {
    let stored: Value = serde_json::from_slice(&fs::read(root.join("slots.json"))?)?;
    let slots = stored["slots"].as_array().context("slots are stored")?;
    let pair = |slot: &Value| Some((slot["number"].as_u64()?, slot["base"].as_u64()?));
    slots.iter().map(|slot| pair(slot).context("a slot has a number and a base")).collect()
}

#[test]
fn fuse_readers_outlive_workers_that_are_killed_at_any_moment() -> Result<()> {
    let lab = Lab::new("killed")?;
    let supervisor = Supervisor::new(&lab)?;
    layers::add(supervisor.root(), &readers::layer().bytes())?;
    supervisor.start_first()?;
    let readers = Readers::start(&lab, &supervisor.slot(1))?;
    let _ends = supervisor.ends();
    let mut state = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let seed = state;
    for kill in 0..KILLS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // A moment as any other, every fourth before the worker can have come far.
        let is_early = kill % 4 == 3;
        let moment = if is_early { state % 40 } else { 50 + state % 800 };
        thread::sleep(Duration::from_millis(moment));
        supervisor.kill();
        let worker = supervisor.start(Stage::Serves)?;
        if !is_early {
            worker.served()?;
            // The walking reader is to ask the process again, and not the kernel's memory.
            forget(&supervisor, "1")?;
        }
        readers.still_read().with_context(|| format!("after {kill} kills, seed {seed}"))?;
    }
    supervisor.worker()?.served()?;
    let said = readers.finish(LIMIT).with_context(|| format!("after {KILLS} kills, seed {seed}"))?;
    say(&format!(
        "{KILLS} kills; {said}; from a worker's start to its serving at most {:?}",
        supervisor.slowest()
    ));
    Ok(())
}

#[test]
fn fuse_what_the_kernel_remembers_holds_for_the_next_worker() -> Result<()> {
    let lab = Lab::new("numbers")?;
    let supervisor = Supervisor::new(&lab)?;
    layers::add(supervisor.root(), &small(1).bytes())?;
    layers::add(supervisor.root(), &small(9000).bytes())?;
    supervisor.start_first()?;
    let _ends = supervisor.ends();
    let top = supervisor.mount().to_owned();
    let before = numbers(&top)?;
    let stored = bases(supervisor.root())?;
    let (file, folder) = (File::open(top.join("1/tree/3/7"))?, File::open(top.join("2/tree"))?);
    let absent = top.join("1/tree/3/absent");
    ensure!(!absent.try_exists()?);
    for round in 0..3 {
        supervisor.kill();
        // The kernel answers what it has cached by itself; below the root, where it is cached for ever.
        let cached = folder.metadata()?.ino();
        ensure!(cached == before[&top.join("2/tree")]);
        supervisor.start(Stage::Serves)?.served()?;
        ensure!(numbers(&top)? == before, "as cached, round {round}");
        for slot in ["1", "2"] {
            forget(&supervisor, slot)?;
        }
        ensure!(numbers(&top)? == before, "as asked for anew, round {round}");
        ensure!(file.metadata()?.ino() == before[&top.join("1/tree/3/7")]);
        ensure!(!absent.try_exists()?);
        let found = fs::read(top.join("1/tree/3/7"))?;
        ensure!(found == noise(1 + 307, 6500), "the old number is the old file");
        ensure!(bases(supervisor.root())? == stored);
    }
    // A third layer gets numbers that no layer had.
    layers::add(supervisor.root(), &small(20_000).bytes())?;
    supervisor.kill();
    supervisor.start(Stage::Serves)?.served()?;
    let after = numbers(&top.join("3"))?;
    let last = before.values().max().context("there are some")?;
    ensure!(after.values().all(|number| number > last));
    Ok(())
}

#[test]
fn fuse_workers_that_die_before_they_answer_lose_nothing() -> Result<()> {
    let lab = Lab::new("early")?;
    let supervisor = Supervisor::new(&lab)?;
    layers::add(supervisor.root(), &small(1).bytes())?;
    // No process has ever served this mount: the first one that is killed is the first one there is.
    let rounds =
        [[Stage::Adopts, Stage::Takes], [Stage::Takes, Stage::Adopts], [Stage::Adopts, Stage::Adopts]];
    for (round, stages) in (1..).zip(rounds) {
        // Another file each time, so that the kernel has to ask.
        let mut reader = Command::new("cat");
        reader.arg(supervisor.slot(1).join(format!("tree/{round}/7")));
        thread::scope(|scope| -> Result<()> {
            let _ends = supervisor.ends();
            // Another process: ours has the descriptor, and could not even be killed while it waits.
            let reader = scope.spawn(|| output(reader, LIMIT));
            for stage in stages {
                supervisor.start(stage)?.came_to_its_stage()?;
                supervisor.kill();
            }
            supervisor.start(Stage::Serves)?.served()?;
            let found = reader.join().expect("it does not panic");
            ensure!(found.context("read meanwhile")?.stdout == noise(1 + round * 100 + 7, 6500));
            Ok(())
        })?;
        supervisor.kill();
    }
    Ok(())
}

#[test]
fn fuse_layers_come_and_go_at_once_under_a_later_worker() -> Result<()> {
    let lab = Lab::new("shown")?;
    let supervisor = Supervisor::new(&lab)?;
    layers::add(supervisor.root(), &small(1).bytes())?;
    supervisor.start_first()?;
    let _ends = supervisor.ends();
    let top = supervisor.mount().to_owned();
    let listed = || -> Result<Vec<String>> {
        let names = fs::read_dir(&top)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    ensure!(listed()? == ["1"]);
    supervisor.kill();
    // This process is the next worker.
    let runtime = tokio::runtime::Runtime::new()?;
    let _inside = runtime.enter();
    let mut served = worker::Served::adopt(supervisor.root(), supervisor.handed()?)?;
    served.show_known()?;
    served.connection.serve(|| {})?;
    ensure!(listed()? == ["1"]);
    let more = layers::add(supervisor.root(), &small(9000).bytes())?;
    let slot = served.connection.show(&served.open(&more)?, &[])?;
    ensure!(listed()? == ["1".to_owned(), slot.to_string()]);
    ensure!(fs::read(top.join(slot.to_string()).join("tree/0/0"))? == noise(9000, 3000));
    served.connection.hide(slot);
    ensure!(listed()? == ["1"]);
    wait_until("its end", LIMIT, || Ok((!top.join(slot.to_string()).try_exists()?).then_some(())))?;
    ensure!(fs::read(top.join("1/tree/3/7"))? == noise(1 + 307, 6500));
    Ok(())
}
