//! The table of keys: those that have an effect, each with what it sets, and those that have none, each with why.

use std::{ops::RangeInclusive, time::Duration};

use layerfs::MinFree;
use oci::ClientOptions;
use toml::{Value, de::DeValue};

use super::{Config, Network, Unindexed};

/// A key that has an effect.
pub(super) struct Key {
    /// With its sections in front, and points between.
    pub(super) name: &'static str,
    /// What it means: in the documentation, and above it in `config default`.
    pub(super) help: &'static str,
    /// Sets it; the error is what was expected.
    pub(super) set: fn(&mut Config, &DeValue<'_>) -> Result<(), String>,
    /// What it is set to.
    pub(super) show: fn(&Config) -> Value,
}

/// A year is for ever, and fits into every clock.
const YEAR_SEC: i64 = 365 * 24 * 60 * 60;
const ANY: RangeInclusive<i64> = 0..=i64::MAX;

/// Sections stand together, those of no section first.
pub(super) const USED: &[Key] = &[
    Key {
        name: "metrics_address",
        help: "where metrics, `/healthz` and `/readyz` are served: `HOST:PORT`, or a path; empty for nowhere",
        set: |config, value| string(value).map(|text| config.written.metrics_address = text),
        show: |config| config.written.metrics_address.clone().into(),
    },
    Key {
        name: "metrics_network",
        help: "`\"unix\"` where `metrics_address` is a path",
        set: |config, value| {
            const NETWORKS: &[(&str, Network)] = &[("tcp", Network::Tcp), ("unix", Network::Unix)];
            one_of(value, NETWORKS).map(|network| config.written.metrics_network = network)
        },
        show: |config| match config.written.metrics_network {
            Network::Tcp => "tcp".into(),
            Network::Unix => "unix".into(),
        },
    },
    Key {
        name: "no_prometheus",
        help: "serve nothing at `metrics_address`",
        set: |config, value| boolean(value).map(|off| config.written.no_prometheus = off),
        show: |config| config.written.no_prometheus.into(),
    },
    Key {
        name: "http.DialTimeoutMsec",
        help: "until a connection to a registry stands; 0 is the default",
        set: |config, value| {
            millis(value, ClientOptions::default().connect_timeout).map(|it| config.http.connect_timeout = it)
        },
        show: |config| whole(config.http.connect_timeout.as_millis()),
    },
    Key {
        name: "http.ResponseHeaderTimeoutMsec",
        help: "from a request until its answer begins; 0 is the default",
        set: |config, value| {
            millis(value, ClientOptions::default().header_timeout).map(|it| config.http.header_timeout = it)
        },
        show: |config| whole(config.http.header_timeout.as_millis()),
    },
    Key {
        name: "http.MaxRetries",
        help: "how often a request that may succeed later is made again; 0 is the default, less than 0 is never",
        set: |config, value| {
            let retries = number(value, -1..=100)?;
            config.http.attempts_max = match u32::try_from(retries) {
                Err(_) => 1,
                Ok(0) => ClientOptions::default().attempts_max,
                Ok(retries) => retries + 1,
            };
            Ok(())
        },
        show: |config| match config.http.attempts_max {
            0 | 1 => (-1).into(),
            attempts => i64::from(attempts - 1).into(),
        },
    },
    Key {
        name: "http.MinWaitMsec",
        help: "the first pause between such requests, which then doubles; 0 is the default",
        set: |config, value| millis(value, ClientOptions::default().pause).map(|it| config.http.pause = it),
        show: |config| whole(config.http.pause.as_millis()),
    },
    Key {
        name: "content_store.containerd_address",
        help: "containerd, asked for manifests it already has; the registry is asked when it does not answer",
        set: |config, value| {
            let address = string(value)?;
            config.containerd_address = address.strip_prefix("unix://").unwrap_or(&address).into();
            Ok(())
        },
        show: |config| config.containerd_address.to_string_lossy().into_owned().into(),
    },
    Key {
        name: "snapshotter.min_layer_size",
        help: "layers of fewer compressed bytes are fetched whole",
        set: |config, value| number(value, ANY).map(|bytes| config.min_layer_size = bytes.unsigned_abs()),
        show: |config| whole(config.min_layer_size),
    },
    Key {
        name: "snapshotter.mount_options",
        help: "options for every overlay that containerd is told to mount, as `[\"volatile\"]` (with which the kernel mounts a container's upper layer only once: not for containers that are stopped and started again)",
        set: |config, value| mount_options(value).map(|options| config.mount_options = options),
        show: |config| config.mount_options.clone().into(),
    },
    Key {
        name: "pull_modes.soci_v2.enable",
        help: "look for an index through the image manifest's annotation",
        set: |config, value| boolean(value).map(|on| config.v2 = on),
        show: |config| config.v2.into(),
    },
    Key {
        name: "pull_modes.soci_v1.enable",
        help: "look for one among the manifest's referrers",
        set: |config, value| boolean(value).map(|on| config.v1 = on),
        show: |config| config.v1.into(),
    },
    Key {
        name: "unindexed.mode",
        help: "what handles images without an index: `\"containerd\"`, or (`\"store\"`) the daemon, which fetches their layers \
               whole, side by side, into the same store",
        set: |config, value| {
            const MODES: &[(&str, Unindexed)] =
                &[("containerd", Unindexed::Containerd), ("store", Unindexed::Store)];
            one_of(value, MODES).map(|mode| config.unindexed = mode)
        },
        show: |config| match config.unindexed {
            Unindexed::Containerd => "containerd".into(),
            Unindexed::Store => "store".into(),
        },
    },
    Key {
        name: "background_fetch.disable",
        help: "the same as `[fill] enable`, the other way round",
        set: |config, value| boolean(value).map(|off| config.written.background_disabled = off),
        show: |config| config.written.background_disabled.into(),
    },
    Key {
        name: "fill.enable",
        help: "fetch the rest of each layer in the background",
        set: |config, value| boolean(value).map(|on| config.written.fill_disabled = !on),
        show: |config| (!config.written.fill_disabled).into(),
    },
    Key {
        name: "fill.max_bandwidth",
        help: "bytes a second that this may take; 0 for no limit",
        set: |config, value| limit(value).map(|bytes| config.limits.fill_bandwidth = bytes),
        show: |config| whole(config.limits.fill_bandwidth.unwrap_or(0)),
    },
    Key {
        name: "prefetch.enable",
        help: "bring first what an image's prefetch artifacts name; nothing waits for it, and it comes also where `[fill]` \
               is off",
        set: |config, value| boolean(value).map(|on| config.prefetch = on),
        show: |config| config.prefetch.into(),
    },
    Key {
        name: "span_store.max_bytes",
        help: "uncompressed bytes of spans kept on disk; the least recently used go; 0 for no limit",
        set: |config, value| limit(value).map(|bytes| config.room.max_bytes = bytes),
        show: |config| whole(config.room.max_bytes.unwrap_or(0)),
    },
    Key {
        name: "span_store.min_free",
        help: "bytes, or a part of the disk (`\"10%\"`), to be left free: with less the least recently used spans go and \
               nothing is brought in the background",
        set: |config, value| min_free(value).map(|free| config.room.min_free = free),
        show: |config| match config.room.min_free {
            MinFree::Bytes(bytes) => whole(bytes),
            MinFree::Percent(part) => format!("{part}%").into(),
        },
    },
    Key {
        name: "fetch.max_bytes_in_flight",
        help: "compressed bytes asked for and not yet dealt with; one registry gets three quarters",
        set: |config, value| {
            number(value, 1..=i64::MAX).map(|it| config.limits.max_bytes_in_flight = it.unsigned_abs())
        },
        show: |config| whole(config.limits.max_bytes_in_flight),
    },
    Key {
        name: "fetch.max_requests",
        help: "requests under way to one registry; fewer for a while after it answers 429 or 503",
        set: |config, value| {
            let requests = number(value, 1..=1024)?;
            config.limits.max_requests = usize::try_from(requests).expect("1024 fit");
            Ok(())
        },
        show: |config| whole(config.limits.max_requests as u64),
    },
    Key {
        name: "fetch.hedge",
        help: "make a reader's request a second time when it takes far longer than such requests do, for at most a \
               twentieth of the bytes",
        set: |config, value| boolean(value).map(|on| config.limits.hedge = on),
        show: |config| config.limits.hedge.into(),
    },
    Key {
        name: "fetch.read_timeout_sec",
        help: "how long a reader waits for a registry that cannot be reached, or denies us",
        set: |config, value| {
            let seconds = number(value, 0..=YEAR_SEC)?.unsigned_abs();
            config.limits.read_timeout = Duration::from_secs(seconds);
            Ok(())
        },
        show: |config| whole(config.limits.read_timeout.as_secs()),
    },
];

/// Keys of the reference daemon that have no effect, or whole sections of them, and why.
pub(super) const IGNORED: &[(&str, &str)] = &[
    ("http_cache_type", "the reference daemon does not use it either"),
    ("filesystem_cache_type", "spans are kept on disk, and the kernel keeps in memory what is read"),
    ("resolve_result_entry", "a layer is kept open as long as anything stands on it"),
    ("debug", "`--log-level debug` tells about reads that waited and requests that were made"),
    ("disable_verification", "bytes are always verified before they are read"),
    (
        "max_concurrency",
        "all layers of an image are opened side by side; `[fetch]` limits what is asked for at once",
    ),
    ("mount_timeout_sec", "a layer whose ztoc does not come is fetched whole after ten seconds of silence"),
    ("fuse_metrics_emit_wait_duration_sec", "requests of the kernel are counted from the beginning"),
    ("debug_address", "there is no profiler of Go in this daemon"),
    ("metadata_store", "the ztoc is used as it is; its table of files is not copied into a database"),
    ("metadata_db_no_sync", "there is no database of files"),
    ("metadata_insertion_chunk_size", "there is no database of files"),
    ("skip_check_snapshotter_supported", "no overlay is mounted as a test"),
    ("http.RequestTimeoutMsec", "a request may take as long as its bytes keep coming"),
    (
        "http.MaxWaitMsec",
        "a pause is never longer than ten seconds, or half a minute where the registry asks for it",
    ),
    ("blob.valid_interval", "a source is asked when bytes are needed, and not in between"),
    ("blob.check_always", "a source is asked when bytes are needed, and not in between"),
    (
        "blob.fetching_timeout_sec",
        "a request may take as long as its bytes keep coming; readers: `[fetch] read_timeout_sec`",
    ),
    ("blob.max_retries", "spans for a reader are asked for until `[fetch] read_timeout_sec` is over"),
    ("blob.min_wait_msec", "pauses between requests for spans double from 50 milliseconds to five seconds"),
    ("blob.max_wait_msec", "pauses between requests for spans double from 50 milliseconds to five seconds"),
    ("blob.force_single_range_mode", "every request is for a single range"),
    (
        "blob.max_span_verification_retries",
        "a span whose digest is wrong is asked for six times, from each source",
    ),
    (
        "directory_cache",
        "spans are in one sparse file a layer; the reference daemon does not use these keys either",
    ),
    ("fuse.attr_timeout", "a layer never changes: the kernel may keep its attributes for ever"),
    ("fuse.entry_timeout", "a layer never changes: the kernel may keep its names for ever"),
    (
        "fuse.negative_timeout",
        "a layer never changes: the kernel may remember for ever what it does not have",
    ),
    (
        "fuse.log_fuse_operations",
        "requests of the kernel are counted (`soci_fuse_requests_total`), not logged",
    ),
    (
        "background_fetch.silence_period_msec",
        "readers come first at any time; the rest of the line is used at once",
    ),
    ("background_fetch.fetch_period_msec", "the line is kept busy; `[fill] max_bandwidth` limits it"),
    (
        "background_fetch.max_queue_size",
        "there is no queue to overflow: every layer that is shown takes its turns",
    ),
    (
        "background_fetch.drop_policy",
        "there is no queue to overflow: every layer that is shown takes its turns",
    ),
    ("background_fetch.emit_metric_period_sec", "metrics are as of the moment they are asked for"),
    (
        "content_store.type",
        "ztocs are kept with their layers, and manifests are had from containerd where it has them",
    ),
    ("content_store.namespace", "the namespace is the one that the image is pulled in"),
    ("prefetch.max_concurrency", "`[fetch]` limits what is asked for at once"),
    (
        "pull_modes.parallel_pull_unpack",
        "layers that are fetched whole always come side by side; see `[unindexed] mode`",
    ),
    ("kubeconfig_keychain", "not yet: credentials come from Docker's configuration"),
    ("cri_keychain", "not yet: credentials come from Docker's configuration"),
    ("resolver.auth_client_ttl_sec", "credentials are asked for whenever a token is needed"),
    ("resolver.enable_auth_client_sharing", "connections are always shared"),
    ("resolver.host", "not yet: a registry is asked itself, without mirrors"),
    (
        "snapshotter.allow_invalid_mounts_on_restart",
        "the daemon always starts; a layer that is lost is brought again",
    ),
];

pub(super) fn used(name: &str) -> Option<&'static Key> {
    USED.iter().find(|key| key.name == name)
}

/// Why a key has no effect, if it is one that is known to have none.
pub(super) fn ignored(name: &str) -> Option<&'static str> {
    let is_it =
        |known: &str| name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    IGNORED.iter().find(|(known, _)| is_it(known)).map(|(_, why)| *why)
}

/// All keys.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    USED.iter().map(|key| key.name).chain(IGNORED.iter().map(|(name, _)| *name))
}

/// All tables that have keys.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    names().flat_map(|name| name.match_indices('.').map(move |(end, _)| &name[..end]))
}

pub(super) fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

/// As it is written in the file: `[http] MaxRetries`.
pub(super) fn spelled(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((section, name)) => format!("[{section}] {name}"),
        None => name.to_owned(),
    }
}

fn string(value: &DeValue<'_>) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| "a string".to_owned())
}

fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "true or false".to_owned())
}

fn one_of<T: Copy>(value: &DeValue<'_>, known: &[(&str, T)]) -> Result<T, String> {
    let found = known.iter().find(|(name, _)| value.as_str() == Some(name)).map(|(_, meaning)| *meaning);
    let names = || known.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(" or ");
    found.ok_or_else(names)
}

fn number(value: &DeValue<'_>, range: RangeInclusive<i64>) -> Result<i64, String> {
    let parse = |digits: &str, radix| i64::from_str_radix(digits, radix).ok();
    let number = value.as_integer().and_then(|number| parse(number.as_str(), number.radix()));
    number.filter(|number| range.contains(number)).ok_or_else(|| match (range.start(), range.end()) {
        (start, &i64::MAX) => format!("a whole number of at least {start}"),
        (start, end) => format!("a whole number from {start} to {end}"),
    })
}

/// 0 is none.
fn limit(value: &DeValue<'_>) -> Result<Option<u64>, String> {
    number(value, ANY).map(|bytes| Some(bytes.unsigned_abs()).filter(|bytes| *bytes > 0))
}

/// 0 is the default, as in the reference daemon.
fn millis(value: &DeValue<'_>, default: Duration) -> Result<Duration, String> {
    let millis = number(value, 0..=YEAR_SEC * 1000)?.unsigned_abs();
    Ok(if millis == 0 { default } else { Duration::from_millis(millis) })
}

/// Bytes, or `"10%"`.
fn min_free(value: &DeValue<'_>) -> Result<MinFree, String> {
    let expected = || "a number of bytes, or a string like \"10%\"".to_owned();
    let Some(text) = value.as_str() else {
        return number(value, ANY).map(|it| MinFree::Bytes(it.unsigned_abs())).map_err(|_| expected());
    };
    let part = text.strip_suffix('%').and_then(|part| part.trim().parse().ok()).filter(|part| *part <= 100);
    part.map(MinFree::Percent).ok_or_else(expected)
}

/// What is ours to say cannot be said here, nor several things at once.
fn mount_options(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    const OURS: &[&str] = &["lowerdir", "upperdir", "workdir", "uidmap", "gidmap"];
    let option = |value: &DeValue<'_>| {
        let option = value.as_str().filter(|option| !option.is_empty() && !option.contains([',', '\0']))?;
        let name = option.split('=').next().unwrap_or_default();
        (!OURS.contains(&name) && !name.starts_with("lowerdir+")).then(|| option.to_owned())
    };
    let all = value.as_array().and_then(|all| all.iter().map(|one| option(one.get_ref())).collect());
    all.ok_or_else(|| "a list of options of overlayfs, one in each string".to_owned())
}

fn whole(number: impl TryInto<i64>) -> Value {
    number.try_into().unwrap_or(i64::MAX).into()
}
