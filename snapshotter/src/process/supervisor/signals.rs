//! Signals as descriptors that the supervisor can wait for.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use anyhow::Context;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::pipe,
};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalRequest {
    Stop,
    Upgrade,
}

/// SIGTERM and SIGINT stop the daemon, SIGHUP upgrades it.
#[derive(Debug)]
pub(super) struct Signals {
    stop: UnixStream,
    upgrade: UnixStream,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let listen = |signals: &[i32]| -> io::Result<UnixStream> {
            let (ours, theirs) = UnixStream::pair()?;
            for signal in signals {
                pipe::register(*signal, theirs.try_clone()?)?;
            }
            ours.set_nonblocking(true)?;
            Ok(ours)
        };
        let listened = listen(&[SIGTERM, SIGINT]).and_then(|stop| Ok((stop, listen(&[SIGHUP])?)));
        let (stop, upgrade) = listened.context("wait for signals")?;
        Ok(Self { stop, upgrade })
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.stop.as_fd(), self.upgrade.as_fd()]
    }

    /// What signals have asked for since the last call.
    pub(super) fn take(&self) -> Vec<SignalRequest> {
        let came = |mut stream: &UnixStream| stream.read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0);
        let each = [(&self.stop, SignalRequest::Stop), (&self.upgrade, SignalRequest::Upgrade)];
        each.into_iter().filter(|(stream, _)| came(stream)).map(|(_, asked)| asked).collect()
    }
}
