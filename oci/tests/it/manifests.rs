//! Manifests by tag and digest, and referrers.

use oci::image::media_type::{DOCKER_LIST, OCI_INDEX, OCI_MANIFEST};
use oci::testing::{Fault, Rules, TestRegistry};
use oci::{Digest, ErrorKind, Store};

use crate::{repository, told};

#[tokio::test]
async fn by_tag_and_digest() {
    for discourteous in [false, true] {
        let server = TestRegistry::start(Rules { discourteous, ..Rules::default() }).await.unwrap();
        let list = server.add_manifest("a", "t", DOCKER_LIST, br#"{"schemaVersion":2,"manifests":[]}"#);
        let registry = repository(&server, "a");
        for name in ["t".to_owned(), list.digest.to_string()] {
            let (descriptor, bytes) = registry.manifest(&name).await.unwrap();
            assert_eq!(descriptor, list);
            assert_eq!(Digest::sha256(&bytes), list.digest);
            assert_eq!(registry.resolve(&name).await.unwrap(), list);
        }
        let error = registry.manifest("u").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.doing(), format!("fetch manifest of {}/a:u", server.host()));
    }
}

#[tokio::test]
async fn refuses() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let list = server.add_manifest("a", "t", OCI_INDEX, b"{}");
    let registry = repository(&server, "a");
    server.fail_next("GET", "/manifests/", Fault::WrongBytes);
    assert_eq!(registry.manifest(&list.digest.to_string()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    // By tag there is still the digest the server announces.
    server.fail_next("GET", "/manifests/", Fault::WrongBytes);
    assert_eq!(registry.manifest("t").await.unwrap_err().kind(), ErrorKind::Corrupt);

    server.add_manifest("a", "big", OCI_MANIFEST, &vec![b' '; (8 << 20) + 1]);
    assert_eq!(registry.manifest("big").await.unwrap_err().kind(), ErrorKind::Corrupt);
    server.add_manifest("a", "old", "application/vnd.docker.distribution.manifest.v1+prettyjws", b"{}");
    let error = registry.manifest("old").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(told(&error).contains("prettyjws"));
}

#[tokio::test]
async fn one_that_breaks_off_is_asked_for_again() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let list = server.add_manifest("a", "t", OCI_INDEX, b"{}");
    let registry = repository(&server, "a");
    server.fail_next("GET", "/manifests/", Fault::Cut(1));
    let (found, bytes) = registry.manifest("t").await.unwrap();
    assert_eq!((found.digest, &bytes[..]), (list.digest, &b"{}"[..]));
    for _ in 0..5 {
        server.fail_next("GET", "/manifests/", Fault::Cut(1));
    }
    assert_eq!(registry.manifest("t").await.unwrap_err().kind(), ErrorKind::Unreachable);
}

#[tokio::test]
async fn media_type_from_the_document() {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let registry = repository(&server, "a");
    for (document, expected) in [
        (r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#, Some(OCI_INDEX)),
        (r#"{"manifests":[]}"#, Some(OCI_INDEX)),
        (r#"{"config":{}}"#, Some(OCI_MANIFEST)),
        (r#"{"config":{},"manifests":[]}"#, None),
        ("[]", None),
    ] {
        server.add_manifest("a", "t", "text/plain; charset=utf-8", document.as_bytes());
        let found = registry.manifest("t").await.ok().map(|(descriptor, _)| descriptor.media_type);
        assert_eq!(found.as_deref(), expected, "{document}");
    }
}

#[tokio::test]
async fn referrers() {
    let subject = Digest::sha256(b"subject");
    let document = |artifact: &str, n: u32| {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{artifact}","digest":"{subject}","size":2}},"layers":[],
            "subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{subject}","size":7}},"annotations":{{"n":"{n}"}}}}"#
        )
    };
    for page in [None, Some(1), Some(2)] {
        let server = TestRegistry::start(Rules { referrers_page: page, ..Rules::default() }).await.unwrap();
        for n in 0..3 {
            server.add_manifest("a", "", OCI_MANIFEST, document("type/a", n).as_bytes());
            server.add_manifest("a", "", OCI_MANIFEST, document("type/b", n).as_bytes());
        }
        let registry = repository(&server, "a");
        assert_eq!(registry.referrers(&subject, Some("type/a")).await.unwrap().len(), 3, "{page:?}");
        assert_eq!(registry.referrers(&subject, None).await.unwrap().len(), 6, "{page:?}");
        assert_eq!(registry.referrers(&Digest::sha256(b"x"), None).await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn referrers_by_tag() {
    let server = TestRegistry::start(Rules { no_referrers: true, ..Rules::default() }).await.unwrap();
    let subject = Digest::sha256(b"subject");
    let registry = repository(&server, "a");
    assert!(registry.referrers(&subject, None).await.unwrap().is_empty());
    let entry = |artifact: &str| {
        format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{subject}","size":7,"artifactType":"{artifact}"}}"#
        )
    };
    let list = format!(r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#, entry("type/a"), entry("type/b"));
    server.add_manifest("a", &format!("sha256-{}", subject.hex()), OCI_INDEX, list.as_bytes());
    assert_eq!(registry.referrers(&subject, Some("type/b")).await.unwrap().len(), 1);
    server.fail_next("GET", "/manifests/", Fault::Status(403, Vec::new(), String::new()));
    assert_eq!(registry.referrers(&subject, None).await.unwrap_err().kind(), ErrorKind::Denied);
}
