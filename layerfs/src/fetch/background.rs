//! Background fetches: spans for which no reader waits, a run at a time.
//!
//! The engine asks the layers that have spans missing for their next run: first the layer where a reader last had to
//! wait, the others in turn. It does not wait until the readers are done. While a program may be starting, just
//! enough is requested to keep the line busy (`pace`), so that a reader's request queues behind milliseconds. After a
//! quiet while the requests get larger and fewer.
//!
//! When the machine is short of processor time, which the inflating threads measure, the background slows down, so
//! that programs get that time. A failure ends nothing: its layer waits, longer each time. While a store is nearly
//! full its layers wait, too, because background spans must not evict spans that readers need.

use std::{
    cmp::Reverse,
    fmt::Debug,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{Engine, FetchRequest, budget::Permit};
use crate::sync::Mutex;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Another request fetches the missing spans: the layer is asked again soon.
const UNDER_WAY_PAUSE: Duration = Duration::from_millis(100);
/// A layer without room on the disk is asked again after this time.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(10);
/// A program has started when no read had to wait for this long.
pub(super) const STARTED: Duration = Duration::from_secs(5);
/// Pause between two requests, times the CPU contention that was measured: none below 0.3, at most 10 times.
const CROWDED_PAUSE: Duration = Duration::from_millis(50);
const MIN_CROWD: f64 = 0.3;
const MAX_CROWD: f64 = 10.0;
/// Compressed bytes of one request, while a program may be starting and afterwards.
const SMALL: u64 = 1 << 20;
const LARGE: u64 = 8 << 20;

/// Which spans a layer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FillScope {
    /// Spans that a reader is likely to want soon.
    Urgent,
    Any,
}

/// What a layer answers when it is asked for its next run.
#[derive(Debug)]
pub(crate) enum FillStep {
    /// Fetch this; its spans are claimed.
    Fetch(FetchRequest),
    /// Other requests fetch all missing spans already.
    AllUnderWay,
    /// Spans are missing, but none that is urgent.
    NotUrgent,
    /// The disk has no room for missing spans.
    NoRoom,
    /// No span is missing, or none may be fetched.
    Done,
}

/// A layer that may have spans missing.
pub(crate) trait FillSource: Send + Sync + Debug {
    /// When a reader last had to wait here: larger is later, 0 is never.
    fn last_demand(&self) -> u64;

    /// The host that the next request goes to; `None` without a source.
    fn host(&self) -> Option<Arc<str>>;

    /// Whether a span may be missing that a reader is likely to want soon.
    fn is_urgent(&self) -> bool;

    /// Claims a run of missing spans of about `bytes` compressed bytes.
    fn next_step(&self, bytes: u64, scope: FillScope) -> FillStep;
}

#[derive(Debug)]
struct QueuedLayer {
    number: u64,
    table: Weak<dyn FillSource>,
    not_before: Instant,
    pause: Duration,
    /// Number of the last request made for it, over all layers.
    served: u64,
}

#[derive(Debug, Default)]
struct LayerQueue {
    entries: Vec<QueuedLayer>,
    next: u64,
}

/// All layers that may have spans missing.
#[derive(Debug, Default)]
pub(super) struct Background {
    queue: Mutex<LayerQueue>,
    changed: Arc<Notify>,
}

enum Pick {
    Table(u64, Arc<dyn FillSource>, Permit),
    /// The budget has no room for any layer.
    Full,
    Later(Instant),
    /// Layers are ready, but none has urgent spans.
    NoneUrgent,
    Empty,
}

/// The last request.
struct LastFill {
    at: Instant,
    bytes: u64,
}

/// When the engine looks again.
enum Wakeup {
    Now,
    At(Instant),
    WithRoom,
    WithWork,
}

impl Background {
    pub(super) fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Adds a layer, or tells that a known one has new spans to fetch.
    pub(super) fn add(&self, table: Weak<dyn FillSource>) {
        let mut queue = self.queue.lock();
        let now = Instant::now();
        if let Some(entry) = queue.entries.iter_mut().find(|entry| entry.table.ptr_eq(&table)) {
            entry.not_before = now;
        } else {
            queue.next += 1;
            let number = queue.next;
            queue.entries.push(QueuedLayer { number, table, not_before: now, pause: FIRST_PAUSE, served: 0 });
        }
        drop(queue);
        self.changed.notify_one();
    }

    /// Picks the ready layer with the last demand for which `room` has room; among equals the one that was served
    /// longest ago.
    fn pick(&self, now: Instant, scope: FillScope, room: impl Fn(&Arc<str>) -> Option<Permit>) -> Pick {
        let mut queue = self.queue.lock();
        queue.entries.retain(|entry| entry.table.strong_count() > 0);
        let Some(first) = queue.entries.iter().map(|entry| entry.not_before).min() else {
            return Pick::Empty;
        };
        let ready = queue.entries.iter().filter(|entry| entry.not_before <= now);
        let mut ready: Vec<_> = ready.filter_map(|entry| Some((entry.table.upgrade()?, entry))).collect();
        if ready.is_empty() {
            return Pick::Later(first);
        }
        ready.sort_by_cached_key(|(table, entry)| (Reverse(table.last_demand()), entry.served));
        ready.retain(|(table, _)| scope == FillScope::Any || table.is_urgent());
        if ready.is_empty() {
            return Pick::NoneUrgent;
        }
        for (table, entry) in ready {
            if let Some(permit) = table.host().and_then(|host| room(&host)) {
                return Pick::Table(entry.number, table, permit);
            }
        }
        Pick::Full
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut QueuedLayer)) {
        let mut queue = self.queue.lock();
        queue.next += 1;
        let turn = queue.next;
        if let Some(entry) = queue.entries.iter_mut().find(|entry| entry.number == number) {
            entry.served = turn;
            change(entry);
        }
    }

    fn ended(&self, number: u64, well: bool) {
        self.change(number, |entry| {
            if well {
                entry.pause = FIRST_PAUSE;
            } else {
                entry.not_before = Instant::now() + entry.pause;
                entry.pause = (entry.pause * 2).min(LONGEST_PAUSE);
            }
        });
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// Runs as long as the engine, which it does not hold while it waits. `new_work` tells of new work, `room` of more
/// room in the budget.
pub(super) async fn run(engine: Weak<Engine>, new_work: Arc<Notify>, room: Arc<Notify>) {
    let mut last = LastFill { at: Instant::now(), bytes: 0 };
    loop {
        let more_room = room.notified();
        tokio::pin!(more_room);
        // Before looking: room that becomes free from here on is noticed.
        more_room.as_mut().enable();
        let next = match engine.upgrade() {
            Some(engine) => engine.fill_step(&mut last),
            None => return,
        };
        match next {
            Wakeup::Now => {}
            Wakeup::At(when) => tokio::select! {
                () = tokio::time::sleep_until(when) => {}
                () = new_work.notified() => {}
            },
            Wakeup::WithRoom => tokio::select! {
                () = more_room => {}
                () = new_work.notified() => {}
            },
            Wakeup::WithWork => new_work.notified().await,
        }
    }
}

impl Engine {
    /// Makes one request for one layer, when there is room for it.
    fn fill_step(self: &Arc<Self>, last: &mut LastFill) -> Wakeup {
        let now = Instant::now();
        let mut from = last.at;
        if let Some(bandwidth) = self.limits.fill_bandwidth {
            from += Duration::from_secs_f64(last.bytes as f64 / bandwidth.max(1) as f64);
        }
        if from > now {
            return Wakeup::At(from);
        }
        let starting = self.quiet() < STARTED;
        let crowd = self.inflaters.crowd().min(MAX_CROWD);
        if starting && crowd > MIN_CROWD {
            // Processor time that the background used now, a starting program would not get; only urgent spans are
            // worth it.
            from = last.at + CROWDED_PAUSE.mul_f64(crowd);
        }
        let scope = if from > now { FillScope::Urgent } else { FillScope::Any };
        let window = self.line.lock().window();
        let (bytes, window) = match starting {
            true => ((window / 4).clamp(SMALL, LARGE), window),
            false => (LARGE, window.max(2 * LARGE)),
        };
        let (number, table, mut permit) =
            match self.background.pick(now, scope, |host| self.budget.fill(host, bytes, window)) {
                Pick::Table(number, table, permit) => (number, table, permit),
                Pick::Full => return Wakeup::WithRoom,
                Pick::NoneUrgent => return Wakeup::At(from),
                Pick::Later(when) => return Wakeup::At(when),
                Pick::Empty => return Wakeup::WithWork,
            };
        match table.next_step(bytes, scope) {
            FillStep::Fetch(request) => {
                permit.resize(request.bytes());
                *last = LastFill { at: now, bytes: request.bytes() };
                self.background.change(number, |_| {});
                let engine = self.clone();
                self.runtime.spawn(async move {
                    let well = engine.run(request, Some(permit)).await;
                    engine.background.ended(number, well);
                });
            }
            FillStep::NotUrgent => {}
            FillStep::AllUnderWay => {
                self.background.change(number, |entry| entry.not_before = now + UNDER_WAY_PAUSE);
            }
            FillStep::NoRoom => {
                self.background.change(number, |entry| entry.not_before = now + NO_ROOM_PAUSE);
            }
            FillStep::Done => self.background.queue.lock().entries.retain(|entry| entry.number != number),
        }
        Wakeup::Now
    }
}
