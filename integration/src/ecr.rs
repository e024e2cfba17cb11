//! A look-alike of Amazon ECR, in front of a registry that asks for no credentials. The API wants Basic
//! credentials, user `AWS` and a token that expires, and says 403 to an expired one, in the words that ECR has for
//! it. A blob is not sent: GET is answered with 307 to another port, the store, and a signature in the query; the
//! store takes a signature until it expires, and says 403 in XML afterwards.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::lab::Lab;
use crate::link::{Answer, Link, Request};

const USER: &str = "AWS";
/// No test waits for that: expiry is on demand.
const SIGNATURE_SECONDS: u64 = 3600;

/// See the module. Closed with its lab.
#[derive(Debug)]
pub struct Ecr {
    lab: Lab,
    /// what image names begin with
    pub api: Link,
    /// where blobs come from
    pub store: Link,
    gates: Arc<Gates>,
}

#[derive(Debug)]
struct Gates {
    /// the one token that is good now, and for how many more requests
    token: Mutex<(u64, Option<u64>)>,
    /// the one signature that is good now
    signature: AtomicU64,
}

impl Ecr {
    /// Stands before the registry at `target`. Programs of the lab get its first token.
    pub fn start(lab: &Lab, target: &str) -> Result<Ecr> {
        let gates = Arc::new(Gates { token: Mutex::new((1, None)), signature: AtomicU64::new(1) });
        let at_store = gates.clone();
        let store = Link::with_gate(lab, target, move |request| at_store.store(request))?;
        let (at_api, place) = (gates.clone(), store.host().to_owned());
        let api = Link::with_gate(lab, target, move |request| at_api.api(request, &place))?;
        let ecr = Ecr { lab: lab.clone(), api, store, gates };
        ecr.hand_out()?;
        Ok(ecr)
    }

    /// The token that was good is not any more, and no program has the new one.
    pub fn expire_token(&self) {
        let mut token = self.gates.token();
        *token = (token.0 + 1, None);
    }

    /// It expires by itself when so many more requests have been let in.
    pub fn expire_token_after(&self, requests: u64) {
        self.gates.token().1 = Some(requests);
    }

    /// Puts the token that is good now where the lab's programs look for it.
    pub fn hand_out(&self) -> Result<()> {
        let secret = STANDARD.encode(format!("{USER}:{}", word(self.gates.token().0)));
        let file = json!({"auths": {self.api.host(): {"auth": secret}}});
        let folder = self.lab.folder(crate::lab::DOCKER_CONFIG)?;
        // In one step: a program may be reading it.
        let path = folder.join("config.json");
        fs::write(path.with_extension("new"), file.to_string())?;
        fs::rename(path.with_extension("new"), path).context("hand out a token")
    }

    /// Every URL of the store that was given out until now is refused.
    pub fn expire_signatures(&self) {
        self.gates.signature.fetch_add(1, Ordering::SeqCst);
    }
}

impl Gates {
    fn token(&self) -> MutexGuard<'_, (u64, Option<u64>)> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, request: &Request, store: &str) -> Option<Answer> {
        let Some(shown) = request.header("authorization") else {
            let challenge = "Basic realm=\"https://api.ecr.example/\",service=\"ecr.amazonaws.com\"";
            return Some(Answer::new(401).header("WWW-Authenticate", challenge));
        };
        let mut token = self.token();
        let good = format!("Basic {}", STANDARD.encode(format!("{USER}:{}", word(token.0))));
        if shown != good {
            let why = "Your authorization token has expired. Reauthenticate and try again.";
            let said = json!({"errors": [{"code": "DENIED", "message": why}]});
            return Some(Answer::new(403).body(&said.to_string()));
        }
        if let Some(left) = &mut token.1 {
            *left = left.saturating_sub(1);
            if *left == 0 {
                *token = (token.0 + 1, None);
            }
        }
        drop(token);
        let is_blob = request.method == "GET" && request.path.contains("/blobs/sha256:");
        is_blob.then(|| {
            let signed = format!(
                "http://{store}{}?X-Amz-Expires={SIGNATURE_SECONDS}&X-Amz-Signature={}",
                request.path,
                self.signature.load(Ordering::SeqCst)
            );
            Answer::new(307).header("Location", &signed)
        })
    }

    fn store(&self, request: &Request) -> Option<Answer> {
        let good = format!("X-Amz-Signature={}", self.signature.load(Ordering::SeqCst));
        let is_signed = request.path.split(['?', '&']).any(|part| part == good);
        // S3 refuses a request with credentials of another kind, too.
        if is_signed && request.header("authorization").is_none() {
            return None;
        }
        let said = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
        Some(Answer::new(403).header("Content-Type", "application/xml").body(said))
    }
}

fn word(token: u64) -> String {
    format!("token-{token}")
}
