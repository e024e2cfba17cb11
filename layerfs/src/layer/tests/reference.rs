//! Any layer, read in any order by several readers at once, while spans come and go and the source fails: every
//! answer is the model's.

use std::{ops::RangeInclusive, sync::Arc};

use oci::{ErrorKind as Blob, testing::BlobFault};
use proptest::{prelude::*, sample::Index};
use tempfile::TempDir;

use super::{
    Layer, ReadAnswer,
    sample::{Model, Recipe, recipe},
};
use crate::{
    DiskLimits, Error, ErrorKind, Store,
    testing::engine,
    tree::{NodeId, NodeKind},
};

/// More reads than faults are ever queued.
const PATIENCE: usize = 40;

#[derive(Debug, Clone)]
enum Step {
    /// A name in a directory; `None` asks for a name that it does not have.
    Lookup(Index, Option<Index>),
    List(Index, Index),
    Stat(Index),
    Read(Index, Index, u32),
    Behind(Index, u64, u32),
    Want(RangeInclusive<u32>),
    Fault(BlobFault),
    Yield,
}

#[derive(Debug, Clone)]
struct Case {
    recipe: Recipe,
    max_bytes: Option<u64>,
    fill: bool,
    /// The steps of each reader: the first half, and the second half after the layer was opened anew.
    readers: Vec<(Vec<Step>, Vec<Step>)>,
}

fn step(faults: BoxedStrategy<BlobFault>) -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let size = prop_oneof![1..5_000_u32, 5_000..200_000_u32, Just(1 << 20)];
    prop_oneof![
        2 => (index(), prop::option::of(index())).prop_map(|(folder, name)| Step::Lookup(folder, name)),
        1 => (index(), index()).prop_map(|(folder, skip)| Step::List(folder, skip)),
        1 => index().prop_map(Step::Stat),
        12 => (index(), index(), size).prop_map(|(file, at, size)| Step::Read(file, at, size)),
        1 => (index(), any::<u64>(), any::<u32>()).prop_map(|(file, by, size)| Step::Behind(file, by, size)),
        1 => (0..20_u32, 0..4_u32).prop_map(|(first, more)| Step::Want(first..=first + more)),
        2 => faults.prop_map(Step::Fault),
        1 => Just(Step::Yield),
    ]
}

fn case(faults: impl Strategy<Value = BlobFault> + 'static) -> impl Strategy<Value = Case> {
    let steps = prop::collection::vec(step(faults.boxed()), 0..12).boxed();
    let readers = prop::collection::vec((steps.clone(), steps), 1..5);
    let limit = prop_oneof![Just(None), (1_000..400_000_u64).prop_map(Some)];
    (recipe(), limit, any::<bool>(), readers).prop_map(|(recipe, max_bytes, fill, readers)| Case {
        recipe,
        max_bytes,
        fill,
        readers,
    })
}

/// Faults that every reader outlasts, however many it meets.
fn passing() -> impl Strategy<Value = BlobFault> {
    prop_oneof![Just(BlobFault::Refuse(Blob::Unreachable)), (0..200_000_u64).prop_map(BlobFault::BreakAfter)]
}

fn any_fault() -> impl Strategy<Value = BlobFault> {
    prop_oneof![
        passing(),
        Just(BlobFault::Lie),
        Just(BlobFault::Refuse(Blob::Denied)),
        Just(BlobFault::Refuse(Blob::NotFound)),
    ]
}

/// A layer and the model of it.
struct ComparedLayer {
    layer: Arc<Layer>,
    model: Arc<Model>,
    /// The layer's node for each node of the model.
    nodes: Vec<NodeId>,
    /// Which of the model's nodes are files, and which are directories.
    files: Vec<usize>,
    folders: Vec<usize>,
}

impl ComparedLayer {
    /// Compares all names and attributes while it walks the layer.
    fn new(layer: Arc<Layer>, model: &Arc<Model>) -> Self {
        let mut nodes = vec![NodeId(u32::MAX); model.nodes.len()];
        nodes[0] = NodeId::ROOT;
        let mut open = vec![0];
        while let Some(folder) = open.pop() {
            for (name, child) in &model.nodes[folder].children {
                let node = layer.lookup(nodes[folder], name).expect("the model has it");
                assert!(nodes[*child] == NodeId(u32::MAX) || nodes[*child] == node, "two names, one file");
                nodes[*child] = node;
                if model.nodes[*child].kind == NodeKind::Directory {
                    assert_eq!(layer.parent(node), nodes[folder]);
                    open.push(*child);
                }
            }
        }
        let of = |kind| (0..model.nodes.len()).filter(|place| model.nodes[*place].kind == kind).collect();
        let (files, folders) = (of(NodeKind::Regular), of(NodeKind::Directory));
        let compared = Self { layer, nodes, files, folders, model: model.clone() };
        (0..model.nodes.len()).for_each(|place| compared.stat(place));
        compared.folders.iter().for_each(|folder| compared.list(*folder, 0));
        compared
    }

    fn stat(&self, place: usize) {
        let (node, found) = (&self.model.nodes[place], self.layer.attributes(self.nodes[place]));
        let size = match node.kind {
            NodeKind::Regular | NodeKind::Symlink => node.content.len() as u64,
            _ => 0,
        };
        let mode = if node.kind == NodeKind::Symlink { 0o777 } else { node.mode };
        assert_eq!((found.kind, found.size, found.mode), (node.kind, size, mode));
        assert_eq!(((found.uid, found.gid), found.mtime), (node.owner, (node.mtime, 0)));
        assert_eq!((found.nlink, found.device), (node.nlink, node.device), "{node:?}");
        let target = self.layer.link_target(self.nodes[place]);
        assert_eq!(target, (node.kind == NodeKind::Symlink).then_some(&node.content[..]));
        assert_eq!(self.layer.tree().opaque(self.nodes[place]), node.opaque);
    }

    fn list(&self, folder: usize, skip: usize) {
        let found = self.layer.children(self.nodes[folder], skip).map(|child| (child.name, child.node));
        let expected = self.model.nodes[folder].children.iter();
        let expected = expected.map(|(name, place)| (&name[..], self.nodes[*place])).skip(skip);
        assert!(found.eq(expected), "the names in a folder, in their order");
    }

    /// The read returns the right bytes, or an error.
    async fn read(&self, file: usize, offset: u64, size: u32) -> Result<(), Error> {
        let found = match self.layer.read(self.nodes[file], offset, size) {
            ReadAnswer::Ready(outcome) => outcome?,
            ReadAnswer::Later(outcome) => outcome.await?,
        };
        let content = &self.model.nodes[file].content;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let to = from.saturating_add(size as usize).min(content.len());
        assert!(found == content[from..to], "{size} bytes from {offset} of file {file}");
        Ok(())
    }

    async fn done(&self, step: &Step, source: &oci::testing::FaultyBlob) -> Result<(), Error> {
        match step {
            Step::Lookup(folder, name) => {
                let folder = self.folders[folder.index(self.folders.len())];
                let children = &self.model.nodes[folder].children;
                let Some(name) = name.filter(|_| !children.is_empty()) else {
                    assert!(self.layer.lookup(self.nodes[folder], b"no such name").is_none());
                    return Ok(());
                };
                let (name, place) = children.iter().nth(name.index(children.len())).expect("counted");
                assert_eq!(self.layer.lookup(self.nodes[folder], name), Some(self.nodes[*place]));
            }
            Step::List(folder, skip) => {
                let folder = self.folders[folder.index(self.folders.len())];
                self.list(folder, skip.index(self.model.nodes[folder].children.len() + 2));
            }
            Step::Stat(place) => self.stat(place.index(self.model.nodes.len())),
            Step::Read(..) | Step::Behind(..) if self.files.is_empty() => {}
            Step::Read(file, at, size) => {
                let file = self.files[file.index(self.files.len())];
                let offset = at.index(self.model.nodes[file].content.len() + 1);
                self.read(file, offset as u64, *size).await?;
            }
            Step::Behind(file, by, size) => {
                let file = self.files[file.index(self.files.len())];
                let end = self.model.nodes[file].content.len() as u64;
                self.read(file, end.saturating_add(*by), *size).await?;
            }
            Step::Want(spans) => self.layer.want([spans.clone()]),
            Step::Fault(fault) => source.fail_next(*fault),
            Step::Yield => tokio::task::yield_now().await,
        }
        Ok(())
    }
}

/// Which errors a read may end with.
type Excused = fn(ErrorKind) -> bool;

async fn played(case: Case, excused: Excused) {
    let root = TempDir::new().unwrap();
    let (made, model) = case.recipe.made();
    let model = Arc::new(model);
    let room = DiskLimits { max_bytes: case.max_bytes, ..DiskLimits::default() };
    let store = Store::open(root.path(), room).unwrap();
    let engine = engine();
    let ztoc = oci::Digest::sha256(&made.ztoc);
    for half in 0..2 {
        // The second opening finds stored spans, while requests of the first may still be under way.
        let layer = match Layer::stored(&store, &engine, &made.id()).unwrap() {
            Some(layer) if half == 1 => layer,
            _ => Layer::create(&store, &engine, &made.digest, &ztoc, &made.ztoc).unwrap(),
        };
        layer.add_source("origin", made.blob.clone());
        let compared = Arc::new(ComparedLayer::new(layer, &model));
        if case.fill {
            compared.layer.start_fill();
        }
        let mut readers = Vec::new();
        for steps in &case.readers {
            let steps = if half == 0 { steps.0.clone() } else { steps.1.clone() };
            let (compared, source) = (compared.clone(), made.blob.clone());
            readers.push(tokio::spawn(async move {
                for step in steps {
                    let outcome = compared.done(&step, &source).await;
                    let unexcused = outcome.err().filter(|error| !excused(error.kind()));
                    assert!(unexcused.is_none(), "{step:?}: {}", unexcused.expect("just seen"));
                }
            }));
        }
        for reader in readers {
            reader.await.unwrap();
        }
        if half == 1 {
            whole(&compared).await;
        }
    }
}

/// Once the faults are over, every file is complete.
async fn whole(compared: &ComparedLayer) {
    for file in compared.files.iter().rev() {
        let mut outcome = Ok(());
        for _ in 0..PATIENCE {
            outcome = compared.read(*file, 0, 1 << 20).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome.unwrap();
    }
}

fn play(case: Case, excused: Excused) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    // In a task of its own: a panic of a worker names the case, and only the workers decide on the schedule.
    runtime.block_on(runtime.spawn(played(case, excused))).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        max_shrink_iters: 30,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_layer_is_as_its_model_and_passing_faults_are_not_noticed(case in case(passing())) {
        play(case, |_| false);
    }

    #[test]
    fn no_fault_makes_a_wrong_byte(case in case(any_fault())) {
        play(case, |kind| matches!(
            kind, ErrorKind::Corrupt | ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::Unreachable
        ));
    }
}
