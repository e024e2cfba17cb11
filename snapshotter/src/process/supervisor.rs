//! The first process: holds what containers depend on, and keeps a worker alive that serves it.
//!
//! It has one thread, no runtime and no network, and knows nothing of layers or snapshots, so that there is little
//! that can end it. Whatever becomes of a worker, the next one gets the same mount, lock and socket: who reads in a
//! container waits, and who calls us waits, until it serves. A worker that ends is started again at once; one that
//! fails at its start, or crashes, after a while that grows; none is ever the last.
//!
//! SIGHUP (and `soci daemon upgrade`): the program is started anew as it is on the disk now. SIGTERM: calls are
//! finished, and the mount ended if no container needs it; otherwise it is left with the service manager, or, where
//! there is none, with the worker, which serves on until somebody takes over (`handover`).

mod backoff;
mod configuration;
mod program;
mod signals;
mod child;

use std::{
    os::fd::AsFd,
    path::Path,
    process::ExitStatus,
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
use child::ChildWorker;
use configuration::Configuration;
use program::Program;
use signals::{SignalRequest, Signals};

/// Calls that containerd has begun are finished: a layer that is fetched whole takes that long on a slow line.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// The same, and storing what has arrived; a service manager gives up after 90 seconds.
const STOP_LIMIT: Duration = Duration::from_secs(75);
/// A worker that has not said anything for so long is replaced. Longer than it may be stopped for by whoever freezes
/// processes to look at them.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// What is on the disk is shown within a second or so, thousands of layers on a slow disk in a minute.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How often a worker is asked whether it lives.
const PING: Duration = Duration::from_secs(10);
/// How often it is looked whether the mount is where it should be.
const MEND: Duration = Duration::from_secs(10);
/// So many workers of a new program that fail at their start, one after the other, and it is the old one's turn again.
const FAILURES_OF_A_PROGRAM: u32 = 3;
/// A worker that has served for so long does: what happens later is another story.
const STEADY: Duration = Duration::from_secs(10);

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SupervisorPhase {
    Serving,
    /// Another program is to serve, once calls are finished or this moment has come.
    Draining(Instant),
    /// Nobody is to serve, from this moment on at the latest.
    Stopping(Instant),
}

/// How the first process ends, and what becomes of what it held.
#[derive(Debug)]
enum Shutdown {
    Nothing,
    /// To the service manager.
    Kept,
    /// To the worker.
    Served,
}

struct Supervisor {
    held: Resources,
    configuration: Configuration,
    signals: Signals,
    program: Program,
    backoff: Backoff,
    worker: Option<ChildWorker>,
    /// When the next one is started, while there is none.
    start_at: Instant,
    state: SupervisorPhase,
    /// Some worker has served.
    has_served: bool,
    /// The worker before this one crashed.
    has_crashed: bool,
    /// A mount is gone that containers may use, and no worker has said so yet.
    has_lost: bool,
    /// Why it could not start, if it said so.
    failure: Option<String>,
    watchdog: Option<Duration>,
    /// When it last looked whether something is due.
    looked: Instant,
    /// When it last looked after the mount.
    mended: Instant,
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
    let held = Resources::obtain(address, root)?;
    // What a layer did to earlier processes may be the doing of something that is repaired by now.
    Quarantine::lift(&held.root);
    let mut supervisor = Supervisor {
        has_lost: held.mounted.has_replaced(),
        held,
        configuration,
        signals,
        program,
        backoff: Backoff::default(),
        worker: None,
        start_at: Instant::now(),
        state: SupervisorPhase::Serving,
        has_served: false,
        has_crashed: false,
        failure: None,
        watchdog: sd_notify::watchdog_enabled().map(|period| period / 2),
        looked: Instant::now(),
        mended: Instant::now(),
    };
    let left = supervisor.supervise();
    supervisor.held.stop_listening();
    match left {
        Ok(Shutdown::Nothing) => {
            supervisor.held.forget();
            tracing::info!("stopped");
        }
        Ok(Shutdown::Kept) => {
            tracing::info!("stopped; the service manager keeps the mount, reads wait for the next start");
        }
        Ok(Shutdown::Served) => {}
        Err(error) => {
            supervisor.held.forget();
            if let Err(error) = supervisor.held.mounted.unmount() {
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
            for asked in self.signals.take() {
                self.asked(asked);
            }
            while let Some(news) = self.worker.as_mut().and_then(ChildWorker::news) {
                if let Some(left) = self.told(news) {
                    return Ok(left);
                }
            }
            if let Some(end) = self.worker.as_mut().and_then(ChildWorker::end)
                && let Some(left) = self.died(end)?
            {
                return Ok(left);
            }
            if let Some(left) = self.overdue() {
                return Ok(left);
            }
        }
    }

    /// Until something happens or is due.
    fn wait(&self) {
        let now = Instant::now();
        let due = match (self.state, &self.worker) {
            (_, None) => self.start_at,
            (SupervisorPhase::Serving, Some(worker)) => worker.due(PING),
            (SupervisorPhase::Draining(until) | SupervisorPhase::Stopping(until), Some(worker)) => {
                until.min(worker.due(PING))
            }
        };
        let limit = due.saturating_duration_since(now);
        let limit = self.watchdog.map_or(limit, |period| limit.min(period));
        let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut polled: Vec<_> =
            self.signals.descriptors().map(|signal| PollFd::from_borrowed_fd(signal, PollFlags::IN)).into();
        if let Some(worker) = &self.worker {
            polled.extend(worker.descriptors().map(|one| PollFd::from_borrowed_fd(one, PollFlags::IN)));
        }
        match poll(&mut polled, Some(&limit)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(error) => {
                // No reason to give up what containers depend on: it is looked again in a while.
                tracing::error!(error = %std::io::Error::from(error), "wait for something to happen");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        if self.watchdog.is_some() {
            systemd::mention(NotifyState::Watchdog);
        }
    }

    fn start(&mut self) {
        self.mend();
        let begin = ToWorker::Begin(WorkerStart {
            is_first: !self.has_served && self.held.is_fresh(),
            has_crashed: self.has_crashed,
            has_lost: self.has_lost,
            parameters: *self.held.mounted.parameters(),
        });
        match ChildWorker::start(&self.program, &self.held, self.configuration.as_fd(), &begin) {
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

    /// Sees to it that there is a mount, and that it is where it is looked for.
    fn mend(&mut self) {
        self.mended = Instant::now();
        match self.held.mend() {
            Ok(MountRepair::Nothing) => {}
            Ok(MountRepair::PutBack) => {
                tracing::error!("the FUSE mount was taken away by somebody else; it is back");
            }
            Ok(MountRepair::Anew) => {
                tracing::error!("the FUSE connection was ended by somebody else; there is a new one");
                self.has_lost = true;
                // One that still lives serves what is no more.
                if let Some(worker) = &mut self.worker {
                    worker.kill();
                }
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "mount again"),
        }
    }

    fn asked(&mut self, asked: SignalRequest) {
        match (asked, self.state) {
            (SignalRequest::Stop, SupervisorPhase::Stopping(_)) => {}
            (SignalRequest::Stop, _) => {
                tracing::info!("stopping");
                let _ = systemd::tell(&[NotifyState::Stopping], &[]);
                self.state = SupervisorPhase::Stopping(Instant::now() + STOP_LIMIT);
                self.order(&ToWorker::Stop { is_kept: self.held.is_kept });
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
                return self.order(&ToWorker::Refused(why));
            }
        }
        if self.worker.is_none() {
            // The next one is of it, and there is nothing to be finished.
            Quarantine::lift(&self.held.root);
            self.start_at = Instant::now();
            return;
        }
        self.state = SupervisorPhase::Draining(Instant::now() + DRAIN_LIMIT);
        self.order(&ToWorker::Drain);
    }

    /// To a worker that serves; one that does not yet is told once it does.
    fn order(&mut self, order: &ToWorker) {
        match &mut self.worker {
            Some(worker) if worker.is_ready() => worker.order(order),
            Some(worker) if matches!(self.state, SupervisorPhase::Draining(_)) => worker.kill(),
            _ => {}
        }
    }

    fn told(&mut self, news: ToSupervisor) -> Option<Shutdown> {
        match news {
            ToSupervisor::Ready => {
                self.has_served = true;
                self.has_lost = false;
                self.program.works();
                if let Err(error) = systemd::tell(&[NotifyState::Ready], &[]) {
                    tracing::warn!(%error, "tell the service manager that we are ready");
                }
                if let SupervisorPhase::Stopping(_) = self.state {
                    self.order(&ToWorker::Stop { is_kept: self.held.is_kept });
                }
            }
            ToSupervisor::Failed(why) => self.failure = Some(why),
            ToSupervisor::Drained => self.replace(),
            ToSupervisor::Needed(by) if matches!(self.state, SupervisorPhase::Stopping(_)) => {
                return Some(self.leave(&by));
            }
            ToSupervisor::Upgrade => self.asked(SignalRequest::Upgrade),
            ToSupervisor::Status(text) => {
                systemd::mention(NotifyState::Status(&text));
            }
            ToSupervisor::Pong | ToSupervisor::Ended | ToSupervisor::Needed(_) | ToSupervisor::Unknown => {}
        }
        None
    }

    /// The next worker is of another program.
    fn replace(&mut self) {
        if let SupervisorPhase::Draining(_) = self.state
            && let Some(worker) = &mut self.worker
        {
            worker.kill();
        }
    }

    /// Containers need the mount, and nobody is to serve it here any more.
    fn leave(&mut self, by: &[String]) -> Shutdown {
        if self.held.is_kept {
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
            needed_by = by.join(" "),
            "containers need the mount: this process serves it until a daemon takes over or they are gone; \
             SIGTERM ends it"
        );
        Shutdown::Served
    }

    fn died(
        &mut self,
        (status, was_ready, has_ended): (ExitStatus, bool, bool),
    ) -> anyhow::Result<Option<Shutdown>> {
        let pid = self.worker.take().map(|worker| worker.pid());
        let failure = self.failure.take();
        if has_ended && matches!(self.state, SupervisorPhase::Stopping(_)) {
            return Ok(Some(Shutdown::Nothing));
        }
        if let SupervisorPhase::Draining(_) = self.state {
            Quarantine::lift(&self.held.root);
            self.state = SupervisorPhase::Serving;
            self.has_crashed = false;
            self.start_at = Instant::now();
            return Ok(None);
        }
        // Nobody depends on us yet, and somebody is watching: what is wrong is said at once.
        if !self.has_served && self.held.is_fresh() && status.code().is_some() {
            bail!(failure.unwrap_or_else(|| format!("the worker ended: {status}")));
        }
        let end = WorkerExit::of(status, was_ready);
        self.has_crashed = end == WorkerExit::Crashed;
        let delay = self.backoff.after(end);
        self.start_at = Instant::now() + delay;
        tracing::error!(pid, %status, failure, ?delay, "the worker is gone; another one is started");
        if !was_ready && self.backoff.failures() >= FAILURES_OF_A_PROGRAM && self.program.fall_back() {
            tracing::error!("the new program does not serve; back to the one before");
        }
        Ok(None)
    }

    fn overdue(&mut self) -> Option<Shutdown> {
        let now = Instant::now();
        match self.state {
            SupervisorPhase::Draining(until) if now >= until => {
                tracing::warn!("calls of containerd are still under way; it has to repeat them");
                self.replace();
                // It may take its time to die.
                self.state = SupervisorPhase::Draining(now + PING);
            }
            SupervisorPhase::Stopping(until) if now >= until => {
                tracing::error!("the worker does not come to an end");
                return Some(self.leave(&[]));
            }
            _ => {}
        }
        if self.state == SupervisorPhase::Serving && self.mended.elapsed() > MEND {
            self.mend();
        }
        // Everybody was frozen, perhaps: who could not hear cannot have answered.
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
            tracing::error!(pid = worker.pid(), "the worker does not answer; it is replaced");
            worker.kill();
        } else {
            worker.ping(PING);
        }
        None
    }
}
