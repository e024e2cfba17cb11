//! The real binary: what it prints, where, and the code it ends with.

// In a test an unwrap is an assertion; clippy sees that only in plain `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod convert;
mod places;
mod usage;

use std::process::{Command, Output};

/// Runs `soci`; no configuration, proxy or credentials of the user play a part.
fn soci(args: &[&str]) -> Told {
    let output = Command::new(env!("CARGO_BIN_EXE_soci"))
        .args(args)
        .env_clear()
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    Told::from(output)
}

struct Told {
    code: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Told {
    fn from(output: Output) -> Told {
        Told {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
