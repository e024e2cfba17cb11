//! What an administrator sees of a daemon: its configuration, its log, its health, its status.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Output, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::{Daemon, LOG_LIMIT, signal_pid, soci, with_containerd},
    images::{Layer, Tar, tar::Entry},
    lab::Lab,
    link::{Fault, When},
    machine::{self, binaries},
    process::wait_until,
    reference::mount,
};
use proto::grpc::health::v1::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    image::{SMALL, noise, stage},
    metrics::{SIZE, Stage, get},
    read_path::{NO_FILL, pull, reasons},
};

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
    let line: Value = serde_json::from_str(&json).context(json.clone())?;
    ensure!(line["level"] == "fatal" && line["msg"].as_str().is_some_and(|text| text.contains("none.toml")));
    let (output, text) = run(&lab, &["--config", path(&missing), "--log-format", "text"])?;
    ensure!(output.status.code() == Some(1) && text.lines().count() == 1, "{output:?}");
    ensure!(
        text.contains(" fatal   soci-snapshotter-grpc: read config ") && !text.starts_with('{'),
        "{text}"
    );
    let (output, said) = run(&lab, &["--log-format", "xml"])?;
    ensure!(output.status.code() == Some(1) && said.contains("one of json, text"), "{output:?}");
    // What is said before the end, too.
    let file = lab.path().join("config.toml");
    fs::write(&file, "debug = true\n")?;
    let (_, text) = run(&lab, &["--config", path(&file), "--log-format", "text", "--address", "no://where"])?;
    let lines: Vec<_> = text.lines().collect();
    ensure!(lines.len() == 2 && lines[0].contains(" warning debug has no effect: "), "{text}");
    ensure!(lines[0].ends_with(" line=1") && lines[1].contains(" fatal "), "{text}");
    let mut command = lab.command(&binaries()?.daemon);
    command.env("SOCI_SNAPSHOTTER_LOG_FORMAT", "text").arg("--config").arg(&missing);
    let text = String::from_utf8(command.output()?.stderr)?;
    ensure!(text.contains(" fatal   soci-snapshotter-grpc: read config "), "{text}");
    let (output, said) = run(&lab, &["-v"])?;
    let version = format!("soci-snapshotter-grpc version {} ", env!("CARGO_PKG_VERSION"));
    ensure!(output.status.success() && said.starts_with(&version), "{said}");
    Ok(())
}

/// containerd remembers for some seconds that its snapshotter was away. A pull that begins then waits.
#[test]
fn containerd_a_pull_goes_on_when_the_daemon_is_back() -> Result<()> {
    let lab = Lab::new("away")?;
    let file = Layer::gzip(&Tar::new([Entry::file("file", noise(3, 200_000))]).bytes());
    let stage = stage(&lab, vec![file], SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    daemon.kill();
    let mut command = lab.command(&binaries()?.soci);
    command.args(["--address", path(containerd.address()), "--namespace", containerd.namespace()]);
    command.args(["image", "pull", &stage.lazy]).stderr(Stdio::piped()).stdout(Stdio::piped());
    let mut pull = command.spawn()?;
    let mut stderr = BufReader::new(pull.stderr.take().context("its errors")?);
    let mut line = String::new();
    stderr.read_line(&mut line)?;
    ensure!(line.contains("trying again"), "{line}");
    daemon.start_again()?;
    let output = pull.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(String::from_utf8_lossy(&output.stdout).contains("lazy"), "{output:?}");
    Ok(())
}

/// What `soci status` says of the lab's daemon.
fn status(lab: &Lab) -> Result<Value> {
    let address = Daemon::address_in(lab);
    let said = soci(lab, &binaries()?, &["status", "--json", "--daemon-address", path(&address)])?;
    serde_json::from_str(&said).context(said)
}

/// The layer of that reason, or the lazy one.
fn layer<'a>(status: &'a Value, reason: Option<&str>) -> Result<&'a Value> {
    let mut layers = status["layers"].as_array().into_iter().flatten();
    layers.find(|layer| layer["reason"].as_str() == reason).with_context(|| status.to_string())
}

/// Every member of a status, as docs/commands.md names them: `layers[].spans.total`.
fn members(status: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![(String::new(), status)];
    while let Some((name, value)) = open.pop() {
        match value {
            // Its members are reasons.
            Value::Object(_) if name == "notLazy" => drop(found.insert(name)),
            Value::Object(inner) => open.extend(inner.iter().map(|(member, value)| {
                let point = if name.is_empty() { "" } else { "." };
                (format!("{name}{point}{member}"), value)
            })),
            Value::Array(inner) if inner.iter().all(Value::is_object) => {
                open.extend(inner.iter().map(|value| (format!("{name}[]"), value)));
            }
            _ => drop(found.insert(name)),
        }
    }
    found
}

fn documented_members() -> Result<BTreeSet<String>> {
    let page = fs::read_to_string(machine::root().join("docs/commands.md"))?;
    let rows = page.lines().skip_while(|line| *line != "| member | meaning |").skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    Ok(rows.filter_map(|row| row.split('`').nth(1).map(str::to_owned)).collect())
}

/// After the pull, before anything was read.
fn ensure_fresh(stage: &Stage, fresh: &Value) -> Result<()> {
    let (image, host) = (stage.image(), stage.link.host());
    let lazy = layer(fresh, None)?;
    ensure!(lazy["fetchedSize"] == 0 && lazy["fetchedPercent"] == 0.0 && lazy["complete"] == false, "{lazy}");
    ensure!(lazy["spans"]["total"] == lazy["spans"]["empty"] && lazy["compared"] == "not_yet", "{lazy}");
    ensure!(lazy["ztoc"].is_string() && lazy["error"] == "" && lazy["readersWaiting"] == 0, "{lazy}");
    ensure!(lazy["images"] == serde_json::json!([image]) && lazy["snapshots"][0].is_string(), "{lazy}");
    ensure!(lazy["sources"][0]["name"] == format!("{host}/app"), "{lazy}");
    ensure!(!lazy["users"].as_array().context("users")?.is_empty(), "no snapshot uses it: {lazy}");
    ensure!(fresh["notLazy"] == serde_json::json!({ "no_ztoc": 1 }), "{fresh}");
    let whole = layer(fresh, Some("no_ztoc"))?;
    ensure!(
        whole["ztoc"].is_null() && whole["complete"] == true && whole["fetchedPercent"] == 100.0,
        "{whole}"
    );
    ensure!(whole["size"] == whole["fetchedSize"] && whole["compared"] == "right", "{whole}");
    let recent = &fresh["recent"][0];
    ensure!(
        recent["outcome"] == "whole" && recent["reason"] == "no_ztoc" && recent["image"] == image,
        "{recent}"
    );
    ensure!(recent["layer"] == whole["digest"] && recent["key"].is_string(), "{recent}");

    Ok(())
}

#[test]
fn containerd_status_tells_how_layers_stand() -> Result<()> {
    let stage = Stage::new("status")?;
    let (lab, link) = (&stage.lab, &stage.link);
    let (daemon, containerd) = with_containerd(lab, &format!("debug = true\n{NO_FILL}"))?;
    let before = status(lab)?;
    ensure!(before["layers"] == serde_json::json!([]), "{before}");
    ensure!(before["daemon"]["pid"] == daemon.pid() || !daemon.workers().is_empty(), "{before}");
    ensure!(before["daemon"]["configRemarks"][0]["line"] == 1, "{before}");
    ensure!(before["daemon"]["address"].as_str() == daemon.address().to_str(), "{before}");

    let image = stage.image();
    pull(lab, &containerd, &image)?;
    let mounted = mount(lab, &containerd, "soci")?;
    let fresh = status(lab)?;
    ensure_fresh(&stage, &fresh)?;
    let (given, documented) = (members(&fresh), documented_members()?);
    ensure!(given == documented, "as it is: {given:#?}, as it is documented: {documented:#?}");

    ensure!(fs::read(mounted.path().join("file0"))? == noise(0, SIZE), "file0 has other bytes");
    let read = status(lab)?;
    let lazy = layer(&read, None)?;
    let number = |name: &str| lazy[name].as_u64().with_context(|| lazy.to_string());
    ensure!(number("fetchedSize")? > 0 && number("storedSize")? >= SIZE as u64, "{lazy}");
    ensure!(number("fetchedSize")? < number("size")?, "{lazy}");
    let people = soci(lab, &binaries()?, &["status", "--daemon-address", path(&daemon.address())])?;
    for expected in ["whole (no_ztoc), complete", "lazy", &image, "Not lazy since the start: no_ztoc 1"] {
        ensure!(people.contains(expected), "{expected} is not in {people}");
    }

    link.cut();
    let file = mounted.path().join("file2");
    let reader = thread::spawn(move || fs::read(file));
    wait_until("a reader that waits, and a source that fails", LOG_LIMIT, || {
        let status = status(lab)?;
        let lazy = layer(&status, None)?;
        let fails = lazy["error"].as_str().is_some_and(|error| !error.is_empty());
        Ok((fails && lazy["readersWaiting"].as_u64() > Some(0)).then_some(()))
    })?;
    link.restore();
    ensure!(reader.join().expect("no panic")? == noise(2, SIZE), "file2 has other bytes");
    let after = status(lab)?;
    let lazy = layer(&after, None)?;
    ensure!(lazy["error"] == "" && lazy["readersWaiting"] == 0, "{lazy}");
    Ok(())
}

#[test]
fn status_without_a_daemon_says_what_to_do() -> Result<()> {
    let lab = Lab::new("status-none")?;
    let address = Daemon::address_in(&lab);
    let mut command = lab.command(&binaries()?.soci);
    let output = command.args(["status", "--daemon-address", path(&address)]).output()?;
    let said = String::from_utf8(output.stderr)?;
    let expected = format!(
        "soci: ask soci-snapshotter-grpc at {} (is it running? see --daemon-address): ",
        address.display()
    );
    ensure!(output.status.code() == Some(1) && said.starts_with(&expected), "{said}");
    Ok(())
}

/// As where the disk of the log is full, or no process reads it any more.
#[test]
fn fuse_a_log_that_cannot_be_written_ends_no_process() -> Result<()> {
    let lab = Lab::new("mute")?;
    let folder = lab.folder("soci")?;
    fs::write(folder.join("config.toml"), Daemon::configuration(&lab))?;
    let mut command = lab.command("sh");
    command.args(["-c", "exec \"$@\" 2>/dev/full", "sh"]).arg(binaries()?.daemon);
    command.arg("--address").arg(Daemon::address_in(&lab)).arg("--root").arg(folder.join("root"));
    command.arg("--config").arg(folder.join("config.toml")).args(["--log-level", "debug"]);
    let process = lab.start("mute", command)?;
    let answer = || -> Result<Option<String>> {
        let mut command = lab.command(&binaries()?.soci);
        command.args(["status", "--json", "--daemon-address", path(&Daemon::address_in(&lab))]);
        let output = command.output()?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    process.wait_until("the daemon", LOG_LIMIT, answer)?;
    let children = format!("/proc/{0}/task/{0}/children", process.pid());
    for _ in 0..2 {
        let worker = fs::read_to_string(&children)?;
        signal_pid(worker.trim().parse()?, Signal::KILL);
        let another =
            || Ok(fs::read_to_string(&children).ok().filter(|now| !now.is_empty() && *now != worker));
        process.wait_until("another worker", LOG_LIMIT, another)?;
        process.wait_until("its answer", LOG_LIMIT, answer)?;
    }
    process.signal(Signal::TERM);
    ensure!(process.wait_exit(LOG_LIMIT)?.success());
    Ok(())
}

#[test]
fn fuse_health_follows_the_daemon() -> Result<()> {
    let lab = Lab::new("health")?;
    let socket = lab.path().join("m.sock");
    let configuration = format!("metrics_address = \"{}\"\nmetrics_network = \"unix\"\n", socket.display());
    let daemon = Daemon::start(&lab, &(configuration + &Daemon::configuration(&lab)))?;
    for page in ["/healthz", "/readyz"] {
        let (status, body) = get(&socket, page)?;
        ensure!(status == 200, "{page}: {status} {body}");
    }
    ensure!(get(&socket, "/nothing")?.0 == 404, "there is something at /nothing");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = HealthClient::new(proto::connect(daemon.address()).await?);
        let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
        for service in ["", "containerd.services.snapshots.v1.Snapshots"] {
            let answer = client.check(of(service)).await?.into_inner();
            ensure!(answer.status() == ServingStatus::Serving, "{service}: {answer:?}");
        }
        let stranger = client.check(of("stranger")).await;
        ensure!(stranger.is_err_and(|refused| refused.code() == tonic::Code::NotFound), "a stranger serves");
        let mut watched = client.watch(of("stranger")).await?.into_inner();
        let told = watched.message().await?.map(|answer| answer.status());
        ensure!(told == Some(ServingStatus::ServiceUnknown), "{told:?}");
        let mut watched = client.watch(of("")).await?.into_inner();
        let told = watched.message().await?.map(|answer| answer.status());
        ensure!(told == Some(ServingStatus::Serving), "{told:?}");
        // A watching client hears of the end, and does not delay it.
        let stopping = thread::spawn(move || daemon.stop());
        let told = watched.message().await?.map(|answer| answer.status());
        ensure!(told == Some(ServingStatus::NotServing), "{told:?}");
        ensure!(watched.message().await?.is_none(), "there is more after the end");
        stopping.join().expect("no panic");
        Ok(())
    })
}

#[test]
fn containerd_a_registry_is_asked_again_as_often_as_the_configuration_says() -> Result<()> {
    let stage = Stage::new("retries")?;
    let (lab, link) = (&stage.lab, &stage.link);
    let (daemon, containerd) = with_containerd(lab, NO_FILL)?;
    pull(lab, &containerd, &stage.image())?;
    let shown = status(lab)?;
    let ztoc = layer(&shown, None)?["ztoc"].as_str().context("a ztoc")?.to_owned();
    for (retries, expected) in [(2, 3), (-1, 1)] {
        containerd.ctr(&["image", "rm", "--sync", &stage.image()])?;
        let more = format!("{NO_FILL}[http]\nMaxRetries = {retries}\nMinWaitMsec = 1\n");
        daemon.restart_with(&(more + &Daemon::configuration(lab)))?;
        containerd.restart()?; // it waits ever longer for a socket that was gone
        let broken = link.inject(Fault::status(500), When::path(format!("/blobs/{ztoc}")));
        pull(lab, &containerd, &stage.image())?;
        ensure!(broken.hits() == expected, "{retries} retries: {} requests", broken.hits());
        ensure!(reasons(&daemon).contains(&"unreachable".to_owned()), "{:?}", reasons(&daemon));
        broken.lift();
    }
    Ok(())
}
