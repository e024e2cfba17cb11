//! What a supervisor and its worker say to each other: one message a packet, on a pair of sockets. That the other end
//! is gone is seen there first. The two may be of different versions: what one of them does not know is no error.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use layerfs::Parameters;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// As much as a message may have: names of some hundred containers.
const MAX_BYTES: usize = 64 << 10;

/// By the name that a worker is handed its end by.
pub(crate) const CHANNEL: &str = "channel";

/// What a worker is to know of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerStart {
    /// Nobody depends on this one yet: what is wrong with the configuration is a reason not to start.
    pub(crate) is_first: bool,
    /// The one before crashed.
    pub(crate) has_crashed: bool,
    /// A mount that containers may have used is gone.
    pub(crate) has_lost: bool,
    /// What was agreed with the kernel about the mount.
    pub(crate) parameters: Parameters,
}

/// To the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// The first.
    Begin(WorkerStart),
    /// Say that you live.
    Ping,
    /// No other program will serve, and why.
    Refused(String),
    /// Finish the calls that were begun and take no more. The kernel is served on.
    Drain,
    /// The same; and then end the mount, if no container needs it. Where it is kept by somebody else, this process is
    /// ended all the same.
    Stop { is_kept: bool },
    #[serde(other)]
    Unknown,
}

/// From the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// Everything is served.
    Ready,
    /// Nothing can be, and why.
    Failed(String),
    Pong,
    /// No call is under way any more.
    Drained,
    /// The mount is gone, everything is on the disk, and the worker about to end.
    Ended,
    /// Containers need the mount; the keys of their snapshots.
    Needed(Vec<String>),
    /// Somebody wants the program as it is on the disk now.
    Upgrade,
    /// A line about what is served, for the service manager.
    Status(String),
    #[serde(other)]
    Unknown,
}

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    pub(crate) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        // Neither end may hang on the other: who does not read for that long is as good as gone.
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
