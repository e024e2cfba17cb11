//! Whether the daemon serves. The server sets it; the health service and the metrics read it.

use tokio::sync::watch;

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Ready,
    Stopping,
}

/// Shared by its writers and readers.
#[derive(Debug, Clone)]
pub(crate) struct Health(watch::Sender<Phase>);

impl Health {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }

    /// The daemon answers requests from now on.
    pub(crate) fn ready(&self) {
        self.0.send_replace(Phase::Ready);
    }

    /// The daemon takes no more requests.
    pub(crate) fn stopping(&self) {
        self.0.send_replace(Phase::Stopping);
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Receives every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}
