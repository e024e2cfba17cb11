//! The index manifest: its bytes by digest, and hostile ones.

use index::manifest::{describe_ztoc, encode_v1, encode_v2};
use index::{ErrorKind, SociIndex, Version};
use oci::image::media_type::{OCI_LAYER_GZIP, OCI_MANIFEST};
use oci::{Descriptor, Digest};

fn digest(text: &str) -> Digest {
    text.parse().unwrap()
}

fn example_ztoc() -> Descriptor {
    let layer = digest("sha256:57907f9575ecf8d880444a27790799b512a7d46398905e565d13038d66d3b061");
    let mut ztoc = describe_ztoc(b"", &Descriptor::new(OCI_LAYER_GZIP, layer, 2071), 4 << 20);
    ztoc.digest = digest("sha256:3da338d98e6659ffdde98f633089d35aa95d7a97b00325aa9c8d5d0798bb5c02");
    ztoc.size = 33200;
    ztoc
}

#[test]
fn both_versions_by_digest() {
    let image = digest("sha256:0594a1533625a659989503098c8a34b9066fb67f69636a382758b16a85bc62b6");
    let mut image = Descriptor::new(OCI_MANIFEST, image, 402);
    image.annotations.insert("not".to_owned(), "taken over".to_owned());
    let v1 = encode_v1(vec![example_ztoc()], &image, "AWS SOCI CLI v0.2");
    let v2 = encode_v2(vec![example_ztoc()], "AWS SOCI CLI v0.2");
    for (bytes, size, expected, version) in [
        (v1, 873, "sha256:477958eba1c5e7ec41f9eb402ece2e65f6b3c77d0d1e11b4647c4ae02d0ea7cd", Version::V1),
        (v2, 710, "sha256:81cea9e3b637c735d61111dbb26a21f71c3094daa92d5a6b618624113553e239", Version::V2),
    ] {
        assert_eq!((bytes.len(), Digest::sha256(&bytes)), (size, digest(expected)));
        let parsed = SociIndex::parse(digest(expected), &bytes).unwrap();
        assert_eq!(parsed.version, version);
        let layer = digest("sha256:57907f9575ecf8d880444a27790799b512a7d46398905e565d13038d66d3b061");
        assert_eq!(parsed.ztoc(&layer), Some(&example_ztoc()));
        assert_eq!(parsed.ztoc(&digest(expected)), None);
    }
}

#[test]
fn refuses() {
    let check = |text: &str, expected: ErrorKind| {
        let found = SociIndex::parse(Digest::sha256(text.as_bytes()), text.as_bytes());
        assert_eq!(found.unwrap_err().kind(), expected, "{text}");
    };
    let d = Digest::sha256(b"{}");
    check("", ErrorKind::Corrupt);
    check("{}", ErrorKind::Corrupt);
    check(r#"{"schemaVersion":2,"manifests":[]}"#, ErrorKind::Corrupt);
    let with = |media_type: &str, config: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"{config}","digest":"{d}","size":2}}}}"#
        )
    };
    check(&with(OCI_MANIFEST, "application/vnd.oci.image.config.v1+json"), ErrorKind::Unsupported);
    check(&with("text/plain", "application/vnd.amazon.soci.index.v2+json"), ErrorKind::Unsupported);
}

#[test]
fn passes_over_what_is_no_ztoc() {
    let mut prefetch = example_ztoc();
    prefetch.media_type = "application/vnd.amazon.soci.prefetch.v1+json".to_owned();
    let mut nameless = example_ztoc();
    nameless.annotations.clear();
    let mut odd = example_ztoc();
    odd.annotations.insert("com.amazon.soci.image-layer-digest".to_owned(), "../etc".to_owned());
    let mut last = example_ztoc();
    last.size = 7;
    let bytes = encode_v2(vec![example_ztoc(), last.clone(), prefetch, nameless, odd], "x");
    let parsed = SociIndex::parse(Digest::sha256(&bytes), &bytes).unwrap();
    assert_eq!(parsed.ztocs.into_values().collect::<Vec<_>>(), [last]);
}
