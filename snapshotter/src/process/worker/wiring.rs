//! Builds the parts of a worker, once, and connects them.

use std::{fs::File, path::Path, sync::Arc, time::Instant};

use anyhow::Context;
use layerfs::{Connection, CrashNotes, Engine, Mounted, Slots, Store};
use oci::{Client, DockerConfig};
use tokio::{net::TcpListener, runtime::Handle, task::spawn_blocking};

use crate::{
    api::{
        control::{Control, SupervisorHandle},
        health::Health,
        metrics,
        server::Services,
    },
    config::{Address, Config},
    images::{containerd::Containerd, image_index::Images, opening::Opening, plan::Modes},
    layers::{Layers, quarantine::Quarantine},
    snapshots::snapshotter::{SnapshotOptions, Snapshotter},
    socket,
};

/// Everything that serves.
pub(crate) struct Parts {
    pub(crate) layers: Arc<Layers>,
    pub(crate) services: Services,
}

/// What the parts are made of, beside the configuration.
pub(crate) struct PartsInput<'a> {
    pub(crate) root: &'a Path,
    /// The socket that containerd calls, for the status.
    pub(crate) socket: &'a Path,
    /// No process serves it at the moment.
    pub(crate) mounted: Mounted,
    /// No process has served it before.
    pub(crate) is_first: bool,
    /// Memory that outlives the worker.
    pub(crate) notes: &'a File,
    /// The worker before this one crashed.
    pub(crate) has_crashed: bool,
    pub(crate) supervisor: SupervisorHandle,
    /// Called when the kernel ends the connection and the worker has not asked for it.
    pub(crate) lost: fn(),
}

impl Parts {
    /// Builds the parts, and shows again what was shown on the mount.
    pub(crate) async fn build(input: PartsInput<'_>, config: &Config) -> anyhow::Result<Self> {
        let PartsInput { root, socket, mounted, is_first, notes, has_crashed, supervisor, lost } = input;
        let began = Instant::now();
        // Reading the machine's certificates is most of what a start takes.
        let http = config.http.clone();
        let client = spawn_blocking(move || Client::new(http));
        let (crash_notes, at_crash) = CrashNotes::noted_in(notes)?;
        let quarantine = Quarantine::open(root, has_crashed.then_some(&at_crash));
        let store = Store::open_noting(root, config.room, crash_notes)?;
        let engine = Engine::new(Handle::current(), config.limits.clone());
        let slots = root.join("slots.json");
        let slots = if is_first { Slots::open(slots)? } else { Slots::open_again(slots)? };
        let connection = Connection::adopt(mounted, slots, &store, &engine)?;
        let layers = Arc::new(Layers::new(store, engine, connection, config.fill, quarantine));
        let client = client.await?.context("start the HTTP client")?;
        let modes = Modes { v1: config.v1, v2: config.v2 };
        let containerd = Containerd::new(config.containerd_address.clone());
        let credentials = Arc::new(DockerConfig::from_env());
        let images = Images::new(client, credentials, containerd, modes, config.unindexed);
        let opening = Opening::new(layers.clone(), config.min_layer_size, config.prefetch);
        let options = SnapshotOptions { modes, mount_options: &config.mount_options };
        let snapshotter = Arc::new(Snapshotter::new(root, images, layers.clone(), opening, options)?);
        let restoring = snapshotter.clone();
        spawn_blocking(move || restoring.restore()).await?.context("show layers again")?;
        layers.serve(lost)?;
        tracing::info!(took = ?began.elapsed(), "{}", layers.summary());
        let control = Control::new(snapshotter.clone(), socket, root, config, supervisor);
        Ok(Self { layers, services: Services { snapshotter, control, health: Health::new() } })
    }

    /// Serves metrics if the configuration says where.
    pub(crate) async fn serve_metrics(&self, config: &Config) -> anyhow::Result<()> {
        let (snapshotter, health) = (self.services.snapshotter.clone(), self.services.health.clone());
        match &config.metrics {
            None => {}
            Some(Address::Unix(path)) => {
                let listener = socket::listen(path)?;
                listener.set_nonblocking(true)?;
                metrics::serve(tokio::net::UnixListener::from_std(listener)?, snapshotter, health);
            }
            Some(Address::Tcp(address)) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.with_context(|| format!("serve metrics at {address}"))?;
                metrics::serve(listener, snapshotter, health);
            }
        }
        Ok(())
    }
}
