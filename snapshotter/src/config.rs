//! The file as written becomes the values in force.
//!
//! Every key of the reference daemon is accepted. Keys that mean nothing here are named once in the log, and
//! so are keys that nobody knows, so that a typo is not a silent default.

use std::{fs, io, path::Path, path::PathBuf, time::Duration};

use layerfs::{Limits, MinFree, Room};
use toml::{Table, Value};

/// Enough for a node to go on working, and little enough for a disk that is well used.
const MIN_FREE: MinFree = MinFree::Bytes(2 << 30);

/// Where the metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`.
    Tcp(String),
    /// A socket's path.
    Unix(PathBuf),
}

/// What becomes of an image that has no index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unindexed {
    /// containerd pulls and unpacks it.
    Containerd,
    /// Its layers are brought whole, into the same store as the others.
    Store,
}

/// What the daemon runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// containerd's own socket, asked for manifests it already has.
    pub containerd_address: PathBuf,
    /// Layers below this many compressed bytes are not lazy.
    pub min_layer_size: u64,
    /// Look for a v2 index through the image manifest's annotation.
    pub v2: bool,
    /// Look for a v1 index among the referrers of the image manifest.
    pub v1: bool,
    pub unindexed: Unindexed,
    /// Bring in the background what nobody has asked for.
    pub fill: bool,
    /// Bring first what an image's prefetch artifacts name. Nothing waits for it.
    pub prefetch: bool,
    /// What the store of spans may take of its disk.
    pub room: Room,
    /// Limits of the fetch engine.
    pub limits: Limits,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<Address>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            containerd_address: "/run/containerd/containerd.sock".into(),
            min_layer_size: 0,
            v2: true,
            v1: false,
            unindexed: Unindexed::Containerd,
            fill: true,
            prefetch: true,
            room: Room { max_bytes: None, min_free: MIN_FREE },
            limits: Limits::default(),
            metrics: None,
        }
    }
}

/// Keys of the reference daemon that have no meaning here.
const IGNORED: &[&str] = &[
    "http_cache_type",
    "filesystem_cache_type",
    "resolve_result_entry",
    "debug",
    "disable_verification",
    "max_concurrency",
    "no_prometheus",
    "mount_timeout_sec",
    "fuse_metrics_emit_wait_duration_sec",
    "debug_address",
    "metadata_store",
    "metadata_db_no_sync",
    "metadata_insertion_chunk_size",
    "skip_check_snapshotter_supported",
    "http",
    "blob",
    "directory_cache",
    "fuse",
    "background_fetch",
    "content_store.type",
    "prefetch.max_concurrency",
    "pull_modes.parallel_pull_unpack",
    "kubeconfig_keychain",
    "cri_keychain",
    "resolver",
    "snapshotter.allow_invalid_mounts_on_restart",
];

impl Config {
    /// Reads a file. Only the default path may be missing.
    ///
    /// # Errors
    /// A sentence for the user: what is wrong, where.
    pub fn load(path: &Path, must_exist: bool) -> Result<(Self, Vec<String>), String> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(Default::default()),
            Err(e) => return Err(format!("read config {}: {e}", path.display())),
        };
        Self::parse(&text).map_err(|e| format!("read config {}: {e}", path.display()))
    }

    /// The values in force, and a remark for each key that has no effect.
    ///
    /// # Errors
    /// For text that is not TOML, and for values of the wrong type or out of range.
    pub fn parse(text: &str) -> Result<(Self, Vec<String>), String> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
        let mut config = Self::default();
        let mut remarks = Vec::new();
        config.take("", &table, &mut remarks)?;
        config.metrics = metrics(&table)?;
        Ok((config, remarks))
    }

    fn take(&mut self, prefix: &str, table: &Table, remarks: &mut Vec<String>) -> Result<(), String> {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if self.set(&key, value)? {
                continue;
            }
            let ignored = IGNORED.iter().any(|known| key == *known || key.starts_with(&format!("{known}.")));
            match value {
                _ if ignored => remarks.push(format!("{key} has no effect in this implementation")),
                Value::Table(table) => self.take(&key, table, remarks)?,
                _ => remarks.push(format!("{key} is not a key of the configuration")),
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<bool, String> {
        match key {
            // Two keys, one value: read together.
            "metrics_address" | "metrics_network" => {}
            "content_store.containerd_address" => {
                let address = string(key, value)?;
                self.containerd_address = address.strip_prefix("unix://").unwrap_or(address).into();
            }
            "snapshotter.min_layer_size" => self.min_layer_size = number(key, value)?,
            "pull_modes.soci_v1.enable" => self.v1 = boolean(key, value)?,
            "pull_modes.soci_v2.enable" => self.v2 = boolean(key, value)?,
            "unindexed.mode" => self.unindexed = unindexed(key, value)?,
            "background_fetch.disable" => self.fill = !boolean(key, value)?,
            "prefetch.enable" => self.prefetch = boolean(key, value)?,
            "fill.max_bandwidth" => {
                self.limits.fill_bandwidth = Some(number(key, value)?).filter(|bytes| *bytes > 0);
            }
            "fetch.hedge" => self.limits.hedge = boolean(key, value)?,
            "fill.enable" => self.fill = boolean(key, value)?,
            "span_store.max_bytes" => {
                self.room.max_bytes = Some(number(key, value)?).filter(|bytes| *bytes > 0);
            }
            "span_store.min_free" => self.room.min_free = min_free(key, value)?,
            "fetch.max_bytes_in_flight" => self.limits.max_bytes_in_flight = number(key, value)?.max(1),
            "fetch.max_requests" => {
                self.limits.max_requests =
                    usize::try_from(number(key, value)?.clamp(1, 1024)).unwrap_or(1024);
            }
            "fetch.read_timeout_sec" => {
                // A year is for ever, and fits into every clock.
                let seconds = number(key, value)?.min(365 * 24 * 60 * 60);
                self.limits.read_timeout = Duration::from_secs(seconds);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Where the metrics are to be served: an address, and whether it is one of TCP (the default) or a socket's path.
fn metrics(table: &Table) -> Result<Option<Address>, String> {
    let text = |key: &str| table.get(key).map(|value| string(key, value)).transpose();
    let address = text("metrics_address")?.filter(|address| !address.is_empty());
    match (address, text("metrics_network")?.unwrap_or("tcp")) {
        (None, _) => Ok(None),
        (Some(address), "tcp") => Ok(Some(Address::Tcp(address.to_owned()))),
        (Some(address), "unix") => Ok(Some(Address::Unix(address.into()))),
        (Some(_), _) => Err("metrics_network must be \"tcp\" or \"unix\"".to_owned()),
    }
}

fn unindexed(key: &str, value: &Value) -> Result<Unindexed, String> {
    match value.as_str() {
        Some("containerd") => Ok(Unindexed::Containerd),
        Some("store") => Ok(Unindexed::Store),
        _ => Err(format!("{key} must be \"containerd\" or \"store\"")),
    }
}

/// Bytes, or `"10%"`.
fn min_free(key: &str, value: &Value) -> Result<MinFree, String> {
    let Some(text) = value.as_str() else { return number(key, value).map(MinFree::Bytes) };
    let part = text.strip_suffix('%').and_then(|part| part.trim().parse().ok()).filter(|part| *part <= 100);
    part.map(MinFree::Percent)
        .ok_or_else(|| format!("{key} must be a number of bytes, or a string like \"10%\""))
}

fn string<'a>(key: &str, value: &'a Value) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("{key} must be a string"))
}

fn number(key: &str, value: &Value) -> Result<u64, String> {
    let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| format!("{key} must be a whole number of at least 0"))
}

fn boolean(key: &str, value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("{key} must be true or false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_force_and_remarks_about_the_others() {
        let text = r#"
            debug = true
            bogus = 1
            metrics_address = "/run/m.sock"
            metrics_network = "unix"
            [content_store]
            type = "containerd"
            containerd_address = "unix:///run/c.sock"
            [pull_modes.soci_v1]
            enable = true
            [unindexed]
            mode = "store"
            [http]
            MaxRetries = 3
            [span_store]
            max_bytes = 1024
            min_free = "10%"
            [prefetch]
            enable = false
            [fill]
            max_bandwidth = 5
            [fetch]
            hedge = false
            read_timeout_sec = 7
            typo = 2
        "#;
        let (config, remarks) = Config::parse(text).unwrap();
        assert_eq!(config.containerd_address, PathBuf::from("/run/c.sock"));
        assert!(config.v1 && config.v2 && config.fill);
        assert_eq!(config.unindexed, Unindexed::Store);
        assert_eq!(config.room, Room { max_bytes: Some(1024), min_free: MinFree::Percent(10) });
        assert_eq!(config.metrics, Some(Address::Unix("/run/m.sock".into())));
        assert_eq!(config.limits.fill_bandwidth, Some(5));
        assert!(!config.prefetch && !config.limits.hedge);
        assert_eq!(config.limits.read_timeout, Duration::from_secs(7));
        let expected = [
            "debug has no effect in this implementation",
            "bogus is not a key of the configuration",
            "content_store.type has no effect in this implementation",
            "http has no effect in this implementation",
            "fetch.typo is not a key of the configuration",
        ];
        for remark in expected {
            assert!(remarks.iter().any(|found| found == remark), "{remark}: {remarks:?}");
        }
        assert_eq!(remarks.len(), expected.len());
    }

    #[test]
    fn wrong_types_are_named() {
        for (text, expected) in [
            ("[span_store]\nmax_bytes = -1", "span_store.max_bytes must be a whole number"),
            ("[span_store]\nmin_free = \"much\"", "span_store.min_free must be a number of bytes, or"),
            ("[fill]\nenable = 1", "fill.enable must be true or false"),
            ("[unindexed]\nmode = \"lazy\"", "unindexed.mode must be \"containerd\" or \"store\""),
            ("[content_store]\ncontainerd_address = 5", "containerd_address must be a string"),
            (
                "metrics_address = \"a\"\nmetrics_network = \"udp\"",
                "metrics_network must be \"tcp\" or \"unix\"",
            ),
            ("metrics_address = 1", "metrics_address must be a string"),
            ("[fill", ""),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let missing = Path::new("/nonexistent/config.toml");
        assert!(Config::load(missing, false).is_ok());
        assert!(Config::load(missing, true).unwrap_err().contains("/nonexistent/config.toml"));
    }
}
