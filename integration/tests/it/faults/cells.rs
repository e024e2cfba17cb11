//! The rows of `table`, run (the column *prefetch* in `prefetch`): each fault at each stage, for as long as it takes to see what comes of it, and then
//! lifted. In every cell every byte that comes out is compared with the plain unpacking of the same layer. The cells
//! of a test run side by side in one lab, each with an image or a layer of its own; what one's fault does to
//! another's bytes is part of the test.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    containerd::Containerd,
    daemon::{Daemon, soci, with_containerd},
    images::{Image, Layer, Tar, push_image, tar::Entry},
    lab::Lab,
    link::{Fault, Injected, Link, When},
    machine::{binaries, long},
    process::wait_until,
    reference::{mount_snapshot, unpack_layer},
    registry::Registry,
    tree::walk,
};
use serde_json::Value;

use super::table::{Outcome, ROWS, Row, Stage};
use crate::{
    image::{index, noise},
    read_path::{NO_FILL, pull},
};

const SPAN_BYTES: usize = 64 << 10;
/// Six spans of a layer whose bytes do not compress.
const LAYER_BYTES: usize = 350_000;
/// Against a hang. The longest cell is one where two programs after each other try five times, with pauses.
const CELL_LIMIT: Duration = Duration::from_secs(180);
/// Enough that no cell waits for another's turn: that is another test's matter.
pub(super) const WIDE: &str = "[fetch]\nmax_requests = 256\n";
/// A fill pauses up to a minute between its rounds; a busy machine adds to that.
const FILL_LIMIT: Duration = Duration::from_secs(120);

/// Paths and contents.
type Files = BTreeMap<String, Vec<u8>>;

/// Everything that the cells of one test share.
pub(super) struct Bench {
    pub(super) registry: Registry,
    pub(super) link: Link,
    pub(super) daemon: Daemon,
    pub(super) containerd: Containerd,
    pub(super) lab: Lab,
}

impl Bench {
    pub(super) fn new(name: &str, configuration: &str) -> Result<Bench> {
        let lab = Lab::new(name)?;
        let registry = Registry::start(&lab)?;
        let link = Link::new(&lab, registry.host())?;
        let (daemon, containerd) = with_containerd(&lab, configuration)?;
        Ok(Bench { registry, link, daemon, containerd, lab })
    }

    /// Pushes and converts, with a ztoc for layers from this length on; the name of what came out, as seen through
    /// the line.
    fn converted(&self, repository: &str, image: &Image, smallest: usize) -> Result<String> {
        let host = self.registry.host();
        push_image(host, &format!("{repository}:plain"), image)?;
        let place = |tag: &str| format!("docker://{host}/{repository}:{tag}");
        let (from, to) = (place("plain"), place("soci"));
        let (span, smallest) = (SPAN_BYTES.to_string(), smallest.to_string());
        let words = ["convert", "--span-size", &span, "--min-layer-size", &smallest, &from, &to];
        soci(&self.lab, &binaries()?, &words)?;
        Ok(format!("{}/{repository}:soci", self.link.host()))
    }

    /// The digests of a converted image's index, and of the ztoc of one of its layers.
    fn artifacts(&self, repository: &str, layer: &Layer) -> Result<(String, String)> {
        let (index, entries) = index(self.registry.host(), repository)?;
        let wanted = Value::from(layer.digest.to_string());
        let of_layer = |entry: &&Value| entry["annotations"]["com.amazon.soci.image-layer-digest"] == wanted;
        let ztoc = entries.iter().find(of_layer).and_then(|entry| entry["digest"].as_str());
        Ok((index, ztoc.with_context(|| format!("a ztoc in {entries:?}"))?.to_owned()))
    }

    /// Log lines with a reason.
    pub(super) fn reasons(&self, of: impl Fn(&Value) -> bool) -> Vec<String> {
        let lines =
            self.daemon.logs().into_iter().filter(|line| line["remote-snapshot-prepared"].is_string());
        lines.filter(of).filter_map(|line| line["reason"].as_str().map(str::to_owned)).collect()
    }

    /// Whether nothing of the daemon's has panicked: that it still serves shows in every cell.
    pub(super) fn ensure_calm(&self) -> Result<()> {
        let log = std::fs::read_to_string(self.lab.path().join("daemon.log"))?;
        let panics: Vec<&str> = log.lines().filter(|line| line.contains("panic")).collect();
        ensure!(panics.is_empty(), "{}", panics.join("\n"));
        Ok(())
    }

    /// Whether everything in a mounted image is as in the plain unpacking of its layers.
    pub(super) fn ensure_same(&self, image: &Image) -> Result<()> {
        let mounted = mount_snapshot(&self.lab, &self.containerd, "soci", &image.chain_id())?;
        for layer in &image.layers {
            for (path, truth) in truth(&self.lab, layer)? {
                let (bytes, error) = read(&mounted.path().join(&path))?;
                ensure!(error.is_none(), "{path}: {error:?} after {} bytes", bytes.len());
                ensure!(bytes == truth, "{path}: other bytes than in a plain unpacking");
            }
        }
        Ok(())
    }
}

/// What a row has for itself: one large file and one small.
fn tar(row: &str, seed: u64, length: usize) -> Vec<u8> {
    let large = Entry::file(format!("{row}-{seed}/large"), noise(seed, length));
    let small = Entry::file(format!("{row}-{seed}/small"), row.as_bytes());
    Tar::new([large, small]).bytes()
}

/// A layer for each row, in the order of the rows, and the length of each uncompressed.
fn layers() -> Vec<(Layer, u64)> {
    let tars = (1..).zip(ROWS).map(|(seed, row)| tar(row.name, seed, LAYER_BYTES));
    tars.map(|tar| (Layer::gzip(&tar), tar.len() as u64)).collect()
}

/// The files of a layer as GNU tar unpacks them.
pub(super) fn truth(lab: &Lab, layer: &Layer) -> Result<Files> {
    let folder = unpack_layer(lab, layer)?;
    let tree = walk(&folder)?;
    let files = tree.entries.values().filter(|entry| entry.content.is_some());
    let paths = files.map(|entry| String::from_utf8_lossy(&entry.path).into_owned());
    paths.map(|path| Ok((path.clone(), std::fs::read(folder.join(path))?))).collect()
}

/// What can be read of a file, and the error that ended it.
fn read(path: &Path) -> Result<(Vec<u8>, Option<i32>)> {
    let mut file = File::open(path)?;
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 32 << 10]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok((bytes, None)),
            Ok(length) => bytes.extend_from_slice(&piece[..length]),
            Err(error) => return Ok((bytes, Some(error.raw_os_error().unwrap_or_default()))),
        }
    }
}

/// Runs the cells of some stages side by side; fails with all that failed.
pub(super) fn side_by_side(
    stages: &[Stage],
    cell: impl Fn(Stage, &Row, u64) -> Result<()> + Sync,
) -> Result<()> {
    let cell = &cell;
    let failed: Vec<String> = thread::scope(|scope| {
        let mut running = Vec::new();
        for &stage in stages {
            for row in ROWS.iter().filter(|row| row.outcome(stage) != Outcome::None) {
                let seed = 2 * running.len() as u64 + 1;
                running.push((stage, row, scope.spawn(move || cell(stage, row, seed))));
            }
        }
        let ended = |(stage, row, cell): (Stage, &Row, ScopedJoinHandle<'_, Result<()>>)| {
            let ended = cell.join().expect("a cell does not panic");
            ended.err().map(|error| format!("{} at {stage}: {error:#}", row.name))
        };
        running.into_iter().filter_map(ended).collect()
    });
    ensure!(failed.is_empty(), "{} cells:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

/// Runs `work` with the fault in force. One that is to be waited for is lifted when it has been met often enough, the
/// others when the work is done.
fn under<T: Send>(
    row: &Row,
    outcome: Outcome,
    injected: &Injected,
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let working = scope.spawn(work);
        let met = match outcome {
            Outcome::Waits => injected.wait_for(row.hits),
            _ => wait_until("the end of what meets the fault", CELL_LIMIT, || {
                Ok(working.is_finished().then_some(()))
            }),
        };
        // In any case: the work must end.
        injected.lift();
        let done = working.join().expect("the work does not panic");
        met.map(|()| done)
    })
}

/// The path of what is asked for at a stage of mounting the lower layer.
fn asked_for(bench: &Bench, stage: Stage, repository: &str, lower: &Layer) -> Result<String> {
    Ok(match stage {
        Stage::Index => format!("/{repository}/manifests/{}", bench.artifacts(repository, lower)?.0),
        Stage::Ztoc => format!("/{repository}/blobs/{}", bench.artifacts(repository, lower)?.1),
        _ => format!("/{repository}/blobs/{}", lower.digest),
    })
}

#[test]
fn containerd_faults_at_mount() -> Result<()> {
    let bench = Bench::new("mount", &format!("{NO_FILL}{WIDE}"))?;
    side_by_side(&[Stage::Index, Stage::Ztoc, Stage::Stream], |stage, row, seed| {
        let repository = format!("{}-{}", format!("{stage:?}").to_lowercase(), row.name);
        let lower = Layer::gzip(&tar(&repository, seed, LAYER_BYTES));
        let upper = Layer::gzip(&tar(&repository, seed + 1, LAYER_BYTES + 50_000));
        let image = Image::new(vec![lower.clone(), upper]);
        // Both layers have a ztoc; or the lower one, which is shorter, has none.
        let smallest = if stage == Stage::Stream { lower.bytes.len() + 1 } else { 0 };
        let name = bench.converted(&repository, &image, smallest)?;
        let path = asked_for(&bench, stage, &repository, &lower)?;
        let injected = bench.link.inject((row.fault)(), When::path(path));
        let outcome = row.outcome(stage);
        let pulled = || pull(&bench.lab, &bench.containerd, &name);
        let layers = under(row, outcome, &injected, pulled)?;
        ensure!(injected.hits() > 0, "no request for it came");
        let layers = match (outcome, layers) {
            (Outcome::Fails, Ok(layers)) => bail!("the pull does not fail: {layers:?}"),
            (Outcome::Fails, Err(_)) => pulled()?,
            (_, layers) => layers?,
        };
        let found = bench.reasons(|line| line["image"] == name.as_str());
        let all = |how: &str| layers.len() == 2 && layers.iter().all(|line| line.ends_with(how));
        let as_expected = match outcome {
            Outcome::Left(reason) => all(" unpacked") && found == [reason; 2],
            Outcome::Whole(reason) => all(" lazy") && found == [reason],
            Outcome::Fails => all(" lazy") && found.last().is_some_and(|reason| reason == "no_ztoc"),
            _ if stage == Stage::Stream => all(" lazy") && found == ["no_ztoc"],
            _ => all(" lazy") && found.is_empty(),
        };
        ensure!(as_expected, "{layers:?}, reasons {found:?}");
        bench.ensure_same(&image)
    })?;
    bench.ensure_calm()
}

/// What comes so slowly that it never ends; a minute long by its nature.
#[test]
fn containerd_a_mount_does_not_wait_for_ever() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let bench = Bench::new("never", NO_FILL)?;
    let cell = |stage: Stage, how: &str| -> Result<()> {
        let repository = format!("{stage:?}").to_lowercase();
        let lower = Layer::gzip(&tar(&repository, stage as u64, LAYER_BYTES));
        let image = Image::new(vec![lower.clone()]);
        let name = bench.converted(&repository, &image, 0)?;
        let path = asked_for(&bench, stage, &repository, &lower)?;
        bench.link.inject(Fault::Trickle, When::path(path));
        let layers = pull(&bench.lab, &bench.containerd, &name)?;
        let found = bench.reasons(|line| line["image"] == name.as_str());
        ensure!(layers[0].ends_with(how) && found == ["unreachable"], "{layers:?}, reasons {found:?}");
        bench.ensure_same(&image)
    };
    thread::scope(|scope| {
        let index = scope.spawn(|| cell(Stage::Index, " unpacked").context("index"));
        cell(Stage::Ztoc, " lazy").context("ztoc")?;
        index.join().expect("a cell does not panic")
    })?;
    let ended = |line: &Value| {
        ["why", "error"]
            .iter()
            .any(|field| line[*field].as_str().is_some_and(|why| why.contains("not all of it came")))
    };
    ensure!(bench.daemon.logs().iter().filter(|line| ended(line)).count() == 2, "not for the time it took");
    Ok(())
}

#[test]
fn containerd_faults_at_first_read() -> Result<()> {
    let bench = Bench::new("read", &format!("{NO_FILL}{WIDE}"))?;
    let layers = layers();
    let image = Image::new(layers.iter().map(|(layer, _)| layer.clone()).collect());
    let name = bench.converted("read", &image, 0)?;
    let said = pull(&bench.lab, &bench.containerd, &name)?;
    ensure!(said.iter().all(|line| line.ends_with(" lazy")), "{said:?}");
    let mounted = mount_snapshot(&bench.lab, &bench.containerd, "soci", &image.chain_id())?;
    side_by_side(&[Stage::Read], |stage, row, _| {
        let place = ROWS.iter().position(|other| other.name == row.name).context("a row")?;
        let (layer, _) = &layers[place];
        let truth = truth(&bench.lab, layer)?;
        let (path, right) = truth.iter().find(|(path, _)| path.ends_with("large")).context("a large file")?;
        let file = mounted.path().join(path);
        let outcome = row.outcome(stage);
        let injected = bench.link.inject((row.fault)(), When::path(format!("blobs/{}", layer.digest)));
        let (bytes, error) = under(row, outcome, &injected, || read(&file))??;
        ensure!(injected.hits() > 0, "no request for it came");
        ensure!(right.starts_with(&bytes), "other bytes than in a plain unpacking");
        match outcome {
            Outcome::Error => ensure!(error == Some(5), "{error:?} and {} bytes", bytes.len()),
            _ => ensure!(error.is_none(), "{error:?} after {} bytes", bytes.len()),
        }
        for (path, right) in &truth {
            let (bytes, error) = read(&mounted.path().join(path))?;
            ensure!(error.is_none(), "{path} afterwards: {error:?} after {} bytes", bytes.len());
            ensure!(bytes == *right, "{path} afterwards: other bytes than in a plain unpacking");
        }
        Ok(())
    })?;
    bench.ensure_calm()
}

#[test]
fn containerd_faults_at_fill() -> Result<()> {
    let bench = Bench::new("fill", WIDE)?;
    let layers = layers();
    let image = Image::new(layers.iter().map(|(layer, _)| layer.clone()).collect());
    let name = bench.converted("fill", &image, 0)?;
    let path = |layer: &Layer| When::path(format!("blobs/{}", layer.digest));
    let faults =
        ROWS.iter().zip(&layers).map(|(row, (layer, _))| bench.link.inject((row.fault)(), path(layer)));
    let faults: Vec<Injected> = faults.collect();
    let said = pull(&bench.lab, &bench.containerd, &name)?;
    ensure!(said.iter().all(|line| line.ends_with(" lazy")), "{said:?}");
    side_by_side(&[Stage::Fill], |stage, row, _| {
        let place = ROWS.iter().position(|other| other.name == row.name).context("a row")?;
        let (layer, length) = &layers[place];
        let folder = bench.daemon.root().join("layers/sha256").join(layer.digest.hex());
        if row.outcome(stage) == Outcome::Later {
            faults[place].wait_for(row.hits)?;
            ensure!(!is_full(&folder, *length)?, "it is all there, and cannot be");
            faults[place].lift();
        }
        wait_until("a layer that is all there", FILL_LIMIT, || Ok(is_full(&folder, *length)?.then_some(())))?;
        ensure!(faults[place].hits() > 0, "no request for it came");
        Ok(())
    })?;
    // From here on only what is on the disk can be read.
    bench.link.lift();
    bench.link.inject(Fault::status(404), When::path("blobs/"));
    bench.ensure_same(&image)?;
    bench.ensure_calm()
}

/// Whether every block of the one data file below a layer's folder is on the disk: what is missing is a hole in it.
fn is_full(folder: &Path, length: u64) -> Result<bool> {
    let one = std::fs::read_dir(folder)?.next().context("the layer is stored")??;
    let data = std::fs::metadata(one.path().join("data"))?;
    Ok(data.len() >= length && data.blocks() * 512 >= length)
}
