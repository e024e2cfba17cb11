//! A blob in a registry, read by ranges.
//!
//! Most registries redirect to a signed URL on another host. That URL is kept and asked directly. It is renewed through
//! the registry when it expires or is refused. A body that breaks is resumed at the byte reached. The server is not
//! believed: its range is compared with the one asked for, lengths are exact, and it may ignore ranges.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tracing::debug;

use super::http::content_length;
use super::session::{Answer, Session};
use crate::blob::{Blob, BoxFuture, ByteStream};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};

/// How often in a row a body may break before it brought [`PROGRESS`] bytes.
const BREAKS_MAX: u32 = 5;
/// So much has to arrive before a broken body counts as progress: one frame of a slow connection.
const PROGRESS: u64 = 64 << 10;
/// A signed URL is not used in the last moments of its life.
const EXPIRY_MARGIN: Duration = Duration::from_secs(15);

/// See the module. Shared by all readers of a blob.
#[derive(Debug)]
pub(super) struct RemoteBlob {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    session: Arc<Session>,
    digest: Digest,
    size: Option<u64>,
    /// where the registry sent us last
    location: Mutex<Option<Location>>,
}

struct Location {
    url: Url,
    until: Option<Instant>,
}

impl std::fmt::Debug for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&super::hosts::redacted(&self.url))
    }
}

impl RemoteBlob {
    pub(super) fn new(session: Arc<Session>, digest: Digest, size: Option<u64>) -> RemoteBlob {
        RemoteBlob { inner: Arc::new(Inner { session, digest, size, location: Mutex::new(None) }) }
    }
}

impl Blob for RemoteBlob {
    fn digest(&self) -> &Digest {
        &self.inner.digest
    }

    fn size(&self) -> Option<u64> {
        self.inner.size
    }

    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(async move {
            if range.start > range.end || self.inner.size.is_some_and(|size| range.end > size) {
                let why = format!("the blob has {:?} bytes, asked for {range:?}", self.inner.size);
                return Err(Error::new(ErrorKind::Invalid, self.inner.doing()).because(why));
            }
            if range.is_empty() {
                return Ok(Box::pin(stream::empty()) as ByteStream);
            }
            Reading::begin(self.inner.clone(), Wanted { next: range.start, end: Some(range.end) }).await
        })
    }

    fn busy_answers(&self) -> u64 {
        self.inner.session.busy.load(Ordering::Relaxed)
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, Error>> {
        let wanted = Wanted { next: 0, end: self.inner.size };
        Box::pin(async move {
            if wanted.end == Some(0) {
                return Ok(Box::pin(stream::empty()) as ByteStream);
            }
            Reading::begin(self.inner.clone(), wanted).await
        })
    }
}

/// The bytes still wanted; `end` is unknown only for a whole blob of unknown size.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    next: u64,
    end: Option<u64>,
}

/// A body under way.
struct Reading {
    blob: Arc<Inner>,
    wanted: Wanted,
    body: ByteStream,
    /// bytes of the body before the wanted ones: the server ignored the range
    skip: u64,
    breaks: u32,
    progress: u64,
}

impl Reading {
    async fn begin(blob: Arc<Inner>, wanted: Wanted) -> Result<ByteStream, Error> {
        let opened = blob.open(wanted).await?;
        let wanted = Wanted { end: opened.end, ..wanted };
        let reading = Reading { blob, wanted, body: opened.body, skip: opened.skip, breaks: 0, progress: 0 };
        Ok(Box::pin(stream::unfold(Some(reading), |state| async move {
            let mut reading = state?;
            match reading.next().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(reading))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    /// The next chunk of the wanted bytes; None after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.wanted.end == Some(self.wanted.next) {
                return Ok(None);
            }
            match self.body.next().await {
                Some(Ok(chunk)) => {
                    if let Some(chunk) = self.take(chunk) {
                        return Ok(Some(chunk));
                    }
                }
                None if self.wanted.end.is_none() => return Ok(None),
                None => {
                    let error = Error::new(ErrorKind::Unreachable, self.blob.doing());
                    self.resume(error.because("the body ended early")).await?;
                }
                Some(Err(error)) => self.resume(error).await?,
            }
        }
    }

    /// Of a chunk, what was wanted; the rest of a longer body is not read.
    fn take(&mut self, mut chunk: Bytes) -> Option<Bytes> {
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        let mut chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(usize::MAX).min(chunk.len()));
        if let Some(end) = self.wanted.end {
            let room = usize::try_from(end - self.wanted.next).unwrap_or(usize::MAX);
            chunk.truncate(room);
        }
        self.wanted.next += chunk.len() as u64;
        self.progress += chunk.len() as u64;
        (!chunk.is_empty()).then_some(chunk)
    }

    async fn resume(&mut self, error: Error) -> Result<(), Error> {
        if self.progress >= PROGRESS {
            self.breaks = 0;
        }
        self.breaks += 1;
        self.progress = 0;
        if self.breaks > BREAKS_MAX {
            return Err(error);
        }
        if self.wanted.end.is_none() && self.wanted.next > 0 {
            // How much is missing is not known: nothing to ask for.
            return Err(error);
        }
        debug!(at = self.wanted.next, "resume: {error}");
        let mut backoff = self.blob.session.client.backoff();
        if self.breaks > 1 && !backoff.again(None).await {
            return Err(error);
        }
        let opened = self.blob.open(self.wanted).await?;
        self.wanted.end = opened.end;
        self.skip = opened.skip;
        self.body = opened.body;
        Ok(())
    }
}

struct Opened {
    body: ByteStream,
    skip: u64,
    end: Option<u64>,
}

impl Inner {
    fn doing(&self) -> String {
        format!("fetch blob {}@{}", self.session.name(), self.digest)
    }

    async fn open(&self, wanted: Wanted) -> Result<Opened, Error> {
        let headers = range_header(wanted, self.size);
        if let Some(url) = self.known_location() {
            match self.ask_directly(url, headers.clone()).await {
                Some(response) => return self.check(response, wanted),
                None => self.forget_location(),
            }
        }
        let path = format!("blobs/{}", self.digest);
        let mut request = self.session.request(Method::GET, &path, self.doing())?;
        request.headers = headers;
        let Answer { response, url } = self.session.send(&request).await?;
        if !response.status().is_success() {
            return Err(self.session.client.refusal(response, &request.doing).await);
        }
        if url != request.url {
            self.remember_location(url);
        }
        self.check(response, wanted)
    }

    /// The answer of the place the registry named before. None: ask the registry again, whatever was wrong.
    async fn ask_directly(&self, url: Url, headers: HeaderMap) -> Option<Response> {
        // The same origin wants our credentials: that way is `Session`'s.
        let client = &self.session.client;
        let request = client.request(Method::GET, url).headers(headers);
        match client.send(request, client.options.header_timeout, &self.doing()).await {
            Ok(response) if response.status().is_success() => Some(response),
            Ok(response) => {
                self.session.note(response.status());
                debug!(status = %response.status(), "location is no longer good");
                None
            }
            Err(error) => {
                debug!("location is no longer good: {error}");
                None
            }
        }
    }

    /// Compares what is sent with what was asked for.
    fn check(&self, response: Response, wanted: Wanted) -> Result<Opened, Error> {
        let corrupt = |why: String| Err(Error::new(ErrorKind::Corrupt, self.doing()).because(why));
        let length = content_length(response.headers());
        let mut end = wanted.end;
        let mut skip = 0;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let Some((first, last, total)) = content_range(response.headers()) else {
                return corrupt("the answer does not say which range it holds".to_owned());
            };
            if first != wanted.next || end.is_some_and(|end| last >= end) || last < first {
                return corrupt(format!("the answer holds bytes {first}-{last}, asked for {wanted:?}"));
            }
            if let (Some(total), Some(size)) = (total, self.size)
                && total != size
            {
                return corrupt(format!("it has {total} bytes, expected {size}"));
            }
            if length.is_some_and(|length| length != last - first + 1) {
                return corrupt(format!("the answer holds bytes {first}-{last} and has another length"));
            }
            if end.is_none() {
                end = total;
            }
        } else if response.status() == StatusCode::OK {
            if let (Some(length), Some(size)) = (length, self.size)
                && length != size
            {
                return corrupt(format!("it has {length} bytes, expected {size}"));
            }
            if let (Some(length), Some(end)) = (length, end)
                && length < end
            {
                return corrupt(format!("it has {length} bytes, asked for {wanted:?}"));
            }
            if end.is_none() {
                end = length;
            }
            skip = wanted.next;
        } else {
            let why = format!("the server answers {}", response.status());
            return Err(Error::new(ErrorKind::Unsupported, self.doing()).because(why));
        }
        Ok(Opened { body: self.session.client.body(response, &self.doing()), skip, end })
    }

    fn known_location(&self) -> Option<Url> {
        let mut location = self.location.lock().unwrap_or_else(PoisonError::into_inner);
        if location.as_ref().is_some_and(|l| l.until.is_some_and(|until| until <= Instant::now())) {
            *location = None;
        }
        location.as_ref().map(|location| location.url.clone())
    }

    fn remember_location(&self, url: Url) {
        if self.session.endpoint.owns(&url) {
            return;
        }
        let until = lifetime(&url).map(|life| Instant::now() + life.saturating_sub(EXPIRY_MARGIN));
        *self.location.lock().unwrap_or_else(PoisonError::into_inner) = Some(Location { url, until });
    }

    fn forget_location(&self) {
        *self.location.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Nothing where the whole is wanted: plain requests are what caches on the way know best.
fn range_header(wanted: Wanted, size: Option<u64>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if wanted.next == 0 && (wanted.end.is_none() || wanted.end == size) {
        return headers;
    }
    let range = match wanted.end {
        Some(end) => format!("bytes={}-{}", wanted.next, end.saturating_sub(1)),
        None => format!("bytes={}-", wanted.next),
    };
    if let Ok(value) = HeaderValue::from_str(&range) {
        headers.insert(RANGE, value);
    }
    headers
}

/// `bytes FIRST-LAST/TOTAL` or `…/*`
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

/// How long a signed URL says it lives, counted from now. Where it does not say, the server's refusal will.
fn lifetime(url: &Url) -> Option<Duration> {
    let find = |name: &str| {
        let mut pairs = url.query_pairs();
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).and_then(|(_, value)| value.parse::<u64>().ok())
    };
    if let Some(seconds) = find("X-Amz-Expires").or_else(|| find("X-Goog-Expires")) {
        return Some(Duration::from_secs(seconds));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
    find("Expires").map(|at| Duration::from_secs(at.saturating_sub(now.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_content_ranges() {
        let check = |value: &str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, value.parse().unwrap());
            assert_eq!(content_range(&headers), expected, "{value}");
        };
        check("bytes 0-9/20", Some((0, 9, Some(20))));
        check("bytes 5-5/*", Some((5, 5, None)));
        check("bytes */20", None);
        check("items 0-9/20", None);
        check("bytes 0-9/x", None);
        check("bytes -1-9/20", None);
    }

    #[test]
    fn reads_lifetimes() {
        let life = |query: &str| lifetime(&Url::parse(&format!("https://h/x?{query}")).unwrap());
        assert_eq!(life("X-Amz-Expires=1200&X-Amz-Signature=s"), Some(Duration::from_secs(1200)));
        assert_eq!(life("Expires=1"), Some(Duration::ZERO));
        assert_eq!(life("X-Amz-Expires=soon"), None);
        assert_eq!(life(""), None);
    }
}
