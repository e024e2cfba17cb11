//! An image's SOCI index: find it, build it, convert an image with it.
//!
//! [`convert()`] reads an image from one store and writes it, with an index for each platform, to another;
//! [`create()`] builds indexes beside an image that stays as it is; [`locate()`] finds the index of an image that
//! has one, and [`verify()`] says whether a ztoc is true. What an index *is* stands in [`manifest`]: a small
//! manifest that names, for each layer, its ztoc. The formats are those of the Go tools, digest for digest; the
//! one place where we differ on purpose is told in [`rewrite`].
//!
//! Nothing here knows where a store lives or who asks; this crate prints nothing and keeps nothing.
//!
//! The modules stand in the order in which a conversion meets them; imports point down the list.

pub mod convert;

pub mod create;

pub mod verify;

pub mod source;

pub mod build;

mod pass;

/// How layers are compressed, by media type and by first bytes.
mod layer_format;

pub mod prefetch;

pub mod locate;

pub mod rewrite;

pub mod manifest;

pub mod error;

pub use build::{BuildOptions, Event, LayerReport, Observer, Outcome, Skip, XattrOptimization};
pub use convert::{ConvertOptions, Indexed, Report, Route, convert};
pub use create::{CreateRoute, Created, create};
pub use error::{Error, ErrorKind};
pub use layer_format::compression_of;
pub use locate::{Source, Sources, locate};
pub use manifest::{SociIndex, Version};
pub use prefetch::Prefetch;
pub use source::{Image, Missing, Platforms, images};
pub use verify::{Verdict, verify};
