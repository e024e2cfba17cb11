//! containerd's gRPC API as Rust types, generated from `schema/` when the crate is built.
//!
//! The schema files were written for this project: published names and numbers, nothing else. Both sides
//! of every service are generated: the daemon serves `snapshots`, daemon and command call the others, and
//! tests do both. The module tree is the one of the protobuf packages: `containerd::services::snapshots::v1`
//! and so on.

#![allow(missing_debug_implementations, unused_qualifications, clippy::all, clippy::pedantic)]

mod generated {
    tonic::include_proto!("containerd");
}

pub use generated::{containerd, google};
