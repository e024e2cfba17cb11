//! A layer that is complete: the digest of all of its uncompressed bytes, which is its diff ID if they are right.
//!
//! Each span was verified when it came, as the ztoc has it. That the spans together are the layer which the image
//! names is known only when all are there; then, and when no reader has had to wait for a while, they are read
//! once more, and who knows the diff ID is told the digest. It is kept with the layer, so that this is done once.

use oci::Digest;
use sha2::{Digest as _, Sha256};
use ztoc::{SpanId, UncompressedOffset};

use super::{SpanState, Spans};

/// Read and hashed at a time.
const PIECE: usize = 1 << 20;

/// Who is told the digest, or that it cannot be known.
type DigestListener = Box<dyn FnOnce(Option<&Digest>) + Send>;

/// Those who are told of one layer, the newest: snapshots come and go while a layer never becomes complete.
const MAX_LISTENERS: usize = 64;

/// Why there is no digest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoDiffId {
    /// Something is missing, or cannot be read now.
    Missing,
    /// Everything is there, but where the stream ends is not known.
    Endless,
}

/// What is known of a layer as a whole, and who wants to know it.
#[derive(Default)]
pub(super) struct DiffIdCheck {
    digest: Option<Digest>,
    listeners: Vec<DigestListener>,
    /// Somebody is at it.
    pub(super) begun: bool,
    /// A span came meanwhile.
    again: bool,
}

impl std::fmt::Debug for DiffIdCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiffIdCheck").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl DiffIdCheck {
    pub(super) fn new(digest: Option<Digest>) -> Self {
        Self { digest, ..Self::default() }
    }
}

impl Spans {
    /// The digest of the whole uncompressed stream, where it is known.
    pub(crate) fn whole(&self) -> Option<Digest> {
        self.whole.lock().digest
    }

    /// `hear` is told the digest of the whole uncompressed stream, as soon as it is known, or once everything is there and
    /// it cannot be known. Perhaps never.
    pub(crate) fn when_whole(&self, hear: DigestListener) {
        let mut whole = self.whole.lock();
        if let Some(digest) = whole.digest {
            drop(whole);
            return hear(Some(&digest));
        }
        if whole.listeners.len() >= MAX_LISTENERS {
            drop(whole.listeners.remove(0));
        }
        whole.listeners.push(hear);
        drop(whole);
        self.begin_check_if_complete();
    }

    /// To be called when a span has become ready.
    pub(super) fn begin_check_if_complete(&self) {
        if self.table.missing() > 0 {
            return;
        }
        let mut whole = self.whole.lock();
        whole.again = whole.begun;
        if whole.begun || whole.digest.is_some() || whole.listeners.is_empty() {
            return;
        }
        whole.begun = true;
        drop(whole);
        let me = self.weak_self.clone();
        self.engine.when_quiet(move || {
            if let Some(me) = me.upgrade() {
                me.finish_check();
            }
        });
    }

    pub(super) fn finish_check(&self) {
        let digest = match self.digest_whole() {
            Ok(digest) => digest,
            Err(why) => {
                let mut whole = self.whole.lock();
                whole.begun = false;
                let again = std::mem::take(&mut whole.again);
                let listeners =
                    if why == NoDiffId::Endless { std::mem::take(&mut whole.listeners) } else { Vec::new() };
                drop(whole);
                listeners.into_iter().for_each(|hear| hear(None));
                // Something of it went meanwhile, or cannot be read: looked at again when that is back, or is already.
                if again {
                    self.begin_check_if_complete();
                }
                return;
            }
        };
        tracing::info!(layer = %self.files.id(), %digest, "the layer is complete");
        if let Err(error) = self.files.put_whole(&digest) {
            tracing::debug!(layer = %self.files.id(), %error, "note the digest of a complete layer");
        }
        let mut whole = self.whole.lock();
        whole.digest = Some(digest);
        let listeners = std::mem::take(&mut whole.listeners);
        drop(whole);
        listeners.into_iter().for_each(|hear| hear(Some(&digest)));
    }

    pub(super) fn digest_whole(&self) -> Result<Digest, NoDiffId> {
        let count = self.ztoc.spans().len();
        // Nothing is taken away from here on.
        let _pins = self.table.pin(0..count);
        if !(0..count).all(|span| self.table.state(span) == SpanState::Ready) {
            return Err(NoDiffId::Missing);
        }
        let tail = match count.checked_sub(1) {
            Some(last) => self.files.tail(SpanId(last)).ok_or(NoDiffId::Endless)?,
            None => 0,
        };
        let end = self.ztoc.uncompressed_size().saturating_add(tail);
        let mut hasher = Sha256::new();
        let (mut at, mut piece) = (0, vec![0; PIECE]);
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let read = self.files.read(UncompressedOffset(at), &mut piece[..length]);
            read.map_err(|_| NoDiffId::Missing)?;
            hasher.update(&piece[..length]);
            at += length as u64;
        }
        Ok(Digest::from_sha256(hasher.finalize().into()))
    }
}
