//! Workloads of the benchmarks, and how a ratio is taken: both sides in one run, turn and turn about, the best of
//! each or the median. Machines are noisy; a ratio of two numbers from two runs says nothing.

pub mod peer;

pub mod stage;

pub mod workloads;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use integration::{
    images::{Layer, Tar, tar::Entry},
    machine,
};
use serde_json::Value;

/// Of the layers that `soci convert` makes ztocs of unless told otherwise.
pub const MIN_LAYER_SIZE: u64 = 10 << 20;

/// Runs `left` and `right` alternately and returns the shortest time of either.
pub fn best_of(rounds: u32, mut left: impl FnMut(), mut right: impl FnMut()) -> (Duration, Duration) {
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..rounds {
        best.0 = best.0.min(time(&mut left));
        best.1 = best.1.min(time(&mut right));
    }
    best
}

fn time(side: &mut impl FnMut()) -> Duration {
    let start = Instant::now();
    side();
    start.elapsed()
}

/// Runs `left` and `right` alternately and returns the median of what each says it took.
pub fn median_of(
    rounds: u32,
    mut left: impl FnMut() -> Result<Duration>,
    mut right: impl FnMut() -> Result<Duration>,
) -> Result<(Duration, Duration)> {
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        times.0.push(left()?);
        times.1.push(right()?);
    }
    Ok((quantile(&mut times.0, 0.5), quantile(&mut times.1, 0.5)))
}

/// The time that so many of these are below: 0.5 is the median. Sorts them.
pub fn quantile(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    let place = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
    times.get(place).copied().unwrap_or_default()
}

/// Keeps what was measured, as `NAME.json` in the target folder.
pub fn keep(name: &str, rows: &[Value]) -> Result<()> {
    let path = machine::target_dir()?.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec_pretty(rows)?)?;
    machine::say(&format!("written to {}", path.display()));
    Ok(())
}

/// Says one ratio, with the bar it is held against.
#[allow(clippy::print_stdout)] // what a benchmark is for
pub fn tell(what: &str, ours: Duration, other: &str, theirs: Duration, bar: f64) {
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    let verdict = if ratio <= bar { "within" } else { "MISSES" };
    println!("{what}: {ours:.2?}, {other}: {theirs:.2?}, ratio {ratio:.2}, {verdict} {bar}");
}

/// A layer of `files` files of `size` bytes that compress to about a third, as text and code do.
pub fn layer(files: usize, size: usize) -> Layer {
    let folders = (0..files.div_ceil(100)).map(|number| Entry::directory(format!("d{number}")));
    let entries = (0..files)
        .map(|number| Entry::file(format!("d{}/f{number}", number / 100), text(number as u64 + 1, size)));
    Layer::gzip(&Tar::new(folders.chain(entries)).bytes())
}

/// Words from a small vocabulary in an order that does not repeat.
fn text(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 16);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(format!("{:x} ", state % 50_021).as_bytes());
    }
    bytes.truncate(size);
    bytes
}
