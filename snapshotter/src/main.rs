//! Parse, load, run.

use std::{path::Path, process::ExitCode};

use clap::Parser;
use snapshotter::{Args, Command, Config, ConfigCommand, DEFAULT_CONFIG, Format};

#[allow(clippy::print_stdout)] // before there is a log
fn main() -> ExitCode {
    let args = Args::parse();
    if args.version {
        println!("soci-snapshotter-grpc version {} {}", env!("CARGO_PKG_VERSION"), snapshotter::REVISION);
        return ExitCode::SUCCESS;
    }
    match &args.command {
        None => serve(&args),
        Some(Command::Config(command)) => look(&args, command),
    }
}

fn load(path: &Path) -> Result<Config, String> {
    Config::load(path, path != Path::new(DEFAULT_CONFIG))
}

#[allow(clippy::print_stderr)] // where the log may not have begun
fn serve(args: &Args) -> ExitCode {
    let format = args.log_format.parse();
    let started = format.clone().and_then(|format| snapshotter::start_logging(&args.log_level, format));
    let run = started.and_then(|()| load(&args.config)).and_then(|config| {
        // Once: the supervisor comes first, and the worker says the rest.
        for remark in config.remarks.iter().filter(|_| !snapshotter::is_worker()) {
            tracing::warn!(config = %args.config.display(), line = remark.line, "{}", remark.text);
        }
        snapshotter::run(&args.address, &args.root, &config).map_err(|error| format!("{error:#}"))
    });
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Tools look for a last line of that level; people read it just as well.
            let format = format.unwrap_or(Format::Json);
            eprintln!("{}", snapshotter::fatal_line(&format!("soci-snapshotter-grpc: {error}"), format));
            ExitCode::FAILURE
        }
    }
}

/// `config …`: remarks and errors go to standard error where something else is printed.
#[allow(clippy::print_stdout, clippy::print_stderr)]
fn look(args: &Args, command: &ConfigCommand) -> ExitCode {
    let (path, loaded) = match command {
        ConfigCommand::Default => {
            print!("{}", snapshotter::config_commented(&Config::default()));
            return ExitCode::SUCCESS;
        }
        ConfigCommand::Check { file: Some(file), .. } => (file, Config::load(file, true)),
        ConfigCommand::Check { file: None, .. } | ConfigCommand::Dump => (&args.config, load(&args.config)),
    };
    let config = match loaded {
        Ok(config) => config,
        Err(error) => {
            eprintln!("soci-snapshotter-grpc: {error}");
            return ExitCode::FAILURE;
        }
    };
    match command {
        ConfigCommand::Check { strict, .. } => {
            for remark in &config.remarks {
                println!("{}: {remark}", path.display());
            }
            if *strict && !config.remarks.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        ConfigCommand::Default | ConfigCommand::Dump => {
            for remark in &config.remarks {
                eprintln!("{}: {remark}", path.display());
            }
            print!("{}", snapshotter::config_plain(&config));
            ExitCode::SUCCESS
        }
    }
}
