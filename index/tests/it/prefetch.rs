//! Prefetch artifacts beside ztocs.

use std::sync::Mutex;

use index::manifest::{LAYER_DIGEST, PREFETCH};
use index::{Event, Route, convert};
use oci::testing::MemoryStore;
use oci::{Descriptor, Manifest};

use crate::images::{image, layer, options, soci_of};

/// What the index lists behind the ztocs, and which files were not found.
async fn artifacts(store: &MemoryStore, paths: &[&str]) -> (Vec<Descriptor>, Vec<String>) {
    let mut options = options();
    options.build.prefetch = paths.iter().map(|&path| path.to_owned()).collect();
    let missing = Mutex::new(Vec::new());
    let route = Route { from: store, source: "image", to: store, tag: "converted" };
    let report = convert(route, &options, &|event| {
        if let Event::NoSuchFile(path) = event {
            missing.lock().unwrap().push(path.to_owned());
        }
    })
    .await
    .unwrap();
    let soci = Manifest::parse(&store.manifest(&soci_of(&report)).unwrap(), "test").unwrap();
    let artifacts = soci.layers().iter().skip_while(|entry| entry.media_type != PREFETCH);
    (artifacts.cloned().collect(), missing.into_inner().unwrap())
}

#[tokio::test]
async fn listed_behind_the_ztocs_in_the_order_of_the_layers() {
    let store = MemoryStore::new();
    let layers = vec![layer(&store, "a"), layer(&store, "b"), layer(&store, "c")];
    image(&store, "image", layers.clone());
    let (found, missing) = artifacts(&store, &["/c", " a", "d", "./b/../a", ""]).await;
    assert_eq!(missing, ["d"]);
    let of: Vec<&str> = found.iter().map(|entry| entry.annotations[LAYER_DIGEST].as_str()).collect();
    assert_eq!(of, [layers[0].digest.to_string(), layers[2].digest.to_string()]);
    // One span each, so both are the same bytes.
    assert_eq!(found[0].digest, found[1].digest);
    assert!(store.has(&found[0].digest));
    let expected = br#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":0}]}"#;
    assert_eq!(found[0].digest, oci::Digest::sha256(expected));
}

#[tokio::test]
async fn nothing_asked_for_and_nothing_found() {
    let store = MemoryStore::new();
    image(&store, "image", vec![layer(&store, "a")]);
    assert_eq!(artifacts(&store, &[]).await, (Vec::new(), Vec::new()));
    assert_eq!(artifacts(&store, &["nothing"]).await, (Vec::new(), vec!["nothing".to_owned()]));
}

/// The topmost layer that has a file is the one whose file a container sees.
#[tokio::test]
async fn the_topmost_layer_wins() {
    let store = MemoryStore::new();
    let same = layer(&store, "a");
    let mut top = same.clone();
    top.media_type = oci::image::media_type::DOCKER_LAYER_GZIP.to_owned();
    image(&store, "image", vec![same, layer(&store, "b"), top]);
    let (found, missing) = artifacts(&store, &["a"]).await;
    assert_eq!((found.len(), missing.len()), (1, 0));
}
