//! `soci image pull`, and `ctr` with the transfer service of containerd 2.1, each with containers started by `ctr`.

use anyhow::{Result, ensure};

use super::{HELLO, Node, Release, documented};

fn run(node: &Node) -> Result<()> {
    let said = node.containerd.run(&node.stage.lazy, "soci", "c", &["/bin/busybox", "cat", "/hello"])?;
    ensure!(said.trim() == HELLO, "{said}");
    ensure!(node.daemon.prepared() == [true; 3], "{:?}", node.daemon.prepared());
    node.is_lazy()
}

/// The image goes, and everything of it.
fn remove(node: &Node) -> Result<()> {
    node.containerd.ctr(&["images", "rm", "--sync", &node.stage.lazy])?;
    node.wait_until_empty()
}

fn soci_pulls_lazily(name: &str, release: Release) -> Result<()> {
    let Some(node) = Node::plain(name, release)? else { return Ok(()) };
    let said = node.pull_in(node.containerd.namespace(), &node.stage.lazy)?;
    ensure!(said.lines().filter(|line| line.ends_with(" lazy")).count() == 3, "{said}");
    ensure!(node.asked_for_index()? == 1, "{:?}", node.stage.link.exchanges());
    run(&node)?;
    remove(&node)
}

#[test]
fn containerd_soci_image_pull_is_lazy_on_containerd_1_6() -> Result<()> {
    soci_pulls_lazily("soci1", Release::One)
}

#[test]
fn containerd_soci_image_pull_is_lazy_on_containerd_2_1() -> Result<()> {
    soci_pulls_lazily("soci2", Release::Two)
}

/// The registry has a port that containerd has noted nowhere: only with labels can this be lazy.
#[test]
fn containerd_transfer_service_pulls_lazily_on_containerd_2_1() -> Result<()> {
    let made = Node::new("transfer", Release::Two, |_, _, options| {
        options.extra = documented("The transfer service (containerd 2.1 and later)")?;
        Ok(())
    })?;
    let Some(node) = made else { return Ok(()) };
    node.containerd.pull(&node.stage.lazy, "soci")?;
    // It takes everything for this platform, so the index and its ztocs, too (seen with 2.1.9).
    ensure!(node.asked_for_index()? <= 2, "{:?}", node.stage.link.exchanges());
    run(&node)?;
    remove(&node)?;
    // containerd's own snapshotter is served as before.
    node.containerd.pull(&node.stage.plain, "overlayfs")?;
    let words = ["/bin/busybox", "cat", "/hello"];
    let said = node.containerd.run(&node.stage.plain, "overlayfs", "c2", &words)?;
    ensure!(said.trim() == HELLO, "{said}");
    Ok(())
}
