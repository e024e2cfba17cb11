//! A real registry (CNCF Distribution, Debian's `docker-registry`) on loopback, with its blobs in the lab's
//! folder; deleting is allowed, so that tests can take away what was there.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::machine::ensure_debian;
use crate::process::{Process, run};

const START_LIMIT: Duration = Duration::from_secs(30);
const HASH_LIMIT: Duration = Duration::from_secs(30);

/// See the module. Stopped with its lab.
#[derive(Debug)]
pub struct Registry {
    lab: Lab,
    folder: PathBuf,
    name: String,
    address: String,
    login: Option<(String, String)>,
    process: Mutex<Arc<Process>>,
}

impl Registry {
    pub fn start(lab: &Lab) -> Result<Registry> {
        Registry::begin(lab, None)
    }

    /// One that lets no request in without this name and password (Basic).
    pub fn with_login(lab: &Lab, user: &str, password: &str) -> Result<Registry> {
        ensure_debian(&["apache2-utils"])?;
        Registry::begin(lab, Some((user.to_owned(), password.to_owned())))
    }

    /// `127.0.0.1:PORT`, as image names begin.
    pub fn host(&self) -> &str {
        &self.address
    }

    /// Name and password, where one is needed.
    pub fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }

    /// Where its blobs lie: `docker/registry/v2/blobs/sha256/ab/abcd…/data` below it.
    pub fn storage(&self) -> PathBuf {
        self.folder.join("storage")
    }

    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    pub fn stop(&self) {
        self.process().stop();
    }

    /// Up again, at the same address with the same blobs.
    pub fn restart(&self) -> Result<()> {
        self.stop();
        let (process, _) = serve(&self.lab, &self.name, &self.folder, &self.address, self.login.is_some())?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }

    fn process(&self) -> Arc<Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn begin(lab: &Lab, login: Option<(String, String)>) -> Result<Registry> {
        ensure_debian(&["docker-registry"])?;
        let name = lab.free_name("registry");
        let folder = lab.folder(&name)?;
        if let Some((user, password)) = &login {
            let mut hash = Command::new("htpasswd");
            hash.args(["-nbB", user, password]);
            fs::write(folder.join("htpasswd"), run(hash, HASH_LIMIT)?)?;
        }
        let (process, address) = serve(lab, &name, &folder, "127.0.0.1:0", login.is_some())?;
        Ok(Registry { lab: lab.clone(), folder, name, address, login, process: Mutex::new(process) })
    }
}

/// Starts it at `address`; port 0 stands for a free one. Returns the address it listens on.
fn serve(
    lab: &Lab,
    name: &str,
    folder: &std::path::Path,
    address: &str,
    login: bool,
) -> Result<(Arc<Process>, String)> {
    let storage = folder.join("storage");
    let mut config = format!(
        "version: 0.1\n\
         log: {{level: info, formatter: json, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: '{}'}}, delete: {{enabled: true}}}}\n\
         http: {{addr: '{address}', secret: lab}}\n",
        storage.display()
    );
    if login {
        let file = folder.join("htpasswd");
        config += &format!("auth: {{htpasswd: {{realm: lab, path: '{}'}}}}\n", file.display());
    }
    let path = folder.join("config.yml");
    fs::write(&path, config).context("write the registry's configuration")?;
    let mut command = lab.command("docker-registry");
    command.arg("serve").arg(&path);
    // A restarted one appends to its log: only what comes from now on counts.
    let log = lab.path().join(format!("{name}.log"));
    let before = usize::try_from(log.metadata().map_or(0, |data| data.len()))?;
    let process = lab.start(name, command)?;
    let listening = || {
        let said = process.log();
        let said = said.get(before..).unwrap_or_default();
        Ok(said.lines().find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect::<String>())
        }))
    };
    let address = process.wait_until("the registry's address", START_LIMIT, listening)?;
    Ok((process, address))
}
