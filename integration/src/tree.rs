//! A directory tree as a value: everything that a container could see of it, sorted, so that two trees can be
//! compared wherever they come from. Links are not followed and other file systems are entered. Extended
//! attributes of overlayfs itself are left out: they are how a tree is stored, not what it is.

mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

pub use walk::walk;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Symlink,
    Character,
    Block,
    Fifo,
    Socket,
}

/// One name in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// relative to the top, which itself is empty
    pub path: Vec<u8>,
    pub kind: Kind,
    /// permissions with set-id and sticky bits
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// of files and symlinks; 0 for the others, whose size says nothing
    pub size: u64,
    pub mtime_seconds: i64,
    pub mtime_nanoseconds: i64,
    /// of symlinks
    pub target: Vec<u8>,
    /// all paths of the same inode, when there are several
    pub links: BTreeSet<Vec<u8>>,
    /// of devices: major and minor
    pub device: (u32, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// of files: sha256
    pub content: Option<[u8; 32]>,
}

/// Sorted by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

/// What is not compared.
#[derive(Debug, Clone, Default)]
pub struct Skip {
    /// the top directory itself, which often is the one that a test made
    pub top: bool,
    /// the modification times of these paths
    pub mtimes: BTreeSet<Vec<u8>>,
    /// the modification times of every directory
    pub directory_mtimes: bool,
}

impl Tree {
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path.as_bytes())
    }

    /// The paths, readable.
    pub fn paths(&self) -> Vec<String> {
        self.entries.keys().map(|path| shown(path)).collect()
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.path.clone(), entry);
    }

    /// The same tree below another directory of it, as if that were the top. Links out of it are cut.
    pub fn below(&self, folder: &str) -> Tree {
        let strip = |path: &[u8]| {
            let rest = path.strip_prefix(folder.as_bytes())?;
            if rest.is_empty() { Some(Vec::new()) } else { Some(rest.strip_prefix(b"/")?.to_vec()) }
        };
        let mut tree = Tree::default();
        for entry in self.entries.values() {
            let Some(path) = strip(&entry.path) else { continue };
            let links: BTreeSet<_> = entry.links.iter().filter_map(|link| strip(link)).collect();
            let links = if links.len() > 1 { links } else { BTreeSet::new() };
            tree.insert(Entry { path, links, ..entry.clone() });
        }
        tree
    }
}

/// The differences, a sentence each: empty when the trees are equal.
pub fn compare(expected: &Tree, found: &Tree, skip: &Skip) -> Vec<String> {
    let mut differences = Vec::new();
    let paths: BTreeSet<_> = expected.entries.keys().chain(found.entries.keys()).collect();
    for path in paths.into_iter().filter(|path| !(skip.top && path.is_empty())) {
        let name = shown(path);
        match (expected.entries.get(path), found.entries.get(path)) {
            (Some(a), Some(b)) => differences.extend(compare_entries(a, b, skip, &name)),
            (Some(a), None) => differences.push(format!("{name}: missing ({:?})", a.kind)),
            (None, Some(b)) => differences.push(format!("{name}: not expected ({:?})", b.kind)),
            (None, None) => {}
        }
    }
    differences
}

/// Panics with the differences, the first of them at least.
#[track_caller]
pub fn assert_same(expected: &Tree, found: &Tree, skip: &Skip) {
    const SHOWN: usize = 40;
    let differences = compare(expected, found, skip);
    let count = differences.len();
    let first = differences.into_iter().take(SHOWN).collect::<Vec<_>>().join("\n");
    assert!(count == 0, "{count} differences:\n{first}");
}

fn compare_entries(a: &Entry, b: &Entry, skip: &Skip, name: &str) -> Option<String> {
    let mut text = String::new();
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            let _ = write!(text, " {what} {b} instead of {a};");
        }
    };
    differ("kind", format!("{:?}", a.kind), format!("{:?}", b.kind));
    differ("mode", format!("{:o}", a.mode), format!("{:o}", b.mode));
    differ("owner", format!("{}:{}", a.uid, a.gid), format!("{}:{}", b.uid, b.gid));
    differ("size", a.size.to_string(), b.size.to_string());
    differ("target", shown(&a.target), shown(&b.target));
    differ("links", shown_all(a.links.iter()), shown_all(b.links.iter()));
    differ("device", format!("{:?}", a.device), format!("{:?}", b.device));
    let xattrs = |entry: &Entry| {
        let each = entry.xattrs.iter().map(|(name, value)| format!("{}={}", shown(name), shown(value)));
        each.collect::<Vec<_>>().join(", ")
    };
    differ("xattrs", format!("[{}]", xattrs(a)), format!("[{}]", xattrs(b)));
    differ("content", hex(a.content), hex(b.content));
    let skipped = skip.mtimes.contains(&a.path) || (skip.directory_mtimes && a.kind == Kind::Directory);
    if !skipped {
        let mtime = |entry: &Entry| format!("{}+{}ns", entry.mtime_seconds, entry.mtime_nanoseconds);
        differ("mtime", mtime(a), mtime(b));
    }
    (!text.is_empty()).then(|| format!("{name}:{text}"))
}

fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(top)".to_owned();
    }
    bytes.escape_ascii().to_string()
}

fn shown_all<'a>(paths: impl Iterator<Item = &'a Vec<u8>>) -> String {
    format!("[{}]", paths.map(|path| shown(path)).collect::<Vec<_>>().join(", "))
}

fn hex(digest: Option<[u8; 32]>) -> String {
    digest.map_or_else(|| "none".to_owned(), |digest| oci::Digest::from_sha256(digest).hex())
}
