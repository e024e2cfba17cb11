//! Fakes at the edge, for the tests of this crate and of those above it: blobs that break and lie
//! (`FaultyBlob`), a store in memory (`MemoryStore`), and a small registry in this process
//! (`TestRegistry`) that logs in, redirects and fails on cue. Nothing here is in a product's build: the feature
//! `testing` asks for it.

mod registry;
mod wire;
mod store;
mod blobs;

pub use blobs::{BlobFault, FaultyBlob};
pub use registry::{Fault, Login, Recorded, Rules, TestRegistry};
pub use store::MemoryStore;
