//! A registry's repository over HTTP: manifests, blobs by range, referrers, and the pushes.
//!
//! Requests come from above as values and leave through `Client`'s pool. An answer is checked before it is handed on:
//! digest, length, size limit. A blob's ranges are checked by their reader. Credentials are looked up when the registry
//! asks for them, and shown to no other host.
//!
//! Refused here: documents larger than their limit, Docker's schema 1, a digest that does not fit.

mod push;
mod remote_blob;
mod session;
mod auth;
mod credentials;
mod http;
mod timeout;
mod hosts;

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, Response, StatusCode, Url};
use tracing::debug;

use crate::blob::{Blob, BoxFuture};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::image::{Descriptor, Index, Manifest, canonical_json, media_type};
use crate::reference::Reference;
use crate::store::{MANIFEST_BYTES_MAX, Origin, Store, read_blob};

pub use credentials::{Anonymous, Credential, Credentials, DockerConfig};
pub use hosts::PlainHttp;
pub use http::{Client, ClientOptions};
pub use timeout::Timeouts;

use self::auth::Auth;
use self::hosts::Endpoint;
use self::http::content_length;
use self::push::Subject;
use self::remote_blob::RemoteBlob;
use self::session::Session;

/// Everything a tag may stand for.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
/// An image with more pages of referrers than this is not looked through to the end.
const REFERRER_PAGES_MAX: u32 = 32;

/// One repository, authorized. Cheap to clone; clones share logins.
#[derive(Debug, Clone)]
pub struct Registry {
    session: Arc<Session>,
}

impl Registry {
    /// The repository `reference` names. Nothing is sent yet. `Invalid` if its host cannot stand in a URL.
    pub fn new(
        client: &Client,
        reference: &Reference,
        credentials: Arc<dyn Credentials>,
    ) -> Result<Registry, Error> {
        let endpoint = Endpoint::new(reference.registry(), client.options.plain_http)?;
        let auth = Auth::new(client.clone(), endpoint.clone(), credentials);
        let repository = reference.repository().to_owned();
        let session = Session::new(client.clone(), endpoint, repository, auth);
        Ok(Registry { session: Arc::new(session) })
    }

    /// Ok if the registry answers and lets us in.
    pub async fn ping(&self) -> Result<(), Error> {
        let doing = format!("reach registry {}", self.session.endpoint.registry);
        let mut request = self.session.request(Method::GET, "", doing)?;
        request.url = self.session.endpoint.url("")?;
        request.scope = String::new();
        let answer = self.session.send(&request).await?;
        if answer.response.status().is_success() {
            return Ok(());
        }
        Err(self.session.client.refusal(answer.response, &request.doing).await)
    }

    /// A manifest or image index as its bytes. Asked for by digest, they have it; asked for by tag, the
    /// descriptor's digest is computed from them. At most [`MANIFEST_BYTES_MAX`].
    pub async fn manifest(&self, tag_or_digest: &str) -> Result<(Descriptor, Bytes), Error> {
        let doing = self.manifest_phrase(tag_or_digest);
        let client = &self.session.client;
        let mut backoff = client.backoff();
        let (said, announced, bytes) = loop {
            let response = self.ask_manifest(Method::GET, tag_or_digest, &doing).await?;
            let said = content_type(response.headers());
            let announced = announced_digest(response.headers());
            match client.read(response, MANIFEST_BYTES_MAX, &doing).await {
                Ok(bytes) => break (said, announced, bytes),
                // The body broke off: that may pass, as any fault of the line may.
                Err(error) if error.kind() == ErrorKind::Unreachable && backoff.again(None).await => {
                    debug!("try again: {error}");
                }
                Err(error) => return Err(error),
            }
        };
        let descriptor = Descriptor::of(document_type(&said, &bytes, &doing)?, &bytes);
        let expected = tag_or_digest.parse::<Digest>().ok().or(announced);
        if let Some(expected) = expected.filter(|expected| *expected != descriptor.digest) {
            let why = format!("digest is {}, expected {expected}", descriptor.digest);
            return Err(Error::new(ErrorKind::Corrupt, doing).because(why));
        }
        Ok((descriptor, bytes))
    }

    /// A blob, not looked for yet.
    pub fn blob(&self, digest: &Digest, size: Option<u64>) -> Arc<dyn Blob> {
        Arc::new(RemoteBlob::new(self.session.clone(), *digest, size))
    }

    /// A small blob in memory, compared with its digest and size; larger than `limit` is `Corrupt` unasked.
    pub async fn blob_bytes(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, Error> {
        let doing = format!("fetch blob {}@{}", self.session.name(), descriptor.digest);
        read_blob(self, descriptor, limit, &doing).await
    }

    /// What refers to a manifest, of one artifact type or of all, in the registry's order. Registries without
    /// the referrers API are asked for the tag that stands in for it.
    pub async fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        let doing = format!("list referrers of {}@{digest}", self.session.name());
        let mut request = self.session.request(Method::GET, &format!("referrers/{digest}"), doing.clone())?;
        request.headers.insert(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        if let Some(artifact_type) = artifact_type {
            request.url.query_pairs_mut().append_pair("artifactType", artifact_type);
        }
        let mut found = Vec::new();
        for page in 0..REFERRER_PAGES_MAX {
            let answer = self.session.send(&request).await?;
            let status = answer.response.status();
            let is_list = content_type(answer.response.headers()) == media_type::OCI_INDEX;
            if page == 0 && (status == StatusCode::NOT_FOUND || (status.is_success() && !is_list)) {
                found = self.tagged_referrers(digest, &doing).await?;
                break;
            }
            if !status.is_success() {
                return Err(self.session.client.refusal(answer.response, &doing).await);
            }
            let next = next_page(answer.response.headers(), &answer.url);
            let bytes = self.session.client.read(answer.response, MANIFEST_BYTES_MAX, &doing).await?;
            found.extend(Index::parse(&bytes, &doing)?.manifests.unwrap_or_default());
            // Pages of another host are none of this registry's.
            let Some(next) = next.filter(|next| self.session.endpoint.owns(next)) else { break };
            request.url = next;
        }
        found.retain(|descriptor| artifact_type.is_none_or(|wanted| descriptor.artifact_type == wanted));
        Ok(found)
    }

    async fn tagged_referrers(&self, digest: &Digest, doing: &str) -> Result<Vec<Descriptor>, Error> {
        match self.manifest(&referrers_tag(digest)).await {
            Ok((_, bytes)) => Ok(Index::parse(&bytes, doing)?.manifests.unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.within(doing)),
        }
    }

    /// Where the registry keeps no list of referrers, its clients keep one under a tag (distribution specification,
    /// referrers tag schema). Of two that write it at a time one may be lost; the specification knows no better.
    async fn tag_referrer(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), Error> {
        let doing = format!("list {} as a referrer in {}", descriptor.digest, self.session.name());
        let manifest = Manifest::parse(bytes, &doing)?;
        let Some(subject) = manifest.subject else { return Ok(()) };
        let mut listed = self.tagged_referrers(&subject.digest, &doing).await?;
        if listed.iter().any(|other| other.digest == descriptor.digest) {
            return Ok(());
        }
        let mut entry = Descriptor::new(descriptor.media_type.clone(), descriptor.digest, descriptor.size);
        entry.annotations = manifest.annotations;
        entry.artifact_type = if manifest.artifact_type.is_empty() {
            manifest.config.media_type
        } else {
            manifest.artifact_type
        };
        listed.push(entry);
        let index = Index::of(listed);
        let bytes = canonical_json(&index);
        let index = Descriptor::of(media_type::OCI_INDEX, &bytes);
        self.write_tag(&referrers_tag(&subject.digest), &index, bytes.into()).await
    }

    fn manifest_phrase(&self, tag_or_digest: &str) -> String {
        let separator = if tag_or_digest.contains(':') { '@' } else { ':' };
        format!("fetch manifest of {}{separator}{tag_or_digest}", self.session.name())
    }

    async fn ask_manifest(&self, method: Method, target: &str, doing: &str) -> Result<Response, Error> {
        let mut request = self.session.request(method, &format!("manifests/{target}"), doing.to_owned())?;
        request.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let answer = self.session.send(&request).await?;
        if answer.response.status() == StatusCode::OK {
            return Ok(answer.response);
        }
        Err(self.session.client.refusal(answer.response, doing).await)
    }

    /// What HEAD tells, where it tells everything.
    async fn look(&self, target: &str) -> Result<Option<Descriptor>, Error> {
        let response = match self.ask_manifest(Method::HEAD, target, &self.manifest_phrase(target)).await {
            Ok(response) => response,
            // Some registries know no HEAD here: GET tells.
            Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(None),
            Err(error) => return Err(error),
        };
        let headers = response.headers();
        let said = content_type(headers);
        let known = media_type::is_index(&said) || media_type::is_manifest(&said);
        let size = content_length(headers).filter(|&size| size > 0 && known);
        Ok(announced_digest(headers).zip(size).map(|(digest, size)| Descriptor::new(said, digest, size)))
    }
}

impl Store for Registry {
    fn name(&self) -> String {
        self.session.name()
    }

    fn origin(&self) -> Option<Origin> {
        let Session { endpoint, repository, .. } = &*self.session;
        Some(Origin { registry: endpoint.registry.clone(), repository: repository.clone() })
    }

    fn resolve<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<Descriptor, Error>> {
        Box::pin(async move {
            match self.look(tag_or_digest).await? {
                Some(descriptor) => Ok(descriptor),
                None => Ok(self.manifest(tag_or_digest).await?.0),
            }
        })
    }

    fn read_manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move { Ok(self.manifest(&descriptor.digest.to_string()).await?.1) })
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        Registry::blob(self, &descriptor.digest, Some(descriptor.size))
    }

    fn has_blob<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(push::has_blob(&self.session, &descriptor.digest))
    }

    fn write_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(push::write_blob(&self.session, descriptor, bytes))
    }

    fn write_from<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: &'a dyn Blob,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(push::write_from(&self.session, descriptor, source, None))
    }

    fn copy_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        from: &'a dyn Store,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(push::copy_blob(&self.session, descriptor, from))
    }

    fn write_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let target = descriptor.digest.to_string();
            push::write_manifest(&self.session, &target, descriptor, bytes).await.map(drop)
        })
    }

    fn write_referrer<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let target = descriptor.digest.to_string();
            match push::write_manifest(&self.session, &target, descriptor, bytes.clone()).await? {
                Subject::Noted => Ok(()),
                Subject::Unnoted => self.tag_referrer(descriptor, &bytes).await,
            }
        })
    }

    fn write_tag<'a>(
        &'a self,
        tag: &'a str,
        descriptor: &'a Descriptor,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { push::write_manifest(&self.session, tag, descriptor, bytes).await.map(drop) })
    }
}

/// The tag that stands in for the referrers API.
fn referrers_tag(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm(), digest.hex())
}

/// Without parameters; empty where there is none.
fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn announced_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// The media type of a manifest: as the server says where that is one we know, else as the document says.
fn document_type(said: &str, bytes: &[u8], doing: &str) -> Result<String, Error> {
    if media_type::is_index(said) || media_type::is_manifest(said) {
        return Ok(said.to_owned());
    }
    media_type::of_document(bytes).ok_or_else(|| {
        let why = format!("its media type {said:?} is neither a manifest's nor an image index's");
        Error::new(ErrorKind::Unsupported, doing).because(why)
    })
}

/// The next page a `Link` header names.
fn next_page(headers: &HeaderMap, url: &Url) -> Option<Url> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let mut links = links.flat_map(|value| value.split(','));
    let next = links.find(|link| {
        let parameters = link.split(';').skip(1);
        parameters
            .map(str::trim)
            .any(|p| p.eq_ignore_ascii_case("rel=\"next\"") || p.eq_ignore_ascii_case("rel=next"))
    })?;
    let (_, rest) = next.split_once('<')?;
    url.join(rest.split_once('>')?.0).ok()
}
