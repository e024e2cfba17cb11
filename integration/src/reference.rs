//! The truth: what an image or a layer looks like when ordinary tools unpack it. An image by
//! containerd on overlayfs; a single layer by GNU tar, whiteouts left as the files they are in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use oci::image::media_type;
use rustix::mount::{UnmountFlags, unmount};

use crate::containerd::Containerd;
use crate::images::Layer;
use crate::lab::Lab;
use crate::machine::ensure_debian;
use crate::tree::{self, Tree};

const MOUNT_LIMIT: Duration = Duration::from_secs(30);
const TAR_LIMIT: Duration = Duration::from_secs(300);
const SNAPSHOTTER: &str = "overlayfs";

/// An image as containerd unpacks it, mounted. Unmounted when dropped, at the latest with its lab.
#[derive(Debug)]
pub struct Unpacked<'a> {
    containerd: &'a Containerd,
    snapshotter: String,
    /// the snapshot that is mounted
    view: String,
    folder: PathBuf,
}

impl<'a> Unpacked<'a> {
    /// Pulls `reference` with overlayfs and mounts it on a new folder in the lab.
    pub fn image(lab: &Lab, containerd: &'a Containerd, reference: &str) -> Result<Unpacked<'a>> {
        containerd.pull(reference, SNAPSHOTTER)?;
        mount(lab, containerd, SNAPSHOTTER)
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }

    pub fn tree(&self) -> Result<Tree> {
        tree::walk(&self.folder)
    }
}

impl Drop for Unpacked<'_> {
    fn drop(&mut self) {
        let _ = unmount(&self.folder, UnmountFlags::DETACH);
        let _ = self.containerd.ctr(&["snapshots", "--snapshotter", &self.snapshotter, "rm", &self.view]);
        // Last: the folder's name is the snapshot's, and free for another thread from here on.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Mounts the one image that was pulled with `snapshotter` on a new folder in the lab, as containerd would for a
/// container. (`ctr image mount` of containerd 1.6 takes overlayfs whatever it is told.)
pub fn mount<'a>(lab: &Lab, containerd: &'a Containerd, snapshotter: &str) -> Result<Unpacked<'a>> {
    let list = containerd.ctr(&["snapshots", "--snapshotter", snapshotter, "ls"])?;
    let rows: Vec<Vec<&str>> = list.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let committed = rows.iter().filter(|row| row.last() == Some(&"Committed"));
    let tops = committed.filter(|row| !rows.iter().any(|other| other.len() == 3 && other[1] == row[0]));
    let tops: Vec<&str> = tops.map(|row| row[0]).collect();
    let [top] = tops.as_slice() else { bail!("one image with {snapshotter}, not {}: {list}", tops.len()) };
    mount_snapshot(lab, containerd, snapshotter, top)
}

/// The same for an image among several: `top` is the name of its uppermost snapshot.
pub fn mount_snapshot<'a>(
    lab: &Lab,
    containerd: &'a Containerd,
    snapshotter: &str,
    top: &str,
) -> Result<Unpacked<'a>> {
    let (name, folder) = lab.new_folder("unpacked")?;
    // Not `view`: that one `ctr` does not root, and the collector may take it before it is mounted.
    containerd.ctr(&["snapshots", "--snapshotter", snapshotter, "prepare", &name, top])?;
    let target = folder.to_string_lossy();
    let shown = containerd.ctr(&["snapshots", "--snapshotter", snapshotter, "mounts", &target, &name])?;
    let unpacked = Unpacked { containerd, snapshotter: snapshotter.to_owned(), view: name, folder };
    let mut words = shown.split_whitespace();
    let mut command = lab.command(words.next().context("no mount for the image")?);
    command.args(words);
    lab.run(command, MOUNT_LIMIT)?;
    Ok(unpacked)
}

/// A layer unpacked by GNU tar into a new folder in the lab.
pub fn unpack_layer(lab: &Lab, layer: &Layer) -> Result<PathBuf> {
    ensure_debian(&["tar", "gzip"])?;
    let (name, folder) = lab.new_folder("layer")?;
    let file = lab.path().join(format!("{name}.tar"));
    fs::write(&file, &layer.bytes).context("write the layer")?;
    let mut command = lab.command("tar");
    command.args(["--extract", "--numeric-owner", "--same-owner", "--preserve-permissions"]);
    command.args(["--xattrs", "--xattrs-include=*", "--warning=no-timestamp"]);
    if layer.media_type == media_type::OCI_LAYER_GZIP {
        command.arg("--gzip");
    }
    command.arg("--file").arg(&file).arg("--directory").arg(&folder);
    lab.run(command, TAR_LIMIT).context("unpack the layer")?;
    fs::remove_file(&file)?;
    Ok(folder)
}
