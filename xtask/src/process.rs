//! Foreign programs, each with a guard and a log file.
//!
//! A program started here dies with this process, also after a SIGKILL: the kernel kills it when the thread that started
//! it ends. So one thread starts all of them, and lives as long as the process. Each has its own process group, so that
//! Ctrl-C reaches this process alone and it decides the order of stopping. Waiting is always for a condition and always
//! bounded.
#![allow(unsafe_code)] // `pre_exec`, to ask for a signal at the parent's death; one system call that no library wraps

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// How often a foreign thing is asked whether it is ready.
const POLL: Duration = Duration::from_millis(10);
/// Between SIGTERM and SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Lines of a log shown with an error.
const LOG_LINES: usize = 30;
/// Ticks a second in `/proc`: so on every architecture that Linux runs containers on.
const TICKS: u64 = 100;

/// A running program. Stopped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    child: Mutex<Child>,
}

impl Process {
    /// Starts `command` with both its outputs appended to the file `log`.
    pub fn start(name: &str, command: Command, log: &Path) -> Result<Process> {
        Process::start_on(Stdio::null(), name, command, log)
    }

    /// The same, with something other than nothing on its standard input.
    pub fn start_on(stdin: Stdio, name: &str, command: Command, log: &Path) -> Result<Process> {
        Process::start_with(stdin, None, name, command, log)
    }

    /// The same, with something other than the log on its standard output, if `stdout` is given.
    pub fn start_with(
        stdin: Stdio,
        stdout: Option<Stdio>,
        name: &str,
        mut command: Command,
        log: &Path,
    ) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log).context("open log")?;
        command.stdin(stdin).stderr(file.try_clone()?).stdout(stdout.unwrap_or_else(|| file.into()));
        let child = spawn(command).with_context(|| format!("start {name}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("read pid")?;
        Ok(Process { name: name.to_owned(), pid, log: log.to_owned(), child: Mutex::new(child) })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.lock().try_wait().ok().flatten()
    }

    /// Everything it has said so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for `ready` to have an answer. Fails when the program ends first, or after `limit`; then the end of
    /// its log is in the error.
    pub fn wait_until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let checked = || match ready()? {
            Some(value) => Ok(Some(value)),
            None => match self.exited() {
                Some(status) => bail!("it ended: {status}"),
                None => Ok(None),
            },
        };
        wait_until(what, limit, checked)
            .with_context(|| format!("wait for {}; its log ends:\n{}", self.name, tail(&self.log())))
    }

    /// Waits for it to end by itself.
    pub fn wait_exit(&self, limit: Duration) -> Result<ExitStatus> {
        wait_until("the end of the program", limit, || Ok(self.exited()))
            .with_context(|| format!("wait for {}", self.name))
    }

    pub fn signal(&self, signal: Signal) {
        let mut child = self.lock();
        // Locked and not yet reaped: the pid is still its own.
        if matches!(child.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process(self.pid, signal);
        }
    }

    /// SIGTERM, and SIGKILL when that is not enough. Nothing to do where it has ended.
    pub fn stop(&self) {
        self.signal(Signal::TERM);
        if self.wait_exit(STOP_LIMIT).is_err() {
            self.kill();
        }
    }

    /// SIGKILL, and its end awaited.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        let _ = self.wait_exit(STOP_LIMIT);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// Asks `ready` until it has an answer, at most for `limit`.
pub fn wait_until<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("{what} did not come within {limit:?}");
        }
        thread::sleep(POLL);
    }
}

/// Runs a program to its end and returns what it printed. Fails, with what it said on stderr, when it does;
/// kills it after `limit`.
pub fn run(command: Command, limit: Duration) -> Result<String> {
    let shown = shown(&command);
    let output = output(command, limit)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("run {shown}: {}\n{}", output.status, tail(&said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same, with its failure as a value.
pub fn output(command: Command, limit: Duration) -> Result<Output> {
    watched(command, limit, |_| {})
}

/// Runs a program to its end; what it printed, and the most memory it had resident, in bytes.
pub fn run_measured(command: Command, limit: Duration) -> Result<(String, u64)> {
    let shown = shown(&command);
    let mut peak = 0;
    let output = watched(command, limit, |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // The kernel keeps the peak until the program ends.
        peak = peak.max(kib(&status, "VmHWM:").unwrap_or(0) * 1024);
    })?;
    if !output.status.success() {
        bail!("run {shown}: {}\n{}", output.status, tail(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), peak))
}

/// Runs a program to its end, throws away what it prints, and says how long it took: to the microsecond, where the
/// others here look only now and then. Fails when it does; kills it after `limit`.
pub fn run_timed(mut command: Command, limit: Duration) -> Result<Duration> {
    let shown = shown(&command);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let mut child = spawn(command).with_context(|| format!("run {shown}"))?;
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("read pid")?;
    let (running, ended) = mpsc::channel::<()>();
    let watchman = thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    });
    // Not reaped before the watchman is gone: until then the pid is its own.
    let waited = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    let took = start.elapsed();
    drop(running);
    let _ = watchman.join();
    let status = child.wait()?;
    waited.with_context(|| format!("wait for {shown}"))?;
    if !status.success() {
        bail!("run {shown}: {status}");
    }
    Ok(took)
}

/// What a process has used of the processors so far, in user and in kernel mode.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read what a process has used")?;
    // Behind the name, which may hold anything: user and system time are the fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    Ok(Duration::from_millis(ticks.sum::<u64>() * 1000 / TICKS))
}

/// How long the processors of this machine had nothing to do so far, added up.
pub fn idle_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("read what the machine has used")?;
    // `cpu user nice system idle iowait …`
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(4).take(2);
    let ticks = fields.filter_map(|field| field.parse::<u64>().ok());
    Ok(Duration::from_millis(ticks.sum::<u64>() * 1000 / TICKS))
}

/// Memory of a process that is in no file, in bytes.
pub fn anonymous_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the memory of a process")?;
    kib(&status, "RssAnon:").map(|kib| kib * 1024).context("the kernel does not say RssAnon")
}

/// A line of `/proc/PID/status`.
fn kib(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok())
}

/// Looks at the program, by its id, again and again until it has ended.
fn watched(mut command: Command, limit: Duration, mut look: impl FnMut(u32)) -> Result<Output> {
    let shown = shown(&command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command).with_context(|| format!("run {shown}"))?;
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let ended = wait_until("its end", limit, || {
        look(child.id());
        Ok(child.try_wait()?)
    });
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended.with_context(|| format!("run {shown}"))?;
    // A program that it left behind may hold the pipes open: what has come until now is what counts.
    let (stdout, stderr) = (collected(&out, &shown)?, collected(&err, &shown)?);
    Ok(Output { status, stdout, stderr })
}

/// Starts a program that dies with this process, in a process group of its own.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in orders {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    command.process_group(0);
    let parent = rustix::process::getpid();
    let dies_with_us = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        match rustix::process::getppid() == Some(parent) {
            true => Ok(()),
            // We died before the line above.
            false => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are two system calls, and no
    // allocation (an `io::Error` of a kind or an errno has none).
    unsafe { command.pre_exec(dies_with_us) };
    let (answer, started) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts programs is gone");
    let starter = starter.lock().map_err(|_| gone())?;
    starter.send((command, answer)).map_err(|_| gone())?;
    drop(starter);
    started.recv().map_err(|_| gone())?
}

/// A mount of `folder` that is not attached anywhere, in which owners are as the user namespace `users` maps them: what
/// containerd makes of a layer for a container with users of its own.
pub fn idmapped_clone(folder: &Path, users: &impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, folder, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_fd().as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: the kernel reads an empty name and as many bytes of the attributes as it is told, both of which
    // outlive the call; it keeps neither.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes));
        let _ = sender.send(read.map(|_| bytes));
    });
    receiver
}

fn collected(pipe: &mpsc::Receiver<io::Result<Vec<u8>>>, shown: &str) -> Result<Vec<u8>> {
    match pipe.recv_timeout(STOP_LIMIT) {
        Ok(read) => read.with_context(|| format!("read what {shown} says")),
        Err(_) => Err(anyhow!("run {shown}: something it left behind holds its output open")),
    }
}
