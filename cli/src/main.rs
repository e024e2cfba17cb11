//! Parse, run, tell the error, exit.

use std::process::ExitCode;

use cli::args::{self, Asked};
use cli::commands;
use cli::error::ErrorKind;
use cli::output::Output;

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
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            output.tell(&format!("soci: start threads: {cause}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(&command, &global, &output)) {
        Ok(()) => end(&output, 0),
        Err(error) => {
            output.tell(&error.chain());
            match error.kind() {
                // As a shell says it of a program that the signal ended.
                ErrorKind::Interrupted => ExitCode::from(130),
                _ => end(&output, 1),
            }
        }
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
