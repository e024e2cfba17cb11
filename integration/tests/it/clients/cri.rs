//! CRI, as the kubelet speaks it, by way of crictl: pods with the host's network, from the pull to the end of the image.
//! The sandbox's own image comes through the snapshotter, too, converted or not.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::soci,
    images::{Image, Layer, Tar, push_image, tar::Entry},
    machine::binaries,
    parts,
    process::wait_until,
};
use serde_json::json;

use super::{HELLO, LIMIT, Node, Release, documented, part};
use crate::read_path::reasons;

/// Headings of the documentation.
const ONE: &str = "Kubernetes, with containerd 1.6 and 1.7";
const TWO: &str = "Kubernetes, with containerd 2";
const TRANSFER: &str = "Kubernetes, with the transfer service (containerd 2.1 and later)";

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
    /// Pulls are the transfer service's.
    transfers: bool,
}

impl Cluster {
    /// Configured as `heading` of the documentation has it.
    fn new(name: &str, release: Release, pause: Pause, heading: &str) -> Result<Option<Cluster>> {
        let Some(crictl) = part(parts::crictl()) else { return Ok(None) };
        let mut image = String::new();
        let node = Node::new(name, release, |lab, stage, options| {
            let host = stage.registry.host();
            // A layer that no other image has: nothing of it is there already.
            let program = Tar::new([
                Entry::file("busybox", fs::read("/bin/busybox")?).mode(0o755),
                Entry::directory("dev"),
                Entry::directory("proc"),
                Entry::directory("sys"),
            ]);
            let program = Image::new(vec![Layer::gzip(&program.bytes())]);
            push_image(host, "pause:plain", &program.command(&["/busybox", "sleep", "1000000"]))?;
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
        Ok(Some(Cluster { crictl, node, pause: image, transfers: heading == TRANSFER }))
    }

    fn call(&self, words: &[&str]) -> Result<String> {
        let lab = &self.node.lab;
        let mut command = lab.command(&self.crictl);
        command.arg("--config").arg(lab.path().join("crictl.yaml")).args(words);
        lab.run(command, LIMIT).map(|said| said.trim().to_owned())
    }

    /// The image, lazily.
    fn pull(&self) -> Result<()> {
        self.call(&["pull", &self.node.stage.lazy])?;
        let prepared = self.node.daemon.prepared();
        ensure!(prepared == [true; 3], "{prepared:?}");
        self.node.is_lazy()
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

    fn end(&self, sandbox: &str, id: &str) -> Result<()> {
        let words: [&[&str]; 4] =
            [&["stop", "--timeout", "0", id], &["rm", id], &["stopp", sandbox], &["rmp", sandbox]];
        words
            .iter()
            .try_for_each(|words| self.call(words).with_context(|| format!("crictl {}", words[0])).map(drop))
    }
}

/// A pod's life.
fn runs_lazily(cluster: &Cluster, pause: Pause) -> Result<()> {
    let (node, image) = (&cluster.node, &cluster.node.stage.lazy);
    cluster.pull()?;
    let asked = node.asked_for_index()?;
    ensure!(asked == 1 || cluster.transfers, "{:?}", node.stage.link.exchanges());
    cluster.call(&["imagefsinfo"]).context("what the kubelet asks of the disk")?;
    let (sandbox, id) = cluster.start()?;
    wait_until("what the container says", LIMIT, || {
        Ok(cluster.call(&["logs", &id])?.contains(HELLO).then_some(()))
    })?;
    let said = cluster.call(&["exec", "--sync", &id, "/bin/busybox", "cat", "/hello"])?;
    ensure!(said == HELLO, "{said}");
    // What has no index is containerd's.
    let (whole, expected): (&[&str], _) = match pause {
        Pause::Plain => (&["no_index"], [true, true, true, false]),
        Pause::Converted => (&[], [true; 4]),
    };
    ensure!(reasons(&node.daemon) == whole && node.daemon.prepared() == expected, "{:?}", node.daemon.logs());
    node.is_fetched_in_part()?;
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
    cluster.end(&sandbox, &id)?;
    cluster.call(&["rmi", image])?;
    cluster.call(&["rmi", &cluster.pause])?;
    ensure!(cluster.images()?.is_empty(), "{:?}", cluster.images());
    node.wait_until_empty()
}

/// A daemon that is not there when containerd starts, of which CRI of 1.6 draws the conclusion that its images are not
/// there either. The kubelet pulls them again: nothing comes twice, and pods start.
fn is_missed(cluster: &Cluster) -> Result<()> {
    let (node, image) = (&cluster.node, &cluster.node.stage.lazy);
    cluster.pull()?;
    node.daemon.stop();
    node.containerd.restart()?;
    node.daemon.start_again()?;
    node.wait_for_calls("k8s.io")?;
    node.stage.link.reset();
    cluster.call(&["pull", image])?;
    cluster.call(&["inspecti", image])?;
    let fetched = node.stage.link.traffic().down;
    ensure!(fetched < 50_000, "{fetched} bytes: {:?}", node.stage.link.exchanges());
    ensure!(node.daemon.prepared() == [true; 3], "{:?}", node.daemon.prepared());
    let (sandbox, id) = cluster.start()?;
    let said = cluster.call(&["exec", "--sync", &id, "/bin/busybox", "cat", "/hello"])?;
    ensure!(said == HELLO, "{said}");
    cluster.end(&sandbox, &id)
}

fn flow(name: &str, release: Release, pause: Pause, heading: &str) -> Result<()> {
    match Cluster::new(name, release, pause, heading)? {
        Some(cluster) => runs_lazily(&cluster, pause),
        None => Ok(()),
    }
}

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
    flow("cri2transfer", Release::Two, Pause::Converted, TRANSFER)
}

#[test]
fn containerd_cri_images_survive_a_start_without_the_daemon_on_containerd_1_6() -> Result<()> {
    match Cluster::new("missed1", Release::One, Pause::Converted, ONE)? {
        Some(cluster) => is_missed(&cluster),
        None => Ok(()),
    }
}

#[test]
fn containerd_cri_images_survive_a_start_without_the_daemon_on_containerd_2_1() -> Result<()> {
    match Cluster::new("missed2", Release::Two, Pause::Converted, TWO)? {
        Some(cluster) => is_missed(&cluster),
        None => Ok(()),
    }
}
