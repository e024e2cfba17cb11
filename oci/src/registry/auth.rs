//! From a registry's challenge to an `Authorization` header. Nothing is sent before the registry has asked; then
//! its challenge is remembered, and a token fetched per scope and kept until it expires or is refused. Many
//! requests that meet the same challenge make one login: they wait for the same cell.
//!
//! Credentials go to the registry itself (Basic) or to the token server it names (Bearer), never to a token
//! server without TLS unless the registry has none either.

mod challenge;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Response, Url};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tracing::debug;

pub(super) use challenge::Challenge;

use super::credentials::{Credential, Credentials};
use super::hosts::Endpoint;
use super::http::{Client, is_passing, retry_after};
use crate::error::{Error, ErrorKind};

/// Token answers are a few kilobytes.
const TOKEN_BYTES_MAX: u64 = 1 << 20;
/// What the specification says of a token without a lifetime.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// A token is renewed this long before its end, or after nine tenths of its life, whichever is later.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// The logins of one repository.
pub(super) struct Auth {
    client: Client,
    endpoint: Endpoint,
    credentials: Arc<dyn Credentials>,
    state: Mutex<State>,
}

/// Guards the two below; never held across an await.
#[derive(Default)]
struct State {
    challenge: Option<Challenge>,
    /// by scope
    tokens: HashMap<String, Arc<OnceCell<Token>>>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Option<Instant>,
}

/// A header that was good when it was given, and where it came from.
pub(super) struct Permit {
    pub(super) header: HeaderValue,
    scope: String,
    cell: Arc<OnceCell<Token>>,
}

impl Auth {
    pub(super) fn new(client: Client, endpoint: Endpoint, credentials: Arc<dyn Credentials>) -> Auth {
        Auth { client, endpoint, credentials, state: Mutex::default() }
    }

    /// What to send with a request of this scope: nothing until the registry has asked once.
    pub(super) async fn permit(&self, scope: &str) -> Result<Option<Permit>, Error> {
        let (challenge, cell) = {
            let mut state = self.state();
            let Some(challenge) = state.challenge.clone() else { return Ok(None) };
            let cell = state.tokens.entry(scope.to_owned()).or_default();
            if cell.get().is_some_and(|token| token.until.is_some_and(|until| until <= Instant::now())) {
                *cell = Arc::default();
            }
            (challenge, cell.clone())
        };
        let token = cell.get_or_try_init(|| self.log_in(&challenge, scope)).await?;
        Ok(Some(Permit { header: token.header.clone(), scope: scope.to_owned(), cell }))
    }

    /// The registry refused `used` (or nothing) and asks this. Another task may have logged in again meanwhile;
    /// then that login stays.
    pub(super) fn challenged(&self, challenge: Challenge, used: Option<&Permit>) {
        let mut state = self.state();
        if let Some(used) = used
            && state.tokens.get(&used.scope).is_some_and(|cell| Arc::ptr_eq(cell, &used.cell))
        {
            state.tokens.remove(&used.scope);
        }
        state.challenge = Some(challenge);
    }

    async fn log_in(&self, challenge: &Challenge, scope: &str) -> Result<Token, Error> {
        let registry = &self.endpoint.registry;
        let credential = self.credentials.for_host(registry).await;
        debug!(registry, scope, anonymous = credential.is_none(), "log in");
        match challenge {
            Challenge::Basic => {
                let doing = format!("log in to {registry}");
                let credential = credential.ok_or_else(|| {
                    let why =
                        format!("it wants a password and there is none for it: docker login {registry}");
                    Error::new(ErrorKind::Denied, doing.clone()).because(why)
                })?;
                let header = basic(&credential);
                Ok(Token { header: secret_header(&header, &doing)?, until: None })
            }
            Challenge::Bearer { realm, service, scope: asked } => {
                let question =
                    Question { realm, service: service.as_deref(), scopes: merge_scopes(scope, asked) };
                self.fetch_token(&question, credential.as_ref()).await
            }
        }
    }

    async fn fetch_token(
        &self,
        question: &Question<'_>,
        credential: Option<&Credential>,
    ) -> Result<Token, Error> {
        let registry = &self.endpoint.registry;
        let doing = format!("get a token for {registry}");
        let realm = Url::parse(question.realm)
            .map_err(|cause| Error::new(ErrorKind::Corrupt, doing.clone()).because(cause))?;
        if realm.scheme() != "https" && (self.endpoint.is_secure() || realm.scheme() != "http") {
            let why = "its token server has no TLS; credentials are not sent there";
            return Err(Error::new(ErrorKind::Denied, doing).because(why));
        }
        let mut backoff = self.client.backoff();
        let response = loop {
            let sent = self.ask_token(realm.clone(), question, credential, &doing).await;
            let pause = match sent {
                Ok(response) if is_passing(response.status()) => retry_after(response.headers()),
                Ok(response) => break response,
                Err(_) => None,
            };
            if !backoff.again(pause).await {
                break self.ask_token(realm.clone(), question, credential, &doing).await?;
            }
        };
        if !response.status().is_success() {
            let error = self.client.refusal(response, &doing).await;
            let remedy = format!(
                "log in to {registry} (credentials {})",
                if credential.is_some() { "used" } else { "none" }
            );
            return Err(error.within(remedy));
        }
        let asked_at = Instant::now();
        let body = self.client.read(response, TOKEN_BYTES_MAX, &doing).await?;
        let corrupt = |why: &'static str| Error::new(ErrorKind::Corrupt, doing.clone()).because(why);
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| corrupt("the answer is not a token document"))?;
        let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).filter(|t| !t.is_empty());
        let token = token.ok_or_else(|| corrupt("the answer holds no token"))?;
        let life =
            answer.expires_in.map_or(TOKEN_LIFETIME, Duration::from_secs).min(Duration::from_secs(86_400));
        let until = asked_at + (life * 9 / 10).max(life.saturating_sub(TOKEN_MARGIN));
        Ok(Token { header: secret_header(&format!("Bearer {token}"), &doing)?, until: Some(until) })
    }

    async fn ask_token(
        &self,
        mut realm: Url,
        question: &Question<'_>,
        credential: Option<&Credential>,
        doing: &str,
    ) -> Result<Response, Error> {
        let request = match credential {
            // An identity token is traded by OAuth's refresh.
            Some(Credential { username, secret }) if username.is_empty() => {
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", secret);
                form.append_pair("client_id", "soci").append_pair("scope", &question.scopes.join(" "));
                if let Some(service) = question.service {
                    form.append_pair("service", service);
                }
                self.client
                    .request(Method::POST, realm)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form.finish())
            }
            _ => {
                {
                    let mut query = realm.query_pairs_mut();
                    if let Some(service) = question.service {
                        query.append_pair("service", service);
                    }
                    for scope in &question.scopes {
                        query.append_pair("scope", scope);
                    }
                }
                let request = self.client.request(Method::GET, realm);
                match credential {
                    Some(credential) => {
                        request.header("authorization", secret_header(&basic(credential), doing)?)
                    }
                    None => request,
                }
            }
        };
        self.client.send(request, self.client.options.header_timeout, doing).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is inside is whole at every moment, so another's panic does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("registry", &self.endpoint.registry).finish_non_exhaustive()
    }
}

/// The challenge a refusal carries, if it is one we can answer: a 401, or what ECR answers to an expired login.
pub(super) fn challenge_of(headers: &HeaderMap) -> Option<Challenge> {
    challenge::parse(headers)
}

/// ECR says 403 when its twelve hours are over; the remedy is to log in anew.
pub(super) fn is_expired_login(body: &[u8]) -> bool {
    let said = super::http::server_message(body).to_lowercase();
    said.contains("token has expired") || said.contains("token is expired")
}

struct Question<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    scopes: Vec<String>,
}

fn basic(credential: &Credential) -> String {
    format!("Basic {}", STANDARD.encode(format!("{}:{}", credential.username, credential.secret)))
}

fn secret_header(value: &str, doing: &str) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::from_str(value)
        .map_err(|_| Error::new(ErrorKind::Corrupt, doing).because("the token cannot stand in a header"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// What we need and what was asked for, one entry a resource with all its actions.
fn merge_scopes(ours: &str, asked: &str) -> Vec<String> {
    let mut merged: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for scope in ours.split_whitespace().chain(asked.split_whitespace()) {
        let (resource, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
        merged.entry(resource).or_default().extend(actions.split(','));
    }
    let join = |(resource, actions): (&str, BTreeSet<&str>)| {
        format!("{resource}:{}", actions.into_iter().collect::<Vec<_>>().join(","))
    };
    merged.into_iter().map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_merge() {
        let check =
            |ours: &str, asked: &str, expected: &[&str]| assert_eq!(merge_scopes(ours, asked), expected);
        check("repository:a/b:pull", "", &["repository:a/b:pull"]);
        check("repository:a/b:pull", "repository:a/b:push,pull", &["repository:a/b:pull,push"]);
        check("repository:a:pull repository:b:pull", "", &["repository:a:pull", "repository:b:pull"]);
        check("", "registry:catalog:*", &["registry:catalog:*"]);
    }
}
