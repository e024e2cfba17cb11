//! An image's SOCI index: find it, build it, convert an image with it.
//!
//! - [`convert()`] reads an image from one store and writes it, with an index for each platform, to another.
//! - [`create()`] builds indexes beside an image that stays as it is.
//! - [`locate()`] finds the index of an image that has one.
//! - [`verify()`] says whether a ztoc is true.
//!
//! An index is a small manifest that names, for each layer, its ztoc ([`manifest`]). The formats are those of the Go
//! tools, digest for digest. The one place where they differ on purpose is told in [`rewrite`].
//!
//! Nothing here knows where a store lives. This crate prints nothing and keeps nothing.
//!
//! The modules stand in the order in which a conversion meets them; imports point down the list.

/// An image becomes the same image with SOCI indexes.
pub mod convert;
/// Indexes beside an image that stays as it is.
pub mod create;
/// Whether a ztoc is true.
pub mod verify;
/// An image as it is in its store.
pub mod source;
/// The layers of an image become ztocs.
pub mod build;
/// A layer is read once: copied and built from on the way.
mod tee;
/// How layers are compressed, by media type and by first bytes.
mod layer_format;
/// Artifacts that name the spans to fetch first.
pub mod prefetch;
/// Finds the index of an image.
pub mod locate;
/// The old image index becomes the new one. Pure.
pub mod rewrite;
/// The SOCI index manifest.
pub mod manifest;
/// The error of this crate, and its kinds.
pub mod error;

pub use build::{BuildOptions, Event, LayerReport, Observer, Outcome, Skip, XattrOptimization};
pub use convert::{ConvertOptions, Indexed, Report, Route, convert};
pub use create::{CreateRoute, Created, create};
pub use error::{Error, ErrorKind};
pub use layer_format::compression_of;
pub use locate::{Lookup, Sources, locate};
pub use manifest::{SociIndex, Version};
pub use prefetch::Prefetch;
pub use source::{Image, Missing, Platforms, images};
pub use verify::{Verdict, verify};
