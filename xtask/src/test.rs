//! `cargo xtask test`: everything that CI runs. Its last line is the sum over all test programs, tests that said
//! [`xtask::machine::skip`] not counted as passed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use xtask::machine::{self, BINARIES, HARD_PARTS, LONG, SKIPPED_LOG};
use xtask::steps::Steps;

use crate::{fuzz, tidy};

/// Most tests of the whole wait for processes of theirs most of the time, so there are more than a small machine has cores;
/// each runs a containerd, a registry and a daemon.
const TEST_THREADS: &str = "3";

/// The chore's arguments.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    length: Length,
    filter: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Length {
    #[default]
    Usual,
    Long,
}

/// What the test programs said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Asked {
    pub(crate) fn parse(words: &[&str]) -> Result<Asked> {
        let mut asked = Asked::default();
        for word in words {
            match *word {
                "--long" => asked.length = Length::Long,
                flag if flag.starts_with('-') => bail!("no such flag: {flag}"),
                filter if asked.filter.is_none() => asked.filter = Some(filter.to_owned()),
                more => bail!("one filter, not also {more}"),
            }
        }
        Ok(asked)
    }
}

pub(crate) fn run(asked: &Asked) -> Result<ExitCode> {
    let mut steps = Steps::default();
    steps.need("parts", || machine::ensure_debian(HARD_PARTS))?;
    if asked.filter.is_none() {
        steps.check("format", || {
            call(cargo(&["fmt", "--all", "--check"]))?;
            call(cargo(&["fmt", "--manifest-path", "ztoc/fuzz/Cargo.toml", "--check"]))
        });
        steps.check("tidy", tidy::check);
        let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
        steps.check("clippy", || call(cargo(&clippy)));
        let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
        docs.env("RUSTDOCFLAGS", "-D warnings");
        steps.check("docs", || call(docs));
    }
    // Programs and tests in one call: dependencies are built once, with one set of features.
    steps
        .need("build", || call(cargo(&["build", "--workspace", "--bins", "--lib", "--tests", "--quiet"])))?;
    let skipped_log = machine::target_dir()?.join("skipped.log");
    let mut sum = Sum::default();
    steps.check("tests", || tests(asked, &skipped_log, &mut sum));
    if asked.filter.is_none() {
        steps.check("fuzz", || fuzz_targets(&skipped_log, &mut sum));
    }
    Ok(summary(&steps, &sum, &skipped_log))
}

fn tests(asked: &Asked, skipped_log: &PathBuf, sum: &mut Sum) -> Result<()> {
    if skipped_log.exists() {
        fs::remove_file(skipped_log)?;
    }
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    if let Some(filter) = &asked.filter {
        command.args(["--", filter]);
    }
    command.env(SKIPPED_LOG, skipped_log).env("RUST_TEST_THREADS", TEST_THREADS);
    command.env(BINARIES, machine::target_dir()?.join("debug"));
    if asked.length == Length::Long {
        command.env(LONG, "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("run cargo")?;
    let said = child.stdout.take().context("read what the tests say")?;
    for line in BufReader::new(said).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        sum.add(&line);
    }
    let status = child.wait()?;
    if !status.success() {
        // A program that died has no closing line.
        sum.failed = sum.failed.max(1);
        bail!("cargo test: {status}");
    }
    Ok(())
}

/// Each target counts as a test.
fn fuzz_targets(skipped_log: &PathBuf, sum: &mut Sum) -> Result<()> {
    let outcome = fuzz::fuzz(&fuzz::Asked::smoke()).inspect_err(|_| sum.failed += 1)?;
    sum.passed += outcome.passed;
    sum.failed += outcome.findings.len() as u64;
    if let Some(reason) = outcome.skipped {
        // like a test that says so: it is taken off again in the end
        sum.passed += 1;
        let mut log = File::options().create(true).append(true).open(skipped_log)?;
        writeln!(log, "SKIPPED: fuzz: {reason}")?;
    }
    ensure!(outcome.findings.is_empty(), "{}", outcome.findings.join("\n"));
    Ok(())
}

fn summary(steps: &Steps, sum: &Sum, skipped_log: &PathBuf) -> ExitCode {
    let log = fs::read_to_string(skipped_log).unwrap_or_default();
    let skipped = log.lines().count() as u64;
    println!("\n{}\n{log}", steps.table());
    let failed = steps.failed();
    if !failed.is_empty() {
        println!("FAILED: {}", failed.join(", "));
    }
    let passed = sum.passed.saturating_sub(skipped);
    println!("{passed} passed, {} failed, {} skipped", sum.failed, sum.ignored + skipped);
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Sum {
    /// `test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s`
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let rest = rest.split_once(". ").map_or(rest, |(_, counts)| counts);
        for count in rest.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

pub(crate) fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(machine::root());
    command
}

fn call(mut command: Command) -> Result<()> {
    let status = command.status().context("run cargo")?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Sum;

    #[test]
    fn closing_lines_are_summed() {
        let mut sum = Sum::default();
        for line in [
            "test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1s",
            "test result_is_ok ... ok",
        ] {
            sum.add(line);
        }
        assert_eq!(sum, Sum { passed: 6, failed: 3, ignored: 2 });
    }
}
