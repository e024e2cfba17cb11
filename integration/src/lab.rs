//! One test's own world: a folder with a short path (a unix socket's has 108 bytes), and everything that was
//! started in it. When a lab is closed (dropped, unwound, or interrupted) what it started is stopped in reverse
//! order, programs that those left behind are killed, mounts below its folder are detached, and the folder is
//! removed. A lab whose process was killed is closed by the next one that is made on this machine.

mod interrupt;
mod leftovers;
mod mounts;
mod traces;

use std::fmt::{self, Debug};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::machine::say;
use crate::process::{self, Process, tail};

/// Set to keep a lab's files after its end.
const KEEP: &str = "KEEP_LAB";
/// In the environment of everything a lab starts: its folder. What has it belongs to the lab, whatever started it.
const MARK: &str = "SOCI_LAB";
const PREFIX: &str = "soci-lab-";
/// Where a lab's programs look for Docker's configuration, so that the machine's own has no part in a test.
pub(crate) const DOCKER_CONFIG: &str = "docker";
/// A fixed place, so that configurations can name it before it is there.
const CONTAINERD: &str = "containerd/c.sock";
const MOUNTS_LIMIT: Duration = Duration::from_secs(30);
/// The file in a lab's folder that is locked while its process lives.
const OWNER: &str = "owner";

/// See the module. Clones name the same lab; it is closed when the one that [`Lab::new`] made goes.
pub struct Lab {
    inner: Arc<Inner>,
    is_owner: bool,
}

struct Inner {
    name: String,
    folder: PathBuf,
    state: Mutex<State>,
}

/// What closing has to do, newest last.
struct State {
    started: Vec<Box<dyn FnOnce() + Send>>,
    closed: bool,
    _owner: File,
}

impl Lab {
    /// A new lab; `name` (a word) is in its folder's name and in messages.
    pub fn new(name: &str) -> Result<Lab> {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            interrupt::watch();
            sweep();
        });
        let (folder, owner) = make_folder(name).context("make a lab")?;
        let state = Mutex::new(State { started: Vec::new(), closed: false, _owner: owner });
        let inner = Arc::new(Inner { name: name.to_owned(), folder, state });
        interrupt::remember(&inner);
        Ok(Lab { inner, is_owner: true })
    }

    pub fn path(&self) -> &Path {
        &self.inner.folder
    }

    /// A word that no other lab on this machine has: for namespaces, cgroups and the like.
    pub fn word(&self) -> String {
        word(&self.inner.folder)
    }

    /// Where the lab's containerd listens, if it has one.
    pub fn containerd_address(&self) -> PathBuf {
        self.path().join(CONTAINERD)
    }

    /// A folder below the lab's, made if it is not there.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir_all(&path).with_context(|| format!("make folder {name}"))?;
        Ok(path)
    }

    /// A folder below the lab's that was not there, called `name` or that with a number behind it.
    pub fn new_folder(&self, name: &str) -> Result<(String, PathBuf)> {
        loop {
            let free = self.free_name(name);
            let path = self.path().join(&free);
            match fs::create_dir(&path) {
                Ok(()) => return Ok((free, path)),
                // Another thread of the test was quicker.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("make folder {free}")),
            }
        }
    }

    /// A command that belongs to the lab.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        Lab::command_in(self.path(), program)
    }

    /// The same for a program that keeps something in `/var/lib`: it sees `home` there, and the machine's own is left
    /// alone.
    pub fn secluded(&self, program: impl AsRef<std::ffi::OsStr>, home: &Path) -> Command {
        let mut command = self.command("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /var/lib && exec \"$@\""]);
        command.arg(home).arg(program);
        command
    }

    /// The same for a program that mounts what others are to see: what it mounts below `shared`, a folder of the lab's.
    pub fn secluded_with(
        &self,
        program: impl AsRef<std::ffi::OsStr>,
        home: &Path,
        shared: &Path,
    ) -> Result<Command> {
        mount_bind(shared, shared).and_then(|()| mount_change(shared, MountPropagationFlags::SHARED))?;
        let mut command = self.command("unshare");
        command.args(["--mount", "--propagation", "unchanged", "sh", "-c"]);
        // No other process is to see the first of its mounts, whatever /var/lib is a part of.
        command.arg(
            "mount --make-private \"$(stat -c %m /var/lib)\" && mount --bind \"$0\" /var/lib && exec \"$@\"",
        );
        command.arg(home).arg(program);
        Ok(command)
    }

    /// The same, where only the lab's folder is known.
    pub(crate) fn command_in(folder: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env(MARK, folder).env("DOCKER_CONFIG", folder.join(DOCKER_CONFIG)).current_dir(folder);
        command
    }

    /// `name`, or with a number behind it where a folder of that name exists.
    pub fn free_name(&self, name: &str) -> String {
        let names = (2..).map(|number| format!("{name}{number}"));
        let mut names = std::iter::once(name.to_owned()).chain(names);
        names.find(|name| !self.path().join(name).exists()).expect("some number is free")
    }

    /// Starts a program that runs until it is stopped or the lab is closed; its log is `NAME.log` in the lab.
    pub fn start(&self, name: &str, command: Command) -> Result<Arc<Process>> {
        self.start_with(name, command, Stdio::null(), None)
    }

    /// The same, with something on its standard input, and on its standard output where that is given.
    pub fn start_with(
        &self,
        name: &str,
        command: Command,
        stdin: Stdio,
        stdout: Option<Stdio>,
    ) -> Result<Arc<Process>> {
        let mut state = self.inner.open()?;
        let log = self.path().join(format!("{name}.log"));
        let process = Arc::new(Process::start_with(stdin, stdout, name, command, &log)?);
        let stopped = process.clone();
        state.started.push(Box::new(move || stopped.stop()));
        Ok(process)
    }

    /// Runs a command of [`Lab::command`] to its end; what it printed, or its failure.
    pub fn run(&self, command: Command, limit: Duration) -> Result<String> {
        drop(self.inner.open()?);
        process::run(command, limit)
    }

    /// Something to do when the lab is closed, before what was started earlier is stopped.
    pub fn on_close(&self, action: impl FnOnce() + Send + 'static) -> Result<()> {
        self.inner.open()?.started.push(Box::new(action));
        Ok(())
    }

    /// Processes that belong to this lab, also those that its programs left behind.
    pub fn processes(&self) -> Vec<u32> {
        leftovers::of(self.path())
    }

    /// Mount points below the lab's folder, oldest first.
    pub fn mounts(&self) -> Vec<PathBuf> {
        mounts::below(self.path()).unwrap_or_default().into_iter().map(|mount| mount.point).collect()
    }

    /// Waits until nothing is mounted below `folder`.
    pub fn wait_for_no_mounts(&self, folder: &Path) -> Result<()> {
        process::wait_until("the end of the mounts", MOUNTS_LIMIT, || {
            Ok(self.mounts().iter().all(|point| !point.starts_with(folder)).then_some(()))
        })
        .with_context(|| format!("mounted: {:?}", self.mounts()))
    }

    /// Closes the lab, and fails where something of it could not be removed.
    pub fn close(self) -> Result<()> {
        self.inner.close()
    }
}

impl Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab").field("folder", &self.inner.folder).finish_non_exhaustive()
    }
}

impl Clone for Lab {
    fn clone(&self) -> Lab {
        Lab { inner: self.inner.clone(), is_owner: false }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.is_owner {
            return;
        }
        if std::thread::panicking() {
            self.inner.show_logs();
        }
        if let Err(error) = self.inner.close() {
            say(&format!("close lab {}: {error:#}", self.inner.name));
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.closed {
            bail!("the lab is closed");
        }
        Ok(state)
    }

    /// A second caller waits for the first, and has nothing to do.
    fn close(&self) -> Result<()> {
        let mut state = self.lock();
        if state.closed {
            return Ok(());
        }
        state.closed = true;
        while let Some(stop) = state.started.pop() {
            stop();
        }
        clear(&self.folder)
    }

    fn show_logs(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                say(&format!("--- {}, its end:\n{}", path.display(), tail(&text)));
            }
        }
    }
}

/// Ends what belongs to a folder, and removes it.
fn clear(folder: &Path) -> Result<()> {
    leftovers::kill(folder)?;
    mounts::detach(folder)?;
    traces::remove(&word(folder), &folder.join(CONTAINERD));
    if std::env::var_os(KEEP).is_some() {
        say(&format!("kept: {}", folder.display()));
        return Ok(());
    }
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}

fn word(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.trim_start_matches(PREFIX).to_owned()
}

/// Closes labs whose process is gone.
fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(owner) = File::open(entry.path().join(OWNER)) else { continue };
        // Locked as long as its process lives.
        if owner.try_lock().is_ok() {
            let _ = clear(&entry.path());
        }
    }
}

fn make_folder(name: &str) -> Result<(PathBuf, File)> {
    let pid = std::process::id();
    for number in 0.. {
        let folder = std::env::temp_dir().join(format!("{PREFIX}{name}-{pid}-{number}"));
        match fs::create_dir(&folder) {
            Ok(()) => {
                // Locked before it has its name, so that no process takes it for a dead one's.
                let owner = File::create(folder.join("owner.new"))?;
                owner.lock()?;
                fs::rename(folder.join("owner.new"), folder.join(OWNER))?;
                return Ok((folder, owner));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("no name is free")
}
