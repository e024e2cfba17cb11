//! Snapshots and diffs: a pull's layers.

use proto::containerd::{
    services::{
        diff::v1::{ApplyRequest, diff_client::DiffClient},
        snapshots::v1::{
            CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
            snapshots_client::SnapshotsClient,
        },
    },
    types,
};

use super::{Code, Containerd, Descriptor, Error, Labels, status, wire};

/// What a Prepare answered.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// The snapshotter has the layer already: there is nothing to download.
    Exists,
    /// Mounts to unpack the layer into.
    Mounts(Vec<types::Mount>),
}

impl Containerd {
    /// Whether the snapshotter has a snapshot of that name.
    pub(crate) async fn has_snapshot(&self, snapshotter: &str, name: &str) -> Result<bool, Error> {
        let message = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: name.to_owned() };
        match SnapshotsClient::new(self.channel.clone()).stat(self.request(message)?).await {
            Ok(_) => Ok(true),
            Err(s) if s.code() == Code::NotFound => Ok(false),
            Err(s) => Err(status(&format!("look up snapshot {name}"), s)),
        }
    }

    /// Prepares an active snapshot for a layer.
    pub(crate) async fn prepare(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Prepared, Error> {
        let message = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        match SnapshotsClient::new(self.channel.clone()).prepare(self.request(message)?).await {
            Ok(answer) => Ok(Prepared::Mounts(answer.into_inner().mounts)),
            Err(s) if s.code() == Code::AlreadyExists => Ok(Prepared::Exists),
            Err(s) => Err(status(&format!("prepare snapshot with snapshotter {snapshotter:?}"), s)),
        }
    }

    /// Lets containerd unpack a layer that lies in its content store; the answer is the layer's diff ID.
    pub(crate) async fn apply(&self, layer: &Descriptor, mounts: Vec<types::Mount>) -> Result<String, Error> {
        let message = ApplyRequest { diff: Some(wire(layer)), mounts, ..ApplyRequest::default() };
        let applied = DiffClient::new(self.channel.clone()).apply(self.request(message)?).await;
        let applied = applied.map_err(|s| status(&format!("unpack layer {}", layer.digest), s))?;
        Ok(applied.into_inner().applied.unwrap_or_default().digest)
    }

    /// Commits an active snapshot; one that is there already is as good.
    pub(crate) async fn commit(
        &self,
        snapshotter: &str,
        key: &str,
        name: &str,
        labels: Labels,
    ) -> Result<(), Error> {
        let message = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
            parent: String::new(),
        };
        match SnapshotsClient::new(self.channel.clone()).commit(self.request(message)?).await {
            Err(s) if s.code() != Code::AlreadyExists => Err(status(&format!("commit snapshot {name}"), s)),
            _ => Ok(()),
        }
    }

    /// Removes an active snapshot that came to nothing; best effort, the lease's end does it otherwise.
    pub(crate) async fn discard(&self, snapshotter: &str, key: &str) {
        let message = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        if let Ok(request) = self.request(message)
            && let Err(error) = SnapshotsClient::new(self.channel.clone()).remove(request).await
        {
            tracing::debug!(key, %error, "remove an unfinished snapshot");
        }
    }
}
