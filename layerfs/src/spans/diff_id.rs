//! The diff ID of a layer: the digest of all of its uncompressed bytes, computed once all spans are on disk.
//!
//! Each span was verified against the ztoc when it arrived. Only the whole layer can be compared with the diff ID in
//! the image's configuration. The engine computes it when no reader has waited for a while, and the listeners get it.
//! The digest is kept in the layer's folder, so that it is computed once.
//!
//! Spans are pinned one at a time, so that eviction can go on. Evicting a span that was already hashed does no
//! harm. When a span is gone before it is hashed the work ends, and begins again once the layer is complete. After
//! a few such ends the listeners are told that the diff ID stays unknown, and the log says why.

use std::mem;

use oci::Digest;
use sha2::{Digest as _, Sha256};
use ztoc::{SpanId, UncompressedOffset};

use super::{SpanState, Spans};

/// Bytes that are read and hashed at a time.
const PIECE: u64 = 1 << 20;
/// Listeners of one layer, the newest: snapshots come and go while a layer stays incomplete.
const MAX_LISTENERS: usize = 64;
/// After this many attempts that lost a span, the store is too small for the layer: reading all of it again and again
/// would only wear the disk and evict other layers.
const MAX_ATTEMPTS: u32 = 4;

/// Gets the digest, or `None` if it stays unknown.
type DigestListener = Box<dyn FnOnce(Option<&Digest>) + Send>;

/// Why there is no digest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoDiffId {
    /// A span is missing; no byte was read.
    Missing,
    /// A span was evicted, or could not be read, before it was hashed.
    Lost,
    /// All spans are there, but the end of the stream is not stored.
    Endless,
}

/// The diff ID of a layer, and the listeners that wait for it.
#[derive(Default)]
pub(super) struct DiffIdCheck {
    digest: Option<Digest>,
    listeners: Vec<DigestListener>,
    /// A thread computes the digest, or will soon.
    pub(super) begun: bool,
    /// A span landed while a thread was computing.
    again: bool,
    /// Attempts that lost a span.
    lost: u32,
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
    pub(crate) fn diff_id(&self) -> Option<Digest> {
        self.diff_id_check.lock().digest
    }

    /// Calls `listener` with the digest of the whole uncompressed stream as soon as it is known, or with `None`
    /// once it is clear that it stays unknown. A layer that is never complete never calls it.
    pub(crate) fn when_diff_id_known(&self, listener: DigestListener) {
        let mut check = self.diff_id_check.lock();
        if let Some(digest) = check.digest {
            drop(check);
            return listener(Some(&digest));
        }
        if check.listeners.len() >= MAX_LISTENERS {
            drop(check.listeners.remove(0));
        }
        check.listeners.push(listener);
        drop(check);
        self.begin_check_if_complete();
    }

    /// To be called when a span has become ready.
    pub(super) fn begin_check_if_complete(&self) {
        if self.table.missing() > 0 {
            return;
        }
        let mut check = self.diff_id_check.lock();
        check.again = check.begun;
        if check.begun || check.digest.is_some() || check.listeners.is_empty() {
            return;
        }
        check.begun = true;
        drop(check);
        let weak_self = self.weak_self.clone();
        self.engine.when_quiet(move || {
            if let Some(spans) = weak_self.upgrade() {
                spans.check_diff_id(|_| {});
            }
        });
    }

    /// Computes the digest and tells the listeners. Calls `hashed` after each span.
    pub(super) fn check_diff_id(&self, hashed: impl FnMut(SpanId)) {
        match self.compute_diff_id(hashed) {
            Ok(digest) => self.note_diff_id(digest),
            Err(reason) => self.note_no_diff_id(&reason),
        }
    }

    fn note_diff_id(&self, digest: Digest) {
        tracing::debug!(layer = %self.files.id(), %digest, "the layer is complete");
        if let Err(error) = self.files.put_diff_id(&digest) {
            tracing::debug!(layer = %self.files.id(), %error, "keep the digest of a complete layer");
        }
        let mut check = self.diff_id_check.lock();
        check.digest = Some(digest);
        let listeners = mem::take(&mut check.listeners);
        drop(check);
        listeners.into_iter().for_each(|listener| listener(Some(&digest)));
    }

    fn note_no_diff_id(&self, reason: &NoDiffId) {
        let mut check = self.diff_id_check.lock();
        check.begun = false;
        check.lost += u32::from(*reason == NoDiffId::Lost);
        let again = mem::take(&mut check.again);
        let given_up = *reason == NoDiffId::Endless || check.lost >= MAX_ATTEMPTS;
        let listeners = if given_up { mem::take(&mut check.listeners) } else { Vec::new() };
        if given_up {
            check.lost = 0;
        }
        drop(check);
        if given_up && *reason == NoDiffId::Lost {
            tracing::warn!(
                layer = %self.files.id(), attempts = MAX_ATTEMPTS,
                "the layer's diff ID is not checked: spans were evicted or unreadable each time; give the span store \
                 more room"
            );
        }
        listeners.into_iter().for_each(|listener| listener(None));
        // A span landed meanwhile, which may have made the layer complete.
        if again {
            self.begin_check_if_complete();
        }
    }

    /// Hashes span after span; only the one that is read is pinned. Calls `hashed` after each.
    pub(super) fn compute_diff_id(&self, mut hashed: impl FnMut(SpanId)) -> Result<Digest, NoDiffId> {
        if self.table.missing() > 0 {
            return Err(NoDiffId::Missing);
        }
        let count = self.ztoc.spans().len();
        let (mut hasher, mut at, mut piece) = (Sha256::new(), 0, Vec::new());
        for span in (0..count).map(SpanId) {
            let pinned = self.table.hold(span.0..span.0 + 1);
            if self.table.state(span.0) != SpanState::Ready {
                return Err(NoDiffId::Lost);
            }
            let end = if self.is_last(span) {
                let tail = self.files.tail(span).ok_or(NoDiffId::Endless)?;
                self.ztoc.uncompressed_size().saturating_add(tail)
            } else {
                self.range(span).end.0
            };
            while at < end {
                piece.resize(usize::try_from((end - at).min(PIECE)).expect("a piece fits into memory"), 0);
                let read = self.files.read(UncompressedOffset(at), &mut piece);
                read.map_err(|_| NoDiffId::Lost)?;
                hasher.update(&piece);
                at += piece.len() as u64;
            }
            drop(pinned);
            hashed(span);
        }
        Ok(Digest::from_sha256(hasher.finalize().into()))
    }
}
