//! Where in a layer to go on bringing what nobody has asked for: near what readers had to wait for. Pure.
//!
//! A program that starts reads here and there in a few large files, and comes back to where it has been. So what is left
//! of a file of which readers had to wait for a part comes first, and the next spans to it, where the small files lie
//! that belong to the same thing: those behind a place before those in front of it, the newest place every other time.
//! Then comes the layer from there on, and from its beginning.

use std::{collections::VecDeque, ops::Range};

/// Places that are remembered: as many as a program plausibly reads in at a time.
const MOST_PLACES: usize = 6;
/// Of the same file, spans behind a place, and in front of it, that are near: some 60 and 20 MB of uncompressed bytes.
const BEHIND: u32 = 16;
const IN_FRONT: u32 = 5;
/// And of whatever file.
const NEXT_BEHIND: u32 = 2;
const NEXT_IN_FRONT: u32 = 1;

/// Where readers had to wait, of one layer.
#[derive(Debug, Default)]
pub(super) struct FillOrder {
    /// The newest first.
    places: VecDeque<DemandedRun>,
    turn: u32,
    /// Where to go on when nothing is near any place.
    from: u32,
}

/// A run of spans that readers wanted, or that was brought around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DemandedRun {
    first: u32,
    end: u32,
    /// What is near.
    near: (u32, u32),
    turn: u32,
}

impl FillOrder {
    /// A reader of a file that lies in the spans `file` had to wait for `spans`.
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
        self.places.truncate(MOST_PLACES);
        self.from = spans.end;
    }

    /// Whether there may be something near.
    pub(super) fn has_places(&self) -> bool {
        !self.places.is_empty()
    }

    /// Spans to look at next, of `count`, near a place where a reader had to wait: the first of them is missing.
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

    /// The same anywhere.
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
        // Two steps on, one back.
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

    /// The first spans of `steps` turns, each brought alone.
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
    fn what_is_near_comes_first() {
        let mut near = FillOrder::default();
        let mut missing: Vec<u32> = (0..100).collect();
        assert_eq!(turns(&mut near, &mut missing, 3), [0, 1, 2], "nobody has waited: from the beginning");
        near.demanded(50..51, 45..60);
        missing.retain(|span| *span != 50);
        assert_eq!(turns(&mut near, &mut missing, 6), [51, 52, 49, 53, 54, 48]);
        near.demanded(20..21, 20..21);
        missing.retain(|span| *span != 20);
        let both = turns(&mut near, &mut missing, 6);
        assert!(both.contains(&21) && both.contains(&22) && both.contains(&19), "{both:?}");
        assert!(both.contains(&55) && !both.contains(&23), "of the small file the next spans only: {both:?}");
        // The same place, further on.
        near.demanded(57..58, 45..60);
        missing.retain(|span| *span != 57);
        assert_eq!(turns(&mut near, &mut missing, 1), [58]);
    }

    #[test]
    fn everything_comes_once_and_places_are_forgotten() {
        let mut near = FillOrder::default();
        let mut missing: Vec<u32> = (0..100).collect();
        for place in [90, 3, 99, 40, 0, 60, 20, 75, 10] {
            near.demanded(place..place + 1, 0..100);
            missing.retain(|span| *span != place);
        }
        assert_eq!(near.places.len(), MOST_PLACES);
        let expected = missing.clone();
        let mut all = turns(&mut near, &mut missing, 1000);
        all.sort_unstable();
        assert_eq!(all, expected);
        assert!(near.places.is_empty());
        assert_eq!((near.next(100, |_| false), near.next_far(100, |_| false)), (None, None));
    }
}
