//! The daemon called as containerd calls it, one call after the other.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use integration::{daemon::Daemon, lab::Lab};
use prost_types::FieldMask;
use proto::containerd::{
    services::snapshots::v1::{
        CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest,
        PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest,
        UsageRequest, ViewSnapshotRequest, snapshots_client::SnapshotsClient,
    },
    types::Mount,
};
use tokio::runtime::Runtime;
use tonic::{Code, transport::Channel};

/// What the daemon answers when it does not do what it was asked: a code that containerd acts upon.
pub(crate) type Answer<T> = std::result::Result<T, tonic::Status>;
pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

/// Snapshots as their clients see them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) parent: String,
    pub(crate) kind: Kind,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) created: SystemTime,
    pub(crate) updated: SystemTime,
}

/// A lab with a daemon of its own, and a client of it.
pub(crate) struct Stage {
    runtime: Runtime,
    client: SnapshotsClient<Channel>,
    /// Where a case may do what it wants.
    pub(crate) work: PathBuf,
    pub(crate) daemon: Daemon,
    pub(crate) lab: Lab,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Result<Stage> {
        Stage::with(name, "")
    }

    /// With this beside the least that the configuration needs.
    pub(crate) fn with(name: &str, configuration: &str) -> Result<Stage> {
        let lab = Lab::new(name)?;
        let text = format!("{configuration}\n{}", Daemon::configuration(&lab));
        let daemon = Daemon::start(&lab, &text)?;
        Stage::of(lab, daemon)
    }

    pub(crate) fn of(lab: Lab, daemon: Daemon) -> Result<Stage> {
        let runtime = Runtime::new()?;
        let channel = runtime.block_on(proto::connect(daemon.address())).context("connect to the daemon")?;
        let client = SnapshotsClient::new(channel);
        let work = lab.folder("work")?;
        Ok(Stage { runtime, client, work, daemon, lab })
    }

    /// For calls from several threads.
    pub(crate) fn client(&self) -> SnapshotsClient<Channel> {
        self.client.clone()
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn prepare(&self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        self.prepare_with(key, parent, &[])
    }

    pub(crate) fn prepare_with(&self, key: &str, parent: &str, labels: Labels<'_>) -> Answer<Vec<Mount>> {
        let (key, parent, labels) = (key.to_owned(), parent.to_owned(), map(labels));
        let request = PrepareSnapshotRequest { key, parent, labels, ..Default::default() };
        let answer = self.runtime.block_on(self.client().prepare(request))?;
        Ok(answer.into_inner().mounts)
    }

    pub(crate) fn view(&self, key: &str, parent: &str) -> Answer<Vec<Mount>> {
        self.view_with(key, parent, &[])
    }

    pub(crate) fn view_with(&self, key: &str, parent: &str, labels: Labels<'_>) -> Answer<Vec<Mount>> {
        let (key, parent, labels) = (key.to_owned(), parent.to_owned(), map(labels));
        let request = ViewSnapshotRequest { key, parent, labels, ..Default::default() };
        Ok(self.runtime.block_on(self.client().view(request))?.into_inner().mounts)
    }

    pub(crate) fn mounts(&self, key: &str) -> Answer<Vec<Mount>> {
        let request = MountsRequest { key: key.to_owned(), ..Default::default() };
        Ok(self.runtime.block_on(self.client().mounts(request))?.into_inner().mounts)
    }

    pub(crate) fn commit(&self, name: &str, key: &str) -> Answer<()> {
        self.commit_with(name, key, "", &[])
    }

    pub(crate) fn commit_with(&self, name: &str, key: &str, parent: &str, labels: Labels<'_>) -> Answer<()> {
        let (name, key, parent, labels) = (name.to_owned(), key.to_owned(), parent.to_owned(), map(labels));
        let request = CommitSnapshotRequest { name, key, parent, labels, ..Default::default() };
        self.runtime.block_on(self.client().commit(request)).map(drop)
    }

    pub(crate) fn remove(&self, key: &str) -> Answer<()> {
        let request = RemoveSnapshotRequest { key: key.to_owned(), ..Default::default() };
        self.runtime.block_on(self.client().remove(request)).map(drop)
    }

    pub(crate) fn stat(&self, key: &str) -> Answer<Seen> {
        let request = StatSnapshotRequest { key: key.to_owned(), ..Default::default() };
        Ok(seen(self.runtime.block_on(self.client().stat(request))?.into_inner().info))
    }

    /// `info` is what the client believes the snapshot to be, `paths` what is to be changed of it.
    pub(crate) fn update(&self, info: &Seen, paths: &[&str]) -> Answer<Seen> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let info = Info {
            name: info.name.clone(),
            parent: info.parent.clone(),
            labels: info.labels.clone(),
            ..Default::default()
        };
        let request = UpdateSnapshotRequest {
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
            ..Default::default()
        };
        Ok(seen(self.runtime.block_on(self.client().update(request))?.into_inner().info))
    }

    pub(crate) fn list(&self, filters: &[&str]) -> Answer<Vec<Seen>> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = ListSnapshotsRequest { filters, ..Default::default() };
        self.runtime.block_on(async {
            let mut stream = self.client().list(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(block) = stream.message().await? {
                all.extend(block.info.into_iter().map(|info| seen(Some(info))));
            }
            Ok(all)
        })
    }

    /// The names of a list, sorted.
    pub(crate) fn names(&self, filters: &[&str]) -> Answer<Vec<String>> {
        let mut names: Vec<_> = self.list(filters)?.into_iter().map(|seen| seen.name).collect();
        names.sort();
        Ok(names)
    }

    /// Bytes and inodes.
    pub(crate) fn usage(&self, key: &str) -> Answer<(i64, i64)> {
        let request = UsageRequest { key: key.to_owned(), ..Default::default() };
        let usage = self.runtime.block_on(self.client().usage(request))?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub(crate) fn cleanup(&self) -> Answer<()> {
        self.runtime.block_on(self.client().cleanup(CleanupRequest::default())).map(drop)
    }
}

/// The code of a failure; `Ok` where it was none.
pub(crate) fn code<T>(answer: Answer<T>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

pub(crate) fn map(labels: Labels<'_>) -> HashMap<String, String> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn seen(info: Option<Info>) -> Seen {
    let info = info.expect("an answer says what it is about");
    let time = |time: Option<prost_types::Timestamp>| {
        let time = time.expect("a snapshot has times");
        let seconds = u64::try_from(time.seconds).expect("it is later than 1970");
        UNIX_EPOCH + Duration::new(seconds, u32::try_from(time.nanos).expect("a part of a second"))
    };
    Seen {
        kind: info.kind(),
        created: time(info.created_at),
        updated: time(info.updated_at),
        name: info.name,
        parent: info.parent,
        labels: info.labels,
    }
}
