//! Credentials for registries, from Docker's configuration file and the credential helpers it names.
//!
//! They are looked up anew for each login (`auth`) and not kept: passwords of cloud registries live for hours. A secret
//! shows in no log, error or `Debug`.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tracing::{debug, warn};

use crate::blob::BoxFuture;
use crate::error::{Error, ErrorKind};

/// A configuration file or a helper's answer longer than this is not one.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// A helper may ask a cloud service; one that waits for a human must not hold up a pull for ever.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// What Docker calls its own registry in its configuration.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A user's name and secret. An empty name means that the secret is an identity (refresh) token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub username: String,
    pub secret: String,
}

impl Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A source of credentials. Asked at every login; answers None for "go anonymously", also where looking them up
/// failed (which the implementation logs): the registry may not need any.
pub trait Credentials: Send + Sync {
    /// `host` as image names have it: `host[:port]`, `docker.io`.
    fn for_host<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Option<Credential>>;
}

/// No credentials, for any registry.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn for_host<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Option<Credential>> {
        Box::pin(std::future::ready(None))
    }
}

/// These, for whichever registry asks.
impl Credentials for Credential {
    fn for_host<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Option<Credential>> {
        Box::pin(std::future::ready(Some(self.clone())))
    }
}

/// Docker's `config.json`, read anew each time.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    folder: Option<PathBuf>,
    helpers: Option<PathBuf>,
}

impl DockerConfig {
    /// `$DOCKER_CONFIG`, else `$HOME/.docker`.
    pub fn from_env() -> DockerConfig {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
        DockerConfig { folder, helpers: None }
    }

    /// The folder that holds `config.json`.
    pub fn in_folder(folder: impl Into<PathBuf>) -> DockerConfig {
        DockerConfig { folder: Some(folder.into()), helpers: None }
    }

    /// Look for `docker-credential-…` in this folder and not in `PATH`.
    #[must_use]
    pub fn with_helpers_in(mut self, folder: impl Into<PathBuf>) -> DockerConfig {
        self.helpers = Some(folder.into());
        self
    }

    async fn look_up(&self, host: &str) -> Result<Option<Credential>, Error> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let Some(file) = read_config(&folder.join("config.json")).await? else { return Ok(None) };
        let key = if host == "docker.io" { DOCKER_HUB_KEY } else { host };
        let helper = file.cred_helpers.get(key).or_else(|| file.cred_helpers.get(host));
        if let Some(helper) = helper.or(file.creds_store.as_ref()).filter(|name| !name.is_empty()) {
            let found = self.ask_helper(helper, key).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        let exact = file.auths.get(key);
        let entry =
            exact.or_else(|| file.auths.iter().find(|(name, _)| host_of(name) == host).map(|(_, e)| e));
        entry.map_or(Ok(None), |entry| entry.credential(host))
    }

    async fn ask_helper(&self, name: &str, key: &str) -> Result<Option<Credential>, Error> {
        let doing = format!("ask credential helper {name} for {key}");
        if name.contains(['/', '\0']) {
            return Err(Error::new(ErrorKind::Invalid, doing).because("its name is not a program's name"));
        }
        let program = format!("docker-credential-{name}");
        let program = self.helpers.as_ref().map_or_else(|| PathBuf::from(&program), |dir| dir.join(&program));
        let answer = tokio::time::timeout(HELPER_TIMEOUT, run_helper(&program, key, &doing)).await;
        let Ok(answer) = answer else {
            let why = format!("no answer within {} s", HELPER_TIMEOUT.as_secs());
            return Err(Error::new(ErrorKind::Unreachable, doing).because(why));
        };
        let Some(output) = answer? else { return Ok(None) };
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            username: String,
            secret: String,
        }
        // The cause is left out: serde's message may quote the answer.
        let answer: Answer = serde_json::from_slice(&output)
            .map_err(|_| Error::new(ErrorKind::Corrupt, doing).because("its answer is not a credential"))?;
        Ok(Some(Credential { username: user_or_token(answer.username), secret: answer.secret })
            .filter(|credential| !credential.secret.is_empty()))
    }
}

impl Credentials for DockerConfig {
    fn for_host<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Option<Credential>> {
        Box::pin(async move {
            self.look_up(host).await.unwrap_or_else(|error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                warn!(host, cause, "go anonymously: {error}");
                None
            })
        })
    }
}

/// The helper's output, or None where it has no credentials for this server.
async fn run_helper(program: &Path, key: &str, doing: &str) -> Result<Option<Vec<u8>>, Error> {
    let io = |cause| Error::io(doing, cause);
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(io)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input may be gone already; its answer tells.
        let _ = stdin.write_all(key.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(CONFIG_BYTES_MAX).read_to_end(&mut output).await.map_err(io)?;
    }
    let status = child.wait().await.map_err(io)?;
    if status.success() {
        return Ok(Some(output));
    }
    let said = String::from_utf8_lossy(&output);
    if said.contains("credentials not found") {
        debug!(key, "credential helper has none");
        return Ok(None);
    }
    Err(Error::new(ErrorKind::Denied, doing).because(format!("it ends with {status}")))
}

async fn read_config(path: &Path) -> Result<Option<ConfigFile>, Error> {
    let doing = format!("read {}", path.display());
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::io(doing, cause)),
    };
    let mut bytes = Vec::new();
    let read = file.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes).await;
    read.map_err(|cause| Error::io(doing.clone(), cause))?;
    // serde's message would quote what it does not like, which may be a secret: line and column say enough.
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        let why = format!("it is not Docker's configuration (line {}, column {})", e.line(), e.column());
        Error::new(ErrorKind::Corrupt, doing).because(why)
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl Entry {
    fn credential(&self, host: &str) -> Result<Option<Credential>, Error> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credential { username: String::new(), secret: token.clone() }));
        }
        if let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            let refuse = || {
                let why = "its auth is not the base64 form of name:password";
                Error::new(ErrorKind::Corrupt, format!("read Docker's credentials of {host}")).because(why)
            };
            let bytes = STANDARD.decode(auth.trim()).or_else(|_| STANDARD_NO_PAD.decode(auth.trim()));
            let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(refuse)?;
            let (username, secret) = text.split_once(':').ok_or_else(refuse)?;
            let secret = secret.trim_end_matches('\0').to_owned();
            return Ok(Some(Credential { username: user_or_token(username.to_owned()), secret }));
        }
        let (Some(username), Some(secret)) = (&self.username, &self.password) else { return Ok(None) };
        Ok(Some(Credential { username: username.clone(), secret: secret.clone() }))
    }
}

/// Helpers and old files mark an identity token by this in place of a name.
fn user_or_token(username: String) -> String {
    if username == "<token>" { String::new() } else { username }
}

/// Old entries are URLs: `https://host/v1/`.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or_default()
}
