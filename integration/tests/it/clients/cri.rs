//! CRI, as the kubelet speaks it, by way of crictl: pods with the host's network, from the pull to the end of the image.
//! The sandbox's own image comes through the snapshotter, too, converted or not.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::soci,
    images::{Image, push_image},
    machine::binaries,
    parts,
    process::wait_until,
};
use serde_json::json;

use super::{HELLO, LIMIT, Node, Release, documented, layers, part};
use crate::read_path::reasons;

/// Whether the image of sandboxes has an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Plain,
    Converted,
}

/// A node for pods, and what it is spoken with.
struct Cluster {
    crictl: PathBuf,
    node: Node,
    pause: String,
}

impl Cluster {
    /// Configured as `heading` of the documentation has it.
    fn new(name: &str, release: Release, pause: Pause, heading: &str) -> Result<Option<Cluster>> {
        let Some(crictl) = part(parts::crictl()) else { return Ok(None) };
        let mut image = String::new();
        let node = Node::new(name, release, |lab, stage, options| {
            let host = stage.registry.host();
            // Of its own layer, so that nothing of it is there already.
            let shell = vec![layers()?.swap_remove(0)];
            let program = Image::new(shell).command(&["/bin/busybox", "sleep", "1000000"]);
            push_image(host, "pause:plain", &program)?;
            let (from, to) = (format!("docker://{host}/pause:plain"), format!("docker://{host}/pause:soci"));
            soci(lab, &binaries()?, &["convert", "--min-layer-size", "0", &from, &to])?;
            let tag = if pause == Pause::Converted { "soci" } else { "plain" };
            image = format!("{}/pause:{tag}", stage.link.host());
            options.cri = Some(image.clone());
            options.extra = documented(heading)?;
            Ok(())
        })?;
        let Some(node) = node else { return Ok(None) };
        let address = format!("unix://{}", node.containerd.address().display());
        let text = format!("runtime-endpoint: {address}\nimage-endpoint: {address}\ntimeout: 60\n");
        fs::write(node.lab.path().join("crictl.yaml"), text)?;
        Ok(Some(Cluster { crictl, node, pause: image }))
    }

    fn call(&self, words: &[&str]) -> Result<String> {
        let lab = &self.node.lab;
        let mut command = lab.command(&self.crictl);
        command.arg("--config").arg(lab.path().join("crictl.yaml")).args(words);
        lab.run(command, LIMIT).map(|said| said.trim().to_owned())
    }

    fn images(&self) -> Result<BTreeSet<String>> {
        Ok(self.call(&["images", "-q"])?.lines().map(str::to_owned).collect())
    }

    fn write(&self, name: &str, document: &serde_json::Value) -> Result<String> {
        let path = self.node.lab.path().join(name);
        fs::write(&path, document.to_string())?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// A pod and a container in it that says hello and stays; their names.
    fn start(&self) -> Result<(String, String)> {
        let pod = json!({
            "metadata": {"name": "pod", "namespace": "default", "uid": "1", "attempt": 1},
            "log_directory": self.node.lab.folder("podlogs")?,
            "linux": {
                "cgroup_parent": format!("/{}", self.node.lab.word()),
                // The node's own network.
                "security_context": {"namespace_options": {"network": 2}},
            },
        });
        let container = json!({
            "metadata": {"name": "app", "attempt": 1},
            "image": {"image": self.node.stage.lazy},
            "command": ["/bin/sh", "-c", "busybox cat /hello; exec busybox sleep 1000000"],
            "log_path": "app.log",
            "linux": {"security_context": {"namespace_options": {"network": 2}}},
        });
        let (pod, container) = (self.write("pod.json", &pod)?, self.write("container.json", &container)?);
        let sandbox = self.call(&["runp", &pod]).context("run a sandbox")?;
        let id = self.call(&["create", &sandbox, &container, &pod]).context("create a container")?;
        self.call(&["start", &id])?;
        Ok((sandbox, id))
    }
}

/// A pod's life.
fn runs_lazily(cluster: &Cluster, pause: Pause) -> Result<()> {
    let (node, image) = (&cluster.node, &cluster.node.stage.lazy);
    cluster.call(&["pull", image])?;
    ensure!(node.daemon.prepared() == [true; 3], "{:?}", node.daemon.prepared());
    node.is_lazy()?;
    cluster.call(&["imagefsinfo"]).context("what the kubelet asks of the disk")?;
    let (sandbox, id) = cluster.start()?;
    wait_until("what the container says", LIMIT, || {
        Ok(cluster.call(&["logs", &id])?.contains(HELLO).then_some(()))
    })?;
    let said = cluster.call(&["exec", "--sync", &id, "/bin/busybox", "cat", "/hello"])?;
    ensure!(said == HELLO, "{said}");
    if pause == Pause::Converted {
        node.is_lazy()?;
    } else {
        ensure!(
            reasons(&node.daemon).iter().all(|reason| reason == "no_index"),
            "{:?}",
            reasons(&node.daemon)
        );
    }
    let read = "busybox dd if=/ballast bs=64k skip=100 count=1 2>/dev/null | busybox wc -c";
    let reads = || cluster.call(&["exec", "--sync", &id, "/bin/sh", "-c", read]);
    // Neither restart is anything to a pod, nor to what is known of its image.
    let images = cluster.images()?;
    node.containerd.restart()?;
    wait_until("CRI to know its images again", LIMIT, || {
        Ok((cluster.images().is_ok_and(|now| now == images)).then_some(()))
    })
    .with_context(|| format!("{:?}, not {images:?}", cluster.images()))?;
    node.daemon.restart()?;
    let said = reads()?;
    ensure!(said == "65536", "{said}");
    node.wait_for_calls("k8s.io")?;
    for words in
        [["stop", "--timeout", "0", &id].as_slice(), &["rm", &id], &["stopp", &sandbox], &["rmp", &sandbox]]
    {
        cluster.call(words).with_context(|| format!("crictl {}", words[0]))?;
    }
    cluster.call(&["rmi", image])?;
    cluster.call(&["rmi", &cluster.pause])?;
    ensure!(cluster.images()?.is_empty(), "{:?}", cluster.images());
    node.wait_until_empty()
}

fn flow(name: &str, release: Release, pause: Pause, heading: &str) -> Result<()> {
    match Cluster::new(name, release, pause, heading)? {
        Some(cluster) => runs_lazily(&cluster, pause),
        None => Ok(()),
    }
}

const ONE: &str = "Kubernetes, with containerd 1.6 and 1.7";
const TWO: &str = "Kubernetes, with containerd 2";
const TRANSFER_CRI: &str = "Kubernetes, with the transfer service (containerd 2.1 and later)";

#[test]
fn containerd_cri_pods_are_lazy_on_containerd_1_6() -> Result<()> {
    flow("cri1", Release::One, Pause::Plain, ONE)
}

#[test]
fn containerd_cri_pods_with_a_converted_sandbox_are_lazy_on_containerd_1_6() -> Result<()> {
    flow("cri1pause", Release::One, Pause::Converted, ONE)
}

#[test]
fn containerd_cri_pods_are_lazy_on_containerd_2_1() -> Result<()> {
    flow("cri2", Release::Two, Pause::Plain, TWO)
}

/// Without `disable_snapshot_annotations` CRI of 2.1 has the transfer service pull.
#[test]
fn containerd_cri_pods_are_lazy_through_the_transfer_service_of_containerd_2_1() -> Result<()> {
    flow("cri2transfer", Release::Two, Pause::Converted, TRANSFER_CRI)
}
