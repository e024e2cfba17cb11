//! The second door, on the same socket: what the daemon tells about itself (`soci.control.v1`), and whether it serves
//! (`grpc.health.v1`). It only translates.

use std::{
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use futures::{Stream, StreamExt, stream};
use prost_types::Timestamp;
use proto::{
    grpc::health::v1::{
        HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
        health_server::Health as HealthService,
    },
    soci::control::v1::{
        Compared as ProtoCompared, ConfigRemark, Daemon, Layer, Outcome as ProtoOutcome, ReasonCount, Source,
        Spans, StatusRequest, StatusResponse, UpgradeRequest as ProtoUpgradeRequest, UpgradeResponse,
        control_server::Control as ControlService,
    },
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, async_trait};

use crate::{
    api::health::{Health, Phase},
    config::{Address, Config, Remark},
    reason::Reason,
    snapshots::{
        snapshotter::Snapshotter,
        status::{Compared, LayerRow},
    },
    telemetry::outcomes::NotLazyLayer,
};

/// The services that a client may ask the health of: the whole daemon, and the one that containerd calls.
const SERVICES: [&str; 2] = ["", "containerd.services.snapshots.v1.Snapshots"];

/// A client's request that another program serve. The answer is whether one will, or why not.
pub(crate) type UpgradeRequest = oneshot::Sender<Result<(), String>>;

/// `soci.control.v1`.
#[derive(Clone)]
pub(crate) struct Control {
    snapshotter: Arc<Snapshotter>,
    daemon: Daemon,
    supervisor: SupervisorHandle,
}

/// What the control service knows of the supervisor.
#[derive(Debug, Clone)]
pub(crate) struct SupervisorHandle {
    /// 0 when the supervisor is gone.
    pub(crate) pid: Arc<AtomicU32>,
    pub(crate) upgrades: mpsc::UnboundedSender<UpgradeRequest>,
}

impl Control {
    /// `address` is the socket's path.
    pub(crate) fn new(
        snapshotter: Arc<Snapshotter>,
        address: &Path,
        root: &Path,
        config: &Config,
        supervisor: SupervisorHandle,
    ) -> Self {
        let remark = |remark: &Remark| ConfigRemark {
            line: u32::try_from(remark.line).unwrap_or(u32::MAX),
            text: remark.text.clone(),
        };
        let metrics_address = match &config.metrics {
            None => String::new(),
            Some(Address::Tcp(address)) => address.clone(),
            Some(Address::Unix(path)) => text(path),
        };
        let daemon = Daemon {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: crate::REVISION.to_owned(),
            pid: std::process::id(),
            supervisor_pid: 0, // filled in for each answer
            address: text(address),
            root: text(root),
            started: Some(timestamp(SystemTime::now())),
            metrics_address,
            config_remarks: config.remarks.iter().map(remark).collect(),
        };
        Self { snapshotter, daemon, supervisor }
    }
}

#[async_trait]
impl ControlService for Control {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let snapshotter = self.snapshotter.clone();
        let looked = tokio::task::spawn_blocking(move || snapshotter.status()).await;
        let status = looked.map_err(|e| Status::internal(e.to_string()))?;
        let status = status.map_err(|e| Status::internal(e.to_string()))?;
        let count = |(reason, count): (Reason, u64)| ReasonCount { reason: reason.to_string(), count };
        let supervisor_pid = self.supervisor.pid.load(Ordering::Relaxed);
        let daemon = Daemon { supervisor_pid, ..self.daemon.clone() };
        Ok(Response::new(StatusResponse {
            daemon: Some(daemon),
            layers: status.shown.into_iter().map(layer).collect(),
            not_lazy: status.not_lazy.into_iter().map(count).collect(),
            recent: status.recent.into_iter().map(outcome).collect(),
        }))
    }

    async fn upgrade(&self, _: Request<ProtoUpgradeRequest>) -> Result<Response<UpgradeResponse>, Status> {
        let (sender, answer) = oneshot::channel();
        let gone = || Status::failed_precondition("the supervisor is gone; start the daemon anew");
        self.supervisor.upgrades.send(sender).map_err(|_| gone())?;
        let answer = answer.await.map_err(|_| gone())?;
        answer.map_err(Status::failed_precondition)?;
        Ok(Response::new(UpgradeResponse {}))
    }
}

fn layer(shown: LayerRow) -> Layer {
    let mut layer = Layer {
        slot: shown.slot,
        mountpoint: shown.mountpoint,
        digest: shown.digest.to_string(),
        ztoc: shown.ztoc.map(|ztoc| ztoc.to_string()).unwrap_or_default(),
        size: shown.size,
        snapshots: shown.snapshots.into_iter().collect(),
        users: shown.users.into_iter().collect(),
        images: shown.images.into_iter().collect(),
        reason: shown.reason.map(|reason| reason.to_string()).unwrap_or_default(),
        ..Layer::default()
    };
    layer.set_compared(match shown.compared {
        Compared::NotYet => ProtoCompared::NotYet,
        Compared::Right => ProtoCompared::Right,
        Compared::Wrong => ProtoCompared::Wrong,
        Compared::Unknown => ProtoCompared::Unknown,
    });
    let Some(status) = shown.layer else { return layer };
    let spans = status.spans;
    layer.fetched_size = status.fetched;
    layer.uncompressed_size = status.uncompressed;
    layer.stored_size = status.stored;
    layer.complete = spans.empty + spans.filling == 0;
    layer.spans = Some(Spans {
        total: spans.empty + spans.filling + spans.ready + spans.unproven,
        ready: spans.ready,
        filling: spans.filling,
        empty: spans.empty,
        unproven: spans.unproven,
    });
    let source = |source: layerfs::SourceStatus| Source {
        name: source.origin,
        error: source.failing.unwrap_or_default(),
    };
    layer.sources = status.sources.into_iter().map(source).collect();
    layer.readers_waiting = status.readers_waiting;
    layer
}

fn outcome(outcome: NotLazyLayer) -> ProtoOutcome {
    ProtoOutcome {
        time: Some(timestamp(outcome.time)),
        key: outcome.key,
        image: outcome.image.unwrap_or_default(),
        layer: outcome.layer.map(|layer| layer.to_string()).unwrap_or_default(),
        reason: outcome.reason.to_string(),
        why: outcome.detail,
        whole: outcome.whole,
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// `grpc.health.v1`.
pub(crate) struct HealthDoor(pub(crate) Health);

#[async_trait]
impl HealthService for HealthDoor {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !SERVICES.contains(&service.as_str()) {
            return Err(Status::not_found(format!("there is no service {service:?}")));
        }
        Ok(Response::new(serving(self.0.phase())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Sends every change from now on. The stream ends with the daemon, whose drain waits for it.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !SERVICES.contains(&request.into_inner().service.as_str()) {
            let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
            return Ok(Response::new(Box::pin(stream::iter([Ok(unknown)]))));
        }
        let phases = stream::unfold(Some((self.0.watch(), None)), |state| async move {
            let (mut watch, last) = state?;
            let changed = watch.wait_for(|phase| Some(*phase) != last).await;
            let phase = *changed.ok()?;
            // `Stopping` is the last change.
            let next = (phase != Phase::Stopping).then_some((watch, Some(phase)));
            Some((Ok(serving(phase)), next))
        });
        Ok(Response::new(phases.boxed()))
    }
}

fn serving(phase: Phase) -> HealthCheckResponse {
    let status = match phase {
        Phase::Ready => ServingStatus::Serving,
        Phase::Starting | Phase::Stopping => ServingStatus::NotServing,
    };
    HealthCheckResponse { status: status.into() }
}
