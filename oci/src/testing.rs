//! Fakes at the edge, for the tests of this crate and of those above it. Blobs break and lie (`FaultyBlob`), a store is in
//! memory (`MemoryStore`), and a small registry in this process logs in, redirects and fails on cue (`TestRegistry`).
//! Nothing here is in a product's build: the feature `testing` asks for it.

mod registry;
mod wire;
mod store;
mod blobs;

pub use blobs::{BlobFault, FaultyBlob};
pub use registry::{Fault, Login, Recorded, Rules, TestRegistry};
pub use store::MemoryStore;
