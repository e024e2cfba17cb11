//! The Go daemon, which ours is measured against.
//!
//! One that is given in a folder (0.15) runs on our own indexes: they have its digests. Without one it is Debian unstable's
//! 0.4.1. That one knows only indexes of version 1 that its own tool has made, and pulls with that tool. It speaks to
//! registries over TLS alone, and ours does not speak TLS. So it finds index and ztocs in its own store, one for each
//! layer. They do not come over the line, which is to its advantage.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use integration::{containerd::Containerd, daemon::Daemon, lab::Lab, parts, registry::Registry};

use crate::stage::{INDEXED, PLAIN, Stage};

const START_LIMIT: Duration = Duration::from_secs(30);
const COMMAND_LIMIT: Duration = Duration::from_secs(600);

/// Which Go daemon it is, by its folder.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Reads what `soci convert` makes.
    Given(PathBuf),
    /// 0.4, with its tool.
    Debian {
        folder: PathBuf,
        /// The index that it is to use,
        index: String,
        /// and a `/var/lib` that has it.
        home: PathBuf,
    },
}

impl Peer {
    /// Debian's.
    ///
    /// # Errors
    /// As [`parts::go_soci`].
    pub fn debian() -> Result<Peer> {
        let (tool, _) = parts::go_soci()?;
        let folder = tool.parent().context("a program is in a folder")?.to_owned();
        Ok(Peer::Debian { folder, index: String::new(), home: PathBuf::new() })
    }

    pub fn name(&self) -> &'static str {
        match self {
            Peer::Given(_) => "Go",
            Peer::Debian { .. } => "Go 0.4.1",
        }
    }

    /// The image that it pulls from `host`.
    pub fn image(&self, host: &str) -> String {
        match self {
            Peer::Given(_) => format!("{host}/{INDEXED}"),
            Peer::Debian { .. } => format!("{host}/{PLAIN}"),
        }
    }

    /// Makes what it needs beside what [`Stage::publish`] has put into the registry; the same peer, which has that. It
    /// lasts as long as the lab.
    pub fn publish(&self, stage: &Stage, lab: &Lab, registry: &Registry) -> Result<Peer> {
        let Peer::Debian { folder, .. } = self else { return Ok(self.clone()) };
        let containerd = stage.containerd(lab, Vec::new())?;
        let image = self.image(registry.host());
        containerd.pull(&image, "overlayfs")?;
        // Its tool keeps what it makes in a fixed place.
        let home = lab.folder("home")?;
        let mut said = String::new();
        for words in [&["create", "--min-layer-size", "0", &image][..], &["index", "list", "--quiet"]] {
            let mut command = lab.secluded(folder.join("soci"), &home);
            command.arg("--address").arg(containerd.address()).args(["--namespace", containerd.namespace()]);
            command.args(words);
            said = lab.run(command, COMMAND_LIMIT).context("the Go tool makes an index")?;
        }
        containerd.stop();
        let index = said.split_whitespace().find(|word| word.starts_with("sha256:"));
        let index = index.with_context(|| format!("the Go tool names no index: {said}"))?;
        Ok(Peer::Debian { folder: folder.clone(), index: index.to_owned(), home })
    }

    /// Starts it in a lab: its socket and its pid.
    pub fn start(&self, lab: &Lab) -> Result<(PathBuf, u32)> {
        let folder = lab.folder("go")?;
        let socket = folder.join("s.sock");
        let program = self.folder().join("soci-snapshotter-grpc");
        fs::write(folder.join("config.toml"), Daemon::configuration(lab))?;
        let mut command = match self {
            Peer::Given(_) => lab.command(program),
            // Its own store is in a fixed place, whatever its root is.
            Peer::Debian { home, .. } => {
                let mut copy = lab.command("cp");
                copy.arg("--archive").arg(home).arg(lab.path().join("home"));
                lab.run(copy, COMMAND_LIMIT)?;
                lab.secluded_with(program, &lab.path().join("home"), &folder)?
            }
        };
        command.arg("--address").arg(&socket).arg("--root").arg(folder.join("root"));
        command.arg("--config").arg(folder.join("config.toml"));
        let process = lab.start("go", command)?;
        process.wait_until("the Go daemon", START_LIMIT, || Ok(socket.exists().then_some(())))?;
        Ok((socket, process.pid()))
    }

    /// Pulls from `host` into a containerd that has it as `soci`.
    pub fn pull(&self, stage: &Stage, lab: &Lab, containerd: &Containerd, host: &str) -> Result<()> {
        let Peer::Debian { folder, index, .. } = self else {
            return stage.pull(lab, containerd, &self.image(host));
        };
        let mut command = lab.command(folder.join("soci"));
        command.arg("--address").arg(containerd.address()).args(["--namespace", containerd.namespace()]);
        command.args(["image", "rpull", "--plain-http", "--soci-index-digest", index, &self.image(host)]);
        lab.run(command, COMMAND_LIMIT).map(drop)
    }

    fn folder(&self) -> &Path {
        match self {
            Peer::Given(folder) | Peer::Debian { folder, .. } => folder,
        }
    }
}
