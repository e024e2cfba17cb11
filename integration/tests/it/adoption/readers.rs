//! A program that reads in several ways at once while workers come and go. It compares every byte and every attribute,
//! and measures how long it had to wait for one. It is this test binary, started again: a process of its own, since one that
//! has the descriptor of a mount and waits for it cannot be killed.

use std::{
    env,
    fs::{self, File, OpenOptions},
    os::fd::AsFd,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    images::{Tar, tar::Entry},
    lab::Lab,
    process::{self, Process},
    tree::{Skip, Tree, compare, walk},
};
use rustix::fs::{Advice, fadvise};

use super::{small, supervisor::Supervisor};
use crate::image::noise;

const NAME: &str = "adoption::readers::read_until_they_are_told";
const SLOT: &str = "SOCI_READERS_SLOT";
/// A file: when it is there they finish their passes and end.
const STOP: &str = "SOCI_READERS_STOP";
const BIG: usize = 64 << 20;

const BLOCK: usize = 1 << 20;
const ALIGNED: usize = 4096;
const FIND_LIMIT: Duration = Duration::from_secs(120);

/// How it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From front to back, through the kernel's memory, which is emptied before each pass.
    Buffered,
    /// From front to back, past it.
    Direct,
    /// Here and there.
    Random,
    /// All names, attributes and small files.
    Walk,
    /// `find`.
    Find,
}

const WAYS: [(&str, Way); 6] = [
    ("buffered", Way::Buffered),
    ("direct", Way::Direct),
    ("random", Way::Random),
    ("random-too", Way::Random),
    ("walk", Way::Walk),
    ("find", Way::Find),
];

/// What they read.
pub(crate) fn layer() -> Tar {
    small(1).with(Entry::file("big", big()))
}

fn big() -> Vec<u8> {
    noise(77, BIG)
}

/// The process, as the test has it.
pub(crate) struct Readers {
    process: Process,
    stop: PathBuf,
}

impl Readers {
    /// They read in the folder `slot`, which has what [`layer`] has.
    pub(crate) fn start(lab: &Lab, slot: &Path) -> Result<Readers> {
        let name = lab.free_name("readers");
        let stop = lab.folder(&name)?.join("stop");
        let mut command = lab.command(env::current_exe()?);
        command.args([NAME, "--exact", "--nocapture"]).env(SLOT, slot).env(STOP, &stop);
        let log = lab.path().join(format!("{name}.log"));
        Ok(Readers { process: Process::start_on(Stdio::null(), &name, command, &log)?, stop })
    }

    /// Fails when one of them has failed.
    pub(crate) fn still_read(&self) -> Result<()> {
        let log = self.process.log();
        let is_well = self.process.exited().is_none() && !log.contains(FAILED);
        ensure!(is_well, "readers have failed:\n{}", process::tail(&log));
        Ok(())
    }

    /// Waits until each has been through once at least, and has finished; what they say.
    pub(crate) fn finish(&self, limit: Duration) -> Result<String> {
        self.process.wait_until("a pass of each", limit, || {
            self.still_read()?;
            let log = self.process.log();
            let passed = |name: &str| log.lines().any(|line| line == format!("{PASSED} {name}"));
            Ok(WAYS.iter().all(|(name, _)| passed(name)).then_some(()))
        })?;
        fs::write(&self.stop, "")?;
        let ended = self.process.wait_exit(limit)?;
        let log = self.process.log();
        ensure!(ended.success() && !log.contains(FAILED), "{}", process::tail(&log));
        let passes = log.lines().filter(|line| line.starts_with(PASSED)).count();
        let longest = log.lines().find_map(|line| line.strip_prefix(LONGEST)).context("they say it")?;
        Ok(format!("{passes} passes; the longest pauses, of walks and finds as a whole:{longest}"))
    }
}

const PASSED: &str = "passed";
const FAILED: &str = "a reader failed";
const LONGEST: &str = "longest";

fn tell(what: &str) -> Result<()> {
    use std::io::Write;
    Ok(writeln!(std::io::stdout(), "{what}")?)
}

/// Nothing to do, and no test, unless it was started by a test that kills workers.
#[test]
fn read_until_they_are_told() -> Result<()> {
    let (Some(slot), Some(stop)) = (env::var_os(SLOT), env::var_os(STOP)) else { return Ok(()) };
    let (slot, stop, big, expected) = (PathBuf::from(slot), PathBuf::from(stop), big(), small(1).tree());
    let reader = |(name, way)| {
        let (slot, big, expected) = (&*slot, &*big, &expected);
        Reader { name, way, slot, big, expected, longest: AtomicU64::new(0) }
    };
    let readers = WAYS.map(reader);
    std::thread::scope(|scope| {
        for reader in &readers {
            let stop = &stop;
            scope.spawn(move || match reader.run(stop) {
                Ok(()) => Ok(()),
                Err(error) => tell(&format!("{FAILED}: {}: {error:#}", reader.name)),
            });
        }
    });
    let longest = readers.iter().map(|reader| {
        let longest = Duration::from_micros(reader.longest.load(Ordering::Acquire));
        format!(" {} {longest:.2?}", reader.name)
    });
    // Not behind the name of the test, where the harness has left it.
    tell(&format!("\n{LONGEST}{}", longest.collect::<String>()))
}

struct Reader<'a> {
    name: &'static str,
    way: Way,
    slot: &'a Path,
    big: &'a [u8],
    expected: &'a Tree,
    longest: AtomicU64,
}

/// Has the kernel forget the names in a slot, and so everything below them.
pub(super) fn forget(supervisor: &Supervisor, slot: &str) -> Result<()> {
    const INVAL_ENTRY: u32 = 3;
    let length = 16 + 16 + slot.len() as u32 + 1;
    let mut message = Vec::new();
    for word in [length, INVAL_ENTRY, 0, 0, 1, 0, slot.len() as u32, 0] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(slot.as_bytes());
    message.push(0);
    match rustix::io::write(supervisor.device()?, &message) {
        // It has nothing of it.
        Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error).context("have the kernel forget a name"),
    }
}

impl Reader<'_> {
    /// Passes until it is told to stop; the last one is finished.
    fn run(&self, stop: &Path) -> Result<()> {
        while !stop.exists() {
            match self.way {
                Way::Buffered => self.sequential(0),
                Way::Direct => self.sequential(libc::O_DIRECT),
                Way::Random => self.random(),
                Way::Walk => self.walk(),
                Way::Find => self.find(),
            }?;
            tell(&format!("{PASSED} {}", self.name))?;
        }
        Ok(())
    }

    /// One call that reads, timed.
    fn timed<T>(&self, read: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = read();
        let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest.fetch_max(took, Ordering::AcqRel);
        done
    }

    fn block(&self, file: impl AsFd, room: &mut [u8], offset: usize) -> Result<()> {
        let end = (offset + room.len()).min(self.big.len());
        let length = self
            .timed(|| rustix::io::pread(file, &mut *room, offset as u64))
            .with_context(|| format!("read at {offset}"))?;
        ensure!(length == end - offset, "{length} bytes at {offset}");
        ensure!(room[..length] == self.big[offset..end], "other bytes at {offset}");
        Ok(())
    }

    fn sequential(&self, flags: i32) -> Result<()> {
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.slot.join("big"))?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        let mut room = vec![0; BLOCK + ALIGNED];
        let aligned = room.as_ptr().align_offset(ALIGNED);
        for offset in (0..self.big.len()).step_by(BLOCK) {
            self.block(&file, &mut room[aligned..aligned + BLOCK], offset)?;
        }
        Ok(())
    }

    fn random(&self) -> Result<()> {
        let file = File::open(self.slot.join("big"))?;
        let mut room = vec![0; 64 << 10];
        let mut state = self as *const Self as u64 | 1;
        for _ in 0..40 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            fadvise(&file, 0, None, Advice::DontNeed)?;
            self.block(&file, &mut room, state as usize % self.big.len())?;
        }
        Ok(())
    }

    fn walk(&self) -> Result<()> {
        let found = self.timed(|| walk(&self.slot.join("tree")))?;
        let skip = Skip::default();
        let differences = compare(&self.expected.below("tree"), &found, &skip);
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    }

    fn find(&self) -> Result<()> {
        let mut find = Command::new("find");
        find.arg(self.slot.join("tree")).args(["-printf", "%y %P %s %m %U:%G %l\\n"]);
        let said = self.timed(|| process::run(find, FIND_LIMIT))?;
        let (found, expected) = (said.lines().count(), self.expected.below("tree").entries.len());
        ensure!(found == expected, "{found} of {expected} names");
        Ok(())
    }
}
