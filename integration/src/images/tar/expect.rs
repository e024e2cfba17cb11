//! The tree that a plain unpacking of a tar gives: what the entries say, nothing removed by whiteouts. Of a tar
//! that names its directories before what is in them, and every path once.

use std::collections::BTreeSet;

use oci::Digest;

use super::{Entry, Kind, Tar};
use crate::tree::{self, Tree};

impl Tar {
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        for entry in &self.entries {
            let path = trimmed(&entry.path);
            let found = match &entry.kind {
                Kind::HardLink(target) => link(&mut tree, path, trimmed(target)),
                _ => plain(path, entry),
            };
            tree.insert(found);
        }
        tree
    }
}

fn plain(path: &[u8], entry: &Entry) -> tree::Entry {
    let (kind, size, target, device, content) = match &entry.kind {
        Kind::Directory => (tree::Kind::Directory, 0, &[][..], (0, 0), None),
        Kind::File(bytes) => {
            (tree::Kind::File, bytes.len(), &[][..], (0, 0), Some(*Digest::sha256(bytes).bytes()))
        }
        Kind::Symlink(target) => (tree::Kind::Symlink, target.len(), target.as_slice(), (0, 0), None),
        Kind::Character(major, minor) => (tree::Kind::Character, 0, &[][..], (*major, *minor), None),
        Kind::Block(major, minor) => (tree::Kind::Block, 0, &[][..], (*major, *minor), None),
        Kind::Fifo => (tree::Kind::Fifo, 0, &[][..], (0, 0), None),
        Kind::HardLink(_) => unreachable!("links are taken from what they point to"),
    };
    tree::Entry {
        path: path.to_vec(),
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: size as u64,
        mtime_seconds: entry.mtime.0,
        mtime_nanoseconds: entry.mtime.1.into(),
        target: target.to_vec(),
        links: BTreeSet::new(),
        device,
        xattrs: entry.xattrs.clone(),
        content,
    }
}

/// Another name of `target`; both know it.
fn link(tree: &mut Tree, path: &[u8], target: &[u8]) -> tree::Entry {
    let mut group = tree.entries.get(target).expect("a hard link points to an earlier entry").links.clone();
    group.extend([path.to_vec(), target.to_vec()]);
    for name in group.iter().filter(|name| *name != path) {
        tree.entries.get_mut(name).expect("its names are in the tree").links.clone_from(&group);
    }
    let first = &tree.entries[target];
    tree::Entry { path: path.to_vec(), ..first.clone() }
}

/// Without `./` before and `/` behind.
fn trimmed(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path)
}
