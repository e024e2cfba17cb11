//! One lazily loaded layer as a file system: the read path, told in order.
//!
//! A process in a container reads a file. The kernel sends the read to [`Connection`], which carries all layers of
//! a daemon in one FUSE mount. The door (`fuse`) finds the layer by the node's number (`slots`) and asks the
//! [`Layer`]. The layer knows names and attributes from its table in memory (`tree`), and turns the read into a
//! range of its uncompressed bytes. Spans of that range that are on disk are read at once (`spans`, `store`). The
//! others are requested from the [`Engine`] (`fetch`), which fetches compressed bytes from an [`oci::Blob`]; they
//! are verified and inflated through [`ztoc`] and stored. The engine fetches other spans in the background; a layer
//! without a ztoc is streamed whole (`stream`).
//!
//! This crate knows nothing of containerd, labels or snapshots: it gets a blob and a ztoc, and shows a directory.
//! Modules are listed in the order in which a request meets them; imports point down the list.

/// The FUSE mount that carries all layers of a daemon: made, adopted, served.
mod connection;
/// The kernel's door: requests in, replies out.
mod fuse;
/// Which layer is shown in which slot, and under which node numbers.
mod slots;
/// One layer: names, attributes, and the bytes of files.
mod layer;
/// A layer's inode table, made from its ztoc.
mod tree;
/// Which spans are on disk, which are being fetched, which readers wait.
mod spans;
/// The engine that fetches spans: requests, attempts, limits, the background.
mod fetch;
/// A layer without a ztoc, streamed whole into the store.
mod stream;
/// Layers on disk: folders, records, eviction, removal.
mod store;
/// Which layers a process worked on, for the process after a crash.
mod crash_notes;
/// Memory maps, and a descriptor put in another's place: the island of unsafe code.
mod raw;
/// What is counted, every metric's name in one table.
mod metrics;
/// Locks without poisoning, which a test scheduler can replace.
mod sync;
/// The error of this crate, and its kinds.
mod error;
/// Layers and blobs for tests.
#[cfg(test)]
mod testing;

pub use connection::{Connection, Mounted, Parameters, slot_path};
pub use crash_notes::{CrashNotes, LayerMark};
pub use error::{Error, ErrorKind};
pub use fetch::{Engine, Limits};
pub use layer::{Layer, LowerEntry};
pub use metrics::{Family, Kind, Name, Value};
pub use slots::Slots;
pub use spans::{LayerCounts, LayerStatus, SourceStatus, SpanCounts};
pub use store::{DiskLimits, LayerId, MinFree, Store, Trash, TrashPause};
pub use tree::Inherited;
