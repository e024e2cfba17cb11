//! A converted image through the daemon against the plain unpacking of the same layers by containerd itself.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use integration::{
    containerd::Containerd,
    daemon::{self, Daemon, soci, with_containerd},
    images::{Image, Layer, Tar, debian_python_image, push_image, tar::Entry},
    lab::Lab,
    link::Link,
    machine::{binaries, fixtures},
    reference::{Unpacked, mount},
    registry::Registry,
    tree::{Skip, Tree, assert_same, walk},
};
use serde_json::Value;

use crate::image::{SMALL, index, stage, zoo};

pub(crate) const NO_FILL: &str = "[fill]\nenable = false\n";
/// What has no index is brought whole.
const STORE: &str = "[unindexed]\nmode = \"store\"\n";

/// Pulls with our own client, through our daemon; what it said of each layer.
pub(crate) fn pull(lab: &Lab, containerd: &Containerd, image: &str) -> Result<Vec<String>> {
    let said = daemon::pull(lab, &binaries()?, containerd, image)?;
    Ok(said.lines().filter(|line| line.starts_with("layer ")).map(str::to_owned).collect())
}

/// The reason of each layer that was not lazy, in the order of the layers.
pub(crate) fn reasons(daemon: &Daemon) -> Vec<String> {
    let logs = daemon.logs();
    let shown = logs.iter().filter(|line| line.get("remote-snapshot-prepared").is_some());
    shown.filter_map(|line| line.get("reason").and_then(Value::as_str)).map(str::to_owned).collect()
}

/// Directories that a layer implies and whose times are therefore the time of the unpacking.
fn implied(paths: &[&str]) -> Skip {
    let mtimes: BTreeSet<Vec<u8>> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    Skip { top: true, mtimes, directory_mtimes: false }
}

fn lazy_tree(lab: &Lab, containerd: &Containerd) -> Result<Tree> {
    let mounted = mount(lab, containerd, "soci")?;
    walk(mounted.path())
}

#[test]
fn containerd_every_entry_of_a_converted_image_is_as_unpacked() -> Result<()> {
    let lab = Lab::new("entries")?;
    let stage = stage(&lab, zoo(), SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    let layers = pull(&lab, &containerd, &stage.lazy)?;
    ensure!(layers.iter().all(|line| line.ends_with(" lazy")), "{layers:?}");
    ensure!(reasons(&daemon).is_empty(), "{:?}", reasons(&daemon));
    let truth = Unpacked::image(&lab, &containerd, &stage.plain)?.tree()?;
    let found = lazy_tree(&lab, &containerd)?;
    let times = ["usr", "usr/bin", "gone", "data", "srv", "srv/deep", "srv/deep/er", "dev", "run", "dark"];
    let long = format!("usr/{}", "n".repeat(180));
    let mut skip = implied(&times);
    skip.mtimes.insert(long.into_bytes());
    assert_same(&truth, &found, &skip);
    let tool = found.get("usr/bin/tool").expect("it is there");
    ensure!(tool.links.len() == 2 && tool.mode == 0o4755, "{tool:?}");
    ensure!(found.get("gone/file").is_none() && found.get("dark/file").is_none());
    let roots = [truth.get(""), found.get("")].map(|root| root.map(|root| (root.mode, root.uid, root.gid)));
    ensure!(roots == [Some((0o755, 0, 0)); 2], "{roots:?}");
    Ok(())
}

#[test]
fn containerd_a_layer_noted_to_have_no_xattrs_is_as_unpacked() -> Result<()> {
    let lab = Lab::new("noxattrs")?;
    let words = [SMALL, &["--optimizations", "xattr"]].concat();
    let stage = stage(&lab, zoo(), &words)?;
    let (_, ztocs) = index(stage.registry.host(), "app")?;
    let noted: Vec<bool> =
        ztocs.iter().map(|ztoc| ztoc["annotations"]["com.amazon.soci.disable-xattrs"] == "true").collect();
    // The first layer has some, the second an opaque directory.
    ensure!(noted == [false, false, true], "{ztocs:?}");
    let (_daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    let layers = pull(&lab, &containerd, &stage.lazy)?;
    ensure!(layers.iter().all(|line| line.ends_with(" lazy")), "{layers:?}");
    let truth = Unpacked::image(&lab, &containerd, &stage.plain)?.tree()?;
    ensure!(truth.entries.values().any(|entry| !entry.xattrs.is_empty()), "there is something to compare");
    let skip = Skip { top: true, directory_mtimes: true, ..Skip::default() };
    assert_same(&truth, &lazy_tree(&lab, &containerd)?, &skip);
    Ok(())
}

#[test]
fn containerd_layers_without_a_ztoc_are_streamed_and_as_unpacked() -> Result<()> {
    let lab = Lab::new("sparse")?;
    // Only the first layer is as large as that; the plain one and the small one are not.
    let stage = stage(&lab, zoo(), &["--span-size", "65536", "--min-layer-size", "600000"])?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    pull(&lab, &containerd, &stage.lazy)?;
    let expected = if stage.pushed.layers[1].size < 600_000 { 2 } else { 1 };
    ensure!(reasons(&daemon) == vec!["no_ztoc"; expected], "{:?}", reasons(&daemon));
    let truth = Unpacked::image(&lab, &containerd, &stage.plain)?.tree()?;
    let skip = Skip { top: true, directory_mtimes: true, ..Skip::default() };
    assert_same(&truth, &lazy_tree(&lab, &containerd)?, &skip);
    Ok(())
}

#[test]
fn containerd_what_was_shown_is_shown_again_without_the_registry() -> Result<()> {
    let lab = Lab::new("again")?;
    let stage = stage(&lab, zoo(), SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, "")?;
    pull(&lab, &containerd, &stage.lazy)?;
    let before = lazy_tree(&lab, &containerd)?;
    stage.link.cut();
    daemon.restart()?;
    containerd.restart()?; // it waits ever longer for a socket that was gone; a new one asks at once
    let after = lazy_tree(&lab, &containerd)?;
    assert_same(&before, &after, &Skip { top: true, ..Skip::default() });
    Ok(())
}

#[test]
fn containerd_an_image_that_is_removed_leaves_nothing() -> Result<()> {
    let lab = Lab::new("removed")?;
    let stage = stage(&lab, zoo(), SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, "")?;
    pull(&lab, &containerd, &stage.lazy)?;
    let layers = daemon.root().join("layers/sha256");
    ensure!(std::fs::read_dir(&layers)?.count() == 3);
    containerd.ctr(&["image", "rm", "--sync", &stage.lazy])?;
    let gone = |folder: &std::path::Path| {
        integration::process::wait_until("everything is gone", daemon::LOG_LIMIT, || {
            Ok((std::fs::read_dir(folder)?.count() == 0).then_some(()))
        })
    };
    gone(&layers)?;
    gone(&daemon.root().join("snapshotter/snapshots"))?;
    // And it can be had again.
    let layers = pull(&lab, &containerd, &stage.lazy)?;
    ensure!(layers.iter().all(|line| line.ends_with(" lazy")), "{layers:?}");
    Ok(())
}

#[test]
fn containerd_what_a_pull_brought_outlives_the_collector() -> Result<()> {
    let lab = Lab::new("kept")?;
    let stage = stage(&lab, zoo(), SMALL)?;
    let (_daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    // Now the manifest and the configuration are there before our own client comes.
    containerd.pull(&stage.lazy, "overlayfs")?;
    let layers = pull(&lab, &containerd, &stage.lazy)?;
    ensure!(layers.iter().all(|line| line.ends_with(" lazy")), "{layers:?}");
    // Removing anything else with --sync runs the collector to its end.
    containerd.ctr(&["image", "tag", &stage.lazy, "other:image"])?;
    containerd.ctr(&["image", "rm", "--sync", "other:image"])?;
    let again = pull(&lab, &containerd, &stage.lazy)?;
    ensure!(again.iter().all(|line| line.ends_with(" exists")), "{again:?}");
    Ok(())
}

#[test]
fn containerd_a_folder_below_a_link_is_left_to_containerd() -> Result<()> {
    let lab = Lab::new("link")?;
    let base = Tar::new([
        Entry::directory("usr/lib"),
        Entry::symlink("lib", "usr/lib"),
        Entry::file("usr/lib/a", b"a"),
    ]);
    // As an unpacking would have it this goes to usr/lib/deep, which no layer of its own can show.
    let above = Tar::new([Entry::file("lib/deep/b", b"b")]);
    let layers = vec![Layer::gzip(&base.bytes()), Layer::gzip(&above.bytes())];
    let stage = stage(&lab, layers, SMALL)?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    let layers = pull(&lab, &containerd, &stage.lazy)?;
    ensure!(layers[0].ends_with(" lazy") && layers[1].ends_with(" unpacked"), "{layers:?}");
    ensure!(reasons(&daemon) == ["unsupported_layer"], "{:?}", reasons(&daemon));
    let truth = Unpacked::image(&lab, &containerd, &stage.plain)?.tree()?;
    let skip = Skip { top: true, directory_mtimes: true, ..Skip::default() };
    assert_same(&truth, &lazy_tree(&lab, &containerd)?, &skip);
    Ok(())
}

#[test]
fn containerd_debian_with_python_runs_lazily_and_is_as_unpacked() -> Result<()> {
    let lab = Lab::new("debian")?;
    let registry = Registry::start(&lab)?;
    let link = Link::new(&lab, registry.host())?;
    push_image(registry.host(), "python:plain", &debian_python_image(&fixtures()?)?)?;
    let (from, to) = (
        format!("docker://{}/python:plain", registry.host()),
        format!("docker://{}/python:soci", registry.host()),
    );
    soci(&lab, &binaries()?, &["convert", &from, &to])?;
    let (daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    let (plain, lazy) = (format!("{}/python:plain", link.host()), format!("{}/python:soci", link.host()));
    link.reset();
    pull(&lab, &containerd, &lazy)?;
    let words = ["python3", "-c", "import json, sys; print(json.dumps([sys.version_info[0], 6 * 7]))"];
    let said = containerd.run(&lazy, "soci", "lazy", &words)?;
    ensure!(said.trim() == "[3, 42]", "{said}");
    let lazily = link.traffic().down;
    link.reset();
    let truth = Unpacked::image(&lab, &containerd, &plain)?.tree()?;
    let full = link.traffic().down;
    ensure!(lazily * 2 < full, "{lazily} of {full} bytes were fetched");
    let skip = Skip { top: true, directory_mtimes: true, ..Skip::default() };
    assert_same(&truth, &lazy_tree(&lab, &containerd)?, &skip);
    ensure!(daemon.prepared().iter().any(|lazy| *lazy));
    Ok(())
}

#[test]
fn containerd_an_image_without_an_index_can_come_whole_into_our_store() -> Result<()> {
    let lab = Lab::new("unindexed")?;
    let registry = Registry::start(&lab)?;
    let link = Link::new(&lab, registry.host())?;
    let image = debian_python_image(&fixtures()?)?;
    let size: usize = image.layers.iter().map(|layer| layer.bytes.len()).sum();
    push_image(registry.host(), "python:plain", &image)?;
    let name = format!("{}/python:plain", link.host());
    let (daemon, containerd) = with_containerd(&lab, STORE)?;
    let layers = pull(&lab, &containerd, &name)?;
    ensure!(layers.iter().all(|line| line.ends_with(" lazy")), "{layers:?}");
    ensure!(reasons(&daemon) == vec!["no_index"; layers.len()], "{:?}", reasons(&daemon));
    let words = ["python3", "-c", "import json, sys; print(json.dumps([sys.version_info[0], 6 * 7]))"];
    let said = containerd.run(&name, "soci", "whole", &words)?;
    ensure!(said.trim() == "[3, 42]", "{said}");
    // Each byte once, and some headers and documents.
    let down = usize::try_from(link.traffic().down)?;
    ensure!((size..size + size / 50).contains(&down), "{down} bytes for an image of {size}");
    let truth = Unpacked::image(&lab, &containerd, &name)?.tree()?;
    let skip = Skip { top: true, directory_mtimes: true, ..Skip::default() };
    assert_same(&truth, &lazy_tree(&lab, &containerd)?, &skip);
    Ok(())
}

#[test]
fn containerd_from_a_layer_that_cannot_be_streamed_an_image_is_left_to_containerd() -> Result<()> {
    let lab = Lab::new("zstd")?;
    let registry = Registry::start(&lab)?;
    let file = |name: &str| Tar::new([Entry::file(name, name.as_bytes())]).bytes();
    let layers = vec![
        Layer::plain(file("low")),
        Layer::gzip(&file("middle")),
        Layer::zstd(&file("zstd")),
        Layer::gzip(&file("top")),
    ];
    push_image(registry.host(), "app:plain", &Image::new(layers))?;
    let (daemon, containerd) = with_containerd(&lab, STORE)?;
    let layers = pull(&lab, &containerd, &format!("{}/app:plain", registry.host()))?;
    let how: Vec<_> = layers.iter().filter_map(|line| line.rsplit(' ').next()).collect();
    ensure!(how == ["lazy", "lazy", "unpacked", "unpacked"], "{layers:?}");
    let expected = ["no_index", "no_index", "unsupported_layer", "unsupported_layer"];
    ensure!(reasons(&daemon) == expected, "{:?}", reasons(&daemon));
    let mounted = mount(&lab, &containerd, "soci")?;
    for name in ["low", "middle", "zstd", "top"] {
        ensure!(std::fs::read(mounted.path().join(name))? == name.as_bytes(), "{name} has other bytes");
    }
    Ok(())
}
