//! OCI nouns, and the places where blobs live.
//!
//! A [`Reference`] names an image. A [`Registry`] is one repository on one host, already authorised: it answers
//! with manifests as bytes and with blobs as [`Blob`]s, of which any range can be read. A [`Store`] is what a
//! conversion needs of such a place and nothing more, so that a registry, a folder and containerd look alike
//! from above. [`Digest`]s are checked wherever bytes are taken whole; a range cannot be checked here, its
//! reader does that.
//!
//! Nothing in this crate knows what a SOCI index is. Everything that comes from outside (a registry's answer, a
//! manifest, a credential helper's output) is bounded in size and time and parsed into a type, or refused.
//!
//! The modules below stand in the order in which a request meets them; imports point down the list.

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub mod registry;

pub mod layout;

pub mod store;

pub mod blob;

pub mod image;

pub mod reference;

pub mod digest;

pub mod error;

pub use blob::{Blob, BoxFuture, ByteStream};
pub use digest::Digest;
pub use error::{Error, ErrorKind};
pub use image::{Config, Descriptor, Index, Manifest, Platform, canonical_json};
pub use layout::Layout;
pub use reference::Reference;
pub use registry::{
    Anonymous, Client, ClientOptions, Credential, Credentials, DockerConfig, Patience, Registry,
};
pub use store::Store;
