//! Whether the daemon serves: told by who starts and stops it, asked by the doors.

use tokio::sync::watch;

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Ready,
    Stopping,
}

/// Shared by all who tell or ask.
#[derive(Debug, Clone)]
pub(crate) struct Health(watch::Sender<Phase>);

impl Health {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }

    /// Requests are answered from now on.
    pub(crate) fn ready(&self) {
        self.0.send_replace(Phase::Ready);
    }

    /// Requests are not taken any more.
    pub(crate) fn stopping(&self) {
        self.0.send_replace(Phase::Stopping);
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Who is told of every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}
