//! The daemon's own service `soci.control.v1`, on the socket on which it serves snapshots: what it says becomes plain
//! values. Their names in JSON are a promise; those that the Go daemon's state files have (`digest`, `size`,
//! `fetchedSize`, `fetchedPercent`, `error`) mean the same.

use std::{collections::BTreeMap, error::Error as StdError, io, path::PathBuf, time::Duration};

use prost_types::Timestamp;
use proto::soci::control::v1::{
    Compared, Layer as ProtoLayer, Outcome as ProtoOutcome, StatusRequest, StatusResponse, UpgradeRequest,
    control_client::ControlClient,
};
use serde::Serialize;
use tonic::{Code, Status as Refused, transport::Channel};

use crate::{
    error::{Error, ErrorKind},
    time,
};

/// How long the daemon may take to answer: it reads its database, and nothing else.
const PATIENCE: Duration = Duration::from_secs(10);
/// It first tries the other program.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(30);
/// Some thousand layers with the snapshots that use them.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// How everything stands.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) daemon: Daemon,
    pub(crate) layers: Vec<Layer>,
    /// How many layers were not lazy since the daemon began, by reason.
    pub(crate) not_lazy: BTreeMap<String, u64>,
    /// The last of them, the newest first.
    pub(crate) recent: Vec<Outcome>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Daemon {
    pub(crate) version: String,
    pub(crate) revision: String,
    pub(crate) pid: u32,
    /// of the process that would start another one; 0 when it is gone
    pub(crate) supervisor_pid: u32,
    pub(crate) address: String,
    pub(crate) root: String,
    /// RFC 3339
    pub(crate) started: String,
    /// empty for nowhere
    pub(crate) metrics_address: String,
    pub(crate) config_remarks: Vec<Remark>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Remark {
    pub(crate) line: u32,
    pub(crate) text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Layer {
    pub(crate) slot: u32,
    pub(crate) mountpoint: String,
    pub(crate) digest: String,
    /// none for a layer that was fetched whole
    pub(crate) ztoc: Option<String>,
    pub(crate) size: u64,
    pub(crate) fetched_size: u64,
    pub(crate) fetched_percent: f64,
    pub(crate) uncompressed_size: u64,
    pub(crate) stored_size: u64,
    pub(crate) spans: Spans,
    /// why it cannot be had, where every source fails; else empty
    pub(crate) error: String,
    pub(crate) sources: Vec<Source>,
    pub(crate) readers_waiting: u64,
    pub(crate) snapshots: Vec<String>,
    pub(crate) users: Vec<String>,
    pub(crate) images: Vec<String>,
    /// why it was fetched whole
    pub(crate) reason: Option<String>,
    pub(crate) complete: bool,
    /// with the image's configuration: `not_yet`, `right`, `wrong`, `unknown`
    pub(crate) compared: &'static str,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Spans {
    pub(crate) total: u32,
    pub(crate) ready: u32,
    pub(crate) filling: u32,
    pub(crate) empty: u32,
    pub(crate) unproven: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct Source {
    pub(crate) name: String,
    /// why the last request to it failed; empty if it did not
    pub(crate) error: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// RFC 3339
    pub(crate) time: String,
    pub(crate) key: String,
    /// empty where the client did not say which it is, as is `layer`
    pub(crate) image: String,
    pub(crate) layer: String,
    pub(crate) reason: String,
    pub(crate) why: String,
    /// `whole` or `left`
    pub(crate) outcome: &'static str,
}

/// Asks the daemon at `address` (a path, with or without `unix://`) how everything stands.
pub(crate) async fn status(address: &str) -> Result<Status, Error> {
    let doing = format!("ask soci-snapshotter-grpc at {address}");
    let mut client = connect(&doing, address).await?;
    let answered = tokio::time::timeout(PATIENCE, client.status(StatusRequest {})).await;
    let silent = |_| Error::new(ErrorKind::Unreachable, format!("{doing}: no answer within {PATIENCE:?}"));
    let answer = answered.map_err(silent)?.map_err(|refused| refusal(&doing, &refused))?;
    Ok(plain(answer.into_inner()))
}

/// Has another process of the daemon at `address` serve, of the program as it is on the disk now. That has not happened
/// yet when this returns.
pub(crate) async fn upgrade(address: &str) -> Result<(), Error> {
    let doing = format!("upgrade soci-snapshotter-grpc at {address}");
    let mut client = connect(&doing, address).await?;
    let answered = tokio::time::timeout(UPGRADE_PATIENCE, client.upgrade(UpgradeRequest {})).await;
    let silent =
        |_| Error::new(ErrorKind::Unreachable, format!("{doing}: no answer within {UPGRADE_PATIENCE:?}"));
    answered.map_err(silent)?.map_err(|refused| refusal(&doing, &refused)).map(drop)
}

async fn connect(doing: &str, address: &str) -> Result<ControlClient<Channel>, Error> {
    let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
    let channel = proto::connect(path).await.map_err(|cause| match is_denied(&cause) {
        true => {
            Error::new(ErrorKind::Denied, format!("{doing} (the socket is its user's own, mostly root's)"))
                .because(cause)
        }
        false => Error::new(ErrorKind::Unreachable, format!("{doing} (is it running? see --daemon-address)"))
            .because(cause),
    })?;
    Ok(ControlClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
}

fn is_denied(cause: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(cause);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        next = cause.source();
    }
    false
}

fn refusal(doing: &str, refused: &Refused) -> Error {
    match refused.code() {
        Code::Unimplemented => {
            let why =
                format!("{doing}: another server listens there, perhaps the Go daemon, or an older release");
            Error::new(ErrorKind::Unsupported, why)
        }
        Code::Unavailable => Error::new(ErrorKind::Unreachable, format!("{doing}: {}", refused.message())),
        _ => Error::new(ErrorKind::Io, format!("{doing}: {}", refused.message())),
    }
}

fn plain(answer: StatusResponse) -> Status {
    let daemon = answer.daemon.unwrap_or_default();
    let remarks = daemon.config_remarks.into_iter();
    Status {
        daemon: Daemon {
            version: daemon.version,
            revision: daemon.revision,
            pid: daemon.pid,
            supervisor_pid: daemon.supervisor_pid,
            address: daemon.address,
            root: daemon.root,
            started: rfc3339(daemon.started),
            metrics_address: daemon.metrics_address,
            config_remarks: remarks.map(|it| Remark { line: it.line, text: it.text }).collect(),
        },
        layers: answer.layers.into_iter().map(layer).collect(),
        not_lazy: answer.not_lazy.into_iter().map(|it| (it.reason, it.count)).collect(),
        recent: answer.recent.into_iter().map(outcome).collect(),
    }
}

fn layer(layer: ProtoLayer) -> Layer {
    let compared = match layer.compared() {
        Compared::NotYet => "not_yet",
        Compared::Right => "right",
        Compared::Wrong => "wrong",
        Compared::Unknown => "unknown",
    };
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let spans = layer.spans.unwrap_or_default();
    let sources: Vec<_> =
        layer.sources.into_iter().map(|it| Source { name: it.name, error: it.error }).collect();
    let failing = !layer.complete && sources.iter().all(|source| !source.error.is_empty());
    Layer {
        slot: layer.slot,
        mountpoint: layer.mountpoint,
        digest: layer.digest,
        ztoc: given(layer.ztoc),
        size: layer.size,
        fetched_size: layer.fetched_size,
        fetched_percent: percent(layer.fetched_size, layer.size),
        uncompressed_size: layer.uncompressed_size,
        stored_size: layer.stored_size,
        spans: Spans {
            total: spans.total,
            ready: spans.ready,
            filling: spans.filling,
            empty: spans.empty,
            unproven: spans.unproven,
        },
        error: match sources.first() {
            Some(first) if failing => first.error.clone(),
            None if failing => "there is nowhere to have it from".to_owned(),
            _ => String::new(),
        },
        sources,
        readers_waiting: layer.readers_waiting,
        snapshots: layer.snapshots,
        users: layer.users,
        images: layer.images,
        reason: given(layer.reason),
        complete: layer.complete,
        compared,
    }
}

fn outcome(outcome: ProtoOutcome) -> Outcome {
    Outcome {
        time: rfc3339(outcome.time),
        key: outcome.key,
        image: outcome.image,
        layer: outcome.layer,
        reason: outcome.reason,
        why: outcome.why,
        outcome: if outcome.whole { "whole" } else { "left" },
    }
}

/// With one digit behind the point, and 100 only for all of it.
fn percent(part: u64, whole: u64) -> f64 {
    if part >= whole {
        return 100.0;
    }
    ((part as f64 / whole as f64 * 1000.0).floor() / 10.0).min(99.9)
}

fn rfc3339(time: Option<Timestamp>) -> String {
    time.map(|time| time::rfc3339(u64::try_from(time.seconds).unwrap_or(0))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents() {
        for (part, whole, expected) in
            [(0, 0, 100.0), (0, 5, 0.0), (1, 3, 33.3), (9_999_999, 10_000_000, 99.9), (5, 5, 100.0)]
        {
            assert!((percent(part, whole) - expected).abs() < 1e-9, "{part} of {whole}");
        }
    }

    #[test]
    fn a_layer_fails_when_all_its_sources_do() {
        use proto::soci::control::v1::Source;
        let check = |errors: &[&str], complete: bool, expected: &str| {
            let source = |error: &&str| Source { name: "r/a".into(), error: (*error).into() };
            let sources = errors.iter().map(source).collect();
            assert_eq!(layer(ProtoLayer { sources, complete, ..ProtoLayer::default() }).error, expected);
        };
        check(&["gone", "away"], false, "gone");
        check(&["gone", ""], false, "");
        check(&["gone"], true, "");
        check(&[], false, "there is nowhere to have it from");
    }
}
