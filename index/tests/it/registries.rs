//! The same between registries over HTTP.

use std::sync::Arc;
use std::time::Duration;

use index::ErrorKind;
use oci::testing::{Fault, MemoryStore, Rules, TestRegistry};
use oci::{Anonymous, Client, ClientOptions, Registry, Store};

use crate::images::{example, options, run};

fn open(server: &TestRegistry, name: &str) -> Registry {
    let client = Client::new(ClientOptions { pause: Duration::from_millis(1), ..ClientOptions::default() });
    Registry::new(&client.unwrap(), &server.reference(name), Arc::new(Anonymous)).unwrap()
}

/// A registry that holds the example image as `src:example`.
async fn serving(rules: Rules) -> TestRegistry {
    let server = TestRegistry::start(rules).await.unwrap();
    let memory = MemoryStore::new();
    let image = example(&memory);
    let bytes = memory.manifest(&image.digest).unwrap();
    let manifest = oci::Manifest::parse(&bytes, "test").unwrap();
    for blob in [&manifest.config, &manifest.layers()[0]] {
        let source = memory.blob(blob).read_all().await.unwrap();
        let bytes = oci::blob::collect(source, 1 << 20, "test").await.unwrap();
        server.add_blob("src", &blob.media_type, bytes);
    }
    server.add_manifest("src", "example", &image.media_type, &bytes);
    server
}

const CONVERTED: &str = "sha256:9728721189b12f18b7e1c26c8c22549b20fec7d96c2d68ee6c1e04f24e235e25";

#[tokio::test]
async fn to_a_neighbor_and_to_another_registry() {
    let source = serving(Rules { redirect_uses: Some(1), ..Rules::default() }).await;
    let from = open(&source, "src");
    let neighbor = open(&source, "dst/a");
    let report = run(&from, "example", &neighbor, &options()).await.unwrap();
    assert_eq!(report.image.digest.to_string(), CONVERTED);
    assert_eq!(source.manifest("dst/a", "converted"), source.manifest("dst/a", CONVERTED));

    let other = TestRegistry::start(Rules { discourteous: true, ..Rules::default() }).await.unwrap();
    let report = run(&from, "example", &open(&other, "dst"), &options()).await.unwrap();
    assert_eq!(report.image.digest.to_string(), CONVERTED);
    assert!(other.manifest("dst", "converted").is_some());

    let image = "sha256:3e1aef9a1d62cbab0f07cf88eba9a57eb9cc039f415076cbf32621a4c5e978d3".parse().unwrap();
    let (place, usual) = (open(&other, "dst"), index::Sources::default());
    let found = index::locate(&place, &image, None, &usual).await.unwrap();
    assert_eq!(found.unwrap().ztocs.len(), 1);
}

/// One pass: the ztoc is built of the very bytes that are on their way to the other registry. Where a transfer breaks
/// it is begun again, and so is the ztoc.
#[tokio::test]
async fn a_layer_is_read_once() {
    let layer = "/blobs/sha256:57907f95";
    let source = serving(Rules::default()).await;
    for (broken, reads) in [(false, 1), (true, 2)] {
        let target = TestRegistry::start(Rules::default()).await.unwrap();
        if broken {
            // The first upload is the empty configuration of the index.
            target.fail_next("PUT", "/blobs/uploads/2", Fault::Drop);
        }
        let before = source.count("GET", layer);
        let report = run(&open(&source, "src"), "example", &open(&target, "dst"), &options()).await.unwrap();
        assert_eq!(report.image.digest.to_string(), CONVERTED);
        assert_eq!(source.count("GET", layer) - before, reads);
        // There already, it is read for its ztoc only.
        let again = run(&open(&source, "src"), "example", &open(&target, "dst"), &options()).await.unwrap();
        assert_eq!(again.image, report.image);
        assert_eq!(source.count("GET", layer) - before, reads + 1);
    }
}

#[tokio::test]
async fn registry_that_dies() {
    let source = serving(Rules::default()).await;
    let target = TestRegistry::start(Rules::default()).await.unwrap();
    for _ in 0..20 {
        target.fail_next("PUT", "/manifests/sha256:3e1aef9a", Fault::Drop);
    }
    let error = run(&open(&source, "src"), "example", &open(&target, "dst"), &options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(target.manifest("dst", "converted").is_none());
}

#[tokio::test]
async fn target_that_refuses_is_found_out_first() {
    let source = serving(Rules::default()).await;
    let target = TestRegistry::start(Rules::default()).await.unwrap();
    target.fail_next("POST", "/blobs/uploads/", Fault::Status(403, Vec::new(), String::new()));
    let error = run(&open(&source, "src"), "example", &open(&target, "dst"), &options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(source.count("GET", "/blobs/sha256:57907f95"), 0, "no layer was read");
}

#[tokio::test]
async fn source_that_breaks_and_lies() {
    let source = serving(Rules::default()).await;
    let target = TestRegistry::start(Rules::default()).await.unwrap();
    let (from, to) = (open(&source, "src"), open(&target, "dst"));
    let layer = "/blobs/sha256:57907f95";
    source.fail_next("GET", layer, Fault::WrongBytes);
    let error = run(&from, "example", &to, &options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    source.fail_next("GET", layer, Fault::Cut(1000));
    run(&from, "example", &to, &options()).await.unwrap();
}
