//! What to do with a layer, and why. Pure: asked once with the labels, and again with what the image has.

use std::collections::HashMap;

use oci::{Descriptor, Digest};

use crate::{
    images::labels::{LayerRequest, PrepareRequest},
    reason::{NotLazy, Reason},
};

/// Layers of one image that the daemon serves, more than overlayfs mounts: it opens all of them side by side, each in a
/// task of its own.
pub(crate) const MAX_LAYERS: usize = 512;

/// What the labels alone decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FromLabels {
    /// Mounts for a container, or for a layer that the client unpacks without asking for more.
    Writable,
    /// Look for the image's index.
    Try(Box<LayerRequest>),
    /// Find out which layer makes the snapshot of this name, then look for its image's index.
    Search(String),
    /// Leave the layer to containerd.
    Leave(NotLazy),
}

/// What the image's index decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FromIndex<'a> {
    /// Show the layer with this ztoc.
    Lazy(&'a Descriptor),
    NotLazy(Fallback),
}

/// What happens to a layer that cannot be lazy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// Stream it whole into the daemon's store. The reason says why it is not lazy.
    Stream(ztoc::Compression, Reason),
    /// Leave it to containerd.
    Leave(Reason),
}

/// What an image has: its layers, and the ztocs of those that have one.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    /// Why a layer without a ztoc has none: the image has no index, or its index names none for this layer.
    pub(crate) reason_without_ztoc: Reason,
    /// The lowest first.
    pub(crate) layers: Vec<Descriptor>,
    /// By layer.
    pub(crate) ztocs: HashMap<Digest, Descriptor>,
    /// By layer: artifacts that name the spans to fetch first.
    pub(crate) prefetch: HashMap<Digest, Descriptor>,
}

/// Index versions that the configuration allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Modes {
    pub(crate) v1: bool,
    pub(crate) v2: bool,
}

impl Modes {
    fn is_disabled(self) -> bool {
        !self.v1 && !self.v2
    }
}

pub(crate) fn from_labels(request: PrepareRequest, modes: Modes) -> FromLabels {
    let disabled = || {
        let detail = "the configuration enables neither v1 nor v2 indexes";
        FromLabels::Leave(NotLazy::new(Reason::Disabled, detail))
    };
    match request {
        PrepareRequest::Container => FromLabels::Writable,
        PrepareRequest::Incomplete(not_lazy) => FromLabels::Leave(not_lazy),
        // An index that the client chose is used whatever the modes are.
        PrepareRequest::Layer(request) if request.index.is_none() && modes.is_disabled() => disabled(),
        PrepareRequest::ByChainId(_) if modes.is_disabled() => disabled(),
        PrepareRequest::ByChainId(target) => FromLabels::Search(target),
        PrepareRequest::Layer(request) => FromLabels::Try(request),
    }
}

impl Contents {
    pub(crate) fn is_indexed(&self) -> bool {
        self.reason_without_ztoc != Reason::NoIndex
    }

    /// The position of a layer, counted from the lowest. None if the image has no such layer, whatever the client's label
    /// says.
    pub(crate) fn position(&self, layer: &Digest) -> Option<usize> {
        self.layers.iter().position(|known| known.digest == *layer)
    }
}

/// Decides about one of the layers of `contents`.
pub(crate) fn from_index<'a>(
    contents: &'a Contents,
    layer: &Descriptor,
    min_layer_size: u64,
) -> FromIndex<'a> {
    let reason = match contents.ztocs.get(&layer.digest) {
        Some(_) if layer.size < min_layer_size => Reason::BelowMinSize,
        Some(ztoc) => return FromIndex::Lazy(ztoc),
        None => contents.reason_without_ztoc,
    };
    // containerd fetches every layer above the first one that is left to it, so streaming those would fetch them twice.
    // A lazy layer is still worth it: containerd need not unpack it.
    let mut below = contents.layers.iter().take_while(|below| below.digest != layer.digest);
    if below.any(|below| index::compression_of(&below.media_type).is_none()) {
        return FromIndex::NotLazy(Fallback::Leave(Reason::UnsupportedLayer));
    }
    FromIndex::NotLazy(fallback(layer, reason))
}

/// What happens to a layer that cannot be lazy for this reason.
pub(crate) fn fallback(layer: &Descriptor, reason: Reason) -> Fallback {
    match index::compression_of(&layer.media_type) {
        Some(compression) => Fallback::Stream(compression, reason),
        None => Fallback::Leave(Reason::UnsupportedLayer),
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use oci::Reference;

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn request(layer: &str) -> LayerRequest {
        LayerRequest {
            target: "sha256:chain".into(),
            image: Reference::from_str("registry.example/a:b").unwrap(),
            manifest: digest("manifest"),
            layer: digest(layer),
            index: None,
        }
    }

    #[test]
    fn what_the_labels_decide() {
        let both = Modes { v1: false, v2: true };
        let none = Modes { v1: false, v2: false };
        let incomplete = NotLazy::new(Reason::NoLabels, "no label");
        let chosen = LayerRequest { index: Some(digest("index")), ..request("a") };
        let rows = [
            (PrepareRequest::Container, both, FromLabels::Writable),
            (PrepareRequest::Container, none, FromLabels::Writable),
            (PrepareRequest::Incomplete(incomplete.clone()), both, FromLabels::Leave(incomplete)),
            (PrepareRequest::Layer(request("a").into()), both, FromLabels::Try(request("a").into())),
            (
                PrepareRequest::Layer(request("a").into()),
                Modes { v1: true, v2: false },
                FromLabels::Try(request("a").into()),
            ),
            (PrepareRequest::ByChainId("chain".into()), both, FromLabels::Search("chain".into())),
            (PrepareRequest::Layer(chosen.clone().into()), none, FromLabels::Try(chosen.into())),
        ];
        for (request, modes, expected) in rows {
            assert_eq!(from_labels(request.clone(), modes), expected, "{request:?} {modes:?}");
        }
        for request in [PrepareRequest::Layer(request("a").into()), PrepareRequest::ByChainId("chain".into())]
        {
            let FromLabels::Leave(left) = from_labels(request, none) else { panic!("it is disabled") };
            assert_eq!(left.reason, Reason::Disabled);
        }
    }

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
    const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

    fn contents(reason_without_ztoc: Reason, layers: &[(&str, &str, u64)]) -> Contents {
        let layer =
            |(name, media_type, size): &(&str, &str, u64)| Descriptor::new(*media_type, digest(name), *size);
        let layers = layers.iter().map(layer).collect();
        Contents { reason_without_ztoc, layers, ztocs: HashMap::new(), prefetch: HashMap::new() }
    }

    /// What is decided of each layer: lazy, whole for a reason, or left for one.
    fn decided(contents: &Contents) -> Vec<Result<Option<Reason>, Reason>> {
        let decided = contents.layers.iter().map(|layer| match from_index(contents, layer, 50) {
            FromIndex::Lazy(ztoc) => {
                assert_eq!(Some(ztoc), contents.ztocs.get(&layer.digest));
                Ok(None)
            }
            FromIndex::NotLazy(Fallback::Stream(_, reason)) => Ok(Some(reason)),
            FromIndex::NotLazy(Fallback::Leave(reason)) => Err(reason),
        });
        decided.collect()
    }

    #[test]
    fn what_the_index_decides() {
        let layers = [
            ("big", GZIP, 100),
            ("small", GZIP, 10),
            ("bare", GZIP, 100),
            ("zstd", ZSTD, 100),
            ("above", GZIP, 100),
            ("top", GZIP, 100),
        ];
        let mut contents = contents(Reason::NoZtoc, &layers);
        let ztoc = Descriptor::new("application/octet-stream", digest("ztoc"), 5);
        for name in ["big", "small", "top"] {
            contents.ztocs.insert(digest(name), ztoc.clone());
        }
        let expected = [
            Ok(None),
            Ok(Some(Reason::BelowMinSize)),
            Ok(Some(Reason::NoZtoc)),
            Err(Reason::UnsupportedLayer),
            Err(Reason::UnsupportedLayer),
            Ok(None),
        ];
        assert_eq!(decided(&contents), expected);
    }

    #[test]
    fn what_is_decided_without_an_index() {
        let layers = [("a", GZIP, 10), ("b", PLAIN, 100), ("zstd", ZSTD, 100), ("above", GZIP, 100)];
        let whole = Ok(Some(Reason::NoIndex));
        let left = Err(Reason::UnsupportedLayer);
        assert_eq!(decided(&contents(Reason::NoIndex, &layers)), [whole, whole, left, left]);
    }

    #[test]
    fn a_layer_has_a_position_and_a_stranger_has_none() {
        let contents = contents(Reason::NoZtoc, &[("a", GZIP, 1), ("b", GZIP, 1)]);
        assert_eq!(contents.position(&digest("b")), Some(1));
        assert_eq!(contents.position(&digest("stranger")), None);
    }
}
