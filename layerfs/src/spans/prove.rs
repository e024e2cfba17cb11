//! After an unclean stop of the machine: stored spans are compared with their checksums before they are used.
//!
//! A reader compares the spans that it reads; the engine compares the rest, one layer at a time. A span whose
//! checksum differs is absent. When the last span of a layer was compared, the layer's records belong to this
//! generation.

use std::{ops::Range, sync::atomic::Ordering};

use ztoc::SpanId;

use super::{
    Spans,
    state::{SpanState, Word},
};
use crate::{
    error::{Error, ErrorKind},
    fetch::StoredCheck,
};

impl Spans {
    /// Whether stored spans are still to be compared with their checksums.
    pub(crate) fn has_unproven(&self) -> bool {
        self.unproven.load(Ordering::Acquire) > 0
    }

    /// Compares those of `spans` that are unproven, on a thread that may block.
    pub(super) async fn prove(&self, spans: Range<u32>) {
        for span in spans.filter(|span| self.table.state(*span) == SpanState::Unproven) {
            let Some(spans) = self.weak_self.upgrade() else { return };
            let proven = self.engine.runtime().spawn_blocking(move || spans.prove_one(SpanId(span)));
            if let Err(error) = proven.await {
                tracing::error!(
                    layer = %self.files.id(), span, %error,
                    "a span was not compared with its checksum: the comparing thread panicked"
                );
            }
        }
    }

    fn prove_one(&self, span: SpanId) {
        if !self.table.take(span.0, Word::doubt) {
            return;
        }
        let range = self.range(span);
        if self.files.has_its_checksum(span, &range) {
            if self.is_last(span) {
                self.files.forget_tail(span);
            }
            self.settle(span, Ok(None));
        } else {
            self.files.strike(span);
            self.settle(span, Err(Error::new(ErrorKind::Corrupt, "compare stored span with its checksum")));
        }
        if self.unproven.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.note_proven();
        }
    }

    pub(super) fn note_proven(&self) {
        if let Err(error) = self.files.note_proven(self.ztoc.spans().len()) {
            tracing::warn!(
                layer = %self.files.id(), %error,
                "the spans of a layer cannot be noted as proven; the next start compares them again"
            );
        }
    }
}

impl StoredCheck for Spans {
    fn check_stored(&self) {
        (0..self.ztoc.spans().len()).for_each(|span| self.prove_one(SpanId(span)));
    }
}
