//! The chores of this repository: `cargo xtask CHORE`. Each is one file here; what they start lives in the
//! harness's labs, and goes with them.
#![allow(clippy::print_stdout, clippy::print_stderr)] // the one program here that only talks to a person

mod test;
mod fuzz;
mod tidy;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// Name, arguments, what it does.
const CHORES: &[(&str, &str, &str)] = &[
    (
        "test",
        "[--long] [FILTER]",
        "what CI runs: format, clippy, docs, all tests; with a filter, those tests only",
    ),
    (
        "demo",
        "[--fast]",
        "pull and run a real image, lazily and in full, on a line like a registry's (--fast: on any)",
    ),
    (
        "fuzz",
        "[TARGET] [--seconds N]",
        "build the fuzz targets with AddressSanitizer and run them, 5 seconds each if nothing is said",
    ),
    ("tidy", "", "the rules of the house, without building anything"),
    ("map", "", "the modules of each crate, and what each imports, as ARCHITECTURE.md shows them"),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<ExitCode> {
    match words {
        ["test", rest @ ..] => test::run(&test::Asked::parse(rest)?),
        ["demo", rest @ ..] => demo(rest),
        ["fuzz", rest @ ..] => fuzz::run(&fuzz::Asked::parse(rest)?),
        ["tidy"] => tidy::run(),
        ["map"] => tidy::map(),
        [] | ["help" | "--help" | "-h", ..] => {
            println!("{}", usage());
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("no such chore: {}\n{}", words.join(" "), usage()),
    }
}

/// A program of the harness's: this one is small, to be there at once.
fn demo(words: &[&str]) -> Result<ExitCode> {
    let mut run = test::cargo(&["run", "--quiet", "--package", "integration", "--bin", "demo", "--"]);
    let status = run.args(words).status().context("run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn usage() -> String {
    let rows = CHORES.iter().map(|(name, arguments, what)| {
        let call = format!("{name} {arguments}");
        format!("  cargo xtask {call:28} {what}")
    });
    ["usage:".to_owned()].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}
