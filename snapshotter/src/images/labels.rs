//! Labels become a [`PrepareRequest`], once. After that only the labels to store are made from it.

use std::{collections::HashMap, str::FromStr};

use oci::{Digest, Reference};

use crate::reason::{NotLazy, Reason};

/// Present where the client uses the remote-snapshot protocol. The value is the name to commit the snapshot under,
/// which is the layer's chain ID.
const TARGET: &str = "containerd.io/snapshot.ref";
/// Image reference as the client typed it.
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// Digest of the platform's image manifest.
const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// Digest of the layer.
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// A SOCI index chosen by the client.
const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";
/// The daemon writes it on layers that it shows.
const REMOTE: &str = "containerd.io/snapshot/remote";
/// The daemon writes it on layers of images that have an index.
const HAS_INDEX: &str = "containerd.io/snapshot/remote/has.soci.index.digest";
/// Users of the container as users of the host: `container:host:length[,…]`.
pub(crate) const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// The same of groups.
pub(crate) const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

type Labels = HashMap<String, String>;

/// One layer of one image, as containerd asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerRequest {
    /// The name that the snapshot is to be committed under.
    pub(crate) target: String,
    pub(crate) image: Reference,
    /// The platform's image manifest.
    pub(crate) manifest: Digest,
    pub(crate) layer: Digest,
    /// An index chosen by the client. The image need not name it.
    pub(crate) index: Option<Digest>,
}

/// What the labels of a Prepare ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PrepareRequest {
    /// A container's own layer, or a layer that a client unpacks without asking for more.
    Container,
    Layer(Box<LayerRequest>),
    /// The layer that makes the snapshot of this name. The client does not say of which image it is.
    ByChainId(String),
    /// The remote-snapshot protocol, but not enough to know which layer is meant.
    Incomplete(NotLazy),
}

impl PrepareRequest {
    pub(crate) fn parse(labels: &Labels) -> Self {
        let Some(target) = labels.get(TARGET).filter(|target| !target.is_empty()) else {
            return Self::Container;
        };
        let names = [IMAGE_REF, MANIFEST_DIGEST, LAYER_DIGEST];
        if names.iter().all(|name| !labels.contains_key(*name)) {
            return Self::ByChainId(target.clone());
        }
        match layer(labels, target) {
            Ok(request) => Self::Layer(Box::new(request)),
            Err(not_lazy) => Self::Incomplete(not_lazy),
        }
    }
}

fn layer(labels: &Labels, target: &str) -> Result<LayerRequest, NotLazy> {
    let incomplete = |name: &str| {
        NotLazy::new(Reason::NoLabels, format!("the client's label {name} is missing or cannot be read"))
    };
    let digest = |name: &str| {
        let found = labels.get(name).and_then(|text| Digest::from_str(text).ok());
        found.ok_or_else(|| incomplete(name))
    };
    let image = labels.get(IMAGE_REF).and_then(|text| Reference::from_str(text).ok());
    let index = match labels.get(INDEX_DIGEST).filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(Digest::from_str(text).map_err(|_| {
            NotLazy::new(Reason::NoIndex, format!("the client's label {INDEX_DIGEST} is no digest: {text:?}"))
        })?),
    };
    Ok(LayerRequest {
        target: target.to_owned(),
        image: image.ok_or_else(|| incomplete(IMAGE_REF))?,
        manifest: digest(MANIFEST_DIGEST)?,
        layer: digest(LAYER_DIGEST)?,
        index,
    })
}

impl LayerRequest {
    /// The labels to store with the layer's snapshot: those of the client, those that it would have sent had it known
    /// the layer, and the daemon's own.
    pub(crate) fn recorded(&self, sent: &Labels, has_index: bool) -> Labels {
        let mut labels = sent.clone();
        let known = [
            (IMAGE_REF, self.image.to_string()),
            (MANIFEST_DIGEST, self.manifest.to_string()),
            (LAYER_DIGEST, self.layer.to_string()),
        ];
        for (name, value) in known {
            labels.entry(name.to_owned()).or_insert(value);
        }
        if has_index {
            labels.insert(HAS_INDEX.to_owned(), "true".to_owned());
        }
        labels.insert(REMOTE.to_owned(), "remote snapshot".to_owned());
        labels
    }
}

/// The image that a stored layer belongs to.
pub(crate) fn image(stored: &Labels) -> Option<Reference> {
    Reference::from_str(stored.get(IMAGE_REF)?).ok()
}

/// The repository that a stored layer was pulled from, as `HOST/REPOSITORY`, which is what [`oci::Registry`] calls itself.
pub(crate) fn repository(stored: &Labels) -> Option<String> {
    image(stored).map(|image| format!("{}/{}", image.registry(), image.repository()))
}

/// Whether an index led to a stored layer.
pub(crate) fn has_index(stored: &Labels) -> bool {
    stored.contains_key(HAS_INDEX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    const COMPLETE: [(&str, &str); 4] = [
        (TARGET, "sha256:chain"),
        (IMAGE_REF, "127.0.0.1:5000/a/b:c"),
        (MANIFEST_DIGEST, DIGEST),
        (LAYER_DIGEST, DIGEST),
    ];

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn layer_of(labels: &Labels) -> LayerRequest {
        match PrepareRequest::parse(labels) {
            PrepareRequest::Layer(request) => *request,
            other => panic!("{other:?}"),
        }
    }

    fn reason_of(labels: &Labels) -> Reason {
        match PrepareRequest::parse(labels) {
            PrepareRequest::Incomplete(not_lazy) => not_lazy.reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn labels_of_a_layer_become_a_request() {
        let request = layer_of(&labels(&COMPLETE));
        assert_eq!((request.target.as_str(), request.index), ("sha256:chain", None));
        assert_eq!(request.image.repository(), "a/b");
        let mut chosen = labels(&COMPLETE);
        chosen.insert(INDEX_DIGEST.into(), DIGEST.into());
        assert!(layer_of(&chosen).index.is_some());
    }

    #[test]
    fn without_a_target_it_is_a_container() {
        for pairs in [&[][..], &COMPLETE[1..], &[(TARGET, "")]] {
            assert_eq!(PrepareRequest::parse(&labels(pairs)), PrepareRequest::Container, "{pairs:?}");
        }
    }

    #[test]
    fn missing_and_odd_labels_are_incomplete() {
        for missing in 1..COMPLETE.len() {
            let mut some = COMPLETE.to_vec();
            some.remove(missing);
            assert_eq!(reason_of(&labels(&some)), Reason::NoLabels, "{some:?}");
        }
        let mut odd = labels(&COMPLETE);
        odd.insert(LAYER_DIGEST.into(), "sha256:../../etc".into());
        assert_eq!(reason_of(&odd), Reason::NoLabels);
        let mut odd = labels(&COMPLETE);
        odd.insert(INDEX_DIGEST.into(), "sha256:1".into());
        assert_eq!(reason_of(&odd), Reason::NoIndex);
    }

    #[test]
    fn what_the_daemon_found_out_is_stored_as_if_the_client_had_sent_it() {
        let by_chain_id = labels(&COMPLETE[..1]);
        assert_eq!(PrepareRequest::parse(&by_chain_id), PrepareRequest::ByChainId("sha256:chain".into()));
        let request = layer_of(&labels(&COMPLETE));
        let mut stored = request.recorded(&by_chain_id, true);
        assert!(has_index(&stored));
        assert_eq!(image(&stored), Some(request.image.clone()));
        for name in [HAS_INDEX, REMOTE] {
            assert!(stored.remove(name).is_some(), "{name}");
        }
        assert_eq!(stored, labels(&COMPLETE));
        assert!(!has_index(&request.recorded(&by_chain_id, false)));
    }
}
