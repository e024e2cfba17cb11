//! Layers on their way to being shown: all of an image's at once, as soon as the first of them is asked for.
//!
//! containerd asks for one layer after the other. Whoever asks for one will ask for those above it, so their ztocs
//! are fetched, and layers without one streamed, beside it; what is missing of them then begins to come while
//! containerd is still asking. Each layer is opened once; who asks finds it open, or waits for it. What nobody
//! asks for in the end is forgotten after a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture, future::Shared};
use layerfs::Layer;
use oci::{Descriptor, Digest};

use crate::{
    images::Image,
    layers::{Layers, Refusal},
    plan::{self, Second},
    reason::Reason,
    sync::lock,
};

/// How long a layer is kept that was opened and not asked for.
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
        let from = image.contents.layers.iter().position(|known| known.digest == *layer);
        let above = from.map_or(&[][..], |from| &image.contents.layers[from..]);
        let mine = {
            let mut begun = lock(&self.begun);
            for descriptor in above {
                let key = (place, descriptor.digest);
                begun.entry(key).or_insert_with(|| (image.clone(), self.begin(image, key)));
            }
            begun.get(&(place, *layer)).map(|(_, outcome)| outcome.clone())
        };
        let Some(mine) = mine else {
            return Err((Reason::IndexInvalid, "the image has no such layer".into()));
        };
        let outcome = mine.await;
        // Another pull of it looks again.
        lock(&self.begun).remove(&(place, *layer));
        outcome
    }

    /// Opens a layer in a task that does not die with who asked.
    fn begin(self: &Arc<Self>, image: &Arc<Image>, key: Key) -> Outcome {
        let (opening, image) = (self.clone(), image.clone());
        let task = tokio::spawn(async move { opening.bring(&image, &key.1).await });
        let outcome: Outcome = task
            .map(|joined| joined.unwrap_or_else(|panic| Err((Reason::Internal, panic.to_string()))))
            .boxed()
            .shared();
        let (opening, held) = (Arc::downgrade(self), outcome.clone());
        tokio::spawn(async move {
            let opened = held.await;
            tokio::time::sleep(KEEP).await;
            let Some(opening) = opening.upgrade() else { return };
            let left = lock(&opening.begun).remove(&key);
            if let (Some(left), Ok(opened)) = (left, opened) {
                drop(left);
                opening.layers.forget(opened.layer);
            }
        });
        outcome
    }

    async fn bring(&self, image: &Image, layer: &Digest) -> Result<Opened, Refusal> {
        match plan::second(&image.contents, layer, self.min_layer_size) {
            Second::Lazy { layer, ztoc } => match self.layers.lazy(&image.registry, &layer, &ztoc).await {
                Ok(opened) => {
                    if let Some(artifact) =
                        image.contents.prefetch.get(&layer.digest).filter(|_| self.prefetch)
                    {
                        let (layers, registry) = (self.layers.clone(), image.registry.clone());
                        let (opened, artifact) = (opened.clone(), artifact.clone());
                        tokio::spawn(async move { layers.replay(&registry, &opened, &artifact).await });
                    }
                    let ztoc = opened.id().ztoc.map(|_| *ztoc);
                    Ok(Opened { layer: opened, descriptor: *layer, ztoc, reason: None })
                }
                Err((reason, why)) => {
                    tracing::warn!(layer = %layer.digest, %reason, why, "the layer cannot be lazy; it is fetched whole");
                    self.whole(image, plan::whole(*layer, reason)).await
                }
            },
            second => self.whole(image, second).await,
        }
    }

    async fn whole(&self, image: &Image, second: Second) -> Result<Opened, Refusal> {
        match second {
            Second::Stream { layer, compression, reason } => {
                let opened = self.layers.stream(&image.registry, &layer, compression).await?;
                Ok(Opened { layer: opened, descriptor: *layer, ztoc: None, reason: Some(reason) })
            }
            Second::Lazy { .. } => Err((Reason::Internal, "a lazy layer is not fetched whole".into())),
            Second::Leave(reason) => Err((reason, "the layer cannot be fetched whole either".into())),
        }
    }
}
