//! The supervisor: holds what containers depend on, and keeps a worker alive that serves it.
//!
//! It has one thread, no runtime and no network, and knows nothing of layers or snapshots, so that little can end it.
//! Every worker gets the same mount, lock and socket. Until it serves, reads in containers and containerd's calls wait.
//! A worker that ends is started again at once. One that fails at its start, or crashes, is started again after a pause
//! that grows; the supervisor never gives up.
//!
//! On SIGHUP, and on `soci daemon upgrade`, the supervisor starts the program as it is on the disk now. On SIGTERM,
//! calls are finished, and the mount ends if no container needs it. Otherwise the mount is left with the service
//! manager. Without one, the worker serves it until another daemon takes over (`handover`).

mod child;
mod program;
mod configuration;
mod backoff;
mod signals;

use std::{
    fs::File,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::bail;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sd_notify::NotifyState;

use crate::{
    layers::quarantine::Quarantine,
    process::{
        channel::{ToSupervisor, ToWorker, WorkerStart},
        resources::{MountRepair, Resources},
        systemd,
    },
};
use backoff::{Backoff, WorkerExit};
use child::{ChildWorker, EndedWorker};
use configuration::Configuration;
use program::Program;
use signals::{SignalRequest, Signals};

/// For calls that containerd has begun: a layer that is fetched whole takes that long on a slow line.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// The same, and time to store what has arrived. A service manager gives up after 90 seconds.
const STOP_LIMIT: Duration = Duration::from_secs(75);
/// A worker that is silent for so long is replaced. A debugger, or a backup that freezes processes, stops it for a shorter
/// time.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// A worker shows the layers on the disk within a second, and thousands of them on a slow disk within a minute.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How often the supervisor asks a worker whether it lives.
const PING: Duration = Duration::from_secs(10);
/// How often the supervisor looks whether the mount is at its path, even if the kernel reports no change of mounts.
const REPAIR: Duration = Duration::from_secs(10);
/// The shortest time between two such looks. On a busy node mounts change all the time.
const REPAIR_PAUSE: Duration = Duration::from_millis(100);
/// After so many workers of a new program have failed at their start, one after the other, the old program serves again.
const FAILURES_OF_A_PROGRAM: u32 = 3;
/// A worker that has served for so long counts as started: an end after that has another cause.
const STEADY: Duration = Duration::from_secs(10);

/// The kernel reports a change of it as an exceptional condition.
const MOUNTS: &str = "/proc/self/mountinfo";

/// What the supervisor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SupervisorPhase {
    Serving,
    /// Another program will serve, once calls are finished, at this moment at the latest.
    Draining(Instant),
    /// The daemon ends, at this moment at the latest.
    Stopping(Instant),
}

/// How the supervisor ends, and what happens to the mount.
#[derive(Debug)]
enum Shutdown {
    /// It has been unmounted.
    Unmounted,
    /// The service manager keeps it.
    Kept,
    /// The worker serves it.
    Served,
}

struct Supervisor {
    resources: Resources,
    /// The kernel's list of mounts, which tells when it changes.
    mounts: Option<File>,
    configuration: Configuration,
    signals: Signals,
    program: Program,
    backoff: Backoff,
    worker: Option<ChildWorker>,
    /// When the next worker is started, while there is none.
    start_at: Instant,
    phase: SupervisorPhase,
    /// A worker has served.
    has_served: bool,
    /// The worker before this one crashed.
    has_crashed: bool,
    /// A mount that containers may use is gone, and no worker has reported it yet.
    has_lost: bool,
    /// Why the worker could not start, if it said so.
    failure: Option<String>,
    watchdog: Option<Duration>,
    /// When the supervisor last looked whether something is due.
    looked: Instant,
    /// When the supervisor last looked whether the mount is at its path.
    repaired: Instant,
    /// The kernel has reported a change of mounts since.
    have_mounts_changed: bool,
}

/// Supervises on the socket `address` with all state under `root`, until a signal. `config` is the path of the
/// configuration, and whether it must be there.
///
/// # Errors
/// When what everything needs cannot be had, or the first worker cannot start.
pub(crate) fn run(address: &str, root: &Path, config: (&Path, bool)) -> anyhow::Result<()> {
    let configuration = Configuration::read(config.0, config.1)?;
    let signals = Signals::listen()?;
    let program = Program::own()?;
    let resources = Resources::obtain(address, root)?;
    // Whatever made earlier workers crash on a layer may be repaired by now.
    Quarantine::lift(&resources.root);
    let mounts = File::open(MOUNTS).inspect_err(|error| tracing::warn!(%error, "watch the list of mounts"));
    let mut supervisor = Supervisor {
        has_lost: resources.mounted.has_replaced(),
        resources,
        mounts: mounts.ok(),
        configuration,
        signals,
        program,
        backoff: Backoff::default(),
        worker: None,
        start_at: Instant::now(),
        phase: SupervisorPhase::Serving,
        has_served: false,
        has_crashed: false,
        failure: None,
        watchdog: sd_notify::watchdog_enabled().map(|period| period / 2),
        looked: Instant::now(),
        repaired: Instant::now(),
        have_mounts_changed: false,
    };
    let shutdown = supervisor.supervise();
    supervisor.resources.stop_listening();
    match shutdown {
        Ok(Shutdown::Unmounted) => {
            supervisor.resources.forget();
            tracing::info!("stopped");
        }
        Ok(Shutdown::Kept) => {
            tracing::info!("stopped; the service manager keeps the mount, reads wait for the next start");
        }
        Ok(Shutdown::Served) => {}
        Err(error) => {
            supervisor.resources.forget();
            if let Err(error) = supervisor.resources.mounted.unmount() {
                tracing::warn!(%error, "the FUSE mount stays");
            }
            return Err(error);
        }
    }
    Ok(())
}

impl Supervisor {
    fn supervise(&mut self) -> anyhow::Result<Shutdown> {
        loop {
            if self.worker.is_none() && Instant::now() >= self.start_at {
                self.start();
            }
            self.wait();
            for request in self.signals.take() {
                self.obey(request);
            }
            while let Some(message) = self.worker.as_mut().and_then(ChildWorker::message) {
                if let Some(shutdown) = self.hear(message) {
                    return Ok(shutdown);
                }
            }
            if let Some(ended) = self.worker.as_mut().and_then(ChildWorker::ended)
                && let Some(shutdown) = self.replace_dead(ended)?
            {
                return Ok(shutdown);
            }
            if let Some(shutdown) = self.overdue() {
                return Ok(shutdown);
            }
        }
    }

    /// Waits until something happens or is due.
    fn wait(&mut self) {
        let now = Instant::now();
        let due = match (self.phase, &self.worker) {
            (_, None) => self.start_at,
            (SupervisorPhase::Serving, Some(worker)) => worker.due(PING),
            (SupervisorPhase::Draining(until) | SupervisorPhase::Stopping(until), Some(worker)) => {
                until.min(worker.due(PING))
            }
        };
        let limit = due.saturating_duration_since(now);
        let limit = self.watchdog.map_or(limit, |period| limit.min(period));
        let limit = if self.have_mounts_changed { limit.min(REPAIR_PAUSE) } else { limit };
        let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut polled: Vec<_> =
            self.signals.descriptors().map(|signal| PollFd::from_borrowed_fd(signal, PollFlags::IN)).into();
        if let Some(worker) = &self.worker {
            polled.extend(worker.descriptors().map(|one| PollFd::from_borrowed_fd(one, PollFlags::IN)));
        }
        // Last, so that its answer is found again. A change that is known already need not be waited for.
        let mounts = self.mounts.as_ref().filter(|_| !self.have_mounts_changed);
        polled.extend(mounts.map(|mounts| PollFd::from_borrowed_fd(mounts.as_fd(), PollFlags::PRI)));
        match poll(&mut polled, Some(&limit)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(error) => {
                // The supervisor goes on: containers depend on what it holds.
                tracing::error!(error = %std::io::Error::from(error), "wait for something to happen");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        let changed =
            mounts.is_some() && polled.last().is_some_and(|last| last.revents().contains(PollFlags::PRI));
        self.have_mounts_changed |= changed;
        if self.watchdog.is_some() {
            systemd::mention(NotifyState::Watchdog);
        }
    }

    fn start(&mut self) {
        self.repair_mount();
        let begin = ToWorker::Begin(WorkerStart {
            is_first: !self.has_served && self.resources.is_fresh(),
            has_crashed: self.has_crashed,
            has_lost: self.has_lost,
            parameters: *self.resources.mounted.parameters(),
        });
        match ChildWorker::start(&self.program, &self.resources, self.configuration.as_fd(), &begin) {
            Ok(worker) => {
                tracing::debug!(pid = worker.pid(), "worker started");
                self.worker = Some(worker);
            }
            Err(error) => {
                tracing::error!(%error, "start a worker");
                self.start_at = Instant::now() + self.backoff.after(WorkerExit::Failed);
            }
        }
    }

    /// Makes sure that there is a mount, and that it is at its path.
    fn repair_mount(&mut self) {
        self.repaired = Instant::now();
        self.have_mounts_changed = false;
        match self.resources.repair_mount() {
            Ok(MountRepair::NotNeeded) => {}
            Ok(MountRepair::PutBack) => {
                tracing::error!("another process unmounted the FUSE mount; it is mounted again");
            }
            Ok(MountRepair::New) => {
                tracing::error!("another process ended the FUSE connection; there is a new one");
                self.has_lost = true;
                // A worker that still lives serves the ended connection.
                if let Some(worker) = &mut self.worker {
                    worker.kill();
                }
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "mount again"),
        }
    }

    fn obey(&mut self, request: SignalRequest) {
        match (request, self.phase) {
            (SignalRequest::Stop, SupervisorPhase::Stopping(_)) => {}
            (SignalRequest::Stop, _) => {
                tracing::info!("stopping");
                let _ = systemd::tell(&[NotifyState::Stopping], &[]);
                self.phase = SupervisorPhase::Stopping(Instant::now() + STOP_LIMIT);
                self.tell(&ToWorker::Stop { is_kept: self.resources.is_kept });
            }
            (SignalRequest::Upgrade, SupervisorPhase::Serving) => self.upgrade(),
            (SignalRequest::Upgrade, _) => {}
        }
    }

    fn upgrade(&mut self) {
        match self.configuration.renew().and_then(|()| self.program.renew()) {
            Ok(version) => tracing::info!(version, "another program is going to serve"),
            Err(error) => {
                let why = format!("{error:#}");
                tracing::error!(error = why, "the program stays as it is");
                return self.tell(&ToWorker::Refused(why));
            }
        }
        if self.worker.is_none() {
            // The next worker runs the new program, and there are no calls to finish.
            Quarantine::lift(&self.resources.root);
            self.start_at = Instant::now();
            return;
        }
        self.phase = SupervisorPhase::Draining(Instant::now() + DRAIN_LIMIT);
        self.tell(&ToWorker::Drain);
    }

    /// Tells a worker that serves. One that does not serve yet is told once it does.
    fn tell(&mut self, message: &ToWorker) {
        match &mut self.worker {
            Some(worker) if worker.is_ready() => worker.send(message),
            Some(worker) if matches!(self.phase, SupervisorPhase::Draining(_)) => worker.kill(),
            _ => {}
        }
    }

    fn hear(&mut self, message: ToSupervisor) -> Option<Shutdown> {
        match message {
            ToSupervisor::Ready => {
                self.has_served = true;
                self.has_lost = false;
                self.program.works();
                if let Err(error) = systemd::tell(&[NotifyState::Ready], &[]) {
                    tracing::warn!(%error, "tell the service manager that the daemon is ready");
                }
                if let SupervisorPhase::Stopping(_) = self.phase {
                    self.tell(&ToWorker::Stop { is_kept: self.resources.is_kept });
                }
            }
            ToSupervisor::Failed(why) => self.failure = Some(why),
            ToSupervisor::Drained => self.replace(),
            ToSupervisor::Needed(by) if matches!(self.phase, SupervisorPhase::Stopping(_)) => {
                return Some(self.leave(&by));
            }
            ToSupervisor::Upgrade => self.obey(SignalRequest::Upgrade),
            ToSupervisor::Status(text) => {
                systemd::mention(NotifyState::Status(&text));
            }
            ToSupervisor::Pong | ToSupervisor::Ended | ToSupervisor::Needed(_) | ToSupervisor::Unknown => {}
        }
        None
    }

    /// Ends the worker, so that the next one runs another program.
    fn replace(&mut self) {
        if let SupervisorPhase::Draining(_) = self.phase
            && let Some(worker) = &mut self.worker
        {
            worker.kill();
        }
    }

    /// Ends the supervisor while containers need the mount.
    fn leave(&mut self, dependents: &[String]) -> Shutdown {
        if self.resources.is_kept {
            if let Some(worker) = &mut self.worker {
                worker.kill();
                worker.reap();
            }
            return Shutdown::Kept;
        }
        let Some(worker) = &self.worker else {
            tracing::error!(
                "no worker could be started to serve the mount: containers that need it get errors"
            );
            return Shutdown::Served;
        };
        tracing::warn!(
            pid = worker.pid(),
            needed_by = dependents.join(" "),
            "containers need the mount: this process serves it until a daemon takes over or they are gone; \
             SIGTERM ends it"
        );
        Shutdown::Served
    }

    fn replace_dead(
        &mut self,
        EndedWorker { status, was_ready, has_unmounted }: EndedWorker,
    ) -> anyhow::Result<Option<Shutdown>> {
        let pid = self.worker.take().map(|worker| worker.pid());
        let failure = self.failure.take();
        if has_unmounted && matches!(self.phase, SupervisorPhase::Stopping(_)) {
            return Ok(Some(Shutdown::Unmounted));
        }
        if let SupervisorPhase::Draining(_) = self.phase {
            Quarantine::lift(&self.resources.root);
            self.phase = SupervisorPhase::Serving;
            self.has_crashed = false;
            self.start_at = Instant::now();
            return Ok(None);
        }
        // No container depends on the daemon yet, and its starter is waiting: it fails at once, with the reason.
        if !self.has_served && self.resources.is_fresh() && status.code().is_some() {
            bail!(failure.unwrap_or_else(|| format!("the worker ended: {status}")));
        }
        let exit = WorkerExit::of(status, was_ready);
        self.has_crashed = exit == WorkerExit::Crashed;
        let delay = self.backoff.after(exit);
        self.start_at = Instant::now() + delay;
        tracing::error!(pid, %status, failure, ?delay, "the worker has ended; another one is started");
        if !was_ready && self.backoff.failures() >= FAILURES_OF_A_PROGRAM && self.program.fall_back() {
            tracing::error!("the new program does not serve; the program before it is started again");
        }
        Ok(None)
    }

    fn overdue(&mut self) -> Option<Shutdown> {
        let now = Instant::now();
        match self.phase {
            SupervisorPhase::Draining(until) if now >= until => {
                tracing::warn!(
                    "calls of containerd were still under way and are given up; containerd repeats them"
                );
                self.replace();
                // The worker may take a while to die.
                self.phase = SupervisorPhase::Draining(now + PING);
            }
            SupervisorPhase::Stopping(until) if now >= until => {
                tracing::error!("the worker does not end in time");
                return Some(self.leave(&[]));
            }
            _ => {}
        }
        let pause = if self.have_mounts_changed { REPAIR_PAUSE } else { REPAIR };
        if self.phase == SupervisorPhase::Serving && self.repaired.elapsed() >= pause {
            self.repair_mount();
        }
        // If the whole machine was frozen, the worker could not answer.
        let overslept = now.duration_since(self.looked) > SILENCE_LIMIT / 2;
        self.looked = now;
        let worker = self.worker.as_mut()?;
        if overslept {
            worker.forgive();
        }
        if worker.is_steady(STEADY) {
            self.backoff.reset();
        }
        if worker.is_silent(if worker.is_ready() { SILENCE_LIMIT } else { START_LIMIT }) {
            tracing::error!(pid = worker.pid(), "the worker does not answer; another one is started");
            worker.kill();
        } else {
            worker.ping(PING);
        }
        None
    }
}
