//! A lock without poisoning.
//!
//! What is behind the locks of this crate is valid after every single statement that changes it. So one request that
//! panics must not make the others fail.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
