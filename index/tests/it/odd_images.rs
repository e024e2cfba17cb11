//! Images that other tools make and run, and that are not the ordinary: layers that are not what their media type says,
//! layers that are to be fetched from elsewhere, image indexes in image indexes.

use std::sync::Mutex;

use index::{ConvertOptions, Event, Missing, Outcome, Platforms, Route, convert, images};
use oci::{
    Descriptor, Digest, Index, Manifest, canonical_json,
    image::media_type::{OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST},
    testing::MemoryStore,
};

use crate::images::{config, gzip, image, layer, manifest, options, run, tar};

/// Converts an image of this layer and a good one, and says why this one has no ztoc.
async fn reason(media_type: &str, bytes: Vec<u8>) -> String {
    let from = MemoryStore::new();
    let odd = from.add_blob(media_type, bytes);
    image(&from, "image", vec![odd.clone(), layer(&from, "good")]);
    let (to, reasons) = (MemoryStore::new(), Mutex::new(Vec::new()));
    let route = Route { from: &from, source: "image", to: &to, tag: "converted" };
    let observer = |event: Event<'_>| {
        if let Event::Done(report) = event
            && let Outcome::Skipped(skip) = &report.outcome
        {
            reasons.lock().unwrap().push(skip.to_string());
        }
    };
    let report = convert(route, &options(), &observer).await.expect("the other layer has an index");
    assert!(report.platforms[0].1.is_some());
    assert!(to.has(&odd.digest), "the layer itself is copied");
    let mut reasons = reasons.into_inner().unwrap();
    assert_eq!(reasons.len(), 1);
    reasons.remove(0)
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_media_type_says_is_left_out() {
    const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let plain = tar("file", b'0');
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0; 600]].concat();
    for (media_type, bytes, expected) in [
        (OCI_LAYER_GZIP, plain.clone(), "its bytes are an uncompressed tar, and its media type is"),
        (DOCKER_GZIP, plain.clone(), "its bytes are an uncompressed tar, and its media type is"),
        (OCI_LAYER, gzip(&plain), "its bytes are gzip, and its media type is"),
        (OCI_LAYER_GZIP, zstd, "its bytes are zstd, and its media type is"),
        (OCI_LAYER_GZIP, b"BZh91AY".to_vec(), "its bytes are bzip2, and its media type is"),
        (OCI_LAYER_GZIP, b"garbage".to_vec(), "not a gzip stream"),
    ] {
        let found = reason(media_type, bytes).await;
        assert!(found.contains(expected), "{media_type}: {found}");
    }
}

#[tokio::test]
async fn a_damaged_layer_is_left_out() {
    let good = gzip(&tar("file", b'0'));
    let mut wrong_checksum = good.clone();
    let at = good.len() - 6;
    wrong_checksum[at] ^= 1;
    for (bytes, expected) in [
        ([&good[..], &[0; 512]].concat(), "something that is not gzip follows the gzip stream"),
        ([&good[..], b"text"].concat(), "something that is not gzip follows the gzip stream"),
        (good[..good.len() - 20].to_vec(), "unexpected end of the stream"),
        (wrong_checksum, "a damaged one"),
        (gzip(&tar("file", b'0')[..515]), "unexpected end"),
    ] {
        let found = reason(OCI_LAYER_GZIP, bytes).await;
        assert!(found.starts_with("cannot be read: ") && found.contains(expected), "{expected}: {found}");
    }
}

/// An image of linux, and one of Windows with a base layer that its registry does not have.
#[tokio::test]
async fn a_foreign_layer_that_is_not_there_is_left_out() {
    let from = MemoryStore::new();
    let linux = image(&from, "linux", vec![layer(&from, "linux")]);
    let mut foreign = Descriptor::new(
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        Digest::sha256(b"elsewhere"),
        5000,
    );
    foreign.urls = vec!["https://example.com/base".to_owned()];
    let own = layer(&from, "windows");
    let windows = manifest(config(&from, "windows/amd64"), vec![foreign.clone(), own.clone()]);
    let windows = from.add_manifest(OCI_MANIFEST, canonical_json(&windows));
    let entry = |mut entry: Descriptor, platform: &str| {
        entry.platform = Some(platform.parse().unwrap());
        entry
    };
    let index = Index::of(vec![entry(linux, "linux/amd64"), entry(windows, "windows/amd64")]);
    let index = from.add_manifest(OCI_INDEX, canonical_json(&index));
    from.add_tag("both", index.digest);
    let to = MemoryStore::new();
    let report = run(&from, "both", &to, &options()).await.unwrap();
    assert!(report.platforms.iter().all(|(_, indexed)| indexed.is_some()), "{report:?}");
    let windows = report.platforms[1].1.as_ref().unwrap();
    let soci = Manifest::parse(&to.manifest(&windows.index.digest).unwrap(), "test").unwrap();
    assert_eq!(soci.layers().len(), 1, "the ztoc of the layer that is there");
    let image = Manifest::parse(&to.manifest(&windows.image.1).unwrap(), "test").unwrap();
    assert_eq!(image.layers()[0].digest, foreign.digest, "the image still names it");
    assert!(!to.has(&foreign.digest) && to.has(&own.digest));
}

/// An index whose entry for this platform is an index of the image and its attestation, `depth` times.
fn nested(store: &MemoryStore, depth: usize) -> (Descriptor, Descriptor) {
    let mut inside = image(store, "inside", vec![layer(store, "inside")]);
    let amd64 = "linux/amd64".parse().unwrap();
    inside.platform = Some(amd64);
    let payload = store.add_blob("application/vnd.in-toto+json", b"{}".to_vec());
    let attestation = manifest(config(store, "unknown/unknown"), vec![payload]);
    let mut attestation = store.add_manifest(OCI_MANIFEST, canonical_json(&attestation));
    attestation.platform = Some("unknown/unknown".parse().unwrap());
    attestation.annotations.insert("vnd.docker.reference.digest".into(), inside.digest.to_string());
    attestation.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
    let image = inside.clone();
    let mut entries = vec![inside, attestation];
    for _ in 0..depth {
        let mut around = store.add_manifest(OCI_INDEX, canonical_json(&Index::of(entries)));
        around.platform = Some("linux/amd64".parse().unwrap());
        entries = vec![around];
    }
    let index = store.add_manifest(OCI_INDEX, canonical_json(&Index::of(entries)));
    store.add_tag("nested", index.digest);
    (index, image)
}

fn entries(store: &MemoryStore, digest: &Digest) -> Vec<Descriptor> {
    Index::parse(&store.manifest(digest).unwrap(), "test").unwrap().manifests().to_vec()
}

#[tokio::test]
async fn an_image_in_a_nested_index_gets_its_index_and_keeps_its_attestation() {
    let from = MemoryStore::new();
    let (_, before) = nested(&from, 1);
    let to = MemoryStore::new();
    let wanted = [options().platforms, Platforms::These(vec!["linux/amd64".parse().unwrap()])];
    for platforms in wanted {
        let report = run(&from, "nested", &to, &ConvertOptions { platforms, ..options() }).await.unwrap();
        let indexed = report.platforms[0].1.as_ref().expect("an index");
        assert_eq!(indexed.image.0, before.digest);
        let top = entries(&to, &report.image.digest);
        assert_eq!(top.len(), 2, "the nested index, and the SOCI index");
        assert_eq!(top[1].digest, indexed.index.digest);
        let inside = entries(&to, &top[0].digest);
        assert_eq!(inside[0].digest, indexed.image.1);
        assert_eq!(inside[1].annotations["vnd.docker.reference.digest"], indexed.image.1.to_string());
        let image = Manifest::parse(&to.manifest(&inside[0].digest).unwrap(), "test").unwrap();
        assert_eq!(
            image.annotations["com.amazon.soci.index-digest"],
            indexed.index.digest.to_string(),
            "what the daemon looks for"
        );
        assert!(to.has(&image.layers()[0].digest) && to.has(&image.config.digest));
        let attestation = Manifest::parse(&to.manifest(&inside[1].digest).unwrap(), "test").unwrap();
        assert!(to.has(&attestation.layers()[0].digest));
    }
}

#[tokio::test]
async fn indexes_are_nested_to_a_limit() {
    let store = MemoryStore::new();
    nested(&store, 4);
    assert!(run(&store, "nested", &store, &options()).await.is_ok());
    nested(&store, 5);
    let error = run(&store, "nested", &store, &options()).await.unwrap_err();
    assert!(format!("{error:?}").contains("nested more than 4 deep"), "{error:?}");
}

#[tokio::test]
async fn the_platforms_of_a_nested_index_are_listed() {
    let store = MemoryStore::new();
    let (index, image) = nested(&store, 2);
    let (target, found) = images(&store, "nested", Missing::Keep, &Platforms::All).await.unwrap();
    assert_eq!(target.digest, index.digest);
    let found: Vec<_> = found.iter().map(|image| image.descriptor.digest).collect();
    assert_eq!(found, [image.digest]);
}

/// Four levels of indexes, each of which names the next one a hundred times: each is looked at, written and copied once.
#[tokio::test]
async fn an_index_that_is_named_many_times_is_handled_once() {
    let from = MemoryStore::new();
    let mut inside = image(&from, "inside", vec![layer(&from, "inside")]);
    inside.platform = Some("linux/amd64".parse().unwrap());
    let mut other = manifest(config(&from, "linux/arm64"), vec![layer(&from, "other")]);
    other.annotations.insert("kept".into(), "as it is".into());
    let mut other = from.add_manifest(OCI_MANIFEST, canonical_json(&other));
    other.platform = Some("linux/arm64".parse().unwrap());
    let (mut changed, mut kept) = (vec![inside], vec![other]);
    for _ in 0..4 {
        for entries in [&mut changed, &mut kept] {
            let around = from.add_manifest(OCI_INDEX, canonical_json(&Index::of(entries.clone())));
            *entries = vec![around; 100];
        }
    }
    changed.extend(kept);
    let index = from.add_manifest(OCI_INDEX, canonical_json(&Index::of(changed)));
    from.add_tag("many", index.digest);
    let to = MemoryStore::new();
    let amd64 = Platforms::These(vec!["linux/amd64".parse().unwrap()]);
    let options = ConvertOptions { platforms: amd64, ..options() };
    let report = run(&from, "many", &to, &options).await.unwrap();
    assert!(report.platforms[0].1.is_some());
    assert_eq!(entries(&to, &report.image.digest).len(), 201);
    assert!(to.journal().len() < 50, "{} writes", to.journal().len());
}

/// Within one store, an image of another platform whose layers were never pulled stays as it is.
#[tokio::test]
async fn a_nested_platform_that_was_not_pulled_is_no_error_within_one_store() {
    let store = MemoryStore::new();
    let mut here = image(&store, "here", vec![layer(&store, "here")]);
    here.platform = Some("linux/amd64".parse().unwrap());
    let absent = layer(&store, "absent");
    let away = manifest(config(&store, "linux/arm64"), vec![absent.clone()]);
    let mut away = store.add_manifest(OCI_MANIFEST, canonical_json(&away));
    away.platform = Some("linux/arm64".parse().unwrap());
    store.remove(&absent.digest);
    let inner = store.add_manifest(OCI_INDEX, canonical_json(&Index::of(vec![here, away.clone()])));
    let index = store.add_manifest(OCI_INDEX, canonical_json(&Index::of(vec![inner])));
    store.add_tag("half", index.digest);
    let amd64 = Platforms::These(vec!["linux/amd64".parse().unwrap()]);
    let options = ConvertOptions { platforms: amd64, ..options() };
    let report = run(&store, "half", &store, &options).await.unwrap();
    let top = entries(&store, &report.image.digest);
    assert!(entries(&store, &top[0].digest).contains(&away));
}
