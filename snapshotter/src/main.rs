//! Parse, load, run.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

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

fn must_exist(config: &Path) -> bool {
    config != Path::new(DEFAULT_CONFIG)
}

fn load(path: &Path) -> Result<Config, String> {
    Config::load(path, must_exist(path))
}

fn serve(args: &Args) -> ExitCode {
    let format = args.log_format.parse();
    let started = format.clone().and_then(|format| snapshotter::start_logging(&args.log_level, format));
    let config = (args.config.as_path(), must_exist(&args.config));
    let run = started.and_then(|()| {
        snapshotter::run(&args.address, &args.root, config).map_err(|error| format!("{error:#}"))
    });
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Tools look for a last line of that level; people read it just as well.
            let format = format.unwrap_or(Format::Json);
            let line = snapshotter::fatal_line(&format!("soci-snapshotter-grpc: {error}"), format);
            let _ = writeln!(io::stderr(), "{line}");
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
