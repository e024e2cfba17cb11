//! Chain IDs: the names of committed layers.
//!
//! The chain ID of the lowest layer is its diff ID. For every other layer it is the digest of the chain ID below, a space,
//! and its diff ID (OCI image specification, "Layer ChainID"). So the names of a snapshot and its parent tell whether a
//! layer is the right one, without the image's configuration.

use std::str::FromStr;

use oci::Digest;

/// Whether a layer of this diff ID over the snapshot `parent` (empty for none) makes the snapshot `name`. `None` where
/// the names are not chain IDs. containerd's own names have the chain ID behind the last slash.
pub(crate) fn agrees(parent: &str, name: &str, diff: &Digest) -> Option<bool> {
    let chain = |name: &str| Digest::from_str(name.rsplit('/').next().unwrap_or(name)).ok();
    let name = chain(name)?;
    if parent.is_empty() {
        return Some(name == *diff);
    }
    Some(name == id(Some(&chain(parent)?), diff))
}

/// The chain ID of a layer of this diff ID over the chain `below`.
pub(crate) fn id(below: Option<&Digest>, diff: &Digest) -> Digest {
    below.map_or(*diff, |below| Digest::sha256(format!("{below} {diff}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_diff_id() {
        let [low, high, other] = ["low", "high", "other"].map(|text| Digest::sha256(text.as_bytes()));
        let below = low.to_string();
        let above = Digest::sha256(format!("{low} {high}").as_bytes()).to_string();
        let own = format!("default/12/{below}");
        let rows = [
            ("", below.as_str(), &low, Some(true)),
            ("", below.as_str(), &other, Some(false)),
            (below.as_str(), above.as_str(), &high, Some(true)),
            (own.as_str(), above.as_str(), &high, Some(true)),
            (below.as_str(), above.as_str(), &other, Some(false)),
            ("", above.as_str(), &high, Some(false)),
            ("", "mine", &low, None),
            ("mine", above.as_str(), &high, None),
        ];
        for (parent, name, diff, expected) in rows {
            assert_eq!(agrees(parent, name, diff), expected, "{parent:?} {name:?}");
        }
    }
}
