//! What to do with a layer, and why. Pure: asked once with the labels, and again with what the image has.

use std::collections::HashMap;

use oci::{Descriptor, Digest};

use crate::{
    labels::{Asked, LayerRequest},
    reason::Reason,
};

/// What the labels alone decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    /// A writable layer, or a layer that containerd unpacks unasked.
    Writable,
    /// Ask for the image's index.
    Try(Box<LayerRequest>),
    /// containerd does it.
    Leave(Reason),
}

/// What the image's index decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Second {
    /// Show it with this ztoc.
    Lazy(Descriptor),
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

/// An image that has an index: its layers by digest, and the ztocs of those that have one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
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
        Asked::Layer(request) => First::Try(request),
    }
}

impl Contents {
    /// A layer, and those above it. None: it is not one of this image, whatever the label says.
    pub(crate) fn upwards(&self, layer: &Digest) -> Option<&[Descriptor]> {
        let place = self.layers.iter().position(|known| known.digest == *layer)?;
        Some(&self.layers[place..])
    }
}

/// For one of the layers of `contents`.
pub(crate) fn second(contents: &Contents, layer: &Descriptor, min_layer_size: u64) -> Second {
    let reason = match contents.ztocs.get(&layer.digest) {
        Some(_) if layer.size < min_layer_size => Reason::BelowMinSize,
        Some(ztoc) => return Second::Lazy(ztoc.clone()),
        None => Reason::NoZtoc,
    };
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
            (Asked::Layer(chosen.clone().into()), none, First::Try(chosen.into())),
        ];
        for (asked, modes, expected) in rows {
            assert_eq!(first(asked.clone(), modes), expected, "{asked:?} {modes:?}");
        }
    }

    #[test]
    fn what_the_index_decides() {
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
        let layers = [("big", gzip, 100), ("small", gzip, 10), ("bare", gzip, 100), ("zstd", zstd, 100)];
        let mut contents = Contents::default();
        for (name, media_type, size) in layers {
            contents.layers.push(Descriptor::new(media_type, digest(name), size));
        }
        let ztoc = Descriptor::new("application/octet-stream", digest("ztoc"), 5);
        for name in ["big", "small"] {
            contents.ztocs.insert(digest(name), ztoc.clone());
        }
        let rows = [
            ("big", Ok(None)),
            ("small", Ok(Some(Reason::BelowMinSize))),
            ("bare", Ok(Some(Reason::NoZtoc))),
            ("zstd", Err(Reason::UnsupportedLayer)),
        ];
        for (place, (name, expected)) in rows.into_iter().enumerate() {
            let from = contents.upwards(&digest(name)).unwrap();
            assert_eq!(from, &contents.layers[place..], "{name}");
            let found = match second(&contents, &from[0], 50) {
                Second::Lazy(found) => {
                    assert_eq!(found, ztoc);
                    Ok(None)
                }
                Second::Whole(Whole::Stream(_, reason)) => Ok(Some(reason)),
                Second::Whole(Whole::Leave(reason)) => Err(reason),
            };
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(contents.upwards(&digest("stranger")), None);
    }
}
