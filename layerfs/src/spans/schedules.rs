//! The table of spans under a scheduler that chooses, at random, which thread goes on at every lock and every atomic.
//!
//! It is the very file `table.rs`, compiled a second time over the scheduler's locks. What others do around it is
//! played by a few lines here: readers that pin, claim and wait, flights that end well, badly or twice, eviction,
//! damage, proof. Should a waiter be lost the scheduler sees that nobody can go on, and says so.

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
use table::{Reached, Table};

const SCHEDULES: usize = 2_000;
const SPANS: u32 = 3;
/// Bytes of a span.
const LENGTH: u64 = 2;

/// How a flight ended: well or not.
type SpanOutcome = Result<(), ()>;

/// A layer's folder as far as the table's rules are about it. These atomics are no places to change threads at: they
/// look on.
struct World {
    table: Table<SpanOutcome>,
    /// By span: how many of its bytes are there, the others are a hole.
    on_disk: Vec<AtomicU64>,
    /// By span: somebody is bringing it, taking it away or comparing it.
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
        assert!(!self.held[span as usize].swap(true, SeqCst), "span {span} has two who claimed it");
    }

    fn end(&self, span: u32, outcome: SpanOutcome) {
        assert!(self.held[span as usize].swap(false, SeqCst), "span {span} ends twice");
        self.table.end(span, outcome.is_ok()).expect("it was under way").tell(outcome);
    }

    fn is_on_disk(&self, span: u32) -> bool {
        self.on_disk[span as usize].load(SeqCst) == LENGTH
    }

    /// Lands a span, or fails to; what comes second is ignored.
    fn land(&self, span: u32, outcome: SpanOutcome) {
        if let Some(flight) = self.table.first(span) {
            // What is there already is written once more: the same bytes.
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

    /// What cannot be read is struck off; its bytes stay where they are.
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

    /// Reads when everything is there; what is pinned and there stays there.
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

    /// As `Spans::read` has it. What it claims is brought by threads of their own, each span once or twice.
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
                        waits.push((span, flight));
                        claimed.push(span);
                    } else {
                        let state = self.table.state(span);
                        assert_ne!(state, SpanState::Filling, "nobody could wait for span {span}");
                    }
                }
            }
            if !claimed.is_empty() {
                for _ in 0..thread_rng().gen_range(1..3) {
                    let (world, claimed) = (self.clone(), claimed.clone());
                    let outcome = if thread_rng().gen_ratio(3, 4) { Ok(()) } else { Err(()) };
                    landings.push(thread::spawn(move || {
                        claimed.into_iter().for_each(|span| world.land(span, outcome));
                    }));
                }
            }
            // Of the last one its beginning is enough.
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

    /// Nothing is under way, and everything adds up.
    fn assert_settled(&self) {
        let claims = self.table.claims();
        let mut missing = 0;
        for span in 0..SPANS {
            assert!(claims.under_way(span).is_none() && !self.held[span as usize].load(SeqCst));
            assert!(!self.table.is_pinned(span));
            match self.table.state(span) {
                SpanState::Ready => assert!(self.is_on_disk(span)),
                SpanState::Empty | SpanState::Unproven => missing += 1,
                SpanState::Filling => panic!("span {span} is left under way"),
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
            for work in [World::evict, World::damage] {
                let world = world.clone();
                threads.push(thread::spawn(move || {
                    // Twice: the first time it may only forget that the span was read.
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
fn readers_of_what_is_missing() {
    scheduled([SpanState::Empty; SPANS as usize]);
}

#[test]
fn readers_of_what_is_there_and_of_what_is_doubtful() {
    scheduled([SpanState::Ready, SpanState::Unproven, SpanState::Ready]);
}
