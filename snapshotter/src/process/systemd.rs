//! Messages to the service manager: the daemon's state, and descriptors to keep.
//!
//! The supervisor never waits for it. A service manager that does not listen must not delay containers.

use std::{
    env,
    fmt::Write,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    thread,
    time::Duration,
};

use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, sendmsg_addr, socket_with,
    },
};
use sd_notify::NotifyState;

/// An important message is sent so often, with a pause in between, until the service manager has room for it.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// Sends an important message, if there is a service manager.
///
/// # Errors
/// When it does not listen.
pub(crate) fn tell(states: &[NotifyState<'_>], kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut tries = 1;
    loop {
        match send(states, kept) {
            Err(Errno::AGAIN) if tries < TRIES => {
                tries += 1;
                thread::sleep(PAUSE);
            }
            sent => return Ok(sent?),
        }
    }
}

/// Sends a message that is repeated anyway, or does not matter.
pub(crate) fn mention(state: NotifyState<'_>) {
    let _ = send(&[state], &[]);
}

fn send(states: &[NotifyState<'_>], kept: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(path)?,
    };
    let mut text = String::new();
    for state in states {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{state}");
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !kept.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(kept)) {
        return Err(Errno::TOOBIG);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg_addr(&socket, &address, &text, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}
