//! Manifests, image indexes, descriptors, platforms and the media types, as values; and the one way they are
//! written. Bytes come from a store and go back to one; nothing here reads or writes. A document read here keeps
//! the members the OCI specification names and no others: a caller that must keep a foreign document as it is keeps its
//! bytes. `canonical_json` gives, for the same value, the same bytes as the Go tools, since digests depend on it.

pub mod media_type;
mod json;
mod platform;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind};

pub use json::canonical_json;
pub use platform::Platform;

/// What points to content: its type, digest and size, and what is said about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// base64, as it stands
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub data: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
}

impl Descriptor {
    /// Nothing but the three members every descriptor has.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: String::new(),
            platform: None,
            artifact_type: String::new(),
        }
    }

    /// The descriptor of these very bytes.
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Descriptor {
        Descriptor::new(media_type, Digest::sha256(bytes), bytes.len() as u64)
    }

    /// Ok if `bytes` are what this describes, else `Corrupt`.
    pub fn verify(&self, bytes: &[u8], doing: &str) -> Result<(), Error> {
        if bytes.len() as u64 != self.size {
            let why = format!("it has {} bytes, expected {}", bytes.len(), self.size);
            return Err(Error::new(ErrorKind::Corrupt, doing).because(why));
        }
        self.digest.verify(bytes, doing)
    }
}

/// An image manifest, or an artifact's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    pub config: Descriptor,
    /// None where the document has none: written as `null` again, as the Go tools do
    #[serde(default)]
    pub layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest; `Corrupt` if it is not one of schema 2.
    pub fn parse(bytes: &[u8], doing: &str) -> Result<Manifest, Error> {
        let manifest: Manifest = parse_json(bytes, doing)?;
        check_schema(manifest.schema_version, doing)?;
        Ok(manifest)
    }

    pub fn layers(&self) -> &[Descriptor] {
        self.layers.as_deref().unwrap_or_default()
    }
}

/// An image index, or Docker's manifest list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// An OCI image index of these, and nothing said about it.
    pub fn of(manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: media_type::OCI_INDEX.to_owned(),
            artifact_type: String::new(),
            manifests: Some(manifests),
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads an image index; `Corrupt` if it is not one of schema 2, or is a manifest under a wrong name.
    pub fn parse(bytes: &[u8], doing: &str) -> Result<Index, Error> {
        #[derive(Deserialize)]
        struct Probe {
            config: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = parse_json(bytes, doing)?;
        if probe.config.is_some() || probe.layers.is_some() {
            let why = "it is called an image index and holds the members of a manifest";
            return Err(Error::new(ErrorKind::Corrupt, doing).because(why));
        }
        let index: Index = parse_json(bytes, doing)?;
        check_schema(index.schema_version, doing)?;
        Ok(index)
    }

    pub fn manifests(&self) -> &[Descriptor] {
        self.manifests.as_deref().unwrap_or_default()
    }
}

/// Of an image's configuration, what a conversion needs: the platform stands in the image index it writes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    pub platform: Platform,
}

impl Config {
    /// Reads an image's configuration; `Corrupt` if it is none.
    pub fn parse(bytes: &[u8], doing: &str) -> Result<Config, Error> {
        parse_json(bytes, doing)
    }
}

fn parse_json<'a, T: Deserialize<'a>>(bytes: &'a [u8], doing: &str) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|cause| Error::new(ErrorKind::Corrupt, doing).because(cause))
}

fn check_schema(version: u32, doing: &str) -> Result<(), Error> {
    if version == 2 {
        return Ok(());
    }
    let why = format!("its schema version is {version}; only 2 is supported");
    Err(Error::new(ErrorKind::Unsupported, doing).because(why))
}

/// A member that is `null` is the same as one that is absent, as for the Go tools that write such documents.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
