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
    let short = layout.blob(&manifest).read_all().await;
    assert_eq!(short.err().unwrap().kind(), ErrorKind::Corrupt);
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

/// A manifest whose subject is another, as bytes.
fn referrer(subject: &Descriptor, artifact_type: &str) -> Bytes {
    let text = format!(
        "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"{artifact_type}\",\"digest\":\"{0}\",\"size\":2}},\
         \"subject\":{{\"mediaType\":\"{OCI_MANIFEST}\",\"digest\":\"{0}\",\"size\":{1}}}}}",
        subject.digest, subject.size
    );
    text.into()
}

#[tokio::test]
async fn referrers_and_removal() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path()).await.unwrap();
    let bytes = Bytes::from_static(br#"{"schemaVersion":2}"#);
    let image = Descriptor::of(OCI_MANIFEST, &bytes);
    layout.write_tag("", &image, bytes).await.unwrap();
    let bytes = referrer(&image, "x/y");
    let mut listed = Descriptor::of(OCI_MANIFEST, &bytes);
    listed.artifact_type = "x/y".to_owned();
    layout.write_referrer(&listed, bytes.clone()).await.unwrap();
    assert_eq!(layout.referrers(&image.digest, "x/y").await.unwrap(), [listed.clone()]);
    assert!(layout.referrers(&image.digest, "other").await.unwrap().is_empty());
    assert!(layout.referrers(&listed.digest, "x/y").await.unwrap().is_empty());
    assert_eq!(layout.resolve("").await.unwrap(), image);
    let mut blobs = layout.blobs().await.unwrap();
    blobs.sort();
    let mut expected = [image.digest, listed.digest];
    expected.sort();
    assert_eq!(blobs, expected);
    assert_eq!(layout.read_blob(&listed.digest, 1 << 20).await.unwrap(), bytes);
    for _ in 0..2 {
        layout.remove(&listed.digest).await.unwrap();
    }
    assert!(layout.referrers(&image.digest, "x/y").await.unwrap().is_empty());
    assert_eq!(layout.blobs().await.unwrap(), [image.digest]);
}

#[tokio::test]
async fn a_list_of_platforms_is_an_image() {
    let folder = tempfile::tempdir().unwrap();
    Layout::create(folder.path()).await.unwrap();
    let digest = oci::Digest::sha256(b"");
    let entry = |architecture: &str| {
        format!(
            "{{\"mediaType\":\"{OCI_MANIFEST}\",\"digest\":\"{digest}\",\"size\":0,\
             \"platform\":{{\"os\":\"linux\",\"architecture\":\"{architecture}\"}}}}"
        )
    };
    let listed = format!("{{\"schemaVersion\":2,\"manifests\":[{},{}]}}", entry("amd64"), entry("arm64"));
    fs::write(folder.path().join("index.json"), &listed).unwrap();
    let layout = Layout::open(folder.path()).await.unwrap();
    let image = layout.resolve("").await.unwrap();
    assert_eq!(image, Descriptor::of(oci::image::media_type::OCI_INDEX, listed.as_bytes()));
    assert_eq!(layout.read_manifest(&image).await.unwrap(), listed);
}

#[tokio::test]
async fn archives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.tar");
    let memory = MemoryStore::new();
    let blobs: Vec<Descriptor> = [0, 1, 511, 512, 513, 3 << 20]
        .iter()
        .map(|&len| memory.add_blob("x", vec![len as u8; len]))
        .collect();
    let bytes = Bytes::from_static(br#"{"schemaVersion":2}"#);
    let manifest = Descriptor::of(OCI_MANIFEST, &bytes);

    let draft = Layout::create_archive(&path).await.unwrap();
    let copies = blobs.iter().map(|blob| draft.copy_blob(blob, &memory));
    futures::future::try_join_all(copies).await.unwrap();
    draft.write_blob(&blobs[1], vec![1].into()).await.unwrap();
    assert!(!path.exists(), "there is nothing before the tag");
    draft.write_tag("t", &manifest, bytes.clone()).await.unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    // Other tools read it, too.
    let listed = std::process::Command::new("tar").arg("-tf").arg(&path).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), blobs.len() + 3);

    let archive = Layout::open_archive(&path).await.unwrap();
    for name in ["t", ""] {
        assert_eq!(archive.resolve(name).await.unwrap(), manifest);
    }
    assert_eq!(archive.read_manifest(&manifest).await.unwrap(), bytes);
    for blob in &blobs {
        let all = collect(archive.blob(blob).read_all().await.unwrap(), 4 << 20, "test").await.unwrap();
        blob.verify(&all, "test").unwrap();
    }
    let error =
        archive.write_blob(&Descriptor::of("x", b"new"), Bytes::from_static(b"new")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(crate::told(&error).contains("cannot be changed"));
}

#[tokio::test]
async fn archives_that_come_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.tar");
    let memory = MemoryStore::new();
    let mut lying = memory.add_blob("x", vec![1; 1000]);
    lying.size = 999;
    let draft = Layout::create_archive(&path).await.unwrap();
    assert_eq!(draft.copy_blob(&lying, &memory).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(!draft.has_blob(&lying).await.unwrap());
    drop(draft);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    let refused = async |bytes: &[u8], kind: ErrorKind| {
        fs::write(&path, bytes).unwrap();
        assert_eq!(Layout::open_archive(&path).await.unwrap_err().kind(), kind, "{bytes:?}");
    };
    refused(b"", ErrorKind::NotFound).await;
    refused(&[7; 1024], ErrorKind::Corrupt).await;
    refused(&[0x1f, 0x8b, 8, 0], ErrorKind::Unsupported).await;
    refused(&[0; 1024], ErrorKind::NotFound).await;
    // A header that says of itself that it is longer than any name: nothing of it is read.
    let mut long = tar::Header::new_ustar();
    long.set_entry_type(tar::EntryType::XHeader);
    long.set_size(2 << 20);
    long.set_cksum();
    let long = [&long.as_bytes()[..], &vec![b'1'; (2 << 20) + 1024]].concat();
    fs::write(&path, long).unwrap();
    assert_eq!(Layout::open_archive(&path).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(Layout::open_archive(folder.path()).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// As others write them: with `./`, with PAX headers, with long names.
#[tokio::test]
async fn archives_of_other_tools() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path().join("layout")).await.unwrap();
    let bytes = Bytes::from_static(br#"{"schemaVersion":2}"#);
    let manifest = Descriptor::of(OCI_MANIFEST, &bytes);
    layout.write_tag("t", &manifest, bytes.clone()).await.unwrap();
    fs::write(folder.path().join("layout").join("x".repeat(180)), "not of the layout").unwrap();
    for format in ["gnu", "pax", "ustar"] {
        let archive = folder.path().join(format);
        let words = ["-C", &folder.path().join("layout").display().to_string(), "--format", format, "-cf"];
        let mut command = std::process::Command::new("tar");
        // A name that USTAR cannot hold is left out there.
        command.args(words).arg(&archive).args([
            "--exclude",
            if format == "ustar" { "x*" } else { "none" },
            ".",
        ]);
        assert!(command.status().unwrap().success(), "{format}");
        let archive = Layout::open_archive(&archive).await.unwrap();
        assert_eq!(
            archive.read_manifest(&archive.resolve("t").await.unwrap()).await.unwrap(),
            bytes,
            "{format}"
        );
    }
}
