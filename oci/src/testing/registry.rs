//! A registry in this process, on a free port of the loopback, and beside it a second port that plays the object
//! store blobs are redirected to. What it does besides serving is said by [`Rules`] and by faults queued for the
//! next request that fits. Every request is recorded.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::wire::{self, Answer, Request};
use crate::digest::Digest;
use crate::image::{Descriptor, Index, canonical_json, media_type};
use crate::reference::Reference;

/// How one logs in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Login {
    #[default]
    Open,
    Basic {
        username: String,
        password: String,
    },
    /// a token from `/token`, which wants name and password (or the password as refresh token)
    Bearer {
        username: String,
        password: String,
    },
}

/// What it does besides serving.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub login: Login,
    /// `expires_in` of tokens
    pub token_seconds: Option<u64>,
    /// blobs are redirected to the second port by a signature good for this many requests
    pub redirect_uses: Option<u32>,
    /// a mount answers 202 and wants the bytes
    pub no_mount: bool,
    /// the referrers API is unknown
    pub no_referrers: bool,
    /// referrers come in pages of this many
    pub referrers_page: Option<usize>,
    /// neither `Location` nor `Docker-Content-Digest` after a manifest
    pub discourteous: bool,
    /// one PUT may carry this many bytes
    pub put_bytes_max: Option<usize>,
}

/// What goes wrong with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// this status, with these headers and this body
    Status(u16, Vec<(String, String)>, String),
    /// the connection is closed without an answer
    Drop,
    /// the body breaks after this many bytes
    Cut(usize),
    /// 200 and the whole blob for a range
    IgnoreRange,
    /// bytes of the right number that are other bytes
    WrongBytes,
    /// 206 with a range one byte further on
    WrongRange,
}

/// A request as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    /// it came to the second port
    pub at_storage: bool,
}

/// See the module. Stops serving when dropped.
#[derive(Debug)]
pub struct TestRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
    servers: Vec<AbortHandle>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    storage: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rules: Rules,
    faults: VecDeque<(String, String, Fault)>,
    requests: Vec<Recorded>,
    blobs: BTreeMap<(String, Digest), Bytes>,
    manifests: BTreeMap<(String, String), (String, Bytes)>,
    uploads: BTreeMap<u64, Vec<u8>>,
    /// signature -> uses left, blob
    signed: BTreeMap<u64, (u32, Bytes)>,
    counter: u64,
    token: u64,
}

impl TestRegistry {
    /// Begins to serve.
    pub async fn start(rules: Rules) -> std::io::Result<TestRegistry> {
        let front = TcpListener::bind("127.0.0.1:0").await?;
        let back = TcpListener::bind("127.0.0.1:0").await?;
        let (address, storage) = (front.local_addr()?, back.local_addr()?);
        let state = Mutex::new(State { rules, ..State::default() });
        let shared = Arc::new(Shared { address, storage, state });
        let servers = [(front, false), (back, true)]
            .map(|(listener, at_storage)| {
                tokio::spawn(serve(listener, shared.clone(), at_storage)).abort_handle()
            })
            .into();
        Ok(TestRegistry { address, shared, servers })
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The name of something here: `REPO:TAG`, `REPO@DIGEST`.
    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().expect("tests use names that parse")
    }

    pub fn set_rules(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.shared.state().rules);
    }

    /// The next request of this method (empty: any) whose path contains `path` meets this.
    pub fn fail_next(&self, method: &str, path: &str, fault: Fault) {
        self.shared.state().faults.push_back((method.to_owned(), path.to_owned(), fault));
    }

    /// All tokens given so far are refused from now on.
    pub fn revoke_tokens(&self) {
        self.shared.state().token += 1;
    }

    pub fn add_blob(&self, repository: &str, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        self.shared.state().blobs.insert((repository.to_owned(), descriptor.digest), bytes);
        descriptor
    }

    /// Puts a manifest there, under its digest and, if it is not empty, under a tag.
    pub fn add_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media_type, bytes);
        let entry = (media_type.to_owned(), Bytes::copy_from_slice(bytes));
        let mut state = self.shared.state();
        for name in [descriptor.digest.to_string(), tag.to_owned()] {
            if !name.is_empty() {
                state.manifests.insert((repository.to_owned(), name), entry.clone());
            }
        }
        descriptor
    }

    /// A manifest's bytes, by tag or digest.
    pub fn manifest(&self, repository: &str, name: &str) -> Option<Bytes> {
        let state = self.shared.state();
        state.manifests.get(&(repository.to_owned(), name.to_owned())).map(|(_, bytes)| bytes.clone())
    }

    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        self.shared.state().blobs.get(&(repository.to_owned(), *digest)).cloned()
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().requests.clone()
    }

    /// How many requests of this method had a path that contains `path`.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.requests().iter().filter(|r| r.method == method && r.path.contains(path)).count()
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, at_storage: bool) {
    // Aborting this task drops the set, and with it every connection.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(converse(stream, shared.clone(), at_storage));
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, shared: Arc<Shared>, at_storage: bool) {
    let mut stream = BufReader::new(stream);
    while let Ok(Some(request)) = wire::read(&mut stream).await {
        let Some(answer) = shared.answer(&request, at_storage) else { return };
        if !matches!(wire::write(stream.get_mut(), &request, &answer).await, Ok(true)) {
            return;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: the connection is closed.
    fn answer(&self, request: &Request, at_storage: bool) -> Option<Answer> {
        let mut state = self.state();
        state.requests.push(Recorded {
            method: request.method.clone(),
            path: request.path.clone(),
            authorization: request.header("authorization").map(str::to_owned),
            range: request.header("range").map(str::to_owned),
            at_storage,
        });
        let fits = |(method, path, _): &(String, String, Fault)| {
            (method.is_empty() || *method == request.method) && request.path.contains(path.as_str())
        };
        let fault = state.faults.iter().position(fits).and_then(|at| state.faults.remove(at)).map(|f| f.2);
        match &fault {
            Some(Fault::Drop) => return None,
            Some(Fault::Status(status, headers, body)) => {
                let mut answer = Answer::new(*status).body(body.as_bytes());
                answer.headers.clone_from(headers);
                return Some(answer);
            }
            _ => {}
        }
        let mut request = request.clone();
        if fault == Some(Fault::IgnoreRange) {
            request.headers.remove("range");
        }
        let mut answer = if at_storage { state.storage(&request) } else { self.front(&mut state, &request) };
        match fault {
            Some(Fault::Cut(bytes)) => answer.cut = Some(bytes),
            Some(Fault::WrongBytes) => answer.body.iter_mut().for_each(|byte| *byte ^= 0xff),
            Some(Fault::WrongRange) => {
                for (name, value) in &mut answer.headers {
                    if name == "content-range" {
                        *value = value.replacen("bytes ", "bytes 1", 1);
                    }
                }
            }
            _ => {}
        }
        Some(answer)
    }

    fn front(&self, state: &mut State, request: &Request) -> Answer {
        if request.path == "/token" {
            return state.give_token(request);
        }
        if let Some(refusal) = self.refuse(state, request) {
            return refusal;
        }
        let Some(path) = request.path.strip_prefix("/v2/") else { return Answer::new(404) };
        if path.is_empty() {
            return Answer::new(200).body("{}");
        }
        for (kind, handler) in [
            ("/manifests/", State::manifest as fn(&mut State, &Request, &str, &str) -> Answer),
            ("/referrers/", State::referrers),
            ("/blobs/uploads/", State::upload),
        ] {
            if let Some((repository, name)) = path.split_once(kind) {
                return handler(state, request, repository, name);
            }
        }
        let Some((repository, digest)) = path.split_once("/blobs/") else { return Answer::new(404) };
        let digest = digest.parse::<Digest>().ok();
        let found = digest.and_then(|digest| state.blobs.get(&(repository.to_owned(), digest)).cloned());
        let Some(bytes) = found else { return unknown("BLOB_UNKNOWN") };
        if let Some(uses) = state.rules.redirect_uses
            && request.method == "GET"
        {
            state.counter += 1;
            let signature = state.counter;
            state.signed.insert(signature, (uses, bytes));
            let location = format!("http://{}/signed?signature={signature}", self.storage);
            return Answer::new(307).with("location", location);
        }
        ranged(request, &bytes)
    }

    /// The challenge, where the request lacks what the rules want.
    fn refuse(&self, state: &State, request: &Request) -> Option<Answer> {
        let shown = request.header("authorization").unwrap_or_default();
        let (wanted, challenge) = match &state.rules.login {
            Login::Open => return None,
            Login::Basic { username, password } => {
                (basic(username, password), "Basic realm=\"test\"".to_owned())
            }
            Login::Bearer { .. } => {
                let scope = request.path.strip_prefix("/v2/").and_then(|path| {
                    let cuts = ["/manifests/", "/blobs/", "/referrers/"];
                    cuts.iter().find_map(|cut| Some(path.split_once(cut)?.0))
                });
                let scope = scope.map_or(String::new(), |name| format!(",scope=\"repository:{name}:pull\""));
                let challenge =
                    format!("Bearer realm=\"http://{}/token\",service=\"test\"{scope}", self.address);
                (format!("Bearer token-{}", state.token), challenge)
            }
        };
        if shown == wanted {
            return None;
        }
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Some(Answer::new(401).with("www-authenticate", challenge).body(body))
    }
}

impl State {
    fn give_token(&mut self, request: &Request) -> Answer {
        let Login::Bearer { username, password } = &self.rules.login else { return Answer::new(404) };
        let form: BTreeMap<String, String> =
            url::form_urlencoded::parse(&request.body).into_owned().collect();
        let refreshed = form.get("refresh_token") == Some(password);
        if !refreshed && request.header("authorization") != Some(&basic(username, password)) {
            return Answer::new(401).body(r#"{"errors":[{"code":"DENIED","message":"wrong password"}]}"#);
        }
        let life = self.rules.token_seconds.map_or(String::new(), |s| format!(",\"expires_in\":{s}"));
        Answer::new(200).body(format!("{{\"token\":\"token-{}\"{life}}}", self.token))
    }

    fn storage(&mut self, request: &Request) -> Answer {
        let signature = request.query("signature").and_then(|text| text.parse().ok()).unwrap_or(0);
        let Some((uses, bytes)) = self.signed.get_mut(&signature).filter(|(uses, _)| *uses > 0) else {
            return Answer::new(403).body("<Error><Code>AccessDenied</Code></Error>");
        };
        *uses -= 1;
        ranged(request, &bytes.clone())
    }

    fn manifest(&mut self, request: &Request, repository: &str, name: &str) -> Answer {
        if request.method == "PUT" {
            let digest = Digest::sha256(&request.body);
            let media_type = request.header("content-type").unwrap_or_default().to_owned();
            let entry = (media_type, Bytes::from(request.body.clone()));
            self.manifests.insert((repository.to_owned(), digest.to_string()), entry.clone());
            self.manifests.insert((repository.to_owned(), name.to_owned()), entry);
            let subject = crate::image::Manifest::parse(&request.body, "read manifest")
                .ok()
                .and_then(|manifest| manifest.subject)
                .filter(|_| !self.rules.no_referrers);
            let mut created = Answer::new(201);
            if let Some(subject) = subject {
                created = created.with("oci-subject", subject.digest.to_string());
            }
            if self.rules.discourteous {
                return created;
            }
            let location = format!("/v2/{repository}/manifests/{digest}");
            return created.with("location", location).with("docker-content-digest", digest.to_string());
        }
        let found = self.manifests.get(&(repository.to_owned(), name.to_owned()));
        let Some((media_type, bytes)) = found else { return unknown("MANIFEST_UNKNOWN") };
        let answer = Answer::new(200).with("content-type", media_type).body(bytes.to_vec());
        if self.rules.discourteous {
            return answer;
        }
        answer.with("docker-content-digest", Digest::sha256(bytes).to_string())
    }

    fn referrers(&mut self, request: &Request, repository: &str, digest: &str) -> Answer {
        if self.rules.no_referrers {
            return Answer::new(404).body("404 page not found");
        }
        let mut found = Vec::new();
        for ((place, name), (media_type, bytes)) in &self.manifests {
            let Ok(manifest) = crate::image::Manifest::parse(bytes, "read manifest") else { continue };
            let subject = manifest.subject.map(|subject| subject.digest.to_string());
            if place == repository && name.contains(':') && subject.as_deref() == Some(digest) {
                let mut descriptor = Descriptor::of(media_type, bytes);
                descriptor.artifact_type = manifest.config.media_type;
                found.push(descriptor);
            }
        }
        let from = request.query("from").and_then(|text| text.parse().ok()).unwrap_or(0);
        let page = self.rules.referrers_page.unwrap_or(usize::MAX);
        let rest = found.split_off(from.min(found.len()));
        let more = rest.len() > page;
        let list = Index::of(rest.into_iter().take(page).collect());
        let answer = Answer::new(200).with("content-type", media_type::OCI_INDEX).body(canonical_json(&list));
        if !more {
            return answer;
        }
        answer.with("link", format!("<{}?from={}>; rel=\"next\"", request.path, from + page))
    }

    fn upload(&mut self, request: &Request, repository: &str, id: &str) -> Answer {
        let at = |id: u64| format!("/v2/{repository}/blobs/uploads/{id}?state=s");
        if request.method == "POST" {
            let mount = request.query("mount").and_then(|digest| digest.parse::<Digest>().ok());
            if let (Some(digest), Some(from), false) = (mount, request.query("from"), self.rules.no_mount)
                && let Some(bytes) = self.blobs.get(&(from.to_owned(), digest)).cloned()
            {
                self.blobs.insert((repository.to_owned(), digest), bytes);
                return Answer::new(201);
            }
            self.counter += 1;
            self.uploads.insert(self.counter, Vec::new());
            return Answer::new(202).with("location", at(self.counter));
        }
        let number = id.parse().unwrap_or(0);
        if self.rules.put_bytes_max.is_some_and(|max| request.body.len() > max) && request.method == "PUT" {
            return Answer::new(413);
        }
        let Some(upload) = self.uploads.get_mut(&number) else { return unknown("BLOB_UPLOAD_UNKNOWN") };
        upload.extend_from_slice(&request.body);
        if request.method == "PATCH" {
            return Answer::new(202).with("location", at(number));
        }
        let upload = self.uploads.remove(&number).unwrap_or_default();
        let digest = Digest::sha256(&upload);
        if request.query("digest") != Some(&digest.to_string()) {
            return Answer::new(400).body(r#"{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}"#);
        }
        self.blobs.insert((repository.to_owned(), digest), upload.into());
        Answer::new(201)
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

fn unknown(code: &str) -> Answer {
    Answer::new(404).body(format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"unknown\"}}]}}"))
}

/// The bytes, or the range of them the request wants.
fn ranged(request: &Request, bytes: &[u8]) -> Answer {
    let range = request.header("range").and_then(|value| value.strip_prefix("bytes="));
    let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
        return Answer::new(200).body(bytes);
    };
    let first: usize = first.parse().unwrap_or(0);
    let last = last.parse().unwrap_or(usize::MAX).min(bytes.len().saturating_sub(1));
    if first > last {
        return Answer::new(416);
    }
    let total = bytes.len();
    Answer::new(206).with("content-range", format!("bytes {first}-{last}/{total}")).body(&bytes[first..=last])
}
