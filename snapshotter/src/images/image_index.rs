//! One image's index, looked up once, whoever asks first, and shared by its layers.
//!
//! A lookup is a task of its own: it does not die with the client that happened to ask first. What it found is
//! kept for a while, what it did not find for seconds, so that an index pushed later is found later. An image without
//! one is left to containerd, or is one whose layers all come whole, as the configuration says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture, future::Shared};
use oci::{Client, Credentials, Digest, Manifest, Patience, Reference, Registry};

use crate::{
    config::Unindexed,
    error::told,
    images::{
        containerd::Containerd,
        labels::{Asked, LayerRequest},
        plan::{Contents, Modes},
        search::Search,
    },
    reason::Reason,
    sync::lock,
};

const KEEP_FOUND: Duration = Duration::from_secs(600);
const KEEP_NOT_FOUND: Duration = Duration::from_secs(5);
/// A lookup is three small requests, each answered within a second or asked again within a few: a registry that is
/// silent for longer holds up a pull that could do without it, and so does one that takes forever over kilobytes.
const PATIENCE: Patience = Patience { silence: Duration::from_secs(10), total: Duration::from_secs(60) };
/// For a registry that the client has not named: a lookup takes far less.
const GUESS: Duration = Duration::from_secs(3);
/// More than overlayfs mounts; each is opened with the first, in a task of its own.
const MOST_LAYERS: usize = 512;
/// Images pulled at the same time on one node, generously.
const MOST: usize = 256;

/// An image whose layers we bring.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) registry: Registry,
    pub(crate) contents: Contents,
}

type Answer = Result<Arc<Image>, (Reason, String)>;
/// An answer, and when it came.
type Dated = (Answer, Instant);

#[derive(PartialEq, Eq, Hash, Clone)]
struct Key {
    registry: String,
    repository: String,
    manifest: Digest,
    index: Option<Digest>,
}

struct Entry {
    since: Instant,
    answer: Shared<BoxFuture<'static, Dated>>,
}

impl Entry {
    fn is_fresh(&self) -> bool {
        match self.answer.peek() {
            None => true,
            // As long as its layers are on their way it is the same one to all of them.
            Some((Ok(image), at)) if !image.contents.is_indexed() => {
                at.elapsed() < KEEP_NOT_FOUND || Arc::strong_count(image) > 1
            }
            Some((Ok(_), at)) => at.elapsed() < KEEP_FOUND,
            Some((Err(_), at)) => at.elapsed() < KEEP_NOT_FOUND,
        }
    }
}

/// All images asked for lately.
pub(crate) struct Images {
    lookup: Arc<Lookup>,
    search: Search,
    /// Never held across an await.
    known: Mutex<HashMap<Key, Entry>>,
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
        Self { lookup, search, known: Mutex::default() }
    }

    /// What a client that only names the snapshot has not said.
    pub(crate) async fn layer(
        &self,
        namespace: &str,
        target: &str,
    ) -> Result<LayerRequest, (Reason, String)> {
        self.search.layer(namespace, target).await
    }

    /// The same as [`Images::image`] for what was found out and not said. The registry's name may be none: it is not waited
    /// for as long, and not asked for each layer.
    pub(crate) async fn guessed(&self, namespace: &str, request: &LayerRequest) -> Answer {
        let answer = tokio::time::timeout(GUESS, self.image(namespace, request)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err((Reason::Unreachable, format!("{} does not answer in time", request.image)))
        });
        answer.inspect_err(|why| self.search.doubt(request.manifest, why.clone()))
    }

    /// Whether the layer that a client asks for is known to have others below it in its image.
    pub(crate) async fn is_above(&self, namespace: &str, asked: Asked) -> bool {
        let request = match asked {
            Asked::Layer(request) => request,
            Asked::Unnamed(target) => return self.search.is_above(namespace, &target).await,
            Asked::Plain | Asked::Unclear(_) => return false,
        };
        let Some(bytes) = self.lookup.containerd.content(namespace, &request.manifest).await else {
            return false;
        };
        let manifest = Manifest::parse(&bytes, "read image manifest");
        manifest.is_ok_and(|manifest| match manifest.layers() {
            [lowest, above @ ..] => {
                lowest.digest != request.layer && above.iter().any(|one| one.digest == request.layer)
            }
            [] => false,
        })
    }

    /// The repository that an image reference names.
    pub(crate) fn registry(&self, image: &Reference) -> Result<Registry, oci::Error> {
        self.lookup.registry(image)
    }

    /// The image that `request` is about, with its index.
    pub(crate) async fn image(&self, namespace: &str, request: &LayerRequest) -> Answer {
        let key = Key {
            registry: request.image.registry().to_owned(),
            repository: request.image.repository().to_owned(),
            manifest: request.manifest,
            index: request.index,
        };
        let answer = {
            let mut known = lock(&self.known);
            known.retain(|_, entry| entry.is_fresh());
            if known.len() >= MOST {
                let oldest = known.iter().min_by_key(|(_, entry)| entry.since).map(|(key, _)| key.clone());
                oldest.map(|key| known.remove(&key));
            }
            let start = || {
                let (lookup, namespace, request) =
                    (self.lookup.clone(), namespace.to_owned(), request.clone());
                let task = tokio::spawn(async move {
                    let doing = format!("find the index of {}", request.image);
                    let found = PATIENCE.bound(&doing, lookup.image(&namespace, &request)).await;
                    found.unwrap_or_else(|silence| Err((Reason::Unreachable, told(&silence))))
                });
                let answer = task.map(|joined| {
                    let found = joined.unwrap_or_else(|panic| Err((Reason::Internal, panic.to_string())));
                    (found.map(Arc::new), Instant::now())
                });
                Entry { since: Instant::now(), answer: answer.boxed().shared() }
            };
            known.entry(key).or_insert_with(start).answer.clone()
        };
        answer.await.0
    }
}

impl Lookup {
    fn registry(&self, image: &Reference) -> Result<Registry, oci::Error> {
        Registry::new(&self.client, image, self.credentials.clone())
    }

    async fn image(&self, namespace: &str, request: &LayerRequest) -> Result<Image, (Reason, String)> {
        let registry = self.registry(&request.image).map_err(|e| (Reason::NoLabels, e.to_string()))?;
        let bytes = match self.containerd.content(namespace, &request.manifest).await {
            Some(bytes) => bytes,
            None => {
                let fetched = registry.manifest(&request.manifest.to_string()).await;
                fetched.map_err(|e| (Reason::of_registry(&e, Reason::IndexInvalid), e.to_string()))?.1
            }
        };
        let manifest = Manifest::parse(&bytes, "read image manifest")
            .map_err(|e| (Reason::IndexInvalid, e.to_string()))?;
        let count = manifest.layers().len();
        if count > MOST_LAYERS {
            return Err((
                Reason::UnsupportedLayer,
                format!("the image has {count} layers, more than {MOST_LAYERS}"),
            ));
        }
        let ask = |open: bool| if open { index::Source::Ask } else { index::Source::Skip };
        let sources = index::Sources {
            explicit: request.index,
            annotation: ask(self.modes.v2),
            referrers: ask(self.modes.v1),
        };
        let found = index::locate(&registry, &request.manifest, Some(&bytes), &sources).await;
        let layers = manifest.layers().to_vec();
        let index = match found {
            Ok(Some(index)) => index,
            Ok(None) if self.unindexed == Unindexed::Store => {
                let (ztocs, prefetch) = (HashMap::new(), HashMap::new());
                let contents = Contents { bare: Reason::NoIndex, layers, ztocs, prefetch };
                return Ok(Image { registry, contents });
            }
            Ok(None) => return Err((Reason::NoIndex, "no valid SOCI index found".into())),
            Err(e) => return Err((reason_of_index(&e), format!("no valid SOCI index found: {e}"))),
        };
        let ztocs = index.ztocs.into_iter().collect();
        let prefetch = index.prefetch.into_iter().collect();
        tracing::info!(digest = %index.digest, image = %request.image, "fetching SOCI artifacts using index descriptor");
        Ok(Image { registry, contents: Contents { bare: Reason::NoZtoc, layers, ztocs, prefetch } })
    }
}

fn reason_of_index(error: &index::Error) -> Reason {
    match error.kind() {
        index::ErrorKind::Denied => Reason::Denied,
        index::ErrorKind::Unreachable => Reason::Unreachable,
        _ => Reason::IndexInvalid,
    }
}
