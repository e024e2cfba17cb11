//! How fast an image comes while no container reads it, and what bounds it: the line, the processors, or neither.

use std::{
    fmt::Write as _,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use integration::{
    lab::Lab,
    link::Link,
    machine,
    process::{idle_time, processor_time, wait_until},
};
use layerfs::{DiskLimits, Engine, Layer, Limits, Store};
use oci::Digest;
use serde_json::{Value, json};
use ztoc::SpanId;

use super::{
    BYTES_PER_SECOND, Bench, INDEXED, Indexed, ROUND_TRIP,
    paced::{Line, Paced},
    speed,
};

const BAR: f64 = 0.8;
/// An engine that is younger takes it that a program is starting, and holds back; the daemon of a node is older.
const AGE: Duration = Duration::from_secs(6);
/// A daemon that used nothing for so long has put away what came.
const QUIET: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(300);

/// What a fill took.
struct Filled {
    bytes: u64,
    /// Until the last byte had come over the line.
    arrived: Duration,
    /// Until all was put away: some may be in memory as it came, and of a small image that is much.
    took: Duration,
    /// Processor time by process.
    processor: Vec<(&'static str, Duration)>,
    /// Of all cores, while that was counted,
    idle: Duration,
    /// which was for so long.
    counted: Duration,
}

/// Fills, and inflates, and says how fast.
pub(crate) fn measure(bench: &Bench, image: &str) -> Result<Vec<Value>> {
    let cores = thread::available_parallelism()?.get();
    let rates = (inflating(&bench.layers, 1)?, inflating(&bench.layers, cores)?);
    machine::say(&format!(
        "  only inflating what is in memory: {:.0} Mbit/s with one thread, {:.0} Mbit/s with {cores}",
        mbit(rates.0),
        mbit(rates.1)
    ));
    let mut rows = vec![json!({
        "image": image, "what": "inflate", "cores": cores,
        "one_thread_bytes_per_s": rates.0, "all_threads_bytes_per_s": rates.1,
    })];
    let cores = u32::try_from(cores)?;
    rows.push(by_daemon(bench)?.tell(image, "fill", cores));
    rows.push(by_engine(bench)?.tell(image, "paced", cores));
    Ok(rows)
}

/// Compressed bytes a second that so many threads verify and inflate with nothing else to do.
fn inflating(layers: &[Indexed], threads: usize) -> Result<f64> {
    let spans = |indexed: &Indexed| (0..indexed.ztoc.spans().len()).map(SpanId);
    let jobs: Vec<_> =
        layers.iter().flat_map(|indexed| spans(indexed).map(move |span| (indexed, span))).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut plain = Vec::new();
        while let Some((indexed, span)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let range = indexed.ztoc.spans().compressed(*span);
            let range = usize::try_from(range.start.0)?..usize::try_from(range.end.0)?;
            plain.clear();
            indexed.ztoc.inflate_span(*span, &indexed.layer.bytes[range], &mut plain)?;
        }
        Ok(())
    };
    let begin = Instant::now();
    thread::scope(|scope| {
        let working: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        working
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })?;
    let bytes: u64 = layers.iter().map(Indexed::bytes).sum();
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

/// By the daemon, over the line; from the first byte of a layer.
fn by_daemon(bench: &Bench) -> Result<Filled> {
    let lab = Lab::new("fill")?;
    let link = Link::with_speed(&lab, bench.registry.host(), speed())?;
    let (daemon, containerd) = bench.stage.soci_daemon(&lab, "")?;
    let started = Instant::now();
    let whole: u64 = bench.layers.iter().map(Indexed::bytes).sum();
    let come = || -> u64 {
        let is_layer = |path: &str| bench.layers.iter().any(|l| path.ends_with(&l.layer.digest.to_string()));
        link.exchanges()
            .iter()
            .filter(|exchange| is_layer(&exchange.path))
            .map(|exchange| exchange.body_bytes)
            .sum()
    };
    thread::sleep(AGE.saturating_sub(started.elapsed()));
    let who = [("daemon", daemon.pid()), ("line", std::process::id()), ("registry", bench.registry.pid())];
    let used = || who.iter().map(|(_, pid)| processor_time(*pid)).collect::<Result<Vec<_>>>();
    let (counting, before, idle) = (Instant::now(), used()?, idle_time()?);
    bench.stage.pull(&lab, &containerd, &format!("{}/{INDEXED}", link.host()))?;
    wait_until("the first byte of a layer", LIMIT, || Ok((come() > 0).then_some(())))?;
    let (begin, first) = (Instant::now(), come());
    wait_until("the last byte of a layer", LIMIT, || Ok((come() >= whole).then_some(())))
        .with_context(|| format!("{} of {whole} bytes came", come()))?;
    let arrived = begin.elapsed();
    let mut last = (Instant::now(), used()?, idle_time()?);
    wait_until("the end of the daemon's work", LIMIT, || {
        let now = used()?;
        if now[0] > last.1[0] {
            last = (Instant::now(), now, idle_time()?);
        }
        Ok((last.0.elapsed() > QUIET).then_some(()))
    })?;
    let (end, after, idle_after) = last;
    let spent = who.iter().zip(before.iter().zip(&after));
    let processor =
        spent.map(|((name, _), (before, after))| (*name, after.saturating_sub(*before))).collect();
    lab.close()?;
    Ok(Filled {
        bytes: whole.saturating_sub(first),
        arrived,
        took: end.saturating_duration_since(begin),
        processor,
        idle: idle_after.saturating_sub(idle),
        counted: end.saturating_duration_since(counting),
    })
}

/// By the engine alone, until everything is in its store.
fn by_engine(bench: &Bench) -> Result<Filled> {
    let runtime = tokio::runtime::Runtime::new()?;
    let lab = Lab::new("fill")?;
    let store = Store::open(&lab.folder("store")?, DiskLimits::default())?;
    let engine = Engine::new(runtime.handle().clone(), Limits::default());
    let line = Line::new(BYTES_PER_SECOND, ROUND_TRIP);
    let mut layers = Vec::new();
    for indexed in &bench.layers {
        let (bytes, digest) = (indexed.ztoc.as_bytes(), indexed.layer.digest);
        let layer = Layer::create(&store, &engine, &digest, &Digest::sha256(bytes), bytes)?;
        layer.add_source("paced/app", Arc::new(Paced::new(digest, indexed.layer.bytes.clone(), &line)));
        layers.push(layer);
    }
    thread::sleep(AGE);
    let (before, idle) = (processor_time(std::process::id())?, idle_time()?);
    let begin = Instant::now();
    layers.iter().for_each(|layer| layer.start_fill());
    let missing = || layers.iter().map(|layer| layer.spans().1).sum::<u32>();
    wait_until("the last span", LIMIT, || Ok((missing() == 0).then_some(())))?;
    let (took, idle) = (begin.elapsed(), idle_time()?.saturating_sub(idle));
    let used = processor_time(std::process::id())?.saturating_sub(before);
    drop((layers, engine));
    runtime.shutdown_timeout(Duration::from_secs(5));
    lab.close()?;
    let bytes = bench.layers.iter().map(Indexed::bytes).sum();
    Ok(Filled { bytes, arrived: took, took, processor: vec![("engine", used)], idle, counted: took })
}

fn mbit(bytes_per_second: f64) -> f64 {
    bytes_per_second * 8.0 / 1e6
}

impl Filled {
    fn tell(&self, image: &str, what: &str, cores: u32) -> Value {
        let rate = self.bytes as f64 / self.took.as_secs_f64();
        let part = rate / BYTES_PER_SECOND as f64;
        let verdict = if part >= BAR { "within" } else { "MISSES" };
        let mut text =
            format!("  {what:5}  {:.0} Mbit/s, {part:.2} of the line, {verdict} {BAR}; ", mbit(rate));
        let _ = write!(text, "arrived in {:.2?}, put away in {:.2?}; ", self.arrived, self.took);
        let _ = write!(text, "of {cores} cores' time idle {:.2?}", self.idle);
        for (name, used) in &self.processor {
            let _ = write!(text, ", {name} {used:.2?}");
        }
        let ours: Duration = self.processor.iter().map(|(_, used)| *used).sum();
        let others = (self.counted * cores).saturating_sub(ours + self.idle);
        let _ = write!(text, ", all others {others:.2?}");
        machine::say(&text);
        let seconds = |(name, used): &(&str, Duration)| ((*name).to_owned(), json!(used.as_secs_f64()));
        let processor: serde_json::Map<_, _> = self.processor.iter().map(seconds).collect();
        json!({
            "image": image, "what": what, "bytes": self.bytes, "took_s": self.took.as_secs_f64(), "arrived_s": self.arrived.as_secs_f64(),
            "of_the_line": part, "bar": BAR, "processor_s": processor, "idle_s": self.idle.as_secs_f64(),
            "others_s": others.as_secs_f64(),
        })
    }
}
