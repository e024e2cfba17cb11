//! The right to use a layer's folder.
//!
//! Only one span table is valid per layer folder: the one opened last. An older table may live on until its last
//! request ends. From then on it writes nothing, and its reads do not count: the new table punches holes that the
//! pins of the old one do not prevent.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    sync::{Arc, Weak},
};

use super::LayerId;
use crate::sync::{Mutex, RwLock, RwLockReadGuard};

/// The newest lease of each open folder.
pub(super) type Leases = Mutex<HashMap<LayerId, Weak<FolderLease>>>;

/// The right to use one folder, until it is opened again.
#[derive(Debug, Default)]
pub(super) struct FolderLease {
    over: AtomicBool,
    /// Held for reading during a write.
    writing: RwLock<()>,
}

/// Takes the lease of a folder, and ends the one before.
pub(super) fn take(leases: &Leases, id: &LayerId) -> Arc<FolderLease> {
    let lease = Arc::new(FolderLease::default());
    let mut leases = leases.lock();
    leases.retain(|_, lease| lease.strong_count() > 0);
    let before = leases.insert(*id, Arc::downgrade(&lease));
    if let Some(before) = before.and_then(|before| before.upgrade()) {
        before.end();
    }
    lease
}

impl FolderLease {
    /// Ends the lease; returns when the last write of its holder is done.
    fn end(&self) {
        self.over.store(true, Ordering::Release);
        drop(self.writing.write());
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Keeps the end of the lease waiting until the value is dropped.
    pub(super) fn write(&self) -> RwLockReadGuard<'_, ()> {
        self.writing.read()
    }
}
