//! The attributes and extended attributes of unusual entries, as the kernel shows them.

use std::os::unix::fs::DirEntryExt;

use super::*;

fn xattrs(path: &Path) -> Vec<String> {
    let mut names = [0_u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<_> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
    names.sort();
    names
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0_u8; 64];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_attributes_that_control_overlayfs_come_from_whiteouts_alone() {
    let lab = Lab::new();
    let steer = [
        ("SCHILY.xattr.trusted.overlay.opaque", "y"),
        ("SCHILY.xattr.trusted.overlay.redirect", "/etc"),
        ("SCHILY.xattr.trusted.overlay.metacopy", ""),
        ("SCHILY.xattr.trusted.overlay.overlay.opaque", "y"),
        ("SCHILY.xattr.user.own", "kept"),
    ];
    let tar = Tar::default().records(&steer).folder("steered/").records(&steer).file("steered/f", b"x");
    let tar = tar.records(&steer[..1]).folder("only/");
    let tar = tar.records(&steer).folder("both/").file("both/.wh..wh..opq", b"");
    let tar = tar.file("opaque/.wh..wh..opq", b"").records(&steer).file(".wh.gone", b"");
    let path = lab.show(&made(&tar.end()));
    outside(move || {
        let own = ["user.own"];
        let rows: [(&str, &[&str]); 6] = [
            ("steered", &own),
            ("steered/f", &own),
            ("only", &[]),
            ("both", &["trusted.overlay.opaque", "user.own"]),
            ("opaque", &["trusted.overlay.opaque"]),
            ("gone", &[]),
        ];
        for (name, expected) in rows {
            let at = path.join(name);
            assert_eq!(xattrs(&at), expected, "{name}");
            for hidden in ["opaque", "redirect", "metacopy", "overlay.opaque"] {
                let hidden = format!("trusted.overlay.{hidden}");
                let found = xattr(&at, &hidden);
                let shown = expected.contains(&hidden.as_str()).then(|| b"y".to_vec());
                assert_eq!(found, shown, "{name}: {hidden}");
            }
        }
        assert_eq!(xattr(&path.join("both"), "user.own"), Some(b"kept".to_vec()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_devices_and_pipes_keep_their_kind_and_numbers() {
    let lab = Lab::new();
    let tar = Tar::default()
        .device(b'3', "null", 1, 3)
        .device(b'4', "disk", 259, 70_000)
        .device(b'3', "far", 4095, 0xf_ffff)
        .entry(b'6', "pipe", "", b"");
    let path = lab.show(&made(&tar.end()));
    outside(move || {
        for (name, major, minor) in [("null", 1, 3), ("disk", 259, 70_000), ("far", 4095, 0xf_ffff)] {
            let found = fs::symlink_metadata(path.join(name)).unwrap();
            let kind = found.file_type();
            assert_eq!((kind.is_char_device(), kind.is_block_device()), (name != "disk", name == "disk"));
            let device = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
            assert_eq!(device, (major, minor), "{name}");
            assert_eq!((found.size(), found.nlink(), found.mode() & 0o7777), (0, 1, 0o644), "{name}");
        }
        // Not `nodev`: it is the real device.
        assert_eq!(fs::read(path.join("null")).unwrap(), b"");
        let pipe = fs::symlink_metadata(path.join("pipe")).unwrap();
        assert!(pipe.file_type().is_fifo() && pipe.rdev() == 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_times_are_those_that_containerd_sets() {
    let lab = Lab::new();
    let rows = [
        ("1.25", 1, 250_000_000),
        ("0", 0, 0),
        ("-1", 0, 0),
        ("-1.5", 0, 0),
        ("-0.25", 0, 0),
        ("-86400.000000001", 0, 0),
        ("9223372036.854775807", 9_223_372_036, 854_775_807),
        ("9223372036.854775808", 0, 0),
        ("16000000000", 0, 0),
        ("4294967296.5", 4_294_967_296, 500_000_000),
    ];
    let add = |tar: Tar, (text, _, _): &(&str, i64, i64)| tar.records(&[("mtime", text)]).file(text, b"");
    let path = lab.show(&made(&rows.iter().fold(Tar::default(), add).end()));
    outside(move || {
        for (text, seconds, nanoseconds) in rows {
            let found = fs::metadata(path.join(text)).unwrap();
            assert_eq!((found.mtime(), found.mtime_nsec()), (seconds, nanoseconds), "{text}");
            assert_eq!((found.ctime(), found.ctime_nsec()), (seconds, nanoseconds), "{text}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_names_of_one_file_share_its_number_and_are_counted() {
    let lab = Lab::new();
    let tar = Tar::default()
        .file("a", b"1")
        .entry(b'1', "d/b", "a", b"")
        .entry(b'1', "c", "d/b", b"")
        .file("other", b"1")
        .entry(b'2', "link", "a", b"")
        .entry(b'1', "link2", "link", b"");
    let path = lab.show(&made(&tar.end()));
    outside(move || {
        let stat = |name: &str| {
            let found = fs::symlink_metadata(path.join(name)).unwrap();
            (found.ino(), found.nlink())
        };
        assert_eq!((stat("a"), stat("a")), (stat("d/b"), stat("c")));
        assert_eq!((stat("a").1, stat("other").1, stat("link").1), (3, 1, 2));
        assert_eq!(stat("link"), stat("link2"));
        assert!(stat("a").0 != stat("other").0 && stat("a").0 != stat("link").0);
        // `readdir` gives the same numbers.
        for entry in fs::read_dir(&path).unwrap().map(Result::unwrap) {
            assert_eq!(entry.ino(), stat(entry.file_name().to_str().unwrap()).0);
        }
    })
    .await;
}

/// The tar's entry for the root and the modes of symlinks do not reach the kernel.
#[tokio::test(flavor = "multi_thread")]
async fn fuse_the_root_and_symlinks_are_as_containerd_makes_them() {
    let lab = Lab::new();
    let steer = [("SCHILY.xattr.user.own", "lost"), ("mtime", "77")];
    let tar = Tar::default().records(&steer).folder("./").entry(b'2', "link", "f", b"").file("f", b"x");
    let path = lab.show(&made(&tar.end()));
    outside(move || {
        let root = fs::symlink_metadata(&path).unwrap();
        assert_eq!((root.mode(), root.uid(), root.gid(), root.mtime()), (0o40_755, 0, 0, 0));
        assert!(xattrs(&path).is_empty());
        let link = fs::symlink_metadata(path.join("link")).unwrap();
        assert_eq!((link.mode(), link.uid(), link.gid()), (0o120_777, 1, 2));
        assert_eq!(fs::read(path.join("link")).unwrap(), b"x");
    })
    .await;
}
