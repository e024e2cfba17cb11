//! Who stands on what: how many snapshots on each slot, and how many of a layer's are of an image from each place. Pure.
//!
//! The database has it all; this is what is asked of it at every removal, counted along.

use std::collections::HashMap;

use layerfs::LayerId;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    slots: HashMap<u32, usize>,
    /// By layer, and within it by place (`HOST/REPOSITORY`).
    places: HashMap<LayerId, HashMap<String, usize>>,
    /// There are snapshots of which it is not known what they stand on.
    has_unknown: bool,
}

/// What nothing stands on any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) slot: bool,
    /// The layer is no longer needed from there, and still is from elsewhere.
    pub(crate) place: bool,
}

impl Standing {
    /// Some snapshots cannot be read: no slot is ever free.
    pub(crate) fn has_unknown(&mut self) {
        self.has_unknown = true;
    }

    pub(crate) fn add(&mut self, slot: u32, layer: LayerId, place: Option<&str>) {
        *self.slots.entry(slot).or_default() += 1;
        let places = self.places.entry(layer).or_default();
        if let Some(place) = place {
            *places.entry(place.to_owned()).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, slot: u32, layer: LayerId, place: Option<&str>) -> Left {
        if let Some(count) = self.slots.get_mut(&slot) {
            *count -= 1;
            if *count == 0 {
                self.slots.remove(&slot);
            }
        }
        let mut left = Left { slot: self.is_free(slot), place: false };
        let Some(places) = self.places.get_mut(&layer) else { return left };
        if let Some((place, count)) = place.and_then(|place| Some((place, places.get_mut(place)?))) {
            *count -= 1;
            if *count == 0 {
                places.remove(place);
                left.place = !places.is_empty();
            }
        }
        if places.is_empty() {
            self.places.remove(&layer);
        }
        left
    }

    /// Whether nothing stands on a slot.
    pub(crate) fn is_free(&self, slot: u32) -> bool {
        !self.has_unknown && !self.slots.contains_key(&slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_stands_on_is_told_once() {
        let layer = |name: &str| LayerId { layer: oci::Digest::sha256(name.as_bytes()), ztoc: None };
        let mut standing = Standing::default();
        // The same layer over two others, from two places; another layer.
        for (slot, name, place) in
            [(1, "a", Some("x/app")), (2, "a", Some("x/app")), (2, "a", Some("y/app")), (3, "b", None)]
        {
            standing.add(slot, layer(name), place);
        }
        let mut remove = |slot, name, place| {
            let left = standing.remove(slot, layer(name), place);
            (left.slot, left.place)
        };
        assert_eq!(remove(1, "a", Some("x/app")), (true, false), "another slot's is from there");
        assert_eq!(remove(2, "a", Some("x/app")), (false, true));
        assert_eq!(remove(2, "a", Some("y/app")), (true, false), "with the last the layer goes");
        assert_eq!(remove(3, "b", None), (true, false));
        assert_eq!(remove(3, "b", None), (true, false), "nobody ever stood there");
        assert!(standing.slots.is_empty() && standing.places.is_empty());
        standing.has_unknown();
        standing.add(4, layer("a"), None);
        assert_eq!(standing.remove(4, layer("a"), None), Left::default());
    }
}
