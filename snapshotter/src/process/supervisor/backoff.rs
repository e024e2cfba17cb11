//! How long to wait before the next worker. Pure.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

const FIRST: Duration = Duration::from_millis(100);
/// A reader waits for the next worker, and should not wait longer than this.
const LONGEST: Duration = Duration::from_secs(10);
/// SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS: a program's own faults.
const OWN_FAULT: [i32; 7] = [4, 5, 6, 7, 8, 11, 31];

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerExit {
    /// An administrator killed it while it served, or the kernel did for lack of memory.
    Killed,
    /// It ended before it served.
    Failed,
    /// It crashed by its own fault.
    Crashed,
}

impl WorkerExit {
    pub(super) fn of(status: ExitStatus, was_ready: bool) -> Self {
        match status.signal() {
            Some(signal) if OWN_FAULT.contains(&signal) => Self::Crashed,
            _ if !was_ready => Self::Failed,
            Some(_) => Self::Killed,
            None => Self::Crashed,
        }
    }
}

/// How many workers have failed in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause before the next worker, after one has ended this way. There is none after the first failure in a row.
    pub(super) fn after(&mut self, end: WorkerExit) -> Duration {
        if end == WorkerExit::Killed {
            self.failures = 0;
            return Duration::ZERO;
        }
        self.failures = self.failures.saturating_add(1);
        match self.failures - 1 {
            0 => Duration::ZERO,
            again => FIRST.saturating_mul(1 << (again - 1).min(16)).min(LONGEST),
        }
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// A worker has served for a while.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..10).map(|_| backoff.after(WorkerExit::Failed).as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.after(WorkerExit::Killed), Duration::ZERO);
        assert_eq!(backoff.after(WorkerExit::Crashed), Duration::ZERO);
        assert_eq!(backoff.after(WorkerExit::Crashed), FIRST);
        backoff.reset();
        assert_eq!((backoff.failures(), backoff.after(WorkerExit::Failed)), (0, Duration::ZERO));
        (0..100).for_each(|_| assert!(backoff.after(WorkerExit::Failed) <= LONGEST));
    }

    #[test]
    fn exits_are_classified() {
        // As wait(2) has them: a signal, or an exit code in the second byte.
        for (status, was_ready, expected) in [
            (9, true, WorkerExit::Killed),
            (15, true, WorkerExit::Killed),
            (9, false, WorkerExit::Failed),
            (11, true, WorkerExit::Crashed),
            (6, false, WorkerExit::Crashed),
            (1 << 8, false, WorkerExit::Failed),
            (101 << 8, true, WorkerExit::Crashed),
        ] {
            assert_eq!(
                WorkerExit::of(ExitStatus::from_raw(status), was_ready),
                expected,
                "{status} {was_ready}"
            );
        }
    }
}
