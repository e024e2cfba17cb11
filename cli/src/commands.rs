//! One file a command. Here is the junction: the command as typed picks one of them; the limit on the whole is
//! put around it.

mod building;
mod convert;
mod create;
mod image;
mod index;
mod prefetch;
mod push;
mod rebuild_db;
mod verify;
mod ztoc;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Command, Global, ImageCommand, IndexCommand, PrefetchCommand, ZtocCommand};
use crate::error::{Error, ErrorKind};
use crate::output::Output;
use crate::place::Registries;
use crate::store::Containerd;

/// How long an answer to giving back a lease is waited for when the command ends early.
const LEASE_PATIENCE: Duration = Duration::from_secs(2);

/// What every command may use.
struct Tools<'a> {
    global: &'a Global,
    output: &'a Output,
    registries: Registries,
    /// those that were taken and not given back yet
    leases: &'a Mutex<Vec<Containerd>>,
}

impl Tools<'_> {
    async fn containerd(&self) -> Result<Containerd, Error> {
        Containerd::connect(&self.global.address, &self.global.namespace).await
    }

    /// Does `work` under a lease of containerd's of its own, so that nothing of it is collected before it is done.
    async fn leased<T>(
        &self,
        purpose: &str,
        work: impl AsyncFnOnce(&Containerd) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let containerd = self.containerd().await?;
        let leased = containerd.lease(&format!("soci-{purpose}-{}", unique())).await?;
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).push(leased.clone());
        let done = work(&leased).await;
        // An expired or lost lease harms nobody; the error of the work is the one to tell.
        let ended = leased.end_lease().await;
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).clear();
        done.and_then(|done| ended.map(|()| done))
    }
}

/// A word that no other run of ours uses at the same time.
fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

/// Does what was asked for, unless it takes longer than it may, or somebody wants it to end.
pub async fn run(command: &Command, global: &Global, output: &Output) -> Result<(), Error> {
    let leases = Mutex::default();
    let interrupted = interrupted()?;
    let cut_short = tokio::select! {
        done = dispatch(command, global, output, &leases) => return done,
        error = interrupted => error,
        error = too_late(global.timeout) => error,
    };
    // What was begun is dropped, and leaves nothing behind but this.
    let held = std::mem::take(&mut *leases.lock().unwrap_or_else(PoisonError::into_inner));
    for lease in held {
        // Within reason: a lease that is not given back ends by itself.
        let _ = tokio::time::timeout(LEASE_PATIENCE, lease.end_lease()).await;
    }
    Err(cut_short)
}

/// Comes true with the first signal that asks the process to end.
fn interrupted() -> Result<impl Future<Output = Error>, Error> {
    let listen = |kind| signal(kind).map_err(|cause| Error::io("listen to signals", cause));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Error::new(ErrorKind::Interrupted, "interrupted")
    })
}

async fn too_late(limit: Option<Duration>) -> Error {
    let Some(limit) = limit else { return std::future::pending().await };
    tokio::time::sleep(limit).await;
    Error::new(ErrorKind::Unreachable, format!("not done within {limit:?}, the limit set by --timeout"))
}

async fn dispatch(
    command: &Command,
    global: &Global,
    output: &Output,
    leases: &Mutex<Vec<Containerd>>,
) -> Result<(), Error> {
    let tools = &Tools { global, output, registries: Registries::new(global.plain_http)?, leases };
    match command {
        Command::Create(args) => create::run(args, tools).await,
        Command::Convert(args) => convert::run(args, tools).await,
        Command::Push(args) => push::run(args, tools).await,
        Command::RebuildDb => rebuild_db::run(tools).await,
        Command::Verify(args) => verify::run(args, tools).await,
        Command::Image(ImageCommand::Pull(args)) => image::pull(args, tools).await,
        Command::Index(IndexCommand::List(args)) => index::list(args, tools).await,
        Command::Index(IndexCommand::Info { place }) => index::info(place, tools).await,
        Command::Index(IndexCommand::Remove(args)) => index::remove(args, tools).await,
        Command::Ztoc(ZtocCommand::List(args)) => ztoc::list(args, tools).await,
        Command::Ztoc(ZtocCommand::Info { place }) => ztoc::info(place, tools).await,
        Command::Ztoc(ZtocCommand::GetFile(args)) => ztoc::get_file(args, tools).await,
        Command::Prefetch(PrefetchCommand::List { json }) => prefetch::list(*json, tools).await,
        Command::Prefetch(PrefetchCommand::Info { place, json }) => prefetch::info(place, *json, tools).await,
    }
}
