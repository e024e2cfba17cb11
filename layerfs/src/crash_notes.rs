//! Which layers the threads of this process work on, noted where the next process can read it.
//!
//! A layer that makes a worker crash would crash the next worker, too. The supervisor keeps a piece of memory that
//! outlives workers. Each opening of a layer, each request of the kernel about one, and each span that is inflated
//! occupies an entry of that memory as long as it lasts. Entries that are still there after a crash name the layers
//! that threads worked on at that moment.
//!
//! This is a hint, not proof: the 64 entries can run out, and layers used by other threads at that moment are listed
//! too.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{error::Error, raw::Words};

/// Far more than there are threads.
const ENTRIES: usize = 64;

/// A layer as a number that is not 0; see [`crate::LayerId::mark`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerMark(pub u64);

/// The entries of this process. The default has none and notes nothing.
#[derive(Debug, Default)]
pub struct CrashNotes {
    entries: Option<Words>,
    next: AtomicUsize,
}

impl CrashNotes {
    /// Notes in `file`, a file in memory that another process keeps open. Returns also the layers that the last
    /// process worked on when it ended.
    ///
    /// # Errors
    /// When the file cannot be mapped.
    pub fn noted_in(file: &File) -> Result<(Arc<Self>, Vec<LayerMark>), Error> {
        let doing = "map the notes of layers in use";
        file.set_len((ENTRIES * size_of::<u64>()) as u64).map_err(|e| Error::io(doing, e))?;
        let entries = Words::of(file, ENTRIES).map_err(|e| Error::io(doing, e))?;
        let mut before = Vec::new();
        for index in 0..ENTRIES {
            match entries.word(index).swap(0, Ordering::Relaxed) {
                0 => {}
                mark => before.push(LayerMark(mark)),
            }
        }
        Ok((Arc::new(Self { entries: Some(entries), next: AtomicUsize::new(0) }), before))
    }

    /// Notes a layer until the value is dropped.
    pub(crate) fn note(self: &Arc<Self>, layer: LayerMark) -> InProgress {
        let free = self.entries.as_ref().and_then(|entries| {
            // Begins at another entry each time, so that threads seldom meet.
            let first = self.next.fetch_add(1, Ordering::Relaxed);
            (0..ENTRIES).map(|step| (first.wrapping_add(step)) % ENTRIES).find(|index| {
                let word = entries.word(*index);
                word.compare_exchange(0, layer.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            })
        });
        InProgress { notes: self.clone(), index: free }
    }
}

/// Work on a layer, noted until it is dropped.
#[derive(Debug)]
pub(crate) struct InProgress {
    notes: Arc<CrashNotes>,
    index: Option<usize>,
}

impl Drop for InProgress {
    fn drop(&mut self) {
        if let (Some(entries), Some(index)) = (&self.notes.entries, self.index) {
            entries.word(index).store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_reads_which_layers_the_last_one_worked_on() {
        let file = tempfile::tempfile().unwrap();
        let (notes, before) = CrashNotes::noted_in(&file).unwrap();
        assert!(before.is_empty());
        let (one, other) = (LayerMark(1), LayerMark(u64::MAX));
        let lasting = notes.note(one);
        drop(notes.note(other));
        assert_eq!(CrashNotes::noted_in(&file).unwrap().1, [one]);
        assert!(CrashNotes::noted_in(&file).unwrap().1.is_empty(), "notes are reported once");
        drop(lasting);
        let many: Vec<_> = (0..2 * ENTRIES).map(|_| notes.note(one)).collect();
        drop(many);
        assert!(CrashNotes::noted_in(&file).unwrap().1.is_empty(), "every entry is free again");
        drop(Arc::new(CrashNotes::default()).note(one));
    }
}
