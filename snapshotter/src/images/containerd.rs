//! Calls containerd for documents that it has. No other file of this crate calls containerd.
//!
//! During a pull, containerd has fetched and verified the image's manifest before it prepares the first layer. So the
//! call saves a round trip to the registry. Without an answer within two seconds, the caller asks the registry.

use std::{cmp::Reverse, path::PathBuf, str::FromStr, time::Duration};

use bytes::Bytes;
use oci::Digest;
use proto::containerd::services::{
    content::v1::{Info, InfoRequest, ListContentRequest, ReadContentRequest, content_client::ContentClient},
    images::v1::{ListImagesRequest, images_client::ImagesClient},
};
use tonic::{Request, metadata::MetadataValue, transport::Channel};

/// A manifest is some kilobytes from another process on this machine; one that takes longer is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest manifest that registries accept.
const MAX_BYTES: usize = 8 << 20;

/// What containerd's collector writes on a manifest: the digest of its configuration.
const CONFIG: &str = "containerd.io/gc.ref.content.config";
/// What its client writes on content: `<this><host>` = repositories, with commas between them.
const SOURCE: &str = "containerd.io/distribution.source.";
/// More than a node has; beyond it those listed first count.
const MOST_LISTED: usize = 4096;

/// Of these it is asked when they were touched last.
const MOST_ASKED: usize = 256;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A manifest in containerd's store, by what is noted beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    /// Hosts and repositories that it was fetched from. A host is noted without its port.
    pub(crate) sources: Vec<(String, String)>,
}

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

    /// The manifests of a namespace that say which configuration they have, the one touched last first; `None` where
    /// containerd does not answer.
    pub(crate) async fn manifests(&self, namespace: &str) -> Option<Vec<Listed>> {
        match tokio::time::timeout(PATIENCE, self.list(namespace)).await {
            Ok(Ok(listed)) => Some(listed),
            Ok(Err(error)) => {
                tracing::debug!(namespace, %error, "containerd does not list its content");
                None
            }
            Err(_) => {
                tracing::debug!(namespace, "containerd does not answer");
                None
            }
        }
    }

    /// The names of a namespace's images; none where containerd does not answer.
    pub(crate) async fn names(&self, namespace: &str) -> Vec<String> {
        let list = async {
            let mut client = ImagesClient::new(proto::connect(self.address.clone()).await?);
            let listed = client.list(request(namespace, ListImagesRequest::default())?).await?;
            Ok::<_, Failure>(listed.into_inner().images)
        };
        let images = tokio::time::timeout(PATIENCE, list).await.map_err(Failure::from).flatten();
        let images = images
            .inspect_err(|error| tracing::debug!(namespace, %error, "containerd does not list its images"));
        images.unwrap_or_default().into_iter().map(|image| image.name).take(MOST_LISTED).collect()
    }

    async fn list(&self, namespace: &str) -> Result<Vec<Listed>, Failure> {
        let filters = vec![format!("labels.\"{CONFIG}\"")];
        let all = request(namespace, ListContentRequest { filters })?;
        let mut stream = self.client().await?.list(all).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(part) = stream.message().await? {
            infos.extend(part.info);
            if infos.len() > MOST_LISTED {
                break;
            }
        }
        infos.sort_by_key(|info| Reverse(info.created_at.as_ref().map(|time| (time.seconds, time.nanos))));
        infos.truncate(MOST_ASKED);
        // A list does not say when something was touched.
        let client = self.client().await?;
        let ask = async |info: &Info| {
            let question = request(namespace, InfoRequest { digest: info.digest.clone() });
            client.clone().info(question.ok()?).await.ok()?.into_inner().info
        };
        let mut infos: Vec<_> =
            futures::future::join_all(infos.iter().map(ask)).await.into_iter().flatten().collect();
        infos.sort_by_key(|info| Reverse(info.updated_at.as_ref().map(|time| (time.seconds, time.nanos))));
        Ok(infos.iter().filter_map(listed).collect())
    }

    async fn client(&self) -> Result<ContentClient<Channel>, Failure> {
        Ok(ContentClient::new(proto::connect(self.address.clone()).await?))
    }

    async fn read(&self, namespace: &str, digest: &Digest) -> Result<Bytes, Failure> {
        let read = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let mut stream = self.client().await?.read(request(namespace, read)?).await?.into_inner();
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

fn request<T>(namespace: &str, message: T) -> Result<Request<T>, Failure> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::try_from(namespace)?);
    Ok(request)
}

fn listed(info: &Info) -> Option<Listed> {
    let manifest = Digest::from_str(&info.digest).ok()?;
    let config = Digest::from_str(info.labels.get(CONFIG)?).ok()?;
    let hosts = info
        .labels
        .iter()
        .filter_map(|(name, repositories)| Some((name.strip_prefix(SOURCE)?, repositories)));
    let mut sources: Vec<_> = hosts
        .flat_map(|(host, repositories)| repositories.split(',').map(|one| (host.to_owned(), one.to_owned())))
        .collect();
    // The same one each time.
    sources.sort();
    Some(Listed { manifest, config, sources })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_beside_a_manifest() {
        let [manifest, config] = ["manifest", "config"].map(|text| Digest::sha256(text.as_bytes()));
        let mut info = Info { digest: manifest.to_string(), ..Info::default() };
        assert_eq!(listed(&info), None);
        info.labels.insert(CONFIG.into(), config.to_string());
        info.labels.insert(format!("{SOURCE}b.example:5000"), "x/y".into());
        info.labels.insert(format!("{SOURCE}a.example"), "q,p".into());
        let source = |host: &str, repository: &str| (host.to_owned(), repository.to_owned());
        let sources =
            vec![source("a.example", "p"), source("a.example", "q"), source("b.example:5000", "x/y")];
        assert_eq!(listed(&info), Some(Listed { manifest, config, sources }));
        info.labels.insert(CONFIG.into(), "sha256:../x".into());
        assert_eq!(listed(&info), None);
    }
}
