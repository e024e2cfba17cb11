//! Conversions, by the digests they give.

use std::collections::BTreeMap;
use std::sync::Mutex;

use index::{
    ConvertOptions, ErrorKind, Event, Missing, Outcome, Platforms, Route, XattrOptimization, convert,
};
use oci::image::media_type::{DOCKER_LIST, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use oci::testing::MemoryStore;
use oci::{Descriptor, Digest, Index, Manifest, Platform, Store, canonical_json};

use crate::images::{config, example, gzip, image, layer, manifest, options, run, soci_of, tar};

const CONVERTED: &str = "sha256:9728721189b12f18b7e1c26c8c22549b20fec7d96c2d68ee6c1e04f24e235e25";
const SOCI: &str = "sha256:81cea9e3b637c735d61111dbb26a21f71c3094daa92d5a6b618624113553e239";
const ZTOC: &str = "sha256:3da338d98e6659ffdde98f633089d35aa95d7a97b00325aa9c8d5d0798bb5c02";

#[tokio::test]
async fn example_by_digest() {
    let from = MemoryStore::new();
    let source = example(&from);
    assert_eq!(
        source.digest.to_string(),
        "sha256:0594a1533625a659989503098c8a34b9066fb67f69636a382758b16a85bc62b6"
    );
    let to = MemoryStore::new();
    let report = run(&from, "example", &to, &options()).await.unwrap();
    assert_eq!(report.image.digest.to_string(), CONVERTED);
    assert_eq!(report.image.size, 801);
    assert_eq!(report.platforms.len(), 1);
    let indexed = report.platforms[0].1.clone().unwrap();
    assert_eq!(indexed.index.digest.to_string(), SOCI);
    assert_eq!(indexed.image.0, source.digest);
    assert!(to.manifest(&indexed.image.1).is_some());
    assert!(to.has(&ZTOC.parse().unwrap()));
    assert_eq!(to.tag("converted"), Some(report.image.digest));
    // What is pointed to comes before what points to it, and the tag last.
    let journal = to.journal();
    let at = |what: &str| journal.iter().position(|entry| entry.contains(what)).unwrap();
    assert!(at(ZTOC) < at(SOCI) && at(SOCI) < at("sha256:3e1aef9a"));
    assert_eq!(at("tag "), journal.len() - 1);
    assert!(from.journal().is_empty());
}

#[tokio::test]
async fn in_the_same_store() {
    let store = MemoryStore::new();
    let source = example(&store);
    let report = run(&store, &source.digest.to_string(), &store, &options()).await.unwrap();
    assert_eq!(report.image.digest.to_string(), CONVERTED);
}

#[tokio::test]
async fn converting_again_changes_nothing() {
    let store = MemoryStore::new();
    list(&store);
    let first = run(&store, "list", &store, &options()).await.unwrap();
    let again = run(&store, "converted", &store, &options()).await.unwrap();
    assert_eq!(again.image, first.image);

    // One platform only: the other one's index stays as it was. (The Go tool fails here.)
    let one = these(&["linux/arm64"]);
    let part = run(&store, "converted", &store, &one).await.unwrap();
    assert_eq!(part.image, first.image);

    // And moved to another store, everything comes along.
    let other = MemoryStore::new();
    let moved = run(&store, "converted", &other, &one).await.unwrap();
    assert_eq!(moved.image, first.image);
    let index = entries(&other, &moved.image.digest);
    for entry in &index {
        let manifest = Manifest::parse(&other.manifest(&entry.digest).unwrap(), "test").unwrap();
        assert!(manifest.layers().iter().all(|layer| other.has(&layer.digest)), "{entry:?}");
        assert!(other.has(&manifest.config.digest));
    }
}

/// A Docker list of amd64, arm64 and an attestation of the first.
fn list(store: &MemoryStore) -> (Descriptor, Descriptor) {
    let mut entries = Vec::new();
    for (architecture, file) in [("amd64", "hello.txt"), ("arm64", "other.txt")] {
        let platform = format!("linux/{architecture}");
        let image = manifest(config(store, &platform), vec![layer(store, file)]);
        let mut entry = store.add_manifest(OCI_MANIFEST, canonical_json(&image));
        entry.platform = Some(platform.parse().unwrap());
        entry.annotations = BTreeMap::from([("lost".to_owned(), "x".to_owned())]);
        entries.push(entry);
    }
    let statement = store.add_blob("application/vnd.in-toto+json", b"{\"x\":1}".to_vec());
    let attestation = manifest(store.add_blob("x", b"{\"y\":1}".to_vec()), vec![statement]);
    let mut entry = store.add_manifest(OCI_MANIFEST, canonical_json(&attestation));
    entry.platform = Some(Platform::new("unknown", "unknown", ""));
    entry.annotations = BTreeMap::from([
        ("vnd.docker.reference.digest".to_owned(), entries[0].digest.to_string()),
        ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
    ]);
    let (amd64, attestation) = (entries[0].clone(), entry.clone());
    entries.push(entry);
    let index = Index {
        schema_version: 2,
        media_type: DOCKER_LIST.to_owned(),
        artifact_type: String::new(),
        manifests: Some(entries),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let descriptor = store.add_manifest(DOCKER_LIST, canonical_json(&index));
    store.add_tag("list", descriptor.digest);
    (amd64, attestation)
}

fn entries(store: &MemoryStore, digest: &Digest) -> Vec<Descriptor> {
    Index::parse(&store.manifest(digest).unwrap(), "test").unwrap().manifests.unwrap()
}

fn these(platforms: &[&str]) -> ConvertOptions {
    let these = platforms.iter().map(|text| text.parse().unwrap()).collect();
    ConvertOptions { platforms: Platforms::These(these), ..options() }
}

#[tokio::test]
async fn docker_list() {
    let from = MemoryStore::new();
    list(&from);
    let to = MemoryStore::new();
    let report = run(&from, "list", &to, &options()).await.unwrap();
    assert_eq!(report.image.media_type, OCI_INDEX);
    let found = entries(&to, &report.image.digest);
    let said: Vec<(String, &str)> =
        found.iter().map(|e| (e.platform.as_ref().unwrap().to_string(), e.artifact_type.as_str())).collect();
    let v2 = "application/vnd.amazon.soci.index.v2+json";
    let expected = [
        ("linux/amd64", ""),
        ("linux/arm64", ""),
        ("unknown/unknown", ""),
        ("linux/amd64", v2),
        ("linux/arm64", v2),
    ];
    assert_eq!(said, expected.map(|(platform, artifact)| (platform.to_owned(), artifact)));
    assert!(found.iter().all(|entry| entry.media_type == OCI_MANIFEST));
    let annotation = |at: usize, name: &str| found[at].annotations.get(name).cloned();
    for (image, soci) in [(0, 3), (1, 4)] {
        let image_digest = Some(found[image].digest.to_string());
        assert_eq!(annotation(soci, "com.amazon.soci.image-manifest-digest"), image_digest);
        let soci_digest = Some(found[soci].digest.to_string());
        assert_eq!(annotation(image, "com.amazon.soci.index-digest"), soci_digest);
        assert_eq!(annotation(image, "lost"), None, "as the Go tool does");
    }
    // The attestation still says what it attests, and that is the image as it is now.
    assert_eq!(annotation(2, "vnd.docker.reference.digest"), Some(found[0].digest.to_string()));
    assert_eq!(annotation(2, "vnd.docker.reference.type"), Some("attestation-manifest".to_owned()));
    let attestation = Manifest::parse(&to.manifest(&found[2].digest).unwrap(), "test").unwrap();
    assert!(to.has(&attestation.layers()[0].digest));
}

#[tokio::test]
async fn some_platforms() {
    let store = MemoryStore::new();
    list(&store);
    let one = these(&["linux/arm64/v8", "linux/arm64"]);
    let report = run(&store, "list", &store, &one).await.unwrap();
    let found = entries(&store, &report.image.digest);
    assert_eq!(found.len(), 4);
    assert_eq!(found[3].platform, Some(Platform::new("linux", "arm64", "v8")), "as it was asked for");
    assert!(found[0].annotations.is_empty(), "the other stays, without an index");

    let error = run(&store, "list", &store, &these(&["linux/s390x"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), "image manifest for linux/s390x: not found");
}

#[tokio::test]
async fn entries_that_are_not_there() {
    let store = MemoryStore::new();
    let (amd64, attestation) = list(&store);
    store.remove(&amd64.digest);
    let error = run(&store, "list", &store, &options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let report = run(&store, "list", &store, &these(&["linux/arm64"])).await.unwrap();
    let found = entries(&store, &report.image.digest);
    assert_eq!(found[0], amd64, "left untouched");
    assert_ne!(found[2], attestation, "the attestation is written anew");
}

/// What became of each layer, by its media type and bytes.
async fn outcomes(layers: &[(&str, Vec<u8>)], min: u64) -> (Result<(), ErrorKind>, Vec<String>) {
    let store = MemoryStore::new();
    let layers = layers.iter().map(|(media_type, bytes)| store.add_blob(media_type, bytes.clone()));
    let layers = layers.collect();
    image(&store, "image", layers);
    let mut options = options();
    options.build.min_layer_size = min;
    let told = Mutex::new(Vec::new());
    let route = Route { from: &store, source: "image", to: &store, tag: "converted" };
    let result = convert(route, &options, &|event| {
        let Event::Done(report) = event else { return };
        told.lock().unwrap().push(match &report.outcome {
            Outcome::Ztoc(_) => "ztoc".to_owned(),
            Outcome::Known(_) => "known".to_owned(),
            Outcome::Skipped(skip) => skip.to_string(),
        });
    })
    .await;
    assert_eq!(store.tag("converted").is_some(), result.is_ok());
    let mut told = told.into_inner().unwrap();
    told.sort();
    (result.map(|_| ()).map_err(|error| error.kind()), told)
}

#[tokio::test]
async fn layers_that_get_no_ztoc() {
    let good = || ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&tar("hello.txt", b'0')));
    let check = async |layers: &[(&str, Vec<u8>)], min, expected: Result<(), ErrorKind>, told: &[&str]| {
        let found = outcomes(layers, min).await;
        assert_eq!(found.0, expected, "{told:?}");
        assert_eq!(found.1.len(), told.len(), "{:?}", found.1);
        for (found, expected) in found.1.iter().zip(told) {
            assert!(found.contains(expected), "{found}");
        }
    };
    // 2071 bytes: the limit itself is big enough.
    check(&[good()], 2071, Ok(()), &["ztoc"]).await;
    check(&[good()], 2072, Err(ErrorKind::NoZtocs), &["is less than min-layer-size 2072"]).await;
    let zstd = ("application/vnd.oci.image.layer.v1.tar+zstd", vec![1; 5000]);
    check(std::slice::from_ref(&zstd), 0, Err(ErrorKind::NoZtocs), &["got \"zstd\""]).await;
    check(&[zstd, good()], 0, Ok(()), &["got \"zstd\"", "ztoc"]).await;
    check(&[(OCI_LAYER, tar("x", b'0')), good()], 0, Ok(()), &["ztoc", "ztoc"]).await;
    check(&[good(), good()], 0, Ok(()), &["ztoc"]).await;
    // A global PAX header cannot be expressed; the layer is left out, the image still gets its index.
    let global = ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&tar("x", b'g')));
    check(&[global, good()], 0, Ok(()), &["cannot be indexed", "ztoc"]).await;
    let broken = ("application/vnd.oci.image.layer.v1.tar+gzip", b"no gzip".to_vec());
    check(&[broken], 0, Err(ErrorKind::NoZtocs), &["cannot be read"]).await;
    check(&[("text/plain", vec![1])], 0, Err(ErrorKind::Unsupported), &[]).await;
    let prefetch = ("application/vnd.amazon.soci.prefetch.v1+json", b"{}".to_vec());
    check(&[prefetch, good()], 0, Ok(()), &["ztoc"]).await;
}

#[tokio::test]
async fn same_layer_twice_is_listed_twice() {
    let store = MemoryStore::new();
    let twice = layer(&store, "hello.txt");
    image(&store, "image", vec![twice.clone(), twice]);
    let report = run(&store, "image", &store, &options()).await.unwrap();
    let soci = store.manifest(&soci_of(&report)).unwrap();
    assert_eq!(Manifest::parse(&soci, "test").unwrap().layers().len(), 2);
}

#[tokio::test]
async fn xattr_optimization() {
    let store = MemoryStore::new();
    example(&store);
    let mut options = options();
    options.build.xattrs = XattrOptimization::Annotate;
    let report = run(&store, "example", &store, &options).await.unwrap();
    let soci = store.manifest(&soci_of(&report)).unwrap();
    let ztoc = Manifest::parse(&soci, "test").unwrap().layers()[0].clone();
    assert!(index::manifest::disables_xattrs(&ztoc));
}

/// Two images for one processor, of which one wants a feature: each gets its own index.
#[tokio::test]
async fn features_tell_platforms_apart() {
    let store = MemoryStore::new();
    let platform = Platform::new("linux", "amd64", "");
    let special = Platform { os_features: vec!["x".to_owned()], ..platform.clone() };
    let mut entries_made = Vec::new();
    for (platform, file) in [(platform, "hello.txt"), (special, "other.txt")] {
        let image = manifest(config(&store, "linux/amd64"), vec![layer(&store, file)]);
        let mut entry = store.add_manifest(OCI_MANIFEST, canonical_json(&image));
        entry.platform = Some(platform);
        entries_made.push(entry);
    }
    for order in [[0, 1], [1, 0]] {
        let entries_here = order.map(|at| entries_made[at].clone()).to_vec();
        let index = Index::of(entries_here);
        let descriptor = store.add_manifest(OCI_INDEX, canonical_json(&index));
        store.add_tag("features", descriptor.digest);
        let report = run(&store, "features", &store, &options()).await.unwrap();
        let found = entries(&store, &report.image.digest);
        let of = |entry: &Descriptor| entry.annotations["com.amazon.soci.image-manifest-digest"].clone();
        assert_eq!(found.len(), 4);
        assert_eq!([of(&found[2]), of(&found[3])], [0, 1].map(|at| found[at].digest.to_string()));
        let again = run(&store, "converted", &store, &options()).await.unwrap();
        assert_eq!(again.image, report.image);
    }
}

/// One platform of two was copied into a folder: the other one's manifest is not there.
#[tokio::test]
async fn what_is_missing_stays_or_goes() {
    let store = MemoryStore::new();
    let (amd64, _) = list(&store);
    store.remove(&amd64.digest);
    let arm = ConvertOptions { missing: Missing::Drop, ..these(&["linux/arm64"]) };
    let report = run(&store, "list", &store, &arm).await.unwrap();
    let found = entries(&store, &report.image.digest);
    let platforms: Vec<String> = found.iter().map(|e| e.platform.as_ref().unwrap().to_string()).collect();
    assert_eq!(platforms, ["linux/arm64", "unknown/unknown", "linux/arm64"]);

    // Of one manifest that is left, it is as if it had been alone.
    let store = MemoryStore::new();
    list(&store);
    let index = Index::parse(&store.manifest(&store.tag("list").unwrap()).unwrap(), "test").unwrap();
    for gone in [0, 2] {
        store.remove(&index.manifests()[gone].digest);
    }
    let all = ConvertOptions { missing: Missing::Drop, ..options() };
    let report = run(&store, "list", &store, &all).await.unwrap();
    let found = entries(&store, &report.image.digest);
    assert_eq!(found.len(), 2);
    let alone = store.manifest(&index.manifests()[1].digest).unwrap();
    let (from, to) = (MemoryStore::new(), MemoryStore::new());
    for layer in Manifest::parse(&alone, "test").unwrap().layers() {
        from.copy_blob(layer, &store).await.unwrap();
    }
    from.copy_blob(&Manifest::parse(&alone, "test").unwrap().config, &store).await.unwrap();
    from.add_manifest(OCI_MANIFEST, alone);
    from.add_tag("alone", index.manifests()[1].digest);
    let expected = run(&from, "alone", &to, &options()).await.unwrap();
    assert_eq!(expected.image, report.image);

    store.remove(&index.manifests()[1].digest);
    let error = run(&store, "list", &store, &all).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn layer_that_is_not_what_it_says() {
    let store = MemoryStore::new();
    let mut wrong = layer(&store, "hello.txt");
    wrong.size += 1;
    image(&store, "size", vec![wrong]);
    let error = run(&store, "size", &store, &options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let mut missing = layer(&store, "hello.txt");
    missing.digest = Digest::sha256(b"missing");
    image(&store, "missing", vec![missing]);
    let error = run(&store, "missing", &store, &options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(store.tag("converted"), None);
}

#[tokio::test]
async fn bad_sources() {
    let store = MemoryStore::new();
    let error = run(&store, "missing", &store, &options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    for (media_type, text, kind) in [
        (OCI_INDEX, "{}", ErrorKind::Corrupt),
        (OCI_INDEX, r#"{"schemaVersion":1}"#, ErrorKind::Unsupported),
        (OCI_INDEX, r#"{"schemaVersion":2,"manifests":[]}"#, ErrorKind::NotFound),
        (OCI_MANIFEST, "[]", ErrorKind::Corrupt),
        ("text/plain", "{}", ErrorKind::Unsupported),
    ] {
        let descriptor = store.add_manifest(media_type, text.as_bytes().to_vec());
        let error = run(&store, &descriptor.digest.to_string(), &store, &options()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{text}");
    }
}

#[tokio::test]
async fn target_that_dies() {
    let from = MemoryStore::new();
    list(&from);
    let whole = MemoryStore::new();
    run(&from, "list", &whole, &options()).await.unwrap();
    let writes = whole.journal().len();
    for survived in 0..writes {
        let to = MemoryStore::new();
        to.die_after(survived);
        let error = run(&from, "list", &to, &options()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{survived}");
        assert_eq!(to.tag("converted"), None, "{survived}");
    }
    let to: &dyn Store = &whole;
    assert!(to.resolve("converted").await.is_ok());
}
