//! Parse, load, run.

use std::{path::Path, process::ExitCode};

use clap::Parser;
use snapshotter::{Args, Config, DEFAULT_CONFIG};

#[allow(clippy::print_stdout, clippy::print_stderr)] // before there is a log
fn main() -> ExitCode {
    let args = Args::parse();
    if args.version {
        println!("soci-snapshotter-grpc version {} {}", env!("CARGO_PKG_VERSION"), snapshotter::REVISION);
        return ExitCode::SUCCESS;
    }
    let loaded = snapshotter::start_logging(&args.log_level)
        .and_then(|()| Config::load(&args.config, args.config != Path::new(DEFAULT_CONFIG)));
    let run = loaded.and_then(|(config, remarks)| {
        // Once: the supervisor comes first, and the worker says the rest.
        for remark in remarks.iter().filter(|_| !snapshotter::is_worker()) {
            tracing::warn!(config = %args.config.display(), "{remark}");
        }
        snapshotter::run(&args.address, &args.root, &config).map_err(|error| format!("{error:#}"))
    });
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Tools look for a last line of that level; people read it just as well.
            eprintln!("{}", snapshotter::fatal_line(&format!("soci-snapshotter-grpc: {error}")));
            ExitCode::FAILURE
        }
    }
}
