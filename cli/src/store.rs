//! containerd's services as the commands need them: content, images, snapshots, leases, diffs.
//!
//! Every call carries the namespace, and the lease once there is one: what is written under a lease is safe
//! from containerd's garbage collector until the lease is given back, even if we die (it expires by itself).

use std::{collections::HashMap, path::PathBuf};

use bytes::Bytes;
use futures::StreamExt;
use oci::{ByteStream, Descriptor, Digest};
use prost_types::FieldMask;
use proto::containerd::{
    services::{
        content::v1::{
            Info, InfoRequest, UpdateRequest, WriteAction, WriteContentRequest, content_client::ContentClient,
        },
        diff::v1::{ApplyRequest, diff_client::DiffClient},
        images::v1::{CreateImageRequest, Image, UpdateImageRequest, images_client::ImagesClient},
        leases::v1::{
            AddResourceRequest, CreateRequest, DeleteRequest, Resource, leases_client::LeasesClient,
        },
        snapshots::v1::{
            CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
            snapshots_client::SnapshotsClient,
        },
    },
    types,
};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

use crate::error::{Error, ErrorKind};

/// Labels as containerd keeps them.
pub(crate) type Labels = HashMap<String, String>;

/// What a Prepare answered.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// The snapshotter has the layer already: there is nothing to download.
    Exists,
    /// Mounts to unpack the layer into.
    Mounts(Vec<types::Mount>),
}

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
        Ok(Self { channel, namespace: namespace.to_owned(), lease: None })
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

    /// The same connection under a new lease, which expires after a day if nobody gives it back.
    pub(crate) async fn lease(&self, id: &str) -> Result<Self, Error> {
        let expire = httpdate_in_a_day();
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

    /// Whether the content store has a blob.
    pub(crate) async fn has(&self, digest: &Digest) -> Result<bool, Error> {
        let request = self.request(InfoRequest { digest: digest.to_string() })?;
        match ContentClient::new(self.channel.clone()).info(request).await {
            Ok(_) => Ok(true),
            Err(s) if s.code() == Code::NotFound => Ok(false),
            Err(s) => Err(status(&format!("look up content {digest}"), s)),
        }
    }

    /// Writes a blob; containerd compares digest and size before it commits. One that is there already gets the
    /// labels and comes under the lease all the same: what hangs on them must not be collected.
    pub(crate) async fn write(
        &self,
        descriptor: &Descriptor,
        bytes: ByteStream,
        labels: &Labels,
    ) -> Result<(), Error> {
        let doing = format!("write content {}", descriptor.digest);
        if self.has(&descriptor.digest).await? {
            return self.adopt(&descriptor.digest, labels).await;
        }
        let failed = std::sync::Arc::new(std::sync::Mutex::new(None));
        let request = self.request(write_requests(descriptor, bytes, labels.clone(), failed.clone()))?;
        let mut answers = match ContentClient::new(self.channel.clone()).write(request).await {
            Ok(answers) => answers.into_inner(),
            Err(s) if s.code() == Code::AlreadyExists => return self.adopt(&descriptor.digest, labels).await,
            Err(s) => return Err(status(&doing, s)),
        };
        let mut committed = false;
        loop {
            match answers.message().await {
                Ok(Some(answer)) => committed |= answer.action() == WriteAction::Commit,
                Ok(None) => break,
                Err(s) if s.code() == Code::AlreadyExists => {
                    return self.adopt(&descriptor.digest, labels).await;
                }
                Err(s) => return Err(status(&doing, s)),
            }
        }
        if let Some(error) = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            return Err(Error::from_oci(doing, error));
        }
        if committed {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Io, format!("{doing}: it was not committed")))
        }
    }

    /// Puts a blob that exists under the lease, and adds labels to it; others that it has stay.
    async fn adopt(&self, digest: &Digest, labels: &Labels) -> Result<(), Error> {
        if let Some(id) = self.lease.clone() {
            let resource = Some(Resource { id: digest.to_string(), r#type: "content".to_owned() });
            let request = self.request(AddResourceRequest { id, resource })?;
            let added = LeasesClient::new(self.channel.clone()).add_resource(request).await;
            added.map_err(|s| status(&format!("hold content {digest}"), s))?;
        }
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let info = Some(Info { digest: digest.to_string(), labels: labels.clone(), ..Info::default() });
        let request = self.request(UpdateRequest { info, update_mask: Some(FieldMask { paths }) })?;
        let updated = ContentClient::new(self.channel.clone()).update(request).await;
        updated.map(drop).map_err(|s| status(&format!("label content {digest}"), s))
    }

    /// Whether the snapshotter has a snapshot of that name.
    pub(crate) async fn has_snapshot(&self, snapshotter: &str, name: &str) -> Result<bool, Error> {
        let message = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: name.to_owned() };
        match SnapshotsClient::new(self.channel.clone()).stat(self.request(message)?).await {
            Ok(_) => Ok(true),
            Err(s) if s.code() == Code::NotFound => Ok(false),
            Err(s) => Err(status(&format!("look up snapshot {name}"), s)),
        }
    }

    /// Prepares an active snapshot for a layer.
    pub(crate) async fn prepare(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Prepared, Error> {
        let message = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels,
        };
        match SnapshotsClient::new(self.channel.clone()).prepare(self.request(message)?).await {
            Ok(answer) => Ok(Prepared::Mounts(answer.into_inner().mounts)),
            Err(s) if s.code() == Code::AlreadyExists => Ok(Prepared::Exists),
            Err(s) => Err(status(&format!("prepare snapshot with snapshotter {snapshotter:?}"), s)),
        }
    }

    /// Lets containerd unpack a layer that lies in its content store; the answer is the layer's diff ID.
    pub(crate) async fn apply(&self, layer: &Descriptor, mounts: Vec<types::Mount>) -> Result<String, Error> {
        let diff = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.to_string(),
            size: i64::try_from(layer.size).unwrap_or(i64::MAX),
            annotations: HashMap::new(),
        };
        let message = ApplyRequest { diff: Some(diff), mounts, ..ApplyRequest::default() };
        let applied = DiffClient::new(self.channel.clone()).apply(self.request(message)?).await;
        let applied = applied.map_err(|s| status(&format!("unpack layer {}", layer.digest), s))?;
        Ok(applied.into_inner().applied.unwrap_or_default().digest)
    }

    /// Commits an active snapshot; one that is there already is as good.
    pub(crate) async fn commit(
        &self,
        snapshotter: &str,
        key: &str,
        name: &str,
        labels: Labels,
    ) -> Result<(), Error> {
        let message = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
            parent: String::new(),
        };
        match SnapshotsClient::new(self.channel.clone()).commit(self.request(message)?).await {
            Err(s) if s.code() != Code::AlreadyExists => Err(status(&format!("commit snapshot {name}"), s)),
            _ => Ok(()),
        }
    }

    /// Removes an active snapshot that came to nothing; best effort, the lease's end does it otherwise.
    pub(crate) async fn discard(&self, snapshotter: &str, key: &str) {
        let message = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        if let Ok(request) = self.request(message)
            && let Err(error) = SnapshotsClient::new(self.channel.clone()).remove(request).await
        {
            tracing::debug!(key, %error, "remove an unfinished snapshot");
        }
    }

    /// Points an image name at a descriptor.
    pub(crate) async fn tag(&self, name: &str, target: &Descriptor) -> Result<(), Error> {
        let image = Image {
            name: name.to_owned(),
            target: Some(types::Descriptor {
                media_type: target.media_type.clone(),
                digest: target.digest.to_string(),
                size: i64::try_from(target.size).unwrap_or(i64::MAX),
                annotations: HashMap::new(),
            }),
            ..Image::default()
        };
        let doing = format!("create image {name}");
        let mut client = ImagesClient::new(self.channel.clone());
        let create = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        match client.create(self.request(create)?).await {
            Ok(_) => return Ok(()),
            Err(s) if s.code() == Code::AlreadyExists => {}
            Err(s) => return Err(status(&doing, s)),
        }
        let update = UpdateImageRequest { image: Some(image), update_mask: None, source_date_epoch: None };
        client.update(self.request(update)?).await.map(drop).map_err(|s| status(&doing, s))
    }
}

/// What containerd's Write expects: the bytes in order, and at the end a commit with digest and size.
fn write_requests(
    descriptor: &Descriptor,
    bytes: ByteStream,
    labels: Labels,
    failed: std::sync::Arc<std::sync::Mutex<Option<oci::Error>>>,
) -> impl futures::Stream<Item = WriteContentRequest> + Send + 'static {
    let template = WriteContentRequest {
        r#ref: format!("soci-{}-{}", std::process::id(), descriptor.digest),
        total: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        expected: descriptor.digest.to_string(),
        ..WriteContentRequest::default()
    };
    let mut offset = 0;
    let data = template.clone();
    bytes.map(Some).chain(futures::stream::iter([None])).scan(false, move |ended, item| {
        let message = match item {
            _ if *ended => None,
            Some(Ok(chunk)) => {
                let at = offset;
                offset += i64::try_from(chunk.len()).unwrap_or(0);
                Some(WriteContentRequest {
                    action: WriteAction::Write.into(),
                    offset: at,
                    data: chunk,
                    ..data.clone()
                })
            }
            Some(Err(error)) => {
                // Without a commit nothing of it stays.
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                *ended = true;
                None
            }
            None => Some(WriteContentRequest {
                action: WriteAction::Commit.into(),
                offset,
                data: Bytes::new(),
                labels: labels.clone(),
                ..template.clone()
            }),
        };
        futures::future::ready(message)
    })
}

/// RFC 3339, a day from now.
fn httpdate_in_a_day() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    rfc3339(now.as_secs() + 24 * 60 * 60)
}

/// Seconds since 1970 as RFC 3339 in UTC, by the civil calendar.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years (146 097 days).
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest % 3_600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[allow(clippy::needless_pass_by_value)] // the form in which `map_err` hands it over
fn status(doing: &str, status: Status) -> Error {
    let kind = match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::Denied,
        Code::Unavailable | Code::DeadlineExceeded => ErrorKind::Unreachable,
        Code::InvalidArgument | Code::FailedPrecondition => ErrorKind::Invalid,
        Code::ResourceExhausted => ErrorKind::Full,
        Code::Unimplemented => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{doing}: {}", status.message()))
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn seconds_become_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }
}
