//! The worker: serves the kernel and containerd with what its supervisor holds, and outlives it.
//!
//! It never unwinds: a request of the kernel that it drops is answered with an error, one that dies with it comes
//! again to the next worker. So its end is an exit, or SIGKILL, once nobody waits or somebody takes over.

pub(crate) mod wiring;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use layerfs::Mounted;
use rustix::process::{Resource, Rlimit, Signal, getpid, getppid, getrlimit, kill_process, setrlimit};
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior},
};

use crate::{
    api::control,
    config::Config,
    process::{
        channel::{Begin, CHANNEL, Channel, News, Order},
        descriptors::{self, Named},
        handover, mount_users,
        resources::{self, CONFIG, FUSE, LISTENER, LOCK, NOTES},
        supervisor,
        worker::wiring::{Calls, Daemon, Start},
    },
    sync::lock,
};

/// Verifying and inflating, the verbs' database and folders, and at most a handful of whole streams.
const BLOCKING_THREADS: usize = 64;
/// For another program to serve calls are finished, however long they take: the supervisor has the last word.
const DRAIN_LIMIT: Duration = Duration::from_secs(55);
/// Before the end, and before somebody takes over, who waits.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// A supervisor that wanted calls to be finished and has not gone on after so long will not.
const RESUME: Duration = Duration::from_secs(30);
/// How often it is looked whether containers still need the mount, when nobody else would say so.
const LOOK: Duration = Duration::from_secs(2);
/// After something that may go wrong again at once.
const PAUSE: Duration = Duration::from_secs(1);
const STOPPING: &str = "the daemon is stopping";
/// Of names in one message.
const MOST_NAMES: usize = 50;

/// Serves on the socket `address` with all state under `root`, until a signal: as a supervisor, or as its worker where
/// this process was started by one. `config` is the path of the configuration, and whether it must be there.
///
/// # Errors
/// When something that everything needs is missing: the root, `/dev/fuse`, the socket, the database.
pub fn run(address: &str, root: &Path, config: (&Path, bool)) -> anyhow::Result<()> {
    let Some(handed) = descriptors::of_supervisor() else { return supervisor::run(address, root, config) };
    let handed = Handed::sort(handed.context("take what the supervisor handed over")?)?;
    let Some(Order::Begin(begin)) = handed.channel.receive()? else {
        bail!("the supervisor says nothing");
    };
    // Opened anew: where one process has read to is where the next one would go on.
    let config = format!("/proc/self/fd/{}", handed.config.as_raw_fd());
    let config = std::fs::read_to_string(config).context("read the configuration")?;
    let config = &Config::parse(&config).map_err(anyhow::Error::msg)?;
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("start the runtime")?;
    let root = std::fs::canonicalize(root).with_context(|| format!("find root folder {}", root.display()))?;
    let socket = resources::path_of(address).unwrap_or_default();
    let begun = runtime.block_on(Worker::begin(&root, socket, config, &handed, begin));
    let ended = begun.and_then(|worker| {
        worker.say_who_lost(begin.has_lost);
        runtime.block_on(worker.work(&handed))
    });
    let Err(error) = ended else { process::exit(0) };
    let why = format!("{error:#}");
    if handed.channel.send(&News::Failed(why.clone())).is_err() {
        tracing::error!(error = why, "the worker ends");
    }
    process::exit(1)
}

/// What a supervisor handed over.
struct Handed {
    fuse: std::os::fd::OwnedFd,
    lock: std::os::fd::OwnedFd,
    /// None once nobody is to call any more.
    listener: Mutex<Option<UnixListener>>,
    notes: File,
    config: File,
    channel: Channel,
}

impl Handed {
    fn sort(mut handed: Vec<Named>) -> anyhow::Result<Self> {
        let mut take = |wanted: &str| {
            let place = handed.iter().position(|(name, _)| name == wanted);
            place
                .map(|place| handed.swap_remove(place).1)
                .with_context(|| format!("the supervisor gave no {wanted}"))
        };
        Ok(Self {
            fuse: take(FUSE)?,
            lock: take(LOCK)?,
            listener: Mutex::new(Some(take(LISTENER)?.into())),
            notes: take(NOTES)?.into(),
            config: take(CONFIG)?.into(),
            channel: take(CHANNEL)?.into(),
        })
    }
}

impl Handed {
    fn listener(&self) -> io::Result<Option<UnixListener>> {
        lock(&self.listener).as_ref().map(UnixListener::try_clone).transpose()
    }
}

/// Who is responsible for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Above {
    Supervisor,
    /// It died; somebody may take over.
    Nobody,
    /// It was stopped; containers still need the mount, and nothing else is served.
    Stopped,
}

struct Worker {
    daemon: Daemon,
    calls: Option<Calls>,
    above: Above,
    /// Its number; 0 when it is gone.
    supervisor: Arc<AtomicU32>,
    root: PathBuf,
    socket: PathBuf,
    /// For another program.
    wishes: mpsc::UnboundedReceiver<Wish>,
    /// The supervisor was told.
    wishing: Vec<Wish>,
    said: String,
}

type Wish = oneshot::Sender<Result<(), String>>;

impl Worker {
    async fn begin(
        root: &Path,
        socket: PathBuf,
        config: &Config,
        handed: &Handed,
        begin: Begin,
    ) -> anyhow::Result<Self> {
        let Begin { is_first, has_crashed, parameters, .. } = begin;
        let fuse = handed.fuse.try_clone()?;
        let mounted = Mounted::inherited(&resources::mount_path(root), fuse, parameters);
        let (upgrades, wishes) = mpsc::unbounded_channel();
        let supervisor = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        let above = control::Above { pid: Arc::new(AtomicU32::new(supervisor)), upgrades };
        let supervisor = above.pid.clone();
        let notes = &handed.notes;
        // The next one is given another mount.
        let lost = || end_at_once();
        let start = Start { root, socket: &socket, mounted, is_first, notes, has_crashed, above, lost };
        let daemon = Daemon::build(start, config).await?;
        match daemon.serve_metrics(config).await {
            // What is local is served whatever becomes of the metrics; only a new daemon says that they are wrong.
            Err(error) if !is_first => tracing::error!(error = format!("{error:#}"), "no metrics are served"),
            served => served?,
        }
        let calls = handed.listener()?.map(|listener| Calls::take(&daemon, listener)).transpose()?;
        let root = root.to_owned();
        Ok(Self {
            daemon,
            calls,
            above: Above::Supervisor,
            supervisor,
            root,
            socket,
            wishes,
            wishing: Vec::new(),
            said: String::new(),
        })
    }

    fn say_who_lost(&self, has_lost: bool) {
        if !has_lost {
            return;
        }
        match self.daemon.snapshotter.dependents() {
            Ok(lost) if lost.is_empty() => {}
            Ok(lost) => tracing::error!(
                containers = names(lost).join(" "),
                "the mount of an earlier process was lost with it: these containers get errors from lazily loaded \
                 files if they still run; start them anew"
            ),
            Err(error) => tracing::error!(%error, "look for containers that lost the mount"),
        }
    }

    async fn work(mut self, handed: &Handed) -> anyhow::Result<()> {
        let mut orders = listen(handed)?;
        let takers = listen_for_takers(&self.root);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        // What it was not asked for since the start it is not to make up for.
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resume = Box::pin(tokio::time::sleep(Duration::MAX));
        // Nobody may be there to hear it: we have everything, and serve on.
        let _ = handed.channel.send(&News::Ready);
        tracing::info!(
            address = %self.socket.display(), root = %self.root.display(),
            "soci-snapshotter-grpc successfully started"
        );
        loop {
            tokio::select! {
                order = orders.recv(), if self.above == Above::Supervisor => match order {
                    Some(Order::Ping) => self.pong(&handed.channel),
                    Some(Order::Refused(why)) => self.answer(&Err(why)),
                    Some(Order::Drain) => {
                        self.answer(&Ok(()));
                        self.drain(DRAIN_LIMIT, Ok(())).await;
                        let _ = handed.channel.send(&News::Drained);
                        resume.set(tokio::time::sleep(RESUME));
                    }
                    Some(Order::Stop { is_kept }) => {
                        self.answer(&Err(STOPPING.into()));
                        if self.stop(&handed.channel, is_kept).await? {
                            return Ok(());
                        }
                        // Who calls from now on is to be told that nobody is there.
                        drop(lock(&handed.listener).take());
                    }
                    Some(Order::Begin(_) | Order::Unknown) => {}
                    None => self.lose_supervisor(),
                },
                Some(wish) = self.wishes.recv() => {
                    // Who is not told is answered when it is dropped.
                    if self.above == Above::Supervisor && handed.channel.send(&News::Upgrade).is_ok() {
                        self.wishing.push(wish);
                    }
                }
                () = &mut resume => {
                    resume.set(tokio::time::sleep(Duration::MAX));
                    self.resume(handed);
                }
                taker = next_taker(takers.as_ref()) => match taker {
                    Ok(taker) => self.hand_over(taker, handed).await,
                    Err(error) => {
                        tracing::warn!(%error, "listen for who takes over");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                _ = terminate.recv() => if self.told_to_end() { return self.end().await },
                _ = interrupt.recv() => if self.told_to_end() { return self.end().await },
                _ = hangup.recv() => {}
                _ = look.tick(), if self.above == Above::Stopped => {
                    if !self.is_mount_used().await {
                        tracing::info!("no container needs the mount any more");
                        return self.end().await;
                    }
                }
            }
        }
    }

    fn pong(&mut self, channel: &Channel) {
        let _ = channel.send(&News::Pong);
        let text = self.daemon.layers.summary();
        if text != self.said && channel.send(&News::Status(text.clone())).is_ok() {
            self.said = text;
        }
    }

    /// Who wishes for another program.
    fn answer(&mut self, answer: &Result<(), String>) {
        for wish in self.wishing.drain(..) {
            let _ = wish.send(answer.clone());
        }
    }

    /// Finishes calls. Who wishes for another program meanwhile is told this: it is a call, too.
    async fn drain(&mut self, limit: Duration, answer: Result<(), String>) {
        let Some(calls) = self.calls.take() else { return };
        let mut drained = std::pin::pin!(calls.drain(limit));
        loop {
            tokio::select! {
                () = &mut drained => return,
                Some(wish) = self.wishes.recv() => drop(wish.send(answer.clone())),
            }
        }
    }

    fn resume(&mut self, handed: &Handed) {
        if self.calls.is_some() {
            return;
        }
        let listener = handed.listener().map_err(anyhow::Error::from);
        let calls = listener.and_then(|one| one.map(|one| Calls::take(&self.daemon, one)).transpose());
        match calls {
            Ok(calls) => self.calls = calls,
            // The kernel is served all the same.
            Err(error) => tracing::error!(error = format!("{error:#}"), "no calls are taken any more"),
        }
    }

    /// `true`: nothing is left to be served.
    async fn stop(&mut self, channel: &Channel, is_kept: bool) -> anyhow::Result<bool> {
        self.drain(STOP_LIMIT, Err(STOPPING.into())).await;
        let needing = self.daemon.snapshotter.dependents().unwrap_or_else(|error| {
            tracing::error!(%error, "look for containers that need the mount");
            vec!["(it cannot be told)".into()]
        });
        if needing.is_empty() {
            self.close().await?;
            let _ = std::fs::remove_file(self.root.join(handover::SOCKET));
            let _ = channel.send(&News::Ended);
            return Ok(true);
        }
        if is_kept {
            // Somebody else has the descriptors: we are about to be killed.
            let layers = self.daemon.layers.clone();
            tokio::task::spawn_blocking(move || layers.stop_writing()).await?;
        }
        self.above = Above::Stopped;
        // It may have lost its patience, or its life: what is needed is served all the same.
        if channel.send(&News::Needed(names(needing))).is_err() {
            tracing::warn!(pid = process::id(), "containers need the mount, and the supervisor is gone");
        }
        if is_kept {
            end_with(channel);
        }
        Ok(false)
    }

    fn lose_supervisor(&mut self) {
        self.above = Above::Nobody;
        self.supervisor.store(0, Ordering::Relaxed);
        self.answer(&Err("the supervisor is gone".into()));
        tracing::error!(
            pid = process::id(),
            "the supervisor is gone; this process serves on until a new daemon takes over or it gets a SIGTERM"
        );
    }

    /// Whatever goes wrong here is no reason to end: nobody else may have the mount.
    async fn hand_over(&mut self, mut taker: UnixStream, handed: &Handed) {
        if !handover::is_allowed(&taker) {
            return;
        }
        if self.above == Above::Supervisor && self.is_child() {
            let supervisor = self.supervisor.load(Ordering::Relaxed);
            let why = format!("another soci-snapshotter-grpc (process {supervisor}) uses the root folder");
            let _ = handover::refuse(&taker, &why);
            return;
        }
        tracing::info!("a new daemon takes over");
        self.drain(STOP_LIMIT, Err("a new daemon takes over".into())).await;
        // Without it, it listens itself.
        let listener = handed.listener().ok().flatten();
        let socket = listener.as_ref().map(|listener| (self.socket.as_path(), listener.as_fd()));
        if let Err(error) = handover::give(&taker, handed.fuse.as_fd(), handed.lock.as_fd(), socket) {
            tracing::warn!(%error, "hand over");
        }
        // It kills us; or goes itself.
        let _ = taker.read(&mut [0]).await;
        tracing::warn!("the new daemon is gone; this process serves on");
        self.resume(handed);
    }

    /// Of its supervisor: one that has just died has not been missed yet.
    fn is_child(&self) -> bool {
        getppid().is_some_and(|pid| {
            pid.as_raw_nonzero().get().unsigned_abs() == self.supervisor.load(Ordering::Relaxed)
        })
    }

    fn told_to_end(&self) -> bool {
        if self.above == Above::Supervisor {
            tracing::warn!(
                supervisor = self.supervisor.load(Ordering::Relaxed),
                "a signal that is for the supervisor is ignored"
            );
        }
        self.above != Above::Supervisor
    }

    async fn is_mount_used(&self) -> bool {
        let mount = resources::mount_path(&self.root);
        tokio::task::spawn_blocking(move || mount_users::are_over(&mount)).await.unwrap_or(true)
    }

    /// Nobody is to serve this mount any more.
    async fn end(mut self) -> anyhow::Result<()> {
        self.drain(STOP_LIMIT, Err(STOPPING.into())).await;
        self.close().await?;
        if self.above == Above::Nobody {
            let _ = std::fs::remove_file(&self.socket);
        }
        let _ = std::fs::remove_file(self.root.join(handover::SOCKET));
        tracing::info!("stopped");
        Ok(())
    }

    async fn close(&self) -> anyhow::Result<()> {
        let snapshotter = self.daemon.snapshotter.clone();
        Ok(tokio::task::spawn_blocking(move || snapshotter.close()).await?)
    }
}

/// Without it this process can only be ended, not taken over from: a disk that is full is no reason not to serve.
fn listen_for_takers(root: &Path) -> Option<tokio::net::UnixListener> {
    let listener = handover::listen(root).and_then(|listener| {
        listener.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(listener)
    });
    listener.inspect_err(|error| tracing::error!(%error, "listen for who takes over")).ok()
}

async fn next_taker(takers: Option<&tokio::net::UnixListener>) -> io::Result<UnixStream> {
    match takers {
        Some(takers) => Ok(takers.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Orders, read by a thread of its own.
fn listen(handed: &Handed) -> anyhow::Result<mpsc::UnboundedReceiver<Order>> {
    let channel = Channel::from(handed.channel.as_fd().try_clone_to_owned()?);
    let (sender, orders) = mpsc::unbounded_channel();
    let listen = move || {
        loop {
            let order = match channel.receive() {
                Ok(Some(order)) => order,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "listen to the supervisor");
                    Order::Unknown
                }
            };
            if sender.send(order).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("supervisor".into()).spawn(listen)?;
    Ok(orders)
}

/// Waits to be killed; when nobody is left to do it, it does it itself.
fn end_with(channel: &Channel) -> ! {
    while let Ok(Some(_)) = channel.receive::<Order>() {}
    end_at_once()
}

/// By nobody's fault, and for another one to follow.
pub(crate) fn end_at_once() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    process::abort()
}

fn names(mut names: Vec<String>) -> Vec<String> {
    let more = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names
}

/// Each open layer has two descriptors; what a shell or systemd allows at first is enough for some hundred layers.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "raise the limit of open files");
    }
}
