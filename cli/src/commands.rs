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

use crate::args::{Command, Global, ImageCommand, IndexCommand, PrefetchCommand, ZtocCommand};
use crate::error::{Error, ErrorKind};
use crate::output::Output;
use crate::place::Registries;
use crate::store::Containerd;

/// What every command may use.
struct Tools<'a> {
    global: &'a Global,
    output: &'a Output,
    registries: Registries,
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
        let done = work(&leased).await;
        // An expired or lost lease harms nobody; the error of the work is the one to tell.
        let ended = leased.end_lease().await;
        done.and_then(|done| ended.map(|()| done))
    }
}

/// A word that no other run of ours uses at the same time.
fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

/// Does what was asked for.
pub async fn run(command: &Command, global: &Global, output: &Output) -> Result<(), Error> {
    let done = dispatch(command, global, output);
    let Some(limit) = global.timeout else { return done.await };
    tokio::time::timeout(limit, done).await.unwrap_or_else(|_| {
        let message = format!("not done within {limit:?}, the limit set by --timeout");
        Err(Error::new(ErrorKind::Unreachable, message))
    })
}

async fn dispatch(command: &Command, global: &Global, output: &Output) -> Result<(), Error> {
    let tools = &Tools { global, output, registries: Registries::new(global.plain_http)? };
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
