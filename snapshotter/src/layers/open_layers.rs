//! The layers that this process has open, so that two requests for one layer share it.
//!
//! A layer can be open several times: each set of inherited directories makes a value of its own over the same
//! stored bytes. A layer's folder may be removed only while its gate is held and none of these values lives.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use layerfs::{Layer, LayerId};

use crate::sync::lock;

/// Held by the one task that opens or removes a layer.
pub(crate) type Gate = Arc<tokio::sync::Mutex<()>>;

/// See the module. The type parameter is for its tests.
#[derive(Debug)]
pub(crate) struct OpenLayers<T = Layer>(Mutex<HashMap<LayerId, Entry<T>>>);

#[derive(Debug)]
struct Entry<T> {
    gate: Gate,
    /// Every value that was opened for this layer, as long as it lives.
    values: Vec<Weak<T>>,
}

impl<T> Entry<T> {
    fn is_used(&self) -> bool {
        self.values.iter().any(|value| value.strong_count() > 0) || Arc::strong_count(&self.gate) > 1
    }
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self { gate: Gate::default(), values: Vec::new() }
    }
}

impl<T> Default for OpenLayers<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> OpenLayers<T> {
    /// The gate in front of opening and removing a layer.
    pub(crate) fn gate(&self, id: &LayerId) -> Gate {
        lock(&self.0).entry(*id).or_default().gate.clone()
    }

    /// One of the open values of a layer.
    pub(crate) fn get(&self, id: &LayerId) -> Option<Arc<T>> {
        lock(&self.0).get(id)?.values.iter().find_map(Weak::upgrade)
    }

    /// Remembers an open value as long as it lives, and forgets layers that are no longer open.
    pub(crate) fn add(&self, id: &LayerId, value: &Arc<T>) {
        let mut layers = lock(&self.0);
        layers.retain(|_, entry| entry.is_used());
        let values = &mut layers.entry(*id).or_default().values;
        values.retain(|known| known.strong_count() > 0 && known.as_ptr() != Arc::as_ptr(value));
        values.push(Arc::downgrade(value));
    }
}

#[cfg(test)]
mod tests {
    use oci::Digest;

    use super::*;

    fn id(name: &str) -> LayerId {
        LayerId { layer: Digest::sha256(name.as_bytes()), ztoc: None }
    }

    /// The value that was added last may be gone while an earlier one is still in use: the layer is still open.
    #[test]
    fn a_layer_is_open_as_long_as_any_of_its_values_lives() {
        let layers = OpenLayers::default();
        let (opened, shown) = (Arc::new("opened"), Arc::new("shown"));
        layers.add(&id("a"), &opened);
        layers.add(&id("a"), &shown);
        drop(shown);
        assert_eq!(layers.get(&id("a")).as_deref(), Some(&"opened"));
        drop(opened);
        assert!(layers.get(&id("a")).is_none());
    }

    #[test]
    fn layers_that_are_not_open_are_forgotten() {
        let layers = OpenLayers::default();
        let gate = layers.gate(&id("held"));
        layers.add(&id("gone"), &Arc::new("gone"));
        let open = Arc::new("open");
        (0..3).for_each(|_| layers.add(&id("open"), &open));
        let known = lock(&layers.0);
        assert_eq!(known.len(), 2, "the gate of one layer is held, another is open");
        assert_eq!(known[&id("open")].values.len(), 1);
        drop((known, gate));
    }
}
