//! The 21 cases of containerd's suite, in its order, each with a daemon of its own.

mod layers;

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, time::SystemTime};

use anyhow::{Result, ensure};
use proto::containerd::services::snapshots::v1::Kind;
use tonic::Code;

use super::{
    client::{Stage, code, map},
    content::{Change, Mounted, apply, ensure_same, file},
};

/// A mount of a new snapshot, through which `changes` are done, and its commit.
fn layer(stage: &Stage, name: &str, parent: &str, changes: &[Change]) -> Result<()> {
    let key = format!("{name}-active");
    let mounted = Mounted::at(&stage.work.join("mounted"), &stage.prepare(&key, parent)?)?;
    apply(mounted.path(), changes)?;
    mounted.end()?;
    Ok(stage.commit(name, &key)?)
}

#[test]
fn fuse_conformance_basic() -> Result<()> {
    let stage = Stage::new("basic")?;
    let first = [
        file("foo", "foo\n", 0o777),
        Change::Folder("a", 0o755),
        Change::Folder("a/b", 0o755),
        Change::Folder("a/b/c", 0o755),
    ];
    let second = [file("bar", "bar\n", 0o777), file("foo", "bar\n", 0o777), Change::Gone("a/b")];
    let flat = stage.lab.folder("flat")?;

    layer(&stage, "committed", "", &first)?;
    let low = stage.stat("committed")?;
    ensure!(low.parent.is_empty() && low.kind == Kind::Committed, "{low:?}");
    ensure!(code(stage.stat("committed-active")) == Code::NotFound);

    apply(&flat, &first)?;
    let mounted = Mounted::at(&stage.work.join("next"), &stage.prepare("next", "committed")?)?;
    ensure_same(&flat, mounted.path())?;
    apply(mounted.path(), &second)?;
    mounted.end()?;
    let active = stage.stat("next")?;
    ensure!(active.parent == "committed" && active.kind == Kind::Active, "{active:?}");
    stage.commit("committed-next", "next")?;
    let high = stage.stat("committed-next")?;
    ensure!(high.parent == "committed" && high.kind == Kind::Committed, "{high:?}");
    ensure!(code(stage.stat("next")) == Code::NotFound);
    ensure!(stage.list(&[])? == [low, high], "{:?}", stage.list(&[]));

    apply(&flat, &second)?;
    let mounted = Mounted::at(&stage.work.join("view"), &stage.view("view", "committed-next")?)?;
    ensure_same(&flat, mounted.path())?;
    mounted.end()?;
    stage.remove("view")?;
    let refused = stage.remove("committed").expect_err("it has a child");
    ensure!(refused.code() == Code::FailedPrecondition && refused.message().contains("remove"), "{refused}");
    stage.remove("committed-next")?;
    Ok(stage.remove("committed")?)
}

#[test]
fn fuse_conformance_stat_active() -> Result<()> {
    let stage = Stage::new("active")?;
    let mounted = Mounted::at(&stage.work.join("m"), &stage.prepare("preparing", "")?)?;
    apply(mounted.path(), &[file("foo", "foo\n", 0o777)])?;
    let seen = stage.stat("preparing")?;
    ensure!(seen.name == "preparing" && seen.kind == Kind::Active && seen.parent.is_empty(), "{seen:?}");
    mounted.end()
}

#[test]
fn fuse_conformance_stat_committed() -> Result<()> {
    let stage = Stage::new("committed")?;
    layer(&stage, "done", "", &[file("foo", "foo\n", 0o777)])?;
    let seen = stage.stat("done")?;
    ensure!(seen.name == "done" && seen.kind == Kind::Committed && seen.parent.is_empty(), "{seen:?}");
    Ok(())
}

#[test]
fn fuse_conformance_transitivity() -> Result<()> {
    let stage = Stage::new("parents")?;
    layer(&stage, "a", "", &[file("foo", "foo\n", 0o777)])?;
    layer(&stage, "b", "a", &[file("foo", "foo bar\n", 0o777)])?;
    let parent = stage.stat("b")?.parent;
    ensure!(parent == "a" && stage.stat(&parent)?.parent.is_empty(), "{parent}");
    Ok(())
}

#[test]
fn fuse_conformance_prepare_and_view_of_a_key_in_use_fail() -> Result<()> {
    let stage = Stage::new("keys")?;
    layer(&stage, "a", "", &[])?;
    stage.prepare("prepared", "a")?;
    stage.view("viewed", "a")?;
    for key in ["prepared", "viewed", "a"] {
        ensure!(code(stage.prepare(key, "a")) == Code::AlreadyExists, "{key}");
        ensure!(code(stage.view(key, "a")) == Code::AlreadyExists, "{key}");
    }
    Ok(())
}

/// `c1`, and `c2` on it, are committed; `a1` and `v1` are on `c2`, `a2` and `v2` on nothing. All are empty.
fn base(stage: &Stage) -> Result<()> {
    stage.prepare("c1-a", "")?;
    stage.commit("c1", "c1-a")?;
    stage.prepare("c2-a", "c1")?;
    stage.commit("c2", "c2-a")?;
    for (active, view, parent) in [("a1", "v1", "c2"), ("a2", "v2", "")] {
        stage.prepare(active, parent)?;
        stage.view(view, parent)?;
    }
    Ok(())
}

#[test]
fn fuse_conformance_update() -> Result<()> {
    let stage = Stage::new("update")?;
    let began = SystemTime::now();
    base(&stage)?;
    let ended = SystemTime::now();
    let rows = [
        ("c1", Kind::Committed, ""),
        ("c2", Kind::Committed, "c1"),
        ("a1", Kind::Active, "c2"),
        ("a2", Kind::Active, ""),
        ("v1", Kind::View, "c2"),
        ("v2", Kind::View, ""),
    ];
    for (name, kind, parent) in rows {
        let seen = stage.stat(name)?;
        ensure!((began..=ended).contains(&seen.created) && seen.created == seen.updated, "{seen:?}");
        ensure!((seen.kind, seen.parent.as_str(), seen.name.as_str()) == (kind, parent, name), "{seen:?}");

        let mut wanted = seen.clone();
        wanted.parent = "doesnotexist".into();
        wanted.labels = map(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3"), ("root", "now")]);
        let before = SystemTime::now();
        let changed = stage.update(&wanted, &[])?;
        ensure!((before..=SystemTime::now()).contains(&changed.updated), "{changed:?}");
        let expected =
            super::client::Seen { labels: wanted.labels.clone(), updated: changed.updated, ..seen };
        ensure!(changed == expected, "{changed:?} instead of {expected:?}");

        wanted.labels = map(&[("l1", "updated"), ("l4", "v4")]);
        let changed = stage.update(&wanted, &["labels.l1", "labels.l2"])?;
        let expected = map(&[("l1", "updated"), ("l3", "v3"), ("root", "now")]);
        ensure!(changed.labels == expected, "{changed:?}");

        wanted.labels = map(&[("l4", "v4"), ("root", "now")]);
        let changed = stage.update(&wanted, &["labels"])?;
        ensure!(changed.labels == wanted.labels && stage.stat(name)? == changed, "{changed:?}");

        ensure!(code(stage.update(&wanted, &["parent"])) == Code::InvalidArgument);
        ensure!(stage.stat(name)? == changed, "what is refused changes nothing");
    }
    Ok(())
}

#[test]
fn fuse_conformance_remove() -> Result<()> {
    let stage = Stage::new("remove")?;
    stage.prepare("committed-a", "")?;
    stage.commit("committed-1", "committed-a")?;
    stage.prepare("reuse-1", "committed-1")?;
    stage.remove("reuse-1")?;
    stage.view("reuse-1", "committed-1")?;
    stage.remove("reuse-1")?;
    stage.prepare("reuse-1", "")?;
    stage.remove("committed-1")?;
    Ok(stage.commit("committed-1", "reuse-1")?)
}

#[test]
fn fuse_conformance_walk() -> Result<()> {
    let stage = Stage::new("walk")?;
    let root = ("containerd.io/gc.root", "check-walk");
    let rooted = |value| [root, ("l", value)];
    stage.prepare_with("a-np", "", &[root])?;
    stage.prepare_with("p-tmp", "", &[root])?;
    stage.commit_with("p", "p-tmp", "", &[root])?;
    stage.prepare_with("a", "p", &[root])?;
    stage.view_with("v", "p", &[root])?;
    stage.prepare_with("p-wl-tmp", "", &[root])?;
    stage.commit_with("p-wl", "p-wl-tmp", "", &rooted("1"))?;
    stage.prepare_with("a-wl", "p-wl", &rooted("2"))?;
    stage.view_with("v-wl", "p-wl", &rooted("3"))?;
    stage.prepare_with("a-np-wl", "", &rooted("2"))?;
    let of = |kind: &str| format!("kind=={kind},labels.\"containerd.io/gc.root\"==check-walk");
    let (active, view, committed) = (of("active"), of("view"), of("committed"));
    let rows: &[(&[&str], &[&str])] = &[
        (
            &["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"],
            &["labels.\"containerd.io/gc.root\"==check-walk"],
        ),
        (&["a", "a-np", "a-np-wl", "a-wl"], &[&active]),
        (&["v", "v-wl"], &[&view]),
        (&["p", "p-wl"], &[&committed]),
        (&["a-np-wl", "p"], &["name==p", "name==a-np-wl"]),
        (&["a-wl"], &["name==a-wl,labels.l"]),
        (&["a", "v"], &["parent==p"]),
        (&["a", "a-wl", "v", "v-wl"], &["parent!=\"\",labels.\"containerd.io/gc.root\"==check-walk"]),
        (&["a-np-wl", "a-wl", "p-wl", "v-wl"], &["labels.l"]),
        (&["a-np-wl", "a-wl"], &["labels.l==2"]),
    ];
    for (expected, filters) in rows {
        let found = stage.names(filters)?;
        ensure!(found == *expected, "{filters:?}: {found:?} instead of {expected:?}");
    }
    Ok(())
}

#[test]
fn fuse_conformance_remove_intermediate_snapshot() -> Result<()> {
    let stage = Stage::new("between")?;
    layer(&stage, "base", "", &[])?;
    layer(&stage, "inter", "base", &[])?;
    stage.prepare("top", "inter")?;
    ensure!(code(stage.remove("inter")) == Code::FailedPrecondition);
    for name in ["top", "inter", "base"] {
        stage.remove(name)?;
    }
    Ok(())
}

#[test]
fn fuse_conformance_view_is_read_only() -> Result<()> {
    let stage = Stage::new("readonly")?;
    for (parent, name) in [("", "one"), ("one", "two")] {
        layer(&stage, name, parent, &[])?;
        let mounted = Mounted::at(&stage.work.join("view"), &stage.view("view", name)?)?;
        let written = fs::write(mounted.path().join("file"), "content");
        ensure!(written.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem), "{name}");
        mounted.end()?;
        stage.remove("view")?;
    }
    Ok(())
}

#[test]
fn fuse_conformance_stat_in_walk() -> Result<()> {
    let stage = Stage::new("inwalk")?;
    base(&stage)?;
    let all = stage.list(&[])?;
    ensure!(all.len() == 6, "{all:?}");
    for seen in all {
        ensure!(stage.stat(&seen.name)? == seen, "{seen:?}");
    }
    Ok(())
}

/// There it is a client's connection that is closed; what is closed here is the daemon.
#[test]
fn fuse_conformance_close_twice() -> Result<()> {
    let stage = Stage::new("twice")?;
    stage.prepare("key", "")?;
    stage.commit("name", "key")?;
    stage.remove("name")?;
    stage.daemon.stop();
    stage.daemon.stop();
    let names: BTreeSet<_> = stage.lab.mounts().into_iter().collect();
    ensure!(names.is_empty(), "it leaves {names:?}");
    stage.daemon.restart()
}

#[test]
fn fuse_conformance_root_permission() -> Result<()> {
    let stage = Stage::new("permission")?;
    let mounted = Mounted::at(&stage.work.join("m"), &stage.prepare("preparing", "")?)?;
    let mode = fs::metadata(mounted.path())?.permissions().mode() & 0o777;
    ensure!(mode == 0o755, "{mode:o}");
    mounted.end()
}
