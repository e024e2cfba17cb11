//! The ztoc of a layer: what lies where in it, and how to inflate any part of it alone.
//!
//! A layer is a tar, usually gzipped. Its ztoc has two halves. The *toc* has one entry for each member of the tar. The
//! *zinfo* cuts the compressed bytes into *spans* that can be fetched, checked and inflated on their own. This crate makes ztocs ([`Builder`]), reads them in place ([`Ztoc`]) and inflates
//! spans. It does no I/O of its own: bytes in, values out; no async, no socket, no path, no clock. Everything
//! it is given is hostile until checked: no input makes it panic, hang, or allocate more than in proportion
//! to the input.
//!
//! ```
//! use ztoc::{Compression, Options, UncompressedOffset, Ztoc};
//!
//! // The end marker of a tar and nothing else, as an uncompressed layer.
//! let layer = vec![0; 1024];
//! let built = ztoc::build(&layer[..], Compression::Uncompressed, &Options::default())?;
//! let ztoc = Ztoc::from_vec(built.ztoc)?;
//! assert_eq!(ztoc.len(), 0);
//! let bytes = ztoc.extract(UncompressedOffset(512)..UncompressedOffset(1024), &mut |_span, range| {
//!     Ok(layer[range.start.0 as usize..range.end.0 as usize].to_vec())
//! })?;
//! assert_eq!(bytes, vec![0; 512]);
//! # Ok::<(), ztoc::Error>(())
//! ```

// The order in which a layer meets them; imports point down this list.
/// A layer's bytes become a ztoc, in one pass.
mod build;
/// The wire format.
mod codec;
/// The value: table of files, span table, sizes.
mod ztoc;
/// Tar headers become the table of files.
mod toc;
/// Which spans a range of bytes lies in.
mod zinfo;
/// Checkpoints of a gzip stream, and inflating from them.
mod gzip;
/// Spans of an uncompressed layer: arithmetic.
mod uncompressed;
/// Reading FlatBuffers that may be hostile.
mod flatbuffer;
/// A vector that gives its memory back while it is emptied.
mod shrinking_vec;
/// Offsets and spans as types.
mod units;
/// The error of this crate, and its kinds.
mod error;

pub use build::{Builder, Built, DEFAULT_BUILD_TOOL, DEFAULT_SPAN_SIZE, Options, Whole, WholeDigests, build};
pub use error::{Error, ErrorKind};
pub use toc::{EntryKind, MTime};
pub use units::{CompressedOffset, SpanId, UncompressedOffset};
pub use zinfo::{Compression, SpanTable};
pub use ztoc::{Entry, Inflating, MAX_ZTOC_BYTES, Ztoc};
