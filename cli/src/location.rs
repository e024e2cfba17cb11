//! Where an image or a blob is, as skopeo names it: `docker://HOST/REPO:TAG` is in a registry, `oci:FOLDER` and
//! `oci-archive:FILE` are layouts, a plain name is in containerd's image store. What has no meaning is refused with
//! the names that have.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci::registry::PlainHttp;
use oci::{
    Client, ClientOptions, Credential, Credentials, Digest, DockerConfig, Layout, Reference, Registry, Store,
};

use crate::containerd::{Containerd, ImageStore};
use crate::error::{Error, ErrorKind};

/// The transports that can be named.
const SUPPORTED: &str = "supported are docker://HOST/REPOSITORY:TAG, oci:FOLDER[:NAME], oci-archive:FILE[:NAME] and a name in containerd";

/// The place of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImagePlace {
    Registry(Reference),
    /// an OCI layout; the empty name is its only image
    Layout(PathBuf, String),
    /// the same to be written, with one image in it and no other
    Alone(PathBuf),
    /// the same in a tar
    Archive(PathBuf, String),
    /// containerd's images, by their full names
    Containerd(String),
}

impl ImagePlace {
    pub(crate) fn parse(text: &str) -> Result<ImagePlace, Error> {
        if let Some(name) = text.strip_prefix("docker://") {
            return Ok(ImagePlace::Registry(name.parse()?));
        }
        let path = |rest: &str| {
            let (path, name) = rest.split_once(':').unwrap_or((rest, ""));
            if path.is_empty() {
                return Err(Error::new(ErrorKind::Invalid, format!("{text}: it names no path")));
            }
            Ok((PathBuf::from(path), name.to_owned()))
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            return path(rest).map(|(folder, name)| ImagePlace::Layout(folder, name));
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return path(rest).map(|(file, name)| ImagePlace::Archive(file, name));
        }
        let refuse = |why: &str| Error::new(ErrorKind::Unsupported, format!("{text}: {why}; {SUPPORTED}"));
        match text.split_once(':') {
            Some((transport @ ("docker-archive" | "docker-daemon" | "containers-storage" | "dir"), _)) => {
                Err(refuse(&format!("the transport {transport}: is not supported")))
            }
            _ if text.contains("://") => Err(refuse("unknown transport")),
            _ if text.is_empty() || text.contains(char::is_whitespace) => Err(refuse("no name of an image")),
            _ => Ok(ImagePlace::Containerd(text.to_owned())),
        }
    }

    /// A path, as `--standalone` takes it: a layout's folder, or an archive.
    pub(crate) fn of_path(path: &str) -> Result<ImagePlace, Error> {
        let path = PathBuf::from(path);
        let data = std::fs::metadata(&path);
        let data =
            data.map_err(|cause| Error::io(format!("failed to access input {}", path.display()), cause))?;
        Ok(if data.is_dir() {
            ImagePlace::Layout(path, String::new())
        } else {
            ImagePlace::Archive(path, String::new())
        })
    }

    pub(crate) fn is_containerd(&self) -> bool {
        matches!(self, ImagePlace::Containerd(_))
    }
}

/// The place of a single blob or manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BlobPlace {
    Registry(Reference, Digest),
    /// a blob of the local store
    Local(Digest),
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
        match text.parse() {
            Ok(digest) => Ok(BlobPlace::Local(digest)),
            // What looks like a digest and is none was not meant to be a file.
            Err(cause) if text.starts_with("sha256:") && !Path::new(text).exists() => Err(Error::from(cause)),
            Err(_) => Ok(BlobPlace::File(PathBuf::from(text))),
        }
    }
}

/// What registries are opened with: one pool of connections, and the user's credentials.
#[derive(Clone)]
pub(crate) struct Registries {
    client: Client,
    credentials: Arc<dyn Credentials>,
}

impl Registries {
    /// With Docker's credentials.
    pub(crate) fn new(plain_http: PlainHttp) -> Result<Registries, Error> {
        let client = Client::new(ClientOptions { plain_http, ..ClientOptions::default() })?;
        Ok(Registries { client, credentials: Arc::new(DockerConfig::from_env()) })
    }

    /// The same with these credentials, `USER:PASSWORD`, if they are given.
    pub(crate) fn with_user(self, user: Option<&str>) -> Registries {
        let Some(user) = user else { return self };
        let (username, secret) = user.split_once(':').unwrap_or((user, ""));
        let credential = Credential { username: username.to_owned(), secret: secret.to_owned() };
        Registries { credentials: Arc::new(credential), ..self }
    }

    pub(crate) fn open(&self, reference: &Reference) -> Result<Registry, Error> {
        Ok(Registry::new(&self.client, reference, self.credentials.clone())?)
    }
}

/// A store that was opened, and what the image is called in it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: Box<dyn Store>,
    pub(crate) name: String,
}

/// Opens the place an image is read from. `containerd`: connected to where the place is in it.
pub(crate) async fn open_source(
    place: &ImagePlace,
    registries: &Registries,
    containerd: Option<&Containerd>,
) -> Result<Opened, Error> {
    let (store, name): (Box<dyn Store>, String) = match place {
        ImagePlace::Registry(reference) => (Box::new(registries.open(reference)?), reference.target()),
        ImagePlace::Layout(folder, name) => (Box::new(Layout::open(folder).await?), name.clone()),
        ImagePlace::Alone(folder) => (Box::new(Layout::open(folder).await?), String::new()),
        ImagePlace::Archive(file, name) => (Box::new(Layout::open_archive(file).await?), name.clone()),
        ImagePlace::Containerd(name) => (Box::new(image_store(containerd)?), name.clone()),
    };
    Ok(Opened { store, name })
}

/// Opens the place an image is written to; a layout is made where there is none.
pub(crate) async fn open_destination(
    place: &ImagePlace,
    registries: &Registries,
    containerd: Option<&Containerd>,
) -> Result<Box<dyn Store>, Error> {
    Ok(match place {
        ImagePlace::Registry(reference) => Box::new(registries.open(reference)?),
        ImagePlace::Layout(folder, _) => Box::new(Layout::create(folder).await?),
        ImagePlace::Alone(folder) => Box::new(Layout::create(folder).await?.alone()),
        ImagePlace::Archive(file, _) => Box::new(Layout::create_archive(file).await?),
        ImagePlace::Containerd(_) => Box::new(image_store(containerd)?),
    })
}

fn image_store(containerd: Option<&Containerd>) -> Result<ImageStore, Error> {
    let missing = || Error::new(ErrorKind::Unreachable, "connect to containerd");
    Ok(ImageStore::new(containerd.ok_or_else(missing)?.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images() {
        let place = ImagePlace::parse("docker://localhost:5000/a:b").unwrap();
        assert_eq!(place, ImagePlace::Registry("localhost:5000/a:b".parse().unwrap()));
        for (rest, path, name) in [("a/b:c", "a/b", "c"), ("a", "a", ""), ("a:b:c", "a", "b:c")] {
            let layout = ImagePlace::parse(&format!("oci:{rest}")).unwrap();
            assert_eq!(layout, ImagePlace::Layout(path.into(), name.to_owned()));
            let archive = ImagePlace::parse(&format!("oci-archive:{rest}")).unwrap();
            assert_eq!(archive, ImagePlace::Archive(path.into(), name.to_owned()));
        }
        for name in ["docker.io/library/alpine:3", "alpine", "localhost:5000/a:b"] {
            assert_eq!(ImagePlace::parse(name).unwrap(), ImagePlace::Containerd(name.to_owned()));
        }
        for (text, why) in [
            ("oci:", "names no path"),
            ("oci-archive:", "names no path"),
            ("docker-archive:file", "docker-archive: is not supported; supported are docker://"),
            ("containers-storage://x", "containers-storage: is not supported"),
            ("http://x", "unknown transport"),
            ("", "no name of an image"),
            ("a b", "no name of an image"),
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
        assert_eq!(BlobPlace::parse(&digest.to_string()).unwrap(), BlobPlace::Local(digest));
        assert_eq!(BlobPlace::parse("docker://h.x/a:b").unwrap_err().kind(), ErrorKind::Invalid);
        assert!(BlobPlace::parse("sha256:12").unwrap_err().to_string().contains("parse digest"));
    }
}
