//! What is done to a tree, and the mounts that it is done through.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    process::{run, wait_until},
    tree::{Skip, compare, walk},
};
use proto::containerd::types::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind_recursive, mount_remount, unmount};

const LIMIT: Duration = Duration::from_secs(30);

/// One change of a tree; paths begin at its top.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Made, or given another content; also given these permissions.
    File(String, Vec<u8>, u32),
    Folder(&'static str, u32),
    /// With all that is in it.
    Gone(&'static str),
    Owner(&'static str, u32),
    Renamed(&'static str, &'static str),
    Linked(&'static str, &'static str),
}

pub(crate) fn file(path: &str, content: &str, mode: u32) -> Change {
    Change::File(path.to_owned(), content.as_bytes().to_vec(), mode)
}

pub(crate) fn apply(top: &Path, changes: &[Change]) -> Result<()> {
    let permit = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    for change in changes {
        let done = match change {
            Change::File(path, bytes, mode) => {
                fs::write(top.join(path), bytes).and_then(|()| permit(&top.join(path), *mode))
            }
            Change::Folder(path, mode) => {
                fs::create_dir(top.join(path)).and_then(|()| permit(&top.join(path), *mode))
            }
            Change::Gone(path) if top.join(path).is_dir() => fs::remove_dir_all(top.join(path)),
            Change::Gone(path) => fs::remove_file(top.join(path)),
            Change::Owner(path, id) => chown(top.join(path), Some(*id), Some(*id)),
            Change::Renamed(from, to) => fs::rename(top.join(from), top.join(to)),
            Change::Linked(from, to) => fs::hard_link(top.join(from), top.join(to)),
        };
        done.with_context(|| format!("{change:?} in {}", top.display()))?;
    }
    Ok(())
}

/// Compares all but times.
pub(crate) fn ensure_same(expected: &Path, found: &Path) -> Result<()> {
    let (expected, found) = (walk(expected)?, walk(found)?);
    let mtimes = expected.entries.keys().chain(found.entries.keys()).cloned().collect();
    let skip = Skip { top: true, mtimes, directory_mtimes: true };
    let differences = compare(&expected, &found, &skip);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// Mounted as the daemon says, until it is dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    target: PathBuf,
}

impl Mounted {
    pub(crate) fn at(target: &Path, mounts: &[Mount]) -> Result<Mounted> {
        let [mount] = mounts else { bail!("one mount, and not {mounts:?}") };
        fs::create_dir_all(target)?;
        match mount.r#type.as_str() {
            "bind" => bind(target, mount)?,
            "overlay" => overlay(target, mount)?,
            _ => bail!("neither a bind mount nor an overlay: {mount:?}"),
        }
        Ok(Mounted { target: target.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.target
    }

    /// The end of it, seen to be one.
    pub(crate) fn end(self) -> Result<()> {
        // Another thread's child has our files open as long as it has not become another program.
        wait_until("unmount", LIMIT, || match unmount(&self.target, UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) => Ok(None),
            done => Ok(Some(done?)),
        })?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.target, UnmountFlags::DETACH);
    }
}

fn bind(target: &Path, mount: &Mount) -> Result<()> {
    ensure!(mount.options.iter().any(|option| option == "rbind"), "{mount:?}");
    mount_bind_recursive(&mount.source, target).with_context(|| format!("{mount:?}"))?;
    if mount.options.iter().any(|option| option == "ro") {
        mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "")?;
    }
    Ok(())
}

/// The kernel takes a page of options. containerd's client then leaves out what all the paths begin with, and so do we.
fn overlay(target: &Path, mount: &Mount) -> Result<()> {
    let mut command = Command::new("mount");
    let mut options = Vec::new();
    for option in &mount.options {
        let Some(lowers) = option.strip_prefix("lowerdir=") else {
            options.push(option.clone());
            continue;
        };
        let lowers: Vec<_> = lowers.split(':').collect();
        let common = common(&lowers);
        let short: Vec<_> = lowers.iter().map(|lower| &lower[common.len()..]).collect();
        command.current_dir(common);
        options.push(format!("lowerdir={}", short.join(":")));
    }
    command.args(["-t", "overlay", "overlay", "-o", &options.join(",")]).arg(target);
    run(command, LIMIT).with_context(|| format!("{mount:?}")).map(drop)
}

/// Up to a slash, and leaving something of each.
fn common<'a>(paths: &[&'a str]) -> &'a str {
    let first = paths.first().copied().unwrap_or_default();
    let ends = first.match_indices('/').map(|(at, _)| at + 1);
    let shared = |end: &usize| paths.iter().all(|path| path.starts_with(&first[..*end]) && path.len() > *end);
    &first[..ends.rev().find(shared).unwrap_or(0)]
}
