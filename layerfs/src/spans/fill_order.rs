//! The order in which the background fetches a layer: first the neighborhood of spans that readers had to wait for.
//! Pure.
//!
//! A program that starts reads here and there in a few large files, and comes back to places where it has been. So
//! the rest of a file that a reader waited for comes first, and then its next neighbors: small files that belong
//! together lie side by side. Spans after a place come before spans in front of it; the newest place is served every
//! other time. Then comes the layer from the last place on, and last from its beginning.

use std::{collections::VecDeque, ops::Range};

/// Places that are remembered: about as many as a program reads in at a time.
const MAX_PLACES: usize = 6;
/// How many spans of the same file are near, after a place and in front of it: some 60 and 20 MB of uncompressed
/// bytes.
const BEHIND: u32 = 16;
const IN_FRONT: u32 = 5;
/// How many spans of any file are near.
const NEXT_BEHIND: u32 = 2;
const NEXT_IN_FRONT: u32 = 1;

/// The places of one layer where readers had to wait.
#[derive(Debug, Default)]
pub(super) struct FillOrder {
    /// The newest first.
    places: VecDeque<DemandedRun>,
    turn: u32,
    /// Where to go on when no span near a place is missing.
    from: u32,
}

/// A run of spans that readers wanted, grown by the spans that were fetched around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DemandedRun {
    first: u32,
    end: u32,
    /// The spans that are near.
    near: (u32, u32),
    turn: u32,
}

impl FillOrder {
    /// Notes that a reader had to wait for `spans`; its file lies in the spans `file`.
    pub(super) fn demanded(&mut self, spans: Range<u32>, file: Range<u32>) {
        let in_front = spans.start.saturating_sub(IN_FRONT).max(file.start);
        let behind = spans.end.saturating_add(BEHIND).min(file.end);
        let near = (
            in_front.min(spans.start.saturating_sub(NEXT_IN_FRONT)),
            behind.max(spans.end.saturating_add(NEXT_BEHIND)),
        );
        let known = self.places.iter().position(|place| place.first <= spans.end && spans.start <= place.end);
        let before = known.and_then(|known| self.places.remove(known));
        let place = match before {
            Some(before) => DemandedRun {
                first: before.first.min(spans.start),
                end: before.end.max(spans.end),
                near: (before.near.0.min(near.0), before.near.1.max(near.1)),
                turn: before.turn,
            },
            None => DemandedRun { first: spans.start, end: spans.end, near, turn: 0 },
        };
        self.places.push_front(place);
        self.places.truncate(MAX_PLACES);
        self.from = spans.end;
    }

    /// Whether a missing span may be near a place.
    pub(super) fn has_places(&self) -> bool {
        !self.places.is_empty()
    }

    /// Spans to fetch next, of `count`, near a place: the first of them is missing.
    pub(super) fn next(&mut self, count: u32, is_missing: impl Fn(u32) -> bool) -> Option<Range<u32>> {
        while !self.places.is_empty() {
            self.turn = self.turn.wrapping_add(1);
            let others = self.places.len() as u32 - 1;
            let chosen =
                if self.turn.is_multiple_of(2) && others > 0 { 1 + self.turn / 2 % others } else { 0 }
                    as usize;
            let Some(place) = self.places.get_mut(chosen) else { break };
            if let Some(spans) = place.next(count, &is_missing) {
                return Some(spans);
            }
            self.places.remove(chosen);
        }
        None
    }

    /// Spans to fetch next anywhere: the first of them is missing.
    pub(super) fn next_far(&mut self, count: u32, is_missing: impl Fn(u32) -> bool) -> Option<Range<u32>> {
        let from = self.from.min(count);
        let first = (from..count).chain(0..from).find(|span| is_missing(*span))?;
        self.from = first + 1;
        Some(first..if first < from { from } else { count })
    }
}

impl DemandedRun {
    fn next(&mut self, count: u32, is_missing: impl Fn(u32) -> bool) -> Option<Range<u32>> {
        self.turn = self.turn.wrapping_add(1);
        let top = self.near.1.min(count);
        let behind = (self.end..top).find(|span| is_missing(*span));
        let in_front = (self.near.0..self.first.min(count)).rev().find(|span| is_missing(*span));
        // Two spans after the place, then one in front of it.
        if let Some(span) = in_front.filter(|_| behind.is_none() || self.turn.is_multiple_of(3)) {
            self.first = span;
            return Some(span..span + 1);
        }
        let span = behind?;
        self.end = span + 1;
        Some(span..top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first spans of `steps` turns, each fetched alone.
    fn turns(near: &mut FillOrder, missing: &mut Vec<u32>, steps: usize) -> Vec<u32> {
        let mut found = Vec::new();
        for _ in 0..steps {
            let is_missing = |span| missing.contains(&span);
            let next = near.next(100, is_missing).or_else(|| near.next_far(100, is_missing));
            let Some(spans) = next else { break };
            assert!(spans.end <= 100 && missing.contains(&spans.start), "{spans:?}");
            missing.retain(|span| *span != spans.start);
            found.push(spans.start);
        }
        found
    }

    #[test]
    fn neighbors_of_demanded_spans_come_first() {
        let mut near = FillOrder::default();
        let mut missing: Vec<u32> = (0..100).collect();
        assert_eq!(turns(&mut near, &mut missing, 3), [0, 1, 2], "no reader has waited: from the beginning");
        near.demanded(50..51, 45..60);
        missing.retain(|span| *span != 50);
        assert_eq!(turns(&mut near, &mut missing, 6), [51, 52, 49, 53, 54, 48]);
        near.demanded(20..21, 20..21);
        missing.retain(|span| *span != 20);
        let both = turns(&mut near, &mut missing, 6);
        assert!(both.contains(&21) && both.contains(&22) && both.contains(&19), "{both:?}");
        assert!(both.contains(&55) && !both.contains(&23), "only the next spans of the small file: {both:?}");
        // The same place, further on.
        near.demanded(57..58, 45..60);
        missing.retain(|span| *span != 57);
        assert_eq!(turns(&mut near, &mut missing, 1), [58]);
    }

    #[test]
    fn every_span_comes_once_and_places_are_forgotten() {
        let mut near = FillOrder::default();
        let mut missing: Vec<u32> = (0..100).collect();
        for place in [90, 3, 99, 40, 0, 60, 20, 75, 10] {
            near.demanded(place..place + 1, 0..100);
            missing.retain(|span| *span != place);
        }
        assert_eq!(near.places.len(), MAX_PLACES);
        let expected = missing.clone();
        let mut all = turns(&mut near, &mut missing, 1000);
        all.sort_unstable();
        assert_eq!(all, expected);
        assert!(near.places.is_empty());
        assert_eq!((near.next(100, |_| false), near.next_far(100, |_| false)), (None, None));
    }
}
