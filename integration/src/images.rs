//! Images: small ones written by hand, entry by entry (`Tar`), and a real one, made from Debian's packages
//! (`debian_python_image`). They are pushed through `oci::Registry`, as everything here is that need not be
//! foreign. A layer is held in memory; the largest has some forty megabytes.

pub mod debian;
pub mod push;
pub mod tar;

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use oci::image::media_type;
use oci::{Digest, Platform};
use serde_json::{Value, json};

pub use debian::{Recipe, debian_image, debian_python_image};
pub use push::{Login, PushedImage, PushedIndex, document, push_image, push_image_as, push_index};
pub use tar::Tar;

/// One layer, as it goes to a registry.
#[derive(Debug, Clone)]
pub struct Layer {
    pub media_type: String,
    /// as pushed
    pub bytes: Bytes,
    pub digest: Digest,
    /// of the uncompressed bytes
    pub diff_id: Digest,
}

/// Layers, lowest first, and what the configuration says beside them.
#[derive(Debug, Clone)]
pub struct Image {
    pub layers: Vec<Layer>,
    pub platform: Platform,
    /// the member `config` of the configuration: `Cmd`, `Env` and the like
    pub config: Value,
}

impl Layer {
    /// Uncompressed.
    pub fn plain(tar: impl Into<Bytes>) -> Layer {
        let bytes = tar.into();
        let digest = Digest::sha256(&bytes);
        Layer { media_type: media_type::OCI_LAYER.to_owned(), bytes, digest, diff_id: digest }
    }

    /// Compressed as most builders do it.
    pub fn gzip(tar: &[u8]) -> Layer {
        Layer::gzip_at(tar, Compression::default())
    }

    pub fn gzip_at(tar: &[u8], level: Compression) -> Layer {
        let mut encoder = GzEncoder::new(Vec::new(), level);
        encoder.write_all(tar).expect("memory takes everything");
        let bytes = encoder.finish().expect("memory takes everything");
        Layer::compressed(bytes, Digest::sha256(tar))
    }

    /// Compressed already, elsewhere.
    pub fn compressed(gzip: impl Into<Bytes>, diff_id: Digest) -> Layer {
        let bytes = gzip.into();
        let digest = Digest::sha256(&bytes);
        Layer { media_type: media_type::OCI_LAYER_GZIP.to_owned(), bytes, digest, diff_id }
    }

    /// As zstd has it where nothing can be compressed: a frame of raw blocks.
    pub fn zstd(tar: &[u8]) -> Layer {
        // The length stands in the header, in four bytes, and is the window, too.
        let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
        bytes.extend(u32::try_from(tar.len()).expect("a layer of a test is small").to_le_bytes());
        let mut blocks = tar.chunks(128 << 10).peekable();
        while let Some(block) = blocks.next() {
            let last = u32::from(blocks.peek().is_none());
            let length = u32::try_from(block.len()).expect("at most 128 KiB");
            bytes.extend_from_slice(&(length << 3 | last).to_le_bytes()[..3]);
            bytes.extend_from_slice(block);
        }
        Layer::compressed(bytes, Digest::sha256(tar)).called(&format!("{}+zstd", media_type::OCI_LAYER))
    }

    /// Under another media type, true or not.
    #[must_use]
    pub fn called(mut self, media_type: &str) -> Layer {
        media_type.clone_into(&mut self.media_type);
        self
    }
}

impl Image {
    /// For this machine, with a usual `PATH`.
    pub fn new(layers: Vec<Layer>) -> Image {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        Image { layers, platform: Platform::host(), config: json!({"Env": [path], "WorkingDir": "/"}) }
    }

    /// What it runs when nothing is said.
    #[must_use]
    pub fn command(mut self, words: &[&str]) -> Image {
        self.config["Cmd"] = json!(words);
        self
    }

    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Image {
        self.platform = platform;
        self
    }

    /// The name of the snapshot that the uppermost layer becomes: its chain ID.
    pub fn chain_id(&self) -> String {
        let mut ids = self.layers.iter().map(|layer| layer.diff_id.to_string());
        let lowest = ids.next().unwrap_or_default();
        ids.fold(lowest, |below, id| Digest::sha256(format!("{below} {id}").as_bytes()).to_string())
    }

    /// The configuration document.
    pub fn configuration(&self) -> Vec<u8> {
        let ids: Vec<String> = self.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let mut document = json!({
            "architecture": self.platform.architecture,
            "config": self.config,
            "created": "2024-01-01T00:00:00Z",
            "os": self.platform.os,
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        if !self.platform.variant.is_empty() {
            document["variant"] = json!(self.platform.variant);
        }
        oci::canonical_json(&document)
    }
}
