//! What whoever operates a daemon sees of it: its configuration, its log, its health, its status.

use std::{fs, path::Path, process::Output};

use anyhow::{Context, Result, ensure};
use integration::{lab::Lab, machine::binaries};

/// Runs the daemon's binary with `words`, to its end.
fn run(lab: &Lab, words: &[&str]) -> Result<(Output, String)> {
    let output = lab.command(&binaries()?.daemon).args(words).output().context("run the daemon")?;
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8(said).context("what it said")?;
    Ok((output, said))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a lab's path is text")
}

#[test]
fn configurations_are_looked_at() -> Result<()> {
    let lab = Lab::new("config")?;
    let file = lab.path().join("config.toml");
    let check = |words: &[&str], code: i32, expected: &str| -> Result<()> {
        let (output, said) = run(&lab, words)?;
        ensure!(output.status.code() == Some(code) && said.contains(expected), "{words:?}: {output:?}");
        Ok(())
    };
    let (output, _) = run(&lab, &["config", "default"])?;
    fs::write(&file, &output.stdout)?;
    check(&["config", "check", "--strict", path(&file)], 0, "")?;
    check(&["--config", path(&file), "config", "check", "--strict"], 0, "")?;

    fs::write(&file, "debug = true\n[http]\nmax_retries = 1\n[fetch]\nhedge = false\n")?;
    let meant = format!(
        "{}: line 3: [http] max_retries is not a key of the configuration; did you mean [http] MaxRetries?\n",
        file.display()
    );
    check(&["config", "check", path(&file)], 0, &meant)?;
    check(&["config", "check", "--strict", path(&file)], 1, "line 1: debug has no effect: ")?;
    check(&["--config", path(&file), "config", "dump"], 0, "hedge = false\n")?;
    check(&["config", "--config", path(&file), "dump"], 0, "MaxRetries = 4\n")?;

    fs::write(&file, "[fill]\nenable = 1\n")?;
    let wrong = "config.toml: line 2: fill.enable must be true or false, not 1\n";
    check(&["config", "check", path(&file)], 1, wrong)?;
    check(&["--config", path(&file), "config", "dump"], 1, wrong)?;
    check(&["config", "check", path(&lab.path().join("none"))], 1, "No such file")?;
    Ok(())
}

#[test]
fn a_daemon_that_cannot_start_says_so_in_the_format_asked_for() -> Result<()> {
    let lab = Lab::new("log-format")?;
    let missing = lab.path().join("none.toml");
    let (output, json) = run(&lab, &["--config", path(&missing)])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let line: serde_json::Value = serde_json::from_str(&json).context(json.clone())?;
    ensure!(line["level"] == "fatal" && line["msg"].as_str().is_some_and(|text| text.contains("none.toml")));
    let (output, text) = run(&lab, &["--config", path(&missing), "--log-format", "text"])?;
    ensure!(output.status.code() == Some(1) && text.lines().count() == 1, "{output:?}");
    ensure!(
        text.contains(" fatal   soci-snapshotter-grpc: read config ") && !text.starts_with('{'),
        "{text}"
    );
    let (output, said) = run(&lab, &["--log-format", "xml"])?;
    ensure!(output.status.code() == Some(1) && said.contains("one of json, text"), "{output:?}");
    let (output, said) = run(&lab, &["-v"])?;
    let version = format!("soci-snapshotter-grpc version {} ", env!("CARGO_PKG_VERSION"));
    ensure!(output.status.success() && said.starts_with(&version), "{said}");
    Ok(())
}
