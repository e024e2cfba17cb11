//! What the daemon's supervisor will be: has the mount, and starts workers on it.

use std::{
    env,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use integration::{lab::Lab, process::Process};
use layerfs::Mounted;

use super::worker;

const START_LIMIT: Duration = Duration::from_secs(60);
/// Below the root folder.
pub(super) const MOUNT: &str = "fuse";

/// How far a worker goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Takes a request and does not answer.
    Takes,
    /// Adopts and does not serve.
    Adopts,
    Serves,
}

impl Stage {
    pub(super) fn name(self) -> &'static str {
        match self {
            Stage::Takes => "takes",
            Stage::Adopts => "adopts",
            Stage::Serves => "serves",
        }
    }
}

/// Holds the descriptor; the lab has the mount.
pub(super) struct Supervisor {
    lab: Lab,
    root: PathBuf,
    mount: PathBuf,
    parameters: String,
    device: Mutex<Option<OwnedFd>>,
    worker: Mutex<Option<Arc<Worker>>>,
    started: AtomicU32,
    slowest: Mutex<Duration>,
}

/// A process, from its start on.
pub(super) struct Worker {
    process: Process,
    start: Instant,
    served: Mutex<Option<Duration>>,
}

/// Ends all waiting when dropped.
pub(super) struct Ends<'a>(&'a Supervisor);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abandon();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supervisor {
    pub(super) fn new(lab: &Lab) -> Result<Supervisor> {
        let root = lab.folder("root")?;
        let mount = root.join(MOUNT);
        let mounted = Mounted::new(&mount).context("these tests need root and /dev/fuse")?;
        Ok(Supervisor {
            lab: lab.clone(),
            root,
            mount,
            parameters: serde_json::to_string(mounted.parameters())?,
            device: Mutex::new(Some(mounted.as_fd().try_clone_to_owned()?)),
            worker: Mutex::default(),
            started: AtomicU32::new(0),
            slowest: Mutex::default(),
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    pub(super) fn slot(&self, number: u32) -> PathBuf {
        self.mount.join(number.to_string())
    }

    pub(super) fn device(&self) -> Result<OwnedFd> {
        let device = lock(&self.device);
        Ok(device.as_ref().context("the mount was given up")?.try_clone()?)
    }

    /// The mount, for a worker in this process.
    pub(super) fn handed(&self) -> Result<Mounted> {
        Ok(Mounted::inherited(&self.mount, self.device()?, serde_json::from_str(&self.parameters)?))
    }

    /// Starts a worker; the one before must have been killed.
    pub(super) fn start(&self, stage: Stage) -> Result<Arc<Worker>> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("worker{number}");
        let mut command = self.lab.command(env::current_exe()?);
        command.args([worker::NAME, "--exact", "--nocapture"]);
        command.env(worker::ROOT, &self.root).env(worker::STAGE, stage.name());
        command.env(worker::PARAMETERS, &self.parameters);
        let log = self.lab.path().join(format!("{name}.log"));
        let start = Instant::now();
        let process = Process::start_on(Stdio::from(self.device()?), &name, command, &log)?;
        let worker = Arc::new(Worker { process, start, served: Mutex::default() });
        *lock(&self.worker) = Some(worker.clone());
        Ok(worker)
    }

    /// Starts the first worker that serves, and has the kernel learn from it that closing a file needs no answer.
    ///
    /// A supervisor must have no file below the mount open, nor run in a process that has: the worker's exec would close
    /// its copy, and wait, beyond all signals, for the worker. The readers of these tests are threads of this process;
    /// they can be so once nothing is sent when a file is closed.
    pub(super) fn start_first(&self) -> Result<()> {
        self.start(Stage::Serves)?.served()?;
        std::fs::read(self.slot(1).join("tree/0/0")).context("read the first file")?;
        Ok(())
    }

    pub(super) fn worker(&self) -> Result<Arc<Worker>> {
        lock(&self.worker).clone().context("there is a worker")
    }

    /// SIGKILL; it is gone afterwards.
    pub(super) fn kill(&self) {
        let worker = lock(&self.worker).take();
        if let Some(worker) = worker {
            worker.process.kill();
            let mut slowest = lock(&self.slowest);
            *slowest = slowest.max(lock(&worker.served).unwrap_or_default());
        }
    }

    /// The longest time from a worker's start to its serving.
    pub(super) fn slowest(&self) -> Duration {
        *lock(&self.slowest)
    }

    /// Gives the mount up: what waits gets an error.
    pub(super) fn abandon(&self) {
        self.kill();
        drop(lock(&self.device).take());
    }

    /// Does that when a test fails.
    pub(super) fn ends(&self) -> Ends<'_> {
        Ends(self)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Worker {
    fn said(&self, word: &str) -> Result<Duration> {
        self.process.wait_until(word, START_LIMIT, || {
            Ok(self.process.log().lines().any(|line| line.starts_with(word)).then(|| self.start.elapsed()))
        })
    }

    pub(super) fn served(&self) -> Result<()> {
        *lock(&self.served) = Some(self.said(worker::SERVED)?);
        Ok(())
    }

    pub(super) fn came_to_its_stage(&self) -> Result<()> {
        self.said(worker::AT_STAGE).map(drop)
    }
}
