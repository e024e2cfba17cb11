//! Parse, run, tell the error, exit.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use cli::args::{self, Asked};
use cli::commands;
use cli::error::ErrorKind;
use cli::output::Output;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// What a shell adds to a signal's number.
const SIGNALLED: u8 = 128;
/// How long a command may take to end in good order after a signal, or after its end.
const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let output = Output::default();
    let (command, global) = match args::parse(std::env::args_os()) {
        Asked::Command(command, global) => (command, global),
        Asked::Text(text) => {
            output.line(text.trim_end());
            return end(&output, 0);
        }
        Asked::Nonsense { message, code } => {
            output.tell(&message);
            return ExitCode::from(code);
        }
    };
    output.log(global.debug);
    let started = Builder::new_multi_thread().enable_all().build().and_then(|runtime| {
        let ending = Ending::listen()?;
        Ok((runtime, ending))
    });
    let (runtime, ending): (Runtime, Arc<Ending>) = match started {
        Ok(started) => started,
        Err(cause) => {
            output.tell(&format!("soci: start threads: {cause}"));
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(commands::run(&command, &global, &output, ending.asked.notified()));
    // Whatever still waits for a disk is not waited for.
    runtime.shutdown_background();
    match done {
        Ok(()) => end(&output, 0),
        Err(error) => {
            output.tell(&error.chain());
            match error.kind() {
                ErrorKind::Interrupted => ExitCode::from(ending.code()),
                _ => end(&output, 1),
            }
        }
    }
}

/// Signals that ask us to end. They are heard on a thread of their own, since a command may be waiting for a disk, or
/// for a pipe that no process writes to: a second one, or a first that nothing follows, ends the process at once.
struct Ending {
    asked: Notify,
    signal: AtomicU8,
}

impl Ending {
    fn listen() -> std::io::Result<Arc<Ending>> {
        let ending = Arc::new(Ending { asked: Notify::new(), signal: AtomicU8::new(0) });
        let heard = ending.clone();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
                .into_iter()
                .map(|kind| Ok((kind, signal(kind)?)))
                .collect::<std::io::Result<Vec<_>>>()?
        };
        let listen = move || {
            runtime.block_on(async move {
                let [(_, interrupt), (_, terminate), (_, hangup)] = &mut { signals }[..] else { return };
                for _ in 0..2 {
                    let number: u8 = tokio::select! {
                        _ = interrupt.recv() => 2,
                        _ = terminate.recv() => 15,
                        _ = hangup.recv() => 1,
                        () = tokio::time::sleep(PATIENCE), if heard.signal.load(Ordering::Relaxed) > 0 => break,
                    };
                    heard.signal.store(number, Ordering::Relaxed);
                    heard.asked.notify_one();
                }
                std::process::exit(i32::from(heard.code()));
            });
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
        Ok(ending)
    }

    fn code(&self) -> u8 {
        SIGNALLED + self.signal.load(Ordering::Relaxed)
    }
}

/// The exit code, unless what was printed did not get through.
fn end(output: &Output, code: u8) -> ExitCode {
    if let Err(cause) = output.finish() {
        output.tell(&format!("soci: write output: {cause}"));
        return ExitCode::FAILURE;
    }
    ExitCode::from(code)
}
