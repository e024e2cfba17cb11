//! Real clients, each on every containerd that it works with, from the pull to the end of the image: seen to be lazy
//! from the bytes on the wire. Configurations of containerd are those of `docs/operating.md`, word by word.

mod cri;
mod ctr;
mod life;
mod nerdctl;

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{
    containerd::{Containerd, Options},
    daemon::{Daemon, LOG_LIMIT, soci},
    images::{Layer, Tar, tar::Entry},
    lab::Lab,
    machine::{binaries, ensure_debian, root, skip},
    parts,
    process::wait_until,
};

use crate::{
    image::{Stage, index, noise, stage},
    read_path::{NO_FILL, reasons},
};

/// A container's start, or a call of a client, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// What the ballast begins with.
const HELLO: &str = "from the layer";
/// The daemon's usual place.
const ROOT: &str = "/var/lib/soci-snapshotter-grpc";
const BALLAST_BYTES: usize = 16 << 20;

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    /// Debian 12's, 1.6.
    One,
    /// Debian unstable's, 2.1 or later.
    Two,
}

/// A machine that runs containers: an image behind a line, our daemon, and a containerd.
struct Node {
    containerd: Containerd,
    daemon: Daemon,
    stage: Stage,
    /// The last to go.
    lab: Lab,
}

impl Release {
    /// The folder of its programs, or nothing where they are the machine's own. A part that cannot be had is an error.
    fn binaries(self) -> Result<Option<std::path::PathBuf>> {
        match self {
            Release::One => Ok(None),
            Release::Two => parts::containerd_2().map(Some),
        }
    }
}

/// The part, or nothing after saying that it cannot be had.
fn part<T>(found: Result<T>) -> Option<T> {
    found.inspect_err(|error| skip(&format!("{error:#}"))).ok()
}

/// A static shell, a file that no test reads whole, and a small layer above.
fn layers() -> Result<Vec<Layer>> {
    static LAYERS: OnceLock<Vec<Layer>> = OnceLock::new();
    if let Some(made) = LAYERS.get() {
        return Ok(made.clone());
    }
    ensure_debian(&["busybox-static"])?;
    let busybox = fs::read("/bin/busybox")?;
    let mut shell = Tar::new([
        Entry::directory("bin"),
        Entry::file("bin/busybox", busybox).mode(0o755),
        Entry::symlink("bin/sh", "busybox"),
    ]);
    // What runc mounts on.
    for folder in ["dev", "etc", "proc", "sys", "tmp"] {
        shell = shell.with(Entry::directory(folder));
    }
    let ballast = Tar::new([Entry::file("ballast", noise(11, BALLAST_BYTES))]);
    let top = Tar::new([Entry::file("hello", format!("{HELLO}\n"))]);
    let made: Vec<_> = [shell, ballast, top].iter().map(|tar| Layer::gzip(&tar.bytes())).collect();
    Ok(LAYERS.get_or_init(|| made).clone())
}

/// Small spans: one that is asked for brings little else.
const FLAGS: &[&str] = &["--span-size", "1048576", "--min-layer-size", "0"];

impl Node {
    /// With a snapshotter `soci`, and what `more` adds to the options; nothing where a part cannot be had.
    fn new(
        name: &str,
        release: Release,
        more: impl FnOnce(&Lab, &Stage, &mut Options) -> Result<()>,
    ) -> Result<Option<Node>> {
        let Some(binaries) = part(release.binaries()) else { return Ok(None) };
        let lab = Lab::new(name)?;
        let stage = stage(&lab, layers()?, FLAGS)?;
        let daemon = Daemon::start(&lab, &format!("{}{NO_FILL}", Daemon::configuration(&lab)))?;
        let proxies = vec![("soci".to_owned(), daemon.address())];
        let mut options = Options { proxies, binaries, ..Options::default() };
        more(&lab, &stage, &mut options)?;
        // What containerd may ask about the disk is asked of the lab's.
        options.extra = options.extra.replace(ROOT, &daemon.root().to_string_lossy());
        let containerd = Containerd::start_with(&lab, options)?;
        stage.link.reset();
        Ok(Some(Node { containerd, daemon, stage, lab }))
    }

    /// As containerd comes, but for the snapshotter.
    fn plain(name: &str, release: Release) -> Result<Option<Node>> {
        Node::new(name, release, |_, _, _| Ok(()))
    }

    /// Pulls with our own client.
    fn pull_in(&self, namespace: &str, image: &str) -> Result<String> {
        let address = self.containerd.address().to_string_lossy();
        let words = ["--address", &address, "--namespace", namespace, "image", "pull", image];
        soci(&self.lab, &binaries()?, &words)
    }

    /// Every layer is lazy, and that is to be seen on the line.
    fn is_lazy(&self) -> Result<()> {
        ensure!(reasons(&self.daemon).is_empty(), "{:?}", reasons(&self.daemon));
        self.is_fetched_in_part()
    }

    /// Far less than the image has came through the line since it was last reset.
    fn is_fetched_in_part(&self) -> Result<()> {
        let all: u64 = self.stage.pushed.layers.iter().map(|layer| layer.size).sum();
        let fetched = self.stage.link.traffic().down;
        ensure!(
            fetched * 4 < all,
            "{fetched} of {all} bytes were fetched: it was not lazy: {:#?}",
            self.stage.link.exchanges()
        );
        Ok(())
    }

    /// How often the image's SOCI index was asked for: by the daemon once, and more often by clients that need not know of it.
    fn asked_for_index(&self) -> Result<usize> {
        let (digest, _) = index(self.stage.registry.host(), "app")?;
        let exchanges = self.stage.link.exchanges();
        Ok(exchanges.iter().filter(|one| one.method == "GET" && one.path.ends_with(&digest)).count())
    }

    /// Layers of which something is stored.
    fn stored(&self) -> Result<usize> {
        Ok(fs::read_dir(self.daemon.root().join("layers/sha256"))?.count())
    }

    /// Waits until nothing is stored of any layer, and of any snapshot.
    fn wait_until_empty(&self) -> Result<()> {
        let count = |path: &Path| Ok::<_, anyhow::Error>(fs::read_dir(path)?.count());
        let root = self.daemon.root();
        let (layers, snapshots) = (root.join("layers/sha256"), root.join("snapshotter/snapshots"));
        wait_until("everything is gone", LOG_LIMIT, || {
            Ok((count(&layers)? == 0 && count(&snapshots)? == 0).then_some(()))
        })
        .with_context(|| format!("{:?} layers, {:?} snapshots", count(&layers), count(&snapshots)))
    }

    /// containerd lets some time pass before it calls a snapshotter again that was not there. What it would have removed in
    /// between it removes with what comes next. It calls for a namespace that has snapshots.
    fn wait_for_calls(&self, namespace: &str) -> Result<()> {
        wait_until("containerd to call again", LIMIT, || {
            let listed = self.containerd.ctr_in(namespace, &["snapshots", "--snapshotter", "soci", "ls"]);
            Ok(listed.is_ok_and(|said| said.lines().count() > 1).then_some(()))
        })
    }
}

/// The configuration below a heading of `docs/operating.md`; the harness says itself which version it is written in.
fn documented(heading: &str) -> Result<String> {
    let page = fs::read_to_string(root().join("docs/operating.md"))?;
    let below =
        page.split_once(&format!("# {heading}\n")).with_context(|| format!("no heading {heading}"))?.1;
    let block = below.split_once("```toml\n").and_then(|(_, rest)| rest.split_once("```"));
    let block = block.with_context(|| format!("no configuration below {heading}"))?.0;
    let version = block.split_once('\n').with_context(|| format!("one line below {heading}"))?;
    ensure!(version.0.starts_with("version = "), "{block}");
    Ok(version.1.to_owned())
}
