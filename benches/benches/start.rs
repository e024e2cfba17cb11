//! From nothing to a program's answer: pull and run, over a slow line, through three snapshotters: containerd's
//! own overlayfs, the Go daemon, and ours. `cargo bench -p benches --bench start --
//! [IMAGE…|all] [--line MBIT,MS]… [--rounds N] [--peer FOLDER] [--ours] [--unindexed]`. Images are made of Debian's packages, which takes
//! minutes and up to 4 GB the first time: without a name it is the smallest. `--peer` names a folder with the Go daemon
//! 0.15 (our indexes have its digests, so it runs on the same image); without it the Go daemon is Debian unstable's
//! 0.4.1, and left out aloud where that cannot be had. `--ours` leaves the others out, `--unindexed`
//! adds ours on the image without its index: every layer comes whole into the store.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use benches::{
    MIN_LAYER_SIZE, keep,
    peer::Peer,
    stage::{INDEXED, PLAIN, Stage},
    workloads::{WORKLOADS, Workload},
};
use integration::{
    lab::Lab,
    link::{Link, Speed},
    machine,
    process::processor_time,
};
use serde_json::json;

/// A snapshotter to be measured.
#[derive(Debug, Clone, Copy)]
enum Side<'a> {
    Overlayfs,
    Go(&'a Peer),
    Ours,
    /// Ours, of the image without its index.
    Whole,
}

impl Side<'_> {
    fn name(&self) -> &'static str {
        match self {
            Side::Overlayfs => "overlayfs",
            Side::Go(peer) => peer.name(),
            Side::Ours => "ours",
            Side::Whole => "whole",
        }
    }
}

/// What one start took.
#[derive(Debug, Clone, Copy)]
struct Start {
    pull: Duration,
    run: Duration,
    bytes: u64,
    /// Processor time of the daemon, where there is one.
    processor: Option<Duration>,
}

impl Start {
    fn whole(&self) -> Duration {
        self.pull + self.run
    }
}

#[derive(Default)]
struct Options {
    images: Vec<String>,
    lines: Vec<(u64, u64)>,
    rounds: u32,
    peer: Option<Peer>,
    ours_only: bool,
    unindexed: bool,
}

/// What all measurements share.
struct Bench {
    options: Options,
    stage: Stage,
}

fn main() -> Result<()> {
    let bench = Bench { options: options()?, stage: Stage::new()? };
    let mut rows = Vec::new();
    for workload in WORKLOADS {
        let name = workload.recipe.name;
        if bench.options.images.iter().any(|wanted| wanted == name) {
            rows.extend(bench.workload(workload).with_context(|| format!("measure {name}"))?);
        }
    }
    keep("start", &rows)
}

fn options() -> Result<Options> {
    let mut options = Options { rounds: 3, ..Options::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            // what cargo itself adds
            "--bench" => {}
            "--rounds" => options.rounds = value()?.parse()?,
            "--peer" => options.peer = Some(Peer::Given(value()?.into())),
            "--ours" => options.ours_only = true,
            "--unindexed" => options.unindexed = true,
            "--line" => {
                let value = value()?;
                let (rate, trip) = value.split_once(',').context("--line is MBIT,MS")?;
                options.lines.push((rate.parse()?, trip.parse()?));
            }
            "all" => options.images.extend(WORKLOADS.iter().map(|workload| workload.recipe.name.to_owned())),
            name if WORKLOADS.iter().any(|workload| workload.recipe.name == name) => {
                options.images.push(name.to_owned());
            }
            other => bail!("{other} is neither an option nor an image"),
        }
    }
    if options.peer.is_none() && !options.ours_only {
        options.peer = Peer::debian().inspect_err(|e| machine::skip(&format!("the Go daemon: {e:#}"))).ok();
    }
    if options.images.is_empty() {
        options.images.push(WORKLOADS[0].recipe.name.to_owned());
    }
    if options.lines.is_empty() {
        options.lines.push((1000, 20));
    }
    Ok(options)
}

impl Bench {
    fn workload(&self, workload: &Workload) -> Result<Vec<serde_json::Value>> {
        let name = workload.recipe.name;
        let lab = Lab::new("start")?;
        let (registry, size) = {
            let image = workload.image()?;
            let size: usize = image.layers.iter().map(|layer| layer.bytes.len()).sum();
            (self.stage.publish(&lab, &image, MIN_LAYER_SIZE)?, size)
        };
        let peer = self.options.peer.as_ref().filter(|_| !self.options.ours_only);
        let peer = peer.map(|peer| peer.publish(&self.stage, &lab, &registry)).transpose()?;
        let mut sides = vec![Side::Ours];
        if !self.options.ours_only {
            sides.splice(0..0, std::iter::once(Side::Overlayfs).chain(peer.as_ref().map(Side::Go)));
        }
        if self.options.unindexed {
            sides.push(Side::Whole);
        }
        let mut rows = Vec::new();
        for &line in &self.options.lines {
            let mut best: Vec<Option<Start>> = vec![None; sides.len()];
            for _ in 0..self.options.rounds {
                for (side, best) in sides.iter().zip(&mut best) {
                    let start = self.start(*side, registry.host(), line, workload.program)?;
                    if best.is_none_or(|best| start.whole() < best.whole()) {
                        *best = Some(start);
                    }
                }
            }
            let best: Vec<(Side<'_>, Start)> =
                sides.iter().copied().zip(best.into_iter().flatten()).collect();
            tell(workload, size, line, &best);
            rows.push(row(name, size, line, &best));
        }
        lab.close()?;
        Ok(rows)
    }

    fn start(&self, side: Side<'_>, host: &str, (rate, trip): (u64, u64), program: &[&str]) -> Result<Start> {
        let lab = Lab::new("start")?;
        let speed =
            Speed { bytes_per_second: Some(rate * 1_000_000 / 8), round_trip: Duration::from_millis(trip) };
        let link = Link::with_speed(&lab, host, speed)?;
        let mut reference = format!("{}/{INDEXED}", link.host());
        let mut snapshotter = "soci";
        let (containerd, daemon) = match side {
            Side::Overlayfs => {
                snapshotter = "overlayfs";
                (self.stage.containerd(&lab, Vec::new())?, None)
            }
            Side::Go(peer) => {
                reference = peer.image(link.host());
                let (socket, pid) = peer.start(&lab)?;
                (self.stage.containerd(&lab, vec![("soci".to_owned(), socket)])?, Some(pid))
            }
            Side::Ours => {
                let (daemon, containerd) = self.stage.soci_daemon(&lab, "")?;
                (containerd, Some(daemon.pid()))
            }
            Side::Whole => {
                reference = format!("{}/{PLAIN}", link.host());
                let (daemon, containerd) = self.stage.soci_daemon(&lab, "[unindexed]\nmode = \"store\"\n")?;
                (containerd, Some(daemon.pid()))
            }
        };
        let begin = Instant::now();
        match side {
            Side::Overlayfs => containerd.pull(&reference, snapshotter)?,
            Side::Go(peer) => peer.pull(&self.stage, &lab, &containerd, link.host())?,
            Side::Ours | Side::Whole => self.stage.pull(&lab, &containerd, &reference)?,
        }
        let pull = begin.elapsed();
        let said = containerd.run(&reference, snapshotter, "app", program).context("run")?;
        let run = begin.elapsed() - pull;
        let traffic = link.traffic();
        drop(said);
        if daemon.is_some() {
            ensure!(traffic.down > 0, "nothing came over the line");
        }
        let processor = daemon.map(processor_time).transpose()?;
        lab.close().context("stop what was started")?;
        Ok(Start { pull, run, bytes: traffic.up + traffic.down, processor })
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn tell(workload: &Workload, size: usize, (rate, trip): (u64, u64), starts: &[(Side<'_>, Start)]) {
    let name = workload.recipe.name;
    let mut text = format!("\n{name}, {:.0} MB, {rate} Mbit/s and {trip} ms\n", size as f64 / 1e6);
    let of = |wanted: fn(&Side<'_>) -> bool| {
        starts.iter().find(|(side, _)| wanted(side)).map(|(_, start)| start.whole().as_secs_f64())
    };
    let ours = of(|side| matches!(side, Side::Ours));
    let full = of(|side| matches!(side, Side::Overlayfs));
    let go = of(|side| matches!(side, Side::Go(_)));
    for (side, start) in starts {
        let (pull, run, whole) = (seconds(start.pull), seconds(start.run), seconds(start.whole()));
        let bytes = start.bytes as f64 / 1e6;
        let processor = start.processor.map(|time| format!("  daemon's processor time {}", seconds(time)));
        let processor = processor.unwrap_or_default();
        let _ = writeln!(
            text,
            "  {:10} pull {pull:>8}  run {run:>8}  both {whole:>8}  {bytes:7.1} MB{processor}",
            side.name()
        );
    }
    if let (Some(ours), Some(full)) = (ours, full) {
        let _ = writeln!(
            text,
            "  ours / overlayfs {:.2} (bar {:.2} at 1000 Mbit/s and 20 ms)",
            ours / full,
            workload.bar
        );
    }
    if let (Some(ours), Some(go)) = (ours, go) {
        let _ = writeln!(text, "  ours / Go {:.2} (bar 0.50)", ours / go);
    }
    machine::say(&text);
}

fn row(name: &str, size: usize, (rate, trip): (u64, u64), starts: &[(Side<'_>, Start)]) -> serde_json::Value {
    let sides: serde_json::Map<_, _> = starts
        .iter()
        .map(|(side, start)| {
            let (pull, run) = (start.pull.as_secs_f64(), start.run.as_secs_f64());
            (side.name().to_lowercase(), json!({"pull_s": pull, "run_s": run, "bytes": start.bytes}))
        })
        .collect();
    json!({"image": name, "bytes": size, "mbit_per_s": rate, "round_trip_ms": trip, "starts": sides})
}
