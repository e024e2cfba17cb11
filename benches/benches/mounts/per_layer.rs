//! Whether what is asked of one layer costs more when many are shown: three mounts of 10, 100 and 1 000 layers side by
//! side, asked in turn. The asking process is another one (this program again): one that waited for its own mount
//! could not be killed.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use benches::quantile;
use integration::{lab::Lab, machine, process::output};
use layerfs::{Connection, DiskLimits, Engine, Layer, Limits, Slots, Store};
use oci::testing::FaultyBlob;
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use serde_json::{Value, json};

use super::made;

/// The word that makes this program the one that asks.
pub(crate) const READER: &str = "--reader";
const SHOWN: [usize; 3] = [10, 100, 1000];
const ROUNDS: usize = 3;
/// Asked in each round, of each kind.
const ASKED: usize = 1000;
/// Of so many layers, spread over all that are shown: were it of all of them, those of many would never be in the
/// processor's caches.
const ASKED_LAYERS: usize = SHOWN[0];
/// So that no name is asked for twice: the kernel would know it.
const ENTRIES: usize = ROUNDS * (ASKED / ASKED_LAYERS + 1) + 1;
const BAR: f64 = 1.3;
const LIMIT: Duration = Duration::from_secs(120);
const KINDS: [&str; 3] = ["read 4 KiB", "stat", "lookup of nothing"];

pub(crate) fn measure() -> Result<Vec<Value>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let lab = Lab::new("mounts")?;
    let store = Store::open(&lab.folder("store")?, DiskLimits::default())?;
    let engine = Engine::new(runtime.handle().clone(), Limits::default());
    let mut layers = Vec::new();
    for number in 0..SHOWN[SHOWN.len() - 1] {
        let blob = Arc::new(FaultyBlob::new(made::layer(number, ENTRIES, 1).bytes, 64 << 10));
        layers.push(runtime.block_on(Layer::stream(
            &store,
            &engine,
            "made",
            blob,
            ztoc::Compression::Gzip,
        ))?);
    }
    machine::say(&format!("\none request, by layers shown, median of {ROUNDS} times {ASKED}"));
    let mut mounts = Vec::new();
    for count in SHOWN {
        let root = lab.folder(&format!("mount{count}"))?;
        let slots = Slots::open(root.join("slots.json"))?;
        let connection = Connection::mount(&root.join("fuse"), slots, &store, &engine)?;
        let begin = Instant::now();
        for (number, layer) in (1..).zip(&layers[..count]) {
            ensure!(connection.show(layer, &[])? == number, "slots are not numbered in order");
        }
        let show = begin.elapsed() / u32::try_from(count)?;
        machine::say(&format!("  {count:4} layers: to show one of them {show:.1?}"));
        mounts.push((connection, root.join("fuse")));
    }
    let mut took: Vec<[Vec<Duration>; 3]> = SHOWN.map(|_| Default::default()).into();
    for round in 0..ROUNDS {
        for ((count, (_, folder)), took) in SHOWN.iter().zip(&mounts).zip(&mut took) {
            for (kind, time) in ask(&lab, folder, *count, round)?.into_iter().enumerate() {
                took[kind].push(time);
            }
        }
    }
    drop((mounts, layers, engine));
    runtime.shutdown_timeout(Duration::from_secs(5));
    lab.close()?;
    Ok((0..KINDS.len()).map(|kind| tell(kind, &mut took)).collect())
}

fn tell(kind: usize, took: &mut [[Vec<Duration>; 3]]) -> Value {
    let medians: Vec<Duration> = took.iter_mut().map(|kinds| quantile(&mut kinds[kind], 0.5)).collect();
    let (least, most) = (medians[0].as_secs_f64(), medians[medians.len() - 1].as_secs_f64());
    let ratio = most / least;
    let verdict = if ratio <= BAR { "within" } else { "MISSES" };
    let what = KINDS[kind];
    machine::say(&format!("  {what:18} {medians:>9.2?}  ratio {ratio:.2}, {verdict} {BAR}"));
    let seconds: Vec<f64> = medians.iter().map(Duration::as_secs_f64).collect();
    json!({"what": what, "layers": SHOWN, "took_s": seconds, "ratio": ratio, "bar": BAR})
}

/// Has a process of its own ask; what one request of each kind took.
fn ask(lab: &Lab, folder: &Path, layers: usize, round: usize) -> Result<[Duration; 3]> {
    let mut command = lab.command(std::env::current_exe()?);
    command.arg(READER).arg(folder).arg(layers.to_string()).arg(round.to_string());
    let said = output(command, LIMIT)?;
    ensure!(said.status.success(), "the reader: {}", String::from_utf8_lossy(&said.stderr));
    let said = String::from_utf8(said.stdout)?;
    let times = said.split_whitespace().map(|nanoseconds| Ok(Duration::from_nanos(nanoseconds.parse()?)));
    let times: Vec<Duration> = times.collect::<Result<_>>()?;
    times.try_into().ok().context("the reader says something else than three times")
}

/// The process that asks: the folder of a mount, how many layers it has, and which round it is.
#[allow(clippy::print_stdout)] // how it answers
pub(crate) fn read(mut words: impl Iterator<Item = String>) -> Result<()> {
    let (Some(folder), Some(layers), Some(round)) = (words.next(), words.next(), words.next()) else {
        bail!("the reader wants a folder, a number of layers and a round");
    };
    let (folder, layers, round) = (PathBuf::from(folder), layers.parse::<usize>()?, round.parse::<usize>()?);
    // Held open: the folder above them, where layers come and go, is not asked then.
    let asked = (0..ASKED_LAYERS).map(|place| place * layers / ASKED_LAYERS);
    let tops = asked.map(|layer| Ok(File::open(folder.join(format!("{}/layer{layer}", layer + 1)))?));
    let tops: Vec<File> = tops.collect::<Result<_>>()?;
    let each = ASKED / ASKED_LAYERS;
    let first = round * (each + 1);
    // The folders on the way are known then, and what is asked for is asked for alone.
    for (layer, top) in tops.iter().enumerate() {
        for entry in first..=first + each {
            let folder = made::path_in_layer(entry - entry % made::FOLDER);
            statat(top, folder, AtFlags::empty())
                .with_context(|| format!("entry {entry} of layer {layer}"))?;
        }
    }
    let read = read_pages(&tops)?;
    let stat = each_of(&tops, |at| made::path_in_layer(first + 1 + at / ASKED_LAYERS), true)?;
    let lookup = each_of(&tops, |at| format!("no{round}-{at}"), false)?;
    println!("{} {} {}", read.as_nanos(), stat.as_nanos(), lookup.as_nanos());
    Ok(())
}

/// Past the kernel's cache; each once before it counts, because the first read of a file also compares its header.
fn read_pages(tops: &[File]) -> Result<Duration> {
    let mut page = [0; made::PAGE];
    let mut whole = Duration::ZERO;
    for top in tops.iter().cycle().take(ASKED) {
        let file = openat(top, "page0", OFlags::DIRECT | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let file = File::from(file);
        file.read_exact_at(&mut page, 0)?;
        let begin = Instant::now();
        file.read_exact_at(&mut page, 0)?;
        whole += begin.elapsed();
    }
    Ok(whole / u32::try_from(ASKED)?)
}

/// Asks in each layer in turn for a name that the kernel does not know.
fn each_of(tops: &[File], name: impl Fn(usize) -> String, is_there: bool) -> Result<Duration> {
    let mut whole = Duration::ZERO;
    for (at, top) in tops.iter().cycle().take(ASKED).enumerate() {
        let name = name(at);
        let begin = Instant::now();
        let found = statat(top, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        whole += begin.elapsed();
        ensure!(found == is_there, "{name} in layer {}: {found}", at % ASKED_LAYERS);
    }
    Ok(whole / u32::try_from(ASKED)?)
}
