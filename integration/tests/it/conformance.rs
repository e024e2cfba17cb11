//! containerd's suite for snapshotters, `core/snapshots/testsuite`, in two ways: its 21 cases ported, over our socket and
//! with real mounts made of the answers; and the original, as a Go program, where Go and its modules can be had.

mod cases;
pub(crate) mod client;
pub(crate) mod content;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::{
    lab::Lab,
    machine::{binaries, ensure_debian, skip},
    parts,
    process::output,
};

/// Of the original.
const CASES: usize = 21;
const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn fuse_containerds_own_suite_passes() -> Result<()> {
    let suite = match parts::snapshotter_suite() {
        Ok(suite) => suite,
        Err(error) => {
            skip(&format!("containerd's suite for snapshotters: {error:#}"));
            return Ok(());
        }
    };
    ensure_debian(&["fuse3"])?;
    let lab = Lab::new("suite")?;
    let mut command = lab.command(suite);
    command.arg("-test.v").env("SOCI_DAEMON", &binaries()?.daemon).env("TMPDIR", lab.folder("t")?);
    let output = output(command, LIMIT)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = || format!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let of = |word: &str| {
        said.lines().filter(|line| line.starts_with(&format!("    --- {word}: TestSuite/"))).count()
    };
    ensure!(output.status.success(), "the suite fails: {}\n{}", output.status, all());
    ensure!(of("PASS") == CASES, "{} of {CASES} cases passed\n{}", of("PASS"), all());
    ensure!(of("SKIP") + of("FAIL") == 0, "some did not\n{}", all());
    lab.close().context("the suite leaves something")
}
