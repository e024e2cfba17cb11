//! The locks of this crate: those of std, without poisoning.
//!
//! A panic in a callback is caught at the FUSE door and answered with an error. The tables behind these locks are
//! valid after every single statement that changes them, so a poisoned lock would only turn one failed request into a
//! dead daemon. Clippy bans the originals in this crate, so that a test scheduler can take their place, as for the
//! span table (`spans::schedules`).

#![allow(clippy::disallowed_types)]

use std::sync::{self, PoisonError, RwLockWriteGuard};

pub(crate) use std::sync::{
    MutexGuard, RwLockReadGuard,
    atomic::{AtomicBool, AtomicU32},
};

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
