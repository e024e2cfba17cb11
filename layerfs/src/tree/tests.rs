//! What a tar becomes, entry by entry, as a plain extraction would have it.

use super::{Inherited, NodeId, NodeKind, Tree};
use crate::testing::{Tar, made};

fn tree(tar: Tar) -> Tree {
    Tree::new(std::sync::Arc::new(ztoc::Ztoc::from_vec(made(&tar.end()).ztoc).unwrap())).unwrap()
}

/// Every path with its kind, `=n` for the number of names of what is no directory.
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
            "a folder again keeps what is in it",
            file(new().folder("a"), "a/b").folder("a/"),
            &["/a/", "/a/b=1"],
        ),
        ("hard link", hard(file(new(), "a"), "b", "a"), &["/a=2", "/b=2"]),
        ("hard link to what was there then", file(hard(file(new(), "a"), "b", "/a"), "a"), &["/a=1", "/b=1"]),
        ("symlinked parent", file(link(new().folder("r"), "l", "r"), "l/x"), &["/l@", "/r/", "/r/x=1"]),
        (
            "absolute link",
            file(link(new().folder("r"), "d/l", "/r"), "d/l/x"),
            &["/d/", "/d/l@", "/r/", "/r/x=1"],
        ),
        (
            "link to nowhere is made",
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
fn what_cannot_be_extracted_is_refused() {
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
fn implied_directories_take_what_they_inherit_and_others_do_not() {
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
