//! Cases that compare what is seen over several layers with the same changes done to one folder.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Change, Mounted, Stage, apply, ensure_same, file, layer};

/// One layer for each list of changes; after each a view is what a folder is that they were done to.
fn check(stage: &Stage, layers: &[&[Change]]) -> Result<()> {
    let (_, flat) = stage.lab.new_folder("flat")?;
    let run = flat.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut parent = String::new();
    for (number, changes) in layers.iter().enumerate() {
        let name = format!("{run}-{number}");
        layer(stage, &name, &parent, changes)?;
        apply(&flat, changes)?;
        same(stage, &flat, &name).with_context(|| format!("layer {number}"))?;
        parent = name;
    }
    Ok(())
}

fn same(stage: &Stage, flat: &Path, name: &str) -> Result<()> {
    let view = format!("{name}-view");
    let mounted = Mounted::at(&stage.work.join("view"), &stage.view(&view, name)?)?;
    ensure_same(flat, mounted.path())?;
    mounted.end()?;
    Ok(stage.remove(&view)?)
}

#[test]
fn fuse_conformance_layer_file_update() -> Result<()> {
    let stage = Stage::new("fileupdate")?;
    let first = [
        Change::Folder("etc", 0o700),
        file("etc/hosts", "mydomain 10.0.0.1", 0o644),
        file("etc/profile", "PATH=/usr/bin", 0o644),
    ];
    let second = [
        file("etc/hosts", "mydomain 10.0.0.2", 0o644),
        file("etc/profile", "PATH=/usr/bin", 0o666),
        Change::Folder("root", 0o700),
        file("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644),
    ];
    // The original waits for the next second between its rounds, for the sake of snapshotters that look at times; an
    // overlay does not.
    for _ in 0..5 {
        check(&stage, &[&first, &second])?;
    }
    Ok(())
}

#[test]
fn fuse_conformance_remove_directory_in_lower_layer() -> Result<()> {
    let stage = Stage::new("removedir")?;
    let first = [Change::Folder("lib", 0o700), file("lib/hidden", "", 0o644)];
    let second = [Change::Gone("lib"), Change::Folder("lib", 0o700), file("lib/not-hidden", "", 0o644)];
    check(&stage, &[&first, &second, &[file("lib/newfile", "", 0o644)]])
}

#[test]
fn fuse_conformance_chown() -> Result<()> {
    let stage = Stage::new("chown")?;
    let paths = ["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"];
    let first = [
        Change::Folder("opt", 0o700),
        Change::Folder("opt/a", 0o700),
        Change::Folder("opt/a/b", 0o700),
        file("opt/a/b/file.txt", "hello", 0o644),
    ];
    check(&stage, &[&first, &paths.map(|path| Change::Owner(path, 1))])
}

#[test]
fn fuse_conformance_directory_permission_on_commit() -> Result<()> {
    let stage = Stage::new("dirperm")?;
    let first = [
        Change::Folder("dir1", 0o700),
        Change::Folder("dir2", 0o700),
        Change::Folder("dir3", 0o700),
        Change::Folder("dir4", 0o700),
        file("dir4/f1", "...", 0o644),
        Change::Folder("dir5", 0o700),
        file("dir5/f1", "...", 0o644),
        Change::Owner("dir1", 1),
        Change::Owner("dir2", 1),
        Change::Owner("dir3", 1),
        Change::Owner("dir5", 1),
        Change::Owner("dir5/f1", 1),
    ];
    let second = [
        Change::Owner("dir2", 0),
        Change::Gone("dir3"),
        Change::Owner("dir4", 1),
        Change::Owner("dir4/f1", 1),
    ];
    let third = [
        Change::Folder("dir3", 0o700),
        Change::Owner("dir3", 1),
        Change::Gone("dir5"),
        Change::Folder("dir5", 0o700),
        Change::Owner("dir5", 1),
    ];
    check(&stage, &[&first, &second, &third])
}

#[test]
fn fuse_conformance_deleted_files_in_child_snapshot() -> Result<()> {
    let stage = Stage::new("deleted")?;
    let first = [file("foo", "foo\n", 0o777), file("foobar", "foobar\n", 0o777)];
    check(&stage, &[&first, &[Change::Gone("foobar")], &[]])
}

#[test]
fn fuse_conformance_move_file_from_lower_layer() -> Result<()> {
    let stage = Stage::new("move")?;
    let first = [
        Change::Folder("dir1", 0o700),
        file("dir1/f1", "Hello", 0o644),
        Change::Folder("dir2", 0o700),
        file("dir2/f2", "...", 0o644),
    ];
    let second = [
        Change::Folder("dir3", 0o700),
        file("dir3/f1", "Hello", 0o644),
        Change::Gone("dir1"),
        Change::Linked("dir2/f2", "dir3/f2"),
        Change::Gone("dir2/f2"),
    ];
    check(&stage, &[&first, &second])
}

/// Of files only: a folder that lies in a layer below cannot be renamed on overlayfs, and the original leaves it out there.
#[test]
fn fuse_conformance_rename() -> Result<()> {
    let stage = Stage::new("rename")?;
    let first = [
        Change::Folder("dir1", 0o700),
        Change::Folder("somefiles", 0o700),
        file("somefiles/f1", "was here first!", 0o644),
        file("somefiles/f2", "nothing interesting", 0o644),
    ];
    let second = [
        file("somefiles/f1-overwrite", "new content 1", 0o644),
        Change::Renamed("somefiles/f1-overwrite", "somefiles/f1"),
        Change::Renamed("somefiles/f2", "somefiles/f3"),
    ];
    check(&stage, &[&first, &second])
}

#[test]
fn fuse_conformance_128_layers() -> Result<()> {
    let stage = Stage::new("128")?;
    let flat = stage.lab.folder("flat")?;
    let lowest = vec![
        file("bottom", "way at the bottom\n", 0o777),
        file("overwriteme", "FIRST!\n", 0o777),
        Change::Folder("addhere", 0o755),
        Change::Folder("onlyme", 0o755),
        file("onlyme/bottom", "bye!\n", 0o777),
    ];
    let layers = (1..128).map(|number| {
        vec![
            file("overwriteme", &format!("{number} WAS HERE!\n"), 0o777),
            file(&format!("addhere/file-{number}"), "same\n", 0o755),
            Change::Gone("onlyme"),
            Change::Folder("onlyme", 0o755),
            file(&format!("onlyme/file-{number}"), "only me!\n", 0o777),
        ]
    });
    let mut parent = String::new();
    for (number, changes) in std::iter::once(lowest).chain(layers).enumerate() {
        let doing = || format!("layer {number}");
        let key = format!("prepare-layer-{number}");
        let mounted = Mounted::at(&stage.work.join(&key), &stage.prepare(&key, &parent)?)?;
        ensure_same(&flat, mounted.path()).with_context(doing)?;
        apply(&flat, &changes)?;
        apply(mounted.path(), &changes).with_context(doing)?;
        ensure_same(&flat, mounted.path()).with_context(doing)?;
        mounted.end()?;
        parent = format!("committed-{number}");
        stage.commit(&parent, &key)?;
    }
    same(&stage, &flat, &parent)
}
