//! The tree of a tar, entry by entry, as a plain extraction makes it.

use super::{Inherited, NodeId, NodeKind, Tree};
use crate::testing::{Tar, made};

fn tree(tar: Tar) -> Tree {
    Tree::new(std::sync::Arc::new(ztoc::Ztoc::from_vec(made(&tar.end()).ztoc).unwrap())).unwrap()
}

/// Every path with its kind, `=n` for the number of names of a file.
fn paths(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![(NodeId::ROOT, String::new())];
    while let Some((node, path)) = open.pop() {
        for child in tree.children(node, 0) {
            let path = format!("{path}/{}", String::from_utf8_lossy(child.name));
            let attributes = tree.attributes(child.node);
            let shown = match attributes.kind {
                NodeKind::Directory if tree.opaque(child.node) => format!("{path}! "),
                NodeKind::Directory => format!("{path}/"),
                NodeKind::Regular => format!("{path}={}", attributes.nlink),
                NodeKind::Symlink => format!("{path}@"),
                NodeKind::CharDevice | NodeKind::BlockDevice => format!("{path}#{:?}", attributes.device),
                NodeKind::Fifo => format!("{path}|"),
            };
            found.push(shown);
            open.push((child.node, path));
        }
    }
    found.sort();
    found
}

#[test]
fn rows_of_extraction() {
    let file = |tar: Tar, name: &str| tar.file(name, b"x");
    let link = |tar: Tar, name: &str, to: &str| tar.entry(b'2', name, to, b"");
    let hard = |tar: Tar, name: &str, to: &str| tar.entry(b'1', name, to, b"");
    let new = Tar::default;
    let rows: Vec<(&str, Tar, &[&str])> = vec![
        ("plain", file(new().folder("a/"), "a/b"), &["/a/", "/a/b=1"]),
        ("implied", file(new(), "a/b/c"), &["/a/", "/a/b/", "/a/b/c=1"]),
        ("odd names", file(file(new(), "./a"), "//b/../c"), &["/a=1", "/c=1"]),
        ("out of the root", file(new(), "../../etc/x"), &["/etc/", "/etc/x=1"]),
        ("a later file wins", file(file(new(), "a"), "a"), &["/a=1"]),
        ("a file over a folder", file(file(new().folder("a"), "a/b"), "a"), &["/a=1"]),
        ("a folder over a file", file(file(new(), "a").folder("a"), "a/b"), &["/a/", "/a/b=1"]),
        (
            "a folder again keeps its contents",
            file(new().folder("a"), "a/b").folder("a/"),
            &["/a/", "/a/b=1"],
        ),
        ("hard link", hard(file(new(), "a"), "b", "a"), &["/a=2", "/b=2"]),
        (
            "hard link to the file of that moment",
            file(hard(file(new(), "a"), "b", "/a"), "a"),
            &["/a=1", "/b=1"],
        ),
        ("symlinked parent", file(link(new().folder("r"), "l", "r"), "l/x"), &["/l@", "/r/", "/r/x=1"]),
        (
            "absolute link",
            file(link(new().folder("r"), "d/l", "/r"), "d/l/x"),
            &["/d/", "/d/l@", "/r/", "/r/x=1"],
        ),
        (
            "the target of a link to nowhere is made",
            file(link(new(), "l", "n/m"), "l/x"),
            &["/l@", "/n/", "/n/m/", "/n/m/x=1"],
        ),
        ("whiteout", file(new(), "a/.wh.b"), &["/a/", "/a/b#(0, 0)"]),
        ("whiteout and the real one", file(file(new(), ".wh.b"), "b"), &["/b=1"]),
        ("the real one and a whiteout", file(file(new(), "b"), ".wh.b"), &["/b=1"]),
        ("opaque", file(new(), "a/.wh..wh..opq"), &["/a! "]),
        ("aufs's own", file(new(), ".wh..wh.plnk"), &[]),
        ("fifo", new().entry(b'6', "p", "", b""), &["/p|"]),
    ];
    for (name, tar, expected) in rows {
        assert_eq!(paths(&tree(tar)), expected, "{name}");
    }
}

#[test]
fn tables_that_no_extraction_makes_are_refused() {
    let loops = Tar::default().entry(b'2', "a", "b", b"").entry(b'2', "b", "a", b"").file("a/x", b"");
    let below_a_file = Tar::default().file("a", b"").file("a/b", b"");
    let deep = Tar::default().entry(b'L', "././@LongLink", "", &b"a/".repeat(20_000)).file("x", b"");
    for tar in [loops, below_a_file, deep] {
        let ztoc = ztoc::Ztoc::from_vec(made(&tar.end()).ztoc).unwrap();
        let refused = Tree::new(std::sync::Arc::new(ztoc)).unwrap_err();
        assert_eq!(refused.kind(), crate::ErrorKind::Unsupported, "{refused}");
    }
}

#[test]
fn implied_directories_inherit_attributes_and_others_do_not() {
    let plain = tree(Tar::default().folder("own").file("usr/bin/x", b"x"));
    assert_eq!(plain.implied(), [b"usr".to_vec(), b"usr/bin".to_vec()]);
    let inherited = |path: &[u8]| Inherited {
        path: path.to_vec(),
        mode: 0o2711,
        uid: 7,
        gid: 8,
        mtime: (9, 10),
        xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
    };
    let over = plain.inheriting(&[inherited(b"usr"), inherited(b"own"), inherited(b"none")]);
    let attributes = |tree: &Tree, path: &[u8]| tree.attributes(tree.resolve(path).unwrap());
    let usr = attributes(&over, b"usr");
    assert_eq!((usr.mode, usr.uid, usr.gid, usr.mtime), (0o2711, 7, 8, (9, 10)));
    assert_eq!(over.xattrs(over.resolve(b"usr").unwrap()), [(&b"user.a"[..], &b"b"[..])]);
    assert_eq!(attributes(&over, b"usr/bin").mode, 0o755);
    assert_eq!(attributes(&over, b"own").uid, 1, "it has attributes of its own");
    let again = over.inheriting(&[]);
    assert_eq!(attributes(&again, b"usr").uid, 0);
}

/// containerd makes the root of a snapshot itself, with mode 0755 and owner 0:0, and ignores an entry for it.
#[test]
fn an_entry_for_the_root_changes_nothing_of_the_root() {
    let set = |tar: Tar| tar.records(&[("SCHILY.xattr.user.a", "b"), ("mtime", "77"), ("uid", "1000")]);
    for name in [".", "./", "/", "a/..", "../", "././"] {
        for kind in [b'5', b'0', b'2', b'3'] {
            let tar = set(Tar::default()).entry(kind, name, "etc", b"").file("a/x", b"x");
            let tree = tree(tar);
            let root = tree.attributes(NodeId::ROOT);
            let found = (root.kind, root.mode, root.uid, root.gid, root.mtime);
            assert_eq!(found, (NodeKind::Directory, 0o755, 0, 0, (0, 0)), "{name} of type {kind}");
            assert!(tree.xattrs(NodeId::ROOT).is_empty(), "{name} of type {kind}");
            assert_eq!(paths(&tree), ["/a/", "/a/x=1"], "{name} of type {kind}");
        }
    }
}

/// An opaque mark is an entry of its own, which containerd heeds.
#[test]
fn a_root_can_be_opaque() {
    let tree = tree(Tar::default().folder("./").file(".wh..wh..opq", b""));
    assert!(tree.opaque(NodeId::ROOT));
}

/// A directory made below a root with the set-group-ID bit would take its group; the root never has the bit.
#[test]
fn implied_directories_take_no_group_from_an_entry_for_the_root() {
    let mut tar = Tar::default().folder("./").file("usr/x", b"x").end();
    tar[100..108].copy_from_slice(b"0002755\0");
    tar[148..156].copy_from_slice(b"        ");
    let sum: u32 = tar[..512].iter().map(|byte| u32::from(*byte)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let tree = Tree::new(std::sync::Arc::new(ztoc::Ztoc::from_vec(made(&tar).ztoc).unwrap())).unwrap();
    let usr = tree.attributes(tree.resolve(b"usr").unwrap());
    assert_eq!((usr.mode, usr.uid, usr.gid), (0o755, 0, 0));
    let inherited =
        Inherited { path: Vec::new(), mode: 0o700, uid: 7, gid: 8, mtime: (9, 0), xattrs: Vec::new() };
    assert_eq!(
        tree.inheriting(&[inherited]).attributes(NodeId::ROOT).mode,
        0o755,
        "the root inherits nothing"
    );
}

/// The entries of [`Tar`] have mode 0644.
#[test]
fn symlinks_have_the_one_mode_that_linux_knows() {
    let tar = Tar::default().entry(b'2', "link", "f", b"").entry(b'1', "again", "link", b"");
    let tree = tree(tar.file("f", b"").entry(b'1', "hard", "f", b""));
    for (name, mode) in [("link", 0o777), ("again", 0o777), ("f", 0o644), ("hard", 0o644)] {
        assert_eq!(tree.attributes(tree.resolve(name.as_bytes()).unwrap()).mode, mode, "{name}");
    }
}

#[test]
fn times_that_containerd_cannot_express_are_1970() {
    let rows = [
        ("0", (0, 0)),
        ("1.5", (1, 500_000_000)),
        ("-1.25", (0, 0)),
        ("-86400", (0, 0)),
        ("-0.000000001", (0, 0)),
        ("4102444800.5", (4_102_444_800, 500_000_000)),
        ("9223372036.854775807", (9_223_372_036, 854_775_807)),
        ("9223372036.854775808", (0, 0)),
        ("9223372037", (0, 0)),
        ("16000000000", (0, 0)),
    ];
    for (time, expected) in rows {
        for (kind, link) in [(b'0', ""), (b'5', ""), (b'2', "x")] {
            let tar = Tar::default().records(&[("mtime", time)]).entry(kind, "f", link, b"");
            let tree = tree(tar.records(&[("mtime", time)]).file(".wh.gone", b""));
            for name in ["f", "gone"] {
                let found = tree.attributes(tree.resolve(name.as_bytes()).unwrap()).mtime;
                assert_eq!(found, expected, "{name} of type {kind} at {time}");
            }
        }
    }
    let linked = tree(Tar::default().file("f", b"").records(&[("mtime", "-5")]).entry(b'1', "l", "f", b""));
    assert_eq!(linked.attributes(linked.resolve(b"f").unwrap()).mtime, (0, 0), "the time of its last name");
}
