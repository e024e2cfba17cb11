//! The configuration file becomes the values in force.
//!
//! Every key of the Go daemon is accepted. It has its effect (`keys`), or the log says once why it has none. An unknown key
//! is reported with the key that was probably meant (`guess`), so that a typo is no silent default. A value of the wrong
//! type or out of range is an error with its line. The same table writes the configuration down again (`text`), and the
//! documentation is checked against it.

mod guess;
mod text;
mod keys;
#[cfg(test)]
mod tests;

use std::{fmt, fs, io, ops::Range, path::Path, path::PathBuf};

use layerfs::{DiskLimits, Limits, MinFree};
use oci::ClientOptions;
use toml::de::{DeTable, DeValue};

pub use text::{commented, plain};

/// Enough for a node to go on working, and little enough for a disk that is well used.
const MIN_FREE: MinFree = MinFree::Bytes(2 << 30);
/// Of a key or a value no more than this is repeated to the user.
const MOST_REPEATED: usize = 80;

/// Where the metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`.
    Tcp(String),
    /// A socket's path.
    Unix(PathBuf),
}

/// How images without an index are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unindexed {
    /// containerd pulls and unpacks it.
    Containerd,
    /// The daemon streams its layers whole, into the same store as the others.
    Store,
}

/// What the daemon runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// containerd's own socket, asked for manifests it already has.
    pub containerd_address: PathBuf,
    /// Layers below this many compressed bytes are not lazy.
    pub min_layer_size: u64,
    /// Options of every overlay that containerd is told to mount.
    pub mount_options: Vec<String>,
    /// Look for a v2 index through the image manifest's annotation.
    pub v2: bool,
    /// Look for a v1 index among the referrers of the image manifest.
    pub v1: bool,
    pub unindexed: Unindexed,
    /// Fetch the rest of each layer in the background.
    pub fill: bool,
    /// Fetch the spans first that an image's prefetch artifacts name. Nothing waits for them.
    pub prefetch: bool,
    /// What the store of spans may take of its disk.
    pub room: DiskLimits,
    /// Limits of the fetch engine.
    pub limits: Limits,
    /// How registries are spoken to.
    pub http: ClientOptions,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<Address>,
    /// What is to be said about the file.
    pub remarks: Vec<Remark>,
    written: Written,
}

/// Keys of which several make one value.
#[derive(Debug, Clone, Default)]
struct Written {
    metrics_address: String,
    metrics_network: Network,
    no_prometheus: bool,
    background_disabled: bool,
    fill_disabled: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Network {
    #[default]
    Tcp,
    Unix,
}

/// Something in the file that has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Where, from 1 on.
    pub line: usize,
    /// The key, and why.
    pub text: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            containerd_address: "/run/containerd/containerd.sock".into(),
            min_layer_size: 0,
            mount_options: Vec::new(),
            v2: true,
            v1: false,
            unindexed: Unindexed::Containerd,
            fill: true,
            prefetch: true,
            room: DiskLimits { max_bytes: None, min_free: MIN_FREE },
            limits: Limits::default(),
            http: ClientOptions::default(),
            metrics: None,
            remarks: Vec::new(),
            written: Written::default(),
        }
    }
}

impl Config {
    /// Reads a file. Only the default path may be missing.
    ///
    /// # Errors
    /// A sentence for the user: what is wrong, where.
    pub fn load(path: &Path, must_exist: bool) -> Result<Self, String> {
        let text = Self::text(path, must_exist)?;
        Self::parse(&text).map_err(|e| format!("read config {}: {e}", path.display()))
    }

    /// The text of a file; none is that of one that is missing and may be.
    pub(crate) fn text(path: &Path, must_exist: bool) -> Result<String, String> {
        match fs::read_to_string(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !must_exist => Ok(String::new()),
            read => read.map_err(|e| format!("read config {}: {e}", path.display())),
        }
    }

    /// The values in force, with a remark for each key that has no effect.
    ///
    /// # Errors
    /// For text that is not TOML, and for values of the wrong type or out of range: each in a line of its own.
    pub fn parse(text: &str) -> Result<Self, String> {
        let table = DeTable::parse(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        let mut config = Self::default();
        let mut errors = Vec::new();
        config.take("", table.get_ref(), &Page(text), &mut errors);
        if !errors.is_empty() {
            errors.sort_by_key(|(line, _)| *line);
            let all: Vec<_> = errors.into_iter().map(|(line, text)| format!("line {line}: {text}")).collect();
            return Err(all.join("\n"));
        }
        config.settle();
        config.remarks.sort_by_key(|remark| remark.line);
        Ok(config)
    }

    /// Takes a table, and notes each wrong value with its line.
    fn take(
        &mut self,
        prefix: &str,
        table: &DeTable<'_>,
        page: &Page<'_>,
        errors: &mut Vec<(usize, String)>,
    ) {
        for (name, value) in table {
            let line = page.line(name.span().start);
            let name = name.get_ref();
            let key = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
            if let Some(known) = keys::used(&key) {
                if let Err(expected) = (known.set)(self, value.get_ref()) {
                    let found = page.value(&value.span());
                    errors.push((line, format!("{key} must be {expected}, not {found}")));
                }
                continue;
            }
            if let Some(why) = keys::ignored(&key) {
                self.remark(line, format!("{} has no effect: {why}", keys::spelled(&key)));
                continue;
            }
            let is_section = keys::is_section(&key);
            match value.get_ref() {
                DeValue::Table(inner) if is_section => self.take(&key, inner, page, errors),
                _ if is_section => {
                    let found = page.value(&value.span());
                    errors.push((line, format!("{key} must be a table ([{key}]), not {found}")));
                }
                DeValue::Table(_) => {
                    let meant = guess::section(&key).map(|meant| format!("; did you mean [{meant}]?"));
                    let unknown = format!("[{}] is not a table of the configuration", shortened(&key));
                    self.remark(line, unknown + &meant.unwrap_or_default());
                }
                _ => {
                    let meant =
                        guess::key(&key).map(|meant| format!("; did you mean {}?", keys::spelled(meant)));
                    let unknown =
                        format!("{} is not a key of the configuration", shortened(&keys::spelled(&key)));
                    self.remark(line, unknown + &meant.unwrap_or_default());
                }
            }
        }
    }

    fn remark(&mut self, line: usize, text: String) {
        self.remarks.push(Remark { line, text });
    }

    /// What several keys say together.
    fn settle(&mut self) {
        let Written { metrics_address, metrics_network, no_prometheus, .. } = &self.written;
        self.metrics = match metrics_network {
            _ if metrics_address.is_empty() || *no_prometheus => None,
            Network::Tcp => Some(Address::Tcp(metrics_address.clone())),
            Network::Unix => Some(Address::Unix(metrics_address.into())),
        };
        self.fill = !self.written.background_disabled && !self.written.fill_disabled;
    }
}

/// The text that is being read.
struct Page<'a>(&'a str);

impl Page<'_> {
    fn line(&self, offset: usize) -> usize {
        let before = self.0.as_bytes().get(..offset).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// A value as it is written, or the beginning of it.
    fn value(&self, span: &Range<usize>) -> String {
        shortened(self.0.get(span.clone()).unwrap_or_default())
    }
}

/// Fit to be shown on a line of a terminal.
fn shortened(text: &str) -> String {
    let shown: String = text.chars().take(MOST_REPEATED).collect();
    let rest = if shown.len() < text.len() { "…" } else { "" };
    let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    shown.chars().map(escape).collect::<String>() + rest
}
