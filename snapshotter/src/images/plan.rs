//! What to do with a layer, and why. Pure: asked once with the labels, and again with what the image has.

use std::collections::HashMap;

use oci::{Descriptor, Digest};

use crate::{
    images::labels::{Asked, LayerRequest},
    reason::Reason,
};

/// What the labels alone decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    /// A writable layer, or a layer that containerd unpacks unasked.
    Writable,
    /// Ask for the image's index.
    Try(Box<LayerRequest>),
    /// Find out which layer is to make this snapshot.
    Search(String),
    /// containerd does it.
    Leave(Reason),
}

/// What the image's index decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Second<'a> {
    /// Show it with this ztoc.
    Lazy(&'a Descriptor),
    /// It cannot be lazy.
    Whole(Whole),
}

/// What becomes of a layer that cannot be lazy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whole {
    /// Bring it whole, into the same store; the reason is why it is not lazy.
    Stream(ztoc::Compression, Reason),
    /// containerd does it.
    Leave(Reason),
}

/// What there is of an image: its layers, and the ztocs of those that have one.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    /// Why a layer without a ztoc has none: the image has no index at all, or none for it in its index.
    pub(crate) bare: Reason,
    /// Lowest first.
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) ztocs: HashMap<Digest, Descriptor>,
    /// Artifacts that say what is read first, by layer.
    pub(crate) prefetch: HashMap<Digest, Descriptor>,
}

/// Which ways to an index are open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Modes {
    pub(crate) v1: bool,
    pub(crate) v2: bool,
}

pub(crate) fn first(asked: Asked, modes: Modes) -> First {
    match asked {
        Asked::Plain => First::Writable,
        Asked::Unclear(reason) => First::Leave(reason),
        // An index that the client chose is used whatever the modes say.
        Asked::Layer(request) if request.index.is_none() && !modes.v1 && !modes.v2 => {
            First::Leave(Reason::Disabled)
        }
        Asked::Unnamed(_) if !modes.v1 && !modes.v2 => First::Leave(Reason::Disabled),
        Asked::Unnamed(target) => First::Search(target),
        Asked::Layer(request) => First::Try(request),
    }
}

impl Contents {
    pub(crate) fn is_indexed(&self) -> bool {
        self.bare != Reason::NoIndex
    }

    /// A layer, and those above it. None: it is not one of this image, whatever the label says.
    pub(crate) fn upwards(&self, layer: &Digest) -> Option<&[Descriptor]> {
        let place = self.layers.iter().position(|known| known.digest == *layer)?;
        Some(&self.layers[place..])
    }
}

/// For one of the layers of `contents`.
pub(crate) fn second<'a>(contents: &'a Contents, layer: &Descriptor, min_layer_size: u64) -> Second<'a> {
    let reason = match contents.ztocs.get(&layer.digest) {
        Some(_) if layer.size < min_layer_size => Reason::BelowMinSize,
        Some(ztoc) => return Second::Lazy(ztoc),
        None => contents.bare,
    };
    // containerd fetches everything above the first layer that it does, so that nothing is won by doing those, too.
    // (A lazy one is: it need not be unpacked.)
    let mut below = contents.layers.iter().take_while(|below| below.digest != layer.digest);
    if !contents.is_indexed() && below.any(|below| index::compression_of(&below.media_type).is_none()) {
        return Second::Whole(Whole::Leave(Reason::UnsupportedLayer));
    }
    Second::Whole(whole(layer, reason))
}

/// What is left when a layer cannot be lazy, for this reason.
pub(crate) fn whole(layer: &Descriptor, reason: Reason) -> Whole {
    match index::compression_of(&layer.media_type) {
        Some(compression) => Whole::Stream(compression, reason),
        None => Whole::Leave(Reason::UnsupportedLayer),
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
        let chosen = LayerRequest { index: Some(digest("index")), ..request("a") };
        let rows = [
            (Asked::Plain, both, First::Writable),
            (Asked::Plain, none, First::Writable),
            (Asked::Unclear(Reason::NoLabels), both, First::Leave(Reason::NoLabels)),
            (Asked::Layer(request("a").into()), both, First::Try(request("a").into())),
            (
                Asked::Layer(request("a").into()),
                Modes { v1: true, v2: false },
                First::Try(request("a").into()),
            ),
            (Asked::Layer(request("a").into()), none, First::Leave(Reason::Disabled)),
            (Asked::Unnamed("chain".into()), both, First::Search("chain".into())),
            (Asked::Unnamed("chain".into()), none, First::Leave(Reason::Disabled)),
            (Asked::Layer(chosen.clone().into()), none, First::Try(chosen.into())),
        ];
        for (asked, modes, expected) in rows {
            assert_eq!(first(asked.clone(), modes), expected, "{asked:?} {modes:?}");
        }
    }

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
    const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

    fn contents(bare: Reason, layers: &[(&str, &str, u64)]) -> Contents {
        let layer =
            |(name, media_type, size): &(&str, &str, u64)| Descriptor::new(*media_type, digest(name), *size);
        let layers = layers.iter().map(layer).collect();
        Contents { bare, layers, ztocs: HashMap::new(), prefetch: HashMap::new() }
    }

    /// What is decided of each layer: lazy, whole for a reason, or left for one.
    fn decided(contents: &Contents) -> Vec<Result<Option<Reason>, Reason>> {
        let decided = contents.layers.iter().map(|layer| match second(contents, layer, 50) {
            Second::Lazy(ztoc) => {
                assert_eq!(Some(ztoc), contents.ztocs.get(&layer.digest));
                Ok(None)
            }
            Second::Whole(Whole::Stream(_, reason)) => Ok(Some(reason)),
            Second::Whole(Whole::Leave(reason)) => Err(reason),
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
    fn a_layer_has_those_above_it_and_a_stranger_has_none() {
        let contents = contents(Reason::NoZtoc, &[("a", GZIP, 1), ("b", GZIP, 1), ("c", GZIP, 1)]);
        for (place, name) in ["a", "b", "c"].iter().enumerate() {
            assert_eq!(contents.upwards(&digest(name)), Some(&contents.layers[place..]), "{name}");
        }
        assert_eq!(contents.upwards(&digest("stranger")), None);
    }
}
