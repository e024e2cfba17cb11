//! One HTTP pool for all registries, and what every request needs: a limit on each wait, a bounded body, errors
//! with a kind, and the pauses between attempts. No redirect is followed here and no header added; that is
//! `session`'s work. Bodies arrive as they were sent: no decoding, blobs are compressed already.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use tokio::time::{sleep, timeout};

use super::hosts::{PlainHttp, is_loopback};
use super::timeout::heard;
use crate::blob::{ByteStream, collect};
use crate::error::{Error, ErrorKind};

/// A server may ask us to wait; no pull waits longer than this for a layer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// The longest pause we choose ourselves.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// An error document longer than this says nothing more.
const ERROR_BODY_MAX: u64 = 64 << 10;
/// Idle connections kept per host: as many as requests we have in flight at most.
const IDLE_CONNECTIONS_MAX: usize = 32;

/// How a [`Client`] behaves; `Default` is right for a daemon and for the command line.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    pub user_agent: String,
    pub plain_http: PlainHttp,
    /// until a connection stands, TLS included
    pub connect_timeout: Duration,
    /// from the request until the answer's headers
    pub header_timeout: Duration,
    /// between two pieces of a body
    pub idle_timeout: Duration,
    /// how often one request is sent at most, the first time included
    pub attempts_max: u32,
    /// the first pause between attempts; it doubles, with jitter
    pub pause: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            user_agent: concat!("soci/", env!("CARGO_PKG_VERSION")).to_owned(),
            plain_http: PlainHttp::Loopback,
            connect_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            attempts_max: 5,
            pause: Duration::from_millis(250),
        }
    }
}

/// The pool. Cheap to clone; all clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    /// through the proxy the environment names, if it names one
    far: reqwest::Client,
    /// to this machine itself, where no proxy has a part: Go's tools see it so, and this library does not
    near: reqwest::Client,
    pub(super) options: Arc<ClientOptions>,
}

impl Client {
    /// Fails (`Io`) where TLS cannot be set up, for want of root certificates for example.
    pub fn new(options: ClientOptions) -> Result<Client, Error> {
        // An error means that a provider is installed already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pool = || {
            reqwest::Client::builder()
                .user_agent(&options.user_agent)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(options.connect_timeout)
                .tcp_user_timeout(options.idle_timeout)
                .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        };
        let failed =
            |cause: reqwest::Error| Error::new(ErrorKind::Io, "set up the HTTP client").because(cause);
        let far = pool().build().map_err(failed)?;
        let near = pool().no_proxy().build().map_err(failed)?;
        Ok(Client { far, near, options: Arc::new(options) })
    }

    /// A request to this URL, not sent yet.
    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let pool = if is_loopback(&url) { &self.near } else { &self.far };
        pool.request(method, url)
    }

    /// Sends once; `patience` until the headers are there.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        patience: Duration,
        doing: &str,
    ) -> Result<Response, Error> {
        match timeout(patience, request.send()).await {
            Ok(Ok(response)) => {
                heard();
                Ok(response)
            }
            Ok(Err(cause)) => Err(transport(cause, doing)),
            Err(_) => Err(Error::new(ErrorKind::Unreachable, doing)
                .because(format!("no answer within {} s", patience.as_secs()))),
        }
    }

    /// The answer's body as it comes, each wait limited.
    pub(super) fn body(&self, response: Response, doing: &str) -> ByteStream {
        let idle = self.options.idle_timeout;
        let start = Some((response, doing.to_owned()));
        Box::pin(stream::unfold(start, move |state| async move {
            let (mut response, doing) = state?;
            match timeout(idle, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    heard();
                    Some((Ok(chunk), Some((response, doing))))
                }
                Ok(Ok(None)) => None,
                Ok(Err(cause)) => Some((Err(transport(cause, &doing)), None)),
                Err(_) => {
                    let why = format!("no data for {} s", idle.as_secs());
                    Some((Err(Error::new(ErrorKind::Unreachable, doing).because(why)), None))
                }
            }
        }))
    }

    /// The whole body, of at most `limit` bytes; a longer one is `Corrupt`.
    pub(super) async fn read(&self, response: Response, limit: u64, doing: &str) -> Result<Bytes, Error> {
        if content_length(response.headers()).is_some_and(|length| length > limit) {
            let why = format!("the answer is longer than {limit} bytes");
            return Err(Error::new(ErrorKind::Corrupt, doing).because(why));
        }
        collect(self.body(response, doing), limit, doing).await
    }

    /// The error an unexpected answer stands for, with what the server says in its body.
    pub(super) async fn refusal(&self, response: Response, doing: &str) -> Error {
        let status = response.status();
        let body = self.read(response, ERROR_BODY_MAX, doing).await.unwrap_or_default();
        refused(status, &body, doing)
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff { left: self.options.attempts_max.saturating_sub(1), pause: self.options.pause }
    }
}

/// The error for a status, and for what the error document says.
pub(super) fn refused(status: StatusCode, body: &[u8], doing: &str) -> Error {
    let kind = match status.as_u16() {
        401 | 403 => ErrorKind::Denied,
        404 | 410 => ErrorKind::NotFound,
        408 | 429 | 500..=506 | 508..=599 => ErrorKind::Unreachable,
        416 => ErrorKind::Corrupt,
        507 => ErrorKind::Full,
        _ => ErrorKind::Unsupported,
    };
    let said = server_message(body);
    let separator = if said.is_empty() { "" } else { ": " };
    Error::new(kind, doing).because(format!("the server answers {status}{separator}{said}"))
}

/// What the distribution specification's error document says, cut and without control characters.
pub(super) fn server_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else { return String::new() };
    let said: Vec<String> = document.errors.iter().map(|e| format!("{} {}", e.code, e.message)).collect();
    said.join("; ").chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Whether another attempt can have another end.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502..=506 | 508..=599)
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Seconds the server asks us to wait. A date in that header is rare and taken as "some time".
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The attempts left of one request, and the pause before the next.
#[derive(Debug)]
pub(super) struct Backoff {
    left: u32,
    pause: Duration,
}

impl Backoff {
    /// Waits and answers true, or answers false: no attempt is left. `asked`: the pause the server wants.
    pub(super) async fn again(&mut self, asked: Option<Duration>) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let own = self.pause.mul_f64(0.5 + fraction());
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        sleep(asked.map_or(own, |asked| asked.min(RETRY_AFTER_MAX).max(own))).await;
        true
    }
}

/// Somewhere in 0..1, so that many clients do not come back at once. The standard library's hash keys are random
/// enough for that.
fn fraction() -> f64 {
    let random = std::hash::RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// An error of the connection. Its URL goes: a signature may stand in it, and `doing` says what matters.
fn transport(cause: reqwest::Error, doing: &str) -> Error {
    Error::new(ErrorKind::Unreachable, doing).because(cause.without_url())
}
