//! What the supervisor holds for its workers: the root's lock, the mount, and the socket that containerd calls.
//!
//! All three may be older than the supervisor: the service manager kept them, or a worker whose supervisor died hands
//! them over. Only if neither has the mount is a new one made. Containers that used the old mount have lost it then.

use std::{
    env,
    fs::{self, File},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use layerfs::Mounted;
use rustix::{
    fs::{FlockOperation, MemfdFlags, flock, fstat, memfd_create},
    net::sockopt::socket_acceptconn,
};
use sd_notify::NotifyState::{FdName, FdStore, FdStoreRemove};

use crate::{
    process::{
        descriptors, go_state,
        handover::{self, HandedOver},
        systemd,
    },
    socket::{self, BY_DESCRIPTOR, DEFAULT_SOCKET, listen, path_of},
};

/// A worker that ends closes its files within moments, and one that is started listens within a second.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Names of descriptors that workers inherit. The first two have these names in the service manager's store, too.
pub(crate) const FUSE: &str = "fuse";
pub(crate) const LOCK: &str = "lock";
pub(crate) const LISTENER: &str = "listener";
pub(crate) const NOTES: &str = "notes";
pub(crate) const CONFIG: &str = "config";

/// What a daemon needs one of, and containers depend on.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) root: PathBuf,
    pub(crate) mounted: Mounted,
    pub(crate) lock: OwnedFd,
    pub(crate) listener: UnixListener,
    /// Memory in which workers note which layers they are working on.
    pub(crate) notes: OwnedFd,
    /// The socket's path, if the daemon made the socket and has to remove it.
    pub(crate) socket: Option<PathBuf>,
    /// The service manager has copies of the mount and the lock.
    pub(crate) is_kept: bool,
}

/// How a mount was repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountRepair {
    NotNeeded,
    /// Another process had unmounted it. Containers still use it.
    PutBack,
    /// The kernel has ended the old one.
    New,
}

/// Whether the service manager keeps descriptors while no process of the daemon runs. systemd says so itself since
/// version 254; for older ones the unit does.
fn has_store() -> bool {
    let is_set = |name| env::var(name).is_ok_and(|value: String| !value.is_empty());
    is_set("NOTIFY_SOCKET") && is_set("FDSTORE") && env::var("FDSTORE").as_deref() != Ok("0")
}

/// The path of the mount below a root.
pub(crate) fn mount_path(root: &Path) -> PathBuf {
    root.join("fuse")
}

/// Where the parameters that were negotiated with the kernel are stored.
pub(crate) fn note_path(root: &Path) -> PathBuf {
    root.join("fuse.json")
}

impl Resources {
    /// Takes over what an earlier daemon left, and makes what is missing.
    ///
    /// # Errors
    /// When another daemon uses the root or the socket, or the kernel refuses the mount.
    pub(crate) fn obtain(address: &str, root: &Path) -> anyhow::Result<Self> {
        let path = path_of(address)?;
        socket::make_folder(root).with_context(|| format!("make root folder {}", root.display()))?;
        // The path as the kernel names it: mounts of an earlier daemon are found by it.
        let root = fs::canonicalize(root).with_context(|| format!("find root folder {}", root.display()))?;
        go_state::check(&root).map_err(anyhow::Error::msg)?;
        let mut passed = descriptors::of_service_manager()
            .context("take the descriptors that the service manager passes")?;
        let mut kept = |wanted: &str| {
            let place = passed.iter().position(|(name, _)| name == wanted)?;
            Some(passed.swap_remove(place).1)
        };
        let (mut fuse, lock, mut given_socket, mut giver) = (kept(FUSE), kept(LOCK), None, None);
        // The service manager has them already, and need not get them again.
        let mut is_kept = fuse.is_some() && lock.is_some();
        let lock = match take_root(&root, lock)? {
            Taken::Free(lock) => lock,
            Taken::HandedOver(given) => {
                (fuse, given_socket, giver) = (Some(given.fuse), given.socket, Some(given.giver));
                is_kept = false;
                given.lock
            }
        };
        let (listener, socket) = listener(address, path, passed, given_socket)?;
        // Only now: if anything failed before, the worker that gave them would go on serving.
        if let Some(giver) = giver {
            giver.end()?;
            tracing::info!("took over from a worker whose supervisor was gone");
        }
        let mounted = match fuse.map(|fuse| Mounted::handed(&mount_path(&root), &note_path(&root), fuse)) {
            Some(Ok(mounted)) => Ok(mounted),
            Some(Err(error)) => {
                tracing::error!(%error, "the mount of an earlier daemon cannot be used; a new one is made");
                mount(&root)
            }
            None => mount(&root),
        };
        let mounted = mounted.inspect_err(|_| drop(socket.as_ref().map(fs::remove_file)))?;
        let notes = memfd_create("soci notes", MemfdFlags::CLOEXEC).context("make memory for notes")?;
        let is_kept = is_kept && has_store() && mounted.is_inherited();
        let mut held = Self { root, mounted, lock, listener, notes, socket, is_kept };
        if !is_kept {
            held.store();
        }
        Ok(held)
    }

    /// Whether the mount is new, so that no container uses it.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.mounted.is_inherited()
    }

    /// Makes a new mount if the kernel has ended the old one, and puts the old one back if another process unmounted it.
    pub(crate) fn repair_mount(&mut self) -> anyhow::Result<MountRepair> {
        if self.mounted.has_ended() {
            self.mounted = mount(&self.root)?;
            self.store();
            return Ok(MountRepair::New);
        }
        Ok(if self.mounted.put_back()? { MountRepair::PutBack } else { MountRepair::NotNeeded })
    }

    /// Gives the service manager copies of the mount and the lock, in place of earlier ones.
    fn store(&mut self) {
        self.is_kept = has_store();
        for (name, descriptor) in [(FUSE, self.mounted.as_fd()), (LOCK, self.lock.as_fd())] {
            let stored = systemd::tell(&[FdStoreRemove, FdName(name)], &[])
                .and_then(|()| systemd::tell(&[FdStore, FdName(name)], &[descriptor]));
            if let Err(error) = stored {
                tracing::warn!(%error, name, "give a descriptor to the service manager");
                self.is_kept = false;
            }
        }
    }

    /// Has the service manager forget the mount and the lock.
    pub(crate) fn forget(&self) {
        for name in [FUSE, LOCK] {
            let _ = systemd::tell(&[FdStoreRemove, FdName(name)], &[]);
        }
    }

    /// Removes the socket, so that containerd is refused instead of waiting.
    pub(crate) fn stop_listening(&self) {
        if let Some(socket) = &self.socket {
            let _ = fs::remove_file(socket);
        }
    }
}

fn mount(root: &Path) -> anyhow::Result<Mounted> {
    let mounted = Mounted::new(&mount_path(root)).context("mount the layers")?;
    mounted.note(&note_path(root))?;
    Ok(mounted)
}

/// How the daemon got its root.
enum Taken {
    Free(OwnedFd),
    HandedOver(HandedOver),
}

/// Takes the lock of a root: two daemons would each detach the other's mount. A daemon that is about to end has the lock
/// for a moment more.
fn take_root(root: &Path, mut kept: Option<OwnedFd>) -> anyhow::Result<Taken> {
    let path = root.join("lock");
    let start = Instant::now();
    loop {
        // Even if the service manager kept everything: a worker that still serves has to end.
        if let Some(given) = handover::ask(root)? {
            return Ok(Taken::HandedOver(given));
        }
        // A lock that was kept may belong to another root, or to an earlier folder of this path.
        if let Some(lock) = kept.take().filter(|lock| is_at(lock, &path)) {
            return Ok(Taken::Free(lock));
        }
        let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(Taken::Free(file.into()));
        }
        if start.elapsed() > LOCK_LIMIT {
            bail!("another soci-snapshotter-grpc uses the root folder {}", root.display());
        }
        thread::sleep(LOCK_PAUSE);
    }
}

fn is_at(file: &OwnedFd, path: &Path) -> bool {
    let Ok(found) = fs::metadata(path) else { return false };
    fstat(file).is_ok_and(|own| (own.st_dev, own.st_ino) == (found.dev(), found.ino()))
}

/// The socket of an address: a path, `unix://PATH`, or `fd://` for the one that the service manager passed.
fn listener(
    address: &str,
    path: PathBuf,
    passed: Vec<descriptors::NamedDescriptor>,
    given: Option<(PathBuf, OwnedFd)>,
) -> anyhow::Result<(UnixListener, Option<PathBuf>)> {
    if address == BY_DESCRIPTOR {
        // Other descriptors in the store, of another version perhaps, are no sockets.
        let mut sockets = passed;
        sockets.retain(|(_, passed)| socket_acceptconn(passed).unwrap_or(false));
        match (sockets.pop(), sockets.len()) {
            (Some((_, socket)), 0) => return Ok((socket.into(), None)),
            (Some(_), more) => bail!("address {address}: {} sockets were passed, one is needed", more + 1),
            (None, _) => tracing::info!(socket = DEFAULT_SOCKET, "address {address}: no socket was passed"),
        }
    }
    let listener = match given {
        Some((known, socket)) if known == path => socket.into(),
        _ => listen(&path)?,
    };
    Ok((listener, Some(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_a_path_or_the_passed_socket() {
        let folder = tempfile::tempdir().unwrap();
        let socket = |name: &str| {
            let path = folder.path().join(name);
            (path.clone(), OwnedFd::from(listen(&path).unwrap()))
        };
        let (given, passed) = (socket("given"), socket("passed"));
        let address = format!("unix://{}", given.0.display());
        let at = |address: &str| path_of(address).unwrap();
        let known = Some((given.0.clone(), given.1));
        let (_, path) = listener(&address, at(&address), Vec::new(), known).unwrap();
        assert_eq!(path, Some(given.0));
        let (_, path) = listener("fd://", at("fd://"), vec![("soci.socket".into(), passed.1)], None).unwrap();
        assert_eq!(path, None);
        let file = tempfile::tempfile().unwrap();
        let kept = ("notes".to_owned(), OwnedFd::from(file));
        let (_, path) =
            listener("fd://", at("fd://"), vec![("s".to_owned(), socket("third").1), kept], None).unwrap();
        assert_eq!(path, None, "a kept file is no socket");
        let two = ["a", "b"].map(|name| (name.to_owned(), socket(name).1)).into();
        assert!(
            listener("fd://", at("fd://"), two, None)
                .unwrap_err()
                .to_string()
                .contains("2 sockets were passed")
        );
        assert!(path_of("tcp://x").is_err());
    }

    #[test]
    fn a_kept_lock_counts_for_its_own_root_only() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let taken = |root: &Path, kept| match take_root(root, kept).unwrap() {
            Taken::Free(lock) => lock,
            Taken::HandedOver(_) => panic!("no worker serves there"),
        };
        let lock = taken(one.path(), None);
        let kept = lock.try_clone().unwrap();
        assert!(is_at(&taken(one.path(), Some(kept)), &one.path().join("lock")), "the same");
        let moved = taken(other.path(), Some(lock.try_clone().unwrap()));
        assert!(is_at(&moved, &other.path().join("lock")), "its own");
        let second = File::open(other.path().join("lock")).unwrap();
        assert!(flock(&second, FlockOperation::NonBlockingLockExclusive).is_err(), "and it is locked");
    }
}
