//! The state of each span, and the flights of the spans under way.
//!
//! A word goes to Filling, and its flight into the table, under one lock. A thread that finds a span Filling under
//! that lock finds its flight; a thread that finds no flight finds the new state. The one task that begins the
//! landing of a flight ends it. Nothing here touches a disk or a network.
//!
//! The locks come from the module above: `schedules` compiles this very file over the locks of a scheduler.

use std::{
    collections::HashMap,
    ops::Range,
    sync::Arc,
    sync::atomic::Ordering::{AcqRel, Acquire},
};

use tokio::sync::Notify;

use super::{
    state::{SpanState, Word},
    sync::{AtomicBool, AtomicU32, Mutex, MutexGuard},
};

type Flights<T> = HashMap<u32, Arc<Flight<T>>>;

/// The spans of one layer; `T` is how a flight ends.
#[derive(Debug)]
pub(super) struct Table<T> {
    words: Box<[AtomicU32]>,
    /// Guards the claims.
    flights: Mutex<Flights<T>>,
    missing: AtomicU32,
}

/// A span on its way.
#[derive(Debug)]
pub(super) struct Flight<T> {
    /// One task ends it; every other end is ignored.
    landing: AtomicBool,
    progress: Mutex<Progress<T>>,
    /// Notified when more bytes are stored, and at the end.
    changed: Notify,
}

/// How far a flight is.
#[derive(Debug)]
struct Progress<T> {
    /// Bytes on disk, from the start of the span.
    bytes: u64,
    outcome: Option<T>,
}

/// How far a flight was when a waiting reader was woken.
#[derive(Debug)]
pub(super) enum Reached<T> {
    /// The beginning is stored; the rest is still arriving.
    Beginning,
    Ended(T),
}

/// The table while one thread claims spans: no other thread claims or ends any.
#[derive(Debug)]
pub(super) struct Claims<'a, T> {
    table: &'a Table<T>,
    flights: MutexGuard<'a, Flights<T>>,
}

/// Spans that eviction leaves alone as long as the value lives.
#[derive(Debug)]
pub(super) struct Pins<'a, T> {
    table: &'a Table<T>,
    range: Range<u32>,
    unpin: fn(Word) -> Word,
}

impl<T> Drop for Pins<'_, T> {
    fn drop(&mut self) {
        for span in self.range.clone() {
            let _ = self.table.change(span, |word| Some((self.unpin)(word)));
        }
    }
}

impl<T> Flight<T> {
    /// `landing`: the caller itself ends the flight.
    fn new(landing: bool) -> Arc<Self> {
        let progress = Mutex::new(Progress { bytes: 0, outcome: None });
        Arc::new(Self { landing: AtomicBool::new(landing), progress, changed: Notify::new() })
    }

    /// The first `bytes` bytes of the span are stored: readers that have it pinned can read them, whatever its
    /// state is.
    pub(super) fn advance(&self, bytes: u64) {
        self.progress.lock().bytes = bytes;
        self.changed.notify_waiters();
    }

    /// Whether the caller is the first that has an end for the flight; then the caller has to end it.
    pub(super) fn begin_landing(&self) -> bool {
        !self.landing.swap(true, AcqRel)
    }

    /// Wakes all readers that wait, now or later.
    pub(super) fn tell(&self, outcome: T) {
        self.progress.lock().outcome = Some(outcome);
        self.changed.notify_waiters();
    }
}

impl<T: Clone> Flight<T> {
    /// WaitHistogram until the first `bytes` bytes of the span are there, or the flight has ended.
    pub(super) async fn reach(&self, bytes: u64) -> Reached<T> {
        loop {
            let changed = self.changed.notified();
            {
                let progress = self.progress.lock();
                if let Some(outcome) = &progress.outcome {
                    return Reached::Ended(outcome.clone());
                }
                if progress.bytes >= bytes {
                    return Reached::Beginning;
                }
            }
            changed.await;
        }
    }
}

impl<T> Claims<'_, T> {
    /// The flight of `span`, if it is under way.
    pub(super) fn under_way(&self, span: u32) -> Option<Arc<Flight<T>>> {
        self.flights.get(&span).cloned()
    }

    /// A new flight of `span`, which the caller has fetched; none where the span is stored or under way.
    pub(super) fn claim(&mut self, span: u32) -> Option<Arc<Flight<T>>> {
        self.table.change(span, Word::claim).ok()?;
        let flight = Flight::new(false);
        self.flights.insert(span, flight.clone());
        Some(flight)
    }
}

impl<T> Table<T> {
    pub(super) fn new(states: impl Iterator<Item = SpanState>) -> Self {
        let words: Box<[_]> = states.map(|state| AtomicU32::new(Word::new(state).0)).collect();
        let ready = words.iter().filter(|word| Word(word.load(Acquire)).state() == SpanState::Ready).count();
        let missing = u32::try_from(words.len() - ready).expect("spans are numbered by 32 bits");
        Self { words, flights: Mutex::new(HashMap::new()), missing: AtomicU32::new(missing) }
    }

    /// Spans that are not on disk.
    pub(super) fn missing(&self) -> u32 {
        self.missing.load(Acquire)
    }

    fn word(&self, span: u32) -> Word {
        Word(self.words[span as usize].load(Acquire))
    }

    pub(super) fn state(&self, span: u32) -> SpanState {
        self.word(span).state()
    }

    /// Whether a reader has the span pinned.
    pub(super) fn is_pinned(&self, span: u32) -> bool {
        self.word(span).pins() > 0
    }

    fn change(&self, span: u32, step: impl Fn(Word) -> Option<Word>) -> Result<Word, Word> {
        self.words[span as usize]
            .fetch_update(AcqRel, Acquire, |word| step(Word(word)).map(|word| word.0))
            .map(Word)
            .map_err(Word)
    }

    /// Pins spans for a reader. They count as recently used afterwards.
    pub(super) fn pin(&self, range: Range<u32>) -> Pins<'_, T> {
        self.pin_until(range, Word::unpin)
    }

    /// Pins spans for a look at their bytes that no reader asked for.
    pub(super) fn hold(&self, range: Range<u32>) -> Pins<'_, T> {
        self.pin_until(range, Word::release)
    }

    fn pin_until(&self, range: Range<u32>, unpin: fn(Word) -> Word) -> Pins<'_, T> {
        for span in range.clone() {
            let _ = self.change(span, |word| Some(word.pin()));
        }
        Pins { table: self, range, unpin }
    }

    pub(super) fn claims(&self) -> Claims<'_, T> {
        Claims { table: self, flights: self.flights.lock() }
    }

    /// Changes a word to Filling, with a flight that readers can wait for and that the caller alone ends.
    pub(super) fn take(&self, span: u32, step: impl Fn(Word) -> Option<Word>) -> bool {
        let mut flights = self.flights.lock();
        let Ok(before) = self.change(span, step) else { return false };
        if before.state() == SpanState::Ready {
            self.missing.fetch_add(1, AcqRel);
        }
        flights.insert(span, Flight::new(true));
        true
    }

    /// Begins to evict a span, unless it is pinned or was read since the last call.
    pub(super) fn evict(&self, span: u32) -> bool {
        let touched = self.change(span, |word| Some(word.take_touched().1));
        let touched = touched.is_ok_and(|before| before.take_touched().0);
        !touched && self.take(span, Word::evict)
    }

    /// Ends the flight of `span`, stored or not; the caller wakes its readers next. The word changes first, so that a
    /// thread that wakes, or finds no flight, finds the new state.
    #[must_use]
    pub(super) fn end(&self, span: u32, stored: bool) -> Option<Arc<Flight<T>>> {
        let mut flights = self.flights.lock();
        let _ = self.change(span, |word| Some(if stored { word.land() } else { word.fail() }));
        if stored {
            self.missing.fetch_sub(1, AcqRel);
        }
        flights.remove(&span)
    }
}
