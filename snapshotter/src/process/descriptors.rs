//! Descriptors that go from process to process: from the supervisor to its worker, and from the service manager to
//! the supervisor.
//!
//! A number in the environment becomes a value that owns the descriptor. This is the one island of `unsafe` in this crate.

#![allow(unsafe_code)]

use std::{
    env, io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    process::{self, Command},
};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// In a worker's environment: `fuse=5 lock=6 …`.
const VARIABLE: &str = "SOCI_DESCRIPTORS";
/// The descriptors below it are standard input, output and error.
const FIRST: RawFd = 3;

/// A descriptor, and the name of its purpose.
pub(crate) type NamedDescriptor = (String, OwnedFd);

/// What the supervisor passed to this process. `None` if no supervisor started it.
///
/// # Errors
/// When a descriptor that the environment names is not open, or was taken before.
pub(crate) fn of_supervisor() -> Option<io::Result<Vec<NamedDescriptor>>> {
    Some(named(&env::var(VARIABLE).ok()?))
}

/// What the service manager passed: sockets that it listens on, and descriptors that it kept.
///
/// # Errors
/// When a descriptor that the environment names is not open, or was taken before.
pub(crate) fn of_service_manager() -> io::Result<Vec<NamedDescriptor>> {
    let variable = |name| env::var(name).unwrap_or_default();
    if variable("LISTEN_PID") != process::id().to_string() {
        return Ok(Vec::new());
    }
    let count: RawFd = variable("LISTEN_FDS").parse().map_err(io::Error::other)?;
    let names = variable("LISTEN_FDNAMES");
    let names = names.split(':').chain(std::iter::repeat(""));
    (FIRST..FIRST.saturating_add(count))
        .zip(names)
        .map(|(number, name)| Ok((name.to_owned(), own(number)?)))
        .collect()
}

fn named(text: &str) -> io::Result<Vec<NamedDescriptor>> {
    let each = text.split_whitespace().map(|pair| {
        let pair = pair.split_once('=').and_then(|(name, number)| Some((name, number.parse().ok()?)));
        let (name, number) = pair.ok_or_else(|| io::Error::other(format!("{VARIABLE}={text}")))?;
        Ok((name.to_owned(), own(number)?))
    });
    each.collect()
}

/// Takes an inherited descriptor, and makes it close-on-exec.
fn own(number: RawFd) -> io::Result<OwnedFd> {
    let is_ours = || io::Error::other(format!("descriptor {number} was not inherited"));
    if number < FIRST {
        return Err(is_ours());
    }
    // SAFETY: the descriptor is only queried, and an error says that it is not open.
    let seen = unsafe { BorrowedFd::borrow_raw(number) };
    // Descriptors that this process opened or has taken have the flag. Those that came through an exec do not.
    if fcntl_getfd(seen)?.contains(FdFlags::CLOEXEC) {
        return Err(is_ours());
    }
    fcntl_setfd(seen, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and no value in this process owns it: every owned descriptor has the flag.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Descriptors that the next started program inherits, by name, until this is dropped. No other program may be started
/// meanwhile: the supervisor has one thread.
#[derive(Debug)]
pub(crate) struct Passing<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Passing<'a> {
    pub(crate) fn to(command: &mut Command, named: &[(&str, BorrowedFd<'a>)]) -> io::Result<Self> {
        let mut passing = Self(Vec::new());
        for (_, descriptor) in named {
            fcntl_setfd(descriptor, FdFlags::empty())?;
            passing.0.push(*descriptor);
        }
        let numbers = named.iter().map(|(name, descriptor)| format!("{name}={}", descriptor.as_raw_fd()));
        command.env(VARIABLE, numbers.collect::<Vec<_>>().join(" "));
        Ok(passing)
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        for descriptor in &self.0 {
            let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn inherited_descriptors_are_taken_once() {
        let file = tempfile::tempfile().unwrap();
        let number = file.as_raw_fd();
        assert!(own(number).is_err(), "this process opened it");
        for text in ["0", "fuse", "fuse=x", "fuse=0", "fuse=99999"] {
            assert!(named(text).is_err(), "{text}");
        }
        let copy = rustix::io::dup(&file).unwrap(); // as after an exec: without the flag
        let number = copy.as_raw_fd();
        let owned = named(&format!("data={number}")).unwrap();
        assert_eq!((owned[0].0.as_str(), owned[0].1.as_raw_fd()), ("data", number));
        assert!(own(number).is_err(), "it was taken before");
        std::mem::forget(copy); // `owned` owns the descriptor now
    }

    #[test]
    fn passed_descriptors_are_closed_for_other_programs() {
        let file = tempfile::tempfile().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo \"$SOCI_DESCRIPTORS\"; test -e /proc/self/fd/${SOCI_DESCRIPTORS#data=}"]);
        let passing = Passing::to(&mut command, &[("data", file.as_fd())]).unwrap();
        let output = command.output().unwrap();
        drop(passing);
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("data={}", file.as_raw_fd()));
        assert!(!command.output().unwrap().status.success(), "they are closed again");
    }
}
