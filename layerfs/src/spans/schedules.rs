//! The table of spans under a scheduler that chooses, at random, which thread runs next at every lock and every
//! atomic.
//!
//! It is the very file `table.rs`, compiled a second time over the scheduler's locks. A few lines here stand for
//! the rest of the crate: readers that pin, claim and wait, flights that land, fail or end twice, eviction, damage,
//! proof. When a waiting reader is never woken, the scheduler sees that no thread can go on, and fails the test.

mod sync {
    pub(super) use shuttle::sync::{
        MutexGuard,
        atomic::{AtomicBool, AtomicU32},
    };

    #[derive(Debug)]
    pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

#[expect(clippy::duplicate_mod, reason = "the same table over other locks is what this is about")]
#[path = "table.rs"]
mod table;

use std::{
    ops::Range,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use shuttle::{
    future::block_on,
    rand::{Rng, thread_rng},
    thread,
};

use super::state::{self, SpanState, Word};
use table::{Flight, Reached, Table};

const SCHEDULES: usize = 2_000;
const SPANS: u32 = 3;
/// Bytes of a span.
const LENGTH: u64 = 2;

/// How a flight ended: well or not.
type FlightResult = Result<(), ()>;

/// A layer's folder, as far as the table's rules are about it. The scheduler does not switch threads at these
/// atomics: they only observe.
struct World {
    table: Table<FlightResult>,
    /// By span: how many of its bytes are stored; the others are a hole.
    on_disk: Vec<AtomicU64>,
    /// By span: a thread fetches, evicts or compares it.
    held: Vec<AtomicBool>,
}

impl World {
    fn new(states: [SpanState; SPANS as usize]) -> Arc<Self> {
        Arc::new(Self {
            table: Table::new(states.into_iter()),
            on_disk: states
                .iter()
                .map(|state| AtomicU64::new(if *state == SpanState::Empty { 0 } else { LENGTH }))
                .collect(),
            held: states.iter().map(|_| AtomicBool::new(false)).collect(),
        })
    }

    fn hold(&self, span: u32) {
        assert!(!self.held[span as usize].swap(true, SeqCst), "span {span} is claimed twice");
    }

    fn end(&self, span: u32, outcome: FlightResult) {
        assert!(self.held[span as usize].swap(false, SeqCst), "span {span} ends twice");
        self.table.end(span, outcome.is_ok()).expect("it was under way").tell(outcome);
    }

    fn is_on_disk(&self, span: u32) -> bool {
        self.on_disk[span as usize].load(SeqCst) == LENGTH
    }

    /// Lands a span, or fails to; a second end of the same flight is ignored.
    fn land(&self, span: u32, flight: &Flight<FlightResult>, outcome: FlightResult) {
        if flight.begin_landing() {
            // Stored bytes are written once more: they are the same.
            self.on_disk[span as usize].fetch_max(1, SeqCst);
            flight.advance(1);
            thread::yield_now();
            if outcome.is_ok() {
                self.on_disk[span as usize].store(LENGTH, SeqCst);
                flight.advance(LENGTH);
            }
            self.end(span, outcome);
        }
    }

    fn evict(&self, span: u32) {
        if self.table.evict(span) {
            self.hold(span);
            self.on_disk[span as usize].store(0, SeqCst);
            thread::yield_now();
            self.end(span, Err(()));
        }
    }

    /// A span that cannot be read becomes absent; its bytes stay where they are.
    fn damage(&self, span: u32) {
        if self.table.take(span, Word::damage) {
            self.hold(span);
            thread::yield_now();
            self.end(span, Err(()));
        }
    }

    fn prove(&self, span: u32) {
        if self.table.take(span, Word::doubt) {
            self.hold(span);
            let outcome = thread_rng().r#gen::<bool>().then_some(()).ok_or(());
            self.end(span, outcome);
        }
    }

    /// Hashes a ready span, as the check of a diff ID does: no use of the span, and no hole under it.
    fn hash(&self, span: u32) {
        let _pin = self.table.hold(span..span + 1);
        if self.table.state(span) == SpanState::Ready {
            thread::yield_now();
            assert!(self.is_on_disk(span), "a hole under the hash");
        }
    }

    /// Reads when every span is ready; a pinned span stays ready.
    fn read_ready(&self, range: &Range<u32>) -> bool {
        let _pins = self.table.pin(range.clone());
        if !range.clone().all(|span| self.table.state(span) == SpanState::Ready) {
            return false;
        }
        for _ in 0..2 {
            assert!(range.clone().all(|span| self.is_on_disk(span)), "a hole under a reader");
            thread::yield_now();
        }
        true
    }

    /// As `Spans::read` does it. Threads of their own fetch the claimed spans, each span once or twice.
    fn read(self: &Arc<Self>, range: &Range<u32>) {
        let _pins = self.table.pin(range.clone());
        let mut landings = Vec::new();
        while !self.read_ready(range) {
            range.clone().for_each(|span| self.prove(span));
            let mut waits = Vec::new();
            let mut claimed = Vec::new();
            {
                let mut claims = self.table.claims();
                for span in range.clone() {
                    if let Some(flight) = claims.under_way(span) {
                        waits.push((span, flight));
                    } else if let Some(flight) = claims.claim(span) {
                        self.hold(span);
                        waits.push((span, flight.clone()));
                        claimed.push((span, flight));
                    } else {
                        let state = self.table.state(span);
                        assert_ne!(state, SpanState::Filling, "no reader could wait for span {span}");
                    }
                }
            }
            if !claimed.is_empty() {
                for _ in 0..thread_rng().gen_range(1..3) {
                    let (world, claimed) = (self.clone(), claimed.clone());
                    let outcome = if thread_rng().gen_ratio(3, 4) { Ok(()) } else { Err(()) };
                    landings.push(thread::spawn(move || {
                        claimed.into_iter().for_each(|(span, flight)| world.land(span, &flight, outcome));
                    }));
                }
            }
            // Of the last span the reader wants the beginning only.
            let wanted = |span| if span + 1 == range.end { 1 } else { LENGTH };
            let mut coming = Vec::new();
            for (span, flight) in waits {
                if let Reached::Beginning = block_on(flight.reach(wanted(span))) {
                    coming.push(span);
                }
            }
            let is_there = |span| self.table.state(span) == SpanState::Ready || coming.contains(&span);
            if range.clone().all(is_there) {
                for _ in 0..2 {
                    let come = |span: u32| self.on_disk[span as usize].load(SeqCst) >= wanted(span);
                    assert!(range.clone().all(come), "a hole under a reader of what is coming");
                    thread::yield_now();
                }
                break;
            }
        }
        landings.into_iter().for_each(|landing| landing.join().unwrap());
    }

    /// No span is under way, and all counts are right.
    fn assert_settled(&self) {
        let claims = self.table.claims();
        let mut missing = 0;
        for span in 0..SPANS {
            assert!(claims.under_way(span).is_none() && !self.held[span as usize].load(SeqCst));
            assert!(!self.table.is_pinned(span));
            match self.table.state(span) {
                SpanState::Ready => assert!(self.is_on_disk(span)),
                SpanState::Empty | SpanState::Unproven => missing += 1,
                SpanState::Filling => panic!("span {span} is still under way"),
            }
        }
        assert_eq!(self.table.missing(), missing);
    }
}

fn scheduled(states: [SpanState; SPANS as usize]) {
    shuttle::check_random(
        move || {
            let world = World::new(states);
            let mut threads = Vec::new();
            for range in [0..2, 1..3] {
                let world = world.clone();
                threads.push(thread::spawn(move || world.read(&range)));
            }
            for work in [World::evict, World::damage, World::hash] {
                let world = world.clone();
                threads.push(thread::spawn(move || {
                    // Twice: the first call may only clear the touched bit.
                    (0..SPANS).chain(0..SPANS).for_each(|span| work(&world, span));
                }));
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            world.assert_settled();
        },
        SCHEDULES,
    );
}

#[test]
fn readers_of_missing_spans() {
    scheduled([SpanState::Empty; SPANS as usize]);
}

#[test]
fn readers_of_stored_and_of_unproven_spans() {
    scheduled([SpanState::Ready, SpanState::Unproven, SpanState::Ready]);
}
