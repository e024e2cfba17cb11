//! The truth: what an image or a layer looks like when it is unpacked by those who do it every day. An image by
//! containerd on overlayfs; a single layer by GNU tar, whiteouts left as the files they are in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use oci::image::media_type;

use crate::containerd::Containerd;
use crate::images::Layer;
use crate::lab::Lab;
use crate::machine::ensure_debian;
use crate::tree::{self, Tree};

const TAR_LIMIT: Duration = Duration::from_secs(300);
const SNAPSHOTTER: &str = "overlayfs";

/// An image as containerd unpacks it, mounted read-only. Unmounted when dropped, at the latest with its lab.
#[derive(Debug)]
pub struct Unpacked<'a> {
    containerd: &'a Containerd,
    folder: PathBuf,
}

impl<'a> Unpacked<'a> {
    /// Pulls `reference` with overlayfs and mounts it on a new folder in the lab.
    pub fn image(lab: &Lab, containerd: &'a Containerd, reference: &str) -> Result<Unpacked<'a>> {
        containerd.pull(reference, SNAPSHOTTER)?;
        mount(lab, containerd, reference, SNAPSHOTTER)
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
        let _ = self.containerd.ctr(&["image", "unmount", "--rm", &self.folder.to_string_lossy()]);
    }
}

/// Mounts an image that was pulled with `snapshotter`, ours for example, on a new folder in the lab.
pub fn mount<'a>(
    lab: &Lab,
    containerd: &'a Containerd,
    reference: &str,
    snapshotter: &str,
) -> Result<Unpacked<'a>> {
    let folder = lab.folder(&lab.free_name("unpacked"))?;
    let words = ["image", "mount", "--snapshotter", snapshotter, reference, &folder.to_string_lossy()];
    containerd.ctr(&words)?;
    Ok(Unpacked { containerd, folder })
}

/// A layer unpacked by GNU tar into a new folder in the lab.
pub fn unpack_layer(lab: &Lab, layer: &Layer) -> Result<PathBuf> {
    ensure_debian(&["tar", "gzip"])?;
    let name = lab.free_name("layer");
    let folder = lab.folder(&name)?;
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
