//! Clients other than our own, with newer releases than Debian 12 has: seen to be lazy from the bytes on the wire.

use anyhow::{Result, ensure};
use integration::{
    containerd::{Containerd, Options},
    daemon::Daemon,
    lab::Lab,
    machine::skip,
    parts,
};

use crate::{
    image::{noise, stage},
    read_path::{NO_FILL, reasons},
};
use integration::images::{Layer, Tar, tar::Entry};

/// A static shell and a file that nobody reads: what is fetched of it tells lazy from eager.
fn shell_and_ballast() -> Result<Vec<Layer>> {
    let busybox = std::fs::read("/bin/busybox")?;
    let shell = Tar::new([
        Entry::directory("bin"),
        Entry::file("bin/busybox", busybox).mode(0o755),
        Entry::symlink("bin/sh", "busybox"),
        Entry::file("hello", b"from the layer\n"),
    ]);
    let ballast = Tar::new([Entry::file("ballast", noise(11, 20 << 20))]);
    Ok(vec![Layer::gzip(&shell.bytes()), Layer::gzip(&ballast.bytes())])
}

#[test]
fn containerd_nerdctl_starts_lazily_on_containerd_2() -> Result<()> {
    let (binaries, nerdctl) = match (parts::containerd_2(), parts::nerdctl()) {
        (Ok(binaries), Ok(nerdctl)) => (binaries, nerdctl),
        (Err(error), _) | (_, Err(error)) => {
            skip(&format!("nerdctl on containerd 2: {error:#}"));
            return Ok(());
        }
    };
    integration::machine::ensure_debian(&["busybox-static"])?;
    let lab = Lab::new("nerdctl")?;
    let stage = stage(&lab, shell_and_ballast()?, &["--min-layer-size", "0"])?;
    let daemon = Daemon::start(&lab, &format!("{}{NO_FILL}", Daemon::configuration(&lab)))?;
    let proxies = vec![("soci".to_owned(), daemon.address())];
    let options = Options { proxies, binaries: Some(binaries), ..Options::default() };
    let containerd = Containerd::start_with(&lab, options)?;
    stage.link.reset();
    let mut command = lab.command(&nerdctl);
    command.arg("--address").arg(containerd.address()).args(["--namespace", containerd.namespace()]);
    command.arg("--data-root").arg(lab.folder("nerdctl")?).args([
        "--snapshotter",
        "soci",
        "--insecure-registry",
    ]);
    command.args(["run", "--rm", "--net", "none", &stage.lazy, "/bin/sh", "-c", "busybox cat /hello"]);
    let said = lab.run(command, std::time::Duration::from_secs(120))?;
    ensure!(said.contains("from the layer"), "{said}");
    let all: u64 = stage.pushed.layers.iter().map(|layer| layer.size).sum();
    let fetched = stage.link.traffic().down;
    ensure!(fetched * 4 < all, "{fetched} of {all} bytes were fetched");
    ensure!(reasons(&daemon).is_empty(), "{:?}", reasons(&daemon));
    Ok(())
}
