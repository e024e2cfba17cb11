//! Simulates the extraction of a tar: entries in, nodes and directory entries out.
//!
//! It follows the order of the entries and containerd's rules. It refuses tables that no extraction could make, and
//! limits the length of paths, the depth of directories and the number of nodes.

use std::{collections::HashMap, collections::VecDeque};

use ztoc::{Entry, EntryKind, Ztoc};

use super::{Dirent, IMPLIED, Node, NodeKind, Slice};
use crate::error::{Error, ErrorKind};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// As many symlinks as the kernel follows in one path.
const MAX_LINKS: u32 = 40;
/// An extraction cannot make a longer path (PATH_MAX).
const MAX_PATH_BYTES: usize = 4096;
/// Nested directories; half of PATH_MAX.
const MAX_DEPTH: u16 = 2048;
/// Nodes of one layer; the largest layers in use have a million.
const MAX_NODES: usize = 4 << 20;

pub(super) struct Built {
    pub(super) nodes: Vec<Node>,
    pub(super) dirents: Vec<Dirent>,
}

pub(super) fn build(ztoc: &Ztoc) -> Result<Built, Error> {
    let bytes = ztoc.as_bytes();
    if u32::try_from(bytes.len()).is_err() {
        return Err(Error::new(ErrorKind::Unsupported, "show a layer whose ztoc is larger than 4 GiB"));
    }
    let mut builder = Builder { ztoc, nodes: Vec::with_capacity(ztoc.len() + 1), names: HashMap::new() };
    builder.node(IMPLIED, 0, NodeKind::Directory);
    for entry in ztoc.entries() {
        builder.add(&entry)?;
    }
    Ok(builder.finish())
}

struct Builder<'a> {
    ztoc: &'a Ztoc,
    nodes: Vec<Node>,
    names: HashMap<(u32, &'a [u8]), u32>,
}

impl<'a> Builder<'a> {
    fn node(&mut self, entry: u32, parent: u32, kind: NodeKind) -> u32 {
        let number = u32::try_from(self.nodes.len()).expect("not more nodes than bytes in the ztoc");
        let depth = self.nodes.get(parent as usize).map_or(0, |parent| parent.depth + 1);
        self.nodes.push(Node {
            depth,
            entry,
            attributes: entry,
            parent,
            kind,
            whiteout: false,
            opaque: false,
            nlink: 0,
            children: 0..0,
        });
        number
    }

    fn add(&mut self, entry: &Entry<'a>) -> Result<(), Error> {
        let index = entry_index(entry);
        if entry.name().len() > MAX_PATH_BYTES || entry.link_target().len() > MAX_PATH_BYTES {
            return Err(unsupported(entry, "its path is longer than 4096 bytes"));
        }
        if self.nodes.len() > MAX_NODES {
            return Err(unsupported(entry, "the layer has too many files"));
        }
        let components = clean(entry.name());
        // containerd makes the root of a snapshot itself, and ignores an entry for it whatever its type is.
        let Some((base, folders)) = components.split_last() else { return Ok(()) };
        let parent = self.folder(folders, entry)?;
        if *base == OPAQUE {
            self.nodes[parent as usize].opaque = true;
            return Ok(());
        }
        if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            // Other names of aufs (`.wh..wh.plnk`, …) have no meaning here; `.wh.` alone hides nothing.
            if !hidden.is_empty()
                && !hidden.starts_with(WHITEOUT)
                && !self.names.contains_key(&(parent, hidden))
            {
                let node = self.node(index, parent, NodeKind::CharDevice);
                self.nodes[node as usize].whiteout = true;
                self.names.insert((parent, hidden), node);
            }
            return Ok(());
        }
        let kind = match entry.kind() {
            EntryKind::HardLink => return self.hard_link(parent, base, entry),
            EntryKind::Regular => NodeKind::Regular,
            EntryKind::Symlink => NodeKind::Symlink,
            EntryKind::Directory => NodeKind::Directory,
            EntryKind::CharDevice => NodeKind::CharDevice,
            EntryKind::BlockDevice => NodeKind::BlockDevice,
            EntryKind::Fifo => NodeKind::Fifo,
        };
        if let Some(old) = self.names.get(&(parent, *base)).copied()
            && kind == NodeKind::Directory
            && self.nodes[old as usize].kind == NodeKind::Directory
        {
            let old = &mut self.nodes[old as usize];
            (old.entry, old.attributes) = (index, index);
            return Ok(());
        }
        if self.nodes[parent as usize].depth >= MAX_DEPTH {
            return Err(unsupported(entry, "its folders are nested too deeply"));
        }
        let node = self.node(index, parent, kind);
        self.names.insert((parent, base), node);
        Ok(())
    }

    fn hard_link(&mut self, parent: u32, base: &'a [u8], entry: &Entry<'a>) -> Result<(), Error> {
        let components = clean(entry.link_target());
        let target = components.split_last().and_then(|(name, folders)| {
            let mut at = 0;
            for folder in folders {
                at = self.names.get(&(at, *folder)).copied()?;
                at = self.follow(at)?;
            }
            self.names.get(&(at, *name)).copied()
        });
        let fit = target.filter(|node| {
            let node = &self.nodes[*node as usize];
            node.kind != NodeKind::Directory && !node.whiteout
        });
        let Some(target) = fit else {
            let why = format!("the layer has no file {}", text(entry.link_target()));
            return Err(unsupported(entry, &why));
        };
        self.nodes[target as usize].attributes = entry_index(entry);
        self.names.insert((parent, base), target);
        Ok(())
    }

    /// The directory that a symlink of this layer leads to, or the directory itself. Never makes a directory.
    fn follow(&self, node: u32) -> Option<u32> {
        let mut at = node;
        let mut links = 0;
        loop {
            match self.nodes[at as usize].kind {
                NodeKind::Directory => return Some(at),
                NodeKind::Symlink if links < MAX_LINKS => links += 1,
                _ => return None,
            }
            let entry = self.ztoc.entry(self.nodes[at as usize].entry as usize);
            let target = entry.link_target();
            let mut next = if target.starts_with(b"/") { 0 } else { self.nodes[at as usize].parent };
            let parts: Vec<_> = target.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
            for (number, part) in parts.iter().enumerate() {
                next = match *part {
                    b"." => next,
                    b".." => self.nodes[next as usize].parent,
                    name => self.names.get(&(next, name)).copied()?,
                };
                // A symlink in the middle of a target would nest; such targets lead nowhere here.
                if number + 1 < parts.len() && self.nodes[next as usize].kind != NodeKind::Directory {
                    return None;
                }
            }
            at = next;
        }
    }

    /// The directory at `folders`, made where it is missing, symlinks followed inside the layer.
    fn folder(&mut self, folders: &[&'a [u8]], entry: &Entry<'a>) -> Result<u32, Error> {
        let mut rest: VecDeque<&'a [u8]> = folders.iter().copied().collect();
        let mut at = 0;
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            match part {
                b"" | b"." => continue,
                b".." => {
                    at = self.nodes[at as usize].parent;
                    continue;
                }
                _ => {}
            }
            let Some(next) = self.names.get(&(at, part)).copied() else {
                at = self.make_folder(at, part, entry)?;
                continue;
            };
            match self.nodes[next as usize].kind {
                NodeKind::Directory => at = next,
                NodeKind::Symlink if links < MAX_LINKS => {
                    links += 1;
                    let target = self.ztoc.entry(self.nodes[next as usize].entry as usize).link_target();
                    for part in target.split(|byte| *byte == b'/').rev() {
                        rest.push_front(part);
                    }
                    if target.starts_with(b"/") {
                        at = 0;
                    }
                }
                _ if self.nodes[next as usize].whiteout => {
                    // The whiteout hides an entry below, and this layer has a new one: the directory takes the
                    // whiteout's place.
                    at = self.make_folder(at, part, entry)?;
                }
                _ => return Err(unsupported(entry, &format!("{} is not a directory", text(part)))),
            }
        }
        Ok(at)
    }

    fn make_folder(&mut self, parent: u32, name: &'a [u8], entry: &Entry<'a>) -> Result<u32, Error> {
        if self.nodes[parent as usize].depth >= MAX_DEPTH {
            return Err(unsupported(entry, "its folders are nested too deeply"));
        }
        let made = self.node(IMPLIED, parent, NodeKind::Directory);
        self.names.insert((parent, name), made);
        Ok(made)
    }

    /// Sorts the names, drops the contents of replaced directories, counts links.
    fn finish(mut self) -> Built {
        let base = self.ztoc.as_bytes().as_ptr() as usize;
        let mut all: Vec<(u32, &[u8], u32)> =
            self.names.iter().map(|((parent, name), node)| (*parent, *name, *node)).collect();
        all.sort_unstable();
        let mut dirents = Vec::with_capacity(all.len());
        for (parent, name, node) in all {
            let at = u32::try_from(dirents.len()).expect("not more names than bytes in the ztoc");
            let children = &mut self.nodes[parent as usize].children;
            if children.start == children.end {
                *children = at..at;
            }
            children.end += 1;
            let name = Slice { at: (name.as_ptr() as usize - base) as u32, len: name.len() as u32 };
            dirents.push(Dirent { parent, name, node });
        }
        let mut open = vec![0];
        self.nodes[0].nlink = 2;
        while let Some(folder) = open.pop() {
            let children = self.nodes[folder as usize].children.clone();
            for dirent in &dirents[children.start as usize..children.end as usize] {
                debug_assert_eq!(dirent.parent, folder, "children are sorted by their parent");
                if self.nodes[dirent.node as usize].kind == NodeKind::Directory {
                    self.nodes[dirent.node as usize].nlink = 2;
                    self.nodes[folder as usize].nlink += 1;
                    open.push(dirent.node);
                } else {
                    self.nodes[dirent.node as usize].nlink += 1;
                }
            }
        }
        Built { nodes: self.nodes, dirents }
    }
}

fn unsupported(entry: &Entry<'_>, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("show {}: {why}", text(entry.name())))
}

fn entry_index(entry: &Entry<'_>) -> u32 {
    u32::try_from(entry.index()).expect("not more entries than bytes in the ztoc")
}

/// The components of a path, made absolute and cleaned, as an extraction below a root uses them.
fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut components = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(components.pop()),
            name => components.push(name),
        }
    }
    components
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}
