//! How fast the line to the registries is, learned from their answers: time to a first byte, bytes a second, and how
//! many requests a host accepts. Arithmetic only: callers pass the time.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Arrivals are counted in intervals of this length.
const TICK: Duration = Duration::from_millis(50);
/// The rate of the line is the best of this many intervals.
const TICKS: usize = 40;
/// How many times to a first byte are remembered.
const ANSWERS: usize = 64;
/// Fewer answers say nothing about the slow ones.
const ANSWERS_LEAST: usize = 16;
/// The window while the rate is unknown: 20 ms at 1 Gbit/s, times one and a half.
const WINDOW_UNKNOWN: u64 = 4 << 20;
const WINDOW_LEAST: u64 = 2 << 20;
const WINDOW_MOST: u64 = 32 << 20;
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(2);
const PATIENCE_LEAST: Duration = Duration::from_millis(50);
/// Busy answers within this time are one: their requests were under way together.
const SAME_BUSY: Duration = Duration::from_millis(200);

/// The line to the registries, as it was lately.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Times to a first byte, the newest last.
    answers: VecDeque<Duration>,
    /// When the newest interval began, and the bytes of each, the newest last.
    since: Option<Instant>,
    arrived: VecDeque<u64>,
}

impl Line {
    /// Notes the time to a request's first byte.
    pub(crate) fn answered(&mut self, after: Duration) {
        self.answers.push_back(after);
        if self.answers.len() > ANSWERS {
            self.answers.pop_front();
        }
    }

    pub(crate) fn arrived(&mut self, now: Instant, bytes: u64) {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_millis() / TICK.as_millis();
        let passed = usize::try_from(passed).unwrap_or(usize::MAX);
        if self.arrived.is_empty() || passed > 0 {
            // Intervals without a byte do not replace older ones: the line was not used.
            self.since = Some(now);
            self.arrived.push_back(0);
            if self.arrived.len() > TICKS {
                self.arrived.pop_front();
            }
        }
        if let Some(newest) = self.arrived.back_mut() {
            *newest += bytes;
        }
    }

    /// Bytes a second when all goes well. Not the very best interval: bytes that waited in a socket arrive all at
    /// once.
    fn rate(&self) -> Option<u64> {
        // The newest interval is not over.
        let whole = self.arrived.len().checked_sub(1).filter(|count| *count > 0)?;
        let mut sorted: Vec<_> = self.arrived.iter().take(whole).collect();
        sorted.sort_unstable();
        let good = *sorted[(whole * 9 / 10).min(whole - 1)];
        Some(good * 1000 / u64::try_from(TICK.as_millis()).unwrap_or(1))
    }

    /// Bytes that have to be under way for the line to be busy: one and a half times what it holds. While the window
    /// bounds the rate, it grows by half each time.
    pub(crate) fn window(&self) -> u64 {
        let (Some(rate), Some(trip)) = (self.rate(), self.answers.iter().min()) else {
            return WINDOW_UNKNOWN;
        };
        let holds = rate as f64 * trip.as_secs_f64();
        ((holds * 1.5) as u64).clamp(WINDOW_LEAST, WINDOW_MOST)
    }

    /// How long a request for `bytes` takes in nineteen of twenty cases, with a margin; after that it is made a
    /// second time.
    pub(crate) fn patience(&self, bytes: u64) -> Duration {
        let rate = self.rate().filter(|rate| *rate > 0);
        let (Some(rate), true) = (rate, self.answers.len() >= ANSWERS_LEAST) else { return PATIENCE_UNKNOWN };
        let mut sorted: Vec<_> = self.answers.iter().collect();
        sorted.sort_unstable();
        let slow = *sorted[(sorted.len() * 95 / 100).min(sorted.len() - 1)];
        // Fill and other readers share the line.
        let transfer = Duration::from_secs_f64(4.0 * bytes as f64 / rate as f64);
        (slow + transfer).max(PATIENCE_LEAST)
    }
}

/// Requests that may be under way: one more with every round of good answers, half as many after a busy one.
#[derive(Debug)]
pub(crate) struct Allowance {
    now: f64,
    most: usize,
    last_busy: Option<Instant>,
}

impl Allowance {
    pub(crate) fn new(most: usize) -> Self {
        Self { now: most as f64, most, last_busy: None }
    }

    pub(crate) fn now(&self) -> usize {
        self.now as usize
    }

    /// Whether the host may have all requests again.
    pub(crate) fn is_whole(&self) -> bool {
        self.now() == self.most
    }

    pub(crate) fn good(&mut self) {
        self.now = (self.now + 1.0 / self.now).min(self.most as f64);
    }

    pub(crate) fn busy(&mut self, now: Instant) {
        if self.last_busy.is_none_or(|last| now.saturating_duration_since(last) >= SAME_BUSY) {
            self.last_busy = Some(now);
            self.now = (self.now / 2.0).max(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_window_follows_the_line() {
        let start = Instant::now();
        // Megabytes a second, round trip in ms, window in KiB.
        for (rate, trip, expected) in
            [(125, 20, 3662), (125, 80, 14648), (125, 1, 2048), (10, 20, 2048), (1250, 80, 32 << 10)]
        {
            let mut line = Line::default();
            assert_eq!(line.window(), WINDOW_UNKNOWN);
            line.answered(ms(trip + 7));
            line.answered(ms(trip));
            for tick in 0..200 {
                line.arrived(start + ms(tick * 10), rate * 10_000);
            }
            assert_eq!(line.window() >> 10, expected, "{rate} MB/s, {trip} ms");
        }
    }

    #[test]
    fn a_pause_says_nothing_about_the_line() {
        let start = Instant::now();
        let mut line = Line::default();
        line.answered(ms(20));
        for at in [0, 10, 20, 30, 40, 60] {
            line.arrived(start + ms(at), 1 << 20);
        }
        let before = line.window();
        line.arrived(start + ms(60_000), 1);
        line.arrived(start + ms(60_100), 1);
        assert_eq!(line.window(), before);
    }

    #[test]
    fn patience_is_that_of_slow_answers_and_of_the_bytes() {
        let start = Instant::now();
        let mut line = Line::default();
        assert_eq!(line.patience(1 << 20), PATIENCE_UNKNOWN);
        for answer in 0..40 {
            line.answered(ms(if answer % 10 == 0 { 200 } else { 20 }));
            line.arrived(start + ms(answer * 10), 100_000);
        }
        // 500 000 in 50 ms are 10 MB/s; one of ten answers takes 200 ms.
        assert_eq!(line.patience(1_000_000), ms(600));
        assert_eq!(line.patience(0), ms(200));
    }

    #[test]
    fn fewer_requests_after_a_busy_answer_and_more_again() {
        let start = Instant::now();
        let mut allowance = Allowance::new(32);
        allowance.good();
        assert_eq!(allowance.now(), 32);
        for after in [0, 10, 20] {
            allowance.busy(start + ms(after)); // three of one burst
        }
        assert_eq!(allowance.now(), 16);
        for after in 1..20 {
            allowance.busy(start + ms(after * 1000));
        }
        assert_eq!(allowance.now(), 1);
        for _ in 0..600 {
            allowance.good();
        }
        assert_eq!(allowance.now(), 32);
    }
}
