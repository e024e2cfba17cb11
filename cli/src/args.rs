//! The flags as typed; nothing computed. They are spelled as freely as the Go tool's. Global flags stand before
//! or after the command, a long name has one dash or two, and there are `--flag=false` and lists with commas. This and `main` are the
//! only rooms that know the parser.

mod commands;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory, Parser};
use oci::registry::PlainHttp;

use crate::output::Debug;

pub use commands::*;

/// Where containerd listens by default.
pub const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    Command(Box<Command>, Box<Global>),
    /// help or version
    Text(String),
    Nonsense {
        message: String,
        code: u8,
    },
}

#[derive(Debug, Parser)]
#[command(
    name = "soci",
    about = "Build SOCI indexes for container images, and look into them",
    version = version(),
    disable_version_flag = true,
    args_override_self = true,
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Option<Command>,
    /// Print version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// Flags of every command.
#[derive(Debug, Args)]
struct GlobalArgs {
    /// containerd's socket
    #[arg(
        long,
        short,
        global = true,
        value_name = "PATH",
        env = "CONTAINERD_ADDRESS",
        default_value = DEFAULT_ADDRESS
    )]
    address: String,
    /// containerd's namespace
    #[arg(
        long,
        short,
        global = true,
        value_name = "NAME",
        env = "CONTAINERD_NAMESPACE",
        default_value = "default"
    )]
    namespace: String,
    /// Limit of the whole command, as 30s or 1h30m; 0 is none
    #[arg(long, global = true, value_name = "DURATION", default_value = "0", value_parser = duration)]
    timeout: Duration,
    /// Log what is done
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    debug: bool,
    /// Where SOCI artifacts are kept locally: in containerd, or in a folder of our own
    #[arg(long, global = true, value_name = "STORE", default_value = "containerd", value_parser = content_store)]
    content_store: ContentStore,
    /// Folder of our own: the list of artifacts, and with `--content-store soci` the artifacts
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/soci-snapshotter-grpc/")]
    root: PathBuf,
    /// Speak to every registry without TLS
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    plain_http: bool,
}

/// Where SOCI artifacts are kept locally.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentStore {
    Containerd,
    Soci,
}

/// The same, in words.
#[derive(Debug, Clone)]
pub struct Global {
    pub address: String,
    pub namespace: String,
    /// None: no limit
    pub timeout: Option<Duration>,
    pub debug: Debug,
    pub content_store: ContentStore,
    pub root: PathBuf,
    pub plain_http: PlainHttp,
}

/// Parses a command line, the program's name first.
pub fn parse(words: impl Iterator<Item = OsString>) -> Asked {
    match Cli::try_parse_from(two_dashes(words)) {
        Ok(Cli { command: Some(command), global, .. }) => {
            Asked::Command(Box::new(command), Box::new(global.into()))
        }
        Ok(Cli { command: None, .. }) => Asked::Text(Cli::command().render_help().to_string()),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Asked::Text(error.render().to_string()),
            _ => nonsense(&error),
        },
    }
}

/// What the Go tool says where the line makes no sense, and the code it ends with.
fn nonsense(error: &clap::Error) -> Asked {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let hint = "\nsee: soci help";
    let (message, code) = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            (format!("No help topic for '{}'", context(ContextKind::InvalidSubcommand)), 3)
        }
        ErrorKind::UnknownArgument => {
            let flag = context(ContextKind::InvalidArg);
            if !flag.starts_with('-') {
                return Asked::Nonsense { message: format!("soci: a word too many: {flag}{hint}"), code: 1 };
            }
            let flag = flag.strip_prefix('-').filter(|flag| flag.starts_with('-')).unwrap_or(&flag);
            (format!("soci: flag provided but not defined: {flag}{hint}"), 1)
        }
        _ => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default();
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(names)) => format!(" {}", names.join(" ")),
                _ => String::new(),
            };
            (format!("soci: {}{missing}{hint}", first.strip_prefix("error: ").unwrap_or(first)), 1)
        }
    };
    Asked::Nonsense { message, code }
}

/// `-platform` is `--platform`: short flags are never joined here.
/// And `h` is `help`.
fn two_dashes(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut ended = false;
    let spell = |word: OsString| {
        ended |= word == "--";
        let Some(rest) = word.to_str().and_then(|text| text.strip_prefix('-')).filter(|_| !ended) else {
            return word;
        };
        let name = rest.split('=').next().unwrap_or_default();
        if name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return format!("--{rest}").into();
        }
        word
    };
    let mut words: Vec<OsString> = words.map(spell).collect();
    if words.get(1).is_some_and(|word| word == "h") {
        words[1] = "help".into();
    }
    words
}

/// `soci --version`: the release this one stands in for, and which of ours it is.
fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let revision = option_env!("SOCI_REVISION").unwrap_or("unknown");
        format!("version {} {revision}", env!("CARGO_PKG_VERSION"))
    });
    &TEXT
}

fn content_store(text: &str) -> Result<ContentStore, String> {
    match text {
        "containerd" => Ok(ContentStore::Containerd),
        "soci" => Ok(ContentStore::Soci),
        other => Err(format!("unknown content store type: {other}; must be one of [soci containerd]")),
    }
}

/// Durations as Go writes them: `30s`, `1h30m`, `1.5s`, `0`.
fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let invalid = || format!("invalid duration {text:?}; it is written as 30s, 5m or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(invalid()),
        };
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = after;
    }
    if text.is_empty() { Err(invalid()) } else { Ok(total) }
}

impl From<GlobalArgs> for Global {
    fn from(args: GlobalArgs) -> Global {
        Global {
            address: args.address,
            namespace: args.namespace,
            timeout: Some(args.timeout).filter(|timeout| !timeout.is_zero()),
            debug: if args.debug { Debug::On } else { Debug::Off },
            content_store: args.content_store,
            root: args.root,
            plain_http: if args.plain_http { PlainHttp::Everywhere } else { PlainHttp::Loopback },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Asked {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_parser_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn spelled_as_freely_as_in_go() {
        let check = |line: &str| match parsed(line) {
            Asked::Command(command, global) => match *command {
                Command::Convert(convert) => (convert, global),
                other => panic!("{line}: {other:?}"),
            },
            other => panic!("{line}: {other:?}"),
        };
        let (convert, global) =
            check("soci -namespace=moby convert -platform a,b --platform c A -plain-http B");
        assert_eq!(global.namespace, "moby");
        assert_eq!(global.plain_http, PlainHttp::Everywhere);
        assert_eq!(convert.building.platform, ["a", "b", "c"]);
        assert_eq!((convert.source.as_deref(), convert.destination.as_deref()), (Some("A"), Some("B")));
        let (convert, global) =
            check("soci convert -n moby -span-size -5 --all-platforms=false -f --debug A B");
        let building = &convert.building;
        assert_eq!((building.span_size, building.all_platforms, building.force), (-5, false, true));
        assert_eq!((global.namespace.as_str(), global.debug), ("moby", Debug::On));
        // Of a flag that is given twice the last counts, so that an alias can be overruled.
        let (convert, global) = check("soci -n a convert -n b --span-size 1 -f=false --span-size 2 -f A B");
        assert_eq!(
            (global.namespace.as_str(), convert.building.span_size, convert.building.force),
            ("b", 2, true)
        );
    }

    #[test]
    fn nonsense_and_its_codes() {
        let check = |line: &str, expected: &str, expected_code: u8| match parsed(line) {
            Asked::Nonsense { message, code } => {
                assert!(message.starts_with(expected), "{message}");
                assert_eq!(code, expected_code);
            }
            other => panic!("{line}: {other:?}"),
        };
        check("soci frobnicate", "No help topic for 'frobnicate'", 3);
        check("soci convert --foo", "soci: flag provided but not defined: -foo", 1);
        check("soci convert --timeout x A B", "soci: invalid value 'x'", 1);
        check("soci --content-store x convert A B", "soci: invalid value 'x'", 1);
        check("soci convert --span-size", "soci: a value is required for", 1);
        check("soci rebuild-db x", "soci: a word too many: x", 1);
        check("soci verify", "soci: the following required arguments were not provided: <IMAGE>", 1);
        assert!(matches!(parsed("soci h convert"), Asked::Text(text) if text.contains("--span-size")));
        assert!(matches!(parsed("soci"), Asked::Text(text) if text.contains("convert")));
    }

    #[test]
    fn durations() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(duration(text).ok().map(|d| d.as_millis() as u64), expected, "{text}");
        };
        check("0", Some(0));
        check("30s", Some(30_000));
        check("1h30m", Some(5_400_000));
        check("1.5s", Some(1_500));
        check("250ms", Some(250));
        for bad in ["", "5", "s", "1x", "-1s", "1e400h"] {
            check(bad, None);
        }
    }
}
