//! The program that workers are. Resources open, so that a worker that is started again is the same, whatever a package
//! manager has done to the file; another one only when that was asked for, and as long as it works.

use std::{
    env,
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::process::handover::is_readable;

/// To say its version.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Program {
    /// Where it was started from, and where another one will be.
    path: PathBuf,
    current: File,
    /// As long as the current one has not served.
    previous: Option<File>,
}

impl Program {
    /// The one that runs here.
    pub(super) fn own() -> anyhow::Result<Self> {
        let current = File::open("/proc/self/exe").context("open our own program")?;
        let path = match named(&current) {
            Some(path) => path,
            None => env::current_exe().context("find our own program")?,
        };
        Ok(Self { path, current, previous: None })
    }

    /// A command that starts it.
    pub(super) fn command(&self) -> Command {
        command(&self.current)
    }

    /// Makes it the one that is on the disk now; answers with its version.
    pub(super) fn renew(&mut self) -> anyhow::Result<String> {
        let doing = || format!("try {}", self.path.display());
        let next = File::open(&self.path).with_context(doing)?;
        let version = version(&next).with_context(doing)?;
        let last = std::mem::replace(&mut self.current, next);
        // Two at once, and neither has served: the older one has.
        self.previous.get_or_insert(last);
        Ok(version)
    }

    /// It serves.
    pub(super) fn works(&mut self) {
        self.previous = None;
    }

    /// Makes it the one before, if there is one.
    pub(super) fn fall_back(&mut self) -> bool {
        self.previous.take().map(|previous| self.current = previous).is_some()
    }
}

/// The path that the program was called by, if it is still there: where that is a link to one of several versions, the
/// next one is what it leads to then. The kernel knows only where it led to.
fn named(program: &File) -> Option<PathBuf> {
    let word = PathBuf::from(env::args_os().next()?);
    let own = program.metadata().ok()?;
    let is_ours = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()))
    };
    if word.components().count() > 1 {
        return std::path::absolute(word).ok().filter(is_ours);
    }
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(&word)).find(is_ours)
}

fn command(program: &File) -> Command {
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.stdin(Stdio::null());
    command
}

fn version(program: &File) -> anyhow::Result<String> {
    let mut command = command(program);
    let mut child = command.arg("--version").stdout(Stdio::piped()).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("read its number")?;
    if !is_readable(pidfd_open(pid, PidfdFlags::empty())?.as_fd(), LIMIT)? {
        let _ = child.kill();
        let _ = child.wait();
        bail!("it does not say its version");
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("it cannot say its version: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
