//! Where an image or a blob is, as skopeo names it: `docker://HOST/REPO:TAG` is in a registry, a path is a file.
//! What has no meaning here yet is refused with the transports that have.

use std::path::PathBuf;
use std::sync::Arc;

use oci::registry::PlainHttp;
use oci::{Client, ClientOptions, Digest, DockerConfig, Reference, Registry};

use crate::error::{Error, ErrorKind};

/// The transports that can be named today.
const SUPPORTED: &str = "supported are docker://HOST/REPOSITORY:TAG and oci:FOLDER:NAME";

/// The place of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImagePlace {
    Registry(Reference),
    /// an OCI layout; the empty name is its only image
    Layout(PathBuf, String),
}

impl ImagePlace {
    pub(crate) fn parse(text: &str) -> Result<ImagePlace, Error> {
        if let Some(name) = text.strip_prefix("docker://") {
            return Ok(ImagePlace::Registry(name.parse()?));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (folder, name) = rest.split_once(':').unwrap_or((rest, ""));
            if folder.is_empty() {
                return Err(Error::new(ErrorKind::Invalid, format!("{text}: it names no folder")));
            }
            return Ok(ImagePlace::Layout(folder.into(), name.to_owned()));
        }
        let refuse = |why: &str| Error::new(ErrorKind::Unsupported, format!("{text}: {why}; {SUPPORTED}"));
        match text.split_once(':') {
            Some((transport @ ("oci-archive" | "docker-archive"), _)) => {
                Err(refuse(&format!("the transport {transport}: is not supported yet")))
            }
            _ if text.contains("://") => Err(refuse("unknown transport")),
            _ => Err(refuse("a plain name means containerd's image store, which is not supported yet")),
        }
    }
}

/// The place of a single blob or manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BlobPlace {
    Registry(Reference, Digest),
    File(PathBuf),
}

impl BlobPlace {
    pub(crate) fn parse(text: &str) -> Result<BlobPlace, Error> {
        if let Some(name) = text.strip_prefix("docker://") {
            let reference: Reference = name.parse()?;
            let Some(digest) = reference.digest().copied() else {
                let why = format!("{text}: it needs a digest: docker://HOST/REPOSITORY@sha256:…");
                return Err(Error::new(ErrorKind::Invalid, why));
            };
            return Ok(BlobPlace::Registry(reference, digest));
        }
        if text.parse::<Digest>().is_ok() {
            let why = "a bare digest means a local content store, which is not supported yet";
            let supported = "supported are docker://HOST/REPOSITORY@sha256:… and the path of a file";
            return Err(Error::new(ErrorKind::Unsupported, format!("{text}: {why}; {supported}")));
        }
        Ok(BlobPlace::File(PathBuf::from(text)))
    }
}

/// What registries are opened with: one pool of connections, Docker's credentials.
#[derive(Debug, Clone)]
pub(crate) struct Registries {
    client: Client,
}

impl Registries {
    pub(crate) fn new(plain_http: PlainHttp) -> Result<Registries, Error> {
        let client = Client::new(ClientOptions { plain_http, ..ClientOptions::default() })?;
        Ok(Registries { client })
    }

    pub(crate) fn open(&self, reference: &Reference) -> Result<Registry, Error> {
        Ok(Registry::new(&self.client, reference, Arc::new(DockerConfig::from_env()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images() {
        let place = ImagePlace::parse("docker://localhost:5000/a:b").unwrap();
        assert_eq!(place, ImagePlace::Registry("localhost:5000/a:b".parse().unwrap()));
        for (text, folder, name) in [("oci:a/b:c", "a/b", "c"), ("oci:a", "a", ""), ("oci:a:b:c", "a", "b:c")]
        {
            let expected = ImagePlace::Layout(folder.into(), name.to_owned());
            assert_eq!(ImagePlace::parse(text).unwrap(), expected);
        }
        for (text, why) in [
            ("oci:", "names no folder"),
            ("oci-archive:file", "oci-archive: is not supported yet; supported are docker://"),
            ("containers-storage://x", "unknown transport"),
            ("docker.io/library/alpine:3", "a plain name means containerd's image store"),
            ("alpine", "a plain name"),
            ("docker://Bad", "parse image name"),
        ] {
            let said = ImagePlace::parse(text).unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn blobs() {
        let digest = Digest::sha256(b"");
        let found = BlobPlace::parse(&format!("docker://h.x/a@{digest}")).unwrap();
        assert!(matches!(found, BlobPlace::Registry(_, found) if found == digest));
        assert_eq!(BlobPlace::parse("./x").unwrap(), BlobPlace::File("./x".into()));
        assert_eq!(BlobPlace::parse("docker://h.x/a:b").unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(BlobPlace::parse(&digest.to_string()).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
