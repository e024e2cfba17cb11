//! Reading what is not there yet, and how fast the rest comes, over a line of 1 Gbit/s and 20 ms.
//! `cargo bench -p benches --bench cold -- [IMAGE] [--rounds N]`; IMAGE is one of `start`'s, without one it is
//! `java`. Three things:
//!
//! - 4 KiB at a random place of each span of the largest layer, in random order, one after the other, with fill off and
//!   on, through containerd, the daemon, a registry and the line: p50, p99, bytes fetched per byte used;
//! - fill of the whole image by the same daemon when no container reads (`fill`): the rate against the line. Bar: 0.8;
//! - the same by the engine alone, from a blob in this process that is as fast as the line (`paced`).
//!
//! The line and the registry of the second run on the same cores as the daemon, which they do not in the field, so
//! the third is the fairer rate; but it has neither sockets nor HTTP, which we do have to pay for. Both are shown, with
//! the processor time of all processes, and with what the cores inflate when they do nothing else: no fill can be faster.

mod fill;
mod paced;
mod points;

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use benches::{
    keep, quantile,
    stage::{INDEXED, NO_FILL, Stage},
    workloads::Workload,
};
use integration::{
    images::{Image, Layer},
    lab::Lab,
    link::{Link, Speed},
    machine, reference,
    registry::Registry,
};
use serde_json::{Value, json};
use ztoc::Ztoc;

use points::{LENGTH, Point};

const BYTES_PER_SECOND: u64 = 1_000_000_000 / 8;
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// A read that took longer was not answered from what was there: half a round trip.
const WAITED: Duration = Duration::from_millis(10);

/// A layer and what its index says of it.
struct Indexed {
    layer: Layer,
    ztoc: Arc<Ztoc>,
}

impl Indexed {
    /// Compressed bytes of all spans.
    fn bytes(&self) -> u64 {
        let table = self.ztoc.spans();
        table.compressed(ztoc::SpanId(table.len() - 1)).end.0 - self.ztoc.prefix().end.0
    }
}

/// What all measurements share.
struct Bench {
    stage: Stage,
    registry: Registry,
    layers: Vec<Indexed>,
}

fn speed() -> Speed {
    Speed { bytes_per_second: Some(BYTES_PER_SECOND), round_trip: ROUND_TRIP }
}

fn main() -> Result<()> {
    let (workload, rounds) = options()?;
    let stage = Stage::new()?;
    let lab = Lab::new("cold")?;
    let image = workload.image()?;
    let registry = stage.publish(&lab, &image, 0)?;
    let bench = Bench { stage, registry, layers: indexed(image)? };
    let bytes: u64 = bench.layers.iter().map(Indexed::bytes).sum();
    let name = workload.recipe.name;
    machine::say(&format!("\n{name}, {:.0} MB, 1000 Mbit/s and 20 ms", bytes as f64 / 1e6));
    let mut rows = bench.reads(name, rounds)?;
    rows.extend(fill::measure(&bench, name)?);
    lab.close()?;
    keep("cold", &rows)
}

fn options() -> Result<(&'static Workload, u32)> {
    let (mut image, mut rounds) = ("java".to_owned(), 2);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // what cargo itself adds
            "--bench" => {}
            "--rounds" => rounds = words.next().context("--rounds wants a number")?.parse()?,
            _ => image = word,
        }
    }
    let found = Workload::named(&image);
    Ok((found.with_context(|| format!("{image} is neither an option nor an image"))?, rounds))
}

fn indexed(image: Image) -> Result<Vec<Indexed>> {
    let index = |layer: Layer| {
        let built = ztoc::build(&layer.bytes[..], ztoc::Compression::Gzip, &ztoc::Options::default())?;
        Ok(Indexed { layer, ztoc: Arc::new(Ztoc::from_vec(built.ztoc)?) })
    };
    image.layers.into_iter().map(index).collect()
}

impl Bench {
    /// Cold reads with fill off and on.
    fn reads(&self, name: &str, rounds: u32) -> Result<Vec<Value>> {
        let sizes = self.layers.iter().map(|indexed| indexed.layer.bytes.len());
        let Some((place, _)) = sizes.enumerate().max_by_key(|(_, size)| *size) else { bail!("no layer") };
        let points = points::of(&self.layers[place].ztoc, &self.layers[place + 1..]);
        let plain = points::inflated(&self.layers[place])?;
        // What a reader of whole spans cannot do without.
        let spans = self.layers[place].bytes() / u64::from(self.layers[place].ztoc.spans().len());
        let mut rows = Vec::new();
        for (what, configuration) in [("off", NO_FILL), ("on", "")] {
            let (mut times, mut fetched) = (Vec::new(), 0);
            for round in 0..rounds {
                let mut points = points.clone();
                points::shuffle(&mut points, u64::from(round) + 1);
                let (took, bytes) = self.round(configuration, &points, &plain)?;
                times.extend(took);
                fetched += bytes;
            }
            rows.push(tell(name, what, &mut times, (fetched, spans)));
        }
        Ok(rows)
    }

    /// How long each read took, and what came over the line for them.
    fn round(&self, configuration: &str, points: &[Point], plain: &[u8]) -> Result<(Vec<Duration>, u64)> {
        let lab = Lab::new("cold")?;
        let link = Link::with_speed(&lab, self.registry.host(), speed())?;
        let (_daemon, containerd) = self.stage.soci_daemon(&lab, configuration)?;
        self.stage.pull(&lab, &containerd, &format!("{}/{INDEXED}", link.host()))?;
        let image = reference::mount(&lab, &containerd, "soci")?;
        link.reset();
        let mut took = Vec::new();
        let mut bytes = [0; LENGTH];
        for point in points {
            let file =
                File::open(image.path().join(&point.path)).with_context(|| format!("open {point:?}"))?;
            let begin = Instant::now();
            file.read_exact_at(&mut bytes, point.offset).with_context(|| format!("read {point:?}"))?;
            took.push(begin.elapsed());
            ensure!(plain[point.at..].starts_with(&bytes), "other bytes than the layer's at {point:?}");
        }
        let fetched = link.traffic().down;
        drop(image);
        lab.close()?;
        Ok((took, fetched))
    }
}

fn tell(image: &str, fill: &str, times: &mut [Duration], (fetched, span): (u64, u64)) -> Value {
    let (median, slow) = (quantile(times, 0.5), quantile(times, 0.99));
    let waited = times.iter().filter(|time| **time > WAITED).count();
    let ratio = fetched as f64 / (times.len() * LENGTH) as f64;
    let least = span as f64 / LENGTH as f64;
    machine::say(&format!(
        "  4 KiB reads, fill {fill:3}  p50 {median:>9.2?}  p99 {slow:>9.2?}  {waited} of {} waited for the line  \
         {ratio:.0} bytes fetched per byte used (a span each: {least:.0})",
        times.len()
    ));
    json!({
        "image": image, "what": "read 4 KiB", "fill": fill, "reads": times.len(), "waited": waited,
        "p50_s": median.as_secs_f64(), "p99_s": slow.as_secs_f64(), "fetched_per_used": ratio, "span_per_used": least,
    })
}
