//! Any bytes as a SOCI index, an image manifest, an image index: what is read and written again reads the same,
//! and writes the same.
#![no_main]

use std::sync::LazyLock;

use index::SociIndex;
use index::manifest::{describe_ztoc, disables_xattrs, encode_v1, encode_v2};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use oci::{Config, Descriptor, Digest, Index, Manifest, Platform, canonical_json};
use ztoc_fuzz::mutate::{self, Dice};

/// What such documents are made of.
const WORDS: &[&str] = &[
    "\"schemaVersion\":2,",
    "\"mediaType\":\"\",",
    "\"config\":{}",
    "\"layers\":[]",
    "\"manifests\":null,",
    "\"subject\":null",
    "\"annotations\":{\"a\":\"b\"}",
    "\"platform\":{\"os\":\"linux\",\"architecture\":\"amd64\"}",
    "\"os.features\":[\"\"]",
    "\"variant\":\"v8\"",
    "\"digest\":\"sha256:",
    "\"size\":-1",
    "\"urls\":[null]",
    "\"data\":\"e30=\"",
    "\"artifactType\":\"x\"",
    "\\u2028",
    "\\ud800",
    "\u{2029}",
    "null",
    "1e400",
    "[[[[",
    "0.0",
    "18446744073709551616",
];

static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let layer = Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", b"layer");
    let ztoc = describe_ztoc(b"ztoc", &layer, 1 << 22);
    let mut image = Descriptor::of("application/vnd.oci.image.manifest.v1+json", b"image");
    image.platform = Some(Platform::new("linux", "arm64", "v8"));
    image.urls = vec!["https://example.com/<&>".to_owned()];
    let index = Index {
        schema_version: 2,
        media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
        artifact_type: String::new(),
        manifests: Some(vec![image.clone()]),
        subject: Some(Descriptor::new("x", Digest::sha256(b""), 0)),
        annotations: [("a".to_owned(), "\u{2028}\u{1}".to_owned())].into(),
    };
    vec![
        encode_v2(vec![ztoc.clone()], "tool"),
        encode_v1(vec![ztoc], &image, "tool"),
        canonical_json(&index),
        canonical_json(&image),
    ]
});

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::parse(data, "fuzz") {
        let bytes = canonical_json(&manifest);
        let again = Manifest::parse(&bytes, "fuzz").expect("what was written can be read");
        assert_eq!(again, manifest);
        assert!(canonical_json(&again) == bytes);
    }
    if let Ok(index) = Index::parse(data, "fuzz") {
        let bytes = canonical_json(&index);
        let again = Index::parse(&bytes, "fuzz").expect("what was written can be read");
        assert_eq!(again, index);
        assert!(canonical_json(&again) == bytes);
    }
    if let Ok(config) = Config::parse(data, "fuzz") {
        let normalized = config.platform.normalized();
        assert_eq!(normalized.normalized(), normalized);
        assert!(normalized.matches(&config.platform));
        // what is written may be no platform that a person can ask for, but asking must not panic
        let _ = config.platform.to_string().parse::<Platform>();
    }
    if let Ok(index) = SociIndex::parse(Digest::sha256(data), data) {
        let manifest = Manifest::parse(data, "fuzz").expect("an index is a manifest");
        for (layer, ztoc) in &index.ztocs {
            assert_eq!(index.ztoc(layer), Some(ztoc));
            assert!(manifest.layers().contains(ztoc));
            disables_xattrs(ztoc);
        }
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut dice = Dice::new(seed);
    if let Some(len) = mutate::seed(data, max_size, &mut dice, &SEEDS) {
        return len;
    }
    if dice.roll(4) == 0 {
        let word = WORDS[dice.roll(WORDS.len())].as_bytes();
        return mutate::insert(data, size, max_size, dice.roll(size + 1), word);
    }
    fuzzer_mutate(data, size, max_size)
});
