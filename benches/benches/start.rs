//! From nothing to a program's answer: pull and run, over a slow line, through three snapshotters: containerd's
//! own overlayfs, the Go daemon where its binary is given, and ours. `cargo bench -p benches --bench start --
//! [IMAGE…|all] [--line MBIT,MS]… [--rounds N] [--peer FOLDER] [--ours]`. Images are made of Debian's packages, which takes
//! minutes and up to 2 GB the first time: without a name it is the smallest. `--peer` names a folder with the Go daemon
//! (0.15: our indexes have its digests, so it runs on the same image); `--ours` leaves the others out.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use benches::{
    MIN_LAYER_SIZE, keep,
    stage::{INDEXED, Stage},
    workloads::{WORKLOADS, Workload},
};
use integration::{
    daemon::Daemon,
    lab::Lab,
    link::{Link, Speed},
    machine,
    process::processor_time,
};
use serde_json::json;

/// A snapshotter to be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Overlayfs,
    Go,
    Ours,
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

struct Options {
    images: Vec<String>,
    lines: Vec<(u64, u64)>,
    rounds: u32,
    peer: Option<PathBuf>,
    ours_only: bool,
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
    let mut options =
        Options { images: Vec::new(), lines: Vec::new(), rounds: 3, peer: None, ours_only: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            // what cargo itself adds
            "--bench" => {}
            "--rounds" => options.rounds = value()?.parse()?,
            "--peer" => options.peer = Some(value()?.into()),
            "--ours" => options.ours_only = true,
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
        let mut rows = Vec::new();
        for &line in &self.options.lines {
            let mut sides = vec![Side::Overlayfs, Side::Ours];
            if self.options.peer.is_some() {
                sides.insert(1, Side::Go);
            }
            if self.options.ours_only {
                sides = vec![Side::Ours];
            }
            let mut best: Vec<Option<Start>> = vec![None; sides.len()];
            for _ in 0..self.options.rounds {
                for (side, best) in sides.iter().zip(&mut best) {
                    let start = self.start(*side, registry.host(), line, workload.program)?;
                    if best.is_none_or(|best| start.whole() < best.whole()) {
                        *best = Some(start);
                    }
                }
            }
            let best: Vec<(Side, Start)> = sides.iter().copied().zip(best.into_iter().flatten()).collect();
            tell(workload, size, line, &best);
            rows.push(row(name, size, line, &best));
        }
        lab.close()?;
        Ok(rows)
    }

    fn start(&self, side: Side, host: &str, (rate, trip): (u64, u64), program: &[&str]) -> Result<Start> {
        let lab = Lab::new("start")?;
        let speed =
            Speed { bytes_per_second: Some(rate * 1_000_000 / 8), round_trip: Duration::from_millis(trip) };
        let link = Link::with_speed(&lab, host, speed)?;
        let reference = format!("{}/{INDEXED}", link.host());
        let (containerd, daemon) = match side {
            Side::Overlayfs => (self.stage.containerd(&lab, Vec::new())?, None),
            Side::Go => {
                let (socket, pid) = self.go(&lab)?;
                (self.stage.containerd(&lab, vec![("soci".to_owned(), socket)])?, Some(pid))
            }
            Side::Ours => {
                let (daemon, containerd) = self.stage.ours(&lab, "")?;
                (containerd, Some(daemon.pid()))
            }
        };
        let begin = Instant::now();
        let snapshotter = if side == Side::Overlayfs {
            containerd.pull(&reference, "overlayfs")?;
            "overlayfs"
        } else {
            self.stage.pull(&lab, &containerd, link.host())?;
            "soci"
        };
        let pull = begin.elapsed();
        let said = containerd.run(&reference, snapshotter, "app", program).context("run")?;
        let run = begin.elapsed() - pull;
        let traffic = link.traffic();
        drop(said);
        if side != Side::Overlayfs {
            ensure!(traffic.down > 0, "nothing came over the line");
        }
        let processor = daemon.map(processor_time).transpose()?;
        lab.close().context("stop what was started")?;
        Ok(Start { pull, run, bytes: traffic.up + traffic.down, processor })
    }

    /// The Go daemon in a lab: its socket and its pid.
    fn go(&self, lab: &Lab) -> Result<(PathBuf, u32)> {
        let folder = self.options.peer.as_deref().unwrap_or(Path::new(""));
        let socket = lab.folder("go")?.join("s.sock");
        fs::write(lab.path().join("go/config.toml"), Daemon::configuration(lab))?;
        let mut command = lab.command(folder.join("soci-snapshotter-grpc"));
        command.arg("--address").arg(&socket).arg("--root").arg(lab.path().join("go/root"));
        command.arg("--config").arg(lab.path().join("go/config.toml"));
        let process = lab.start("go", command)?;
        process.wait_until("the Go daemon", Duration::from_secs(30), || Ok(socket.exists().then_some(())))?;
        Ok((socket, process.pid()))
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn tell(workload: &Workload, size: usize, (rate, trip): (u64, u64), starts: &[(Side, Start)]) {
    let name = workload.recipe.name;
    let mut text = format!("\n{name}, {:.0} MB, {rate} Mbit/s and {trip} ms\n", size as f64 / 1e6);
    let of =
        |side| starts.iter().find(|(found, _)| *found == side).map(|(_, start)| start.whole().as_secs_f64());
    for (side, start) in starts {
        let (pull, run, whole) = (seconds(start.pull), seconds(start.run), seconds(start.whole()));
        let bytes = start.bytes as f64 / 1e6;
        let processor = start.processor.map(|time| format!("  daemon's processor time {}", seconds(time)));
        let processor = processor.unwrap_or_default();
        let _ = writeln!(
            text,
            "  {side:10?} pull {pull:>8}  run {run:>8}  both {whole:>8}  {bytes:7.1} MB{processor}"
        );
    }
    if let (Some(ours), Some(full)) = (of(Side::Ours), of(Side::Overlayfs)) {
        let _ = writeln!(
            text,
            "  ours / overlayfs {:.2} (bar {:.2} at 1000 Mbit/s and 20 ms)",
            ours / full,
            workload.bar
        );
    }
    if let (Some(ours), Some(go)) = (of(Side::Ours), of(Side::Go)) {
        let _ = writeln!(text, "  ours / Go {:.2} (bar 0.50)", ours / go);
    }
    machine::say(&text);
}

fn row(name: &str, size: usize, (rate, trip): (u64, u64), starts: &[(Side, Start)]) -> serde_json::Value {
    let sides: serde_json::Map<_, _> = starts
        .iter()
        .map(|(side, start)| {
            let (pull, run) = (start.pull.as_secs_f64(), start.run.as_secs_f64());
            (format!("{side:?}").to_lowercase(), json!({"pull_s": pull, "run_s": run, "bytes": start.bytes}))
        })
        .collect();
    json!({"image": name, "bytes": size, "mbit_per_s": rate, "round_trip_ms": trip, "starts": sides})
}
