//! What becomes of images and containers in time: restarts, two namespaces, images that share layers, collections.

use anyhow::{Context, Result, ensure};
use integration::{
    daemon::soci,
    images::{Image, Layer, Tar, push_image, tar::Entry},
    machine::binaries,
};

use super::{BALLAST_BYTES, HELLO, LIMIT, Node, Release, documented, layers};
use crate::image::noise;

/// A node, and a second image in its registry: two layers of the first one, and one of its own.
struct Town {
    node: Node,
    other: String,
    /// Namespaces of containerd.
    here: String,
    there: String,
}

impl Town {
    fn new(name: &str, release: Release) -> Result<Option<Town>> {
        let mut other = String::new();
        let node = Node::new(name, release, |lab, stage, options| {
            let mut layers = layers()?;
            layers.pop();
            layers.push(Layer::gzip(&Tar::new([Entry::file("hello", b"from the other image\n")]).bytes()));
            let host = stage.registry.host();
            push_image(host, "other:plain", &Image::new(layers))?;
            let (from, to) = (format!("docker://{host}/other:plain"), format!("docker://{host}/other:soci"));
            soci(lab, &binaries()?, &["convert", "--min-layer-size", "0", &from, &to])?;
            other = format!("{}/other:soci", stage.link.host());
            if release == Release::Two {
                options.extra = documented("The transfer service (containerd 2.1 and later)")?;
            }
            Ok(())
        })?;
        let Some(node) = node else { return Ok(None) };
        let here = node.containerd.namespace().to_owned();
        let there = format!("{here}-there");
        Ok(Some(Town { node, other, here, there }))
    }

    /// By the client that is lazy on this release.
    fn pull(&self, release: Release, namespace: &str, image: &str) -> Result<()> {
        match release {
            Release::One => self.node.pull_in(namespace, image).map(drop),
            Release::Two => {
                let words = ["images", "pull", "--plain-http", "--snapshotter", "soci", image];
                self.node.containerd.ctr_in(namespace, &words).map(drop)
            }
        }
        .with_context(|| format!("pull {image} in {namespace}"))
    }

    /// Starts a container that stays.
    fn start(&self, namespace: &str, image: &str, id: &str) -> Result<()> {
        let words = [
            "run",
            "-d",
            "--net-host",
            "--snapshotter",
            "soci",
            image,
            id,
            "/bin/busybox",
            "sleep",
            "100000",
        ];
        self.node.containerd.ctr_in(namespace, &words).map(drop)
    }

    /// Runs something in a container.
    fn tell(&self, namespace: &str, id: &str, words: &[&str]) -> Result<String> {
        let all = [&["tasks", "exec", "--exec-id", "told", id, "/bin/busybox"], words].concat();
        self.node.containerd.ctr_in(namespace, &all).with_context(|| format!("{words:?} in {id}"))
    }

    /// All of the ballast is right, as a container sees it.
    fn ballast(&self, namespace: &str, id: &str) -> Result<()> {
        let said = self.tell(namespace, id, &["sha256sum", "/ballast"])?;
        let right = oci::Digest::sha256(&noise(11, BALLAST_BYTES));
        ensure!(said.starts_with(right.hex().as_str()), "{said} instead of {right}");
        Ok(())
    }

    /// The container goes; its snapshot with the next collection.
    fn end(&self, namespace: &str, id: &str) -> Result<()> {
        self.node.containerd.ctr_in(namespace, &["tasks", "rm", "-f", id])?;
        self.node.containerd.ctr_in(namespace, &["containers", "rm", id]).map(drop)
    }

    /// The image goes, and a collection runs to its end.
    fn forget(&self, namespace: &str, image: &str) -> Result<()> {
        self.node.containerd.ctr_in(namespace, &["images", "rm", "--sync", image]).map(drop)
    }
}

/// Whatever is restarted and removed, a container goes on, and what nothing needs any more goes.
fn restarts(name: &str, release: Release) -> Result<()> {
    let Some(town) = Town::new(name, release)? else { return Ok(()) };
    let (node, here, image) = (&town.node, &town.here, &town.node.stage.lazy);
    town.pull(release, here, image)?;
    town.start(here, image, "one")?;
    node.containerd.restart()?;
    ensure!(town.tell(here, "one", &["cat", "/hello"])?.trim() == HELLO);
    node.is_lazy()?;
    node.daemon.restart()?;
    node.wait_for_calls(here)?;
    // The image goes and the container stays, with bytes that were never asked for.
    town.forget(here, image)?;
    node.is_lazy()?;
    town.ballast(here, "one")?;
    ensure!(node.stored()? == 3, "{}", node.stored()?);
    town.end(here, "one")?;
    // Any image's end is a reason for a collection.
    town.pull(release, here, &town.other)?;
    town.forget(here, &town.other)?;
    node.wait_until_empty()?;
    ensure!(node.daemon.prepared().iter().all(|lazy| *lazy), "{:?}", node.daemon.logs());
    Ok(())
}

/// Two images of two namespaces with layers in common: each is stored once, as long as a namespace needs it.
fn shared(name: &str, release: Release) -> Result<()> {
    let Some(town) = Town::new(name, release)? else { return Ok(()) };
    let (node, here, there, image, other) =
        (&town.node, &town.here, &town.there, &town.node.stage.lazy, &town.other);
    for (namespace, image, stored) in
        [(here, image, 3), (there, image, 3), (here, other, 4), (there, other, 4)]
    {
        town.pull(release, namespace, image)?;
        ensure!(node.stored()? == stored, "{} layers after {image} in {namespace}", node.stored()?);
    }
    town.start(here, image, "one")?;
    town.start(there, image, "two")?;
    town.start(here, other, "three")?;
    node.is_lazy()?;
    town.ballast(here, "one")?;
    // It has all been fetched, and is not fetched again.
    node.stage.link.reset();
    town.ballast(there, "two")?;
    town.ballast(here, "three")?;
    node.is_lazy()?;
    town.end(here, "one")?;
    town.forget(here, image)?;
    ensure!(node.stored()? == 4, "{}", node.stored()?);
    town.start(there, image, "four")?;
    town.end(there, "two")?;
    town.end(there, "four")?;
    town.forget(there, image)?;
    town.forget(there, other)?;
    integration::process::wait_until("the end of one layer", LIMIT, || {
        Ok((node.stored()? == 3).then_some(()))
    })?;
    let said = town.tell(here, "three", &["cat", "/hello"])?;
    ensure!(said.trim() == "from the other image", "{said}");
    town.ballast(here, "three")?;
    town.end(here, "three")?;
    town.forget(here, other)?;
    node.wait_until_empty()
}

#[test]
fn containerd_containers_outlive_restarts_and_their_image_on_containerd_1_6() -> Result<()> {
    restarts("life1", Release::One)
}

#[test]
fn containerd_containers_outlive_restarts_and_their_image_on_containerd_2_1() -> Result<()> {
    restarts("life2", Release::Two)
}

#[test]
fn containerd_layers_of_two_images_in_two_namespaces_are_stored_once_on_containerd_1_6() -> Result<()> {
    shared("shared1", Release::One)
}

#[test]
fn containerd_layers_of_two_images_in_two_namespaces_are_stored_once_on_containerd_2_1() -> Result<()> {
    shared("shared2", Release::Two)
}
