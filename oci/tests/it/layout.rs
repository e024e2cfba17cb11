//! An OCI layout in a folder.

use std::fs;

use bytes::Bytes;
use oci::blob::collect;
use oci::image::media_type::OCI_MANIFEST;
use oci::testing::MemoryStore;
use oci::{Descriptor, ErrorKind, Layout, Store};

#[tokio::test]
async fn writes_and_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    assert_eq!(Layout::open(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
    let layout = Layout::create(&path).await.unwrap();
    let bytes = Bytes::from_static(br#"{"schemaVersion":2}"#);
    let manifest = Descriptor::of(OCI_MANIFEST, &bytes);
    layout.write_tag("t", &manifest, bytes.clone()).await.unwrap();
    layout.write_tag("u", &manifest, bytes.clone()).await.unwrap();
    layout.write_tag("t", &manifest, bytes.clone()).await.unwrap();

    let layout = Layout::create(&path).await.unwrap();
    for name in ["t", "u", &manifest.digest.to_string()] {
        assert_eq!(layout.resolve(name).await.unwrap(), manifest);
    }
    for name in ["", "v"] {
        let error = layout.resolve(name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(crate::told(&error).contains("its names are: u, t"), "{}", crate::told(&error));
    }
    assert_eq!(layout.read_manifest(&manifest).await.unwrap(), bytes);

    let memory = MemoryStore::new();
    let content = vec![7; 3 << 20];
    let blob = memory.add_blob("x", content.clone());
    assert!(!layout.has_blob(&blob).await.unwrap());
    layout.copy_blob(&blob, &memory).await.unwrap();
    assert!(layout.has_blob(&blob).await.unwrap());
    let part = layout.blob(&blob).read_range(10..2_000_000).await.unwrap();
    assert_eq!(collect(part, 2 << 20, "test").await.unwrap(), content[10..2_000_000]);
    let beyond = layout.blob(&blob).read_range(0..blob.size + 1).await;
    assert_eq!(beyond.err().unwrap().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn the_only_image_needs_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path()).await.unwrap();
    assert_eq!(layout.resolve("").await.unwrap_err().kind(), ErrorKind::NotFound);
    let bytes = Bytes::from_static(b"{}");
    let manifest = Descriptor::of(OCI_MANIFEST, &bytes);
    layout.write_tag("t", &manifest, bytes).await.unwrap();
    assert_eq!(layout.resolve("").await.unwrap(), manifest);
}

#[tokio::test]
async fn hostile_content() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path()).await.unwrap();
    let bytes = Bytes::from_static(b"{}");
    let manifest = Descriptor::of(OCI_MANIFEST, &bytes);
    let other = Bytes::from_static(b"[]");
    assert_eq!(layout.write_tag("t", &manifest, other).await.unwrap_err().kind(), ErrorKind::Corrupt);
    layout.write_tag("t", &manifest, bytes).await.unwrap();
    let path = folder.path().join("blobs/sha256").join(manifest.digest.hex());
    for (content, kind) in [("[]", ErrorKind::Corrupt), ("", ErrorKind::Corrupt)] {
        fs::write(&path, content).unwrap();
        assert_eq!(layout.read_manifest(&manifest).await.unwrap_err().kind(), kind);
    }
    let short = collect(layout.blob(&manifest).read_all().await.unwrap(), 10, "test").await;
    assert_eq!(short.unwrap_err().kind(), ErrorKind::Corrupt);
    let lying = MemoryStore::new();
    let missing = Descriptor::of("x", b"missing");
    assert_eq!(layout.copy_blob(&missing, &lying).await.unwrap_err().kind(), ErrorKind::NotFound);
    fs::write(folder.path().join("index.json"), "nonsense").unwrap();
    assert_eq!(layout.resolve("t").await.unwrap_err().kind(), ErrorKind::Corrupt);
    fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert_eq!(Layout::open(folder.path()).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let drafts = fs::read_dir(folder.path()).unwrap();
    assert!(drafts.filter_map(Result::ok).all(|e| !e.file_name().to_string_lossy().starts_with(".draft")));
}
