//! nerdctl, which says itself which image a layer is of.

use anyhow::{Result, ensure};
use integration::parts;

use super::{HELLO, LIMIT, Node, Release, part};

fn runs_lazily(name: &str, release: Release) -> Result<()> {
    let Some(nerdctl) = part(parts::nerdctl()) else { return Ok(()) };
    let Some(node) = Node::plain(name, release)? else { return Ok(()) };
    let home = node.lab.folder("nerdctl")?;
    let call = |words: &[&str]| {
        let mut command = node.lab.command(&nerdctl);
        command.arg("--address").arg(node.containerd.address());
        command.args(["--namespace", node.containerd.namespace()]).arg("--data-root").arg(&home);
        command.args(["--snapshotter", "soci", "--insecure-registry"]).args(words);
        node.lab.run(command, LIMIT)
    };
    let image = &node.stage.lazy;
    let said = call(&["run", "--rm", "--net", "none", image, "/bin/sh", "-c", "busybox cat /hello"])?;
    ensure!(said.contains(HELLO), "{said}");
    ensure!(node.daemon.prepared() == [true; 3], "{:?}", node.daemon.prepared());
    node.is_lazy()?;
    call(&["rmi", image])?;
    node.wait_until_empty()
}

#[test]
fn containerd_nerdctl_starts_lazily_on_containerd_1_6() -> Result<()> {
    runs_lazily("nerdctl1", Release::One)
}

#[test]
fn containerd_nerdctl_starts_lazily_on_containerd_2_1() -> Result<()> {
    runs_lazily("nerdctl2", Release::Two)
}
