//! The worker: serves the kernel and containerd with what its supervisor holds, and outlives the supervisor.
//!
//! A worker never unwinds. A request of the kernel that it dropped would be answered with an error; one that dies with
//! the worker comes again to the next worker. So a worker ends by an exit, or by SIGKILL, once no request is waiting
//! or another process takes over.

mod inherited;
mod wiring;

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    pin::pin,
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use layerfs::Mounted;
use rustix::process::{Resource, Rlimit, Signal, getpid, getppid, getrlimit, kill_process, setrlimit};
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    api::{
        control::{SupervisorHandle, UpgradeRequest},
        server::Server,
    },
    config::Config,
    process::{
        channel::{Channel, ToSupervisor, ToWorker, WorkerStart},
        descriptors::NamedDescriptor,
        handover, mount_users, resources,
        worker::{
            inherited::InheritedResources,
            wiring::{Parts, PartsInput},
        },
    },
    socket,
    sync::lock,
};

/// For verifying and inflating, the verbs' database and folders, and at most a handful of whole streams.
const BLOCKING_THREADS: usize = 64;
/// Calls are finished before another program serves, however long they take: the supervisor has the last word.
const DRAIN_LIMIT: Duration = Duration::from_secs(55);
/// Calls are finished before the daemon ends, or another one takes over and waits for this one.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// A supervisor that wanted calls to be finished and has not replaced the worker after this time will not.
const RESUME: Duration = Duration::from_secs(30);
/// How often the worker looks whether containers still need the mount, when no other process would tell it.
const LOOK: Duration = Duration::from_secs(2);
/// Pause after something that may fail again at once.
const PAUSE: Duration = Duration::from_secs(1);
const STOPPING: &str = "the daemon is stopping";
/// Names of containers in one message.
const MAX_NAMES: usize = 50;

/// Serves with the descriptors of the supervisor, until another process serves or no container needs the mount. Exits;
/// it returns only with an error.
pub(super) fn run(address: &str, root: &Path, descriptors: Vec<NamedDescriptor>) -> anyhow::Result<()> {
    let inherited = InheritedResources::sort(descriptors)?;
    let Some(ToWorker::Begin(start)) = inherited.channel.receive()? else {
        bail!("the supervisor sends no first message");
    };
    // The file is opened anew: a descriptor that two workers share has one position for both.
    let config = format!("/proc/self/fd/{}", inherited.config.as_raw_fd());
    let config = fs::read_to_string(config).context("read the configuration")?;
    let config = &Config::parse(&config).map_err(anyhow::Error::msg)?;
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("start the runtime")?;
    let root = fs::canonicalize(root).with_context(|| format!("find root folder {}", root.display()))?;
    let socket = socket::path_of(address).unwrap_or_default();
    let begun = runtime.block_on(Worker::begin(&root, socket, config, &inherited, start));
    let ended = begun.and_then(|worker| {
        worker.report_lost_containers(start.has_lost);
        runtime.block_on(worker.serve(&inherited))
    });
    let Err(error) = ended else { process::exit(0) };
    let why = format!("{error:#}");
    if inherited.channel.send(&ToSupervisor::Failed(why.clone())).is_err() {
        tracing::error!(error = why, "the worker ends");
    }
    process::exit(1)
}

/// What the worker knows of the process that is responsible for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SupervisorState {
    Lives,
    /// It died. Another daemon may take over.
    Died,
    /// It was stopped. Containers still need the mount, and the worker serves nothing else.
    Stopped,
}

struct Worker {
    parts: Parts,
    /// None while no calls are taken.
    server: Option<Server>,
    supervisor: SupervisorState,
    /// The supervisor's process; 0 when it is gone.
    supervisor_pid: Arc<AtomicU32>,
    root: PathBuf,
    socket: PathBuf,
    upgrade_requests: mpsc::UnboundedReceiver<UpgradeRequest>,
    /// Requests that the supervisor has been told of, and has not answered.
    asked_upgrades: Vec<UpgradeRequest>,
    /// The last status line that the supervisor has been told.
    reported: String,
}

impl Worker {
    async fn begin(
        root: &Path,
        socket: PathBuf,
        config: &Config,
        inherited: &InheritedResources,
        start: WorkerStart,
    ) -> anyhow::Result<Self> {
        let WorkerStart { is_first, has_crashed, parameters, .. } = start;
        let fuse = inherited.fuse.try_clone()?;
        let (upgrades, upgrade_requests) = mpsc::unbounded_channel();
        let pid = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        let supervisor_pid = Arc::new(AtomicU32::new(pid));
        let input = PartsInput {
            root,
            socket: &socket,
            mounted: Mounted::inherited(&resources::mount_path(root), fuse, parameters),
            is_first,
            notes: &inherited.notes,
            has_crashed,
            supervisor: SupervisorHandle { pid: supervisor_pid.clone(), upgrades },
            // The next worker is given another mount.
            lost: || end_at_once(),
        };
        let parts = Parts::build(input, config).await?;
        match parts.serve_metrics(config).await {
            // Layers are served even without metrics. Only a new daemon refuses a wrong address.
            Err(error) if !is_first => tracing::error!(error = format!("{error:#}"), "no metrics are served"),
            served => served?,
        }
        let mut worker = Self {
            parts,
            server: None,
            supervisor: SupervisorState::Lives,
            supervisor_pid,
            root: root.to_owned(),
            socket,
            upgrade_requests,
            asked_upgrades: Vec::new(),
            reported: String::new(),
        };
        worker.take_calls(inherited)?;
        Ok(worker)
    }

    fn take_calls(&mut self, inherited: &InheritedResources) -> anyhow::Result<()> {
        if let Some(listener) = inherited.listener()? {
            self.server = Some(Server::start(self.parts.services.clone(), listener)?);
        }
        Ok(())
    }

    fn report_lost_containers(&self, has_lost: bool) {
        if !has_lost {
            return;
        }
        match self.parts.services.snapshotter.dependents() {
            Ok(lost) if lost.is_empty() => {}
            Ok(lost) => tracing::error!(
                containers = names(lost).join(" "),
                "the mount of an earlier daemon was lost with it: these containers get errors from lazily loaded \
                 files if they still run; start them anew"
            ),
            Err(error) => tracing::error!(%error, "find the containers that lost the mount"),
        }
    }

    async fn serve(mut self, inherited: &InheritedResources) -> anyhow::Result<()> {
        let mut messages = inherited.messages()?;
        let takers = listen_for_handover(&self.root);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        // Skip the ticks that are missed while the worker is not stopped.
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resume = Box::pin(tokio::time::sleep(Duration::MAX));
        // If the supervisor has just died, the worker has all it needs, and serves.
        let _ = inherited.channel.send(&ToSupervisor::Ready);
        tracing::info!(
            address = %self.socket.display(), root = %self.root.display(),
            "soci-snapshotter-grpc successfully started"
        );
        loop {
            tokio::select! {
                message = messages.recv(), if self.supervisor == SupervisorState::Lives => {
                    match self.obey(message, inherited).await? {
                        Next::Serve => {}
                        Next::Resume => resume.set(tokio::time::sleep(RESUME)),
                        Next::End => return Ok(()),
                    }
                },
                Some(request) = self.upgrade_requests.recv() => self.ask_for_upgrade(request, &inherited.channel),
                () = &mut resume => {
                    resume.set(tokio::time::sleep(Duration::MAX));
                    self.resume(inherited);
                }
                taker = next_taker(takers.as_ref()) => match taker {
                    Ok(taker) => self.hand_over(taker, inherited).await,
                    Err(error) => {
                        tracing::warn!(%error, "listen for a daemon that takes over");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                _ = terminate.recv() => if self.may_end() { return self.end().await },
                _ = interrupt.recv() => if self.may_end() { return self.end().await },
                _ = hangup.recv() => {}
                _ = look.tick(), if self.supervisor == SupervisorState::Stopped => {
                    if !self.is_mount_used().await {
                        tracing::info!("no container needs the mount any more");
                        return self.end().await;
                    }
                }
            }
        }
    }

    /// Does what the supervisor says; without a message, the supervisor is gone.
    async fn obey(
        &mut self,
        message: Option<ToWorker>,
        inherited: &InheritedResources,
    ) -> anyhow::Result<Next> {
        match message {
            Some(ToWorker::Ping) => self.pong(&inherited.channel),
            Some(ToWorker::Refused(why)) => self.answer_upgrades(&Err(why)),
            Some(ToWorker::Drain) => {
                self.answer_upgrades(&Ok(()));
                self.drain(DRAIN_LIMIT, Ok(())).await;
                let _ = inherited.channel.send(&ToSupervisor::Drained);
                return Ok(Next::Resume);
            }
            Some(ToWorker::Stop { is_kept }) => {
                self.answer_upgrades(&Err(STOPPING.into()));
                if self.stop(&inherited.channel, is_kept).await? {
                    return Ok(Next::End);
                }
                // A client that connects from now on is to be refused.
                drop(lock(&inherited.listener).take());
            }
            Some(ToWorker::Begin(_) | ToWorker::Unknown) => {}
            None => self.lose_supervisor(),
        }
        Ok(Next::Serve)
    }

    fn pong(&mut self, channel: &Channel) {
        let _ = channel.send(&ToSupervisor::Pong);
        let text = self.parts.layers.summary();
        if text != self.reported && channel.send(&ToSupervisor::Status(text.clone())).is_ok() {
            self.reported = text;
        }
    }

    fn ask_for_upgrade(&mut self, request: UpgradeRequest, channel: &Channel) {
        // A request that is dropped is answered: there is no supervisor.
        if self.supervisor == SupervisorState::Lives && channel.send(&ToSupervisor::Upgrade).is_ok() {
            self.asked_upgrades.push(request);
        }
    }

    fn answer_upgrades(&mut self, answer: &Result<(), String>) {
        for request in self.asked_upgrades.drain(..) {
            let _ = request.send(answer.clone());
        }
    }

    /// Finishes calls. A client that asks for an upgrade meanwhile gets `answer`: its request is a call, too.
    async fn drain(&mut self, limit: Duration, answer: Result<(), String>) {
        let Some(server) = self.server.take() else { return };
        let mut drained = pin!(server.drain(limit));
        loop {
            tokio::select! {
                () = &mut drained => return,
                Some(request) = self.upgrade_requests.recv() => drop(request.send(answer.clone())),
            }
        }
    }

    fn resume(&mut self, inherited: &InheritedResources) {
        if self.server.is_none()
            && let Err(error) = self.take_calls(inherited)
        {
            tracing::error!(
                error = format!("{error:#}"),
                "no calls are taken any more; the kernel is still served"
            );
        }
    }

    /// Ends the mount unless containers need it. True if nothing is left to be served.
    async fn stop(&mut self, channel: &Channel, is_kept: bool) -> anyhow::Result<bool> {
        self.drain(STOP_LIMIT, Err(STOPPING.into())).await;
        let dependents = self.parts.services.snapshotter.dependents().unwrap_or_else(|error| {
            tracing::error!(%error, "find the containers that need the mount");
            vec!["(unknown)".into()]
        });
        if dependents.is_empty() {
            self.close().await?;
            let _ = fs::remove_file(self.root.join(handover::SOCKET));
            let _ = channel.send(&ToSupervisor::Ended);
            return Ok(true);
        }
        if is_kept {
            // The service manager has the descriptors, and the supervisor is about to kill this worker.
            let layers = self.parts.layers.clone();
            spawn_blocking(move || layers.stop_writing()).await?;
        }
        self.supervisor = SupervisorState::Stopped;
        // The supervisor may be gone by now. What containers need is served all the same.
        if channel.send(&ToSupervisor::Needed(names(dependents))).is_err() {
            tracing::warn!(pid = process::id(), "containers need the mount, and the supervisor is gone");
        }
        if is_kept {
            wait_for_kill(channel);
        }
        Ok(false)
    }

    fn lose_supervisor(&mut self) {
        self.supervisor = SupervisorState::Died;
        self.supervisor_pid.store(0, Ordering::Relaxed);
        self.answer_upgrades(&Err("the supervisor is gone".into()));
        tracing::error!(
            pid = process::id(),
            "the supervisor is gone; this process serves on until a new daemon takes over or it gets a SIGTERM"
        );
    }

    /// Hands the mount over to another daemon. No failure ends this worker: no other process may have the mount.
    async fn hand_over(&mut self, mut taker: UnixStream, inherited: &InheritedResources) {
        if !handover::is_allowed(&taker) {
            return;
        }
        if self.supervisor == SupervisorState::Lives && self.is_child() {
            let supervisor = self.supervisor_pid.load(Ordering::Relaxed);
            let why = format!("another soci-snapshotter-grpc (process {supervisor}) uses the root folder");
            let _ = handover::refuse(&taker, &why);
            return;
        }
        tracing::info!("a new daemon takes over");
        self.drain(STOP_LIMIT, Err("a new daemon takes over".into())).await;
        // Without the listener, the new daemon listens on a socket of its own.
        let listener = inherited.listener().ok().flatten();
        let socket = listener.as_ref().map(|listener| (self.socket.as_path(), listener.as_fd()));
        let given = handover::give(&taker, inherited.fuse.as_fd(), inherited.lock.as_fd(), socket);
        if let Err(error) = given {
            tracing::warn!(%error, "hand over");
        }
        // The new daemon kills this process, or disconnects.
        let _ = taker.read(&mut [0]).await;
        tracing::warn!("the new daemon is gone; this process serves on");
        self.resume(inherited);
    }

    /// Whether the supervisor is still this process's parent. The channel may not have told of its death yet.
    fn is_child(&self) -> bool {
        getppid().is_some_and(|pid| {
            pid.as_raw_nonzero().get().unsigned_abs() == self.supervisor_pid.load(Ordering::Relaxed)
        })
    }

    /// Whether a signal ends this worker. While the supervisor lives, the supervisor decides.
    fn may_end(&self) -> bool {
        if self.supervisor == SupervisorState::Lives {
            tracing::warn!(
                supervisor = self.supervisor_pid.load(Ordering::Relaxed),
                "a signal is ignored; send it to the supervisor"
            );
        }
        self.supervisor != SupervisorState::Lives
    }

    async fn is_mount_used(&self) -> bool {
        let mount = resources::mount_path(&self.root);
        spawn_blocking(move || mount_users::are_over(&mount)).await.unwrap_or(true)
    }

    /// Ends the mount, and with it this worker.
    async fn end(mut self) -> anyhow::Result<()> {
        self.drain(STOP_LIMIT, Err(STOPPING.into())).await;
        self.close().await?;
        if self.supervisor == SupervisorState::Died {
            let _ = fs::remove_file(&self.socket);
        }
        let _ = fs::remove_file(self.root.join(handover::SOCKET));
        tracing::info!("stopped");
        Ok(())
    }

    async fn close(&self) -> anyhow::Result<()> {
        let snapshotter = self.parts.services.snapshotter.clone();
        Ok(spawn_blocking(move || snapshotter.close()).await?)
    }
}

/// How a worker goes on after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Serve,
    /// Take calls again if the supervisor does not replace this worker in time.
    Resume,
    End,
}

/// Listens for a daemon that takes over. On an error, for example a full disk, the worker serves without.
fn listen_for_handover(root: &Path) -> Option<tokio::net::UnixListener> {
    let listener = handover::listen(root).and_then(|listener| {
        listener.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(listener)
    });
    listener.inspect_err(|error| tracing::error!(%error, "listen for a daemon that takes over")).ok()
}

async fn next_taker(takers: Option<&tokio::net::UnixListener>) -> io::Result<UnixStream> {
    match takers {
        Some(takers) => Ok(takers.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Waits for the supervisor to kill this process, which ends itself if the supervisor is gone.
fn wait_for_kill(channel: &Channel) -> ! {
    while let Ok(Some(_)) = channel.receive::<ToWorker>() {}
    end_at_once()
}

/// Ends this process so that the next worker is started at once: SIGKILL does not count as a crash.
pub(crate) fn end_at_once() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    process::abort()
}

fn names(mut names: Vec<String>) -> Vec<String> {
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names
}

/// Raises the limit of open files. Each open layer has two, and the usual limit is enough for some hundred layers.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "raise the limit of open files");
    }
}
