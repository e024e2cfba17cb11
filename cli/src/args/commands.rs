//! The commands, and the flags of each. A boolean flag takes `=true` and `=false`, as in Go.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Where the daemon listens by default.
pub const DEFAULT_DAEMON_ADDRESS: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Look into SOCI indexes
    #[command(subcommand)]
    Index(IndexCommand),
    /// Look into ztocs
    #[command(subcommand)]
    Ztoc(ZtocCommand),
    /// Look into prefetch artifacts
    #[command(subcommand)]
    Prefetch(PrefetchCommand),
    /// Build a SOCI index (version 1) for an image, which stays as it is
    Create(Create),
    /// Write an image with SOCI indexes (version 2) to another place, or under another name
    Convert(Convert),
    /// Push an image's SOCI index (version 1) to the image's registry
    Push(Push),
    /// Make the list of local artifacts anew from what is there
    RebuildDb,
    /// Build every ztoc of an image anew and say whether the image's own are true
    Verify(Verify),
    /// Images in containerd
    #[command(subcommand)]
    Image(ImageCommand),
    /// What the daemon shows, how much of it is there, and what was not lazy, and why
    Status(Status),
    /// The daemon itself
    #[command(subcommand)]
    Daemon(DaemonCommand),
}

#[derive(Debug, Clone, Subcommand)]
pub enum DaemonCommand {
    /// Put the program that is on the disk now in the place of the one that serves; no container notices
    Upgrade(Upgrade),
}

#[derive(Debug, Clone, Args)]
pub struct Upgrade {
    #[command(flatten)]
    pub daemon: DaemonAddress,
}

#[derive(Debug, Clone, Args)]
pub struct DaemonAddress {
    /// The daemon's socket: a path, or unix://PATH
    #[arg(long, env = "SOCI_SNAPSHOTTER_ADDRESS", value_name = "PATH", default_value = DEFAULT_DAEMON_ADDRESS)]
    pub daemon_address: String,
}

#[derive(Debug, Clone, Args)]
pub struct Status {
    #[command(flatten)]
    pub daemon: DaemonAddress,
    /// Print JSON
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    pub json: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ImageCommand {
    /// Pull an image into containerd, lazily where it has a SOCI index
    #[command(alias = "rpull")]
    Pull(Pull),
}

#[derive(Debug, Clone, Args)]
pub struct Pull {
    /// The image, as containerd will name it: HOST/REPOSITORY:TAG
    pub image: String,
    /// containerd's snapshotter that gets the layers
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", value_name = "NAME", default_value = "soci")]
    pub snapshotter: String,
    /// The platform to pull, as linux/arm64; this machine's unless given
    #[arg(long, short, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Use this SOCI index, whatever the image says of itself
    #[arg(long, value_name = "DIGEST")]
    pub soci_index_digest: Option<String>,
}

/// How a list is printed.
#[derive(Debug, Clone, Args)]
pub struct Listing {
    /// Print digests only
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    pub json: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub enum IndexCommand {
    /// List local indexes, newest first
    #[command(visible_alias = "ls")]
    List(IndexList),
    /// Print an index
    Info {
        /// A digest (of the local store), docker://HOST/REPOSITORY@sha256:…, or a file
        place: String,
    },
    /// Take indexes out of the local store
    #[command(visible_alias = "rm")]
    Remove(IndexRemove),
}

#[derive(Debug, Clone, Args)]
pub struct IndexList {
    /// Those of this image only
    #[arg(long = "ref", value_name = "IMAGE")]
    pub image: Option<String>,
    /// Those for these platforms only
    #[arg(long, short, value_name = "PLATFORM", value_delimiter = ',')]
    pub platform: Vec<String>,
    #[command(flatten)]
    pub listing: Listing,
}

#[derive(Debug, Clone, Args)]
pub struct IndexRemove {
    /// Digests of indexes
    pub digests: Vec<String>,
    /// All of this image
    #[arg(long = "ref", value_name = "IMAGE")]
    pub image: Option<String>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ZtocCommand {
    /// List local ztocs
    #[command(visible_alias = "ls")]
    List(ZtocList),
    /// Print what a ztoc says, as JSON
    Info {
        /// A digest (of the local store), docker://HOST/REPOSITORY@sha256:…, or a file
        place: String,
    },
    /// Print one file of a layer, fetching only the spans it lies in
    GetFile(GetFile),
}

#[derive(Debug, Clone, Args)]
pub struct ZtocList {
    /// This one only
    #[arg(long, value_name = "DIGEST")]
    pub ztoc_digest: Option<String>,
    /// Those of this image only
    #[arg(long, value_name = "IMAGE")]
    pub image_ref: Option<String>,
    #[command(flatten)]
    pub listing: Listing,
}

#[derive(Debug, Clone, Args)]
pub struct GetFile {
    /// The ztoc: a digest (of the local store), docker://HOST/REPOSITORY@sha256:…, or a file
    pub ztoc: Option<String>,
    /// The file's name as `soci ztoc info` prints it
    pub name: Option<String>,
    /// The layer the ztoc belongs to: a digest (in containerd), docker://HOST/REPOSITORY@sha256:…, or a file; a ztoc
    /// of the local store knows it
    #[arg(long, value_name = "PLACE")]
    pub layer: Option<String>,
    /// Write to this file and not to standard output
    #[arg(long, short, value_name = "PATH")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum PrefetchCommand {
    /// List local prefetch artifacts
    #[command(visible_alias = "ls")]
    List {
        /// Print JSON
        #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
        json: bool,
    },
    /// Describe a prefetch artifact
    Info {
        /// A digest (of the local store), docker://HOST/REPOSITORY@sha256:…, or a file
        place: String,
        /// Print the artifact itself, too
        #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
        json: bool,
    },
}

/// How ztocs are built, and for which platforms.
#[derive(Debug, Clone, Args)]
pub struct Building {
    /// Platforms to index, as linux/arm64. Unless given: this machine's for an image in containerd, all elsewhere
    #[arg(long, short, value_name = "PLATFORM", value_delimiter = ',')]
    pub platform: Vec<String>,
    /// Index every platform of the image
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    pub all_platforms: bool,
    /// Uncompressed bytes of a span
    #[arg(long, value_name = "BYTES", default_value_t = ztoc::DEFAULT_SPAN_SIZE as i64, allow_negative_numbers = true)]
    pub span_size: i64,
    /// Layers of fewer compressed bytes get no ztoc
    #[arg(long, value_name = "BYTES", default_value_t = index::build::MIN_LAYER_SIZE as i64, allow_negative_numbers = true)]
    pub min_layer_size: i64,
    /// Optimizations; there is xattr: say which layers have no extended attributes
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub optimizations: Vec<String>,
    /// Build ztocs anew that the local store has from an earlier build
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    pub force: bool,
    /// A file that containers want at their start: its spans are listed in a prefetch artifact
    #[arg(long, value_name = "PATH", value_delimiter = ',')]
    pub prefetch_file: Vec<String>,
    /// A file with such paths, as a JSON array of strings
    #[arg(long, value_name = "FILE")]
    pub prefetch_files_json: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Create {
    /// The image: its name in containerd, docker://HOST/REPOSITORY:TAG or oci:FOLDER
    pub image: Option<String>,
    #[command(flatten)]
    pub building: Building,
}

#[derive(Debug, Clone, Args)]
pub struct Convert {
    /// The image: its name in containerd, docker://HOST/REPOSITORY:TAG, oci:FOLDER or oci-archive:FILE
    pub source: Option<String>,
    /// Where it goes, written in the same ways
    pub destination: Option<String>,
    #[command(flatten)]
    pub building: Building,
    /// Both are paths: an OCI layout's folder or archive in, one out
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    pub standalone: bool,
    /// What `--standalone` writes: oci-archive or oci-dir
    #[arg(long, value_name = "FORMAT", default_value = "oci-archive")]
    pub format: String,
}

#[derive(Debug, Clone, Args)]
pub struct Push {
    /// The image: its name in containerd, or oci:FOLDER
    pub image: Option<String>,
    /// The repository, docker://HOST/REPOSITORY; the image's own unless given
    pub destination: Option<String>,
    /// Platforms whose index is pushed; this machine's unless given
    #[arg(long, short, value_name = "PLATFORM", value_delimiter = ',')]
    pub platform: Vec<String>,
    /// Push the index of every platform of the image
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    pub all_platforms: bool,
    /// Name and password for the registry
    #[arg(long, short, value_name = "USER[:PASSWORD]")]
    pub user: Option<String>,
    /// Where the registry has an index of the image: push anyway (allow), say so (warn), or leave it (skip)
    #[arg(long, value_name = "WHAT", default_value = "warn")]
    pub existing_index: String,
    /// Uploads side by side
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    pub max_concurrent_uploads: u16,
    /// Print digests only
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    pub quiet: bool,
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Flags that the Go tool has and does not look at either. nerdctl passes some.
#[derive(Debug, Clone, Args)]
pub struct Ignored {
    #[arg(long, short = 'k', hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub skip_verify: bool,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub http_dump: bool,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub http_trace: bool,
    #[arg(long, hide = true)]
    pub hosts_dir: Vec<String>,
    #[arg(long, hide = true)]
    pub refresh: Option<String>,
    #[arg(long, hide = true)]
    pub tlscacert: Option<String>,
    #[arg(long, hide = true)]
    pub tlscert: Option<String>,
    #[arg(long, hide = true)]
    pub tlskey: Option<String>,
    #[arg(long, hide = true)]
    pub snapshotter: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct Verify {
    /// The image: its name in containerd, docker://HOST/REPOSITORY:TAG, oci:FOLDER or oci-archive:FILE
    pub image: String,
    /// Platforms to look at, as linux/arm64; all that the image has unless given
    #[arg(long, short, value_name = "PLATFORM", value_delimiter = ',')]
    pub platform: Vec<String>,
    /// Print JSON
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    pub json: bool,
}
