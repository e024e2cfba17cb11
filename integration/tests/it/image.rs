//! Images that the tests share: small ones written by hand, converted, with their truth beside them.

use anyhow::{Context, Result};
use integration::{
    daemon::soci,
    images::{
        Image, Layer, PushedImage, Tar, document, push_image,
        tar::{Dialect, Entry, Kind},
    },
    lab::Lab,
    link::Link,
    machine::binaries,
    registry::Registry,
};
use serde_json::Value;

/// Bytes that do not compress, so that a file has about as many spans as it should.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(step).take(length).collect()
}

/// Three layers with every kind of entry, and each thing that one layer can do to another.
pub(crate) fn zoo() -> Vec<Layer> {
    let long = "n".repeat(180);
    let base = Tar::new([
        Entry::directory("./").mode(0o700).owner(1000, 1000),
        Entry::directory("./usr/").mode(0o2755).owner(3, 4).mtime(1_600_000_000, 0),
        Entry::directory("usr/bin").owner(5, 6).mtime(1_600_000_001, 0).xattr("user.bin", b"yes"),
        Entry::file("usr/bin/tool", noise(1, 700_000)).mode(0o4755).owner(1000, 1001),
        Entry::hard_link("usr/bin/tool-too", "usr/bin/tool").mode(0o4755).owner(1000, 1001),
        Entry::file("usr/bin/first", b"twice").mode(0o700).xattr("user.one", b"1"),
        // Attributes are set anew with every name.
        Entry::hard_link("usr/bin/second", "usr/bin/first").mode(0o751).owner(7, 8).xattr("user.two", b"2"),
        Entry::symlink("bin", "usr/bin"),
        // Linux knows one mode of links, whatever the tar says.
        Entry::symlink("usr/link", "bin").mode(0o4644).owner(9, 9),
        Entry::hard_link("usr/link-too", "usr/link").mode(0o600).owner(9, 9),
        Entry::file("usr/empty", b""),
        Entry::file("usr/old", b"x").mtime(-1, 500_000_000),
        Entry::file("usr/far", b"x").mtime(16_000_000_000, 0),
        Entry::file("usr/fine", b"y").mtime(1_700_000_000, 123_456_789),
        Entry::file("usr/capable", b"z")
            .xattr("security.capability", b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        Entry::file(format!("usr/{long}/{long}"), b"long"),
        Entry::file(b"usr/not-utf8-\xff\xfe".as_slice(), b"odd"),
        Entry::new("dev/null", Kind::Character(1, 3)).mode(0o666),
        Entry::new("dev/disk", Kind::Block(8, 1)).mode(0o660).owner(0, 6),
        Entry::new("run/pipe", Kind::Fifo).mode(0o600),
        Entry::file("gone/file", b"hidden by the next layer"),
        Entry::file("dark/file", b"hidden by an opaque directory"),
        Entry::file("changed", noise(2, 90_000)),
        Entry::directory("becomes-a-file"),
    ])
    .dialect(Dialect::Pax);
    let middle = Tar::new([
        Entry::file("usr/bin/implied", noise(3, 300_000)), // usr and usr/bin are not in this layer
        Entry::whiteout("gone/file"),
        Entry::directory("dark").mode(0o700),
        Entry::opaque("dark"),
        Entry::file("dark/new", b"seen"),
        Entry::file("changed", noise(4, 100_000)),
        Entry::file("becomes-a-file", b"now"),
        Entry::file("data/zeros", vec![0; 400_000]),
    ])
    .dialect(Dialect::Gnu);
    let top = Tar::new([
        // containerd ignores it: the root of a snapshot has mode 0755 and owner 0:0.
        Entry::directory("./").mode(0o700).owner(1000, 1000),
        Entry::file("usr/bin/last", b"#!/bin/sh\n"),
        Entry::hard_link("usr/bin/last-too", "usr/bin/last"),
        Entry::whiteout("changed"),
        Entry::file("srv/deep/er/file", noise(5, 150_000)),
    ]);
    vec![Layer::gzip(&base.bytes()), Layer::plain(middle.bytes()), Layer::gzip(&top.bytes())]
}

/// A registry with an image in it, as it was and converted, seen through a line.
pub(crate) struct Stage {
    pub(crate) registry: Registry,
    pub(crate) link: Link,
    pub(crate) pushed: PushedImage,
    /// Both as seen through the line.
    pub(crate) plain: String,
    pub(crate) lazy: String,
}

/// Flags of `soci convert` for small layers: a ztoc for each, with several spans.
pub(crate) const SMALL: &[&str] = &["--span-size", "65536", "--min-layer-size", "0"];

/// Pushes the layers and converts them; `flags` go to `soci convert`.
pub(crate) fn stage(lab: &Lab, layers: Vec<Layer>, flags: &[&str]) -> Result<Stage> {
    let registry = Registry::start(lab)?;
    let link = Link::new(lab, registry.host())?;
    let pushed = push_image(registry.host(), "app:plain", &Image::new(layers))?;
    let (plain, lazy) = (format!("{}/app:plain", link.host()), format!("{}/app:soci", link.host()));
    let mut words = vec!["convert"];
    words.extend_from_slice(flags);
    let (from, to) =
        (format!("docker://{}/app:plain", registry.host()), format!("docker://{}/app:soci", registry.host()));
    words.extend([from.as_str(), to.as_str()]);
    soci(lab, &binaries()?, &words)?;
    Ok(Stage { registry, link, pushed, plain, lazy })
}

/// The digest of a converted image's SOCI index, and what is listed in it: ztocs and prefetch artifacts.
pub(crate) fn index(host: &str, repository: &str) -> Result<(String, Vec<Value>)> {
    let image = document(host, repository, "soci")?;
    let noted = |entry: &&Value| !entry["annotations"]["com.amazon.soci.image-manifest-digest"].is_null();
    let found = image["manifests"].as_array().and_then(|all| all.iter().find(noted));
    let digest = found.and_then(|entry| entry["digest"].as_str());
    let digest = digest.with_context(|| format!("an index among {image}"))?;
    let index = document(host, repository, digest)?;
    let listed = index["layers"].as_array().with_context(|| format!("layers in {index}"))?;
    Ok((digest.to_owned(), listed.clone()))
}

/// The digest of the manifest for this machine that a tag's image index lists first.
pub(crate) fn manifest(host: &str, repository: &str, tag: &str) -> Result<String> {
    let image = document(host, repository, tag)?;
    let first =
        image["manifests"].as_array().and_then(|all| all.iter().find(|one| one["platform"]["os"] == "linux"));
    let digest = first.and_then(|entry| entry["digest"].as_str());
    Ok(digest.with_context(|| format!("a manifest among {image}"))?.to_owned())
}
