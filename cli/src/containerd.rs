//! containerd's services as the commands need them: leases here; content, images, snapshots and diffs below; and
//! the image store they make together, for `ImageStore` to look like any other.
//!
//! Every call carries the namespace, and the lease once there is one. Under a lease, containerd's garbage collector
//! leaves what is written alone. The lease is given back at the end, and expires by itself if the command dies.

mod image_store;
mod content;
mod images;
mod snapshots;

use std::{collections::HashMap, path::PathBuf, time::Duration};

use oci::Descriptor;
use proto::containerd::{
    services::{
        leases::v1::{CreateRequest, DeleteRequest, leases_client::LeasesClient},
        version::v1::version_client::VersionClient,
    },
    types,
};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

use crate::{
    error::{Error, ErrorKind},
    time,
};

pub(crate) use content::Stored;
pub(crate) use image_store::ImageStore;
pub(crate) use snapshots::Prepared;

/// Labels as containerd keeps them.
pub(crate) type Labels = HashMap<String, String>;

/// How long containerd may take to answer for the first time; the Go tool's number.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// A lease that is not given back ends by itself: no conversion takes a day.
const LEASE_SECONDS: u64 = 24 * 60 * 60;

/// A connection to one containerd, in one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Containerd {
    channel: Channel,
    namespace: String,
    lease: Option<String>,
}

impl Containerd {
    /// `address`: path of containerd's socket, with or without `unix://`.
    pub(crate) async fn connect(address: &str, namespace: &str) -> Result<Self, Error> {
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        let doing = format!("connect to containerd at {}", path.display());
        let channel = proto::connect(path).await;
        let channel = channel.map_err(|e| {
            Error::new(ErrorKind::Unreachable, format!("{doing} (is it running? see --address)")).because(e)
        })?;
        let mut version = VersionClient::new(channel.clone());
        // The process that listens there may answer nothing.
        let answered = tokio::time::timeout(CONNECT_PATIENCE, version.version(())).await;
        let answered = answered.map_err(|_| {
            Error::new(ErrorKind::Unreachable, format!("{doing}: no answer within {CONNECT_PATIENCE:?}"))
        })?;
        answered.map_err(|s| status(&doing, s))?;
        Ok(Self { channel, namespace: namespace.to_owned(), lease: None })
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let mut request = Request::new(message);
        let headers =
            [("containerd-namespace", Some(&self.namespace)), ("containerd-lease", self.lease.as_ref())];
        for (name, value) in headers {
            let Some(value) = value else { continue };
            let value = MetadataValue::try_from(value.as_str())
                .map_err(|e| Error::new(ErrorKind::Invalid, format!("use {value:?} as {name}")).because(e))?;
            request.metadata_mut().insert(name, value);
        }
        Ok(request)
    }

    /// The same connection under a new lease, which expires if it is not given back.
    pub(crate) async fn lease(&self, id: &str) -> Result<Self, Error> {
        let expire = time::rfc3339(time::seconds(time::now()).saturating_add(LEASE_SECONDS));
        let labels = Labels::from([("containerd.io/gc.expire".to_owned(), expire)]);
        let request = self.request(CreateRequest { id: id.to_owned(), labels })?;
        LeasesClient::new(self.channel.clone())
            .create(request)
            .await
            .map_err(|s| status("create lease", s))?;
        Ok(Self { lease: Some(id.to_owned()), ..self.clone() })
    }

    /// Gives the lease back.
    pub(crate) async fn end_lease(&self) -> Result<(), Error> {
        let Some(id) = self.lease.clone() else { return Ok(()) };
        let plain = Self { lease: None, ..self.clone() };
        let request = plain.request(DeleteRequest { id, sync: false })?;
        let deleted = LeasesClient::new(self.channel.clone()).delete(request).await;
        deleted.map(drop).map_err(|s| status("delete lease", s))
    }
}

/// A descriptor as containerd's API has it.
fn wire(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: HashMap::new(),
    }
}

#[allow(clippy::needless_pass_by_value)] // the form in which `map_err` hands it over
fn status(doing: &str, status: Status) -> Error {
    let kind = match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::Denied,
        Code::Unavailable | Code::DeadlineExceeded => ErrorKind::Unreachable,
        Code::InvalidArgument | Code::FailedPrecondition => ErrorKind::Invalid,
        Code::ResourceExhausted if status.message().contains("space") => ErrorKind::Full,
        Code::Unimplemented => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{doing}: {}", status.message()))
}
