//! Our daemon, `soci-snapshotter-grpc`, in a lab: its own root and socket, its configuration as the caller writes
//! it, its log as the JSON objects it consists of. It can be stopped as a service manager does it, killed as
//! the kernel does it, and started again on the same root.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::containerd::Containerd;
use crate::lab::Lab;
use crate::machine::{Binaries, binaries, ensure_debian};
use crate::process::{Process, run};

const START_LIMIT: Duration = Duration::from_secs(30);
/// In the line that says that a process serves.
const STARTED: &str = "successfully started";
/// As a service manager has it.
const STOP_LIMIT: Duration = Duration::from_secs(90);
const COMMAND_LIMIT: Duration = Duration::from_secs(600);
/// For what follows at once from something that was done.
pub const LOG_LIMIT: Duration = Duration::from_secs(30);

/// See the module. Stopped with its lab.
#[derive(Debug)]
pub struct Daemon {
    lab: Lab,
    binaries: Binaries,
    process: Mutex<Arc<Process>>,
}

impl Daemon {
    /// Where the lab's daemon will listen; known before it runs.
    pub fn address_in(lab: &Lab) -> PathBuf {
        lab.path().join("soci/s.sock")
    }

    /// The least that a configuration needs in a lab: where containerd is.
    pub fn configuration(lab: &Lab) -> String {
        let address = lab.containerd_address();
        format!("[content_store]\ncontainerd_address = \"{}\"\n", address.display())
    }

    /// Starts it with this text as its configuration.
    pub fn start(lab: &Lab, configuration: &str) -> Result<Daemon> {
        Daemon::start_from(lab, configuration, binaries()?)
    }

    pub fn start_from(lab: &Lab, configuration: &str, binaries: Binaries) -> Result<Daemon> {
        ensure_debian(&["fuse3"])?;
        let folder = lab.folder("soci")?;
        fs::write(folder.join("config.toml"), configuration)?;
        let process = Mutex::new(serve(lab, &binaries)?);
        Ok(Daemon { lab: lab.clone(), binaries, process })
    }

    pub fn address(&self) -> PathBuf {
        Daemon::address_in(&self.lab)
    }

    /// Its `--root`.
    pub fn root(&self) -> PathBuf {
        self.lab.path().join("soci/root")
    }

    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Its own children: the workers of a supervisor.
    pub fn workers(&self) -> Vec<u32> {
        let list = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = fs::read_to_string(list).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Every line of its log that is a JSON object, since its first start.
    pub fn logs(&self) -> Vec<Value> {
        lines(&self.process().log())
    }

    /// Waits for a line of its log, also one that has been there already, and returns it.
    pub fn wait_for_log(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.process().wait_until(what, LOG_LIMIT, || Ok(self.logs().into_iter().find(|line| wanted(line))))
    }

    /// What containerd said about each layer: the values of `remote-snapshot-prepared`, in order.
    pub fn prepared(&self) -> Vec<bool> {
        let of = |line: Value| Some(line.get("remote-snapshot-prepared")?.as_str()? == "true");
        self.logs().into_iter().filter_map(of).collect()
    }

    /// SIGTERM to the first process and its end awaited: what a service manager does.
    pub fn stop(&self) {
        self.process().signal(Signal::TERM);
        // It leaves everything on the disk, which may have much else to write.
        let _ = self.process().wait_exit(STOP_LIMIT);
        self.process().kill();
    }

    /// SIGKILL to the first process and all its workers at once.
    pub fn kill(&self) {
        let workers = self.workers();
        self.process().signal(Signal::KILL);
        for worker in workers {
            signal_pid(worker, Signal::KILL);
        }
        self.process().kill();
    }

    /// SIGKILL to the first process only.
    pub fn kill_supervisor(&self) {
        self.process().kill();
    }

    /// A signal to the first process.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// A signal to the workers only; how many there were.
    pub fn signal_workers(&self, signal: Signal) -> usize {
        let workers = self.workers();
        for &worker in &workers {
            signal_pid(worker, signal);
        }
        workers.len()
    }

    /// How often a process of it has begun to serve.
    pub fn starts(&self) -> usize {
        // Not parsed: it may be long, and is asked for again and again.
        self.process().log().matches(STARTED).count()
    }

    /// Waits until a process has begun to serve after there were so many starts.
    pub fn wait_for_start(&self, after: usize) -> Result<()> {
        self.process().wait_until("a start", START_LIMIT, || Ok((self.starts() > after).then_some(())))
    }

    /// Starts it again on the same root, after stopping it where it still runs.
    pub fn restart(&self) -> Result<()> {
        self.stop();
        self.start_again()
    }

    /// Starts it again on the same root, where its first process has ended.
    pub fn start_again(&self) -> Result<()> {
        let process = serve(&self.lab, &self.binaries)?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }

    /// With another configuration.
    pub fn restart_with(&self, configuration: &str) -> Result<()> {
        fs::write(self.lab.path().join("soci/config.toml"), configuration)?;
        self.restart()
    }

    /// Waits until its process has ended by itself.
    pub fn wait_exit(&self) -> Result<std::process::ExitStatus> {
        self.process().wait_exit(LOG_LIMIT)
    }

    fn process(&self) -> Arc<Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A daemon and a containerd that uses it as its snapshotter `soci`, with `configuration` beside the least needed.
pub fn with_containerd(lab: &Lab, configuration: &str) -> Result<(Daemon, Containerd)> {
    // In front, so that it may begin with keys of no table.
    with_containerd_from(lab, configuration, binaries()?)
}

/// The same with programs from elsewhere.
pub fn with_containerd_from(
    lab: &Lab,
    configuration: &str,
    binaries: Binaries,
) -> Result<(Daemon, Containerd)> {
    let text = format!("{configuration}\n{}", Daemon::configuration(lab));
    let daemon = Daemon::start_from(lab, &text, binaries)?;
    let containerd = Containerd::start_with_soci(lab, &daemon.address())?;
    Ok((daemon, containerd))
}

/// Runs `soci` in the lab; what it printed.
pub fn soci(lab: &Lab, binaries: &Binaries, words: &[&str]) -> Result<String> {
    let mut command = lab.command(&binaries.soci);
    command.args(words);
    run(command, COMMAND_LIMIT)
}

/// Pulls with our own client into a containerd that has our daemon as its snapshotter `soci`; what it printed.
pub fn pull(lab: &Lab, binaries: &Binaries, containerd: &Containerd, image: &str) -> Result<String> {
    let address = containerd.address().to_string_lossy();
    let words = ["--address", &address, "--namespace", containerd.namespace(), "image", "pull", image];
    soci(lab, binaries, &words)
}

fn serve(lab: &Lab, binaries: &Binaries) -> Result<Arc<Process>> {
    let folder = lab.path().join("soci");
    let mut command = lab.command(&binaries.daemon);
    command.arg("--address").arg(Daemon::address_in(lab)).arg("--root").arg(folder.join("root"));
    command.arg("--config").arg(folder.join("config.toml")).args(["--log-level", "debug"]);
    let before = lines(&log_of(lab)).len();
    let process = lab.start("daemon", command)?;
    process.wait_until("the daemon", START_LIMIT, || {
        let said = lines(&process.log());
        Ok(said.iter().skip(before).any(is_started).then_some(()))
    })?;
    Ok(process)
}

fn log_of(lab: &Lab) -> String {
    fs::read_to_string(lab.path().join("daemon.log")).unwrap_or_default()
}

fn is_started(line: &Value) -> bool {
    line.get("msg").and_then(Value::as_str).is_some_and(|text| text.contains(STARTED))
}

fn lines(log: &str) -> Vec<Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Nothing to do where it is gone.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
