//! OCI nouns, and the places where blobs live.
//!
//! A [`Reference`] names an image. A [`Registry`] is one repository on one host, already authorized: it answers
//! with manifests as bytes and with blobs as [`Blob`]s, of which any range can be read. A [`Store`] is what a
//! conversion needs of such a place and nothing more, so that a registry, a folder and containerd look alike
//! from above. [`Digest`]s are checked wherever bytes are taken whole; a range cannot be checked here, its
//! reader does that.
//!
//! Nothing in this crate knows what a SOCI index is. Everything that comes from outside (a registry's answer, a
//! manifest, a credential helper's output) is bounded in size and time and parsed into a type, or refused.
//!
//! The modules below stand in the order in which a request meets them; imports point down the list.

/// In-process registries and blobs for tests.
#[cfg(any(test, feature = "testing"))]
pub mod testing;
/// One repository of a registry.
pub mod registry;
/// An OCI image layout, as a folder or a tar.
pub mod layout;
/// What a conversion needs of a place for images.
pub mod store;
/// Blobs of which any range can be read.
pub mod blob;
/// Manifests, indexes, configurations, platforms.
pub mod image;
/// Names of images.
pub mod reference;
/// Digests, and readers that check them.
pub mod digest;
/// The error of this crate, and its kinds.
pub mod error;

pub use blob::{Blob, BoxFuture, ByteStream};
pub use digest::Digest;
pub use error::{Error, ErrorKind};
pub use image::{Config, Descriptor, Index, Manifest, Platform, canonical_json};
pub use layout::Layout;
pub use reference::Reference;
pub use registry::{
    Anonymous, Client, ClientOptions, Credential, Credentials, DockerConfig, Registry, Timeouts,
};
pub use store::Store;
