//! A worker as its supervisor sees it: a child, and a channel to it.

use std::{
    env, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::program::Program;
use crate::process::{
    channel::{CHANNEL, Channel, ToSupervisor, ToWorker},
    descriptors::Passing,
    handover::is_readable,
    resources::{CONFIG, FUSE, LISTENER, LOCK, NOTES, Resources},
};

/// What only the first process is to say to the service manager, or to hear from it.
const SUPERVISORS: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"];

const REAP_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct ChildWorker {
    child: Child,
    process: OwnedFd,
    channel: Channel,
    is_ready: bool,
    /// It said that the mount is gone and it goes, too.
    has_ended: bool,
    started: Instant,
    heard: Instant,
    pinged: Instant,
}

impl ChildWorker {
    pub(super) fn start(
        program: &Program,
        held: &Resources,
        config: BorrowedFd<'_>,
        begin: &ToWorker,
    ) -> io::Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        let mut command = program.command();
        let mut words = env::args_os();
        command.arg0(words.next().unwrap_or_default()).args(words);
        // A terminal's Ctrl-C is for the first process alone.
        command.process_group(0);
        for name in SUPERVISORS {
            command.env_remove(name);
        }
        let passing = Passing::to(
            &mut command,
            &[
                (FUSE, held.mounted.as_fd()),
                (LOCK, held.lock.as_fd()),
                (LISTENER, held.listener.as_fd()),
                (NOTES, held.notes.as_fd()),
                (CONFIG, config),
                (CHANNEL, theirs.as_fd()),
            ],
        )?;
        channel.send(begin)?;
        let mut child = command.spawn()?;
        drop(passing);
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
            // It would serve, and nobody would know of it.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        let now = Instant::now();
        Ok(Self {
            child,
            process,
            channel,
            is_ready: false,
            has_ended: false,
            started: now,
            heard: now,
            pinged: now,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// It serves, and has lived for so long.
    pub(super) fn is_steady(&self, age: Duration) -> bool {
        self.is_ready && self.started.elapsed() > age
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.process.as_fd(), self.channel.as_fd()]
    }

    pub(super) fn order(&self, order: &ToWorker) {
        if let Err(error) = self.channel.send(order) {
            tracing::warn!(pid = self.pid(), %error, ?order, "tell the worker");
        }
    }

    /// What it has said, if anything is left of it.
    pub(super) fn news(&mut self) -> Option<ToSupervisor> {
        if !is_readable(self.channel.as_fd(), Duration::ZERO).unwrap_or(false) {
            return None;
        }
        let news = match self.channel.receive() {
            Ok(news) => news?,
            Err(error) => {
                tracing::warn!(pid = self.pid(), %error, "listen to the worker");
                ToSupervisor::Unknown
            }
        };
        self.heard = Instant::now();
        self.is_ready |= news == ToSupervisor::Ready;
        self.has_ended |= news == ToSupervisor::Ended;
        Some(news)
    }

    /// How it ended, whether it had served, and whether it said that it would; if it has.
    pub(super) fn end(&mut self) -> Option<(ExitStatus, bool, bool)> {
        let status = self.child.try_wait().ok().flatten()?;
        Some((status, self.is_ready, self.has_ended))
    }

    /// It goes at once, without a word to the kernel about requests that it has.
    pub(super) fn kill(&mut self) {
        // It may take a while to die, and is not to be found silent again at once.
        (self.heard, self.pinged) = (Instant::now(), Instant::now());
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Waits for its end for a moment; one that waits for a disk comes to it later.
    pub(super) fn reap(&mut self) {
        let _ = is_readable(self.process.as_fd(), REAP_LIMIT);
        let _ = self.child.try_wait();
    }

    /// It has time again to say something.
    pub(super) fn forgive(&mut self) {
        self.heard = Instant::now();
    }

    pub(super) fn is_silent(&self, limit: Duration) -> bool {
        self.heard.elapsed() > limit
    }

    pub(super) fn due(&self, period: Duration) -> Instant {
        self.pinged + period
    }

    pub(super) fn ping(&mut self, period: Duration) {
        if self.is_ready && Instant::now() >= self.due(period) {
            // What it had to hear it has heard, or it is silent and goes.
            let _ = self.channel.send(&ToWorker::Ping);
        }
        if Instant::now() >= self.due(period) {
            self.pinged = Instant::now();
        }
    }
}
