//! A layer that is complete: the digest of all of its uncompressed bytes, which is its diff ID if they are right.
//!
//! Each span was verified when it came, as the ztoc has it. That the spans together are the layer which the image
//! names is known only when all are there; then, and when no reader has had to wait for a while, they are read
//! once more, and who knows the diff ID is told the digest. It is kept with the layer, so that this is done once.

use oci::Digest;
use sha2::{Digest as _, Sha256};
use ztoc::{SpanId, UncompressedOffset};

use super::{Spans, State};

/// Read and hashed at a time.
const PIECE: usize = 1 << 20;

type Hear = Box<dyn FnOnce(&Digest) + Send>;

/// What is known of a layer as a whole, and who wants to know it.
#[derive(Default)]
pub(super) struct Whole {
    digest: Option<Digest>,
    hearers: Vec<Hear>,
    /// Somebody is at it.
    pub(super) begun: bool,
    /// A span came meanwhile.
    again: bool,
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Whole {
    pub(super) fn new(digest: Option<Digest>) -> Self {
        Self { digest, ..Self::default() }
    }
}

impl Spans {
    /// The digest of the whole uncompressed stream, where it is known.
    pub(crate) fn whole(&self) -> Option<Digest> {
        self.whole.lock().digest
    }

    /// `hear` is told the digest of the whole uncompressed stream, as soon as it is known. Perhaps never.
    pub(crate) fn when_whole(&self, hear: Hear) {
        let mut whole = self.whole.lock();
        if let Some(digest) = whole.digest {
            drop(whole);
            return hear(&digest);
        }
        whole.hearers.push(hear);
        drop(whole);
        self.look_whether_whole();
    }

    /// To be called when a span has become ready.
    pub(super) fn look_whether_whole(&self) {
        if self.table.missing() > 0 {
            return;
        }
        let mut whole = self.whole.lock();
        whole.again = whole.begun;
        if whole.begun || whole.digest.is_some() || whole.hearers.is_empty() {
            return;
        }
        whole.begun = true;
        drop(whole);
        let me = self.me.clone();
        self.engine.when_quiet(move || {
            if let Some(me) = me.upgrade() {
                me.know_whole();
            }
        });
    }

    pub(super) fn know_whole(&self) {
        let Some(digest) = self.digest_whole() else {
            // Something of it went meanwhile, or cannot be read: looked at again when that is back, or is already.
            let mut whole = self.whole.lock();
            whole.begun = false;
            let again = std::mem::take(&mut whole.again);
            drop(whole);
            if again {
                self.look_whether_whole();
            }
            return;
        };
        tracing::info!(layer = %self.files.id(), %digest, "the layer is complete");
        if let Err(error) = self.files.put_whole(&digest) {
            tracing::debug!(layer = %self.files.id(), %error, "note the digest of a complete layer");
        }
        let mut whole = self.whole.lock();
        whole.digest = Some(digest);
        let hearers = std::mem::take(&mut whole.hearers);
        drop(whole);
        hearers.into_iter().for_each(|hear| hear(&digest));
    }

    /// `None` where something is missing, or it is not known where the stream ends.
    pub(super) fn digest_whole(&self) -> Option<Digest> {
        let count = self.ztoc.spans().len();
        // Nothing is taken away from here on.
        let _pins = self.table.pin(0..count);
        if !(0..count).all(|span| self.table.state(span) == State::Ready) {
            return None;
        }
        let tail = match count.checked_sub(1) {
            Some(last) => self.files.tail(SpanId(last))?,
            None => 0,
        };
        let end = self.ztoc.uncompressed_size().checked_add(tail)?;
        let mut hasher = Sha256::new();
        let (mut at, mut piece) = (0, vec![0; PIECE]);
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            self.files.read(UncompressedOffset(at), &mut piece[..length]).ok()?;
            hasher.update(&piece[..length]);
            at += length as u64;
        }
        Some(Digest::from_sha256(hasher.finalize().into()))
    }
}
