//! Claims: which missing spans are fetched, for which readers, and in which requests.
//!
//! A reader claims what it needs and, while it reads in tar order, some spans ahead. The background claims what a
//! prefetch artifact named, then what `fill_order` says. A claim is a flight that no other request has; it ends when
//! the request's sink ends it (`landing`). A claim for which there is no source ends at once with an error.

use std::{
    ops::{Range, RangeInclusive},
    sync::{Arc, atomic::Ordering},
};

use ztoc::SpanId;

use super::{
    Claim, SpanOutcome, Spans,
    landing::RequestSink,
    state::SpanState,
    table::{Claims, Flight},
};
use crate::{
    error::{Error, ErrorKind},
    fetch::{FetchRequest, FillScope, FillSource, FillStep, Priority, Source},
};

/// A reader that goes through a layer in tar order has up to this many spans fetched ahead of it.
const MAX_AHEAD: u32 = 8;
/// Spans that the background is told to fetch first: more than a start of a program needs, and a limit on the memory
/// that a prefetch artifact can take.
const MAX_WANTED: usize = 1 << 16;

/// Which request fetches the span that a reader waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimedBy {
    ThisReader,
    Another,
}

/// How far ahead of readers spans are fetched.
#[derive(Debug, Default)]
pub(super) struct LookAhead {
    /// The span after those that the last demand fetched; 0 before the first.
    next: u32,
    /// How many spans the last demand fetched, from its last missing one on.
    count: u32,
}

impl LookAhead {
    /// 1, 2, 4 … spans while demands follow each other in tar order. Counts the last demanded span itself.
    fn after(&mut self, spans: &Range<u32>) -> u32 {
        let follows = spans.start <= self.next && self.next <= spans.end && self.next != 0;
        let count = if follows { (self.count * 2).clamp(1, MAX_AHEAD) } else { 1 };
        *self = Self { next: spans.end + count - 1, count };
        count
    }
}

impl Spans {
    /// Claims and requests what is missing of `spans`, and what a reader in tar order needs next. Returns the flights
    /// that the reader has to wait for.
    pub(super) fn demand(
        &self,
        spans: &Range<u32>,
        file: &Range<u32>,
    ) -> Vec<(u32, Arc<Flight<SpanOutcome>>, ClaimedBy)> {
        let mut claimed = Vec::new();
        let mut waits = Vec::new();
        {
            let mut claims = self.table.claims();
            for span in spans.clone() {
                if let Some(flight) = claims.under_way(span) {
                    waits.push((span, flight, ClaimedBy::Another));
                } else if let Some(flight) = claims.claim(span) {
                    waits.push((span, flight.clone(), ClaimedBy::ThisReader));
                    claimed.push(Claim { span, flight });
                }
            }
            if let Some(last) = claimed.last().map(|claim| claim.span) {
                let ahead = self.look_ahead.lock().after(spans);
                let end = last.saturating_add(ahead).min(self.ztoc.spans().len());
                claimed.extend(
                    (last + 1..end).map_while(|span| Some(Claim { span, flight: claims.claim(span)? })),
                );
            }
        }
        if !waits.is_empty() {
            let end = claimed.last().map_or(spans.end, |last| spans.end.max(last.span + 1));
            self.fill_order.lock().demanded(spans.start..end, file.clone());
            self.last_demand.store(self.engine.demanded(), Ordering::Release);
            self.engine.hurry();
        }
        for request in self.requests(claimed, Priority::Demand) {
            self.engine.fetch(request);
        }
        waits
    }

    /// Has the background fetch every missing span, as long as this table lives. A second call does nothing.
    pub(crate) fn fill(&self) {
        if !self.filling.swap(true, Ordering::AcqRel) {
            self.engine.fill(self.weak_self.clone());
        }
    }

    /// Has the background fetch these spans before all others, in this order. Numbers that the layer does not have
    /// are ignored.
    pub(crate) fn want(&self, spans: impl IntoIterator<Item = RangeInclusive<u32>>) {
        let last = self.ztoc.spans().len().saturating_sub(1);
        let known = spans.into_iter().map(|run| *run.start()..=(*run.end()).min(last));
        let mut wanted = self.wanted.lock();
        let room = MAX_WANTED.saturating_sub(wanted.len());
        wanted.extend(known.flatten().take(room));
        drop(wanted);
        self.engine.fill(self.weak_self.clone());
    }

    /// Compressed bytes of a run of spans.
    pub(super) fn compressed(&self, spans: Range<u32>) -> u64 {
        let table = self.ztoc.spans();
        let end = table.compressed(SpanId(spans.end - 1)).end.0;
        end.saturating_sub(table.compressed(SpanId(spans.start)).start.0)
    }

    /// Whether the background is to fetch a span: it is missing, no request fetches it, and the disk can keep it.
    fn is_fetchable(&self, span: u32) -> bool {
        self.table.state(span) == SpanState::Empty && !self.damage.is_unreadable(span)
    }

    /// Whether a span is wanted that no request fetches.
    fn wants(&self) -> bool {
        self.wanted.lock().iter().any(|span| self.is_fetchable(*span))
    }

    /// Whether the disk cannot keep any of the missing spans.
    fn is_rest_unreadable(&self) -> bool {
        let unreadable = self.damage.unreadable();
        unreadable > 0 && self.missing() as usize <= unreadable
    }

    /// Claims a run of missing spans of up to `bytes` compressed bytes: wanted ones, else as `fill_order` says.
    fn claim_run(&self, bytes: u64, scope: FillScope) -> (Vec<Claim>, Priority) {
        let mut claims = self.table.claims();
        let wanted = self.claim_wanted(&mut claims, bytes);
        if !wanted.is_empty() {
            return (wanted, Priority::Ahead);
        }
        if !self.filling.load(Ordering::Acquire) {
            return (Vec::new(), Priority::Fill);
        }
        let count = self.ztoc.spans().len();
        let is_missing = |span| self.is_fetchable(span);
        let mut fill_order = self.fill_order.lock();
        if let Some(spans) = fill_order.next(count, is_missing) {
            return (self.claim_within(&mut claims, spans, bytes), Priority::Ahead);
        }
        let far = if scope == FillScope::Any { fill_order.next_far(count, is_missing) } else { None };
        let claimed = far.map(|spans| self.claim_within(&mut claims, spans, bytes));
        (claimed.unwrap_or_default(), Priority::Fill)
    }

    /// Claims the first run of wanted spans that can be claimed. A span whose fetch fails stays wanted.
    fn claim_wanted(&self, claims: &mut Claims<'_, SpanOutcome>, bytes: u64) -> Vec<Claim> {
        let mut wanted = self.wanted.lock();
        wanted
            .retain(|span| self.table.state(*span) != SpanState::Ready && !self.damage.is_unreadable(*span));
        let mut rest = wanted.make_contiguous();
        while let Some(first) = rest.first().copied() {
            let fits = |(span, _): &(u32, _)| *span == first || self.compressed(first..span + 1) <= bytes;
            let run = (first..).zip(rest.iter()).take_while(|(next, span)| next == *span).take_while(fits);
            let run = run.count();
            let end = first + u32::try_from(run).expect("a run is not longer than the layer");
            let claimed = self.claim_within(claims, first..end, bytes);
            if !claimed.is_empty() {
                return claimed;
            }
            rest = &mut rest[run..];
        }
        Vec::new()
    }

    /// Claims the first run of neighbors within `range` that can be claimed, of up to `bytes` compressed bytes.
    pub(super) fn claim_within(
        &self,
        claims: &mut Claims<'_, SpanOutcome>,
        range: Range<u32>,
        bytes: u64,
    ) -> Vec<Claim> {
        let mut claimed: Vec<Claim> = Vec::new();
        for span in range {
            let first = claimed.first().map_or(span, |claim| claim.span);
            if !claimed.is_empty() && self.compressed(first..span + 1) > bytes {
                break;
            }
            let flight = if self.damage.is_unreadable(span) { None } else { claims.claim(span) };
            match flight {
                Some(flight) => claimed.push(Claim { span, flight }),
                None if claimed.is_empty() => {}
                None => break,
            }
        }
        claimed
    }

    /// Requests for claimed spans, one for each run of neighbors. Without a source the claims end with an error.
    pub(super) fn requests(&self, claimed: Vec<Claim>, priority: Priority) -> Vec<FetchRequest> {
        let mut sources = self.sources.read().clone();
        // A source that failed is asked again when the others have failed, too.
        sources.sort_by_cached_key(Source::is_failing);
        let Some(spans) = self.weak_self.upgrade().filter(|_| !sources.is_empty()) else {
            let error = Error::new(ErrorKind::NotFound, "fetch spans of a layer without a source");
            for claim in claimed.into_iter().filter(|claim| claim.flight.begin_landing()) {
                self.settle(SpanId(claim.span), Err(error.clone()));
            }
            return Vec::new();
        };
        let mut requests = Vec::new();
        let mut rest = claimed;
        while let Some(first) = rest.first().map(|claim| claim.span) {
            let run = (first..).zip(&rest).take_while(|(expected, claim)| *expected == claim.span).count();
            let end = first + u32::try_from(run).expect("a run is not longer than the layer");
            let next = rest.split_off(run);
            let sink = Arc::new(RequestSink::new(spans.clone(), std::mem::replace(&mut rest, next)));
            let (sources, ztoc) = (sources.clone(), self.ztoc.clone());
            requests.push(FetchRequest { sources, ztoc, spans: first..end, priority, sink });
        }
        requests
    }
}

impl FillSource for Spans {
    fn last_demand(&self) -> u64 {
        if self.wants() { u64::MAX } else { self.last_demand.load(Ordering::Acquire) }
    }

    fn host(&self) -> Option<Arc<str>> {
        self.sources.read().first().map(|source| source.host.clone())
    }

    fn is_urgent(&self) -> bool {
        self.wants() || self.filling.load(Ordering::Acquire) && self.fill_order.lock().has_places()
    }

    fn next_step(&self, bytes: u64, scope: FillScope) -> FillStep {
        // After the layer was opened anew its new table fetches what is missing.
        let done = self.missing() == 0 || self.is_rest_unreadable() || self.files.is_over();
        if done || !self.filling.load(Ordering::Acquire) && self.wanted.lock().is_empty() {
            return FillStep::Done;
        }
        if self.files.store().nearly_full() {
            return FillStep::NoRoom;
        }
        let (claimed, priority) = self.claim_run(bytes, scope);
        let none = if scope == FillScope::Urgent { FillStep::NotUrgent } else { FillStep::AllUnderWay };
        self.requests(claimed, priority).pop().map_or(none, FillStep::Fetch)
    }
}
