//! Version 1: an index beside an image that stays as it is.

use index::{BuildOptions, CreateRoute, Created, ErrorKind, Event, Missing, Outcome, Platforms, create};
use oci::testing::{MemoryStore, Rules, TestRegistry};
use oci::{Anonymous, Client, ClientOptions, Descriptor, Manifest, Platform, Registry, Store};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::images::{config, example, image, layer, manifest, options};

async fn run(from: &dyn Store, to: &dyn Store, options: &BuildOptions) -> Result<Vec<Created>, index::Error> {
    Ok(create(route(from, to, &Platforms::All), options, &|_| {}).await?.1)
}

fn route<'a>(from: &'a dyn Store, to: &'a dyn Store, platforms: &'a Platforms) -> CreateRoute<'a> {
    CreateRoute { from, source: "example", to, platforms, missing: Missing::Keep }
}

/// The example of the format, by its digest.
#[tokio::test]
async fn example_by_digest() {
    let store = MemoryStore::new();
    let source = example(&store);
    let created = run(&store, &store, &options().build).await.unwrap();
    let [created] = &created[..] else { panic!("{created:?}") };
    assert_eq!(
        created.index.digest.to_string(),
        "sha256:477958eba1c5e7ec41f9eb402ece2e65f6b3c77d0d1e11b4647c4ae02d0ea7cd"
    );
    assert_eq!((created.index.size, created.subject.digest), (873, source.digest));
    assert_eq!(store.tag("example"), Some(source.digest), "the image stays");
    assert!(store.has(&created.index.digest));
}

#[tokio::test]
async fn a_registry_tells_of_it() {
    for no_referrers in [false, true] {
        let store = MemoryStore::new();
        let source = example(&store);
        let server = TestRegistry::start(Rules { no_referrers, ..Rules::default() }).await.unwrap();
        let client = Client::new(ClientOptions::default()).unwrap();
        let registry = Registry::new(&client, &server.reference("a:t"), Arc::new(Anonymous)).unwrap();
        run(&store, &registry, &options().build).await.unwrap();
        let sources =
            index::Sources { explicit: None, annotation: index::Lookup::Off, referrers: index::Lookup::On };
        let found = index::locate(&registry, &source.digest, None, &sources).await.unwrap().unwrap();
        assert_eq!(found.version, index::Version::V1);
        assert_eq!(found.ztocs.len(), 1);
    }
}

#[tokio::test]
async fn a_platform_without_ztocs_gets_no_index() {
    let store = MemoryStore::new();
    let small = layer(&store, "hello.txt");
    image(&store, "example", vec![small.clone()]);
    let mut options = options().build;
    options.min_layer_size = small.size + 1;
    assert_eq!(run(&store, &store, &options).await.unwrap_err().kind(), ErrorKind::NoZtocs);
    assert!(store.journal().is_empty(), "nothing was written");
}

#[tokio::test]
async fn the_platform_of_a_single_manifest_is_its_own() {
    let store = MemoryStore::new();
    let arm = manifest(config(&store, "linux/arm64"), vec![layer(&store, "hello.txt")]);
    let arm = store.add_manifest(oci::image::media_type::OCI_MANIFEST, oci::canonical_json(&arm));
    store.add_tag("example", arm.digest);
    let host = Platforms::OneOf(Platform::new("linux", "s390x", ""));
    let (target, created) = create(route(&store, &store, &host), &options().build, &|_| {}).await.unwrap();
    assert_eq!((target.digest, created[0].platform.to_string().as_str()), (arm.digest, "linux/arm64"));
    let other = Platforms::These(vec![Platform::new("linux", "s390x", "")]);
    let error = create(route(&store, &store, &other), &options().build, &|_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// Ztocs of an earlier build are taken where they are what would be built, and built anew where not.
#[tokio::test]
async fn known_ztocs() {
    let store = MemoryStore::new();
    example(&store);
    let first = run(&store, &store, &options().build).await.unwrap();
    let index = store.manifest(&first[0].index.digest).unwrap();
    let ztoc = Manifest::parse(&index, "test").unwrap().layers()[0].clone();
    let layer = ztoc.annotations[index::manifest::LAYER_DIGEST].parse().unwrap();

    let outcome = async |store: &MemoryStore, known: &Descriptor, change: &dyn Fn(&mut BuildOptions)| {
        let mut options = options().build;
        options.known = BTreeMap::from([(layer, known.clone())]);
        change(&mut options);
        let told = Mutex::new(None);
        let (_, created) = create(route(store, store, &Platforms::All), &options, &|event| {
            if let Event::Done(report) = event {
                *told.lock().unwrap() = Some(report.outcome.clone());
            }
        })
        .await
        .unwrap();
        (told.into_inner().unwrap().unwrap(), created[0].index.digest)
    };
    let (outcome_known, digest) = outcome(&store, &ztoc, &|_| {}).await;
    assert_eq!(digest, first[0].index.digest);
    assert!(matches!(outcome_known, Outcome::Known(_)));
    let (built, digest) = outcome(&store, &ztoc, &|options| options.span_size = 1 << 20).await;
    assert!(matches!(built, Outcome::Ztoc(_)));
    assert_ne!(digest, first[0].index.digest);
    let (built, _) = outcome(&store, &ztoc, &|options| options.build_tool = "another".to_owned()).await;
    assert!(matches!(built, Outcome::Ztoc(_)));
    let nonsense = store.add_blob("application/octet-stream", b"nonsense".to_vec());
    for wrong in [nonsense, Descriptor { size: ztoc.size - 1, ..ztoc.clone() }] {
        let (built, digest) = outcome(&store, &wrong, &|_| {}).await;
        assert!(matches!(built, Outcome::Ztoc(_)), "{wrong:?}");
        assert_eq!(digest, first[0].index.digest);
    }
    store.remove(&ztoc.digest);
    assert!(matches!(outcome(&store, &ztoc, &|_| {}).await.0, Outcome::Ztoc(_)));
}
