//! The state machine of one span: a word of 32 bits, its transitions as pure functions.
//!
//! ```text
//!            claim                  land
//!   Empty ──────────► Filling ─────────────► Ready
//!     ▲  ◄─────────────┘ fail                 │
//!     └──────────────── evict (no pins) ◄─────┘
//!   Unproven ── doubt ──► Filling             (after an unclean stop: on disk, checksum not compared yet)
//! ```
//!
//! The word also holds a *touched* bit (a reader read the span since it landed, or since eviction last looked) and
//! the number of readers that have it pinned. A reader pins before it looks at the state and unpins when its bytes
//! are copied. Eviction takes only spans without pins, so a hole is never punched under a reader.

/// Whether a span is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanState {
    /// Not on disk.
    Empty = 0,
    /// A request fetches it, or eviction removes it.
    Filling,
    /// On disk, verified.
    Ready,
    /// On disk since before an unclean stop; to be compared with its checksum on first use.
    Unproven,
}

const STATE: u32 = 0b011;
const TOUCHED: u32 = 0b100;
const PIN: u32 = 0b1000;

/// One span's word, as stored in an atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u32);

impl Word {
    pub(crate) fn new(state: SpanState) -> Self {
        Self(match state {
            SpanState::Empty => 0,
            SpanState::Filling => 1,
            SpanState::Ready => 2,
            SpanState::Unproven => 3,
        })
    }

    pub(crate) fn state(self) -> SpanState {
        match self.0 & STATE {
            0 => SpanState::Empty,
            1 => SpanState::Filling,
            2 => SpanState::Ready,
            _ => SpanState::Unproven,
        }
    }

    pub(crate) fn pins(self) -> u32 {
        self.0 / PIN
    }

    fn to(self, state: SpanState) -> Self {
        Self(self.0 & !STATE | Self::new(state).0)
    }

    /// A reader keeps the bytes in place. The count cannot overflow: 2^29 readers do not exist.
    pub(crate) fn pin(self) -> Self {
        Self(self.0 + PIN)
    }

    pub(crate) fn unpin(self) -> Self {
        debug_assert!(self.pins() > 0, "unpin without pin");
        Self(self.0.saturating_sub(PIN) | TOUCHED)
    }

    /// The end of a pin that was no reader's: the span does not count as used.
    pub(crate) fn release(self) -> Self {
        debug_assert!(self.pins() > 0, "release without pin");
        Self(self.0.saturating_sub(PIN))
    }

    /// A request will fetch it. `None`: it is on disk already, or under way.
    pub(crate) fn claim(self) -> Option<Self> {
        (self.state() == SpanState::Empty).then(|| self.to(SpanState::Filling))
    }

    /// A thread will compare it with its checksum.
    pub(crate) fn doubt(self) -> Option<Self> {
        (self.state() == SpanState::Unproven).then(|| self.to(SpanState::Filling))
    }

    /// A Ready span cannot be read and becomes absent. Pins do not matter: no hole is punched, and the bytes that
    /// will be written in its place are the same.
    pub(crate) fn damage(self) -> Option<Self> {
        (self.state() == SpanState::Ready).then(|| self.to(SpanState::Filling))
    }

    pub(crate) fn land(self) -> Self {
        self.to(SpanState::Ready)
    }

    pub(crate) fn fail(self) -> Self {
        self.to(SpanState::Empty)
    }

    /// Eviction begins; `None` where a reader has it pinned, or it is not on disk.
    pub(crate) fn evict(self) -> Option<Self> {
        (self.state() == SpanState::Ready && self.pins() == 0).then(|| self.to(SpanState::Filling))
    }

    /// Whether it was read since eviction last looked, and the word with the bit cleared.
    pub(crate) fn take_touched(self) -> (bool, Self) {
        (self.0 & TOUCHED != 0, Self(self.0 & !TOUCHED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transition_of_every_state() {
        let rows = [
            // state, claimable, doubtful, evictable
            (SpanState::Empty, true, false, false),
            (SpanState::Filling, false, false, false),
            (SpanState::Ready, false, false, true),
            (SpanState::Unproven, false, true, false),
        ];
        for (state, claimable, doubtful, evictable) in rows {
            let word = Word::new(state);
            assert_eq!(word.state(), state);
            assert_eq!(word.claim().is_some(), claimable, "{state:?}");
            assert_eq!(word.doubt().is_some(), doubtful, "{state:?}");
            assert_eq!(word.evict().is_some(), evictable, "{state:?}");
            assert_eq!(word.pin().damage().is_some(), state == SpanState::Ready, "{state:?}");
            assert_eq!(word.land().state(), SpanState::Ready);
            assert_eq!(word.fail().state(), SpanState::Empty);
        }
    }

    #[test]
    fn a_pinned_span_is_not_evicted_and_pins_survive_transitions() {
        let word = Word::new(SpanState::Ready).pin().pin();
        assert_eq!(word.pins(), 2);
        assert_eq!(word.evict(), None);
        assert!(!word.release().take_touched().0, "a pin that is no reader's is no use of the span");
        let word = word.unpin().unpin();
        assert_eq!((word.pins(), word.state()), (0, SpanState::Ready));
        assert!(word.take_touched().0);
        assert!(word.evict().is_some());
        let filling = Word::new(SpanState::Empty).pin().claim().unwrap();
        assert_eq!((filling.pins(), filling.land().pins()), (1, 1));
    }
}
