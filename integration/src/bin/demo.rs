//! What `cargo xtask demo` runs: a real image in a real registry, pulled and run by a real containerd, once in full with
//! overlayfs and once lazily with ours, over the same measured line. Each side has a lab, a containerd and a line
//! of its own; nothing of the machine's is used or changed but the packages that were missing.

#![allow(clippy::print_stdout, clippy::print_stderr)] // it talks to a person

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use integration::containerd::Containerd;
use integration::daemon::{self, Daemon};
use integration::images::{Image, debian_python_image, push_image};
use integration::lab::Lab;
use integration::link::{Link, Speed};
use integration::machine::{self, Binaries, Profile};
use integration::registry::Registry;
use integration::steps::Steps;

const PARTS: &[&str] = &["containerd", "runc", "docker-registry", "fuse3", "tar", "gzip"];
const PROGRAM: &[&str] =
    &["python3", "-c", "import json, platform; print('hello from Python', platform.python_version())"];
/// A registry in the same region: 400 Mbit/s, 10 ms.
const REGISTRY_LINE: Speed =
    Speed { bytes_per_second: Some(50_000_000), round_trip: Duration::from_millis(10) };

/// Nothing is fetched in the background: what goes over the wire is what the program needed.
const NO_FILL: &str = "[fill]\nenable = false\n";

/// What lies between containerd and the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Registry,
    Fast,
}

/// One side of the comparison.
struct Run {
    pull: Duration,
    run: Duration,
    bytes: u64,
    said: String,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let line = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(Line::Registry),
        ["--fast"] => Ok(Line::Fast),
        _ => Err(anyhow!("no such arguments: {}", words.join(" "))),
    };
    line.and_then(run).unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(line: Line) -> Result<ExitCode> {
    let mut steps = Steps::default();
    steps.need("parts", || machine::ensure_debian(PARTS))?;
    let binaries = steps.need("build soci and the daemon", || machine::build(Profile::Release))?;
    let image = steps.need("make the image", || debian_python_image(&machine::fixtures()?))?;
    let lab = Lab::new("demo")?;
    let registry = steps.need("start a registry", || Registry::start(&lab))?;
    let host = registry.host();
    steps.need("push the image", || push_image(host, "python:plain", &image))?;
    steps.need("convert it, registry to registry", || convert(&lab, &binaries, host))?;
    let full = steps.need("pull in full and run", || full(host, line))?;
    let (lazy, prepared) = steps.need("pull lazily and run", || lazy(&binaries, host, line))?;
    ensure!(full.said == lazy.said, "the program said {:?}, and {:?} when lazy", full.said, lazy.said);
    print_table(&image, &full, &lazy, line);
    let shown = prepared.iter().filter(|&&lazy| lazy).count();
    println!("layers that were not downloaded before the start: {shown} of {}", image.layers.len());
    println!("the program said: {}", lazy.said.trim_end());
    lab.close()?;
    Ok(ExitCode::SUCCESS)
}

fn convert(lab: &Lab, binaries: &Binaries, host: &str) -> Result<()> {
    let (from, to) = (format!("docker://{host}/python:plain"), format!("docker://{host}/python:soci"));
    let said = daemon::soci(lab, binaries, &["convert", &from, &to])?;
    println!("soci convert {from} {to}\n{}", said.trim_end());
    Ok(())
}

/// As containerd does it by itself.
fn full(host: &str, line: Line) -> Result<Run> {
    let lab = Lab::new("full")?;
    let link = link(&lab, host, line)?;
    let containerd = Containerd::start(&lab)?;
    let reference = format!("{}/python:soci", link.host());
    let pull = || containerd.pull(&reference, "overlayfs");
    let measured = measure(&link, pull, || containerd.run(&reference, "overlayfs", "demo", PROGRAM))?;
    lab.close()?;
    Ok(measured)
}

/// As it goes with ours; and for each layer, whether it was shown without being downloaded.
fn lazy(binaries: &Binaries, host: &str, line: Line) -> Result<(Run, Vec<bool>)> {
    let lab = Lab::new("lazy")?;
    let link = link(&lab, host, line)?;
    let configuration = format!("{}{NO_FILL}", Daemon::configuration(&lab));
    let daemon = Daemon::start_from(&lab, &configuration, binaries.clone())?;
    let containerd = Containerd::start_with_soci(&lab, &daemon.address())?;
    let reference = format!("{}/python:soci", link.host());
    let pull = || daemon::pull(&lab, binaries, &containerd, &reference).map(|_| ());
    let measured = measure(&link, pull, || containerd.run(&reference, "soci", "demo", PROGRAM))?;
    let prepared = daemon.prepared();
    lab.close().context("stop what the demo started")?;
    Ok((measured, prepared))
}

fn link(lab: &Lab, host: &str, line: Line) -> Result<Link> {
    match line {
        Line::Registry => Link::with_speed(lab, host, REGISTRY_LINE),
        Line::Fast => Link::new(lab, host),
    }
}

fn measure(
    link: &Link,
    pull: impl FnOnce() -> Result<()>,
    run: impl FnOnce() -> Result<String>,
) -> Result<Run> {
    let start = Instant::now();
    pull().context("pull")?;
    let pulled = start.elapsed();
    let said = run().context("run")?;
    let traffic = link.traffic();
    let bytes = traffic.up + traffic.down;
    Ok(Run { pull: pulled, run: start.elapsed() - pulled, bytes, said })
}

fn print_table(image: &Image, full: &Run, lazy: &Run, line: Line) {
    let size: usize = image.layers.iter().map(|layer| layer.bytes.len()).sum();
    let line = match line {
        Line::Registry => "400 Mbit/s and 10 ms",
        Line::Fast => "as fast as it goes",
    };
    println!("\nan image of {} in {} layers, line: {line}\n", megabytes(size as u64), image.layers.len());
    println!("{:28} {:>12} {:>12}", "", "lazy", "full");
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    for (what, lazy, full) in [
        ("pull", seconds(lazy.pull), seconds(full.pull)),
        ("run", seconds(lazy.run), seconds(full.run)),
        ("pull and run", seconds(lazy.pull + lazy.run), seconds(full.pull + full.run)),
        ("over the wire until then", megabytes(lazy.bytes), megabytes(full.bytes)),
    ] {
        println!("{what:28} {lazy:>12} {full:>12}");
    }
    println!();
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
