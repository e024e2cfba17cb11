//! A layer's inode table, made once from its table of files and never changed.
//!
//! It is the result of a plain extraction of the tar, entry after entry. A later entry replaces an earlier one of the
//! same name. Parents that are symlinks are followed inside the layer. A hard link becomes a second name of the file
//! that its target names *at that point*. No entry leaves the root. Whiteouts become character devices 0:0, and
//! opaque markers a flag of their directory, as overlayfs expects them. Attributes are those that containerd's
//! unpacker sets. The root has mode 0755 and owner 0:0 whatever the tar says. Symlinks have mode 0777. Times out of its
//! range are 1970.
//!
//! Node numbers are a function of the ztoc alone: 0 is the root, the others follow in the order of first appearance.
//! So a later process agrees with what the kernel has cached. Names and extended attributes stay in the ztoc's bytes;
//! the table holds offsets into them.

mod build;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, ops::Range, sync::Arc};

use ztoc::{Entry, EntryKind, Ztoc};

use crate::error::{Error, ErrorKind};

/// A node's number within its layer; 0 is the layer's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

impl NodeId {
    /// The layer's root directory.
    pub(crate) const ROOT: Self = Self(0);

    fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device; a whiteout is one with device number 0:0.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// Attributes as `stat` shows them. Times are whole seconds and nanoseconds since 1970, rounded down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// What it is.
    pub(crate) kind: NodeKind,
    /// Bytes; of a symlink the length of its target.
    pub(crate) size: u64,
    /// Permission bits with setuid, setgid and sticky; no type bits.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Names of the node; of a directory 2 + its subdirectories.
    pub(crate) nlink: u32,
    /// Device numbers, 0 for what is not a device.
    pub(crate) device: (u32, u32),
    /// Seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
}

/// The attributes of a directory that lies in a lower layer and that this layer only implies.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Inherited {
    /// The directory, relative to the root, without slashes at either end.
    pub path: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes: name, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) node: NodeId,
}

/// The last time that containerd sets: 2^63 - 1 nanoseconds after 1970, in the year 2262.
const LAST_TIME: (i64, u32) = (9_223_372_036, 854_775_807);
/// Bytes of the paths of all implied directories together; real layers have some kilobytes.
const MAX_IMPLIED_BYTES: usize = 64 << 20;
/// The node has no entry in the ztoc: it is an implied directory or the root.
const IMPLIED: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Node {
    /// Index of the entry in the ztoc, or [`IMPLIED`].
    entry: u32,
    /// The entry that its attributes come from: its own, or that of the last hard link to it, because an extraction
    /// sets them again with every name.
    attributes: u32,
    parent: u32,
    /// Directories above it.
    depth: u16,
    kind: NodeKind,
    whiteout: bool,
    opaque: bool,
    nlink: u32,
    children: Range<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Dirent {
    parent: u32,
    name: Slice,
    node: u32,
}

/// A run of the ztoc's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slice {
    at: u32,
    len: u32,
}

/// The inode table of one layer.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    ztoc: Arc<Ztoc>,
    nodes: Arc<Vec<Node>>,
    /// Sorted by parent, then name.
    dirents: Arc<Vec<Dirent>>,
    inherited: HashMap<u32, Inherited>,
    xattrs: XattrSummary,
}

/// Which extended attributes a layer has at all, so that most requests are answered from a flag.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct XattrSummary {
    pub(crate) any: bool,
    pub(crate) selinux: bool,
    pub(crate) acl: bool,
}

impl Tree {
    /// Makes the table of a ztoc.
    ///
    /// # Errors
    /// For a table of files that no extraction could make: a hard link to a missing file, a file as a
    /// parent.
    pub(crate) fn new(ztoc: Arc<Ztoc>) -> Result<Self, Error> {
        let built = build::build(&ztoc)?;
        let xattrs = summary(&ztoc);
        let tree = Self {
            ztoc,
            nodes: Arc::new(built.nodes),
            dirents: Arc::new(built.dirents),
            inherited: HashMap::new(),
            xattrs,
        };
        let implied = tree.walk_implied(|_| {});
        if implied > MAX_IMPLIED_BYTES {
            let why = "show a layer that implies so many directories without containing them";
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        Ok(tree)
    }

    /// The same tree with the attributes of its implied directories taken from the layers below.
    pub(crate) fn inheriting(&self, inherited: &[Inherited]) -> Self {
        let mut tree = self.clone();
        tree.inherited.clear();
        for attributes in inherited {
            if let Some(node) = tree.resolve(&attributes.path)
                && node != NodeId::ROOT
                && tree.nodes[node.index()].entry == IMPLIED
            {
                tree.xattrs.any |= !attributes.xattrs.is_empty();
                for (name, _) in &attributes.xattrs {
                    tree.xattrs.note(name);
                }
                tree.inherited.insert(node.0, attributes.clone());
            }
        }
        tree
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.nodes.len()).expect("checked when the tree was built")
    }

    pub(crate) fn contains(&self, node: NodeId) -> bool {
        node.index() < self.nodes.len()
    }

    fn slice(&self, slice: Slice) -> &[u8] {
        &self.ztoc.as_bytes()[slice.at as usize..slice.at as usize + slice.len as usize]
    }

    /// The tar entry of a node.
    pub(crate) fn entry(&self, node: NodeId) -> Option<Entry<'_>> {
        let entry = self.nodes[node.index()].entry;
        (entry != IMPLIED).then(|| self.ztoc.entry(entry as usize))
    }

    /// The tar entry that a node's attributes come from.
    fn attribute_entry(&self, node: NodeId) -> Option<Entry<'_>> {
        let entry = self.nodes[node.index()].attributes;
        (entry != IMPLIED).then(|| self.ztoc.entry(entry as usize))
    }

    pub(crate) fn parent(&self, node: NodeId) -> NodeId {
        NodeId(self.nodes[node.index()].parent)
    }

    pub(crate) fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = self.nodes[parent.index()].children.clone();
        let dirents = &self.dirents[children.start as usize..children.end as usize];
        let found = dirents.binary_search_by(|dirent| self.slice(dirent.name).cmp(name)).ok()?;
        Some(NodeId(dirents[found].node))
    }

    /// The entries of a directory by name, from the `skip`-th on.
    pub(crate) fn children(&self, node: NodeId, skip: usize) -> impl Iterator<Item = Child<'_>> {
        let children = self.nodes[node.index()].children.clone();
        let dirents = &self.dirents[children.start as usize..children.end as usize];
        dirents
            .iter()
            .skip(skip)
            .map(|dirent| Child { name: self.slice(dirent.name), node: NodeId(dirent.node) })
    }

    /// The node at a path of plain components; symlinks are not followed.
    pub(crate) fn resolve(&self, path: &[u8]) -> Option<NodeId> {
        let components = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        components.into_iter().try_fold(NodeId::ROOT, |node, name| self.lookup(node, name))
    }

    /// The paths of the directories that this layer implies without containing them, except the root.
    pub(crate) fn implied(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        self.walk_implied(|path| found.push(path.to_vec()));
        found.sort();
        found
    }

    /// Calls `found` with each of those paths and returns how many bytes they have in all. Stops soon after the
    /// limit.
    fn walk_implied(&self, mut found: impl FnMut(&[u8])) -> usize {
        let mut bytes = 0;
        let mut path = Vec::new();
        // A directory, and the length of the path of its parent.
        let mut open = vec![(NodeId::ROOT, &b""[..], 0)];
        while let Some((node, name, above)) = open.pop() {
            path.truncate(above);
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if node != NodeId::ROOT && self.nodes[node.index()].entry == IMPLIED {
                bytes += path.len();
                found(&path);
            }
            if bytes > MAX_IMPLIED_BYTES {
                break;
            }
            let folders = self.children(node, 0);
            let folders = folders.filter(|child| self.kind(child.node) == NodeKind::Directory);
            open.extend(folders.map(|child| (child.node, child.name, path.len())));
        }
        bytes
    }

    pub(crate) fn kind(&self, node: NodeId) -> NodeKind {
        self.nodes[node.index()].kind
    }

    pub(crate) fn attributes(&self, id: NodeId) -> Attributes {
        let node = &self.nodes[id.index()];
        let mut attributes = Attributes {
            kind: node.kind,
            size: 0,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: node.nlink,
            device: (0, 0),
            mtime: (0, 0),
        };
        if let Some(inherited) = self.inherited.get(&id.0) {
            attributes.mode = inherited.mode;
            (attributes.uid, attributes.gid) = (inherited.uid, inherited.gid);
            attributes.mtime = inherited.mtime;
        } else if node.entry == IMPLIED && id != NodeId::ROOT {
            // mkdir in a directory with the set-group-ID bit takes that directory's group. An implied directory never
            // has the bit, unless it inherited it.
            let parent = NodeId(node.parent);
            if self.nodes[parent.index()].entry != IMPLIED || self.inherited.contains_key(&parent.0) {
                let parent = self.attributes(parent);
                attributes.gid = if parent.mode & 0o2000 == 0 { 0 } else { parent.gid };
            }
        } else if let (Some(entry), Some(last)) = (self.entry(id), self.attribute_entry(id)) {
            (attributes.uid, attributes.gid) = (last.uid(), last.gid());
            attributes.mtime = last.mtime().map_or((0, 0), |time| shown_time(time.seconds, time.nanoseconds));
            attributes.mode = match node.kind {
                // A whiteout is made with mknod(S_IFCHR): no permission bits.
                _ if node.whiteout => 0,
                // Linux has no other mode for a link, whatever the tar says.
                NodeKind::Symlink => 0o777,
                _ => (last.mode() & 0o7777) as u16,
            };
            if matches!(entry.kind(), EntryKind::CharDevice | EntryKind::BlockDevice) {
                let (major, minor) = entry.device();
                attributes.device = (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0));
            }
            match entry.kind() {
                EntryKind::Regular if !node.whiteout => attributes.size = entry.size(),
                EntryKind::Symlink => attributes.size = entry.link_target().len() as u64,
                _ => {}
            }
        }
        attributes
    }

    pub(crate) fn link_target(&self, node: NodeId) -> Option<&[u8]> {
        let is_link = self.nodes[node.index()].kind == NodeKind::Symlink;
        is_link.then(|| self.entry(node).map(|entry| entry.link_target())).flatten()
    }

    pub(crate) fn xattr_summary(&self) -> XattrSummary {
        self.xattrs
    }

    /// Whether the directory hides the entries of layers below.
    pub(crate) fn opaque(&self, node: NodeId) -> bool {
        self.nodes[node.index()].opaque
    }

    /// The image's own extended attributes of a node, without those that would control overlayfs.
    pub(crate) fn xattrs(&self, node: NodeId) -> Vec<(&[u8], &[u8])> {
        if self.nodes[node.index()].whiteout {
            return Vec::new();
        }
        if let Some(inherited) = self.inherited.get(&node.0) {
            return inherited.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        }
        let mut found: Vec<(&[u8], &[u8])> = Vec::new();
        // A hard link adds the attributes of its own header to those of the file.
        let linked = self.nodes[node.index()].entry != self.nodes[node.index()].attributes;
        for entry in [self.entry(node), self.attribute_entry(node).filter(|_| linked)].into_iter().flatten() {
            for (name, value) in entry.xattrs().filter(|(name, _)| !name.starts_with(b"trusted.overlay.")) {
                found.retain(|(known, _)| *known != name);
                found.push((name, value));
            }
        }
        found
    }
}

/// The time that containerd sets when it unpacks: a time that it cannot express becomes 1970, see
/// docs/decisions/0005-times-that-containerd-cannot-express.md.
fn shown_time(seconds: i64, nanoseconds: u32) -> (i64, u32) {
    let is_expressible = seconds >= 0 && (seconds, nanoseconds) <= LAST_TIME;
    if is_expressible { (seconds, nanoseconds) } else { (0, 0) }
}

impl XattrSummary {
    fn note(&mut self, name: &[u8]) {
        self.selinux |= name == b"security.selinux";
        self.acl |= name.starts_with(b"system.posix_acl_");
    }
}

fn summary(ztoc: &Ztoc) -> XattrSummary {
    let mut summary = XattrSummary::default();
    for entry in ztoc.entries().filter(Entry::has_xattrs) {
        summary.any = true;
        entry.xattrs().for_each(|(name, _)| summary.note(name));
    }
    summary
}
