//! Serves the snapshots, control and health services on a socket that the supervisor listens on.
//!
//! A drain finishes the calls that containerd has begun. A client that connects later waits in the socket's queue for
//! the next worker.

use std::{
    os::unix::net::UnixListener,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use proto::{
    containerd::services::snapshots::v1::snapshots_server::SnapshotsServer,
    grpc::health::v1::health_server::HealthServer, soci::control::v1::control_server::ControlServer,
};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server as TonicServer;

use crate::{
    api::{
        control::{Control, HealthDoor},
        health::Health,
        snapshots::{PreparesUnderWay, SnapshotsDoor},
    },
    snapshots::snapshotter::Snapshotter,
};

/// Calls that take moments are finished within this time after a drain gave up on the long ones.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// What a server serves.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) control: Control,
    pub(crate) health: Health,
}

/// A server that takes calls.
pub(crate) struct Server {
    stop: oneshot::Sender<()>,
    health: Health,
    prepares: PreparesUnderWay,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Takes calls on `listener`, which is a copy of the supervisor's.
    pub(crate) fn start(services: Services, listener: UnixListener) -> anyhow::Result<Self> {
        let doing = "serve snapshots";
        listener.set_nonblocking(true).context(doing)?;
        let listener = tokio::net::UnixListener::from_std(listener).context(doing)?;
        let (stop, stopped) = oneshot::channel();
        let Services { snapshotter, control, health } = services;
        let prepares = PreparesUnderWay::default();
        let snapshots = SnapshotsDoor { snapshotter, prepares: prepares.clone() };
        let server = TonicServer::builder()
            .add_service(SnapshotsServer::new(snapshots))
            .add_service(ControlServer::new(control))
            .add_service(HealthServer::new(HealthDoor(health.clone())));
        let stopped = async {
            let _ = stopped.await;
        };
        let task =
            tokio::spawn(server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped));
        health.ready();
        Ok(Self { stop, health, prepares, task })
    }

    /// Waits until no Prepare is under way, for at most `limit`, and takes calls meanwhile: an image that comes slowly
    /// delays no other. Then finishes the short calls and takes no more.
    pub(crate) async fn drain(self, limit: Duration) {
        let until = Instant::now() + limit;
        let _ = tokio::time::timeout(limit, self.prepares.none()).await;
        // A client that watches the health is a call, too. It ends when it hears this.
        self.health.stopping();
        let _ = self.stop.send(());
        let aborted = self.task.abort_handle();
        let limit = until.saturating_duration_since(Instant::now()).max(LAST_CALLS);
        match tokio::time::timeout(limit, self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "finish calls"),
            Ok(Err(error)) => tracing::warn!(%error, "finish calls"),
            Err(_) => {
                tracing::warn!("calls were still under way and are given up; containerd repeats them");
                aborted.abort();
            }
        }
    }
}
