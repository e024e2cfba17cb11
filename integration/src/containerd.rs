//! A real containerd of the lab's own: root, state, socket and configuration; without CRI unless it is asked for, and
//! without networks of its own (containers use the host's). Its clients are real too: `ctr`, and whatever a test starts. Namespaces
//! carry the lab's name, because runc's state and the cgroups of two containerds lie in the same places.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::machine::ensure_debian;
use crate::process::{Process, run, wait_until};

const START_LIMIT: Duration = Duration::from_secs(30);
/// A pull of a large image on a busy machine.
const CTR_LIMIT: Duration = Duration::from_secs(600);
/// A call while everything is taken down.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// What is different from the usual.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Snapshotters of others: name and socket.
    pub proxies: Vec<(String, PathBuf)>,
    /// What containerd is told that they can do.
    pub capabilities: &'static [&'static str],
    /// With the plugin that Kubernetes talks to, and this image for the sandboxes of its pods.
    pub cri: Option<String>,
    /// More TOML, appended to the configuration.
    pub extra: String,
    /// A folder with `containerd`, `ctr` and the shim, instead of Debian's.
    pub binaries: Option<PathBuf>,
}

/// See the module. Stopped with its lab, containers first.
#[derive(Debug)]
pub struct Containerd {
    lab: Lab,
    client: Client,
    options: Options,
    process: Mutex<Arc<Process>>,
}

/// The namespace that `ctr` is called with.
#[derive(Debug, Clone)]
struct Client {
    lab_folder: PathBuf,
    address: PathBuf,
    namespace: String,
    program: PathBuf,
}

impl Containerd {
    pub fn start(lab: &Lab) -> Result<Containerd> {
        Containerd::start_with(lab, Options::default())
    }

    /// With one snapshotter of ours, named `soci`.
    pub fn start_with_soci(lab: &Lab, socket: &Path) -> Result<Containerd> {
        let proxies = vec![("soci".to_owned(), socket.to_owned())];
        Containerd::start_with(lab, Options { proxies, ..Options::default() })
    }

    pub fn start_with(lab: &Lab, options: Options) -> Result<Containerd> {
        ensure_debian(&["containerd", "runc"])?;
        let folder = lab.folder("containerd")?;
        let address = lab.containerd_address();
        fs::write(folder.join("config.toml"), configuration(&folder, &address, &options))?;
        if let Some((host, _)) = options.cri.as_ref().and_then(|image| image.split_once('/')) {
            // Or it would try TLS first.
            let hosts = lab.folder(&format!("containerd/certs.d/{host}"))?;
            fs::write(hosts.join("hosts.toml"), format!("server = \"http://{host}\"\n"))?;
        }
        let program = options.binaries.as_ref().map_or("ctr".into(), |folder| folder.join("ctr"));
        let lab_folder = lab.path().to_owned();
        let client = Client { lab_folder, address, namespace: lab.word(), program };
        let process = serve(lab, &options)?;
        client.end_containers_with(lab)?;
        Ok(Containerd { lab: lab.clone(), client, options, process: Mutex::new(process) })
    }

    pub fn address(&self) -> &Path {
        &self.client.address
    }

    /// The namespace of [`Containerd::ctr`]. Others must begin with it.
    pub fn namespace(&self) -> &str {
        &self.client.namespace
    }

    pub fn folder(&self) -> PathBuf {
        self.lab.path().join("containerd")
    }

    pub fn log(&self) -> String {
        self.process().log()
    }

    /// Runs `ctr` in the lab's namespace; what it printed.
    pub fn ctr(&self, words: &[&str]) -> Result<String> {
        self.ctr_in(self.namespace(), words)
    }

    pub fn ctr_in(&self, namespace: &str, words: &[&str]) -> Result<String> {
        self.lab.run(self.client.command(namespace, words), CTR_LIMIT)
    }

    /// Pulls and unpacks as containerd does it.
    pub fn pull(&self, reference: &str, snapshotter: &str) -> Result<()> {
        let words = ["image", "pull", "--plain-http", "--snapshotter", snapshotter, reference];
        self.ctr(&words).map(|_| ())
    }

    /// Runs a program in a new container, with the host's network, to its end; what it printed.
    pub fn run(&self, reference: &str, snapshotter: &str, id: &str, words: &[&str]) -> Result<String> {
        let mut all = vec!["run", "--rm", "--net-host", "--snapshotter", snapshotter, reference, id];
        all.extend(words);
        self.ctr(&all)
    }

    pub fn stop(&self) {
        self.process().stop();
    }

    pub fn kill(&self) {
        self.process().kill();
    }

    /// Up again with the same state, whatever ended it.
    pub fn restart(&self) -> Result<()> {
        self.stop();
        let process = serve(&self.lab, &self.options)?;
        self.client.end_containers_with(&self.lab)?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }

    fn process(&self) -> Arc<Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Client {
    fn command(&self, namespace: &str, words: &[&str]) -> std::process::Command {
        let mut command = Lab::command_in(&self.lab_folder, &self.program);
        command.arg("--address").arg(&self.address).args(["--namespace", namespace]).args(words);
        command
    }

    fn ask(&self, namespace: &str, words: &[&str]) -> String {
        run(self.command(namespace, words), CLOSE_LIMIT).unwrap_or_default()
    }

    /// To be called after a process was started: what is added later is done earlier, so that containers go while there is
    /// a containerd to ask.
    fn end_containers_with(&self, lab: &Lab) -> Result<()> {
        let closing = self.clone();
        lab.on_close(move || {
            // A client would wait for one that is gone.
            if UnixStream::connect(&closing.address).is_ok() {
                closing.end_containers();
            }
        })
    }

    /// Kills and removes every container. What cannot be asked for any more is left to the lab's own sweep.
    fn end_containers(&self) {
        let namespaces = self.ask(&self.namespace, &["namespaces", "ls", "-q"]);
        for namespace in namespaces.lines() {
            for task in self.ask(namespace, &["tasks", "ls", "-q"]).lines() {
                self.ask(namespace, &["tasks", "kill", "-s", "SIGKILL", "-a", task]);
                // It is removable once it has ended.
                let removed = || match run(self.command(namespace, &["tasks", "rm", "-f", task]), CLOSE_LIMIT)
                {
                    Ok(_) => Ok(Some(())),
                    Err(_) => Ok(self.ask(namespace, &["tasks", "ls", "-q"]).is_empty().then_some(())),
                };
                let _ = wait_until("the end of a container", CLOSE_LIMIT, removed);
            }
            for container in self.ask(namespace, &["containers", "ls", "-q"]).lines() {
                self.ask(namespace, &["containers", "rm", container]);
            }
        }
    }
}

fn serve(lab: &Lab, options: &Options) -> Result<Arc<Process>> {
    let program = match &options.binaries {
        Some(folder) => folder.join("containerd"),
        None => "containerd".into(),
    };
    let mut command = lab.command(program);
    command.arg("--config").arg(lab.path().join("containerd/config.toml"));
    if let Some(folder) = &options.binaries {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", folder.display()));
    }
    let log = lab.path().join("containerd.log");
    let before = usize::try_from(log.metadata().map_or(0, |data| data.len()))?;
    let process = lab.start("containerd", command).context("start containerd")?;
    process.wait_until("containerd", START_LIMIT, || {
        let said = process.log();
        Ok(said.get(before..).unwrap_or_default().contains("containerd successfully booted").then_some(()))
    })?;
    Ok(process)
}

fn configuration(folder: &Path, address: &Path, options: &Options) -> String {
    let disabled = match options.cri {
        Some(_) => "[]",
        None => "[\"io.containerd.grpc.v1.cri\"]",
    };
    // Debian's knows 2 only; 2.1 has other names for CRI in 3.
    let version = if options.binaries.is_some() { 3 } else { 2 };
    let folder = folder.display();
    let mut text = format!(
        "version = {version}\n\
         root = \"{folder}/root\"\n\
         state = \"{folder}/state\"\n\
         disabled_plugins = {disabled}\n\
         [grpc]\n\
         address = \"{}\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n\
         path = \"{folder}/opt\"\n",
        address.display()
    );
    for (name, socket) in &options.proxies {
        let socket = socket.display();
        let capabilities = options.capabilities;
        text += &format!(
            "[proxy_plugins.{name}]\ntype = \"snapshot\"\naddress = \"{socket}\"\ncapabilities = {capabilities:?}\n"
        );
    }
    if let Some(sandbox) = &options.cri {
        text += &pods(&folder.to_string(), version, sandbox);
    }
    text + &options.extra
}

/// What CRI needs in a lab: nothing of the machine's own, and nothing that only one containerd of a machine can have.
fn pods(folder: &str, version: u32, sandbox: &str) -> String {
    let network = format!("conf_dir = \"{folder}/cni\"\nbin_dir = \"{folder}/cni\"\n");
    // Sandboxes want to be spared by the kernel more than everything else, which not every machine's root may ask for.
    let unspared = "restrict_oom_score_adj = true";
    match version {
        2 => format!(
            "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{sandbox}\"\n{unspared}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{folder}/certs.d\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n{network}"
        ),
        _ => format!(
            "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{sandbox}\"\n\
             [plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"{folder}/certs.d\"\n\
             [plugins.\"io.containerd.cri.v1.runtime\"]\n{unspared}\n\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\n{network}\
             [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n"
        ),
    }
}
