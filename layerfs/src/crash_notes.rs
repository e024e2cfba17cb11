//! FillScope layers this process is at, noted where the next process can read it.
//!
//! A layer that makes us crash would do so again and again. Who starts processes has a piece of memory that outlives
//! them; each opening of a layer, each request of the kernel about one and each span of it that is inflated has a word of
//! it as long as it lasts. What stands there after a crash was under way then. It is a hint: words may run out, and who
//! is at something else at the same moment is noted as well.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{error::Error, raw::Words};

/// Far more than there are threads.
const WORDS: usize = 64;

/// A layer in one word, which is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerMark(pub u64);

/// See the module.
#[derive(Debug, Default)]
pub struct CrashNotes {
    words: Option<Words>,
    next: AtomicUsize,
}

impl CrashNotes {
    /// Notes in `file`, which somebody else keeps, in memory; and what was under way when the last one who did ended.
    ///
    /// # Errors
    /// When the file cannot be mapped.
    pub fn noted_in(file: &File) -> Result<(Arc<Self>, Vec<LayerMark>), Error> {
        let doing = "note what is under way";
        file.set_len((WORDS * size_of::<u64>()) as u64).map_err(|e| Error::io(doing, e))?;
        let words = Words::of(file, WORDS).map_err(|e| Error::io(doing, e))?;
        let mut before = Vec::new();
        for place in 0..WORDS {
            match words.word(place).swap(0, Ordering::Relaxed) {
                0 => {}
                mark => before.push(LayerMark(mark)),
            }
        }
        Ok((Arc::new(Self { words: Some(words), next: AtomicUsize::new(0) }), before))
    }

    /// From here until the value is dropped.
    pub(crate) fn at(self: &Arc<Self>, layer: LayerMark) -> InProgress {
        let free = self.words.as_ref().and_then(|words| {
            // Another place each time: threads do not get in each other's way.
            let first = self.next.fetch_add(1, Ordering::Relaxed);
            (0..WORDS).map(|step| (first.wrapping_add(step)) % WORDS).find(|place| {
                let word = words.word(*place);
                word.compare_exchange(0, layer.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            })
        });
        InProgress { work: self.clone(), place: free }
    }
}

/// Something under way.
#[derive(Debug)]
pub(crate) struct InProgress {
    work: Arc<CrashNotes>,
    place: Option<usize>,
}

impl Drop for InProgress {
    fn drop(&mut self) {
        if let (Some(words), Some(place)) = (&self.work.words, self.place) {
            words.word(place).store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_there_for_the_next() {
        let file = tempfile::tempfile().unwrap();
        let (work, before) = CrashNotes::noted_in(&file).unwrap();
        assert!(before.is_empty());
        let (one, other) = (LayerMark(1), LayerMark(u64::MAX));
        let lasting = work.at(one);
        drop(work.at(other));
        assert_eq!(CrashNotes::noted_in(&file).unwrap().1, [one]);
        assert!(CrashNotes::noted_in(&file).unwrap().1.is_empty(), "once");
        drop(lasting);
        let many: Vec<_> = (0..2 * WORDS).map(|_| work.at(one)).collect();
        drop(many);
        assert!(CrashNotes::noted_in(&file).unwrap().1.is_empty(), "all words were given back");
        drop(Arc::new(CrashNotes::default()).at(one));
    }
}
