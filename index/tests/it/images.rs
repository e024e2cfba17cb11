//! Images made by hand: the layer of the format's test vector V1, and layers like it.

use index::{BuildOptions, ConvertOptions, Error, Missing, Platforms, Report, Route, convert};
use oci::image::media_type::{OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST};
use oci::testing::MemoryStore;
use oci::{Descriptor, Digest, Manifest, Platform, Store, canonical_json};

/// The tar of the test vectors: one file with this name, `hello`.
pub(crate) fn tar(name: &str, kind: u8) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(b"00000000006\0");
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[329..337].copy_from_slice(b"0000000\0");
    header[337..345].copy_from_slice(b"0000000\0");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(b"hello\n");
    tar.resize(2048, 0);
    tar
}

/// Gzip with one stored block, as in vector V1.
pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1];
    gzip.extend_from_slice(&length.to_le_bytes());
    gzip.extend_from_slice(&(!length).to_le_bytes());
    gzip.extend_from_slice(data);
    gzip.extend_from_slice(&crc32(data).to_le_bytes());
    gzip.extend_from_slice(&u32::from(length).to_le_bytes());
    gzip
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// A layer of one small file, different for each name.
pub(crate) fn layer(store: &MemoryStore, name: &str) -> Descriptor {
    store.add_blob(OCI_LAYER_GZIP, gzip(&tar(name, b'0')))
}

pub(crate) fn config(store: &MemoryStore, platform: &str) -> Descriptor {
    let platform: Platform = platform.parse().unwrap();
    let diff_id = Digest::sha256(&tar("hello.txt", b'0'));
    let text = format!(
        r#"{{"architecture":"{}","os":"{}","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#,
        platform.architecture, platform.os
    );
    store.add_blob(OCI_CONFIG, text.into_bytes())
}

pub(crate) fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: String::new(),
        config,
        layers: Some(layers),
        subject: None,
        annotations: Default::default(),
    }
}

/// An image of one platform and these layers, under this tag.
pub(crate) fn image(store: &MemoryStore, tag: &str, layers: Vec<Descriptor>) -> Descriptor {
    let manifest = manifest(config(store, "linux/amd64"), layers);
    let descriptor = store.add_manifest(OCI_MANIFEST, canonical_json(&manifest));
    store.add_tag(tag, descriptor.digest);
    descriptor
}

/// The image of the format's examples: one layer, V1.
pub(crate) fn example(store: &MemoryStore) -> Descriptor {
    let layer = layer(store, "hello.txt");
    assert_eq!(
        layer.digest.to_string(),
        "sha256:57907f9575ecf8d880444a27790799b512a7d46398905e565d13038d66d3b061"
    );
    image(store, "example", vec![layer])
}

/// Every layer is big enough, and every platform wanted.
pub(crate) fn options() -> ConvertOptions {
    let build = BuildOptions { min_layer_size: 0, ..BuildOptions::default() };
    ConvertOptions { platforms: Platforms::All, missing: Missing::Keep, build }
}

pub(crate) async fn run(
    from: &dyn Store,
    source: &str,
    to: &dyn Store,
    options: &ConvertOptions,
) -> Result<Report, Error> {
    convert(Route { from, source, to, tag: "converted" }, options, &|_| {}).await
}

/// The SOCI index of the first platform.
pub(crate) fn soci_of(report: &Report) -> Digest {
    report.platforms[0].1.as_ref().unwrap().index.digest
}
