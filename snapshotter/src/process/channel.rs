//! Messages between the supervisor and its worker: one message a packet, on a pair of sockets.
//!
//! The end of either process is seen here first. The two may be of different versions, so an unknown message is no error,
//! and the names of messages never change.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use layerfs::Parameters;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Enough for the names of some hundred containers.
const MAX_BYTES: usize = 64 << 10;

/// The name by which a worker inherits its end.
pub(crate) const CHANNEL: &str = "channel";

/// What a worker has to know of the workers before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerStart {
    /// No container depends on the daemon yet, so an error in the configuration ends the start.
    pub(crate) is_first: bool,
    /// The worker before this one crashed.
    pub(crate) has_crashed: bool,
    /// A mount that containers may have used is gone.
    pub(crate) has_lost: bool,
    /// What the supervisor and the kernel negotiated for the connection.
    pub(crate) parameters: Parameters,
}

/// A message to the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// The first message.
    Begin(WorkerStart),
    /// Answer with `Pong`.
    Ping,
    /// Why no other program will serve.
    Refused(String),
    /// Finish the calls that have begun and take no more. Go on serving the kernel.
    Drain,
    /// Finish calls, then unmount if no container needs the mount. With `is_kept`, the service manager has the mount, and
    /// the worker ends in any case.
    Stop { is_kept: bool },
    #[serde(other)]
    Unknown,
}

/// A message from the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// The worker serves.
    Ready,
    /// Why the worker cannot serve.
    Failed(String),
    Pong,
    /// Calls are finished.
    Drained,
    /// The worker has unmounted, everything is on the disk, and it is about to end.
    Ended,
    /// Containers need the mount: the keys of their snapshots.
    Needed(Vec<String>),
    /// A client asks for the program as it is on the disk now.
    Upgrade,
    /// A status line for the service manager.
    Status(String),
    #[serde(other)]
    Unknown,
}

/// One end of the pair.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    pub(crate) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        // Neither process may wait for the other. A process that leaves a full socket unread counts as gone.
        let bytes = serde_json::to_vec(message)?;
        send(&self.0, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Waits for a message; `None` when the other end is gone.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let mut buffer = vec![0; MAX_BYTES];
        loop {
            match recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(error.into()),
                Ok((0, _)) => return Ok(None),
                Ok((length, _)) => return Ok(Some(serde_json::from_slice(&buffer[..length])?)),
            }
        }
    }
}

impl From<OwnedFd> for Channel {
    fn from(end: OwnedFd) -> Self {
        Self(end)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_one_by_one_until_the_end() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::from(theirs);
        ours.send(&ToWorker::Ping).unwrap();
        ours.send(&ToWorker::Stop { is_kept: true }).unwrap();
        ours.send(&"SomethingNew").unwrap();
        for expected in [ToWorker::Ping, ToWorker::Stop { is_kept: true }, ToWorker::Unknown] {
            assert_eq!(theirs.receive().unwrap(), Some(expected));
        }
        theirs.send(&ToSupervisor::Needed(vec!["a/1/b".into()])).unwrap();
        drop(theirs);
        assert_eq!(ours.receive().unwrap(), Some(ToSupervisor::Needed(vec!["a/1/b".into()])));
        assert_eq!(ours.receive::<ToSupervisor>().unwrap(), None);
        assert!(ours.send(&ToWorker::Ping).is_err());
    }
}
