//! The rules of containerd's own snapshot metadata, row by row.

use std::collections::HashMap;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use super::{Commit, Kind, Store};
use crate::{
    error::{Error, ErrorKind},
    layers::shown::ShownLayer,
};

fn store() -> (TempDir, Store) {
    let folder = TempDir::new().unwrap();
    let store = Store::open(&folder.path().join("db")).unwrap();
    (folder, store)
}

fn active(store: &Store, key: &str, parent: &str) -> Result<(), ErrorKind> {
    let labels = HashMap::from([("a".to_owned(), "b".to_owned())]);
    let created = store.create(store.new_id(), Kind::Active, key, parent, labels);
    created.map(drop).map_err(|error| error.kind())
}

fn commit(store: &Store, key: &str, name: &str) -> Result<(), ErrorKind> {
    store.commit(key, name, Commit::default()).map(drop).map_err(|error| error.kind())
}

#[test]
fn what_may_be_created() {
    let (_folder, store) = store();
    active(&store, "base", "").unwrap();
    commit(&store, "base", "one").unwrap();
    active(&store, "work", "one").unwrap();
    for (key, parent, expected) in [
        ("work", "one", ErrorKind::AlreadyExists),
        ("one", "", ErrorKind::AlreadyExists),
        ("new", "none", ErrorKind::NotFound),
        ("new", "work", ErrorKind::InvalidArgument),
        ("", "one", ErrorKind::InvalidArgument),
    ] {
        assert_eq!(active(&store, key, parent), Err(expected), "{key:?} on {parent:?}");
    }
}

#[test]
fn what_may_be_committed() {
    let (_folder, store) = store();
    active(&store, "a", "").unwrap();
    commit(&store, "a", "one").unwrap();
    active(&store, "b", "one").unwrap();
    store.create(store.new_id(), Kind::View, "view", "one", HashMap::new()).unwrap();
    for (key, name, expected) in [
        ("a", "x", ErrorKind::NotFound), // it has another name now
        ("one", "x", ErrorKind::FailedPrecondition),
        ("view", "x", ErrorKind::FailedPrecondition),
        ("view", "one", ErrorKind::AlreadyExists),
        ("b", "one", ErrorKind::AlreadyExists),
        ("b", "", ErrorKind::InvalidArgument),
    ] {
        assert_eq!(commit(&store, key, name), Err(expected), "{key:?} as {name:?}");
    }
}

#[test]
fn a_commit_may_name_the_parent_that_prepare_did_not_know() {
    let (_folder, store) = store();
    for (key, name) in [("a", "one"), ("b", "other")] {
        active(&store, key, "").unwrap();
        commit(&store, key, name).unwrap();
    }
    active(&store, "work", "one").unwrap();
    active(&store, "late", "").unwrap();
    let named = |parent: &str| Commit { parent: parent.to_owned(), usage: (5, 6), ..Commit::default() };
    for (key, parent, expected) in [
        ("late", "none", ErrorKind::NotFound),
        ("late", "work", ErrorKind::FailedPrecondition), // it is not committed
        ("work", "other", ErrorKind::InvalidArgument),
    ] {
        assert_eq!(
            store.commit(key, "two", named(parent)).unwrap_err().kind(),
            expected,
            "{key} on {parent}"
        );
    }
    let before = store.get("late").unwrap();
    let record = store.commit("late", "two", named("one")).unwrap();
    assert_eq!((record.parent.as_str(), record.usage, record.kind), ("one", (5, 6), Kind::Committed));
    assert!(record.labels.is_empty(), "labels are those of the commit");
    assert!(record.created > before.created && record.created == record.updated, "and so are the times");
    assert_eq!(
        store.commit("work", "three", named("one")).unwrap().parent,
        "one",
        "the same one is no change"
    );
    assert_eq!(store.remove("one").unwrap_err().kind(), ErrorKind::FailedPrecondition);
}

#[test]
fn labels_without_a_value_are_none() {
    let (_folder, store) = store();
    let two = || HashMap::from([("a".to_owned(), "b".to_owned()), ("empty".to_owned(), String::new())]);
    let record = store.create(store.new_id(), Kind::Active, "key", "", two()).unwrap();
    assert_eq!(record.labels.len(), 1);
    let record = store.relabel("key", |labels| {
        *labels = two();
        Ok(())
    });
    assert_eq!(record.unwrap().labels.len(), 1);
    let record = store.commit("key", "name", Commit { labels: two(), ..Commit::default() });
    assert_eq!(record.unwrap().labels.len(), 1);
    let refused = Error::new(ErrorKind::InvalidArgument, "no");
    let kind = store.relabel("name", |_| Err(refused)).unwrap_err().kind();
    assert_eq!((kind, store.get("name").unwrap().labels.len()), (ErrorKind::InvalidArgument, 1));
}

#[test]
fn what_may_be_removed() {
    let (_folder, store) = store();
    active(&store, "a", "").unwrap();
    commit(&store, "a", "one").unwrap();
    active(&store, "b", "one").unwrap();
    assert_eq!(store.remove("one").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    store.remove("b").unwrap();
    store.remove("one").unwrap();
    assert_eq!(store.remove("one").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.get("one").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(store.all().unwrap().is_empty());
}

#[test]
fn another_process_finds_everything_and_gives_no_number_twice() {
    let (folder, store) = store();
    active(&store, "a", "").unwrap();
    let layer = oci::Descriptor::new("application/x", oci::Digest::sha256(b"layer"), 5);
    let shown = ShownLayer { slot: 3, layer, ztoc: None, inherited: Vec::new() };
    store.commit("a", "one", Commit { shown: Some(shown.clone()), ..Commit::default() }).unwrap();
    active(&store, "b", "one").unwrap();
    let last = store.get("b").unwrap().id;
    drop(store);
    let store = Store::open(&folder.path().join("db")).unwrap();
    let chain = store.chain("b", usize::MAX).unwrap();
    assert_eq!(chain.iter().map(|record| record.name.as_str()).collect::<Vec<_>>(), ["b", "one"]);
    assert_eq!(chain[1].shown, Some(shown));
    assert!(store.new_id() > last);
    let record = store
        .relabel("b", |labels| {
            labels.clear();
            Ok(())
        })
        .unwrap();
    assert!(record.labels.is_empty() && record.updated >= record.created);
}

#[test]
fn a_damaged_record_leaves_the_others_readable() {
    let (folder, store) = store();
    active(&store, "good", "").unwrap();
    active(&store, "bad", "").unwrap();
    let writing = super::database(&store.opened().unwrap()).unwrap().begin_write().unwrap();
    writing.open_table(super::SNAPSHOTS).unwrap().insert("bad", b"{\"id\":".as_slice()).unwrap();
    writing.commit().unwrap();
    drop(store);
    let store = Store::open(&folder.path().join("db")).unwrap();
    let (readable, damaged) = store.readable().unwrap();
    assert_eq!(readable.iter().map(|record| record.name.as_str()).collect::<Vec<_>>(), ["good"]);
    assert_eq!(damaged[0].0, "bad");
    store.get("good").unwrap();
    active(&store, "new", "").unwrap();
    assert_eq!(store.get("bad").unwrap_err().kind(), ErrorKind::Internal);
    assert!(store.all().is_err() && store.ids().is_err(), "its folder must not be removed as unused");
}

/// A disk of its own, as long as this lives.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        mount("small", folder.path(), "tmpfs", MountFlags::empty(), c"size=8m")
            .expect("this test needs root");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn privileged_once_a_full_disk_has_room_again_so_has_the_database() {
    let disk = SmallDisk::new();
    let store = Store::open(&disk.0.path().join("db")).unwrap();
    active(&store, "before", "").unwrap();
    let ballast = disk.0.path().join("ballast");
    // As much as there is room for.
    std::io::copy(&mut std::io::repeat(1), &mut std::fs::File::create(&ballast).unwrap()).unwrap_err();
    let labels = HashMap::from([("a".to_owned(), "b".repeat(200_000))]);
    let create = |key: &str| store.create(store.new_id(), Kind::Active, key, "", labels.clone());
    let failed = (0..100).find_map(|number| create(&number.to_string()).err());
    assert_eq!(failed.map(|error| error.kind()), Some(ErrorKind::Internal));
    std::fs::remove_file(&ballast).unwrap();
    create("after").unwrap();
    store.remove("before").unwrap();
    assert!(store.get("after").is_ok() && store.all().unwrap().iter().all(|record| record.name != "before"));
}
