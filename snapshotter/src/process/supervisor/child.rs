//! A worker as its supervisor sees it: a child process, and a channel to it.

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

/// Variables by which the service manager talks with the supervisor. A worker must not have them.
const SERVICE_MANAGER: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"];

const REAP_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct ChildWorker {
    child: Child,
    process: OwnedFd,
    channel: Channel,
    is_ready: bool,
    /// It said that it has unmounted, and ends.
    has_unmounted: bool,
    started: Instant,
    heard: Instant,
    pinged: Instant,
}

/// A worker that has ended.
#[derive(Debug)]
pub(super) struct EndedWorker {
    pub(super) status: ExitStatus,
    /// It had served.
    pub(super) was_ready: bool,
    /// It had unmounted.
    pub(super) has_unmounted: bool,
}

impl ChildWorker {
    pub(super) fn start(
        program: &Program,
        resources: &Resources,
        config: BorrowedFd<'_>,
        start: &ToWorker,
    ) -> io::Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        let mut command = program.command();
        let mut words = env::args_os();
        command.arg0(words.next().unwrap_or_default()).args(words);
        // A terminal's Ctrl-C goes to the supervisor alone.
        command.process_group(0);
        for name in SERVICE_MANAGER {
            command.env_remove(name);
        }
        let passing = Passing::to(
            &mut command,
            &[
                (FUSE, resources.mounted.as_fd()),
                (LOCK, resources.lock.as_fd()),
                (LISTENER, resources.listener.as_fd()),
                (NOTES, resources.notes.as_fd()),
                (CONFIG, config),
                (CHANNEL, theirs.as_fd()),
            ],
        )?;
        channel.send(start)?;
        let mut child = command.spawn()?;
        drop(passing);
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
            // It would serve without supervision.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        let now = Instant::now();
        Ok(Self {
            child,
            process,
            channel,
            is_ready: false,
            has_unmounted: false,
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

    /// Whether it serves and has lived for so long.
    pub(super) fn is_steady(&self, age: Duration) -> bool {
        self.is_ready && self.started.elapsed() > age
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.process.as_fd(), self.channel.as_fd()]
    }

    pub(super) fn send(&self, message: &ToWorker) {
        if let Err(error) = self.channel.send(message) {
            tracing::warn!(pid = self.pid(), %error, ?message, "send a message to the worker");
        }
    }

    /// Its next message, if there is one.
    pub(super) fn message(&mut self) -> Option<ToSupervisor> {
        if !is_readable(self.channel.as_fd(), Duration::ZERO).unwrap_or(false) {
            return None;
        }
        let message = match self.channel.receive() {
            Ok(message) => message?,
            Err(error) => {
                tracing::warn!(pid = self.pid(), %error, "receive a message of the worker");
                ToSupervisor::Unknown
            }
        };
        self.heard = Instant::now();
        self.is_ready |= message == ToSupervisor::Ready;
        self.has_unmounted |= message == ToSupervisor::Ended;
        Some(message)
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<EndedWorker> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(EndedWorker { status, was_ready: self.is_ready, has_unmounted: self.has_unmounted })
    }

    /// Kills it. The kernel's requests that it has not answered go to the next worker.
    pub(super) fn kill(&mut self) {
        // It may take a while to die, and must not count as silent again meanwhile.
        (self.heard, self.pinged) = (Instant::now(), Instant::now());
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Waits for its end for a moment. A process that waits for a disk dies later.
    pub(super) fn reap(&mut self) {
        let _ = is_readable(self.process.as_fd(), REAP_LIMIT);
        let _ = self.child.try_wait();
    }

    /// Gives it the whole time again to say something.
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
            // A worker that does not receive it counts as silent, and is replaced.
            let _ = self.channel.send(&ToWorker::Ping);
        }
        if Instant::now() >= self.due(period) {
            self.pinged = Instant::now();
        }
    }
}
