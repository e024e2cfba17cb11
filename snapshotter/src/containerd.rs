//! containerd, asked for a manifest it has: the one room that calls it.
//!
//! During a pull containerd has fetched and verified the image's manifest before it prepares the first layer,
//! so the question costs no round trip. Nothing depends on the answer: whoever asks goes to the registry when
//! there is none, soon.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use oci::Digest;
use proto::containerd::services::content::v1::{ReadContentRequest, content_client::ContentClient};
use tonic::{Request, metadata::MetadataValue};

/// A manifest is some kilobytes from a neighbour's memory; one that takes longer is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(2);
/// What registries allow for a manifest.
const MAX_BYTES: usize = 8 << 20;

#[derive(Debug)]
pub(crate) struct Containerd {
    address: PathBuf,
}

impl Containerd {
    pub(crate) fn new(address: PathBuf) -> Self {
        Self { address }
    }

    /// The content `digest` of a namespace, verified; `None` where containerd has it not or does not answer.
    pub(crate) async fn content(&self, namespace: &str, digest: &Digest) -> Option<Bytes> {
        let read = tokio::time::timeout(PATIENCE, self.read(namespace, digest));
        let bytes = match read.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                tracing::debug!(%digest, %error, "containerd does not have the manifest");
                return None;
            }
            Err(_) => {
                tracing::debug!(%digest, "containerd does not answer");
                return None;
            }
        };
        (Digest::sha256(&bytes) == *digest).then_some(bytes)
    }

    async fn read(
        &self,
        namespace: &str,
        digest: &Digest,
    ) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
        let channel = proto::connect(self.address.clone()).await?;
        let mut request = Request::new(ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 });
        request.metadata_mut().insert("containerd-namespace", MetadataValue::try_from(namespace)?);
        let mut stream = ContentClient::new(channel).read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await? {
            bytes.extend_from_slice(&part.data);
            if bytes.len() > MAX_BYTES {
                return Err("the content is too large for a manifest".into());
            }
        }
        Ok(bytes.into())
    }
}
