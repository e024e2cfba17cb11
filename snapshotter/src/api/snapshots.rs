//! The door for containerd's snapshot calls: gRPC becomes plain values and back, and an error becomes a status.
//!
//! A Prepare runs as a task of its own. tonic drops a request's future when the client disconnects, but a Prepare that
//! has begun must be finished and recorded.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use futures::{Stream, stream};
use prost_types::Timestamp;
use proto::containerd::{
    services::snapshots::v1::{
        CleanupRequest, CommitSnapshotRequest, Info, Kind as ProtoKind, ListSnapshotsRequest,
        ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest,
        PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
        UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest,
        ViewSnapshotResponse, snapshots_server::Snapshots,
    },
    types,
};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, async_trait};

use crate::{
    error::{Error, ErrorKind},
    snapshots::{
        overlay::Mount,
        snapshotter::Snapshotter,
        store::{Kind, Record},
    },
};

/// Infos in one message of a list, as containerd sends them.
const BLOCK: usize = 100;

pub(crate) struct SnapshotsDoor {
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) prepares: PreparesUnderWay,
}

/// How many Prepares are under way. They are the calls that may take long.
#[derive(Debug, Clone, Default)]
pub(crate) struct PreparesUnderWay(watch::Sender<usize>);

/// One Prepare, until this is dropped.
struct PrepareUnderWay(PreparesUnderWay);

impl PreparesUnderWay {
    fn begin(&self) -> PrepareUnderWay {
        self.0.send_modify(|count| *count += 1);
        PrepareUnderWay(self.clone())
    }

    /// Waits for a moment at which no Prepare is under way.
    pub(crate) async fn none(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for PrepareUnderWay {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

#[async_trait]
impl Snapshots for SnapshotsDoor {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let request = request.into_inner();
        let (snapshotter, begun) = (self.snapshotter.clone(), self.prepares.begin());
        let prepared = tokio::spawn(async move {
            let _begun = begun;
            snapshotter.prepare(&request.key, &request.parent, request.labels).await
        });
        let mounts = prepared.await.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| status(&e))?;
        Ok(Response::new(PrepareSnapshotResponse { mounts: mounts.into_iter().map(mount).collect() }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let request = request.into_inner();
        let viewed = self.blocking(move |it| it.view(&request.key, &request.parent, request.labels)).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts: viewed.into_iter().map(mount).collect() }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let mounts = self.blocking(move |it| it.mounts(&request.into_inner().key)).await?;
        Ok(Response::new(MountsResponse { mounts: mounts.into_iter().map(mount).collect() }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let commit =
            move |it: &Snapshotter| it.commit(&request.key, &request.name, request.parent, request.labels);
        self.blocking(commit).await.map(Response::new)
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        self.blocking(move |it| it.remove(&request.into_inner().key)).await.map(Response::new)
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let record = self.blocking(move |it| it.stat(&request.into_inner().key)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info(record)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let wanted = request.info.ok_or_else(|| Status::invalid_argument("update snapshot: no info"))?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let record = self
            .blocking(move |it| it.update(&wanted.name, |labels| relabel(labels, &wanted.labels, &paths)))
            .await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(record)) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        let records = self.blocking(move |it| it.list(&filters)).await?;
        let infos: Vec<_> = records.into_iter().map(info).collect();
        let blocks: Vec<_> =
            infos.chunks(BLOCK).map(|block| Ok(ListSnapshotsResponse { info: block.to_vec() })).collect();
        Ok(Response::new(Box::pin(stream::iter(blocks))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let (size, inodes) = self.blocking(move |it| it.usage(&request.into_inner().key)).await?;
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: signed(size), inodes: signed(inodes) }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        self.blocking(Snapshotter::cleanup).await.map(Response::new)
    }
}

impl SnapshotsDoor {
    /// Runs a verb that uses the disk away from the threads that answer other calls.
    async fn blocking<T: Send + 'static>(
        &self,
        verb: impl FnOnce(&Snapshotter) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshotter = self.snapshotter.clone();
        let done = tokio::task::spawn_blocking(move || verb(&snapshotter)).await;
        done.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| status(&e))
    }
}

fn status(error: &Error) -> Status {
    let code = match error.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::Internal => Code::Internal,
    };
    if code == Code::Internal {
        tracing::error!(%error, "a request failed");
    }
    Status::new(code, error.to_string())
}

fn mount(mount: Mount) -> types::Mount {
    types::Mount { r#type: mount.kind, source: mount.source, target: String::new(), options: mount.options }
}

fn info(record: Record) -> Info {
    let kind = match record.kind {
        Kind::View => ProtoKind::View,
        Kind::Active => ProtoKind::Active,
        Kind::Committed => ProtoKind::Committed,
    };
    let time = |nanoseconds: u64| {
        let seconds = i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(0);
        Some(Timestamp { seconds, nanos: i32::try_from(nanoseconds % 1_000_000_000).unwrap_or(0) })
    };
    Info {
        name: record.name,
        parent: record.parent,
        kind: kind.into(),
        created_at: time(record.created),
        updated_at: time(record.updated),
        labels: record.labels,
    }
}

/// A field mask of `labels` replaces all, `labels.<name>` one (an absent value removes it, as an empty one does); none
/// replaces all. Nothing else of a snapshot can be changed.
fn relabel(
    labels: &mut HashMap<String, String>,
    wanted: &HashMap<String, String>,
    paths: &[String],
) -> Result<(), Error> {
    if paths.is_empty() {
        labels.clone_from(wanted);
    }
    for path in paths {
        match path.strip_prefix("labels.") {
            Some(name) => {
                labels.insert(name.to_owned(), wanted.get(name).cloned().unwrap_or_default());
            }
            None if path == "labels" => labels.clone_from(wanted),
            None => {
                let doing = format!("update snapshot: {path:?} cannot be changed, only labels can");
                return Err(Error::new(ErrorKind::InvalidArgument, doing));
            }
        }
    }
    Ok(())
}
