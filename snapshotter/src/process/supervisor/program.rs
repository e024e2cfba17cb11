//! The program that workers run.
//!
//! The supervisor holds it open, so that every worker runs the same program, whatever a package manager does to the file.
//! It changes to another program only for an upgrade, and back if the new program does not serve.

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

/// For a program to print its version.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Program {
    /// Where the program was started from, and where an upgrade finds the next one.
    path: PathBuf,
    current: File,
    /// The program before, until the current one has served.
    previous: Option<File>,
}

impl Program {
    /// The program of this process.
    pub(super) fn own() -> anyhow::Result<Self> {
        let current = File::open("/proc/self/exe").context("open our own program")?;
        let path = match named(&current) {
            Some(path) => path,
            None => env::current_exe().context("find our own program")?,
        };
        Ok(Self { path, current, previous: None })
    }

    /// A command that starts the program.
    pub(super) fn command(&self) -> Command {
        command(&self.current)
    }

    /// Changes to the program that is on the disk now, and answers with its version.
    pub(super) fn renew(&mut self) -> anyhow::Result<String> {
        let doing = || format!("try {}", self.path.display());
        let next = File::open(&self.path).with_context(doing)?;
        let version = version(&next).with_context(doing)?;
        let last = std::mem::replace(&mut self.current, next);
        // After two upgrades of which neither has served, the oldest program is the one that has.
        self.previous.get_or_insert(last);
        Ok(version)
    }

    /// The current program serves.
    pub(super) fn works(&mut self) {
        self.previous = None;
    }

    /// Changes back to the program before, if there is one.
    pub(super) fn fall_back(&mut self) -> bool {
        self.previous.take().map(|previous| self.current = previous).is_some()
    }
}

/// The path that the program was called by, if the program is still there. If the path is a link to one of several versions,
/// an upgrade follows the link again. The kernel knows only where the link led to.
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
