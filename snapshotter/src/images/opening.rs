//! Layers on their way to being shown: all of an image's at once, as soon as the first of them is asked for.
//!
//! containerd asks for one layer after the other. Whoever asks for one will ask for those above it, so their ztocs
//! are fetched, and layers without one streamed, beside it; what is missing of them then begins to come while
//! containerd is still asking. Each layer is opened once; who asks finds it open, or waits for it. What nobody
//! asks for in the end is forgotten a while after the last layer of the image has come.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture, future::Shared};
use layerfs::Layer;
use oci::{Descriptor, Digest};

use crate::{
    images::{
        image_index::Image,
        plan::{self, Second, Whole},
    },
    layers::{Layers, Refusal},
    reason::Reason,
    sync::lock,
};

/// How long a layer is kept that was opened and not asked for, with no other layer of its image on the way.
const KEEP: Duration = Duration::from_secs(120);

/// A layer that can be shown.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) layer: Arc<Layer>,
    /// As the image's manifest has it.
    pub(crate) descriptor: Descriptor,
    /// The index's ztoc, where that is what it was opened with.
    pub(crate) ztoc: Option<Descriptor>,
    /// Set when it is not lazy, but was streamed whole.
    pub(crate) reason: Option<Reason>,
}

type Outcome = Shared<BoxFuture<'static, Result<Opened, Refusal>>>;

/// An image, by its place in memory, and one of its layers.
type Key = (usize, Digest);

/// All layers that are being opened, or are open and not asked for yet.
pub(crate) struct Opening {
    layers: Arc<Layers>,
    min_layer_size: u64,
    prefetch: bool,
    /// The image is held with its key, so that no other gets its place. Never held across an await.
    begun: Mutex<HashMap<Key, (Arc<Image>, Outcome)>>,
}

impl Opening {
    pub(crate) fn new(layers: Arc<Layers>, min_layer_size: u64, prefetch: bool) -> Arc<Self> {
        Arc::new(Self { layers, min_layer_size, prefetch, begun: Mutex::default() })
    }

    /// Opens a layer of `image`, and begins to open those above it; or says why containerd has to do it.
    pub(crate) async fn open(
        self: &Arc<Self>,
        image: &Arc<Image>,
        layer: &Digest,
    ) -> Result<Opened, Refusal> {
        let place = Arc::as_ptr(image) as usize;
        let Some((mine, above)) = image.contents.upwards(layer).and_then(<[_]>::split_first) else {
            return Err((Reason::IndexInvalid, "the image has no such layer".into()));
        };
        let mine = {
            let mut begun = lock(&self.begun);
            let mut begin = |layer: &Descriptor| {
                let begin = || (image.clone(), self.begin(image, place, layer));
                begun.entry((place, layer.digest)).or_insert_with(begin).1.clone()
            };
            let mine = begin(mine);
            for layer in above {
                drop(begin(layer)); // who asks for it finds it
            }
            mine
        };
        let outcome = mine.await;
        // Another pull of it looks again.
        lock(&self.begun).remove(&(place, *layer));
        outcome
    }

    /// Opens a layer in a task that does not die with who asked.
    fn begin(self: &Arc<Self>, image: &Arc<Image>, place: usize, layer: &Descriptor) -> Outcome {
        let key = (place, layer.digest);
        let (opening, image, layer) = (self.clone(), image.clone(), layer.clone());
        let task = tokio::spawn(async move { opening.bring(&image, layer).await });
        let outcome: Outcome = task
            .map(|joined| joined.unwrap_or_else(|panic| Err((Reason::Internal, panic.to_string()))))
            .boxed()
            .shared();
        let (opening, held) = (Arc::downgrade(self), outcome.clone());
        tokio::spawn(async move {
            let opened = held.await;
            // Who waits for a large layer has not asked for those above it yet.
            let mut quiet = 0;
            while quiet < 2 {
                tokio::time::sleep(KEEP / 2).await;
                let Some(opening) = opening.upgrade() else { return };
                quiet = if opening.is_bringing(key.0) { 0 } else { quiet + 1 };
            }
            let Some(opening) = opening.upgrade() else { return };
            drop(lock(&opening.begun).remove(&key));
            // Also when it was asked for: it may have been refused then. What is shown stays.
            if let Ok(opened) = opened {
                opening.layers.forget(opened.layer);
            }
        });
        outcome
    }

    /// Whether a layer of the image at `place` is on its way.
    fn is_bringing(&self, place: usize) -> bool {
        let begun = lock(&self.begun);
        begun.iter().any(|((image, _), (_, outcome))| *image == place && outcome.peek().is_none())
    }

    async fn bring(&self, image: &Image, layer: Descriptor) -> Result<Opened, Refusal> {
        let ztoc = match plan::second(&image.contents, &layer, self.min_layer_size) {
            Second::Lazy(ztoc) => ztoc,
            Second::Whole(whole) => return self.whole(image, layer, whole).await,
        };
        match self.layers.lazy(&image.registry, &layer, ztoc).await {
            Ok(opened) => {
                self.replay(image, &opened);
                let ztoc = opened.id().ztoc.map(|_| ztoc.clone());
                Ok(Opened { layer: opened, descriptor: layer, ztoc, reason: None })
            }
            Err((reason, why)) => {
                tracing::warn!(layer = %layer.digest, %reason, why, "the layer cannot be lazy; it is fetched whole");
                let whole = plan::whole(&layer, reason);
                self.whole(image, layer, whole).await
            }
        }
    }

    /// Has what the image's artifact names brought first; nobody waits for it.
    fn replay(&self, image: &Image, opened: &Arc<Layer>) {
        let artifact = image.contents.prefetch.get(opened.digest()).filter(|_| self.prefetch);
        let Some(artifact) = artifact.cloned() else { return };
        let (layers, registry, opened) = (self.layers.clone(), image.registry.clone(), opened.clone());
        tokio::spawn(async move { layers.replay(&registry, &opened, &artifact).await });
    }

    async fn whole(&self, image: &Image, layer: Descriptor, whole: Whole) -> Result<Opened, Refusal> {
        match whole {
            Whole::Stream(compression, reason) => {
                let opened = self.layers.stream(&image.registry, &layer, compression).await?;
                Ok(Opened { layer: opened, descriptor: layer, ztoc: None, reason: Some(reason) })
            }
            Whole::Leave(reason) => Err((reason, "the layer cannot be fetched whole either".into())),
        }
    }
}
