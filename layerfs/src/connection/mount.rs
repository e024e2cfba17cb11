//! The mount itself: made, initialized, and handed from process to process as a descriptor and agreed parameters.
//!
//! The kernel keeps a connection as long as a process has its descriptor open. Requests wait while no process serves
//! them. The first request (FUSE_INIT) is answered here, so that a first server that dies at once does not lose the
//! mount. None of this needs a runtime or a thread.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, FileType, fstat, makedev},
    mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ErrorKind},
    fuse::init::{self, Parameters},
    raw::put_in_place,
};

/// Requests handled at once; few cores are enough, as none of them waits for a network.
const THREADS: usize = 3;
/// In KiB; with the kernel's own 128, a sequential reader waits for each 128 KiB.
const READ_AHEAD: &str = "1024";
/// The kernel gives no request to a buffer of less than 8 KiB.
const READ_BUFFER: usize = 64 << 10;
/// The device number of `/dev/fuse`, the same on every Linux.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// What a process that receives the descriptor reads from the disk.
#[derive(Debug, Serialize, Deserialize)]
struct HandoverNote {
    /// `major:minor` of the mount; a descriptor of another mount is refused.
    device: String,
    parameters: Parameters,
}

/// A FUSE mount that can be served: where it is, its descriptor, and the parameters agreed with the kernel.
///
/// Dropping it closes the descriptor and leaves the mount where it is. When no process has the descriptor any more,
/// all requests that wait get an error, and so do all later ones.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    device: OwnedFd,
    parameters: Parameters,
    /// `major:minor` of the mount; `None` if it is unknown.
    number: Option<String>,
    /// The same mount, attached to no path, so that it can be put back after another program unmounted it.
    spare: Option<OwnedFd>,
    inherited: bool,
    replaced: bool,
}

impl Mounted {
    /// Mounts at `path` and answers FUSE_INIT. A mount that an earlier process left there is detached first.
    ///
    /// # Errors
    /// When `/dev/fuse` cannot be opened, the mount is refused, or the kernel is too old.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let doing = || format!("mount {}", path.display());
        let mut replaced = false;
        while mounted_device(path).map_err(|e| Error::io(doing(), e))?.is_some() {
            tracing::warn!(
                path = %path.display(),
                "a mount of an earlier process is detached; containers that use it lose it"
            );
            unmount(path, UnmountFlags::DETACH).map_err(|e| Error::io(doing(), e.into()))?;
            replaced = true;
        }
        fs::create_dir_all(path).map_err(|e| Error::io(doing(), e))?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|e| {
            Error::io(format!("{}: open /dev/fuse (is the kernel module fuse loaded?)", doing()), e)
        })?;
        mount_at(path, &device).map_err(|e| Error::io(doing(), e))?;
        let device = OwnedFd::from(device);
        match initialize(&device) {
            Ok(parameters) => {
                raise_read_ahead(path);
                let number = mounted_device(path).map_err(|e| Error::io(doing(), e))?;
                let path = path.to_owned();
                let mut mounted =
                    Self { path, device, parameters, number, spare: None, inherited: false, replaced };
                mounted.keep_spare();
                Ok(mounted)
            }
            Err(error) => {
                let _ = unmount(path, UnmountFlags::DETACH);
                Err(error)
            }
        }
    }

    /// The mount at `path` that another process made, from the descriptor and parameters that it handed on.
    pub fn inherited(path: &Path, device: OwnedFd, parameters: Parameters) -> Self {
        let path = path.to_owned();
        Self { path, device, parameters, number: None, spare: None, inherited: true, replaced: false }
    }

    /// The mount at `path` that another process made, from its descriptor and the file that [`Mounted::note`] wrote.
    /// The mount need not be at `path` any more if the kernel says which connection a descriptor belongs to:
    /// containers still use it.
    ///
    /// # Errors
    /// When the note cannot be read or is about another mount, the descriptor is not one of FUSE, or the
    /// kernel has ended the connection.
    pub fn handed(path: &Path, note: &Path, device: OwnedFd) -> Result<Self, Error> {
        let doing = || format!("take over the mount {}", path.display());
        let refuse = |why: &str| Err(Error::new(ErrorKind::Unsupported, format!("{}: {why}", doing())));
        let bytes = fs::read(note).map_err(|e| Error::io(doing(), e))?;
        let note: HandoverNote =
            serde_json::from_slice(&bytes).map_err(|e| Error::with(ErrorKind::Corrupt, doing(), e))?;
        let found = fstat(&device).map_err(|e| Error::io(doing(), e.into()))?;
        let is_fuse = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
            && found.st_rdev == makedev(FUSE_DEVICE.0, FUSE_DEVICE.1);
        if !is_fuse {
            return refuse("the descriptor is not one of /dev/fuse");
        }
        if has_ended(device.as_fd()) {
            return refuse("the kernel has ended the connection");
        }
        let there = mounted_device(path).map_err(|e| Error::io(doing(), e))?;
        let number = connection_of(device.as_fd()).map(|minor| format!("0:{minor}")).or(there);
        if number.as_ref() != Some(&note.device) {
            return refuse("it is another mount");
        }
        let mut mounted = Self { number, ..Self::inherited(path, device, note.parameters) };
        mounted.keep_spare();
        Ok(mounted)
    }

    fn is_at_its_path(&self) -> io::Result<bool> {
        Ok(self.number.is_some() && mounted_device(&self.path)? == self.number)
    }

    /// Sends no request to the process that serves the mount: a mount's root is known to the kernel.
    fn keep_spare(&mut self) {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let spare = self.is_at_its_path().and_then(|is_there| match is_there {
            true => Ok(open_tree(CWD, &self.path, flags)?),
            false => Err(io::Error::new(io::ErrorKind::NotFound, "it is not mounted there any more")),
        });
        match spare {
            Ok(spare) => self.spare = Some(spare),
            Err(error) => {
                tracing::warn!(
                    path = %self.path.display(), %error,
                    "a spare of the FUSE mount cannot be made: if another program unmounts it, it cannot be \
                     put back"
                );
            }
        }
    }

    /// Puts the mount back if another program unmounted it while containers still use it. Returns whether that was
    /// so.
    ///
    /// # Errors
    /// When the mount cannot be put back.
    pub fn put_back(&mut self) -> Result<bool, Error> {
        let doing = || format!("mount {} again", self.path.display());
        if self.is_at_its_path().map_err(|e| Error::io(doing(), e))? {
            return Ok(false);
        }
        let Some(spare) = self.spare.take() else {
            return Err(Error::new(ErrorKind::NotFound, format!("{}: there is no spare of it", doing())));
        };
        let moved = fs::create_dir_all(&self.path).and_then(|()| {
            Ok(move_mount(&spare, "", CWD, &self.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
        });
        if let Err(error) = moved {
            let error = Error::io(doing(), error);
            self.spare = Some(spare);
            return Err(error);
        }
        self.keep_spare();
        Ok(true)
    }

    /// Writes what [`Mounted::handed`] needs to a file: under another name first, then renamed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&self, file: &Path) -> Result<(), Error> {
        let doing = || format!("write the parameters of the mount to {}", file.display());
        let Some(device) = self.number.clone() else {
            return Err(Error::new(ErrorKind::NotFound, format!("{}: it is not mounted", doing())));
        };
        let note = HandoverNote { device, parameters: self.parameters };
        let bytes = serde_json::to_vec(&note).map_err(|e| Error::with(ErrorKind::Corrupt, doing(), e))?;
        let other = file.with_extension("new");
        let written = fs::write(&other, bytes).and_then(|()| fs::rename(&other, file));
        written.map_err(|e| Error::io(doing(), e))
    }

    /// Whether a mount of an earlier process was detached: containers that used it have lost it.
    pub fn has_replaced(&self) -> bool {
        self.replaced
    }

    /// Whether the kernel has ended the connection: unmounted and not used by any process, or aborted.
    pub fn has_ended(&self) -> bool {
        has_ended(self.device.as_fd())
    }

    /// The path it was mounted at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The parameters that the next process needs beside the descriptor.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Whether another process made it; then it outlives this process.
    pub fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Detaches the mount. It ends when no process uses it any more, perhaps much later.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unmount(&self) -> Result<(), Error> {
        unmount(&self.path, UnmountFlags::DETACH)
            .map_err(|e| Error::io(format!("unmount {}", self.path.display()), e.into()))
    }

    /// A session on the real descriptor. The library that serves expects FUSE_INIT, which the kernel sends once. So
    /// it gets a copy through a socket first; then the descriptor takes the socket's place.
    pub(super) fn session<FS: Filesystem>(&self, door: FS) -> Result<Session<FS>, Error> {
        let doing = "repeat FUSE_INIT to the serving library";
        let (session, reply) = self.initialized(door).map_err(|e| Error::io(doing, e))?;
        if reply != init::answer(init::OWN, &self.parameters) {
            // Another version of this program made the mount. The parameters agreed then hold.
            tracing::warn!(
                "this version would agree on other parameters with the kernel; it serves with those of the \
                 mount"
            );
        }
        put_in_place(&self.device, &session).map_err(|e| Error::io(doing, e))?;
        Ok(session)
    }

    /// A session on a socket, and its reply to FUSE_INIT.
    pub(super) fn initialized<FS: Filesystem>(&self, door: FS) -> io::Result<(Session<FS>, Vec<u8>)> {
        let (kernel_end, library_end) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::write(&kernel_end, &init::question(&self.parameters))?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        // A request read through a clone is lost with the process; a request read through this descriptor can be
        // queued again.
        config.clone_fd = false;
        let session = Session::from_fd(door, library_end, SessionACL::All, config)?;
        let mut reply = vec![0; 256];
        let length = rustix::io::read(&kernel_end, &mut reply)?;
        reply.truncate(length);
        Ok((session, reply))
    }

    /// Has the kernel queue again the requests that earlier processes took and did not answer.
    pub(super) fn resend(&self) {
        if let Err(error) = rustix::io::write(&self.device, &init::RESEND) {
            tracing::warn!(
                error = %io::Error::from(error),
                "requests that an earlier process took cannot be queued again (Linux before 6.9): a reader that waits \
                 for one waits until it is killed"
            );
        }
    }
}

impl AsFd for Mounted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn has_ended(device: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(device, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

/// Reads FUSE_INIT from the kernel and answers it.
fn initialize(device: &OwnedFd) -> Result<Parameters, Error> {
    let doing = "answer FUSE_INIT";
    let mut request = vec![0; READ_BUFFER];
    let length = loop {
        match rustix::io::read(device, &mut request) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            read => break read.map_err(|e| Error::io(doing, e.into()))?,
        }
    };
    let Some((unique, parameters)) = init::agree(&request[..length]) else {
        return Err(Error::new(ErrorKind::Unsupported, format!("{doing}: the kernel is too old")));
    };
    rustix::io::write(device, &init::answer(unique, &parameters)).map_err(|e| Error::io(doing, e.into()))?;
    let lacks = parameters.lacks();
    if !lacks.is_empty() {
        tracing::info!(?lacks, "the kernel lacks these FUSE features");
    }
    if !parameters.can_resend() {
        tracing::warn!("Linux before 6.9: reads under way are lost if this process dies");
    }
    Ok(parameters)
}

fn mount_at(path: &Path, device: &File) -> io::Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions\0",
        device.as_raw_fd()
    );
    let options = CString::from_vec_with_nul(options.into_bytes()).map_err(io::Error::other)?;
    // Neither nodev nor nosuid: device nodes and setuid programs of an image must work.
    mount("soci", path, "fuse.soci", MountFlags::RDONLY, options.as_c_str())?;
    Ok(())
}

/// The minor number of the connection's mount, where the kernel says so (Linux 6.5).
fn connection_of(device: BorrowedFd<'_>) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?.trim().parse().ok()
}

/// `major:minor` of what is mounted at `path`, from the list of mounts.
pub(super) fn mounted_device(path: &Path) -> io::Result<Option<String>> {
    let wanted = path.to_string_lossy();
    // Names of other mounts need not be text.
    let mounts = fs::read("/proc/self/mountinfo")?;
    let mounts = String::from_utf8_lossy(&mounts);
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.rfind(|fields| fields.get(4).is_some_and(|at| unescape(at) == wanted));
    Ok(found.and_then(|fields| fields.get(2).map(ToString::to_string)))
}

/// The list of mounts writes blanks, newlines and backslashes as octal numbers.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Once, and after FUSE_INIT, which resets it.
fn raise_read_ahead(path: &Path) {
    let raised = mounted_device(path).and_then(|device| {
        let device = device.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not mounted"))?;
        fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD)
    });
    if let Err(error) = raised {
        tracing::warn!(
            %error,
            "the read-ahead of the FUSE mount cannot be raised: sequential reads are slower"
        );
    }
}
