//! Our ztocs against those of the Go tool: the same bytes, for layers by hand and for layers of Debian.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{
    containerd::Containerd,
    images::{Image, Layer, debian_python_image, push_image},
    lab::Lab,
    machine::{fixtures, long, skip},
    parts,
    registry::Registry,
};
use oci::{Digest, image::media_type};

use crate::image::zoo;

const CREATE_LIMIT: Duration = Duration::from_secs(300);

/// What the Go tool has written into its own store below `home`, by digest.
fn written(home: &Path) -> Result<BTreeSet<String>> {
    let blobs = home.join("soci-snapshotter-grpc/content/blobs/sha256");
    let names = fs::read_dir(blobs)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.map(|name: std::io::Result<String>| Ok(format!("sha256:{}", name?))).collect()
}

/// The ztoc that we build of a layer, with the identifier that the Go tool writes.
fn our_ztoc(layer: &Layer, span_size: u64, tool: &str) -> Result<Digest> {
    let compression = if layer.media_type == media_type::OCI_LAYER {
        ztoc::Compression::Uncompressed
    } else {
        ztoc::Compression::Gzip
    };
    let options = ztoc::Options { span_size, build_tool: tool.to_owned(), ..ztoc::Options::default() };
    let built = ztoc::build(&layer.bytes[..], compression, &options)?;
    ensure!(built.whole.map(|whole| Digest::from_sha256(whole.layer)) == Some(layer.digest));
    Ok(Digest::sha256(&built.ztoc))
}

#[test]
fn containerd_ztocs_have_the_bytes_of_the_go_tools() -> Result<()> {
    let (program, tool) = match parts::go_soci() {
        Ok(found) => found,
        Err(error) => {
            skip(&format!("ztocs against the Go tool's: {error:#}"));
            return Ok(());
        }
    };
    let lab = Lab::new("interop")?;
    let registry = Registry::start(&lab)?;
    let containerd = Containerd::start(&lab)?;
    let home = lab.folder("home")?;
    let debian = debian_python_image(&fixtures()?)?.layers;
    let mut cases = vec![(zoo(), 64 << 10), (zoo(), 1 << 20), (debian.clone(), 4 << 20)];
    if long() {
        cases.extend([64 << 10, 256 << 10, 16 << 20].map(|span_size| (debian.clone(), span_size)));
    }
    let mut compared = 0;
    for (number, (layers, span_size)) in cases.iter().enumerate() {
        let pushed = push_image(registry.host(), &format!("app:{number}"), &Image::new(layers.clone()))?;
        containerd.pull(&pushed.reference, "overlayfs")?;
        let mut command = lab.secluded(&program, &home);
        command.arg("--address").arg(containerd.address()).args(["--namespace", containerd.namespace()]);
        command.args(["create", "--min-layer-size", "0", "--span-size"]);
        command.arg(span_size.to_string()).arg(&pushed.reference).env("TZ", "UTC");
        lab.run(command, CREATE_LIMIT).context("the Go tool makes an index")?;
        let made = written(&home)?;
        for (place, layer) in layers.iter().enumerate() {
            let ours = our_ztoc(layer, *span_size, tool)?.to_string();
            let what = format!("layer {place} of image {number} at {span_size}");
            ensure!(made.contains(&ours), "{what}: {ours} is not among {made:?}");
            compared += 1;
        }
    }
    ensure!(compared == cases.iter().map(|(layers, _)| layers.len()).sum::<usize>() && compared > 10);
    Ok(())
}
