//! A vector that gives its memory back while it is emptied from its end. The parts of a ztoc are as large as the ztoc,
//! and are not needed once they are written. The ztoc is written from its end, and grows as this shrinks.
//!
//! An allocator gives back at once, and in part, only what is a mapping of its own. glibc makes one of every
//! allocation above `MAPPED` bytes; it takes address space, and memory only as far as it is written to.

use std::mem::size_of;
use std::ops::{Deref, DerefMut};

/// glibc's largest threshold for mappings, on machines of 64 bits, and a little.
const MAPPED: usize = 33 << 20;
/// Below this a mapping is not worth it, in bytes.
const SMALL: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct ShrinkingVec<T>(Vec<T>);

impl<T> Default for ShrinkingVec<T> {
    fn default() -> ShrinkingVec<T> {
        ShrinkingVec(Vec::new())
    }
}

impl<T> ShrinkingVec<T> {
    pub(crate) fn push(&mut self, item: T) {
        self.make_room(1);
        self.0.push(item);
    }

    /// Drops what is behind the first `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
        if (self.0.capacity() - self.0.len()) * size_of::<T>() > SMALL {
            self.0.shrink_to(len);
        }
    }

    fn make_room(&mut self, more: usize) {
        let wanted = self.0.len() + more;
        let small = SMALL / size_of::<T>().max(1);
        if wanted > self.0.capacity() && wanted > small {
            let mapped = MAPPED / size_of::<T>().max(1);
            self.0.reserve_exact(mapped.max(wanted + wanted / 2) - self.0.len());
        }
    }
}

impl<T: Copy> ShrinkingVec<T> {
    pub(crate) fn extend_from_slice(&mut self, items: &[T]) {
        self.make_room(items.len());
        self.0.extend_from_slice(items);
    }
}

impl<T> Deref for ShrinkingVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for ShrinkingVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T> From<Vec<T>> for ShrinkingVec<T> {
    fn from(items: Vec<T>) -> ShrinkingVec<T> {
        ShrinkingVec(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_gives_back() {
        let mut stack = ShrinkingVec::default();
        for number in 0..1_000_000_u64 {
            stack.push(number);
        }
        stack.extend_from_slice(&[7; 10]);
        assert_eq!((stack.len(), stack[999_999], stack[1_000_009]), (1_000_010, 999_999, 7));
        for len in (0..=1_000_000).rev().step_by(999) {
            stack.truncate(len);
            assert_eq!(stack.last().copied(), len.checked_sub(1).map(|last| last as u64));
            assert!((stack.0.capacity() - len) * 8 <= SMALL);
        }
    }
}
