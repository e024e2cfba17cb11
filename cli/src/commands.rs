//! One file a command. Here is the junction: the command as typed picks one of them; the limit on the whole is
//! put around it.

mod convert;
mod image;
mod index;
mod ztoc;

use crate::args::{Command, Global, ImageCommand, IndexCommand, ZtocCommand};
use crate::error::{Error, ErrorKind};
use crate::output::Output;
use crate::place::Registries;

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
    let registries = || Registries::new(global.plain_http);
    match command {
        Command::Convert(args) => convert::run(args, &registries()?, output).await,
        Command::Image(ImageCommand::Pull(args)) => image::pull(args, global, &registries()?, output).await,
        Command::Index(IndexCommand::Info { place }) => index::info(place, &registries()?, output).await,
        Command::Ztoc(ZtocCommand::Info { place }) => ztoc::info(place, &registries()?, output).await,
        Command::Ztoc(ZtocCommand::GetFile(args)) => ztoc::get_file(args, &registries()?, output).await,
    }
}
