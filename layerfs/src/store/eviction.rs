//! Which spans leave the disk when room is needed: the least recently used ones, over all open layers.
//!
//! Tables register and report each span that lands. The order of use is approximate: a span that a reader used since
//! the last look moves to the back of the queue. The table decides whether a span can go, because it knows the pins,
//! and removes the bytes. `soci_span_store_bytes` is what is counted here.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::Weak,
    sync::atomic::{AtomicBool, Ordering},
};

use lru::LruCache;
use rustix::fs::{StatVfs, statvfs};
use ztoc::SpanId;

use crate::sync::Mutex;

/// Free bytes at which a disk that was full is tried again: enough for some spans.
const ROOM_AGAIN: u64 = 64 << 20;

/// A span of a registered table: the table's number and the span's.
type SpanKey = (u32, SpanId);

/// How much of its disk the store may use; by default all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Uncompressed bytes of spans to keep; `None` = no limit.
    pub max_bytes: Option<u64>,
    /// What has to stay free on the disk.
    pub min_free: MinFree,
}

/// Room that has to stay free on the disk for other programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// Bytes.
    Bytes(u64),
    /// Percent of the disk's size.
    Percent(u8),
}

impl Default for MinFree {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

/// The table that knows whether a span can go.
pub(crate) trait Evict: Send + Sync + std::fmt::Debug {
    /// Removes `span` from the disk, if it can go.
    fn evict(&self, span: SpanId) -> EvictAttempt;

    /// Adds how many spans of the table are empty, filling, ready and unproven.
    fn count(&self, states: &mut [u64; 4]);
}

/// What became of a span that was to be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EvictAttempt {
    Evicted,
    /// A reader has it pinned, or has read it since the last attempt.
    InUse,
}

/// All counted spans of one disk, and its limits.
#[derive(Debug)]
pub(super) struct Eviction {
    /// A folder on the disk.
    folder: PathBuf,
    limits: DiskLimits,
    /// The last write failed because the disk was full.
    full: AtomicBool,
    queue: Mutex<EvictionQueue>,
}

#[derive(Debug)]
struct EvictionQueue {
    /// Uncompressed bytes of each counted span, the least recently used first.
    order: LruCache<SpanKey, u64>,
    /// Spans out of the order while a thread tries to evict them; `true` if they were struck meanwhile.
    examined: HashMap<SpanKey, bool>,
    /// Uncompressed bytes of all counted spans.
    used: u64,
    owners: Vec<Option<Weak<dyn Evict>>>,
}

impl EvictionQueue {
    fn add(&mut self, key: SpanKey, bytes: u64) {
        self.used += bytes;
        if let Some((_, old)) = self.order.push(key, bytes) {
            self.used -= old;
        }
    }
}

impl Eviction {
    pub(super) fn new(folder: PathBuf, limits: DiskLimits) -> Self {
        let queue = EvictionQueue {
            order: LruCache::unbounded(),
            examined: HashMap::new(),
            used: 0,
            owners: Vec::new(),
        };
        Self { folder, limits, full: AtomicBool::new(false), queue: Mutex::new(queue) }
    }

    pub(super) fn statfs(&self) -> io::Result<StatVfs> {
        Ok(statvfs(&self.folder)?)
    }

    /// Notes whether the last write found the disk full.
    pub(super) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Release);
    }

    pub(super) fn join(&self, owner: Weak<dyn Evict>) -> u32 {
        let mut queue = self.queue.lock();
        let free = queue.owners.iter().position(Option::is_none);
        let number = free.unwrap_or(queue.owners.len());
        if free.is_none() {
            queue.owners.push(None);
        }
        queue.owners[number] = Some(owner);
        u32::try_from(number).expect("fewer than 2^32 layers are open")
    }

    pub(super) fn leave(&self, owner: u32) {
        let mut queue = self.queue.lock();
        let mine: Vec<_> = queue.order.iter().map(|(key, _)| *key).filter(|key| key.0 == owner).collect();
        for key in mine {
            queue.used -= queue.order.pop(&key).unwrap_or(0);
        }
        queue.owners[owner as usize] = None;
    }

    pub(super) fn counts(&self) -> ([u64; 4], u64) {
        let queue = self.queue.lock();
        let tables: Vec<_> = queue.owners.iter().flatten().filter_map(Weak::upgrade).collect();
        let used = queue.used;
        // Outside the lock: dropping the last reference to a table takes it.
        drop(queue);
        let mut states = [0; 4];
        tables.iter().for_each(|table| table.count(&mut states));
        (states, used)
    }

    pub(super) fn landed(&self, owner: u32, spans: impl IntoIterator<Item = (SpanId, u64)>) {
        let mut newest = None;
        let rounds = {
            let mut queue = self.queue.lock();
            for (span, bytes) in spans {
                queue.add((owner, span), bytes);
                newest = Some((owner, span));
            }
            queue.order.len()
        };
        // Each span is examined once: a span that was read meanwhile goes to the back of the queue.
        for _ in 0..rounds {
            let Some((key, bytes, table)) = self.next_to_examine() else { return };
            // Outside the lock, because a hole is punched. The table lives until its span is back in the order.
            let table = table.upgrade();
            let attempt = match &table {
                _ if Some(key) == newest => EvictAttempt::InUse,
                Some(table) => table.evict(key.1),
                None => EvictAttempt::Evicted,
            };
            self.examined(key, bytes, attempt);
            drop(table);
        }
    }

    /// Puts a span back in the order, or stops counting it.
    fn examined(&self, key: SpanKey, bytes: u64, attempt: EvictAttempt) {
        let mut queue = self.queue.lock();
        let was_struck = queue.examined.remove(&key) == Some(true);
        queue.used -= bytes;
        if attempt == EvictAttempt::InUse && !was_struck {
            queue.add(key, bytes);
        }
    }

    /// Stops counting a span that became absent without being evicted.
    pub(super) fn struck(&self, owner: u32, span: SpanId) {
        let key = (owner, span);
        let mut queue = self.queue.lock();
        if let Some(bytes) = queue.order.pop(&key) {
            queue.used -= bytes;
        } else if queue.examined.contains_key(&key) {
            // The examining thread knows the bytes; it must not put the span back.
            queue.examined.insert(key, true);
        }
    }

    pub(super) fn nearly_full(&self) -> bool {
        if self.full.load(Ordering::Acquire) {
            let free = self.statfs().map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
            if free < ROOM_AGAIN {
                return true;
            }
            // Another program has freed room; the store may not have written since.
            self.full.store(false, Ordering::Release);
        }
        let max_bytes = self.limits.max_bytes.unwrap_or(u64::MAX);
        self.queue.lock().used >= max_bytes / 10 * 9 || self.is_short_of(11)
    }

    /// Whether the disk has less free than `tenths` tenths of the limit.
    fn is_short_of(&self, tenths: u64) -> bool {
        if self.limits.min_free == MinFree::Bytes(0) {
            return false;
        }
        let Ok(disk) = self.statfs() else { return false };
        let (block, all, free) = (disk.f_frsize, disk.f_blocks, disk.f_bavail);
        let least = match self.limits.min_free {
            MinFree::Bytes(bytes) => bytes,
            MinFree::Percent(part) => all.saturating_mul(block) / 100 * u64::from(part.min(100)),
        };
        free.saturating_mul(block) < (least / 10).saturating_mul(tenths)
    }

    /// The least recently used span, taken out of the order, if there is too much on the disk.
    fn next_to_examine(&self) -> Option<(SpanKey, u64, Weak<dyn Evict>)> {
        let short = self.is_short_of(10);
        let mut queue = self.queue.lock();
        if queue.used <= self.limits.max_bytes.unwrap_or(u64::MAX) && !short {
            return None;
        }
        let (key, bytes) = queue.order.pop_lru()?;
        let Some(table) = queue.owners[key.0 as usize].clone() else {
            queue.used -= bytes;
            return None;
        };
        queue.examined.insert(key, false);
        Some((key, bytes, table))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A table whose spans are struck while the eviction examines them.
    #[derive(Debug)]
    struct Struck(Weak<Eviction>);

    impl Evict for Struck {
        fn evict(&self, span: SpanId) -> EvictAttempt {
            self.0.upgrade().unwrap().struck(0, span);
            EvictAttempt::InUse
        }

        fn count(&self, _: &mut [u64; 4]) {}
    }

    #[test]
    fn struck_spans_are_not_counted_even_if_eviction_examines_them_meanwhile() {
        let limits = DiskLimits { max_bytes: Some(10), ..DiskLimits::default() };
        let eviction = Arc::new(Eviction::new(PathBuf::from("/"), limits));
        let table: Arc<dyn Evict> = Arc::new(Struck(Arc::downgrade(&eviction)));
        assert_eq!(eviction.join(Arc::downgrade(&table)), 0);
        eviction.landed(0, [(SpanId(0), 6)]);
        eviction.struck(0, SpanId(0));
        assert_eq!(eviction.counts().1, 0);
        eviction.landed(0, [(SpanId(0), 6)]);
        eviction.landed(0, [(SpanId(1), 7)]);
        assert_eq!(eviction.counts().1, 7, "span 0 was struck while it was examined");
        eviction.struck(0, SpanId(5));
        assert_eq!(eviction.counts().1, 7, "a span that is not counted");
        eviction.leave(0);
        assert_eq!(eviction.counts().1, 0);
    }
}
