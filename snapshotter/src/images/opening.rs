//! Opens the layers of an image side by side, as soon as containerd asks for the first of them.
//!
//! containerd prepares one layer after the other. A client that asks for one layer will ask for those above it, so
//! their ztocs are fetched, and layers without a ztoc are streamed, beside it. Each layer is opened by one task, and
//! every request for it waits for that task. A layer that nothing asks for is forgotten some time after the last
//! layer of its image has been opened.
//!
//! When a layer turns out to be one for containerd, streams of layers above it end: containerd fetches those itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use layerfs::Layer;
use oci::{Descriptor, Digest};
use tokio::sync::watch;

use crate::{
    images::{
        image_index::Image,
        plan::{self, Fallback, FromIndex},
    },
    layers::{Layers, stoppable::Stop},
    reason::{NotLazy, Reason},
    sync::lock,
};

/// How long an opened layer is kept for a request, counted from when the last layer of its image was opened.
const KEEP: Duration = Duration::from_secs(120);

const LEFT_BELOW: &str = "a layer below it is left to containerd";

/// A layer that can be shown.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) layer: Arc<Layer>,
    /// The layer as the image's manifest describes it.
    pub(crate) descriptor: Descriptor,
    /// The ztoc that the image's index names, if the layer was opened with it.
    pub(crate) ztoc: Option<Descriptor>,
    /// Set when the layer is not lazy, but was streamed whole.
    pub(crate) reason: Option<Reason>,
}

type OpenTask = Shared<BoxFuture<'static, Result<Opened, NotLazy>>>;

/// An image, by its address in memory, and one of its layers.
type LayerKey = (usize, Digest);

/// All layers that are being opened, or are open and not asked for yet.
pub(crate) struct Opening {
    layers: Arc<Layers>,
    min_layer_size: u64,
    prefetch: bool,
    /// Never held across an await.
    pulls: Mutex<Pulls>,
}

#[derive(Default)]
struct Pulls {
    /// The image is held with its key, so that no other image gets its address.
    tasks: HashMap<LayerKey, (Arc<Image>, OpenTask)>,
    /// By image: ends the streams of layers.
    stops: HashMap<usize, Vec<StreamStop>>,
    /// By image: position of the lowest layer that is left to containerd.
    left: HashMap<usize, usize>,
}

impl Pulls {
    /// Forgets a layer that was opened. With its last layer, all of a pull is forgotten.
    fn remove(&mut self, key: &LayerKey) -> Option<(Arc<Image>, OpenTask)> {
        let removed = self.tasks.remove(key);
        if !self.tasks.keys().any(|(address, _)| *address == key.0) {
            self.left.remove(&key.0);
        }
        removed
    }

    /// A layer is opened anew: what happened to it in an earlier pull no longer counts.
    fn begin(&mut self, address: usize, position: usize) {
        if self.left.get(&address).is_some_and(|left| *left >= position) {
            self.left.remove(&address);
        }
    }
}

/// Ends the stream of the layer at a position of its image.
struct StreamStop {
    position: usize,
    stop: watch::Sender<Option<String>>,
}

impl Opening {
    pub(crate) fn new(layers: Arc<Layers>, min_layer_size: u64, prefetch: bool) -> Arc<Self> {
        Arc::new(Self { layers, min_layer_size, prefetch, pulls: Mutex::default() })
    }

    /// Opens a layer of `image`, and begins to open those above it.
    ///
    /// # Errors
    /// Why the layer is left to containerd.
    pub(crate) async fn open(
        self: &Arc<Self>,
        image: &Arc<Image>,
        layer: &Digest,
    ) -> Result<Opened, NotLazy> {
        let Some(position) = image.contents.position(layer) else {
            return Err(NotLazy::new(Reason::IndexInvalid, "the image has no such layer"));
        };
        let key = |layer: &Digest| (address(image), *layer);
        let task = {
            let mut pulls = lock(&self.pulls);
            for (above, descriptor) in image.contents.layers.iter().enumerate().skip(position) {
                if !pulls.tasks.contains_key(&key(&descriptor.digest)) {
                    pulls.begin(address(image), above);
                    let task = self.start(image, above, descriptor.clone());
                    let _ = pulls.tasks.insert(key(&descriptor.digest), (image.clone(), task));
                }
            }
            pulls.tasks.get(&key(layer)).map(|(_, task)| task.clone())
        };
        let Some(task) = task else {
            return Err(NotLazy::new(Reason::Internal, "the layer is not being opened"));
        };
        let opened = task.await;
        // The next pull of the image opens the layer anew.
        drop(lock(&self.pulls).remove(&key(layer)));
        opened
    }

    /// Opens a layer in a task of its own, so that it does not end with the request.
    fn start(self: &Arc<Self>, image: &Arc<Image>, position: usize, layer: Descriptor) -> OpenTask {
        let key = (address(image), layer.digest);
        let (opening, image) = (self.clone(), image.clone());
        let task = tokio::spawn(async move {
            let opened = opening.open_now(&image, position, layer).await;
            if opened.is_err() {
                opening.stop_streams_above(&image, position);
            }
            opened
        });
        let task: OpenTask =
            task.map(|joined| joined.unwrap_or_else(|panic| Err(NotLazy::internal(&panic)))).boxed().shared();
        self.forget_later(key, &task);
        task
    }

    /// Forgets a layer that nothing has asked for.
    fn forget_later(self: &Arc<Self>, key: LayerKey, task: &OpenTask) {
        let Some(unasked) = task.downgrade() else { return };
        let (opening, opened) = (Arc::downgrade(self), task.clone().map(drop));
        tokio::spawn(async move {
            opened.await;
            // A client that waits for a large layer has not asked for those above it yet.
            let mut quiet = 0;
            while quiet < 2 {
                tokio::time::sleep(KEEP / 2).await;
                let Some(opening) = opening.upgrade() else { return };
                quiet = if opening.is_opening(key.0) { 0 } else { quiet + 1 };
            }
            let (Some(opening), Some(task)) = (opening.upgrade(), unasked.upgrade()) else { return };
            {
                let mut pulls = lock(&opening.pulls);
                if pulls.tasks.get(&key).is_some_and(|(_, known)| known.ptr_eq(&task)) {
                    drop(pulls.remove(&key));
                }
            }
            if let Some(Ok(opened)) = task.now_or_never() {
                opening.layers.forget(opened.layer);
            }
        });
    }

    /// Whether a layer of the image at this address is being opened.
    fn is_opening(&self, address: usize) -> bool {
        let pulls = lock(&self.pulls);
        pulls.tasks.iter().any(|((image, _), (_, task))| *image == address && task.peek().is_none())
    }

    async fn open_now(
        &self,
        image: &Arc<Image>,
        position: usize,
        layer: Descriptor,
    ) -> Result<Opened, NotLazy> {
        let ztoc = match plan::from_index(&image.contents, &layer, self.min_layer_size) {
            FromIndex::Lazy(ztoc) => ztoc,
            FromIndex::NotLazy(fallback) => return self.fall_back(image, position, layer, fallback).await,
        };
        match self.layers.lazy(&image.registry, &layer, ztoc).await {
            Ok(opened) => {
                self.replay(image, &opened);
                let ztoc = opened.id().ztoc.map(|_| ztoc.clone());
                Ok(Opened { layer: opened, descriptor: layer, ztoc, reason: None })
            }
            Err(NotLazy { reason, detail }) => {
                tracing::warn!(
                    layer = %layer.digest, %reason, why = detail,
                    "the layer cannot be lazy; it is fetched whole"
                );
                let fallback = plan::fallback(&layer, reason);
                self.fall_back(image, position, layer, fallback).await
            }
        }
    }

    /// Fetches the spans first that the image's prefetch artifact names. Nothing waits for it.
    fn replay(&self, image: &Image, opened: &Arc<Layer>) {
        let artifact = image.contents.prefetch.get(opened.digest()).filter(|_| self.prefetch);
        let Some(artifact) = artifact.cloned() else { return };
        let (layers, registry, opened) = (self.layers.clone(), image.registry.clone(), opened.clone());
        tokio::spawn(async move { layers.replay(&registry, &opened, &artifact).await });
    }

    async fn fall_back(
        &self,
        image: &Arc<Image>,
        position: usize,
        layer: Descriptor,
        fallback: Fallback,
    ) -> Result<Opened, NotLazy> {
        let (compression, reason) = match fallback {
            Fallback::Stream(compression, reason) => (compression, reason),
            Fallback::Leave(reason) => {
                return Err(NotLazy::new(reason, "the layer cannot be fetched whole either"));
            }
        };
        let stopped = self.add_stop(image, position)?;
        let streamed = self.layers.stream(&image.registry, &layer, compression, stopped).await;
        self.remove_stop(image, position);
        Ok(Opened { layer: streamed?, descriptor: layer, ztoc: None, reason: Some(reason) })
    }

    /// Notes a stream that is about to begin.
    ///
    /// # Errors
    /// When a layer below it is left to containerd.
    fn add_stop(&self, image: &Arc<Image>, position: usize) -> Result<Stop, NotLazy> {
        let mut pulls = lock(&self.pulls);
        if pulls.left.get(&address(image)).is_some_and(|left| *left < position) {
            return Err(NotLazy::new(Reason::UnsupportedLayer, LEFT_BELOW));
        }
        let (stop, stopped) = watch::channel(None);
        pulls.stops.entry(address(image)).or_default().push(StreamStop { position, stop });
        Ok(stopped)
    }

    fn stop_streams_above(&self, image: &Arc<Image>, left: usize) {
        let mut pulls = lock(&self.pulls);
        let lowest = pulls.left.entry(address(image)).or_insert(left);
        *lowest = left.min(*lowest);
        let stops = pulls.stops.get(&address(image)).map_or(&[][..], Vec::as_slice);
        for above in stops.iter().filter(|stop| stop.position > left) {
            above.stop.send_replace(Some(LEFT_BELOW.to_owned()));
        }
    }

    fn remove_stop(&self, image: &Arc<Image>, position: usize) {
        let mut pulls = lock(&self.pulls);
        let Some(stops) = pulls.stops.get_mut(&address(image)) else { return };
        stops.retain(|stop| stop.position != position);
        if stops.is_empty() {
            pulls.stops.remove(&address(image));
        }
    }
}

fn address(image: &Arc<Image>) -> usize {
    Arc::as_ptr(image) as usize
}
