//! One repository's requests: credentials put on, redirects followed, attempts repeated. A request goes in; an
//! answer comes out whose status the caller still has to read, or an error when there will be none.
//!
//! Credentials are shown to the registry's own origin only, whatever a redirect says. A request is sent again once after
//! a new login, and a bounded number of times, with pauses, after connection errors, 408, 429 and 5xx. One whose body was
//! a stream is sent once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};
use tracing::debug;

use super::auth::{Auth, Challenge, Permit, challenge_of, is_expired_login};
use super::hosts::{Endpoint, redacted};
use super::http::{Client, is_passing, refused, retry_after};
use crate::blob::ByteStream;
use crate::error::{Error, ErrorKind};

/// As many as browsers and Go's client follow.
const REDIRECTS_MAX: u32 = 10;
/// Of an answer 403, what is read to see whether it speaks of an expired login.
const DENIAL_BYTES_MAX: u64 = 64 << 10;

/// What may be done with a repository, as the token's scope says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Pull,
    Push,
}

/// A request, to be sent as often as needed.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) payload: Payload,
    pub(super) scope: String,
    /// until the answer's headers; uploads take longer
    pub(super) patience: Duration,
    /// the bare phrase for errors
    pub(super) doing: String,
}

/// A request's body.
pub(super) enum Payload {
    Empty,
    Bytes(Bytes),
    /// gone once sent
    Stream(Mutex<Option<ByteStream>>),
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Payload::Empty => "Empty",
            Payload::Bytes(_) => "Bytes",
            Payload::Stream(_) => "Stream",
        })
    }
}

impl Payload {
    pub(super) fn stream(stream: ByteStream) -> Payload {
        Payload::Stream(Mutex::new(Some(stream)))
    }

    fn can_repeat(&self) -> bool {
        !matches!(self, Payload::Stream(_))
    }

    /// None: it was a stream and is gone.
    fn body(&self) -> Option<Body> {
        match self {
            Payload::Empty => Some(Body::default()),
            Payload::Bytes(bytes) => Some(Body::from(bytes.clone())),
            Payload::Stream(stream) => {
                let taken = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                taken.map(Body::wrap_stream)
            }
        }
    }
}

/// An answer, and the URL that gave it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) url: Url,
}

/// One repository, with its logins.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) endpoint: Endpoint,
    pub(super) repository: String,
    /// Answers that said 429 or 503.
    pub(super) busy: AtomicU64,
    auth: Auth,
}

impl Session {
    pub(super) fn new(client: Client, endpoint: Endpoint, repository: String, auth: Auth) -> Session {
        Session { client, endpoint, repository, busy: AtomicU64::new(0), auth }
    }

    /// `registry/repository`, for messages.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.endpoint.registry, self.repository)
    }

    pub(super) fn scope(&self, access: Access) -> String {
        match access {
            Access::Pull => format!("repository:{}:pull", self.repository),
            Access::Push => format!("repository:{}:pull,push", self.repository),
        }
    }

    /// A request for a path below this repository.
    pub(super) fn request(&self, method: Method, path: &str, doing: String) -> Result<Request, Error> {
        let url = self.endpoint.url(&format!("{}/{path}", self.repository))?;
        let access = if matches!(method, Method::GET | Method::HEAD) { Access::Pull } else { Access::Push };
        Ok(Request {
            method,
            url,
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            scope: self.scope(access),
            patience: self.client.options.header_timeout,
            doing,
        })
    }

    /// See the module. Of refusals, 401 and 403 from the registry itself come as errors (`Denied`).
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Error> {
        let mut backoff = self.client.backoff();
        let mut logged_in_anew = false;
        loop {
            let permit = self.auth.permit(&request.scope).await?;
            let answer = match self.follow(request, permit.as_ref()).await {
                Ok(answer) => answer,
                Err(error) => {
                    let again = error.kind() == ErrorKind::Unreachable && request.payload.can_repeat();
                    if again && backoff.again(None).await {
                        debug!("try again: {error}");
                        continue;
                    }
                    return Err(error);
                }
            };
            let status = answer.response.status();
            self.note(status);
            if is_passing(status)
                && request.payload.can_repeat()
                && backoff.again(retry_after(answer.response.headers())).await
            {
                debug!(%status, "try again: {}", request.doing);
                continue;
            }
            let refused_by_registry = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
                && self.endpoint.owns(&answer.url);
            if !refused_by_registry {
                return Ok(answer);
            }
            let (challenge, error) = self.denial(answer.response, &request.doing).await;
            match challenge {
                Some(challenge) if !logged_in_anew => {
                    self.auth.challenged(challenge, permit.as_ref());
                    if !request.payload.can_repeat() {
                        return Err(error);
                    }
                    logged_in_anew = true;
                }
                _ => return Err(error),
            }
        }
    }

    /// Counts what says that the other side has too much to do.
    pub(super) fn note(&self, status: StatusCode) {
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What a refusal asks for, if it can be answered, and the error if not.
    async fn denial(&self, response: Response, doing: &str) -> (Option<Challenge>, Error) {
        let (status, challenge) = (response.status(), challenge_of(response.headers()));
        let body = self.client.read(response, DENIAL_BYTES_MAX, doing).await.unwrap_or_default();
        let error = refused(status, &body, doing);
        if status == StatusCode::UNAUTHORIZED {
            return (challenge, error);
        }
        (is_expired_login(&body).then_some(Challenge::Basic), error)
    }

    /// Sends, and follows redirects; those of a request that changes something only where the method may stay.
    async fn follow(&self, request: &Request, permit: Option<&Permit>) -> Result<Answer, Error> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let Some(body) = request.payload.body() else {
                let error = Error::new(ErrorKind::Unreachable, &request.doing);
                return Err(error.because("its body was a stream and cannot be sent again"));
            };
            let mut sent = self.client.request(request.method.clone(), url.clone());
            sent = sent.headers(request.headers.clone());
            if !matches!(request.payload, Payload::Empty) {
                sent = sent.body(body);
            }
            if let Some(permit) = permit.filter(|_| self.endpoint.owns(&url)) {
                sent = sent.header(AUTHORIZATION, permit.header.clone());
            }
            let response = self.client.send(sent, request.patience, &request.doing).await?;
            let Some(next) = redirect(&request.method, &response, &url) else {
                return Ok(Answer { response, url });
            };
            debug!(from = redacted(&url), to = redacted(&next), "redirected");
            url = next;
        }
        // Says nothing about the thing asked for: another time the way to it may have an end.
        let why = format!("more than {REDIRECTS_MAX} redirects");
        Err(Error::new(ErrorKind::Unreachable, &request.doing).because(why))
    }
}

fn redirect(method: &Method, response: &Response, url: &Url) -> Option<Url> {
    let reading = matches!(*method, Method::GET | Method::HEAD);
    let followed = match response.status().as_u16() {
        301..=303 => reading,
        307 | 308 => true,
        _ => false,
    };
    let next = url.join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
    (followed && matches!(next.scheme(), "http" | "https")).then_some(next)
}
