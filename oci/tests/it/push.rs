//! Writing: uploads, mounts, manifests, and what registries forget to say.

use bytes::Bytes;
use oci::image::media_type::OCI_MANIFEST;
use oci::testing::{Fault, MemoryStore, Rules, TestRegistry};
use oci::{Descriptor, ErrorKind, Store};

use crate::repository;

fn content() -> Bytes {
    Bytes::from(vec![42; 3 << 20])
}

#[tokio::test]
async fn blobs_and_manifests() {
    for discourteous in [false, true] {
        let server = TestRegistry::start(Rules { discourteous, ..Rules::default() }).await.unwrap();
        let registry = repository(&server, "a");
        let descriptor = Descriptor::of("x", &content());
        assert!(!registry.has_blob(&descriptor).await.unwrap());
        registry.write_blob(&descriptor, content()).await.unwrap();
        registry.write_blob(&descriptor, content()).await.unwrap();
        assert!(registry.has_blob(&descriptor).await.unwrap());
        assert_eq!(server.blob("a", &descriptor.digest).unwrap(), content());
        assert_eq!(server.count("PUT", "/blobs/"), 1, "the second time it is there already");

        let bytes = Bytes::from_static(b"{\"schemaVersion\":2}");
        let manifest = Descriptor::of(OCI_MANIFEST, &bytes);
        registry.write_manifest(&manifest, bytes.clone()).await.unwrap();
        assert!(server.manifest("a", "t").is_none());
        registry.write_tag("t", &manifest, bytes.clone()).await.unwrap();
        assert_eq!(server.manifest("a", "t").unwrap(), bytes);
        assert_eq!(registry.resolve("t").await.unwrap().digest, manifest.digest);
    }
}

#[tokio::test]
async fn referrers_are_found_whatever_the_registry_knows() {
    for no_referrers in [false, true] {
        let server = TestRegistry::start(Rules { no_referrers, ..Rules::default() }).await.unwrap();
        let registry = repository(&server, "a");
        let subject = server.add_manifest("a", "t", OCI_MANIFEST, br#"{"schemaVersion":2}"#);
        let mut written = Vec::new();
        for name in ["one", "two", "one"] {
            let bytes = format!(
                "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"x/y\",\"digest\":\"{0}\",\"size\":2}},\
                 \"subject\":{{\"mediaType\":\"{OCI_MANIFEST}\",\"digest\":\"{0}\",\"size\":{1}}},\
                 \"annotations\":{{\"name\":\"{name}\"}}}}",
                subject.digest, subject.size
            );
            let descriptor = Descriptor::of(OCI_MANIFEST, bytes.as_bytes());
            registry.write_referrer(&descriptor, bytes.into()).await.unwrap();
            written.push(descriptor.digest);
        }
        let mut found: Vec<_> = registry
            .referrers(&subject.digest, Some("x/y"))
            .await
            .unwrap()
            .iter()
            .map(|d| d.digest)
            .collect();
        written.pop();
        found.sort();
        written.sort();
        assert_eq!(found, written, "no_referrers: {no_referrers}");
        assert!(registry.referrers(&subject.digest, Some("other")).await.unwrap().is_empty());
        let tag = format!("sha256-{}", subject.digest.hex());
        assert_eq!(server.manifest("a", &tag).is_some(), no_referrers);
    }
}

#[tokio::test]
async fn refuses_what_does_not_fit() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let registry = repository(&server, "a");
    let other = Descriptor::of("x", b"other");
    assert_eq!(registry.write_blob(&other, content()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(registry.write_tag("t", &other, content()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn copies_between_registries() {
    for (from, to) in [(Some(50), None), (None, Some(1 << 20)), (None, None)] {
        let source = TestRegistry::start(Rules { redirect_uses: from, ..Rules::default() }).await.unwrap();
        let target = TestRegistry::start(Rules { put_bytes_max: to, ..Rules::default() }).await.unwrap();
        let descriptor = source.add_blob("a", "x", content());
        let (source, copy) = (repository(&source, "a"), repository(&target, "b"));
        copy.copy_blob(&descriptor, &source).await.unwrap();
        assert_eq!(target.blob("b", &descriptor.digest).unwrap(), content());
    }
}

#[tokio::test]
async fn copies_again_when_it_breaks() {
    let source = TestRegistry::start(Rules::default()).await.unwrap();
    let target = TestRegistry::start(Rules::default()).await.unwrap();
    let descriptor = source.add_blob("a", "x", content());
    source.fail_next("GET", "/blobs/", Fault::Cut(1 << 20));
    target.fail_next("PUT", "/blobs/", Fault::Drop);
    let copy = repository(&target, "b");
    copy.copy_blob(&descriptor, &repository(&source, "a")).await.unwrap();
    assert_eq!(target.blob("b", &descriptor.digest).unwrap(), content());
}

#[tokio::test]
async fn lying_source() {
    let source = TestRegistry::start(Rules::default()).await.unwrap();
    let target = TestRegistry::start(Rules::default()).await.unwrap();
    let descriptor = source.add_blob("a", "x", content());
    for _ in 0..3 {
        source.fail_next("GET", "/blobs/", Fault::WrongBytes);
    }
    let copy = repository(&target, "b");
    copy.copy_blob(&descriptor, &repository(&source, "a")).await.unwrap_err();
    assert!(target.blob("b", &descriptor.digest).is_none());
}

#[tokio::test]
async fn mounts() {
    for no_mount in [false, true] {
        let server = TestRegistry::start(Rules { no_mount, ..Rules::default() }).await.unwrap();
        let descriptor = server.add_blob("a", "x", content());
        let (from, to) = (repository(&server, "a"), repository(&server, "b/c"));
        to.copy_blob(&descriptor, &from).await.unwrap();
        assert_eq!(server.blob("b/c", &descriptor.digest).unwrap(), content());
        assert_eq!(server.count("POST", "/blobs/uploads/"), 1, "202 goes on as an upload");
        assert_eq!(server.count("PUT", "/blobs/uploads/"), usize::from(no_mount));
        from.copy_blob(&descriptor, &from).await.unwrap();
    }
}

#[tokio::test]
async fn from_memory() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let memory = MemoryStore::new();
    let descriptor = memory.add_blob("x", content());
    let registry = repository(&server, "a");
    registry.copy_blob(&descriptor, &memory).await.unwrap();
    let missing = Descriptor::of("x", b"missing");
    assert_eq!(registry.copy_blob(&missing, &memory).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn no_space() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    server.fail_next("PUT", "/blobs/", Fault::Status(507, Vec::new(), String::new()));
    let error = repository(&server, "a").write_blob(&Descriptor::of("x", &content()), content()).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Full);
}
