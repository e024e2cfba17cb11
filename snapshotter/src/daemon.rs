//! The worker: builds every part once, wires them, serves, and shuts down in order.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use layerfs::{Connection, Engine, Slots};
use oci::{Client, ClientOptions, DockerConfig};
use proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::{
    config::{Address, Config},
    containerd::Containerd,
    images::Images,
    layers::Layers,
    metrics,
    opening::Opening,
    plan::Modes,
    service::Door,
    snapshotter::Snapshotter,
};

/// Verifying and inflating, the verbs' database and folders, and at most a handful of whole streams.
const BLOCKING_THREADS: usize = 64;

/// Serves on the unix socket `address` with all state under `root`, until a signal.
///
/// # Errors
/// When something that everything needs is missing: the root, `/dev/fuse`, the socket, the database.
pub fn run(address: &str, root: &Path, config: &Config) -> anyhow::Result<()> {
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("start the runtime")?;
    let served = runtime.block_on(serve(address, root, config));
    // Requests of the kernel that still wait get their answer from nobody: the mount is gone.
    runtime.shutdown_background();
    served
}

async fn serve(address: &str, root: &Path, config: &Config) -> anyhow::Result<()> {
    let socket = socket_path(address)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .with_context(|| format!("make root folder {}", root.display()))?;
    // As the kernel will name it: mounts of an earlier process are found by their path.
    let root = &fs::canonicalize(root).with_context(|| format!("find root folder {}", root.display()))?;
    // Taken before the mount of an earlier process is: two daemons on one root would each detach the other's.
    let _lock = lock(root)?;
    let listener = listen(&socket).await?;
    let snapshotter = Arc::new(build(root, config)?);
    let restored = snapshotter.clone();
    tokio::task::spawn_blocking(move || restored.restore()).await?.context("show layers again")?;
    match &config.metrics {
        None => {}
        Some(Address::Unix(path)) => metrics::serve(listen(path).await?, snapshotter.clone()),
        Some(Address::Tcp(address)) => {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("serve metrics at {address}"))?;
            metrics::serve(listener, snapshotter.clone());
        }
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("wait for signals")?;
    let stop = async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        tracing::info!("stopping");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    };
    tracing::info!(address = %socket.display(), root = %root.display(), "soci-snapshotter-grpc successfully started");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "tell systemd that we are ready");
    }
    Server::builder()
        .add_service(SnapshotsServer::new(Door(snapshotter.clone())))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
        .context("serve snapshots")?;
    tokio::task::spawn_blocking(move || snapshotter.close()).await?;
    let _ = fs::remove_file(&socket);
    Ok(())
}

/// Each open layer has two descriptors; what a shell or systemd allows at first is enough for some hundred layers.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "raise the limit of open files");
    }
}

fn build(root: &Path, config: &Config) -> anyhow::Result<Snapshotter> {
    let store = layerfs::Store::open(root, config.room)?;
    let engine = Engine::new(tokio::runtime::Handle::current(), config.limits.clone());
    let slots = Slots::open(root.join("slots.json"))?;
    let connection = Connection::mount(&root.join("fuse"), slots, &store, &engine)?;
    let layers = Arc::new(Layers::new(store, engine, connection, config.fill));
    let client = Client::new(ClientOptions::default()).context("start the HTTP client")?;
    let modes = Modes { v1: config.v1, v2: config.v2 };
    let containerd = Containerd::new(config.containerd_address.clone());
    let images = Images::new(client, Arc::new(DockerConfig::from_env()), containerd, modes, config.unindexed);
    let opening = Opening::new(layers.clone(), config.min_layer_size, config.prefetch);
    Ok(Snapshotter::new(root, images, layers, opening, modes)?)
}

fn lock(root: &Path) -> anyhow::Result<fs::File> {
    let path = root.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("open {}", path.display()))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another soci-snapshotter-grpc uses the root folder {}", root.display());
    }
    Ok(file)
}

/// `unix://path` or a bare path.
fn socket_path(address: &str) -> anyhow::Result<PathBuf> {
    match address.split_once("://") {
        None => Ok(address.into()),
        Some(("unix", path)) => Ok(path.into()),
        Some(_) => bail!("unknown protocol for address {address}; use unix://PATH or a path"),
    }
}

async fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let doing = || format!("listen on {}", path.display());
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(doing)?;
    }
    if UnixStream::connect(path).await.is_ok() {
        bail!("{}: another process listens there", doing());
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(doing),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(doing)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(doing)?;
    Ok(listener)
}
