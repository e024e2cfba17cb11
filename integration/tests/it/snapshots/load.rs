//! Many clients at once, clients that go away, and what is left of all that.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::{LOG_LIMIT, with_containerd},
    lab::Lab,
    machine::say,
    process::{anonymous_memory, wait_until},
};
use oci::Digest;
use proto::containerd::services::snapshots::v1::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
    snapshots_client::SnapshotsClient,
};
use rustix::process::Signal;
use tonic::{Code, Status};

use super::folders;
use crate::{
    conformance::{
        client::{Stage, code},
        content::Mounted,
    },
    image::{SMALL, Stage as Image, noise, stage},
    read_path::{NO_FILL, pull, reasons},
};
use integration::images::{Layer, Tar, tar::Entry};

const CLIENTS: usize = 16;
const SNAPSHOTS: usize = 500;
const THOUSAND: usize = 1000;
/// What the allocator may keep of what was in use for a while; five hundred snapshots that stayed would be seen elsewhere.
const MEMORY: u64 = 16 << 20;

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    mounts: usize,
    descriptors: usize,
    threads: usize,
    memory: u64,
}

fn held(stage: &Stage) -> Result<Held> {
    let [pid] = stage.daemon.workers().try_into().ok().context("one process serves")?;
    let count = |what: &str| Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{pid}/{what}"))?.count());
    Ok(Held {
        mounts: stage.lab.mounts().len(),
        descriptors: count("fd")?,
        threads: count("task")?,
        memory: anonymous_memory(pid)?,
    })
}

/// Prepared, and some of them committed or looked at, and removed again: `snapshots` by each of the clients, each with a
/// connection of its own.
fn load(stage: &Stage, round: &str, parent: &str, snapshots: usize) -> Result<()> {
    let one = async |client: usize| {
        let channel =
            proto::connect(stage.daemon.address()).await.map_err(|e| Status::internal(e.to_string()))?;
        let mut api = SnapshotsClient::new(channel);
        for number in 0..snapshots {
            let name = format!("{round}/{client}/{number}");
            let (key, parent) = (name.clone(), parent.to_owned());
            match number % 3 {
                0 => drop(api.view(ViewSnapshotRequest { key, parent, ..Default::default() }).await?),
                _ => drop(api.prepare(PrepareSnapshotRequest { key, parent, ..Default::default() }).await?),
            }
            let mut last = name.clone();
            if number % 3 == 1 {
                last = format!("{name} committed");
                let (name, key) = (last.clone(), name);
                api.commit(CommitSnapshotRequest { name, key, ..Default::default() }).await?;
            }
            api.remove(RemoveSnapshotRequest { key: last, ..Default::default() }).await?;
        }
        Ok::<_, Status>(())
    };
    let all = futures::future::try_join_all((0..CLIENTS).map(one));
    stage.runtime().block_on(all).context("one of the clients")?;
    Ok(())
}

#[test]
fn containerd_five_hundred_snapshots_leave_nothing_behind() -> Result<()> {
    let lab = Lab::new("load")?;
    let tar = Tar::new([Entry::file("file", noise(21, 300_000))]);
    let image = stage(&lab, vec![Layer::gzip(&tar.bytes())], SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &image.lazy)?;
    let stage = Stage::of(lab, daemon)?;
    let [top] = stage.names(&["kind==committed"])?.try_into().ok().context("one layer")?;
    let mounted = Mounted::at(&stage.work.join("m"), &stage.prepare("container", &top)?)?;
    ensure!(fs::read(mounted.path().join("file"))? == noise(21, 300_000));

    load(&stage, "first", &top, 6)?; // so that what is made once is made
    stage.cleanup()?;
    let before = held(&stage)?;
    let kept = folders(&stage.daemon)?;
    load(&stage, "second", &top, SNAPSHOTS.div_ceil(CLIENTS))?;
    stage.cleanup()?;
    ensure!(folders(&stage.daemon)? == kept, "{:?}", folders(&stage.daemon)?);
    ensure!(stage.names(&[])?.len() == 2, "{:?}", stage.names(&[]));
    // Connections end, and threads with nothing to do, a while after the last call.
    let mut after = held(&stage)?;
    let settled = wait_until("what the clients left", LOG_LIMIT, || {
        after = held(&stage)?;
        let more = after.descriptors > before.descriptors || after.threads > before.threads;
        Ok((!more).then_some(()))
    });
    settled.with_context(|| format!("{before:?} before, {after:?} after"))?;
    ensure!(after.mounts == before.mounts, "{before:?} before, {after:?} after");
    ensure!(after.memory < before.memory + MEMORY, "{before:?} before, {after:?} after");
    ensure!(fs::read(mounted.path().join("file"))? == noise(21, 300_000));
    mounted.end()
}

/// Said, not judged: machines differ, and this one is busy.
#[test]
fn containerd_a_thousand_snapshots_are_there_again_after_a_start() -> Result<()> {
    let lab = Lab::new("thousand")?;
    let tar = Tar::new([Entry::file("file", noise(22, 100_000))]);
    let image = stage(&lab, vec![Layer::gzip(&tar.bytes())], SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &image.lazy)?;
    let stage = Stage::of(lab, daemon)?;
    let [top] = stage.names(&["kind==committed"])?.try_into().ok().context("one layer")?;
    for number in 0..THOUSAND {
        stage.prepare(&format!("container{number}"), &top)?;
    }
    let before = stage.daemon.starts();
    stage.daemon.signal_workers(Signal::KILL);
    stage.daemon.wait_for_start(before)?;
    ensure!(stage.names(&["kind==active"])?.len() == THOUSAND);
    let took = |line: serde_json::Value| Some(line.get("took")?.as_str()?.to_owned());
    let served =
        stage.daemon.logs().into_iter().rfind(|line| line["msg"] == "serving 1 layers").and_then(took);
    say(&format!(
        "{THOUSAND} snapshots: the kernel is served {} after a start",
        served.context("it is said")?
    ));
    let began = Instant::now();
    for number in 0..THOUSAND {
        stage.remove(&format!("container{number}"))?;
    }
    let took = began.elapsed();
    stage.cleanup()?;
    ensure!(folders(&stage.daemon)?.len() == 1, "{:?}", folders(&stage.daemon)?);
    say(&format!(
        "{THOUSAND} snapshots removed one after the other: {took:.2?}, their files: {:.2?}",
        began.elapsed()
    ));
    Ok(())
}

/// The layer of an image as containerd's clients ask for it.
struct Asked {
    key: String,
    labels: [(&'static str, String); 4],
}

fn asked(image: &Image, number: usize) -> Result<Asked> {
    let layer = &image.pushed.layers[0];
    let labels = [
        ("containerd.io/snapshot.ref", Digest::sha256(format!("{number}").as_bytes()).to_string()),
        ("containerd.io/snapshot/cri.image-ref", image.lazy.clone()),
        (
            "containerd.io/snapshot/cri.manifest-digest",
            crate::image::manifest(image.registry.host(), "app", "soci")?,
        ),
        ("containerd.io/snapshot/cri.layer-digest", layer.digest.to_string()),
    ];
    Ok(Asked { key: format!("default/{number}/extract"), labels })
}

impl Asked {
    fn request(&self) -> PrepareSnapshotRequest {
        let labels = self.labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        PrepareSnapshotRequest { key: self.key.clone(), labels, ..Default::default() }
    }

    fn answer(&self, stage: &Stage) -> Code {
        code(stage.runtime().block_on(stage.client().prepare(self.request())))
    }
}

#[test]
fn containerd_a_client_that_goes_away_spoils_nothing_for_others() -> Result<()> {
    let lab = Lab::new("gone")?;
    let tar = Tar::new([Entry::file("file", noise(22, 300_000))]);
    let image = stage(&lab, vec![Layer::gzip(&tar.bytes())], SMALL)?;
    let (first, second) = (asked(&image, 1)?, asked(&image, 2)?);
    let (daemon, _containerd) = with_containerd(&lab, NO_FILL)?;
    let stage = Stage::of(lab, daemon)?;
    image.link.stall();
    let (mut client, request) = (stage.client(), first.request());
    let going = stage.runtime().spawn(async move { client.prepare(request).await });
    // It is under way: its folder is there, and its image is being looked for.
    wait_until("the first one", LOG_LIMIT, || Ok((folders(&stage.daemon)?.len() == 1).then_some(())))?;
    going.abort();
    let (mut client, request) = (stage.client(), second.request());
    let waiting = stage.runtime().spawn(async move { client.prepare(request).await });
    wait_until("the second one", LOG_LIMIT, || Ok((folders(&stage.daemon)?.len() == 2).then_some(())))?;
    image.link.restore();
    let answer = stage.runtime().block_on(waiting)?;
    ensure!(code(answer) == Code::AlreadyExists, "{:?}", stage.daemon.logs());
    // What was begun for the one that went is finished, too.
    wait_until("the first one's layer", LOG_LIMIT, || {
        Ok((stage.names(&["kind==committed"])?.len() == 2).then_some(()))
    })?;
    ensure!(reasons(&stage.daemon).is_empty(), "{:?}", reasons(&stage.daemon));
    let found = image.link.exchanges().into_iter().filter(|one| one.path.contains("/manifests/")).count();
    ensure!(found <= 2, "one lookup for both: {:?}", image.link.exchanges());
    Ok(())
}

#[test]
fn containerd_what_was_not_found_is_looked_for_again_in_seconds() -> Result<()> {
    let lab = Lab::new("again")?;
    let tar = Tar::new([Entry::file("file", noise(23, 300_000))]);
    let image = stage(&lab, vec![Layer::gzip(&tar.bytes())], SMALL)?;
    let (daemon, _containerd) = with_containerd(&lab, NO_FILL)?;
    let first = asked(&image, 1)?;
    let stage = Stage::of(lab, daemon)?;
    image.link.cut();
    ensure!(first.answer(&stage) == Code::Ok, "it is left");
    ensure!(reasons(&stage.daemon) == ["unreachable"], "{:?}", reasons(&stage.daemon));
    image.link.restore();
    let mut number = 1;
    wait_until("another look", Duration::from_secs(30), || {
        number += 1;
        let again = Asked { key: format!("default/{number}/extract"), labels: first.labels.clone() };
        Ok((again.answer(&stage) == Code::AlreadyExists).then_some(()))
    })
}
