//! containerd's gRPC API as Rust types, gRPC's own of health, and ours of control, generated from `schema/` when the
//! crate is built.
//!
//! The schema files were written for this project: published names and numbers, nothing else. Both sides
//! of every service are generated: the daemon serves `snapshots`, `health` and `control`, daemon and command call the
//! others, and tests do both. The module tree is the one of the protobuf packages: `containerd::services::snapshots::v1`
//! and so on.

#![allow(missing_debug_implementations, unused_qualifications, clippy::all, clippy::pedantic)]

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error};

/// A channel to the unix socket at `path`, connected; it connects again by itself when it has to.
///
/// # Errors
/// When no process listens there.
pub async fn connect(path: PathBuf) -> Result<Channel, Error> {
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is only there to please the type; the connector knows better.
    Endpoint::from_static("http://containerd").connect_with_connector(connect).await
}

mod generated {
    tonic::include_proto!("containerd");
}

pub use generated::{containerd, google, grpc, soci};
