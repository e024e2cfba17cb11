//! The handover from a worker whose supervisor is gone to the next daemon: mount, lock of the root, and socket. Both ends.
//!
//! The worker listens on `<root>/handover.sock`. The next supervisor connects, gets the descriptors and kills the worker,
//! which serves the kernel until that moment. Requests that the worker did not answer come again to the next worker. If
//! the next supervisor disconnects without a kill, the worker goes on as before.

use std::{
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg, sockopt::socket_peercred,
    },
    process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

pub(crate) const SOCKET: &str = "handover.sock";
/// The worker first finishes the calls that containerd has begun.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);
/// A process that was killed is gone as soon as the kernel has torn it down.
const DEATH_LIMIT: Duration = Duration::from_secs(20);
const MAX_BYTES: usize = 8 << 10;
/// Mount, lock and socket.
const MAX_DESCRIPTORS: usize = 3;

/// The message that comes with the descriptors.
#[derive(Debug, Serialize, Deserialize)]
enum HandoverMessage {
    /// Why the worker hands nothing over.
    Refused(String),
    /// The mount, the lock, and the socket if it has this address.
    Given { socket: Option<PathBuf> },
}

/// What a worker handed over.
#[derive(Debug)]
pub(crate) struct HandedOver {
    pub(crate) fuse: OwnedFd,
    pub(crate) lock: OwnedFd,
    pub(crate) socket: Option<(PathBuf, OwnedFd)>,
    pub(crate) giver: Giver,
}

/// The worker that handed over. It serves until it is killed, and takes calls again when this is dropped.
#[derive(Debug)]
pub(crate) struct Giver {
    stream: UnixStream,
    pid: Pid,
}

/// Asks the worker that serves `root` to hand over. `None` without such a worker, or if it ends at this moment.
///
/// # Errors
/// When the worker has a supervisor, or does not answer.
pub(crate) fn ask(root: &Path) -> anyhow::Result<Option<HandedOver>> {
    let Ok(stream) = at(root, |path| UnixStream::connect(path)) else { return Ok(None) };
    let pid = socket_peercred(&stream).context("find the process that serves the root folder")?.pid;
    let doing = || format!("take over from process {}", pid.as_raw_nonzero());
    stream.set_read_timeout(Some(ANSWER_LIMIT)).with_context(doing)?;
    let Some((answer, mut descriptors)) = receive(stream.as_fd()).with_context(doing)? else {
        return Ok(None);
    };
    let socket = match answer {
        HandoverMessage::Refused(why) => bail!("{}: {why}", doing()),
        HandoverMessage::Given { socket } => {
            socket.zip((descriptors.len() == MAX_DESCRIPTORS).then(|| descriptors.pop()).flatten())
        }
    };
    let (Some(lock), Some(fuse)) = (descriptors.pop(), descriptors.pop()) else {
        bail!("{}: it handed nothing over", doing());
    };
    Ok(Some(HandedOver { fuse, lock, socket, giver: Giver { stream, pid } }))
}

impl Giver {
    /// Kills the worker and waits until it is gone, because two workers must not serve. After the kill there is no way
    /// back: the descriptors are all that is left of the mount. So this waits as long as it takes.
    ///
    /// # Errors
    /// When the worker cannot be killed. It goes on serving.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        let doing = || format!("end process {}, which served the mount", self.pid.as_raw_nonzero());
        let process = match pidfd_open(self.pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(()),
            process => process.with_context(doing)?,
        };
        // While it has the other end of the stream, the number is its own. Later, another process may have the number.
        if is_readable(self.stream.as_fd(), Duration::ZERO).with_context(doing)? {
            return Ok(());
        }
        match pidfd_send_signal(&process, Signal::KILL) {
            Err(Errno::SRCH) => return Ok(()),
            sent => sent.with_context(doing)?,
        }
        while !is_readable(process.as_fd(), DEATH_LIMIT).unwrap_or(false) {
            tracing::error!(pid = self.pid.as_raw_nonzero(), "a killed worker is not gone yet");
        }
        Ok(())
    }
}

/// Listens for a daemon that takes over. Only root, or the user of this process, can connect.
pub(crate) fn listen(root: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(root.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = at(root, |path| UnixListener::bind(path))?;
    fs::set_permissions(root.join(SOCKET), fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether the connected process may take over.
pub(crate) fn is_allowed(stream: impl AsFd) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == geteuid())
}

pub(crate) fn refuse(stream: impl AsFd, why: &str) -> io::Result<()> {
    send(stream.as_fd(), &HandoverMessage::Refused(why.to_owned()), &[])
}

/// Hands over the mount and the lock, and the socket if this worker has it.
pub(crate) fn give(
    stream: impl AsFd,
    fuse: BorrowedFd<'_>,
    lock: BorrowedFd<'_>,
    socket: Option<(&Path, BorrowedFd<'_>)>,
) -> io::Result<()> {
    let answer = HandoverMessage::Given { socket: socket.map(|(path, _)| path.to_owned()) };
    let mut descriptors = vec![fuse, lock];
    descriptors.extend(socket.map(|(_, socket)| socket));
    send(stream.as_fd(), &answer, &descriptors)
}

fn send(stream: BorrowedFd<'_>, answer: &HandoverMessage, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(answer)?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    sendmsg(stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// `None` when the other end is gone.
fn receive(stream: BorrowedFd<'_>) -> anyhow::Result<Option<(HandoverMessage, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            got => break got?,
        }
    };
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    if got.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..got.bytes])?, descriptors)))
}

/// Calls with a short path of the socket: a socket's path has 108 bytes at most, and the root's may have more.
fn at<T>(root: &Path, call: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let folder = File::open(root)?;
    call(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(SOCKET))
}

/// Whether a descriptor becomes readable within `limit`. Signals do not end the wait.
pub(crate) fn is_readable(descriptor: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let start = Instant::now();
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    loop {
        let left = Timespec::try_from(limit.saturating_sub(start.elapsed())).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&left)) {
            Err(Errno::INTR) => {}
            polled => return Ok(polled? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, thread};

    use super::*;

    #[test]
    fn descriptors_arrive_as_what_they_are() {
        let (one, other) = UnixStream::pair().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let mut file = File::create_new(folder.path().join(name)).unwrap();
            file.write_all(name.as_bytes()).unwrap();
            file
        };
        let (fuse, lock, socket) = (file("fuse"), file("lock"), file("socket"));
        give(&one, fuse.as_fd(), lock.as_fd(), Some((Path::new("/a"), socket.as_fd()))).unwrap();
        let (answer, given) = receive(other.as_fd()).unwrap().unwrap();
        assert!(matches!(answer, HandoverMessage::Given { socket: Some(path) } if path == Path::new("/a")));
        for (given, name) in given.iter().zip(["fuse", "lock", "socket"]) {
            let path = fs::read_link(format!("/proc/self/fd/{}", given.as_raw_fd())).unwrap();
            assert_eq!(path, folder.path().join(name));
        }
        assert_eq!(given.len(), 3);
        refuse(&one, "no").unwrap();
        assert!(
            matches!(receive(other.as_fd()).unwrap(), Some((HandoverMessage::Refused(why), none)) if why == "no" && none.is_empty())
        );
        drop(one);
        assert!(receive(other.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_worker_with_a_supervisor_refuses_and_no_worker_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        // Longer than a socket's path may be.
        let root = folder.path().join("r".repeat(120));
        fs::create_dir(&root).unwrap();
        assert!(ask(&root).unwrap().is_none());
        let listener = listen(&root).unwrap();
        let worker = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            assert!(is_allowed(&stream));
            refuse(&stream, "it has a supervisor").unwrap();
        });
        let error = format!("{:#}", ask(&root).unwrap_err());
        assert!(error.contains("it has a supervisor"), "{error}");
        worker.join().unwrap();
        assert!(ask(&root).unwrap().is_none(), "no process listens on the socket");
    }

    #[test]
    fn a_worker_that_ends_instead_of_answering_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen(folder.path()).unwrap();
        let worker = thread::spawn(move || drop(listener.accept().unwrap()));
        assert!(ask(folder.path()).unwrap().is_none());
        worker.join().unwrap();
    }

    #[test]
    fn another_process_with_the_number_of_the_worker_is_not_killed() {
        // The child is started first: for a moment it has all descriptors, even those that it does not inherit.
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let (stream, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        Giver { stream, pid }.end().unwrap();
        assert!(child.try_wait().unwrap().is_none(), "the number is another process's by now");
        let (stream, _theirs) = UnixStream::pair().unwrap();
        Giver { stream, pid }.end().unwrap();
        assert!(child.try_wait().unwrap().is_some());
    }
}
