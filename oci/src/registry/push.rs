//! Writing to a repository: blobs by one PUT, or in pieces where the registry wants no long ones, or mounted from
//! a neighbor; manifests by digest or tag.
//!
//! The registry compares the digest of what it receives. A stream is compared here as well, so that a lying source ends
//! the upload first. Missing courtesies are tolerated: no `Location` after a manifest, no digest header.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url};
use tracing::debug;

use super::session::{Access, Answer, Payload, Session};
use crate::blob::{Blob, ByteStream, verified};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::image::{Descriptor, media_type};
use crate::store::{Origin, Store};

/// A copy whose source or target breaks is begun again this often at most.
const COPIES_MAX: u32 = 3;
/// A piece, where one PUT is refused: what registries behind proxies commonly take.
const PIECE_BYTES: usize = 16 << 20;
/// An upload slower than this is given up: 256 KiB/s.
const BYTES_PER_SECOND_MIN: u64 = 256 << 10;
/// After the last byte, registries move the blob to its place before they answer.
const SETTLE: Duration = Duration::from_secs(300);

pub(super) async fn has_blob(session: &Session, digest: &Digest) -> Result<bool, Error> {
    let doing = format!("look for blob {}@{digest}", session.name());
    let mut request = session.request(Method::HEAD, &format!("blobs/{digest}"), doing)?;
    // A push asks with the rights of a push: a repository that is yet to be made may not be read.
    request.scope = session.scope(Access::Push);
    let answer = session.send(&request).await?;
    match answer.response.status() {
        StatusCode::OK => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        _ => Err(session.client.refusal(answer.response, &request.doing).await),
    }
}

pub(super) async fn write_blob(
    session: &Session,
    descriptor: &Descriptor,
    bytes: Bytes,
) -> Result<(), Error> {
    descriptor.verify(&bytes, &phrase(session, descriptor))?;
    if has_blob(session, &descriptor.digest).await? {
        return Ok(());
    }
    let location = begin(session, descriptor).await?;
    let status = put(session, descriptor, location, Payload::Bytes(bytes.clone())).await?;
    if !wants_pieces(status) {
        return Ok(());
    }
    let whole: ByteStream = Box::pin(futures::stream::once(std::future::ready(Ok(bytes))));
    send_pieces(session, descriptor, whole).await
}

pub(super) async fn copy_blob(
    session: &Session,
    descriptor: &Descriptor,
    from: &dyn Store,
) -> Result<(), Error> {
    let origin = from.origin();
    let here = Origin { registry: session.endpoint.registry.clone(), repository: session.repository.clone() };
    if origin.as_ref() == Some(&here) || has_blob(session, &descriptor.digest).await? {
        return Ok(());
    }
    let neighbor = origin.filter(|origin| origin.registry == here.registry);
    let location = match neighbor {
        None => None,
        Some(origin) => match mount(session, descriptor, &origin.repository).await? {
            Mounted::Done => return Ok(()),
            Mounted::Continue(location) => location,
        },
    };
    write_from(session, descriptor, &*from.blob(descriptor), location).await
}

/// `location`: of an upload that was begun already.
pub(super) async fn write_from(
    session: &Session,
    descriptor: &Descriptor,
    source: &dyn Blob,
    mut location: Option<Url>,
) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        let target = match location.take() {
            Some(location) => location,
            None => begin(session, descriptor).await?,
        };
        match stream_blob(session, descriptor, source, target).await {
            Ok(()) => return Ok(()),
            Err(error) if may_pass(error.kind()) && attempt < COPIES_MAX => {
                debug!(attempt, "copy again: {error}");
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn stream_blob(
    session: &Session,
    descriptor: &Descriptor,
    source: &dyn Blob,
    location: Url,
) -> Result<(), Error> {
    // What breaks the source ends the upload, and to the upload that looks like a broken connection.
    let broken: Arc<Mutex<Option<Error>>> = Arc::default();
    let open = async || {
        let broken = broken.clone();
        let stream = verified(source.read_all().await?, descriptor.digest, descriptor.size);
        let noted = stream.map_err(move |error| {
            let told = Error::new(error.kind(), error.doing());
            broken.lock().unwrap_or_else(PoisonError::into_inner).replace(error);
            told
        });
        Ok::<ByteStream, Error>(Box::pin(noted))
    };
    let sent = async {
        let status = put(session, descriptor, location, Payload::stream(open().await?)).await?;
        if wants_pieces(status) {
            return send_pieces(session, descriptor, open().await?).await;
        }
        Ok(())
    };
    let sent = sent.await;
    let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
    sent.map_err(|error| broken.unwrap_or(error))
}

enum Mounted {
    Done,
    /// the registry would rather be sent it: here, or where an upload is begun
    Continue(Option<Url>),
}

async fn mount(session: &Session, descriptor: &Descriptor, from: &str) -> Result<Mounted, Error> {
    let doing = format!("mount blob {} from {from} to {}", descriptor.digest, session.name());
    let mut request = session.request(Method::POST, "blobs/uploads/", doing)?;
    request
        .url
        .query_pairs_mut()
        .append_pair("mount", &descriptor.digest.to_string())
        .append_pair("from", from);
    request.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    request.scope = format!("{} repository:{from}:pull", session.scope(Access::Push));
    let answer = match session.send(&request).await {
        Ok(answer) => answer,
        // Not allowed to read the neighbor that way; an upload needs no leave of it.
        Err(error) if error.kind() == ErrorKind::Denied => return Ok(Mounted::Continue(None)),
        Err(error) => return Err(error),
    };
    match answer.response.status() {
        StatusCode::CREATED => Ok(Mounted::Done),
        StatusCode::ACCEPTED => Ok(Mounted::Continue(location(&answer, &request.doing).ok())),
        _ => Ok(Mounted::Continue(None)),
    }
}

/// Begins an upload; where to send it.
async fn begin(session: &Session, descriptor: &Descriptor) -> Result<Url, Error> {
    let mut request = session.request(Method::POST, "blobs/uploads/", phrase(session, descriptor))?;
    request.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    let answer = session.send(&request).await?;
    if answer.response.status() != StatusCode::ACCEPTED {
        return Err(session.client.refusal(answer.response, &request.doing).await);
    }
    location(&answer, &request.doing)
}

/// The whole blob in one request. The status is a success, or says that pieces are wanted.
async fn put(
    session: &Session,
    descriptor: &Descriptor,
    mut location: Url,
    payload: Payload,
) -> Result<StatusCode, Error> {
    location.query_pairs_mut().append_pair("digest", &descriptor.digest.to_string());
    let mut request = session.request(Method::PUT, "", phrase(session, descriptor))?;
    request.url = location;
    request.headers.insert(CONTENT_LENGTH, HeaderValue::from(descriptor.size));
    request.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCTET_STREAM));
    request.payload = payload;
    request.patience = patience(descriptor.size);
    let answer = session.send(&request).await?;
    let status = answer.response.status();
    if status.is_success() || wants_pieces(status) {
        return Ok(status);
    }
    Err(session.client.refusal(answer.response, &request.doing).await)
}

fn wants_pieces(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    )
}

/// The blob in pieces, each of which can be sent again.
async fn send_pieces(
    session: &Session,
    descriptor: &Descriptor,
    mut source: ByteStream,
) -> Result<(), Error> {
    let mut location = begin(session, descriptor).await?;
    let mut sent = 0;
    let mut piece = BytesMut::new();
    let mut ended = false;
    while !ended {
        match source.next().await {
            Some(chunk) => piece.extend_from_slice(&chunk?),
            None => ended = true,
        }
        while piece.len() >= PIECE_BYTES || (ended && !piece.is_empty()) {
            let next = piece.split_to(piece.len().min(PIECE_BYTES)).freeze();
            let length = next.len() as u64;
            location = patch(session, descriptor, location, Piece { offset: sent, bytes: next }).await?;
            sent += length;
        }
    }
    location.query_pairs_mut().append_pair("digest", &descriptor.digest.to_string());
    let mut request = session.request(Method::PUT, "", phrase(session, descriptor))?;
    request.url = location;
    request.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    request.patience = patience(descriptor.size);
    let answer = session.send(&request).await?;
    if answer.response.status().is_success() {
        return Ok(());
    }
    Err(session.client.refusal(answer.response, &request.doing).await)
}

struct Piece {
    offset: u64,
    bytes: Bytes,
}

async fn patch(session: &Session, descriptor: &Descriptor, to: Url, piece: Piece) -> Result<Url, Error> {
    let mut request = session.request(Method::PATCH, "", phrase(session, descriptor))?;
    let length = piece.bytes.len() as u64;
    let range = format!("{}-{}", piece.offset, piece.offset + length - 1);
    if let Ok(range) = HeaderValue::from_str(&range) {
        request.headers.insert(CONTENT_RANGE, range);
    }
    request.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    request.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCTET_STREAM));
    request.url = to;
    request.payload = Payload::Bytes(piece.bytes);
    request.patience = patience(length);
    let answer = session.send(&request).await?;
    if !answer.response.status().is_success() {
        return Err(session.client.refusal(answer.response, &request.doing).await);
    }
    location(&answer, &request.doing)
}

/// What a registry made of a manifest's subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// a client that asks for its referrers is told of the manifest
    Noted,
    /// there was none, or the registry knows nothing of referrers
    Unnoted,
}

/// `target`: a tag, or the digest.
pub(super) async fn write_manifest(
    session: &Session,
    target: &str,
    descriptor: &Descriptor,
    bytes: Bytes,
) -> Result<Subject, Error> {
    let separator = if target.contains(':') { '@' } else { ':' };
    let doing = format!("push manifest to {}{separator}{target}", session.name());
    descriptor.verify(&bytes, &doing)?;
    let mut request = session.request(Method::PUT, &format!("manifests/{target}"), doing)?;
    let content_type = HeaderValue::from_str(&descriptor.media_type)
        .map_err(|cause| Error::new(ErrorKind::Invalid, &request.doing).because(cause))?;
    request.headers.insert(CONTENT_TYPE, content_type);
    request.payload = Payload::Bytes(bytes);
    let answer = session.send(&request).await?;
    if !answer.response.status().is_success() {
        return Err(session.client.refusal(answer.response, &request.doing).await);
    }
    // A registry that stored something else under a tag would be found out only by readers.
    let headers = answer.response.headers();
    if let Some(stored) = super::announced_digest(headers).filter(|stored| *stored != descriptor.digest) {
        let why = format!("the registry stored {stored}, sent was {}", descriptor.digest);
        return Err(Error::new(ErrorKind::Corrupt, &request.doing).because(why));
    }
    Ok(if headers.contains_key("oci-subject") { Subject::Noted } else { Subject::Unnoted })
}

fn location(answer: &Answer, doing: &str) -> Result<Url, Error> {
    let header = answer.response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let next = header.and_then(|header| answer.url.join(header).ok());
    next.ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, doing).because("the registry does not say where to send it")
    })
}

fn patience(bytes: u64) -> Duration {
    SETTLE + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

fn phrase(session: &Session, descriptor: &Descriptor) -> String {
    format!("push blob {} to {}", descriptor.digest, session.name())
}

/// A broken connection, or a login that ended while its stream was under way: the next one logs in anew.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unreachable | ErrorKind::Denied)
}
