//! One image's index, looked up once and shared by all requests for its layers.
//!
//! A lookup is a task of its own, so it does not end with the request that started it. A found index is kept for
//! minutes. A failed lookup is kept for seconds, so that an index that is pushed later is found. The configuration
//! decides about an image without an index: its layers are left to containerd, or each of them is streamed whole.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use oci::{Client, Credentials, Digest, Manifest, Reference, Registry, Timeouts};

use crate::{
    config::Unindexed,
    images::{
        containerd::Containerd,
        labels::{LayerRequest, PrepareRequest},
        plan::{Contents, MAX_LAYERS, Modes},
        search::Search,
    },
    reason::{NotLazy, Reason},
    sync::lock,
};

const KEEP_FOUND: Duration = Duration::from_secs(600);
const KEEP_NOT_FOUND: Duration = Duration::from_secs(5);
/// A lookup is three small requests, each answered within a second or repeated within a few. A registry that is silent
/// for longer, or takes minutes for kilobytes, would delay a pull that can do without it.
const PATIENCE: Timeouts = Timeouts { silence: Duration::from_secs(10), total: Duration::from_secs(60) };
/// For a registry that the client has not named, or a question that is asked for caution's sake.
const SHORT_PATIENCE: Duration = Duration::from_secs(3);
/// Images that a node pulls at the same time, generously.
const MAX_IMAGES: usize = 256;

const NO_INDEX: &str = "no valid SOCI index found";

/// An image whose layers the daemon serves.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) registry: Registry,
    pub(crate) contents: Contents,
}

type LookupResult = Result<Arc<Image>, NotLazy>;

/// What a lookup found, and when.
#[derive(Clone)]
struct Found {
    image: LookupResult,
    /// The layers of the manifest, the lowest first. None when the manifest could not be read.
    layers: Option<Arc<[Digest]>>,
    at: Instant,
}

#[derive(PartialEq, Eq, Hash, Clone)]
struct ImageKey {
    registry: String,
    repository: String,
    manifest: Digest,
    index: Option<Digest>,
}

impl ImageKey {
    fn of(request: &LayerRequest) -> Self {
        Self {
            registry: request.image.registry().to_owned(),
            repository: request.image.repository().to_owned(),
            manifest: request.manifest,
            index: request.index,
        }
    }
}

struct CachedLookup {
    since: Instant,
    found: Shared<BoxFuture<'static, Found>>,
}

impl CachedLookup {
    fn is_fresh(&self) -> bool {
        let Some(Found { image, at, .. }) = self.found.peek() else { return true };
        match image {
            // All layers of one pull get the same answer.
            Ok(image) if !image.contents.is_indexed() => {
                at.elapsed() < KEEP_NOT_FOUND || Arc::strong_count(image) > 1
            }
            Ok(_) => at.elapsed() < KEEP_FOUND,
            Err(_) => at.elapsed() < KEEP_NOT_FOUND,
        }
    }
}

/// The images that containerd asked for lately.
pub(crate) struct Images {
    lookup: Arc<Lookup>,
    search: Search,
    /// Never held across an await.
    lookups: Mutex<HashMap<ImageKey, CachedLookup>>,
}

struct Lookup {
    client: Client,
    credentials: Arc<dyn Credentials>,
    containerd: Arc<Containerd>,
    modes: Modes,
    unindexed: Unindexed,
}

impl Images {
    pub(crate) fn new(
        client: Client,
        credentials: Arc<dyn Credentials>,
        containerd: Containerd,
        modes: Modes,
        unindexed: Unindexed,
    ) -> Self {
        let containerd = Arc::new(containerd);
        let search = Search::new(containerd.clone());
        let lookup = Arc::new(Lookup { client, credentials, containerd, modes, unindexed });
        Self { lookup, search, lookups: Mutex::default() }
    }

    /// The layer that makes the snapshot `target`, for a client that names only the snapshot.
    pub(crate) async fn layer(&self, namespace: &str, target: &str) -> Result<LayerRequest, NotLazy> {
        self.search.layer(namespace, target).await
    }

    /// The image of a request that the daemon found out itself. Its registry's name may be wrong, so the daemon waits for it
    /// for a shorter time, and does not ask it again for each layer.
    pub(crate) async fn guessed(&self, namespace: &str, request: &LayerRequest) -> LookupResult {
        let image = tokio::time::timeout(SHORT_PATIENCE, self.image(namespace, request)).await;
        let image = image.unwrap_or_else(|_| {
            Err(NotLazy::new(Reason::Unreachable, format!("{} does not answer in time", request.image)))
        });
        image.inspect_err(|not_lazy| self.search.doubt(request.manifest, not_lazy.clone()))
    }

    /// Whether the requested layer is known to have others below it in its image.
    pub(crate) async fn is_above(&self, namespace: &str, request: PrepareRequest) -> bool {
        let request = match request {
            PrepareRequest::Layer(request) => request,
            PrepareRequest::ByChainId(target) => return self.search.is_above(namespace, &target).await,
            PrepareRequest::Container | PrepareRequest::Incomplete(_) => return false,
        };
        let layers = match self.layers_looked_up(&request) {
            Some(layers) => Some(layers),
            None => {
                let read =
                    tokio::time::timeout(SHORT_PATIENCE, self.lookup.layers(namespace, &request)).await;
                read.ok().and_then(Result::ok)
            }
        };
        layers.is_some_and(|layers| layers.iter().position(|layer| *layer == request.layer) > Some(0))
    }

    /// The layers of the request's manifest, if a lookup has just read it.
    fn layers_looked_up(&self, request: &LayerRequest) -> Option<Arc<[Digest]>> {
        let lookups = lock(&self.lookups);
        lookups.get(&ImageKey::of(request))?.found.peek()?.layers.clone()
    }

    /// The repository that an image reference names.
    pub(crate) fn registry(&self, image: &Reference) -> Result<Registry, oci::Error> {
        self.lookup.registry(image)
    }

    /// The image that `request` is about, with its index.
    pub(crate) async fn image(&self, namespace: &str, request: &LayerRequest) -> LookupResult {
        let found = {
            let mut lookups = lock(&self.lookups);
            lookups.retain(|_, lookup| lookup.is_fresh());
            if lookups.len() >= MAX_IMAGES {
                let oldest = lookups.iter().min_by_key(|(_, lookup)| lookup.since);
                let oldest = oldest.map(|(key, _)| key.clone());
                oldest.map(|key| lookups.remove(&key));
            }
            let start = || CachedLookup {
                since: Instant::now(),
                found: self.lookup.clone().start(namespace.to_owned(), request.clone()),
            };
            lookups.entry(ImageKey::of(request)).or_insert_with(start).found.clone()
        };
        found.await.image
    }
}

impl Lookup {
    fn start(self: Arc<Self>, namespace: String, request: LayerRequest) -> Shared<BoxFuture<'static, Found>> {
        let task = tokio::spawn(async move {
            let doing = format!("find the index of {}", request.image);
            let mut layers = None;
            let found = PATIENCE.bound(&doing, self.image(&namespace, &request, &mut layers)).await;
            let image =
                found.unwrap_or_else(|silence| Err(NotLazy::of_registry(&silence, Reason::Unreachable)));
            (image, layers)
        });
        let found = task.map(|joined| {
            let (image, layers) = joined.unwrap_or_else(|panic| (Err(NotLazy::internal(&panic)), None));
            Found { image: image.map(Arc::new), layers, at: Instant::now() }
        });
        found.boxed().shared()
    }

    fn registry(&self, image: &Reference) -> Result<Registry, oci::Error> {
        Registry::new(&self.client, image, self.credentials.clone())
    }

    /// The request's manifest, from containerd, which has just fetched it, or else from the registry.
    async fn manifest(&self, namespace: &str, request: &LayerRequest) -> Result<(Bytes, Manifest), NotLazy> {
        let bytes = match self.containerd.content(namespace, &request.manifest).await {
            Some(bytes) => bytes,
            None => {
                let registry = self.registry(&request.image);
                let registry = registry.map_err(|e| NotLazy::of_registry(&e, Reason::NoLabels))?;
                let fetched = registry.manifest(&request.manifest.to_string()).await;
                fetched.map_err(|e| NotLazy::of_registry(&e, Reason::IndexInvalid))?.1
            }
        };
        let manifest = Manifest::parse(&bytes, "read image manifest");
        let manifest = manifest.map_err(|e| NotLazy::of_registry(&e, Reason::IndexInvalid))?;
        let count = manifest.layers().len();
        if count > MAX_LAYERS {
            let detail = format!("the image has {count} layers, more than {MAX_LAYERS}");
            return Err(NotLazy::new(Reason::UnsupportedLayer, detail));
        }
        Ok((bytes, manifest))
    }

    async fn layers(&self, namespace: &str, request: &LayerRequest) -> Result<Arc<[Digest]>, NotLazy> {
        Ok(digests(&self.manifest(namespace, request).await?.1))
    }

    /// Notes the manifest's layers in `layers`, also when the image has no index.
    async fn image(
        &self,
        namespace: &str,
        request: &LayerRequest,
        layers: &mut Option<Arc<[Digest]>>,
    ) -> Result<Image, NotLazy> {
        let registry = self.registry(&request.image);
        let registry = registry.map_err(|e| NotLazy::new(Reason::NoLabels, e.to_string()))?;
        let (bytes, manifest) = self.manifest(namespace, request).await?;
        *layers = Some(digests(&manifest));
        let ask = |open: bool| if open { index::Lookup::On } else { index::Lookup::Off };
        let sources = index::Sources {
            explicit: request.index,
            annotation: ask(self.modes.v2),
            referrers: ask(self.modes.v1),
        };
        let found = index::locate(&registry, &request.manifest, Some(&bytes), &sources).await;
        let index = found.map_err(|e| NotLazy::new(reason_of_index(&e), format!("{NO_INDEX}: {e}")))?;
        let contents = match index {
            Some(index) => {
                tracing::info!(
                    digest = %index.digest, image = %request.image,
                    "fetching SOCI artifacts using index descriptor"
                );
                Contents {
                    reason_without_ztoc: Reason::NoZtoc,
                    layers: manifest.layers().to_vec(),
                    ztocs: index.ztocs.into_iter().collect(),
                    prefetch: index.prefetch.into_iter().collect(),
                }
            }
            None if self.unindexed == Unindexed::Store => Contents {
                reason_without_ztoc: Reason::NoIndex,
                layers: manifest.layers().to_vec(),
                ztocs: HashMap::new(),
                prefetch: HashMap::new(),
            },
            None => return Err(NotLazy::new(Reason::NoIndex, NO_INDEX)),
        };
        Ok(Image { registry, contents })
    }
}

fn digests(manifest: &Manifest) -> Arc<[Digest]> {
    manifest.layers().iter().map(|layer| layer.digest).collect()
}

fn reason_of_index(error: &index::Error) -> Reason {
    match error.kind() {
        index::ErrorKind::Denied => Reason::Denied,
        index::ErrorKind::Unreachable => Reason::Unreachable,
        _ => Reason::IndexInvalid,
    }
}
