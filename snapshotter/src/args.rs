//! The flags as typed; nothing computed. Names and defaults are the reference daemon's.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Where the configuration lies unless said otherwise; the only path that may be missing.
pub const DEFAULT_CONFIG: &str = "/etc/soci-snapshotter-grpc/config.toml";

/// A containerd snapshotter that starts containers before their image has been downloaded.
#[derive(Debug, Parser)]
#[command(name = "soci-snapshotter-grpc", disable_version_flag = true)]
pub struct Args {
    /// Address of the gRPC socket: a path, or unix://PATH
    #[arg(
        long,
        env = "SOCI_SNAPSHOTTER_ADDRESS",
        default_value = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"
    )]
    pub address: String,
    /// Path of the configuration file
    #[arg(long, global = true, env = "SOCI_SNAPSHOTTER_CONFIG", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// trace, debug, info, warn, error, fatal or panic
    #[arg(long, env = "SOCI_SNAPSHOTTER_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// json or text
    #[arg(long, env = "SOCI_SNAPSHOTTER_LOG_FORMAT", default_value = "json")]
    pub log_format: String,
    /// Folder of all state
    #[arg(long, env = "SOCI_SNAPSHOTTER_ROOT", default_value = "/var/lib/soci-snapshotter-grpc/")]
    pub root: PathBuf,
    /// Print the version
    #[arg(short = 'v', long)]
    pub version: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is done instead of serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at configurations
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// All print to standard output.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the default configuration, with what each key means
    Default,
    /// Print the configuration in force: what --config says, and the defaults for the rest
    Dump,
    /// Say what is wrong with a configuration
    Check {
        /// The file; that of --config unless given
        file: Option<PathBuf>,
        /// End with 1 also where something has no effect
        #[arg(long)]
        strict: bool,
    },
}
