//! A lock without poisoning: what is behind the locks of this crate is valid after every single statement that
//! changes it, so one failed request must not take the others with it.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
