//! One lazily loaded layer as a file system: the read path, told in order.
//!
//! A process in a container reads; the kernel asks [`Connection`], which carries all layers of a daemon in one
//! FUSE mount. The door (`fuse`) finds the layer by the node's number (`slots`) and asks the [`Layer`], which
//! knows names and attributes from its table in memory (`tree`) and turns a read of a file into a range of
//! the layer's uncompressed bytes. Spans that hold the range and are on disk are read at once (`spans`,
//! `cache`); the others are wished for at the [`Engine`] (`fetch`), which brings compressed bytes from a
//! [`oci::Blob`], verifies and inflates them through [`ztoc`], and lets them land in the store. What nobody
//! asked for it brings in the background; a layer without a ztoc is streamed whole (`stream`).
//!
//! This crate has never heard of containerd, labels or snapshots. It is given a blob and a ztoc and shows a
//! directory. Modules are listed in the order in which a request meets them; imports point down the list.

mod connection;
mod fuse;
mod slots;
mod layer;
mod tree;
mod spans;
mod fetch;
mod stream;
mod store;
mod crash_notes;
mod raw;
mod metrics;
mod sync;
mod error;
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
