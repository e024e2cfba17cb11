//! The real parts of a measurement: the product as it is shipped, and the newer containerd if it can be had. An image is in
//! a registry with and without its index. A daemon runs with a containerd that uses it.

use std::path::PathBuf;

use anyhow::Result;
use integration::{
    containerd::{self, Containerd},
    daemon::{self, Daemon},
    images::{Image, push_image},
    lab::Lab,
    machine::{self, Binaries, Profile},
    parts,
    registry::Registry,
};

/// Where [`Stage::publish`] puts an image without its index, and with it.
pub const PLAIN: &str = "app:plain";
pub const INDEXED: &str = "app:soci";

/// Daemons that fetch nothing in the background.
pub const NO_FILL: &str = "[fill]\nenable = false\n";

/// What all measurements share.
#[derive(Debug)]
pub struct Stage {
    pub binaries: Binaries,
    /// Newer than Debian's.
    containerd: Option<PathBuf>,
}

impl Stage {
    pub fn new() -> Result<Stage> {
        machine::ensure_debian(&["containerd", "runc", "docker-registry", "fuse3", "tar", "gzip"])?;
        let binaries = machine::build(Profile::Release)?;
        let containerd = parts::containerd_2()
            .inspect_err(|e| machine::say(&format!("with Debian's containerd, because newer: {e:#}")))
            .ok();
        Ok(Stage { binaries, containerd })
    }

    /// A registry with an image, as it is and with an index that has a ztoc of each layer that is large enough.
    pub fn publish(&self, lab: &Lab, image: &Image, min_layer_size: u64) -> Result<Registry> {
        let registry = Registry::start(lab)?;
        push_image(registry.host(), PLAIN, image)?;
        let at = |name| format!("docker://{}/{name}", registry.host());
        let least = min_layer_size.to_string();
        let words = ["convert", "--min-layer-size", &least, &at(PLAIN), &at(INDEXED)];
        daemon::soci(lab, &self.binaries, &words)?;
        Ok(registry)
    }

    /// A containerd with these snapshotters beside its own: name and socket.
    pub fn containerd(&self, lab: &Lab, proxies: Vec<(String, PathBuf)>) -> Result<Containerd> {
        let binaries = self.containerd.clone();
        Containerd::start_with(lab, containerd::Options { proxies, binaries, ..Default::default() })
    }

    /// The daemon of this workspace, with `configuration` added to the least needed, and a containerd that has it as `soci`.
    pub fn soci_daemon(&self, lab: &Lab, configuration: &str) -> Result<(Daemon, Containerd)> {
        let text = format!("{}{configuration}", Daemon::configuration(lab));
        let daemon = Daemon::start_from(lab, &text, self.binaries.clone())?;
        let containerd = self.containerd(lab, vec![("soci".to_owned(), daemon.address())])?;
        Ok((daemon, containerd))
    }

    /// Pulls an image through the daemon and containerd that [`Stage::soci_daemon`] started.
    pub fn pull(&self, lab: &Lab, containerd: &Containerd, reference: &str) -> Result<()> {
        daemon::pull(lab, &self.binaries, containerd, reference).map(drop)
    }
}
