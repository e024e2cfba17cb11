//! A power cut at any moment: what was written and not synced is on the disk or not, page by page and name by name.
//!
//! The test takes snapshots of the folder while a store works on it. A power cut then leaves a folder in which each
//! page, each length and each name is as in one of these snapshots, any of them. An inode that did not exist at the
//! last sync may also be empty, or have zeros where it had bytes. Durable is what the code syncs: everything at the
//! mark of an orderly stop, and the names beside that mark when a store is opened. The store is then opened on
//! another boot, and every file is read: there are never wrong bytes, at most misses.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use proptest::{prelude::*, sample::Index};
use tempfile::TempDir;
use ztoc::{Compression, SpanId, UncompressedOffset};

use super::{Layer, read, sample::packed};
use crate::{
    DiskLimits, LayerId, Store,
    fetch::Engine,
    store::LayerFiles,
    testing::{Tar, TestLayer, engine, noise},
};

const PAGE: usize = 4096;

#[derive(Debug, Clone)]
enum Act {
    Look,
    Read(Index),
    ReadAll,
    OpenAnew,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Without an orderly stop.
    Cut,
    /// An orderly stop, and some more writes that fail, before the cut.
    Closed,
}

#[derive(Debug, Clone)]
struct Life {
    max_bytes: Option<u64>,
    acts: Vec<Act>,
    end: End,
    after: Vec<Act>,
    seed: u64,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    /// Hundreds of spans: their records fill several pages.
    ManySpans,
    FewSpans,
    /// Streamed, with a ztoc built here.
    Own,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => Just(Act::Look),
        3 => any::<Index>().prop_map(Act::Read),
        1 => Just(Act::ReadAll),
        1 => Just(Act::OpenAnew),
        1 => Just(Act::Other),
    ];
    prop::collection::vec(act, 0..8)
}

fn life() -> impl Strategy<Value = Life> {
    let limit = prop_oneof![2 => Just(None), 1 => (10_000..400_000_u64).prop_map(Some)];
    let end = prop_oneof![3 => Just(End::Cut), 1 => Just(End::Closed)];
    (limit, acts(), end, acts(), any::<u64>()).prop_map(|(max_bytes, acts, end, after, seed)| Life {
        max_bytes,
        acts,
        end,
        after,
        seed,
    })
}

type Inode = (u64, Option<SystemTime>);

/// A folder at one moment.
#[derive(Default)]
struct Look {
    names: BTreeMap<PathBuf, Inode>,
    bytes: BTreeMap<Inode, Vec<u8>>,
}

impl Look {
    fn at(root: &Path) -> Self {
        let mut look = Self::default();
        let mut open = vec![root.to_path_buf()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                // A file may be removed meanwhile: it is absent then.
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() {
                    open.push(path);
                    continue;
                }
                let Ok(bytes) = fs::read(&path) else { continue };
                // An inode number is soon used again: the time of its birth makes it unique.
                let inode = (metadata.ino(), metadata.created().ok());
                look.names.insert(path.strip_prefix(root).unwrap().to_path_buf(), inode);
                look.bytes.insert(inode, bytes);
            }
        }
        look
    }
}

/// All snapshots of a folder since it was durable as a whole.
struct History {
    looks: Vec<Look>,
    /// A store was opened: the names of `boot` and `clean` are durable from then on.
    opened: usize,
}

/// Makes all choices; a case is its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % count
    }

    /// A number in `from..=last`; how often it is the last differs from cut to cut.
    fn moment(&mut self, from: usize, last: usize, newest: usize) -> usize {
        if self.below(8) < newest { last } else { from + self.below(last - from + 1) }
    }
}

impl History {
    fn of(root: &Path) -> Self {
        Self { looks: vec![Look::at(root)], opened: 0 }
    }

    fn look(&mut self, root: &Path) {
        self.looks.push(Look::at(root));
    }

    /// Everything is on the disk now except the mark that says so.
    fn synced(&mut self, root: &Path) {
        let mark = Path::new("layers/clean");
        let mut durable = Look::at(root);
        let marked = Look::at(root);
        durable.names.remove(mark);
        self.looks = vec![durable, marked];
        self.opened = 0;
    }

    fn cut(&self, dice: &mut Dice) -> TempDir {
        let root = TempDir::new().unwrap();
        let last = self.looks.len() - 1;
        let newest = [1, 4, 7][dice.below(3)];
        let mut names: Vec<_> = self.looks.iter().flat_map(|look| look.names.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let from = if name.parent() == Some(Path::new("layers")) { self.opened } else { 0 };
            let moment = dice.moment(from, last, newest);
            let Some(inode) = self.looks[moment].names.get(name) else { continue };
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, self.torn(inode, dice, newest)).unwrap();
        }
        root
    }

    /// The bytes of an inode: each page and the length as in some snapshot.
    fn torn(&self, inode: &Inode, dice: &mut Dice, newest: usize) -> Vec<u8> {
        let nothing = Vec::new();
        let mut versions: Vec<_> = self.looks.iter().filter_map(|look| look.bytes.get(inode)).collect();
        if !self.looks[0].bytes.contains_key(inode) {
            versions.insert(0, &nothing);
        }
        let last = versions.len() - 1;
        let longest = versions.iter().map(|version| version.len()).max().unwrap_or(0);
        let mut bytes = vec![0; longest];
        for (number, page) in bytes.chunks_mut(PAGE).enumerate() {
            let version = versions[dice.moment(0, last, newest)];
            let from = version.len().min(number * PAGE);
            let to = version.len().min(from + page.len());
            page[..to - from].copy_from_slice(&version[from..to]);
        }
        bytes.truncate(versions[dice.moment(0, last, newest)].len());
        bytes
    }
}

/// Six files of 100 000 bytes.
fn files() -> Vec<(String, Vec<u8>)> {
    (0..6).map(|seed| (format!("f{seed}"), noise(seed + 1, 100_000))).collect()
}

/// The two layers of a store.
struct Disk {
    shape: Shape,
    layer: TestLayer,
    other: TestLayer,
    engine: Arc<Engine>,
}

impl Disk {
    fn new(shape: Shape) -> Self {
        let tar = files().iter().fold(Tar::default(), |tar, (name, data)| tar.file(name, data)).end();
        let layer = match shape {
            Shape::ManySpans => packed(&tar, Compression::Uncompressed, 1 << 10),
            Shape::FewSpans | Shape::Own => packed(&tar, Compression::Gzip, 32 << 10),
        };
        let other = Tar::default().file("f0", &files()[0].1).file("more", b"").end();
        let other = packed(&other, Compression::Gzip, 32 << 10);
        Self { shape, layer, other, engine: engine() }
    }

    fn id(&self) -> LayerId {
        let ztoc = self.layer.id().ztoc.filter(|_| !matches!(self.shape, Shape::Own));
        LayerId { layer: self.layer.digest, ztoc }
    }

    /// The layer from the store, or created again.
    async fn open(&self, store: &Arc<Store>) -> Option<Arc<Layer>> {
        let stored = Layer::stored(store, &self.engine, &self.id()).unwrap();
        let layer = match (stored, self.shape) {
            (Some(stored), _) => Some(stored),
            (None, Shape::Own) => {
                let (blob, compression) = (self.layer.blob.clone(), Compression::Gzip);
                Layer::stream(store, &self.engine, "origin", blob, compression).await.ok()
            }
            (None, _) => created(store, &self.engine, &self.layer),
        }?;
        layer.add_source("origin", self.layer.blob.clone());
        Some(layer)
    }

    async fn open_other(&self, store: &Arc<Store>) -> Option<Arc<Layer>> {
        let layer = created(store, &self.engine, &self.other)?;
        layer.add_source("origin", self.other.blob.clone());
        Some(layer)
    }

    /// Reads what a cut left, first without a source, then with it.
    async fn verify(&self, store: &Arc<Store>) {
        for (id, count) in [(self.id(), 6), (self.other.id(), 1)] {
            if let Some(layer) = Layer::stored(store, &self.engine, &id).unwrap() {
                for (name, data) in files().into_iter().take(count) {
                    let found = read(&layer, &name, 0, 1 << 20).await;
                    assert!(found.is_err() || found.unwrap() == data, "{name} is right, or an error");
                }
            }
        }
        let layer = self.open(store).await.expect("the store is open");
        read_all(&layer, 6).await;
        read_all(&self.open_other(store).await.expect("the store is open"), 1).await;
    }
}

fn created(store: &Arc<Store>, engine: &Arc<Engine>, made: &TestLayer) -> Option<Arc<Layer>> {
    let ztoc = oci::Digest::sha256(&made.ztoc);
    Layer::create(store, engine, &made.digest, &ztoc, &made.ztoc).ok()
}

async fn read_all(layer: &Arc<Layer>, count: usize) {
    for (name, data) in files().into_iter().take(count) {
        assert!(read(layer, &name, 0, 1 << 20).await.unwrap() == data, "{name}");
    }
}

async fn act(disk: &Disk, store: &Arc<Store>, acts: &[Act], history: &mut History, root: &Path) {
    let mut layer = disk.open(store).await;
    for act in acts {
        match (act, &layer) {
            (Act::Read(file), Some(layer)) => {
                let (name, data) = &files()[file.index(6)];
                assert!(read(layer, name, 0, 1 << 20).await.unwrap() == *data, "{name}");
            }
            (Act::ReadAll, Some(layer)) => read_all(layer, 6).await,
            (Act::OpenAnew, _) => layer = disk.open(store).await,
            (Act::Other, _) => {
                if let Some(other) = disk.open_other(store).await {
                    read_all(&other, 1).await;
                }
            }
            (Act::Look, _) | (_, None) => {}
        }
        history.look(root);
    }
}

async fn lived(shape: Shape, lives: Vec<Life>) {
    let disk = Disk::new(shape);
    let mut root = TempDir::new().unwrap();
    for (number, life) in lives.iter().enumerate() {
        let mut history = History::of(root.path());
        let room = DiskLimits { max_bytes: life.max_bytes, ..DiskLimits::default() };
        let store = Store::open_on(root.path(), room, &format!("boot-{number}"), Arc::default()).unwrap();
        history.look(root.path());
        history.opened = history.looks.len() - 1;
        if number > 0 {
            disk.verify(&store).await;
            history.look(root.path());
        }
        act(&disk, &store, &life.acts, &mut history, root.path()).await;
        if life.end == End::Closed {
            store.close().unwrap();
            history.synced(root.path());
            act(&disk, &store, &life.after, &mut history, root.path()).await;
        }
        root = history.cut(&mut Dice(life.seed));
    }
    let store = Store::open_on(root.path(), DiskLimits::default(), "the last boot", Arc::default()).unwrap();
    disk.verify(&store).await;
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20,
        failure_persistence: None,
        max_shrink_iters: 60,
        ..ProptestConfig::default()
    })]

    #[test]
    fn after_a_power_cut_no_byte_is_wrong(
        shape in prop_oneof![Just(Shape::ManySpans), Just(Shape::FewSpans), Just(Shape::Own)],
        lives in prop::collection::vec(life(), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(lived(shape, lives));
    }
}

/// A folder with one span of four bytes.
fn one_span(store: &Arc<Store>) -> LayerFiles {
    let files = store.layer(&LayerId { layer: oci::Digest::sha256(b"layer"), ztoc: None }).unwrap();
    files.records(1);
    files.put_piece(UncompressedOffset(0), b"span").unwrap();
    files
}

fn assert_untouchable(files: &LayerFiles, root: &Path) {
    let before = Look::at(root);
    assert!(files.put_piece(UncompressedOffset(0), b"more").is_err());
    assert!(!files.strike(SpanId(0)));
    files.forget(SpanId(0), &(UncompressedOffset(0)..UncompressedOffset(4)));
    assert!(files.note_proven(1).is_err());
    assert!(files.put_ztoc(b"ztoc", &oci::Digest::sha256(b"ztoc")).is_err());
    let after = Look::at(root);
    assert!(before.names == after.names && before.bytes == after.bytes);
}

#[test]
fn after_an_orderly_stop_nothing_is_written() {
    let root = TempDir::new().unwrap();
    let store = Store::open(root.path(), DiskLimits::default()).unwrap();
    let files = one_span(&store);
    store.close().unwrap();
    assert_untouchable(&files, root.path());
}

#[test]
fn the_last_opening_of_a_folder_ends_the_earlier_ones() {
    let root = TempDir::new().unwrap();
    let store = Store::open(root.path(), DiskLimits::default()).unwrap();
    let old = one_span(&store);
    let new = store.layer(old.id()).unwrap();
    assert_untouchable(&old, root.path());
    assert!(old.read(UncompressedOffset(0), &mut [0; 4]).is_err(), "the new table may punch holes");
    let mut bytes = [0; 4];
    new.read(UncompressedOffset(0), &mut bytes).unwrap();
    assert_eq!(&bytes, b"span");
}
