//! `cargo xtask fuzz`: the fuzz targets of `ztoc/fuzz`, built with AddressSanitizer and the coverage that libFuzzer
//! steers by, and run for some seconds each. It needs no cargo-fuzz: the flags are the same.
//!
//! The sanitizer is not a stable feature. The compiler is a nightly one if one works, else the usual one told to accept
//! such features. A machine where neither makes a program that runs has its run skipped, and says so.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use xtask::machine;

/// In the order of their running.
pub(crate) const TARGETS: &[&str] =
    &["ztoc", "gzip_zinfo", "tar_zinfo", "tar_toc", "gzip_checkpoints", "index_json"];

/// Long enough to run through the seeds and some ten thousand changes of them.
const SECONDS: u32 = 5;

/// What cargo-fuzz passes: coverage of edges, counted in place, with what is compared.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Zsanitizer=address",
    "--cfg=fuzzing",
];

/// Inputs hold whole tars of some members; no target needs more memory or time for one than this.
const LIMITS: &[&str] = &["-max_len=8192", "-len_control=0", "-rss_limit_mb=2048", "-timeout=20"];

/// The chore's arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    targets: Vec<&'static str>,
    seconds: u32,
}

impl Asked {
    /// Every target, for a short while.
    pub(crate) fn smoke() -> Asked {
        Asked { targets: TARGETS.to_vec(), seconds: SECONDS }
    }

    pub(crate) fn parse(words: &[&str]) -> Result<Asked> {
        let mut asked = Asked::smoke();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if *word == "--seconds" {
                let number = words.next().and_then(|number| number.parse().ok());
                asked.seconds = number.context("--seconds takes a number")?;
            } else if asked.targets.len() > 1 {
                let target = TARGETS.iter().find(|target| *target == word);
                let target = target.with_context(|| format!("targets are {}", TARGETS.join(", ")))?;
                asked.targets = vec![target];
            } else {
                bail!("one target, not also {word}");
            }
        }
        Ok(asked)
    }
}

/// What became of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: u64,
    /// One line for each target with a finding.
    pub(crate) findings: Vec<String>,
    /// Why nothing was run.
    pub(crate) skipped: Option<String>,
}

/// A compiler that knows the sanitizer.
struct Toolchain {
    name: &'static str,
    /// In front of `cargo` or `rustc`.
    through: &'static [&'static str],
    bootstrap: bool,
}

const TOOLCHAINS: &[Toolchain] = &[
    Toolchain { name: "nightly", through: &["rustup", "run", "nightly"], bootstrap: false },
    Toolchain { name: "the usual one", through: &[], bootstrap: true },
];

pub(crate) fn run(asked: &Asked) -> Result<ExitCode> {
    let outcome = fuzz(asked)?;
    for line in &outcome.findings {
        eprintln!("{line}");
    }
    Ok(if outcome.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds all targets and runs those asked for.
pub(crate) fn fuzz(asked: &Asked) -> Result<Outcome> {
    let folder = machine::target_dir()?.join("fuzz");
    fs::create_dir_all(&folder)?;
    // libFuzzer itself is C++
    if !Command::new("c++").arg("--version").output().is_ok_and(|said| said.status.success()) {
        machine::ensure_debian(&["g++"])?;
    }
    let Some((toolchain, host)) = TOOLCHAINS.iter().find_map(|toolchain| toolchain.probe(&folder)) else {
        let reason = "no compiler here makes a program with AddressSanitizer that runs";
        println!("SKIPPED: fuzz: {reason}");
        return Ok(Outcome { skipped: Some(reason.to_owned()), ..Outcome::default() });
    };
    println!("compiler: {}", toolchain.name);
    toolchain.build(&folder, &host)?;
    let mut outcome = Outcome::default();
    for target in &asked.targets {
        match one(&folder, &host, target, asked.seconds)? {
            None => outcome.passed += 1,
            Some(finding) => outcome.findings.push(finding),
        }
    }
    Ok(outcome)
}

impl Toolchain {
    fn command(&self, program: &str) -> Command {
        let words: Vec<&str> = self.through.iter().copied().chain([program]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(machine::root());
        for inherited in ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"] {
            command.env_remove(inherited);
        }
        if self.bootstrap {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// Makes and runs a program that does nothing; gives the host's triple if that works.
    fn probe(&self, folder: &Path) -> Option<(&Toolchain, String)> {
        let about = self.command("rustc").arg("-vV").output().ok()?;
        let about = String::from_utf8_lossy(&about.stdout).into_owned();
        let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let (host, release) = (field("host: ")?, field("release: ")?);
        if minor(&release)? < minor(env!("CARGO_PKG_RUST_VERSION"))? {
            println!("compiler: {} is too old: {release}", self.name);
            return None;
        }
        let program = folder.join("probe");
        let mut compile = self.command("rustc");
        compile.args(["-", "--crate-name=probe", "--target", &host, "-o"]).arg(&program).args(FLAGS);
        compile.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = compile.spawn().ok()?;
        child.stdin.take()?.write_all(b"fn main() {}").ok()?;
        let works = child.wait().ok()?.success()
            && Command::new(&program).stderr(Stdio::null()).status().ok()?.success();
        works.then_some((self, host))
    }

    /// In a folder of its own, so that these flags and the workspace's do not undo each other's work.
    fn build(&self, folder: &Path, host: &str) -> Result<()> {
        let mut build = self.command("cargo");
        build.args(["build", "--release", "--bins", "--quiet", "--target", host]);
        build.args(["--manifest-path", "ztoc/fuzz/Cargo.toml", "--target-dir"]).arg(folder);
        build.env("RUSTFLAGS", FLAGS.join(" "));
        let status = build.status().context("run cargo")?;
        ensure!(status.success(), "build the fuzz targets: {status}");
        Ok(())
    }
}

/// Runs one target; gives a line about what was found, if anything was.
fn one(folder: &Path, host: &str, target: &str, seconds: u32) -> Result<Option<String>> {
    let program = folder.join(host).join("release").join(target);
    let findings = folder.join("findings");
    // what earlier runs kept; a short run begins with the seeds alone
    let corpus = folder.join("corpus").join(target);
    fs::create_dir_all(&findings)?;
    fs::create_dir_all(&corpus)?;
    let log = folder.join(format!("{target}.log"));
    let mut command = Command::new(&program);
    command.args(LIMITS).arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/{target}-", findings.display()));
    if seconds > SECONDS {
        command.arg(&corpus);
    }
    let said = File::create(&log).context("write the log")?;
    let status = command.stdout(said.try_clone()?).stderr(said).status();
    let status = status.with_context(|| format!("run {}", program.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    println!("{target}: {}", Summary::of(&text));
    if status.success() {
        return Ok(None);
    }
    let (found, why) = (reproducer(&text), reason(&text));
    let found = found.map_or_else(
        || format!("no input, see {}", log.display()),
        |path| {
            format!("run {} {} ({} has the whole story)", program.display(), path.display(), log.display())
        },
    );
    Ok(Some(format!("FINDING: {target}: {why}; {found}")))
}

/// What libFuzzer says of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    runs: u64,
    edges: u64,
    features: u64,
}

impl Summary {
    fn of(text: &str) -> Summary {
        let mut summary = Summary::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
                summary.runs = runs.trim().parse().unwrap_or_default();
            } else if line.starts_with('#') {
                let mut number = |name| words.find(|word| *word == name).and(words.next())?.parse().ok();
                let (edges, features) = (number("cov:"), number("ft:"));
                summary.edges = edges.unwrap_or(summary.edges);
                summary.features = features.unwrap_or(summary.features);
            }
        }
        summary
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} runs, {} edges, {} features", self.runs, self.edges, self.features)
    }
}

/// The last input that was written: slow ones, which are no findings, come before it.
fn reproducer(text: &str) -> Option<PathBuf> {
    let mut written = text.lines().filter_map(|line| line.split("Test unit written to ").nth(1));
    written.next_back().map(PathBuf::from)
}

/// The first line that says what went wrong.
fn reason(text: &str) -> String {
    let mut lines = text.lines();
    let telling = lines.by_ref().find(|line| line.contains("panicked at") || line.contains("ERROR: "));
    let more = lines.next().unwrap_or_default();
    format!("{} {more}", telling.unwrap_or("it ended without a word"))
}

/// `95` of `1.95.0-nightly`.
fn minor(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        assert_eq!(Asked::parse(&[]).unwrap(), Asked::smoke());
        let one = Asked { targets: vec!["tar_toc"], seconds: 600 };
        assert_eq!(Asked::parse(&["tar_toc", "--seconds", "600"]).unwrap(), one);
        assert_eq!(Asked::parse(&["--seconds", "600", "tar_toc"]).unwrap(), one);
        for bad in [&["nothing"][..], &["ztoc", "tar_toc"], &["--seconds"], &["--seconds", "x"]] {
            Asked::parse(bad).unwrap_err();
        }
    }

    /// Every target of the fuzz crate is run, and nothing else.
    #[test]
    fn targets_are_those_of_the_crate() {
        let folder = fs::read_dir(machine::root().join("ztoc/fuzz/fuzz_targets")).unwrap();
        let mut files: Vec<_> = folder.map(|file| file.unwrap().path()).collect();
        files.sort();
        let names: Vec<_> = files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect();
        let mut listed = TARGETS.to_vec();
        listed.sort_unstable();
        assert_eq!(names, listed);
    }

    #[test]
    fn what_a_run_said() {
        let text = "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb\n\
                    #11954\tDONE   cov: 3080 ft: 9451 corp: 282/958Kb lim: 8192 exec/s: 1086 rss: 425Mb\n\
                    stat::number_of_executed_units: 11954\n";
        assert_eq!(Summary::of(text), Summary { runs: 11954, edges: 3080, features: 9451 });
        let text = "artifact_prefix='a/'; Test unit written to a/slow-unit-1\n\
                    thread '<unnamed>' panicked at src/lib.rs:1:2:\nboom\n\
                    artifact_prefix='a/'; Test unit written to a/crash-1\n";
        assert_eq!(reproducer(text), Some(PathBuf::from("a/crash-1")));
        assert_eq!(reason(text), "thread '<unnamed>' panicked at src/lib.rs:1:2: boom");
        assert_eq!((minor("1.95"), minor("1.97.0-nightly"), minor("x")), (Some(95), Some(97), None));
    }
}
