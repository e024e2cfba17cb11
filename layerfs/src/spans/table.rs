//! Where each span is and who waits for it: the words, and the flights of the spans under way.
//!
//! A word goes to Filling, and its flight into the table, under one lock; so whoever finds a span Filling under
//! that lock finds its flight, and whoever finds none finds the new state. Nothing here touches a disk or a network.
//! The locks come from the module above: `schedules` has this very file with those of a scheduler.

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

/// All spans of one layer; `T` is how a flight ends.
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
    /// Somebody is at its end; what comes second is ignored.
    landing: AtomicBool,
    came: Mutex<Progress<T>>,
    /// Told when more has come.
    changed: Notify,
}

/// How far a flight has come.
#[derive(Debug)]
struct Progress<T> {
    /// Bytes from the span's first on that lie on the disk.
    bytes: u64,
    outcome: Option<T>,
}

/// What who waits for the beginning of a span is told.
#[derive(Debug)]
pub(super) enum Reached<T> {
    /// It is there; the rest is still coming.
    Beginning,
    Ended(T),
}

/// The table while spans are claimed: nobody else claims or ends anything.
#[derive(Debug)]
pub(super) struct Claims<'a, T> {
    table: &'a Table<T>,
    flights: MutexGuard<'a, Flights<T>>,
}

/// Spans that eviction leaves alone as long as this lives.
#[derive(Debug)]
pub(super) struct Pins<'a, T> {
    table: &'a Table<T>,
    range: Range<u32>,
}

impl<T> Drop for Pins<'_, T> {
    fn drop(&mut self) {
        for span in self.range.clone() {
            let _ = self.table.change(span, |word| Some(word.unpin()));
        }
    }
}

impl<T> Flight<T> {
    /// `landing`: who makes it ends it, and what else lands there is of a flight before.
    fn new(landing: bool) -> Arc<Self> {
        let came = Mutex::new(Progress { bytes: 0, outcome: None });
        Arc::new(Self { landing: AtomicBool::new(landing), came, changed: Notify::new() })
    }

    /// So many bytes from the span's first on can be read by those who have it pinned, whatever its state is.
    pub(super) fn advance(&self, bytes: u64) {
        self.came.lock().bytes = bytes;
        self.changed.notify_waiters();
    }

    /// Tells all who wait, now or later.
    pub(super) fn tell(&self, outcome: T) {
        self.came.lock().outcome = Some(outcome);
        self.changed.notify_waiters();
    }
}

impl<T: Clone> Flight<T> {
    /// WaitHistogram until the first `bytes` bytes of the span are there, or the flight has ended.
    pub(super) async fn reach(&self, bytes: u64) -> Reached<T> {
        loop {
            let changed = self.changed.notified();
            {
                let came = self.came.lock();
                if let Some(outcome) = &came.outcome {
                    return Reached::Ended(outcome.clone());
                }
                if came.bytes >= bytes {
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

    /// The flight of `span`, to be brought by the caller; none where it is there or under way.
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

    /// Spans that are not there, or about to go.
    pub(super) fn missing(&self) -> u32 {
        self.missing.load(Acquire)
    }

    fn word(&self, span: u32) -> Word {
        Word(self.words[span as usize].load(Acquire))
    }

    pub(super) fn state(&self, span: u32) -> SpanState {
        self.word(span).state()
    }

    /// Whether a reader has it pinned.
    pub(super) fn is_pinned(&self, span: u32) -> bool {
        self.word(span).pins() > 0
    }

    fn change(&self, span: u32, step: impl Fn(Word) -> Option<Word>) -> Result<Word, Word> {
        self.words[span as usize]
            .fetch_update(AcqRel, Acquire, |word| step(Word(word)).map(|word| word.0))
            .map(Word)
            .map_err(Word)
    }

    pub(super) fn pin(&self, range: Range<u32>) -> Pins<'_, T> {
        for span in range.clone() {
            let _ = self.change(span, |word| Some(word.pin()));
        }
        Pins { table: self, range }
    }

    pub(super) fn claims(&self) -> Claims<'_, T> {
        Claims { table: self, flights: self.flights.lock() }
    }

    /// Changes a word to Filling, with a flight that others can wait for and that the caller alone ends.
    pub(super) fn take(&self, span: u32, step: impl Fn(Word) -> Option<Word>) -> bool {
        let mut flights = self.flights.lock();
        let Ok(before) = self.change(span, step) else { return false };
        if before.state() == SpanState::Ready {
            self.missing.fetch_add(1, AcqRel);
        }
        flights.insert(span, Flight::new(true));
        true
    }

    /// Begins to take a span away; not one that is pinned, or was read since this was last asked.
    pub(super) fn evict(&self, span: u32) -> bool {
        let touched = self.change(span, |word| Some(word.take_touched().1));
        let touched = touched.is_ok_and(|before| before.take_touched().0);
        !touched && self.take(span, Word::evict)
    }

    /// The flight of `span`, if the caller is the first who has an end for it: it has to end it, nobody else will.
    pub(super) fn first(&self, span: u32) -> Option<Arc<Flight<T>>> {
        let flight = self.flights.lock().get(&span).cloned();
        flight.filter(|flight| !flight.landing.swap(true, AcqRel))
    }

    /// Ends a flight, for better or worse; who waits for it is to be told next. The word first, so that whoever
    /// wakes, or looks for a flight and finds none, finds the new state.
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
