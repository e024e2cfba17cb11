//! Spans that have arrived, on their way to the disk: a few threads verify, inflate and store them, readers' spans
//! first.
//!
//! A span that no reader waited for when it was requested may have a reader when it arrives, so a free thread looks
//! again which spans are awaited. Spans without readers have as many threads as there are cores, at the lowest
//! priority; readers have as many threads again. The bytes that are inflated at once are limited.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, getpriority_process, setpriority_process},
    thread::gettid,
    time::{ClockId, clock_gettime},
};
use tokio::{runtime::Handle, sync::oneshot};
use ztoc::SpanId;

use super::{FetchInProgress, Priority};
use crate::{
    error::{Error, ErrorKind},
    metrics::Counters,
    sync::Mutex,
};

/// The nice value of work that no reader waits for: it gets only the time that all other programs leave.
const IDLE_NICE: i32 = 19;
/// Work that a reader is likely to wait for soon is this much nicer than a reader's: it gets a third of its share.
const AHEAD_NICER: i32 = 5;

const CROWD_UNIT: f64 = 1000.0;

/// A span whose compressed bytes have arrived.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) fetch: Arc<FetchInProgress>,
    pub(super) span: SpanId,
    pub(super) body: Vec<u8>,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

#[derive(Debug, Default)]
struct Jobs {
    waiting: Vec<Job>,
    running: usize,
    /// Running jobs that had no reader when they were taken; and those of them that a thread works on.
    idle: usize,
    idle_at_work: Vec<IdleJob>,
    /// Uncompressed bytes of the running jobs.
    bytes: u64,
}

/// A running job that had no reader when it was taken.
#[derive(Debug)]
struct IdleJob {
    fetch: Arc<FetchInProgress>,
    span: SpanId,
    thread: Pid,
}

/// All spans between the network and the disk.
#[derive(Debug)]
pub(super) struct Inflaters {
    jobs: Mutex<Jobs>,
    runtime: Handle,
    cores: usize,
    max_bytes: u64,
    counters: Arc<Counters>,
    /// The nice value of a thread while a reader waits for its span.
    nice: i32,
    /// See [`Inflaters::crowd`], in thousandths.
    crowd: AtomicU32,
    /// False once a thread could not raise its priority again: then no thread lowers it.
    may_give_way: AtomicBool,
}

/// A job that was taken, and its part of the counts.
struct TakenJob {
    job: Job,
    is_idle: bool,
    bytes: u64,
}

impl IdleJob {
    fn is_awaited(&self) -> bool {
        self.fetch.request.sink.is_awaited(self.span)
    }
}

impl Job {
    fn is_awaited(&self) -> bool {
        self.fetch.request.priority == Priority::Demand || self.fetch.request.sink.is_awaited(self.span)
    }

    fn is_ahead(&self) -> bool {
        self.fetch.request.priority == Priority::Ahead
    }

    fn bytes(&self) -> u64 {
        let range = self.fetch.request.ztoc.spans().uncompressed(self.span);
        range.end.0.saturating_sub(range.start.0)
    }

    fn work(self) {
        let landed = self.fetch.land(self.span, &self.body);
        // The attempt may have been dropped.
        let _ = self.done.send(landed);
    }
}

impl Inflaters {
    /// `max_bytes` limits the uncompressed bytes that are inflated at once, roughly.
    pub(super) fn new(runtime: Handle, max_bytes: u64, counters: Arc<Counters>) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let nice = getpriority_process(None).unwrap_or(0);
        let may_give_way = AtomicBool::new(true);
        Arc::new(Self {
            jobs: Mutex::default(),
            runtime,
            cores,
            max_bytes,
            counters,
            nice,
            crowd: AtomicU32::new(0),
            may_give_way,
        })
    }

    pub(super) fn add(self: &Arc<Self>, job: Job) {
        self.jobs.lock().waiting.push(job);
        self.start();
    }

    /// Starts a thread if there is a job for it. To be called also when a reader begins to wait for a span: if a
    /// thread inflates it already, that thread gets its priority back.
    pub(super) fn start(self: &Arc<Self>) {
        for idle in self.jobs.lock().idle_at_work.iter().filter(|idle| idle.is_awaited()) {
            // The job may have ended meanwhile; then its thread has its priority back already.
            let _ = setpriority_process(Some(idle.thread), self.nice);
        }
        let Some(taken) = self.take() else { return };
        let inflaters = self.clone();
        self.runtime.spawn_blocking(move || {
            let mut next = Some(taken);
            while let Some(taken) = next {
                inflaters.work(taken);
                next = inflaters.take();
            }
        });
    }

    /// Whether every span that has arrived is stored.
    pub(super) fn is_idle(&self) -> bool {
        let jobs = self.jobs.lock();
        jobs.running == 0 && jobs.waiting.is_empty()
    }

    fn work(&self, taken: TakenJob) {
        let TakenJob { job, is_idle, bytes } = taken;
        let is_ahead = job.is_ahead();
        let _counted = JobCount { inflaters: self, thread: is_idle.then(gettid), bytes };
        if is_idle {
            if self.may_give_way.load(Ordering::Relaxed) {
                // For this thread alone: what POSIX calls a process here is a thread on Linux.
                let nice = if is_ahead { (self.nice + AHEAD_NICER).min(IDLE_NICE) } else { IDLE_NICE };
                let _ = setpriority_process(None, nice);
            }
            let idle = IdleJob { fetch: job.fetch.clone(), span: job.span, thread: gettid() };
            self.jobs.lock().idle_at_work.push(idle);
            // A reader that began to wait a moment ago did not find this job in the list.
            if job.is_awaited() {
                let _ = setpriority_process(None, self.nice);
            }
        }
        let (began, used) = (Instant::now(), thread_time());
        if catch_unwind(AssertUnwindSafe(|| job.work())).is_err() {
            self.counters.panics.add(1);
            tracing::error!(
                "a thread that inflated a span panicked: its readers get an error; please report this"
            );
        }
        if is_idle && !is_ahead {
            let (passed, used) = (began.elapsed(), thread_time().saturating_sub(used));
            self.crowd.store(crowd(passed, used), Ordering::Relaxed);
        }
    }

    /// How long background work last waited for a core, for each moment that it had one: zero on an idle machine.
    pub(super) fn crowd(&self) -> f64 {
        f64::from(self.crowd.load(Ordering::Relaxed)) / CROWD_UNIT
    }

    /// Takes the oldest awaited job, else the oldest that is likely to be awaited, else the oldest, when there is
    /// room for it.
    fn take(&self) -> Option<TakenJob> {
        let mut jobs = self.jobs.lock();
        if jobs.running >= 2 * self.cores {
            return None;
        }
        let awaited = jobs.waiting.iter().position(Job::is_awaited);
        let others = jobs.waiting.iter().position(Job::is_ahead).or((!jobs.waiting.is_empty()).then_some(0));
        let place = awaited.or(others.filter(|_| jobs.idle < self.cores))?;
        let bytes = jobs.waiting[place].bytes();
        if jobs.running > 0 && jobs.bytes.saturating_add(bytes) > self.max_bytes {
            return None;
        }
        let job = jobs.waiting.remove(place);
        let is_idle = awaited.is_none();
        jobs.running += 1;
        jobs.idle += usize::from(is_idle);
        jobs.bytes += bytes;
        Some(TakenJob { job, is_idle, bytes })
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn crowd(passed: Duration, used: Duration) -> u32 {
    let waited = passed.saturating_sub(used).as_secs_f64();
    (waited / used.as_secs_f64().max(1e-6) * CROWD_UNIT) as u32
}

/// One job's part of the counts; subtracted when dropped, also in a panic.
struct JobCount<'a> {
    inflaters: &'a Inflaters,
    /// The thread, if the job had no reader when it was taken.
    thread: Option<Pid>,
    bytes: u64,
}

impl Drop for JobCount<'_> {
    fn drop(&mut self) {
        let mut jobs = self.inflaters.jobs.lock();
        jobs.running -= 1;
        jobs.bytes -= self.bytes;
        let Some(thread) = self.thread else { return };
        jobs.idle -= 1;
        jobs.idle_at_work.retain(|idle| idle.thread != thread);
        drop(jobs);
        if let Err(error) = setpriority_process(None, self.inflaters.nice)
            && self.inflaters.may_give_way.swap(false, Ordering::Relaxed)
        {
            tracing::warn!(
                %error,
                "background work cannot give way to readers on the processor: the daemon lacks CAP_SYS_NICE"
            );
        }
    }
}

/// The outcome of a job whose thread ended without one.
pub(super) fn lost(_: oneshot::error::RecvError) -> Error {
    Error::new(ErrorKind::Io, "inflate span: its thread was lost")
}
