//! How many requests the kernel makes: it caches every answer and asks once.

use std::os::unix::fs::OpenOptionsExt;

use rustix::io::Errno;

use super::*;
use crate::{connection::mount::mounted_device, fuse::RequestKind};

/// A directory of files, each with a few bytes.
fn many(count: usize) -> Tar {
    (0..count).fold(Tar::default().folder("many/"), |tar, n| tar.file(&format!("many/{n:04}"), b"some bytes"))
}

fn walk(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            walk(&path);
        } else {
            assert_eq!(fs::read(&path).unwrap(), b"some bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_listing_a_directory_is_one_request_and_its_files_need_none() {
    let lab = Lab::new();
    let path = lab.show(&made(&many(60).end()));
    let counts = lab.connection.counts.clone();
    let look = path.clone();
    outside(move || walk(&look)).await;
    let of = |asked| counts.of(asked);
    assert_eq!(of(RequestKind::Readdir), 0, "names come with attributes");
    // The slot's directory and the one below it, each to its end.
    assert!((2..=6).contains(&of(RequestKind::Readdirplus)), "{counts:?}");
    assert_eq!(of(RequestKind::Lookup), 1, "the slot: {counts:?}");
    assert!(of(RequestKind::Getattr) <= 2, "{counts:?}");
    assert_eq!(
        (of(RequestKind::Open), of(RequestKind::Opendir), of(RequestKind::Flush)),
        (1, 1, 1),
        "{counts:?}"
    );
    let (listed, read) = (of(RequestKind::Readdirplus), of(RequestKind::Read));
    outside(move || walk(&path)).await;
    assert_eq!(
        (of(RequestKind::Readdirplus), of(RequestKind::Read)),
        (listed, read),
        "the kernel cached every name and attribute"
    );
    assert_eq!(
        (of(RequestKind::Open), of(RequestKind::Opendir), of(RequestKind::Flush)),
        (1, 1, 1),
        "{counts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_an_absent_name_and_a_link_are_asked_for_once() {
    let lab = Lab::new();
    let path = lab.show(&made(&zoo().end()));
    let counts = lab.connection.counts.clone();
    outside(move || {
        for _ in 0..5 {
            assert_eq!(fs::read_link(path.join("link")).unwrap(), Path::new("d/f"));
        }
        assert_eq!(counts.of(RequestKind::Readlink), 1);
        let _ = fs::metadata(path.join("d/absent"));
        let before = counts.of(RequestKind::Getattr);
        let asked = counts.of(RequestKind::Lookup);
        for _ in 0..5 {
            assert!(fs::metadata(path.join("d/absent")).is_err());
        }
        // The slot's own name may have been looked up again: the kernel caches it for a second only.
        assert!(counts.of(RequestKind::Lookup) <= asked + 1, "{counts:?}");
        assert_eq!(counts.of(RequestKind::Getattr), before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_reads_are_large_and_ahead() {
    let lab = Lab::new();
    let bytes = noise(8, 6 << 20);
    let path = lab.show(&made(&Tar::default().file("f", &bytes).end()));
    let counts = lab.connection.counts.clone();
    let device = mounted_device(lab.connection.mounted().path()).unwrap().unwrap();
    outside(move || {
        let ahead = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
        assert_eq!(ahead.trim(), "1024");
        assert!(fs::read(path.join("f")).unwrap() == bytes);
        assert_eq!(counts.largest_read(), 1 << 20, "a sequential reader");
        assert!(counts.of(RequestKind::Read) <= 12, "{counts:?}");
        let asked = counts.of(RequestKind::Read);
        let direct = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path.join("f"));
        let mut room = vec![0; (1 << 20) + 4096];
        let aligned = room.as_ptr().align_offset(4096);
        let room = &mut room[aligned..aligned + (1 << 20)];
        let length = rustix::io::pread(direct.unwrap(), &mut *room, 2 << 20).unwrap();
        assert!(room[..length] == bytes[2 << 20..3 << 20]);
        assert_eq!(counts.of(RequestKind::Read), asked + 1, "one request for one MiB");
    })
    .await;
}

/// The error for an extended attribute that does not exist.
fn refused(path: &Path, name: &str) -> Errno {
    rustix::fs::lgetxattr(path, name, &mut [0_u8; 64][..]).expect_err("there is no such attribute")
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_requests_for_extended_attributes_are_never_switched_off() {
    let lab = Lab::new();
    let bare = lab.show(&made(&zoo().end()));
    let rich = Tar::default()
        .records(&[("SCHILY.xattr.security.selinux", "label"), ("SCHILY.xattr.user.some", "thing")])
        .file("with", b"x")
        .file("without", b"y");
    let rich = lab.show(&made(&rich.end()));
    let root = lab.connection.mounted().path().to_owned();
    outside(move || {
        let (nodata, none) = (Errno::NODATA, Errno::OPNOTSUPP);
        for _ in 0..2 {
            for path in [root.clone(), bare.clone(), bare.join("d"), bare.join("d/f"), bare.join("link")] {
                let is_link = path.ends_with("link");
                let mut list = [0_u8; 64];
                assert_eq!(rustix::fs::llistxattr(&path, &mut list[..]), Ok(0), "{}", path.display());
                assert_eq!(refused(&path, "security.selinux"), none, "{}", path.display());
                assert_eq!(refused(&path, "security.capability"), nodata);
                assert_eq!(refused(&path, "trusted.overlay.opaque"), nodata);
                assert_eq!(refused(&path, "trusted.overlay.metacopy"), nodata);
                // The kernel itself refuses some requests about links.
                if !is_link {
                    assert_eq!(refused(&path, "user.absent"), nodata);
                    assert_eq!(refused(&path, "system.posix_acl_access"), none);
                    assert_eq!(refused(&path, "system.posix_acl_default"), none);
                }
            }
            let mut value = [0; 64];
            let length =
                rustix::fs::lgetxattr(rich.join("with"), "security.selinux", &mut value[..]).unwrap();
            assert_eq!(&value[..length], b"label");
            let length = rustix::fs::lgetxattr(rich.join("with"), "user.some", &mut value[..]).unwrap();
            assert_eq!(&value[..length], b"thing");
            assert_eq!(refused(&rich.join("without"), "security.selinux"), nodata);
            assert_eq!(refused(&rich.join("without"), "system.posix_acl_access"), none);
            let short = rustix::fs::lgetxattr(rich.join("with"), "user.some", &mut [0_u8; 2][..]);
            assert_eq!(short, Err(Errno::RANGE));
        }
    })
    .await;
}

/// A request that makes the door do what the row says.
type Ask = fn(&Path) -> std::io::Result<()>;

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_panic_is_an_io_error_for_its_reader_alone() {
    let lab = Lab::new();
    let bytes = noise(4, 300_000);
    let tar = Tar::default().file("early", &bytes).file("late", &bytes);
    let path = lab.show(&made(&tar.file("names/a", b"").file("names/b", b"").end()));
    let counts = lab.connection.counts.clone();
    let rows: [(RequestKind, Ask); 6] = [
        (RequestKind::Readdirplus, |path| {
            fs::read_dir(path.join("names"))?.try_for_each(|entry| entry.map(drop))
        }),
        (RequestKind::Lookup, |path| fs::metadata(path.join("early")).map(drop)),
        (RequestKind::LateRead, |path| fs::read(path.join("early")).map(drop)),
        (RequestKind::Read, |path| fs::read(path.join("late")).map(drop)),
        (RequestKind::Statfs, |path| Ok(rustix::fs::statfs(path).map(drop)?)),
        (RequestKind::Getxattr, |path| {
            match rustix::fs::lgetxattr(path.join("late"), "user.x", &mut [0_u8; 9][..]) {
                Err(Errno::NODATA) => Ok(()),
                other => Ok(other.map(drop)?),
            }
        }),
    ];
    outside(move || {
        for (asked, ask) in rows {
            // The kernel caches the slot's name for a second, so that the trap for lookups hits the lookup of the
            // file.
            fs::metadata(&path).unwrap();
            counts.trap(Some(asked));
            // More often than there are threads: all of them go on.
            for _ in 0..8 {
                let error = ask(&path).expect_err("it panicked");
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{asked:?}");
            }
            counts.trap(None);
            ask(&path).unwrap_or_else(|error| panic!("after {asked:?}: {error}"));
        }
        assert!(fs::read(path.join("early")).unwrap() == bytes);
        assert!(fs::read(path.join("late")).unwrap() == bytes);
    })
    .await;
}
