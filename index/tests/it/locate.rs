//! Where an image's index is looked for, and where not.

use std::sync::Arc;

use index::locate::Lookup;
use index::manifest::{encode_v1, encode_v2};
use index::{Error, ErrorKind, SociIndex, Sources, Version, locate};
use oci::image::media_type::OCI_MANIFEST;
use oci::testing::{Rules, TestRegistry};
use oci::{Anonymous, Client, ClientOptions, Descriptor, Digest, Registry};

const BOTH: Sources = Sources { explicit: None, annotation: Lookup::On, referrers: Lookup::On };

struct Place {
    server: TestRegistry,
    registry: Registry,
    v2: Descriptor,
}

async fn place() -> Place {
    let server = TestRegistry::start(Rules::default()).await.unwrap();
    let client = Client::new(ClientOptions::default()).unwrap();
    let registry = Registry::new(&client, &server.reference("a"), Arc::new(Anonymous)).unwrap();
    let v2 = server.add_manifest("a", "", OCI_MANIFEST, &encode_v2(Vec::new(), "x"));
    Place { server, registry, v2 }
}

impl Place {
    fn image(&self, annotation: Option<&str>) -> Descriptor {
        let annotations = annotation
            .map(|value| format!(r#","annotations":{{"com.amazon.soci.index-digest":"{value}"}}"#))
            .unwrap_or_default();
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{}","size":2}},"layers":[]{annotations}}}"#,
            Digest::sha256(b"{}")
        );
        self.server.add_manifest("a", "", OCI_MANIFEST, text.as_bytes())
    }

    fn add_v1(&self, image: &Descriptor) {
        self.server.add_manifest("a", "", OCI_MANIFEST, &encode_v1(Vec::new(), image, "x"));
    }

    async fn look(&self, image: &Descriptor, sources: &Sources) -> Result<Option<SociIndex>, Error> {
        locate(&self.registry, &image.digest, None, sources).await
    }
}

fn version(found: Result<Option<SociIndex>, Error>) -> Result<Option<Version>, ErrorKind> {
    found.map(|index| index.map(|index| index.version)).map_err(|error| error.kind())
}

#[tokio::test]
async fn in_order() {
    let place = place().await;
    let annotated = place.image(Some(&place.v2.digest.to_string()));
    place.add_v1(&annotated);
    let plain = place.image(None);
    let found = async |image, sources| version(place.look(image, sources).await);
    assert_eq!(found(&annotated, &BOTH).await, Ok(Some(Version::V2)));
    assert_eq!(found(&plain, &BOTH).await, Ok(None));
    place.add_v1(&plain);
    assert_eq!(found(&plain, &BOTH).await, Ok(Some(Version::V1)));
    let usual = Sources::default();
    assert_eq!(found(&plain, &usual).await, Ok(None), "referrers only when asked for");
    let referrers_only = Sources { annotation: Lookup::Off, ..BOTH };
    assert_eq!(found(&annotated, &referrers_only).await, Ok(Some(Version::V1)));
    let explicit = Sources { explicit: Some(place.v2.digest), ..BOTH };
    assert_eq!(found(&plain, &explicit).await, Ok(Some(Version::V2)));
}

#[tokio::test]
async fn broken_annotations_are_errors() {
    let place = place().await;
    let missing = place.image(Some(&Digest::sha256(b"missing").to_string()));
    place.add_v1(&missing);
    assert_eq!(version(place.look(&missing, &BOTH).await), Err(ErrorKind::NotFound));
    let nonsense = place.image(Some("nonsense"));
    assert_eq!(version(place.look(&nonsense, &BOTH).await), Err(ErrorKind::Corrupt));
    let empty = place.image(Some(""));
    assert_eq!(version(place.look(&empty, &BOTH).await), Ok(None));
    let other = place.image(None);
    let not_an_index = place.image(Some(&other.digest.to_string()));
    assert_eq!(version(place.look(&not_an_index, &BOTH).await), Err(ErrorKind::Unsupported));
}

#[tokio::test]
async fn manifest_at_hand_is_not_fetched() {
    let place = place().await;
    let image = place.image(Some(&place.v2.digest.to_string()));
    let bytes = place.server.manifest("a", &image.digest.to_string()).unwrap();
    locate(&place.registry, &image.digest, Some(&bytes), &BOTH).await.unwrap().unwrap();
    assert_eq!(place.server.count("GET", &image.digest.to_string()), 0);
}
