//! The content store: blobs by digest, with labels that keep what they point to from being collected.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci::{ByteStream, Digest, blob::collect};
use prost_types::FieldMask;
use proto::containerd::services::{
    content::v1::{
        DeleteContentRequest, Info, InfoRequest, ListContentRequest, ReadContentRequest, UpdateRequest,
        WriteAction, WriteContentRequest, content_client::ContentClient,
    },
    leases::v1::{AddResourceRequest, Resource, leases_client::LeasesClient},
};

use tonic::{Request, Status};

use super::{Code, Containerd, Descriptor, Error, ErrorKind, Labels, status};
use crate::time;

/// Bytes sent in one message. containerd takes no message above 16 MiB.
const MESSAGE_BYTES: usize = 1 << 20;

/// A blob as the store lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    /// bytes, where known
    pub(crate) size: Option<u64>,
}

impl Containerd {
    /// The blob's size in bytes, if the content store has it.
    pub(crate) async fn size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let request = self.request(InfoRequest { digest: digest.to_string() })?;
        match ContentClient::new(self.channel.clone()).info(request).await {
            Ok(answer) => {
                let size = answer.into_inner().info.unwrap_or_default().size;
                Ok(Some(u64::try_from(size).unwrap_or(0)))
            }
            Err(s) if s.code() == Code::NotFound => Ok(None),
            Err(s) => Err(status(&format!("look up content {digest}"), s)),
        }
    }

    /// All blobs of the namespace, in no order.
    pub(crate) async fn list(&self) -> Result<Vec<Stored>, Error> {
        let failed = |s| status("list content", s);
        let request = self.request(ListContentRequest { filters: Vec::new() })?;
        let listed = ContentClient::new(self.channel.clone()).list(request).await;
        let mut listed = listed.map_err(failed)?.into_inner();
        let mut found = Vec::new();
        while let Some(some) = listed.message().await.map_err(failed)? {
            // Digests of other kinds are nothing that a SOCI index names.
            found.extend(some.info.into_iter().filter_map(|info| {
                Some(Stored { digest: info.digest.parse().ok()?, size: u64::try_from(info.size).ok() })
            }));
        }
        Ok(found)
    }

    /// `length` bytes of a blob from `start` on; not compared with its digest.
    pub(crate) async fn read(
        &self,
        digest: &Digest,
        start: u64,
        length: u64,
    ) -> Result<ByteStream, oci::Error> {
        let doing = format!("read content {digest}");
        if length == 0 {
            return Ok(Box::pin(stream::empty()));
        }
        let invalid = |_| oci::Error::new(oci::ErrorKind::Invalid, &doing);
        let (offset, size) =
            (i64::try_from(start).map_err(invalid)?, i64::try_from(length).map_err(invalid)?);
        let message = ReadContentRequest { digest: digest.to_string(), offset, size };
        let request = self.request(message).map_err(Error::into_oci)?;
        let answers = ContentClient::new(self.channel.clone()).read(request).await;
        let answers = answers.map_err(|s| status(&doing, s).into_oci())?.into_inner();
        Ok(Box::pin(stream::try_unfold((answers, length), move |(mut answers, left)| {
            let doing = doing.clone();
            async move {
                let corrupt = |why: &str| oci::Error::new(oci::ErrorKind::Corrupt, &doing).because(why);
                if left == 0 {
                    return Ok(None);
                }
                let next = answers.message().await.map_err(|s| status(&doing, s).into_oci())?;
                let data = next.ok_or_else(|| corrupt("it ends early"))?.data;
                let left =
                    left.checked_sub(data.len() as u64).ok_or_else(|| corrupt("more than was asked for"))?;
                Ok(Some((data, (answers, left))))
            }
        })))
    }

    /// A whole blob of at most `limit` bytes, compared with its digest.
    pub(crate) async fn read_whole(&self, digest: &Digest, limit: u64) -> Result<Bytes, oci::Error> {
        let doing = format!("read content {digest}");
        let size = self.size(digest).await.map_err(Error::into_oci)?;
        let size = size.ok_or_else(|| oci::Error::new(oci::ErrorKind::NotFound, &doing))?;
        if size > limit {
            let why = format!("it has {size} bytes; more than {limit} are not read");
            return Err(oci::Error::new(oci::ErrorKind::Corrupt, &doing).because(why));
        }
        let bytes = collect(self.read(digest, 0, size).await?, limit, &doing).await?;
        digest.verify(&bytes, &doing)?;
        Ok(bytes)
    }

    /// Takes a blob away; nothing to do where it is not there.
    pub(crate) async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        let request = self.request(DeleteContentRequest { digest: digest.to_string() })?;
        match ContentClient::new(self.channel.clone()).delete(request).await {
            Err(s) if s.code() != Code::NotFound => Err(status(&format!("delete content {digest}"), s)),
            _ => Ok(()),
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
        if self.size(&descriptor.digest).await?.is_some() {
            match self.adopt(&descriptor.digest, labels).await {
                // The collector was quicker: nothing holds what an earlier pull left behind.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                done => return done,
            }
        }
        let failed = Arc::new(Mutex::new(None));
        let request = self.request(write_requests(descriptor, bytes, labels.clone(), failed.clone()))?;
        let written = self.committed(request).await;
        // Before anything else: what broke or lied was the source, whatever containerd made of it.
        if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(Error::from_oci(doing, error));
        }
        match written {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(ErrorKind::Io, format!("{doing}: it was not committed"))),
            Err(s) if s.code() == Code::AlreadyExists => self.adopt(&descriptor.digest, labels).await,
            Err(s) => Err(status(&doing, s)),
        }
    }

    /// Whether the last of these was a commit that containerd has made.
    async fn committed(
        &self,
        request: Request<impl futures::Stream<Item = WriteContentRequest> + Send + 'static>,
    ) -> Result<bool, Status> {
        let mut answers = ContentClient::new(self.channel.clone()).write(request).await?.into_inner();
        let mut committed = false;
        while let Some(answer) = answers.message().await? {
            committed |= answer.action() == WriteAction::Commit;
        }
        Ok(committed)
    }

    /// Puts a blob that exists under the lease, and adds labels to it; others that it has stay.
    pub(crate) async fn adopt(&self, digest: &Digest, labels: &Labels) -> Result<(), Error> {
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
}

/// What containerd's Write expects: the bytes in order, and at the end a commit with digest and size.
fn write_requests(
    descriptor: &Descriptor,
    bytes: ByteStream,
    labels: Labels,
    failed: Arc<Mutex<Option<oci::Error>>>,
) -> impl futures::Stream<Item = WriteContentRequest> + Send + 'static {
    let template = WriteContentRequest {
        r#ref: format!("soci-{}-{}", time::unique(), descriptor.digest),
        total: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        expected: descriptor.digest.to_string(),
        ..WriteContentRequest::default()
    };
    let mut offset = 0;
    let data = template.clone();
    let bytes = bytes.map_ok(|piece| stream::iter(cut(piece).map(Ok))).try_flatten();
    bytes.map(Some).chain(stream::iter([None])).scan(false, move |ended, item| {
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
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
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

/// A piece in parts that fit into messages.
fn cut(mut piece: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!piece.is_empty()).then(|| piece.split_to(piece.len().min(MESSAGE_BYTES))))
}
