//! One file a command. Here is the junction: the command as typed picks one of them; the limit on the whole is
//! put around it.

mod convert;
mod create;
mod image;
mod index;
mod prefetch;
mod push;
mod rebuild_db;
mod daemon;
mod status;
mod verify;
mod ztoc;
mod index_options;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::debug;

use crate::args::{Command, DaemonCommand, Global, ImageCommand, IndexCommand, PrefetchCommand, ZtocCommand};
use crate::containerd::Containerd;
use crate::error::{Error, ErrorKind};
use crate::location::Registries;
use crate::output::Output;
use crate::time;

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
        let leased = containerd.lease(&format!("soci-{purpose}-{}", time::unique())).await?;
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).push(leased.clone());
        let done = work(&leased).await;
        // A lease that is lost, or stays until it expires, does no harm.
        if let Err(error) = leased.end_lease().await {
            debug!("{}", error.chain());
        }
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).clear();
        done
    }
}

/// Does what was asked for, unless it takes longer than it may, or a signal ends it (`interrupted`).
pub async fn run(
    command: &Command,
    global: &Global,
    output: &Output,
    interrupted: impl Future<Output = ()>,
) -> Result<(), Error> {
    let leases = Mutex::default();
    let cut_short = tokio::select! {
        done = dispatch(command, global, output, &leases) => return done,
        () = interrupted => Error::new(ErrorKind::Interrupted, "interrupted"),
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
        Command::Status(args) => status::run(args, tools).await,
        Command::Daemon(DaemonCommand::Upgrade(args)) => daemon::upgrade(args, tools).await,
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
