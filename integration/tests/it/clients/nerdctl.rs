//! nerdctl, which says itself which image a layer is of.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use integration::parts;

use super::{HELLO, LIMIT, Node, Release, part};
use crate::image::index;

/// A node, and nerdctl on it.
struct Desk {
    nerdctl: PathBuf,
    home: PathBuf,
    node: Node,
}

impl Desk {
    fn new(name: &str, release: Release) -> Result<Option<Desk>> {
        let Some(nerdctl) = part(parts::nerdctl()) else { return Ok(None) };
        let Some(node) = Node::plain(name, release)? else { return Ok(None) };
        let home = node.lab.folder("nerdctl")?;
        Ok(Some(Desk { nerdctl, home, node }))
    }

    fn call(&self, words: &[&str]) -> Result<String> {
        let node = &self.node;
        let mut command = node.lab.command(&self.nerdctl);
        command.arg("--address").arg(node.containerd.address());
        command.args(["--namespace", node.containerd.namespace()]).arg("--data-root").arg(&self.home);
        command.args(["--snapshotter", "soci", "--insecure-registry"]).args(words);
        node.lab.run(command, LIMIT)
    }

    /// A container, and what is to be seen of it.
    fn runs_lazily(&self, image: &str) -> Result<()> {
        let words = ["run", "--rm", "--net", "none", image, "/bin/sh", "-c", "busybox cat /hello"];
        let said = self.call(&words)?;
        ensure!(said.contains(HELLO), "{said}");
        ensure!(self.node.daemon.prepared() == [true; 3], "{:?}", self.node.daemon.prepared());
        ensure!(self.node.asked_for_index()? == 1, "{:?}", self.node.stage.link.exchanges());
        self.node.is_lazy()
    }

    /// The image goes, and everything of it.
    fn forgets(&self, image: &str) -> Result<()> {
        self.call(&["rmi", image])?;
        self.node.wait_until_empty()
    }
}

fn runs_lazily(name: &str, release: Release) -> Result<()> {
    let Some(desk) = Desk::new(name, release)? else { return Ok(()) };
    let image = &desk.node.stage.lazy;
    desk.runs_lazily(image)?;
    desk.forgets(image)
}

/// An image that does not say that it has an index: the client does.
fn is_told_the_index(name: &str, release: Release) -> Result<()> {
    let Some(desk) = Desk::new(name, release)? else { return Ok(()) };
    let image = &desk.node.stage.plain;
    let (digest, _) = index(desk.node.stage.registry.host(), "app")?;
    desk.call(&["pull", "--soci-index-digest", &digest, image])?;
    desk.runs_lazily(image)?;
    desk.forgets(image)
}

#[test]
fn containerd_nerdctl_starts_lazily_on_containerd_1_6() -> Result<()> {
    runs_lazily("nerdctl1", Release::One)
}

#[test]
fn containerd_nerdctl_starts_lazily_on_containerd_2_1() -> Result<()> {
    runs_lazily("nerdctl2", Release::Two)
}

#[test]
fn containerd_nerdctl_names_the_index_of_an_image_on_containerd_1_6() -> Result<()> {
    is_told_the_index("named1", Release::One)
}

#[test]
fn containerd_nerdctl_names_the_index_of_an_image_on_containerd_2_1() -> Result<()> {
    is_told_the_index("named2", Release::Two)
}
