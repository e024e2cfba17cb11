//! From nothing to a program's answer: pull and run, over a slow line, through three snapshotters: containerd's
//! own overlayfs, the Go daemon where its binary is given, and ours. `cargo bench -p benches --bench start --
//! [IMAGE…|all] [--line MBIT,MS]… [--rounds N] [--peer FOLDER] [--ours] [--unindexed]`. Images are made of Debian's packages, which takes
//! minutes and up to 2 GB the first time: without a name it is the smallest. `--peer` names a folder with the Go daemon
//! (0.15: our indexes have its digests, so it runs on the same image); `--ours` leaves the others out. `--unindexed` adds
//! our own on the image without its index.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    containerd::{self, Containerd},
    daemon::{self, Daemon},
    images::{self, Recipe, debian, push_image},
    lab::Lab,
    link::{Link, Speed},
    machine::{self, Binaries, Profile},
    parts,
    registry::Registry,
};
use serde_json::json;

/// An image, what is run in it, and the bar: ours / overlayfs at 1 Gbit/s and 20 ms.
struct Workload {
    recipe: Recipe<'static>,
    program: &'static [&'static str],
    bar: f64,
}

const PYTHON3: (&str, &[&str]) = ("python", &["python3"]);
const BASE: (&str, &[&str]) = ("base", debian::BASE);

/// Packages of the image of many layers, one layer each.
const MANY: &[(&str, &[&str])] = &[
    BASE,
    ("perl", &["perl"]),
    ("openssl", &["openssl"]),
    ("curl", &["curl"]),
    ("git", &["git"]),
    ("vim", &["vim-tiny"]),
    ("less", &["less"]),
    ("tmux", &["tmux"]),
    ("jq", &["jq"]),
    ("rsync", &["rsync"]),
    ("zip", &["zip"]),
    ("unzip", &["unzip"]),
    ("xz", &["xz-utils"]),
    ("zstd", &["zstd"]),
    ("make", &["make"]),
    ("patch", &["patch"]),
    ("file", &["file"]),
    ("strace", &["strace"]),
    ("gdb", &["gdb"]),
    PYTHON3,
    ("requests", &["python3-requests"]),
    ("yaml", &["python3-yaml"]),
    ("lxml", &["python3-lxml"]),
    ("numpy", &["python3-numpy"]),
    ("sqlite", &["sqlite3"]),
    ("psql", &["postgresql-client-15"]),
    ("redis", &["redis-tools"]),
    ("node", &["nodejs"]),
    ("ruby", &["ruby"]),
    ("lua", &["lua5.4"]),
    ("tree", &["tree"]),
];

const WORKLOADS: &[Workload] = &[
    Workload {
        recipe: Recipe { name: "python3", layers: &[BASE, PYTHON3], alternatives: &[], files: &[] },
        program: &["python3", "-c", "import json, platform; print(platform.python_version())"],
        bar: 0.40,
    },
    Workload {
        recipe: Recipe {
            name: "java",
            layers: &[BASE, ("java", &["openjdk-17-jre-headless"])],
            alternatives: &[("usr/bin/java", "../lib/jvm/java-17-openjdk-amd64/bin/java")],
            files: &[],
        },
        program: &["java", "-version"],
        bar: 0.28,
    },
    Workload {
        recipe: Recipe {
            name: "node",
            layers: &[BASE, ("node", &["nodejs"])],
            alternatives: &[],
            files: &[],
        },
        program: &["node", "-e", "console.log(process.version)"],
        bar: 0.40,
    },
    Workload {
        recipe: Recipe { name: "many", layers: MANY, alternatives: &[], files: &[] },
        program: &["git", "--version"],
        bar: 0.30,
    },
    Workload {
        recipe: Recipe {
            name: "ml",
            layers: &[
                BASE,
                PYTHON3,
                ("numpy", &["python3-numpy", "libopenblas0-pthread"]),
                ("pandas", &["python3-pandas"]),
                ("sklearn", &["python3-sklearn"]),
            ],
            alternatives: debian::OPENBLAS,
            files: &[],
        },
        program: &["python3", "-c", "import numpy, pandas, sklearn.linear_model; print(pandas.__version__)"],
        bar: 0.50,
    },
    Workload {
        recipe: Recipe {
            name: "large",
            layers: &[
                BASE,
                PYTHON3,
                ("numpy", &["python3-numpy", "libopenblas0-pthread", "python3-sympy"]),
                ("fonts", &["texlive-fonts-extra", "texlive-latex-extra", "texlive-science"]),
            ],
            alternatives: debian::OPENBLAS,
            files: &[],
        },
        program: &["python3", "-c", "import numpy, sympy; print(sympy.__version__)"],
        bar: 0.12,
    },
];

/// Ticks a second in `/proc`: so on every architecture that Linux runs containers on.
const TICKS: u64 = 100;

/// A snapshotter to be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Overlayfs,
    Go,
    Ours,
    /// Ours, on the image without its index: every layer comes whole into the store.
    Whole,
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
    unindexed: bool,
}

/// What all measurements share.
struct Bench {
    options: Options,
    binaries: Binaries,
    containerd: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = options()?;
    machine::ensure_debian(&["containerd", "runc", "docker-registry", "fuse3", "tar", "gzip"])?;
    let binaries = machine::build(Profile::Release)?;
    let containerd = parts::containerd_2()
        .inspect_err(|e| machine::say(&format!("with Debian's containerd, because newer: {e:#}")))
        .ok();
    let bench = Bench { options, binaries, containerd };
    let mut rows = Vec::new();
    for workload in WORKLOADS {
        let name = workload.recipe.name;
        if bench.options.images.iter().any(|wanted| wanted == name) {
            rows.extend(bench.workload(workload).with_context(|| format!("measure {name}"))?);
        }
    }
    let path = machine::target_dir()?.join("start.json");
    fs::write(&path, serde_json::to_vec_pretty(&rows)?)?;
    machine::say(&format!("written to {}", path.display()));
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options {
        images: Vec::new(),
        lines: Vec::new(),
        rounds: 3,
        peer: None,
        ours_only: false,
        unindexed: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            // what cargo itself adds
            "--bench" => {}
            "--rounds" => options.rounds = value()?.parse()?,
            "--peer" => options.peer = Some(value()?.into()),
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
        let registry = Registry::start(&lab)?;
        let size: usize = {
            let image = images::debian_image(&machine::fixtures()?, &workload.recipe)?;
            push_image(registry.host(), "app:plain", &image)?;
            image.layers.iter().map(|layer| layer.bytes.len()).sum()
        };
        let host = registry.host();
        let (from, to) = (format!("docker://{host}/app:plain"), format!("docker://{host}/app:soci"));
        daemon::soci(&lab, &self.binaries, &["convert", &from, &to])?;
        let mut rows = Vec::new();
        for &line in &self.options.lines {
            let mut sides = vec![Side::Overlayfs, Side::Ours];
            if self.options.peer.is_some() {
                sides.insert(1, Side::Go);
            }
            if self.options.ours_only {
                sides = vec![Side::Ours];
            }
            if self.options.unindexed {
                sides.push(Side::Whole);
            }
            let mut best: Vec<Option<Start>> = vec![None; sides.len()];
            for _ in 0..self.options.rounds {
                for (side, best) in sides.iter().zip(&mut best) {
                    let start = self.start(*side, host, line, workload.program)?;
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
        let tag = if side == Side::Whole { "plain" } else { "soci" };
        let reference = format!("{}/app:{tag}", link.host());
        let daemon = match side {
            Side::Overlayfs => None,
            Side::Go => Some(self.go(&lab)?),
            Side::Ours | Side::Whole => {
                let configuration = Daemon::configuration(&lab) + "[unindexed]\nmode = \"store\"\n";
                let daemon = Daemon::start_from(&lab, &configuration, self.binaries.clone())?;
                Some((daemon.address(), daemon.pid()))
            }
        };
        let proxies = daemon.iter().map(|(socket, _)| ("soci".to_owned(), socket.clone())).collect();
        let binaries = self.containerd.clone();
        let options = containerd::Options { proxies, binaries, ..containerd::Options::default() };
        let containerd = Containerd::start_with(&lab, options)?;
        let begin = Instant::now();
        let snapshotter = if side == Side::Overlayfs {
            containerd.pull(&reference, "overlayfs")?;
            "overlayfs"
        } else {
            daemon::pull(&lab, &self.binaries, &containerd, &reference)?;
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
        let processor = daemon.map(|(_, pid)| processor_time(pid)).transpose()?;
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

/// What a process has used so far, in user and kernel mode.
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything: user and system time are the fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    Ok(Duration::from_millis(ticks.sum::<u64>() * 1000 / TICKS))
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
