//! Layers of any kind, and the plain model of each: made from the generator's own values, never from a table of
//! files.

use std::{collections::BTreeMap, sync::Arc};

use oci::{Digest, testing::FaultyBlob};
use proptest::prelude::*;
use ztoc::Compression;

use crate::{
    testing::{SPAN, TestLayer, gzip, noise},
    tree::NodeKind,
};

/// Small files of a crowd.
const CROWD: usize = 2_000;

#[derive(Debug, Clone)]
enum MemberKind {
    File {
        zeros: bool,
        length: usize,
    },
    /// A hard link to the file this many places before it, if there is one.
    HardLink(prop::sample::Index),
    Symlink(Vec<u8>),
    Whiteout,
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Folder,
    /// A directory without a header, which the files in it imply.
    Implied,
    Opaque,
}

#[derive(Debug, Clone)]
struct Member {
    /// The directory, as an index among those before it.
    folder: prop::sample::Index,
    name: Vec<u8>,
    kind: MemberKind,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: u32,
}

/// The values that a layer is made from.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    members: Vec<Member>,
    crowd: bool,
    plain: bool,
}

/// A node of the model.
#[derive(Debug, Clone)]
pub(super) struct ModelNode {
    pub(super) kind: NodeKind,
    pub(super) mode: u16,
    pub(super) owner: (u32, u32),
    pub(super) mtime: i64,
    pub(super) nlink: u32,
    pub(super) device: (u32, u32),
    /// The bytes of a file, or the target of a link.
    pub(super) content: Vec<u8>,
    pub(super) children: BTreeMap<Vec<u8>, usize>,
    pub(super) opaque: bool,
    /// The path from the root, for headers.
    path: Vec<u8>,
}

/// The model of a layer; the root comes first.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) nodes: Vec<ModelNode>,
}

pub(super) fn recipe() -> impl Strategy<Value = Recipe> {
    (prop::collection::vec(member(), 1..24), prop::bool::weighted(0.1), any::<bool>())
        .prop_map(|(members, crowd, plain)| Recipe { members, crowd, plain })
}

fn member() -> impl Strategy<Value = Member> {
    let odd = prop_oneof![
        3 => prop::collection::vec(prop::char::range('a', 'z').prop_map(|letter| letter as u8), 1..9),
        1 => prop::collection::vec(1..=255_u8, 1..30),
        1 => prop::collection::vec(1..=255_u8, 90..240),
    ];
    let attributes = (0..0o2000_u16, 0..1_u32 << 20, 0..1_u32 << 20, 0..1_u32 << 30);
    (any::<prop::sample::Index>(), odd, kind(), attributes).prop_map(
        |(folder, name, kind, (mode, uid, gid, mtime))| Member { folder, name, kind, mode, uid, gid, mtime },
    )
}

fn kind() -> impl Strategy<Value = MemberKind> {
    let length = prop_oneof![1 => Just(0), 3 => 1..3_000_usize, 4 => 3_000..150_000_usize, 1 => 150_000..400_000_usize];
    let target = prop::collection::vec(1..=255_u8, 1..200);
    prop_oneof![
        8 => (prop::bool::weighted(0.2), length).prop_map(|(zeros, length)| MemberKind::File { zeros, length }),
        2 => any::<prop::sample::Index>().prop_map(MemberKind::HardLink),
        1 => target.prop_map(MemberKind::Symlink),
        1 => Just(MemberKind::Whiteout),
        1 => (0..4000_u32, 0..250_000_u32).prop_map(|(major, minor)| MemberKind::CharDevice(major, minor)),
        1 => (0..4000_u32, 0..250_000_u32).prop_map(|(major, minor)| MemberKind::BlockDevice(major, minor)),
        1 => Just(MemberKind::Fifo),
        3 => Just(MemberKind::Folder),
        1 => Just(MemberKind::Implied),
        1 => Just(MemberKind::Opaque),
    ]
}

impl ModelNode {
    fn folder(path: Vec<u8>) -> Self {
        Self {
            kind: NodeKind::Directory,
            mode: 0o755,
            owner: (0, 0),
            mtime: 0,
            nlink: 2,
            device: (0, 0),
            content: Vec::new(),
            children: BTreeMap::new(),
            opaque: false,
            path,
        }
    }
}

impl Recipe {
    /// The layer with its ztoc and blob, and its model.
    pub(super) fn made(&self) -> (TestLayer, Model) {
        let mut draft =
            Draft { tar: Vec::new(), nodes: vec![ModelNode::folder(Vec::new())], folders: vec![0] };
        for (number, member) in self.members.iter().enumerate() {
            draft.add(number, member);
        }
        if self.crowd {
            for number in 0..CROWD {
                draft.file(0, format!("crowd/{number}").as_bytes(), noise(number as u64, number % 60));
            }
        }
        draft.tar.resize(draft.tar.len() + 1024, 0);
        let compression = if self.plain { Compression::Uncompressed } else { Compression::Gzip };
        (packed(&draft.tar, compression, SPAN), Model { nodes: draft.nodes })
    }
}

/// A tar as a layer with spans of about `span` bytes.
pub(super) fn packed(tar: &[u8], compression: Compression, span: u64) -> TestLayer {
    let bytes = if compression == Compression::Gzip { gzip(tar) } else { tar.to_vec() };
    let options = ztoc::Options { span_size: span, ..ztoc::Options::default() };
    let built = ztoc::build(bytes.as_slice(), compression, &options).expect("it is a tar");
    let whole = built.whole.expect("the layer is hashed by default");
    let blob = Arc::new(FaultyBlob::new(bytes, 7_000));
    TestLayer { digest: Digest::from_sha256(whole.layer), ztoc: built.ztoc, blob }
}

/// Tar and model, grown side by side.
struct Draft {
    tar: Vec<u8>,
    nodes: Vec<ModelNode>,
    /// Directories that can take new entries.
    folders: Vec<usize>,
}

impl Draft {
    fn add(&mut self, number: usize, member: &Member) {
        let parent = self.folders[member.folder.index(self.folders.len())];
        // Each name is unique, so that no entry is replaced: the tests of `tree` do that.
        let mut name = member.name.clone();
        name.iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = b'_');
        if name.starts_with(b".wh.") {
            name[0] = b'_';
        }
        name.extend_from_slice(format!("-{number}").as_bytes());
        let mut path = self.nodes[parent].path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        let folder = path.clone();
        path.extend_from_slice(&name);
        let mut node = ModelNode::folder(path.clone());
        (node.mode, node.owner) = (member.mode, (member.uid, member.gid));
        node.mtime = i64::from(member.mtime);
        let (typeflag, link) = match &member.kind {
            MemberKind::File { zeros, length } => {
                node.kind = NodeKind::Regular;
                node.content = if *zeros { vec![0; *length] } else { noise(number as u64 + 1, *length) };
                (b'0', Vec::new())
            }
            MemberKind::HardLink(target) => return self.hard_link(parent, name, &path, *target),
            MemberKind::Symlink(target) => {
                (node.kind, node.content) = (NodeKind::Symlink, target.clone());
                (b'2', target.clone())
            }
            MemberKind::Whiteout => {
                (node.kind, node.mode) = (NodeKind::CharDevice, 0);
                path = [&folder[..], b".wh.", &name].concat();
                (b'0', Vec::new())
            }
            MemberKind::CharDevice(major, minor) => {
                (node.kind, node.device) = (NodeKind::CharDevice, (*major, *minor));
                (b'3', Vec::new())
            }
            MemberKind::BlockDevice(major, minor) => {
                (node.kind, node.device) = (NodeKind::BlockDevice, (*major, *minor));
                (b'4', Vec::new())
            }
            MemberKind::Fifo => {
                node.kind = NodeKind::Fifo;
                (b'6', Vec::new())
            }
            MemberKind::Folder => (b'5', Vec::new()),
            MemberKind::Implied => return self.implied(parent, name, &path),
            MemberKind::Opaque => {
                self.nodes[parent].opaque = true;
                path = [&folder[..], b".wh..wh..opq"].concat();
                self.header(&path, b'0', &[], &ModelNode::folder(Vec::new()));
                return;
            }
        };
        self.header(&path, typeflag, &link, &node);
        self.enter(parent, name, node);
    }

    fn enter(&mut self, parent: usize, name: Vec<u8>, mut node: ModelNode) {
        let place = self.nodes.len();
        if node.kind == NodeKind::Directory {
            self.nodes[parent].nlink += 1;
            self.folders.push(place);
        } else {
            node.nlink = 1;
        }
        self.nodes[parent].children.insert(name, place);
        self.nodes.push(node);
    }

    fn hard_link(&mut self, parent: usize, name: Vec<u8>, path: &[u8], target: prop::sample::Index) {
        let files: Vec<_> =
            (0..self.nodes.len()).filter(|place| self.nodes[*place].kind == NodeKind::Regular).collect();
        if files.is_empty() {
            return;
        }
        let target = files[target.index(files.len())];
        let of = ModelNode { content: Vec::new(), ..self.nodes[target].clone() };
        self.header(path, b'1', &of.path.clone(), &of);
        self.nodes[target].nlink += 1;
        self.nodes[parent].children.insert(name, target);
    }

    /// Only the files in it imply the directory.
    fn implied(&mut self, parent: usize, name: Vec<u8>, path: &[u8]) {
        let place = self.nodes.len();
        // mkdir in a directory with a header keeps root as the owner: no directory here has the set-group-ID bit.
        self.enter(parent, name, ModelNode::folder(path.to_vec()));
        self.file(place, &[path, b"/in"].concat(), b"in it".to_vec());
    }

    /// A file without special attributes; the first file of a crowd implies its directory.
    fn file(&mut self, mut parent: usize, path: &[u8], content: Vec<u8>) {
        if path.starts_with(b"crowd/") {
            if !self.nodes[0].children.contains_key(&b"crowd"[..]) {
                self.enter(0, b"crowd".to_vec(), ModelNode::folder(b"crowd".to_vec()));
            }
            parent = self.nodes[0].children[&b"crowd"[..]];
        }
        let name = path.rsplit(|byte| *byte == b'/').next().expect("a path has a last part").to_vec();
        let node =
            ModelNode { kind: NodeKind::Regular, mode: 0o644, content, ..ModelNode::folder(path.to_vec()) };
        self.header(path, b'0', &[], &node);
        self.enter(parent, name, node);
    }

    /// A header, after GNU long names where they are needed, and the data behind it.
    fn header(&mut self, path: &[u8], typeflag: u8, link: &[u8], node: &ModelNode) {
        for (long, flag) in [(path, b'L'), (link, b'K')] {
            if long.len() > 100 {
                let plain = ModelNode::folder(Vec::new());
                self.block((b"././@LongLink", b"", flag), &plain, &[long, &[0]].concat());
            }
        }
        let data = if typeflag == b'0' { &node.content[..] } else { b"" };
        self.block((&path[..path.len().min(100)], &link[..link.len().min(100)], typeflag), node, data);
    }

    fn block(&mut self, (name, link, typeflag): (&[u8], &[u8], u8), node: &ModelNode, data: &[u8]) {
        let mut header = [0_u8; 512];
        let mut field = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        let octal = |digits: usize, value: u64| format!("{value:0digits$o}\0").into_bytes();
        field(0, name);
        field(100, &octal(7, u64::from(node.mode)));
        field(108, &octal(7, u64::from(node.owner.0)));
        field(116, &octal(7, u64::from(node.owner.1)));
        field(124, &octal(11, data.len() as u64));
        field(136, &octal(11, node.mtime.unsigned_abs()));
        field(148, b"        ");
        field(156, &[typeflag]);
        field(157, link);
        field(257, b"ustar  \0");
        field(329, &octal(7, u64::from(node.device.0)));
        field(337, &octal(7, u64::from(node.device.1)));
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.tar.extend_from_slice(&header);
        self.tar.extend_from_slice(data);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
    }
}
