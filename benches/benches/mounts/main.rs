//! What a layer costs that is shown: `cargo bench -p benches --bench mounts -- [--rounds N]`. Three things:
//!
//! - the mount of an image of 60 layers and 200 000 entries whose ztocs are local, from what the store has to what the
//!   kernel sees, in this process: for the first time, and again as after a restart. Bar: 150 ms;
//! - the daemon with the same image, pulled and walked by `find`, and once more after a restart: memory that is in no
//!   file. Bar: 64 MiB;
//! - a read, a stat and a lookup that reach us, with 10, 100 and 1 000 layers shown (`per_layer`). To be flat: 1 000
//!   against 10. Bar: 1.3.

mod made;
mod per_layer;

use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use benches::{
    keep, quantile,
    stage::{INDEXED, NO_FILL, Stage},
};
use integration::{
    containerd::Containerd,
    images::{Image, Layer},
    lab::Lab,
    machine,
    process::{anonymous_memory, run_timed},
    reference,
};
use layerfs::{Connection, DiskLimits, Engine, Layer as Shown, LayerId, Limits, Slots, Store};
use oci::Digest;
use serde_json::{Value, json};

const LAYERS: usize = 60;
const ENTRIES: usize = 200_000;
const BAR: Duration = Duration::from_millis(150);
const MEMORY_BAR: u64 = 64 << 20;
const FIND_LIMIT: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let mut rounds = 5;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // what cargo itself adds
            "--bench" => {}
            "--rounds" => rounds = words.next().context("--rounds wants a number")?.parse()?,
            per_layer::READER => return per_layer::read(words),
            other => bail!("{other} is no option"),
        }
    }
    made::allow_many_files()?;
    let layers: Vec<Layer> = (0..LAYERS).map(|number| made::layer(number, ENTRIES / LAYERS, 0)).collect();
    let mut rows = mounts(&layers, rounds)?;
    rows.extend(memory(layers)?);
    rows.extend(per_layer::measure()?);
    keep("mounts", &rows)
}

/// What a process needs to show layers of a store.
struct Process {
    runtime: tokio::runtime::Runtime,
    // Before the store: it is unmounted first.
    connection: Connection,
    engine: Arc<Engine>,
    store: Arc<Store>,
}

impl Process {
    fn start(root: &Path, slots: &Path) -> Result<Process> {
        let runtime = tokio::runtime::Runtime::new()?;
        let store = Store::open(root, DiskLimits::default())?;
        let engine = Engine::new(runtime.handle().clone(), Limits::default());
        let slots = Slots::open(slots.to_owned())?;
        let connection = Connection::mount(&root.join("fuse"), slots, &store, &engine)?;
        Ok(Process { runtime, connection, engine, store })
    }

    fn stored(&self, id: &LayerId) -> Result<Arc<Shown>> {
        Shown::stored(&self.store, &self.engine, id)?.with_context(|| format!("the store has no layer {id}"))
    }
}

/// The mount of the image in this process.
fn mounts(layers: &[Layer], rounds: usize) -> Result<Vec<Value>> {
    let lab = Lab::new("mounts")?;
    let root = lab.folder("store")?;
    let ids = {
        let process = Process::start(&root, &root.join("no-slots.json"))?;
        layers.iter().map(|layer| create(&process, layer)).collect::<Result<Vec<_>>>()?
    };
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let slots = root.join(format!("slots-{round}.json"));
        first.push(timed(&root, &slots, &ids, |process, _, layer| {
            process.connection.show(layer, &[]).map(drop).map_err(Into::into)
        })?);
        again.push(timed(&root, &slots, &ids, |process, number, layer| {
            process.connection.show_again(number, layer, &[]).map_err(Into::into)
        })?);
    }
    lab.close()?;
    let rows = [("for the first time", first), ("after a restart", again)];
    machine::say(&format!("\n{LAYERS} layers, {ENTRIES} entries, ztocs local, median of {rounds}"));
    Ok(rows.into_iter().map(|(what, times)| tell_mount(what, &times)).collect())
}

/// Puts the ztoc of a layer into the store.
fn create(process: &Process, layer: &Layer) -> Result<LayerId> {
    let built = ztoc::build(&layer.bytes[..], ztoc::Compression::Gzip, &ztoc::Options::default())?;
    let ztoc = Digest::sha256(&built.ztoc);
    let created = Shown::create(&process.store, &process.engine, &layer.digest, &ztoc, &built.ztoc)?;
    Ok(*created.id())
}

/// Opens the layers and shows them, each by `show`: how long the opening took, and the showing.
fn timed(
    root: &Path,
    slots: &Path,
    ids: &[LayerId],
    show: impl Fn(&Process, u32, &Arc<Shown>) -> Result<()>,
) -> Result<[Duration; 2]> {
    let process = Process::start(root, slots)?;
    let begin = Instant::now();
    // As many at once as there are cores, as the daemon does it.
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = ids.len().div_ceil(threads);
    let layers = thread::scope(|scope| {
        let open = |ids: &[LayerId]| ids.iter().map(|id| process.stored(id)).collect::<Result<Vec<_>>>();
        let opening: Vec<_> = ids.chunks(share).map(|ids| scope.spawn(move || open(ids))).collect();
        let opened = opening.into_iter().map(|thread| thread.join().expect("opening does not panic"));
        opened.collect::<Result<Vec<_>>>()
    })?;
    let opened = begin.elapsed();
    for (number, layer) in (1..).zip(layers.concat()) {
        show(&process, number, &layer)?;
    }
    let took = [opened, begin.elapsed() - opened];
    let Process { runtime, connection, engine, store } = process;
    drop((connection, engine, store));
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(took)
}

fn tell_mount(what: &str, times: &[[Duration; 2]]) -> Value {
    let median =
        |part: fn(&[Duration; 2]) -> Duration| quantile(&mut times.iter().map(part).collect::<Vec<_>>(), 0.5);
    let (opened, shown, whole) = (median(|t| t[0]), median(|t| t[1]), median(|t| t[0] + t[1]));
    let verdict = if whole <= BAR { "within" } else { "MISSES" };
    machine::say(&format!(
        "  {what:18} {whole:>8.1?}, {verdict} {BAR:?} (opened {opened:.1?}, shown {shown:.1?})"
    ));
    json!({
        "what": "mount", "when": what, "took_s": whole.as_secs_f64(), "bar_s": BAR.as_secs_f64(),
        "opened_s": opened.as_secs_f64(), "shown_s": shown.as_secs_f64(),
    })
}

/// Memory of the daemon that has the image mounted, walked, and restored.
fn memory(layers: Vec<Layer>) -> Result<Vec<Value>> {
    let stage = Stage::new()?;
    let lab = Lab::new("mounts")?;
    let registry = stage.publish(&lab, &Image::new(layers), 0)?;
    let (daemon, containerd) = stage.soci_daemon(&lab, NO_FILL)?;
    let anonymous = || anonymous_memory(daemon.pid());
    let mut rows = vec![("empty", anonymous()?)];
    let begin = Instant::now();
    stage.pull(&lab, &containerd, &format!("{}/{INDEXED}", registry.host()))?;
    let pulled = begin.elapsed();
    rows.push(("pulled", anonymous()?));
    walk(&lab, &containerd)?;
    rows.push(("walked", anonymous()?));
    daemon.stop();
    let begin = Instant::now();
    daemon.restart()?;
    let restarted = begin.elapsed();
    rows.push(("restarted", anonymous()?));
    // It waits ever longer for a socket that was gone; a new one asks at once.
    containerd.restart()?;
    walk(&lab, &containerd)?;
    rows.push(("walked again", anonymous()?));
    lab.close()?;
    machine::say(&format!("  daemon: pull {pulled:.1?}, start with the image shown {restarted:.1?}"));
    Ok(rows.into_iter().map(|(what, bytes)| tell_memory(what, bytes)).collect())
}

/// Mounts the image and stats everything in it.
fn walk(lab: &Lab, containerd: &Containerd) -> Result<()> {
    let image = reference::mount(lab, containerd, "soci")?;
    let mut find = lab.command("find");
    find.args([".", "-size", "+1000000k"]).current_dir(image.path());
    run_timed(find, FIND_LIMIT).map(drop)
}

fn tell_memory(what: &str, bytes: u64) -> Value {
    let verdict = if bytes <= MEMORY_BAR { "within" } else { "MISSES" };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    machine::say(&format!(
        "  daemon {what:12} {:>5.1} MiB of its own, {verdict} {:.0}",
        mib(bytes),
        mib(MEMORY_BAR)
    ));
    json!({"what": "RssAnon", "when": what, "bytes": bytes, "bar": MEMORY_BAR})
}
