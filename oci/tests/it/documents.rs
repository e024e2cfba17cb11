//! Documents that other tools write, read and written again: byte for byte the same where they are canonical.

use oci::{Config, Digest, ErrorKind, Index, Manifest, Platform, canonical_json};

const SOCI_V1: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.amazon.soci.index.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"application/octet-stream","digest":"sha256:3da338d98e6659ffdde98f633089d35aa95d7a97b00325aa9c8d5d0798bb5c02","size":33200,"annotations":{"com.amazon.soci.image-layer-digest":"sha256:57907f9575ecf8d880444a27790799b512a7d46398905e565d13038d66d3b061","com.amazon.soci.image-layer-mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","com.amazon.soci.span-size":"4194304"}}],"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:0594a1533625a659989503098c8a34b9066fb67f69636a382758b16a85bc62b6","size":402},"annotations":{"com.amazon.soci.build-tool-identifier":"AWS SOCI CLI v0.2"}}"#;
const CONVERTED_MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:b5a748367d953999e3b54204827e5651c0125ed22900a0a234a409a5ee292621","size":151},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:57907f9575ecf8d880444a27790799b512a7d46398905e565d13038d66d3b061","size":2071}],"annotations":{"com.amazon.soci.index-digest":"sha256:81cea9e3b637c735d61111dbb26a21f71c3094daa92d5a6b618624113553e239"}}"#;
const CONVERTED_INDEX: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:3e1aef9a1d62cbab0f07cf88eba9a57eb9cc039f415076cbf32621a4c5e978d3","size":523,"annotations":{"com.amazon.soci.index-digest":"sha256:81cea9e3b637c735d61111dbb26a21f71c3094daa92d5a6b618624113553e239"},"platform":{"architecture":"amd64","os":"linux"}},{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:81cea9e3b637c735d61111dbb26a21f71c3094daa92d5a6b618624113553e239","size":710,"annotations":{"com.amazon.soci.image-manifest-digest":"sha256:3e1aef9a1d62cbab0f07cf88eba9a57eb9cc039f415076cbf32621a4c5e978d3"},"platform":{"architecture":"amd64","os":"linux"},"artifactType":"application/vnd.amazon.soci.index.v2+json"}]}"#;

#[test]
fn manifests_by_digest() {
    for (text, digest) in [
        (SOCI_V1, "sha256:477958eba1c5e7ec41f9eb402ece2e65f6b3c77d0d1e11b4647c4ae02d0ea7cd"),
        (CONVERTED_MANIFEST, "sha256:3e1aef9a1d62cbab0f07cf88eba9a57eb9cc039f415076cbf32621a4c5e978d3"),
    ] {
        let spaced = text
            .replace(',', " ,\n")
            .replace(r#""schemaVersion":2 "#, r#""unknown": [{}], "schemaVersion" :2"#);
        let bytes = canonical_json(&Manifest::parse(spaced.as_bytes(), "test").unwrap());
        assert_eq!(Digest::sha256(&bytes).to_string(), digest, "{}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn index_by_digest() {
    let bytes = canonical_json(&Index::parse(CONVERTED_INDEX.as_bytes(), "test").unwrap());
    let digest = "sha256:9728721189b12f18b7e1c26c8c22549b20fec7d96c2d68ee6c1e04f24e235e25";
    assert_eq!(Digest::sha256(&bytes).to_string(), digest);
    assert_eq!(bytes, CONVERTED_INDEX.as_bytes());
}

#[test]
fn members_and_nulls() {
    let d = Digest::sha256(b"");
    let check = |members: &str, expected: &str| {
        let descriptor = |rest: &str| format!(r#"{{"mediaType":"m","digest":"{d}","size":1{rest}}}"#);
        let list = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor(members));
        let found = canonical_json(&Index::parse(list.as_bytes(), "test").unwrap());
        let expected = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor(expected));
        assert_eq!(String::from_utf8(found).unwrap(), expected);
    };
    check(r#","annotations":null,"urls":null,"data":null,"platform":null,"artifactType":null"#, "");
    check(r#","annotations":{},"urls":[],"unknown":1"#, "");
    check(
        r#","artifactType":"a","platform":{"variant":"v8","os":"linux","architecture":"arm64","os.features":["f"],"os.version":"1"},"data":"eA==","annotations":{"b":"<","a":"1"},"urls":["u"]"#,
        r#","urls":["u"],"annotations":{"a":"1","b":"\u003c"},"data":"eA==","platform":{"architecture":"arm64","os":"linux","os.version":"1","os.features":["f"],"variant":"v8"},"artifactType":"a""#,
    );
    check(r#","platform":{}"#, r#","platform":{"architecture":"","os":""}"#);

    let without = format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"m","digest":"{d}","size":1}}}}"#);
    let manifest = Manifest::parse(without.as_bytes(), "test").unwrap();
    assert!(String::from_utf8(canonical_json(&manifest)).unwrap().ends_with(r#","layers":null}"#));
}

#[test]
fn refuses() {
    let d = Digest::sha256(b"");
    let kind = |text: &str| Index::parse(text.as_bytes(), "test").unwrap_err().kind();
    assert_eq!(kind("{}"), ErrorKind::Corrupt);
    assert_eq!(kind(r#"{"schemaVersion":1}"#), ErrorKind::Unsupported);
    assert_eq!(kind(CONVERTED_MANIFEST), ErrorKind::Corrupt);
    assert_eq!(kind(r#"{"schemaVersion":2,"manifests":[{"digest":"x","size":1}]}"#), ErrorKind::Corrupt);
    assert_eq!(
        kind(&format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{d}","size":-1}}]}}"#)),
        ErrorKind::Corrupt
    );
    assert_eq!(kind(&"[".repeat(100_000)), ErrorKind::Corrupt);
}

#[test]
fn configurations() {
    let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":["sha256:fa01e42d19005c93c2a6fc09347768cc08a524c9a3d7cc27b5b992321e01474a"]}}"#;
    let config = Config::parse(text.as_bytes(), "test").unwrap();
    assert_eq!(config.platform, Platform::new("linux", "amd64", ""));
    assert!(Config::parse(b"{}", "test").is_ok());
    assert!(Config::parse(b"[]", "test").is_err());
}
