//! Layers for the tests of this crate: tars written by hand, block by block.

use std::{io::Write, path::Path, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use oci::{Digest, testing::FaultyBlob};
use tokio::runtime::Handle;

use crate::{DiskLimits, Engine, Layer, LayerId, Limits, Store};

/// Spans of this many uncompressed bytes or a little more.
pub(crate) const SPAN: u64 = 64 << 10;

#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    /// An entry of any type; `mode` 0644, owner 1:2, mtime 5.
    pub(crate) fn entry(self, kind: u8, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        self.add(header, data)
    }

    /// A device, `kind` 3 or 4.
    pub(crate) fn device(self, kind: u8, name: &str, major: u32, minor: u32) -> Self {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[156] = kind;
        header[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
        header[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
        self.add(header, b"")
    }

    /// PAX records for the entry that follows.
    pub(crate) fn records(self, records: &[(&str, &str)]) -> Self {
        let mut data = String::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + " =\n".len();
            // The length includes its own digits.
            let length = (rest..).find(|length| rest + length.to_string().len() == *length);
            data += &format!("{} {key}={value}\n", length.expect("some number fits"));
        }
        self.entry(b'x', "records", "", data.as_bytes())
    }

    fn add(mut self, mut header: [u8; 512], data: &[u8]) -> Self {
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000001\0");
        header[116..124].copy_from_slice(b"0000002\0");
        header[136..148].copy_from_slice(b"00000000005\0");
        header[148..156].copy_from_slice(b"        ");
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name, "", data)
    }

    pub(crate) fn folder(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"")
    }

    /// The tar with the two zero blocks at its end.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Bytes that do not compress, so that deflate makes short blocks of them; different for every seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.push((state >> 32) as u8);
    }
    bytes
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}

impl TestLayer {
    /// The identity of the layer in a store.
    pub(crate) fn id(&self) -> LayerId {
        LayerId { layer: self.digest, ztoc: Some(Digest::sha256(&self.ztoc)) }
    }
}

/// A layer, its ztoc, and a blob that can be told to fail.
pub(crate) struct TestLayer {
    pub(crate) digest: Digest,
    pub(crate) ztoc: Vec<u8>,
    pub(crate) blob: Arc<FaultyBlob>,
}

pub(crate) fn made(tar: &[u8]) -> TestLayer {
    let bytes = gzip(tar);
    let options = ztoc::Options { span_size: SPAN, ..ztoc::Options::default() };
    let built = ztoc::build(bytes.as_slice(), ztoc::Compression::Gzip, &options).expect("it is a tar");
    let blob = Arc::new(FaultyBlob::new(bytes, 7_000));
    let whole = built.whole.expect("the layer is hashed by default");
    TestLayer { digest: Digest::from_sha256(whole.layer), ztoc: built.ztoc, blob }
}

pub(crate) fn engine() -> Arc<Engine> {
    let limits = Limits { read_timeout: std::time::Duration::from_secs(20), ..Limits::default() };
    Engine::new(Handle::current(), limits)
}

/// A layer in a new store below `root`, with its blob as the source.
pub(crate) fn opened(root: &Path, max_bytes: Option<u64>, made: &TestLayer) -> Arc<Layer> {
    let room = DiskLimits { max_bytes, ..DiskLimits::default() };
    let store = Store::open(root, room).expect("a folder for tests can be written");
    let digest = Digest::sha256(&made.ztoc);
    let layer =
        Layer::create(&store, &engine(), &made.digest, &digest, &made.ztoc).expect("the layer is good");
    layer.add_source("origin", made.blob.clone());
    layer
}
