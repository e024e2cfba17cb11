//! Names and files of a real image that is wholly local and warm, through an overlay over our layers, against an
//! overlay over the same image unpacked on the disk: what containerd mounts for a container in either case.
//! `cargo bench -p benches --bench warm -- [IMAGE…] [--rounds N]`; IMAGE is one of `start`'s, without one it is the
//! harness's own of five layers. Bar: 1.3. Real `find`, `ls` and `cat`, in processes of their own; each side is walked
//! and read once before anything is measured, and nothing may come over the line afterwards.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use benches::{
    keep, median_of,
    stage::{INDEXED, NO_FILL, PLAIN, Stage},
    workloads::Workload,
};
use integration::{
    images::{Image, debian_python_image},
    lab::Lab,
    link::Link,
    machine::{self, fixtures},
    process::{output, run_timed},
    reference::{self, Unpacked},
};
use serde_json::{Value, json};

const BAR: f64 = 1.3;
const LIMIT: Duration = Duration::from_secs(120);
/// A file below this is small, one above that large.
const SMALL: u64 = 64 << 10;
const LARGE: u64 = 1 << 20;

/// What is done to a tree, and how many times as long the Go daemon 0.15 took for it as overlayfs when the bars
/// were set.
struct Job {
    what: &'static str,
    go: f64,
    words: Vec<String>,
}

fn main() -> Result<()> {
    let (images, rounds) = options()?;
    let stage = Stage::new()?;
    let mut rows = Vec::new();
    for (name, image) in images {
        rows.extend(measure(&stage, &name, &image()?, rounds).with_context(|| format!("measure {name}"))?);
    }
    keep("warm", &rows)
}

type Made = Box<dyn FnOnce() -> Result<Image>>;

fn options() -> Result<(Vec<(String, Made)>, u32)> {
    let mut images: Vec<(String, Made)> = Vec::new();
    let mut rounds = 9;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // what cargo itself adds
            "--bench" => {}
            "--rounds" => rounds = words.next().context("--rounds wants a number")?.parse()?,
            name => match Workload::named(name) {
                Some(workload) => images.push((name.to_owned(), Box::new(|| workload.image()))),
                None => bail!("{name} is neither an option nor an image"),
            },
        }
    }
    if images.is_empty() {
        images.push(("python".to_owned(), Box::new(|| debian_python_image(&fixtures()?))));
    }
    Ok((images, rounds))
}

fn measure(stage: &Stage, name: &str, image: &Image, rounds: u32) -> Result<Vec<Value>> {
    let lab = Lab::new("warm")?;
    // Ztocs of all layers: one that is streamed whole is read in the same way, but nothing is to hang on that.
    let registry = stage.publish(&lab, image, 0)?;
    let link = Link::new(&lab, registry.host())?;
    let (_daemon, containerd) = stage.soci_daemon(&lab, NO_FILL)?;
    stage.pull(&lab, &containerd, &format!("{}/{INDEXED}", link.host()))?;
    let ours = reference::mount(&lab, &containerd, "soci")?;
    let theirs = Unpacked::image(&lab, &containerd, &format!("{}/{PLAIN}", registry.host()))?;
    let jobs = jobs(&lab, ours.path(), theirs.path())?;
    for job in &jobs {
        job.run(&lab, ours.path()).and_then(|_| job.run(&lab, theirs.path())).context(job.what)?;
    }
    link.reset();
    let mut rows = Vec::new();
    machine::say(&format!("\n{name}, {} layers, median of {rounds}", image.layers.len()));
    for job in &jobs {
        let (here, there) =
            median_of(rounds, || job.run(&lab, ours.path()), || job.run(&lab, theirs.path()))?;
        rows.push(job.tell(name, here, there));
    }
    ensure!(link.traffic().down == 0, "something was not local: {:?}", link.traffic());
    drop((ours, theirs));
    lab.close()?;
    Ok(rows)
}

/// The jobs, with the lists of files that they read: the same on both sides, which is looked at.
fn jobs(lab: &Lab, ours: &Path, theirs: &Path) -> Result<Vec<Job>> {
    let (small, smalls) = list(lab, "small", [ours, theirs], &format!("-{SMALL}c"))?;
    let (large, larges) = list(lab, "large", [ours, theirs], &format!("+{LARGE}c"))?;
    machine::say(&format!("{smalls} files below 64 KiB, {larges} above 1 MiB"));
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let read = |list: PathBuf| words(&format!("xargs -0 -a {} cat", list.display()));
    Ok(vec![
        Job { what: "find with stat", go: 5.6, words: words("find . -size +1000000k") },
        Job { what: "ls -lR", go: 12.7, words: words("ls -lR .") },
        Job { what: "read small files", go: 5.6, words: read(small) },
        Job { what: "read large files", go: 3.0, words: read(large) },
    ])
}

/// Writes the names of the regular files of that size to a file; says how many there are.
fn list(lab: &Lab, name: &str, sides: [&Path; 2], size: &str) -> Result<(PathBuf, usize)> {
    let [ours, theirs] = sides.map(|side| {
        let mut find = lab.command("find");
        find.args([".", "-type", "f", "-size", size, "-print0"]).current_dir(side);
        let found = output(find, LIMIT)?;
        ensure!(found.status.success(), "find: {}", String::from_utf8_lossy(&found.stderr));
        let mut names: Vec<Vec<u8>> =
            found.stdout.split_inclusive(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
        names.sort();
        Ok(names)
    });
    let (ours, theirs) = (ours?, theirs?);
    ensure!(ours == theirs && !ours.is_empty(), "{} and {} files: not the same", ours.len(), theirs.len());
    let path = lab.path().join(name);
    std::fs::write(&path, ours.concat())?;
    Ok((path, ours.len()))
}

impl Job {
    fn run(&self, lab: &Lab, folder: &Path) -> Result<Duration> {
        let mut command: Command = lab.command(&self.words[0]);
        command.args(&self.words[1..]).current_dir(folder);
        run_timed(command, LIMIT)
    }

    fn tell(&self, image: &str, ours: Duration, theirs: Duration) -> Value {
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        let verdict = if ratio <= BAR { "within" } else { "MISSES" };
        machine::say(&format!(
            "  {:18} ours {ours:>9.2?}  overlayfs {theirs:>9.2?}  ratio {ratio:.2}, {verdict} {BAR} (Go {:.1})",
            self.what, self.go
        ));
        json!({
            "image": image, "what": self.what, "ours_s": ours.as_secs_f64(),
            "overlayfs_s": theirs.as_secs_f64(), "ratio": ratio, "bar": BAR, "go": self.go,
        })
    }
}
