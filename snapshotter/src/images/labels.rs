//! Label strings become a [`LayerRequest`], once; nobody downstream sees a label.

use std::collections::HashMap;
use std::str::FromStr;

use oci::{Digest, Reference};

use crate::reason::Reason;

/// Presence selects the remote-snapshot protocol; the value is the chain ID to commit under.
pub(crate) const TARGET: &str = "containerd.io/snapshot.ref";
/// Image reference as the client typed it.
pub(crate) const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// Digest of the platform's image manifest.
pub(crate) const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// Digest of the layer.
pub(crate) const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// A SOCI index chosen by the client.
pub(crate) const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";
/// Written on lazily loaded layers.
pub(crate) const REMOTE: &str = "containerd.io/snapshot/remote";
/// Written on layers that an index led to.
pub(crate) const HAS_INDEX: &str = "containerd.io/snapshot/remote/has.soci.index.digest";
/// Which users of the container are which of the host: `container:host:length[,…]`.
pub(crate) const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// The same of groups.
pub(crate) const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// One layer of one image, as containerd asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerRequest {
    /// The chain ID that the snapshot is to be committed under.
    pub(crate) target: String,
    pub(crate) image: Reference,
    /// The platform's image manifest.
    pub(crate) manifest: Digest,
    pub(crate) layer: Digest,
    /// An index chosen by the client, which the image need not know of.
    pub(crate) index: Option<Digest>,
}

/// What the labels of a Prepare ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A container's own layer, or one that a client unpacks unasked.
    Plain,
    Layer(Box<LayerRequest>),
    /// The layer that this snapshot is to be made of; the client says no more.
    Unnamed(String),
    /// The remote protocol, but not enough to know which layer it is.
    Unclear(Reason),
}

pub(crate) fn asked(labels: &HashMap<String, String>) -> Asked {
    let Some(target) = labels.get(TARGET).filter(|target| !target.is_empty()) else { return Asked::Plain };
    if [IMAGE_REF, MANIFEST_DIGEST, LAYER_DIGEST].iter().all(|name| !labels.contains_key(*name)) {
        return Asked::Unnamed(target.clone());
    }
    let digest = |name: &str| labels.get(name).and_then(|text| Digest::from_str(text).ok());
    let image = labels.get(IMAGE_REF).and_then(|text| Reference::from_str(text).ok());
    let (Some(image), Some(manifest), Some(layer)) = (image, digest(MANIFEST_DIGEST), digest(LAYER_DIGEST))
    else {
        return Asked::Unclear(Reason::NoLabels);
    };
    let index = match labels.get(INDEX_DIGEST).filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => match Digest::from_str(text) {
            Ok(digest) => Some(digest),
            Err(_) => return Asked::Unclear(Reason::NoIndex),
        },
    };
    Asked::Layer(Box::new(LayerRequest { target: target.clone(), image, manifest, layer, index }))
}

/// What the client would have said of the layer, had it said anything. Where it did, nothing changes.
pub(crate) fn name(labels: &mut HashMap<String, String>, request: &LayerRequest) {
    let said = [
        (IMAGE_REF, request.image.to_string()),
        (MANIFEST_DIGEST, request.manifest.to_string()),
        (LAYER_DIGEST, request.layer.to_string()),
    ];
    for (name, value) in said {
        labels.entry(name.to_owned()).or_insert(value);
    }
}

/// Where the layer of a stored snapshot can be had from.
pub(crate) fn source(labels: &HashMap<String, String>) -> Option<Reference> {
    Reference::from_str(labels.get(IMAGE_REF)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_labels_ask_for() {
        let whole = [
            (TARGET, "sha256:chain"),
            (IMAGE_REF, "127.0.0.1:5000/a/b:c"),
            (MANIFEST_DIGEST, DIGEST),
            (LAYER_DIGEST, DIGEST),
        ];
        let Asked::Layer(request) = asked(&labels(&whole)) else { panic!("all is there") };
        assert_eq!((request.target.as_str(), request.index), ("sha256:chain", None));
        assert_eq!(request.image.repository(), "a/b");
        assert_eq!(asked(&labels(&[])), Asked::Plain);
        assert_eq!(asked(&labels(&whole[1..])), Asked::Plain);
        for missing in 1..whole.len() {
            let mut some = whole.to_vec();
            some.remove(missing);
            assert_eq!(asked(&labels(&some)), Asked::Unclear(Reason::NoLabels));
        }
        assert_eq!(asked(&labels(&whole[..1])), Asked::Unnamed("sha256:chain".into()));
        let mut unnamed = labels(&whole[..1]);
        name(&mut unnamed, &request);
        assert_eq!(unnamed, labels(&whole), "what was found out is kept as if it had been said");
        let mut odd = labels(&whole);
        odd.insert(LAYER_DIGEST.into(), "sha256:../../etc".into());
        assert_eq!(asked(&odd), Asked::Unclear(Reason::NoLabels));
        let mut chosen = labels(&whole);
        chosen.insert(INDEX_DIGEST.into(), DIGEST.into());
        let Asked::Layer(request) = asked(&chosen) else { panic!("all is there") };
        assert!(request.index.is_some());
    }
}
