//! The one FUSE connection of a daemon: mounted, served, and the layers shown in it.
//!
//! One mount carries all layers; showing a layer adds it to a table. The mount outlives the process that serves it. A
//! process that has its descriptor, and the parameters agreed with the kernel, adopts it; so does the process that
//! made it. The threads share one descriptor. It is never cloned: requests read through a clone are lost with the
//! process, requests read through the one descriptor can be queued again for the next process.
//!
//! An adopted connection is served only when its owner says so, once the slots of the earlier process are shown
//! again. The kernel knows their nodes, and readers that wait must not get ESTALE.
//!
//! No thread of the daemon opens, stats or walks a path below the mount, or the mount itself: it would wait for its
//! own answer. Mounts are looked up in `/proc/self/mountinfo`.

mod mount;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::Builder,
};

use fuser::{INodeNo, Notifier, Session};

use crate::{
    error::Error,
    fetch::Engine,
    fuse::{Counts, Door},
    layer::Layer,
    metrics::{self, Family},
    slots::Slots,
    store::Store,
    tree::Inherited,
};

pub use crate::fuse::init::Parameters;
pub use mount::Mounted;

/// A mounted connection, served from [`Connection::serve`] on.
///
/// Dropping it detaches a mount that this process made, and leaves an inherited one to the next process.
#[derive(Debug)]
pub struct Connection {
    mounted: Mounted,
    slots: Arc<Slots>,
    notifier: Notifier,
    counts: Arc<Counts>,
    /// Until it is served.
    session: Option<Session<Door>>,
    /// This process has ended it.
    detached: Arc<AtomicBool>,
}

impl Connection {
    /// Mounts at `path` and serves from threads of its own. A dead mount that an earlier process left there
    /// is detached first.
    ///
    /// # Errors
    /// When `/dev/fuse` cannot be opened or the mount is refused.
    pub fn mount(path: &Path, slots: Slots, store: &Arc<Store>, engine: &Arc<Engine>) -> Result<Self, Error> {
        // Served at once: the kernel knows no node of a mount this new.
        let mut connection = Self::adopt(Mounted::new(path)?, slots, store, engine)?;
        connection.serve(|| {})?;
        Ok(connection)
    }

    /// Takes over a mount that this process or another has made, and that no process serves any more. Until
    /// [`Connection::serve`] all requests wait in the kernel.
    ///
    /// # Errors
    /// When descriptors or memory are short.
    pub fn adopt(
        mounted: Mounted,
        slots: Slots,
        store: &Arc<Store>,
        engine: &Arc<Engine>,
    ) -> Result<Self, Error> {
        let (slots, counts) = (Arc::new(slots), Arc::new(Counts::default()));
        let door = Door {
            slots: slots.clone(),
            store: store.clone(),
            runtime: engine.runtime().clone(),
            counts: counts.clone(),
            counters: engine.counters().clone(),
        };
        let session = match mounted.session(door) {
            Ok(session) => session,
            Err(error) => {
                if !mounted.is_inherited() {
                    let _ = mounted.unmount();
                }
                return Err(error);
            }
        };
        let notifier = session.notifier();
        Ok(Self { mounted, slots, notifier, counts, session: Some(session), detached: Arc::default() })
    }

    /// Begins to answer: first the requests that an earlier process took and did not answer, then those that wait. A
    /// second call does nothing. `lost` is called when the kernel ends the connection without
    /// [`Connection::unmount`]: layers shown from then on are not visible.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn serve(&mut self, lost: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let Some(session) = self.session.take() else { return Ok(()) };
        self.mounted.resend();
        let (counts, detached) = (self.counts.clone(), self.detached.clone());
        let run = move || {
            let ended = session.run().map_err(|error| error.to_string());
            if detached.load(Ordering::Acquire) {
                return tracing::debug!(?counts, ?ended, "the FUSE connection has ended");
            }
            tracing::error!(
                ?ended,
                "the kernel ended the FUSE connection: it was unmounted or aborted by another program"
            );
            lost();
        };
        // The thread ends with the connection, perhaps long after this value is dropped; no thread joins it.
        let started = Builder::new().name("fuse".into()).spawn(run);
        started.map(drop).map_err(|e| Error::io("start threads of the FUSE connection", e))
    }

    /// How often the kernel made which request, and how many layers are shown.
    pub fn metrics(&self) -> Vec<Family> {
        let shown = self.slots.all().len() as u64;
        vec![Family::of(metrics::FUSE_REQUESTS, self.counts.all()), Family::one(metrics::LAYERS_SHOWN, shown)]
    }

    /// The mount, which the next process needs to take over.
    pub fn mounted(&self) -> &Mounted {
        &self.mounted
    }

    /// The folder at which a slot is visible.
    pub fn slot_path(&self, slot: u32) -> PathBuf {
        slot_path(self.mounted.path(), slot)
    }

    /// Marks numbers of slots up to `number` as used, whatever was stored.
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

    /// Leaves a slot of an earlier process as it is, and answers every request about it with EIO.
    pub fn refuse(&self, number: u32) {
        self.slots.refuse(number);
        self.forget_listing();
    }

    /// Removes the records of slots that were neither shown again nor refused.
    ///
    /// # Errors
    /// When the list of slots cannot be stored.
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

    /// Removes a slot. A process that still reads in it gets ESTALE.
    pub fn hide(&self, slot: u32) {
        self.slots.hide(slot);
        self.forget_listing();
    }

    /// The kernel keeps the listing of a directory that it need not open.
    fn forget_listing(&self) {
        match self.notifier.inval_inode(INodeNo::ROOT, 0, 0) {
            Ok(()) => {}
            // The kernel has not cached the root yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(%error, "tell the kernel that the root has changed"),
        }
    }

    /// Detaches the mount. The threads end when no process uses the mount any more, perhaps much later; this call
    /// does not wait.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unmount(&mut self) -> Result<(), Error> {
        self.detached.store(true, Ordering::Release);
        self.mounted.unmount()
    }
}

/// The folder at which a slot is visible in the connection that is mounted at `mount`.
pub fn slot_path(mount: &Path, slot: u32) -> PathBuf {
    mount.join(slot.to_string())
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.detached.load(Ordering::Acquire)
            && !self.mounted.is_inherited()
            && let Err(error) = self.unmount()
        {
            tracing::warn!(%error, "the FUSE mount cannot be detached; it stays until the next start");
        }
    }
}
