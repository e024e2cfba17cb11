//! A layer seen through the kernel. Needs root and `/dev/fuse`.

mod adoption;
mod attributes;
mod messages;
mod waiting;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use oci::{Digest, testing::BlobFault};
use tempfile::TempDir;

use super::Connection;
use crate::{
    DiskLimits, Engine, Layer, Slots, Store,
    testing::{Tar, TestLayer, engine, made, noise},
};

/// A connection below a folder of its own. Dropping it removes both, the mount first.
struct Lab {
    connection: Connection,
    store: Arc<Store>,
    engine: Arc<Engine>,
    root: TempDir,
}

impl Lab {
    fn new() -> Self {
        Self::below(TempDir::new().unwrap())
    }

    fn below(root: TempDir) -> Self {
        let (store, engine) = (Store::open(root.path(), DiskLimits::default()).unwrap(), engine());
        let slots = Slots::open(root.path().join("slots.json")).unwrap();
        let connection = Connection::mount(&root.path().join("fuse"), slots, &store, &engine)
            .expect("these tests need root and /dev/fuse");
        Self { connection, store, engine, root }
    }

    fn layer(&self, made: &TestLayer) -> Arc<Layer> {
        let ztoc = Digest::sha256(&made.ztoc);
        let layer = Layer::create(&self.store, &self.engine, &made.digest, &ztoc, &made.ztoc).unwrap();
        layer.add_source("origin", made.blob.clone());
        layer
    }

    fn show(&self, made: &TestLayer) -> PathBuf {
        let slot = self.connection.show(&self.layer(made), &[]).unwrap();
        self.connection.slot_path(slot)
    }
}

fn zoo() -> Tar {
    Tar::default()
        .folder("d/")
        .file("d/f", &noise(3, 200_000))
        .file("empty", b"")
        .entry(b'1', "hard", "d/f", b"")
        .entry(b'2', "link", "d/f", b"")
        .entry(b'6', "fifo", "", b"")
        .file("d/.wh.gone", b"")
        .file("over/.wh..wh..opq", b"")
}

/// Runs off the runtime's threads, as a process in a container does.
async fn outside<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(look).await.unwrap()
}

fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_layer_is_a_directory() {
    let lab = Lab::new();
    let path = lab.show(&made(&zoo().end()));
    outside(move || {
        let names: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["d", "empty", "fifo", "hard", "link", "over"]);
        assert_eq!(fs::read(path.join("d/f")).unwrap(), noise(3, 200_000));
        assert_eq!(fs::read(path.join("empty")).unwrap(), b"");
        assert_eq!(fs::read_link(path.join("link")).unwrap(), Path::new("d/f"));
        let file = fs::metadata(path.join("d/f")).unwrap();
        assert_eq!((file.uid(), file.gid(), file.mode(), file.mtime()), (1, 2, 0o100_644, 5));
        assert_eq!((file.nlink(), file.size()), (2, 200_000));
        assert_eq!(fs::metadata(path.join("hard")).unwrap().ino(), file.ino());
        let gone = fs::symlink_metadata(path.join("d/gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        assert!(fs::symlink_metadata(path.join("fifo")).unwrap().file_type().is_fifo());
        assert!(fs::symlink_metadata(path.join("d/.wh.gone")).is_err());
        let mut value = [0; 16];
        let length = rustix::fs::lgetxattr(path.join("over"), "trusted.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..length], b"y");
        let none = rustix::fs::lgetxattr(path.join("d"), "trusted.overlay.opaque", &mut value);
        assert_eq!(none, Err(rustix::io::Errno::NODATA));
        let asked = rustix::fs::lgetxattr(path.join("d"), "security.selinux", &mut value);
        assert_eq!(asked, Err(rustix::io::Errno::OPNOTSUPP));
        assert!(fs::write(path.join("new"), b"x").is_err(), "layers are read only");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_slots_come_and_go_and_numbers_do_not_come_back() {
    let lab = Lab::new();
    let (one, two) = (made(&zoo().end()), made(&zoo().file("more", b"m").end()));
    let (first, second) = (lab.layer(&one), lab.layer(&two));
    let slot = lab.connection.show(&first, &[]).unwrap();
    assert_eq!(lab.connection.show(&first, &[]).unwrap(), slot, "the same layer has one slot");
    let path = lab.connection.slot_path(slot);
    let inode = outside({
        let path = path.clone();
        move || fs::metadata(path).unwrap().ino()
    })
    .await;
    lab.connection.hide(slot);
    let again = outside({
        let path = path.clone();
        move || fs::read(path.join("d/f")).err()
    })
    .await;
    assert!(again.is_some(), "a hidden layer is not read");
    let slot = lab.connection.show(&second, &[]).unwrap();
    let path = lab.connection.slot_path(slot);
    let root = lab.root.path().join("fuse");
    outside(move || {
        assert_eq!(fs::read(path.join("more")).unwrap(), b"m");
        assert!(fs::metadata(&path).unwrap().ino() > inode);
        let names: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [path.file_name().unwrap()]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_wrong_bytes_are_an_io_error_and_the_rest_of_the_layer_lives() {
    let lab = Lab::new();
    let layer = made(&Tar::default().file("a", &noise(1, 400_000)).file("b", &noise(2, 400_000)).end());
    let path = lab.show(&layer);
    for _ in 0..64 {
        layer.blob.fail_next(BlobFault::Lie);
    }
    let bad = path.clone();
    let error = outside(move || fs::read(bad.join("a")).unwrap_err()).await;
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    while layer.blob.reads().len() < 64 {
        let bad = path.clone();
        let _ = outside(move || fs::read(bad.join("b"))).await;
    }
    outside(move || {
        assert_eq!(fs::read(path.join("a")).unwrap(), noise(1, 400_000));
        assert_eq!(fs::read(path.join("b")).unwrap(), noise(2, 400_000));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_overlay_over_two_layers_heeds_whiteouts_and_opaque_marks() {
    let lab = Lab::new();
    let lower = lab.show(&made(
        &Tar::default().file("d/gone", b"1").file("d/kept", b"2").file("over/below", b"3").end(),
    ));
    let upper = lab.show(&made(&zoo().end()));
    let merged = lab.root.path().join("merged");
    outside(move || {
        fs::create_dir(&merged).unwrap();
        let options = format!("lowerdir={}:{}", upper.display(), lower.display());
        let target = merged.display().to_string();
        let (mounted, text) = run("mount", &["-t", "overlay", "overlay", "-o", &options, &target]);
        assert!(mounted, "{text}");
        let found = (
            fs::read(merged.join("d/gone")).is_err(),
            fs::read(merged.join("d/kept")).unwrap_or_default(),
            fs::read(merged.join("over/below")).is_err(),
            fs::read(merged.join("d/f")).unwrap_or_default().len(),
        );
        let (unmounted, text) = run("umount", &[&target]);
        assert_eq!(found, (true, b"2".to_vec(), true, 200_000));
        assert!(unmounted, "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_another_process_shows_the_same_numbers() {
    let lab = Lab::new();
    let layer = made(&zoo().end());
    let path = lab.show(&layer);
    let before = outside({
        let path = path.clone();
        move || fs::metadata(path.join("d/f")).unwrap().ino()
    })
    .await;
    // As after a crash: the first connection's mount is found and detached.
    let Lab { connection, root, .. } = lab;
    std::mem::forget(connection);
    let lab = Lab::below(root);
    let stored = Layer::stored(&lab.store, &lab.engine, &layer.id()).unwrap().unwrap();
    stored.add_source("origin", layer.blob.clone());
    let slot = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    lab.connection.show_again(slot, &stored, &[]).unwrap();
    let after = outside(move || fs::metadata(path.join("d/f")).unwrap().ino()).await;
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_slot_whose_list_is_lost_is_shown_again_under_its_number() {
    let lab = Lab::new();
    let (one, two) = (made(&zoo().end()), made(&zoo().file("more", b"m").end()));
    lab.connection.skip(6);
    lab.connection.show_again(4, &lab.layer(&one), &[]).unwrap();
    let next = lab.connection.show(&lab.layer(&two), &[]).unwrap();
    assert_eq!(next, 7, "used numbers are not given out");
    let path = lab.connection.slot_path(4);
    outside(move || assert_eq!(fs::read(path.join("d/f")).unwrap(), noise(3, 200_000))).await;
}
