//! The one FUSE connection of a daemon: mounted, served, and the layers shown in it.
//!
//! One mount carries all layers; showing a layer is an insert into a table. The descriptor of `/dev/fuse` is
//! opened here and shared by a few threads (never cloned: requests read through a clone are lost with the
//! process, requests on the one descriptor can be had back by the next).
//!
//! Nobody of ours opens, stats or walks below the mount, the mount itself included: it would wait for itself.
//! What is mounted where is read from `/proc/self/mountinfo`.

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{Builder, JoinHandle},
};

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    cache::Store, error::Error, fetch::Engine, fuse::Door, layer::Layer, slots::Slots, tree::Inherited,
};

/// Three requests are dealt with at once on few cores: none of them waits for a network.
const THREADS: usize = 3;
/// In KiB; the kernel's own 128 make a sequential reader wait for each 128 KiB.
const READ_AHEAD: &str = "1024";

/// A mounted and served connection.
#[derive(Debug)]
pub struct Connection {
    path: PathBuf,
    slots: Arc<Slots>,
    notifier: Notifier,
    served: Option<JoinHandle<()>>,
}

impl Connection {
    /// Mounts at `path` and serves from threads of its own. A dead mount that an earlier process left there
    /// is detached first.
    ///
    /// # Errors
    /// When `/dev/fuse` cannot be opened or the mount is refused.
    pub fn mount(path: &Path, slots: Slots, store: &Arc<Store>, engine: &Arc<Engine>) -> Result<Self, Error> {
        let doing = || format!("mount {}", path.display());
        while mounted_device(path).map_err(|e| Error::io(doing(), e))?.is_some() {
            tracing::warn!(path = %path.display(), "a mount of an earlier process is detached");
            unmount(path, UnmountFlags::DETACH).map_err(|e| Error::io(doing(), e.into()))?;
        }
        fs::create_dir_all(path).map_err(|e| Error::io(doing(), e))?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|e| {
            Error::io(format!("{}: open /dev/fuse (is the kernel module fuse loaded?)", doing()), e)
        })?;
        mount_at(path, &device).map_err(|e| Error::io(doing(), e))?;
        match Self::serve(path, device.into(), slots, store, engine) {
            Ok(connection) => Ok(connection),
            Err(error) => {
                let _ = unmount(path, UnmountFlags::DETACH);
                Err(error)
            }
        }
    }

    fn serve(
        path: &Path,
        device: OwnedFd,
        slots: Slots,
        store: &Arc<Store>,
        engine: &Arc<Engine>,
    ) -> Result<Self, Error> {
        let slots = Arc::new(slots);
        let door = Door { slots: slots.clone(), store: store.clone(), runtime: engine.runtime().clone() };
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        config.clone_fd = false;
        let session = Session::from_fd(door, device, SessionACL::All, config)
            .map_err(|e| Error::io("greet the kernel's FUSE", e))?;
        let notifier = session.notifier();
        let served = Builder::new()
            .name("fuse".into())
            .spawn(move || match session.run() {
                Ok(()) => tracing::debug!("the FUSE connection has ended"),
                Err(error) => tracing::error!(%error, "the FUSE connection has ended"),
            })
            .map_err(|e| Error::io("start threads of the FUSE connection", e))?;
        raise_read_ahead(path);
        Ok(Self { path: path.to_owned(), slots, notifier, served: Some(served) })
    }

    /// The folder a slot is seen at.
    pub fn slot_path(&self, slot: u32) -> PathBuf {
        self.path.join(slot.to_string())
    }

    /// Numbers of slots up to `number` are in use, whatever was stored.
    pub fn skip(&self, number: u32) {
        self.slots.skip(number);
    }

    /// Shows a layer in the slot in which an earlier process showed it.
    ///
    /// # Errors
    /// When the slot cannot be stored.
    pub fn show_again(&self, number: u32, layer: &Arc<Layer>, inherited: &[Inherited]) -> Result<(), Error> {
        let shown = self.slots.show_again(number, layer, inherited);
        self.forget_listing();
        shown
    }

    /// Drops what was stored of slots that were not shown again.
    ///
    /// # Errors
    /// When that cannot be stored.
    pub fn forget_unshown(&self) -> Result<(), Error> {
        self.slots.forget_unshown()
    }

    /// Shows a layer and returns its slot: an existing one where the same layer with the same inherited
    /// attributes has one.
    ///
    /// # Errors
    /// When the slot cannot be stored.
    pub fn show(&self, layer: &Arc<Layer>, inherited: &[Inherited]) -> Result<u32, Error> {
        let slot = self.slots.show(layer, inherited)?;
        self.forget_listing();
        Ok(slot)
    }

    /// Takes a slot away. Whoever still reads in it gets ESTALE.
    ///
    /// # Errors
    /// When that cannot be stored; it is away all the same, until the next start.
    pub fn hide(&self, slot: u32) -> Result<(), Error> {
        let hidden = self.slots.hide(slot);
        self.forget_listing();
        hidden
    }

    /// The kernel keeps the listing of a directory it need not open.
    fn forget_listing(&self) {
        match self.notifier.inval_inode(INodeNo::ROOT, 0, 0) {
            Ok(()) => {}
            // It has nothing of the root yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(%error, "tell the kernel that the root has changed"),
        }
    }

    /// Detaches the mount. The threads end when nobody uses it any more, which may be long after; they are
    /// not waited for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unmount(&mut self) -> Result<(), Error> {
        drop(self.served.take());
        unmount(&self.path, UnmountFlags::DETACH)
            .map_err(|e| Error::io(format!("unmount {}", self.path.display()), e.into()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.served.is_some()
            && let Err(error) = self.unmount()
        {
            tracing::warn!(%error, "the FUSE mount stays");
        }
    }
}

fn mount_at(path: &Path, device: &File) -> io::Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions\0",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::from_vec_with_nul(options.into_bytes()).map_err(io::Error::other)?;
    // Neither nodev nor nosuid: device nodes and setuid programs of an image must work.
    mount("soci", path, "fuse.soci", MountFlags::RDONLY, options.as_c_str())?;
    Ok(())
}

/// `major:minor` of what is mounted at `path`, from the list of mounts.
fn mounted_device(path: &Path) -> io::Result<Option<String>> {
    let wanted = path.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.rfind(|fields| fields.get(4).is_some_and(|at| unescape(at) == wanted));
    Ok(found.and_then(|fields| fields.get(2).map(ToString::to_string)))
}

/// The list of mounts writes blanks, newlines and backslashes as octal numbers.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn raise_read_ahead(path: &Path) {
    let raised = mounted_device(path).and_then(|device| {
        let device = device.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not mounted"))?;
        fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD)
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "raise read-ahead of the FUSE mount; sequential reads are slower");
    }
}
