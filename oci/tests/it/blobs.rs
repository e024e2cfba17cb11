//! Ranges of blobs, from servers that behave and from those that do not.

use oci::blob::collect;
use oci::testing::{Fault, Rules, TestRegistry};
use oci::{Blob, Digest, Error, ErrorKind};

use crate::{repository, told};

fn content() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

async fn range(blob: &dyn Blob, range: std::ops::Range<u64>) -> Result<Vec<u8>, Error> {
    Ok(collect(blob.read_range(range).await?, 1 << 20, "test").await?.to_vec())
}

/// Reads a range under a fault: either the right bytes or an error of this kind.
async fn check(fault: Fault, expected: Result<(), ErrorKind>) {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let bytes = content();
    let descriptor = server.add_blob("a", "x", bytes.clone());
    server.fail_next("GET", "/blobs/", fault.clone());
    let blob = repository(&server, "a").blob(&descriptor.digest, Some(descriptor.size));
    let found = range(&*blob, 1000..500_000).await;
    match expected {
        Ok(()) => assert_eq!(found.unwrap(), bytes[1000..500_000], "{fault:?}"),
        Err(kind) => assert_eq!(found.unwrap_err().kind(), kind, "{fault:?}"),
    }
}

#[tokio::test]
async fn one_fault_each() {
    check(Fault::Drop, Ok(())).await;
    check(Fault::Cut(0), Ok(())).await;
    check(Fault::Cut(123_456), Ok(())).await;
    check(Fault::IgnoreRange, Ok(())).await;
    check(Fault::WrongRange, Err(ErrorKind::Corrupt)).await;
    let status = |status| Fault::Status(status, vec![("retry-after".into(), "0".into())], String::new());
    for passing in [408, 429, 500, 502, 503] {
        check(status(passing), Ok(())).await;
    }
    check(status(404), Err(ErrorKind::NotFound)).await;
    check(status(403), Err(ErrorKind::Denied)).await;
    check(status(416), Err(ErrorKind::Corrupt)).await;
    check(status(206), Err(ErrorKind::Corrupt)).await;
    check(status(418), Err(ErrorKind::Unsupported)).await;
}

#[tokio::test]
async fn whole_and_empty() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let bytes = content();
    let descriptor = server.add_blob("a", "x", bytes.clone());
    let registry = repository(&server, "a");
    for size in [None, Some(descriptor.size)] {
        let blob = registry.blob(&descriptor.digest, size);
        let all = collect(blob.read_all().await.unwrap(), 1 << 20, "test").await.unwrap();
        assert_eq!(all, bytes);
        assert_eq!(range(&*blob, 7..7).await.unwrap(), b"");
        assert_eq!(range(&*blob, 799_999..800_000).await.unwrap(), bytes[799_999..]);
    }
    let known = registry.blob(&descriptor.digest, Some(descriptor.size));
    assert_eq!(range(&*known, 0..800_001).await.unwrap_err().kind(), ErrorKind::Invalid);
    let unknown = registry.blob(&descriptor.digest, None);
    assert_eq!(range(&*unknown, 0..800_001).await.unwrap_err().kind(), ErrorKind::Corrupt);
    // A size that is not the server's is a lie of one of the two.
    let wrong = registry.blob(&descriptor.digest, Some(descriptor.size + 1));
    assert_eq!(range(&*wrong, 0..10).await.unwrap_err().kind(), ErrorKind::Corrupt);
    let missing = registry.blob(&Digest::sha256(b"no"), None);
    let error = missing.read_all().await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(told(&error).contains("BLOB_UNKNOWN"), "{}", told(&error));
}

#[tokio::test]
async fn unknown_size_resumes() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let bytes = content();
    let descriptor = server.add_blob("a", "x", bytes.clone());
    server.fail_next("GET", "/blobs/", Fault::Cut(300_000));
    let blob = repository(&server, "a").blob(&descriptor.digest, None);
    let all = collect(blob.read_all().await.unwrap(), 1 << 20, "test").await.unwrap();
    assert_eq!(all, bytes);
}

#[tokio::test]
async fn gives_up_without_progress() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let descriptor = server.add_blob("a", "x", content());
    for _ in 0..30 {
        server.fail_next("GET", "/blobs/", Fault::Cut(10));
    }
    let blob = repository(&server, "a").blob(&descriptor.digest, Some(descriptor.size));
    assert_eq!(range(&*blob, 0..100_000).await.unwrap_err().kind(), ErrorKind::Unreachable);
    assert!(server.count("GET", "/blobs/") < 10);
}

#[tokio::test]
async fn redirects_are_kept_and_renewed() {
    let server = TestRegistry::start(Rules { redirect_uses: Some(3), ..Rules::default() }).await.unwrap();
    let bytes = content();
    let descriptor = server.add_blob("a", "x", bytes.clone());
    let blob = repository(&server, "a").blob(&descriptor.digest, Some(descriptor.size));
    for i in 0..10 {
        let wanted = i * 1000..i * 1000 + 1000;
        let found = range(&*blob, wanted.clone()).await.unwrap();
        assert_eq!(found, bytes[wanted.start as usize..wanted.end as usize]);
    }
    // Each signature serves three requests: ten reads need four.
    assert_eq!(server.count("GET", "/v2/a/blobs/"), 4);
}

#[tokio::test]
async fn lies_are_the_readers_to_find() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let descriptor = server.add_blob("a", "x", content());
    server.fail_next("GET", "/blobs/", Fault::WrongBytes);
    let registry = repository(&server, "a");
    let error = registry.blob_bytes(&descriptor, 1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    registry.blob_bytes(&descriptor, 1 << 20).await.unwrap();
    assert_eq!(registry.blob_bytes(&descriptor, 10).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn redirects_end() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let descriptor = server.add_blob("a", "x", content());
    let to_itself = format!("/v2/a/blobs/{}", descriptor.digest);
    for _ in 0..100 {
        let location = ("location".to_owned(), to_itself.clone());
        server.fail_next("GET", "/blobs/", Fault::Status(307, vec![location], String::new()));
    }
    let blob = repository(&server, "a").blob(&descriptor.digest, None);
    let error = blob.read_all().await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(told(&error).contains("more than 10 redirects"), "{}", told(&error));
    assert_eq!(server.count("GET", "/blobs/"), 5 * 11, "five attempts of eleven requests");
}

#[tokio::test]
async fn no_registry_listens() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/a:b", listener.local_addr().unwrap());
    drop(listener);
    let reference = name.parse().unwrap();
    let registry =
        oci::Registry::new(&crate::client(), &reference, std::sync::Arc::new(oci::Anonymous)).unwrap();
    let error = registry.manifest("b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert_eq!(error.doing(), format!("fetch manifest of {name}"));
}
