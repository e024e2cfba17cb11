//! The parts of a worker: built once, wired, and the calls of containerd served on a socket that others hold.

use std::{
    fs::File,
    os::unix::net::UnixListener,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use layerfs::{Connection, CrashNotes, Engine, Mounted, Slots};
use oci::{Client, DockerConfig};
use proto::{
    containerd::services::snapshots::v1::snapshots_server::SnapshotsServer,
    grpc::health::v1::health_server::HealthServer, soci::control::v1::control_server::ControlServer,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::{
    api::{
        control::{Above, Control, HealthDoor},
        health::Health,
        metrics,
        snapshots::{Door, UnderWay},
    },
    config::{Address, Config},
    images::{containerd::Containerd, image_index::Images, opening::Opening, plan::Modes},
    layers::{Layers, quarantine::Quarantine},
    process::resources,
    snapshots::snapshotter::{SnapshotOptions, Snapshotter},
};

/// For calls that take moments.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Everything that serves.
pub(crate) struct Daemon {
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) layers: Arc<Layers>,
    health: Health,
    control: Control,
}

/// What a daemon is made of, beside its configuration.
pub(crate) struct Start<'a> {
    pub(crate) root: &'a Path,
    /// Where calls come from, to be told.
    pub(crate) socket: &'a Path,
    /// Nobody serves it.
    pub(crate) mounted: Mounted,
    /// And nobody has.
    pub(crate) is_first: bool,
    /// Memory that outlives processes.
    pub(crate) notes: &'a File,
    /// The process before this one did.
    pub(crate) has_crashed: bool,
    pub(crate) above: Above,
    /// Called when the kernel ends the mount and nobody here asked for it.
    pub(crate) lost: fn(),
}

impl Daemon {
    /// Wires the parts, and shows what was shown on the mount.
    pub(crate) async fn build(start: Start<'_>, config: &Config) -> anyhow::Result<Self> {
        let Start { root, socket, mounted, is_first, notes, has_crashed, above, lost } = start;
        let began = Instant::now();
        // Reading the machine's certificates is most of what a start takes.
        let http = config.http.clone();
        let client = tokio::task::spawn_blocking(move || Client::new(http));
        let (work, at_end) = CrashNotes::noted_in(notes)?;
        let quarantine = Quarantine::open(root, has_crashed.then_some(&at_end));
        let store = layerfs::Store::open_noting(root, config.room, work)?;
        let engine = Engine::new(tokio::runtime::Handle::current(), config.limits.clone());
        let slots = root.join("slots.json");
        let slots = if is_first { Slots::open(slots)? } else { Slots::open_again(slots)? };
        let connection = Connection::adopt(mounted, slots, &store, &engine)?;
        let layers = Arc::new(Layers::new(store, engine, connection, config.fill, quarantine));
        let client = client.await?.context("start the HTTP client")?;
        let modes = Modes { v1: config.v1, v2: config.v2 };
        let containerd = Containerd::new(config.containerd_address.clone());
        let images =
            Images::new(client, Arc::new(DockerConfig::from_env()), containerd, modes, config.unindexed);
        let opening = Opening::new(layers.clone(), config.min_layer_size, config.prefetch);
        let given = SnapshotOptions { modes, mount_options: &config.mount_options };
        let snapshotter = Arc::new(Snapshotter::new(root, images, layers.clone(), opening, given)?);
        let restored = snapshotter.clone();
        tokio::task::spawn_blocking(move || restored.restore()).await?.context("show layers again")?;
        layers.serve(lost)?;
        tracing::info!(took = ?began.elapsed(), "{}", layers.summary());
        let control = Control::new(snapshotter.clone(), socket, root, config, above);
        Ok(Self { snapshotter, layers, health: Health::new(), control })
    }

    /// Serves metrics where the configuration says so.
    pub(crate) async fn serve_metrics(&self, config: &Config) -> anyhow::Result<()> {
        match &config.metrics {
            None => {}
            Some(Address::Unix(path)) => {
                let listener = resources::listen(path)?;
                listener.set_nonblocking(true)?;
                let listener = tokio::net::UnixListener::from_std(listener)?;
                metrics::serve(listener, self.snapshotter.clone(), self.health.clone());
            }
            Some(Address::Tcp(address)) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.with_context(|| format!("serve metrics at {address}"))?;
                metrics::serve(listener, self.snapshotter.clone(), self.health.clone());
            }
        }
        Ok(())
    }
}

/// The calls of containerd, while they are taken.
pub(crate) struct Calls {
    stop: oneshot::Sender<()>,
    health: Health,
    under_way: UnderWay,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Calls {
    /// Takes calls on `listener`, a copy.
    pub(crate) fn take(daemon: &Daemon, listener: UnixListener) -> anyhow::Result<Self> {
        let doing = "serve snapshots";
        listener.set_nonblocking(true).context(doing)?;
        let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).context(doing)?);
        let (stop, stopped) = oneshot::channel();
        let (health, under_way) = (daemon.health.clone(), UnderWay::default());
        let door = Door { snapshotter: daemon.snapshotter.clone(), under_way: under_way.clone() };
        let server = Server::builder()
            .add_service(SnapshotsServer::new(door))
            .add_service(ControlServer::new(daemon.control.clone()))
            .add_service(HealthServer::new(HealthDoor(health.clone())));
        let stopped = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(server.serve_with_incoming_shutdown(incoming, stopped));
        health.ready();
        Ok(Self { stop, health, under_way, task })
    }

    /// Takes no more once those are finished that were begun, which is at most so long from now. Until then calls are
    /// answered: one image that comes slowly holds up no other. Who calls later waits for whoever takes calls next.
    pub(crate) async fn drain(self, limit: Duration) {
        let until = Instant::now() + limit;
        let _ = tokio::time::timeout(limit, self.under_way.none()).await;
        // Who listens to our health hears it, and goes: it is a call, too.
        self.health.stopping();
        let _ = self.stop.send(());
        let aborted = self.task.abort_handle();
        let limit = until.saturating_duration_since(Instant::now()).max(LAST_CALLS);
        match tokio::time::timeout(limit, self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "finish calls"),
            Ok(Err(error)) => tracing::warn!(%error, "finish calls"),
            Err(_) => {
                tracing::warn!("calls are still under way");
                aborted.abort();
            }
        }
    }
}
