//! One attempt of a request: a range of compressed bytes in, its spans out, each as soon as its last byte has
//! arrived.
//!
//! A span goes to the threads that inflate while the rest of the range is still arriving. The attempt ends when every
//! span that arrived has landed. What arrived counts, also when the source breaks off.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::oneshot, time::Instant};
use ztoc::{SpanId, Ztoc};

use super::{
    Engine, FetchInProgress, Priority, Source,
    budget::Permit,
    inflate::{self, Job},
};
use crate::error::{Error, ErrorKind};

impl Engine {
    /// Fetches the spans of a request that have not landed from the source of that number. `permit` is room that the
    /// caller has already.
    pub(super) async fn attempt(
        &self,
        fetch: &Arc<FetchInProgress>,
        source: usize,
        permit: Option<Permit>,
    ) -> Result<(), Error> {
        let Some(first) = fetch.next() else { return Ok(()) };
        let request = &fetch.request;
        let range = request.range_from(first);
        let bytes = range.end.saturating_sub(range.start);
        let source = &request.sources[source];
        let mut permit = match permit.filter(|permit| permit.is_for(&source.host)) {
            Some(permit) => permit,
            None => self.budget.demand(&source.host, bytes).await,
        };
        let doing = || format!("fetch spans {first}..{} of layer {}", request.spans.end, request.digest());
        let fetches = match request.priority {
            Priority::Demand => &self.counters.demand,
            Priority::Ahead => &self.counters.ahead,
            Priority::Fill => &self.counters.fill,
        };
        fetches.requests.add(1);
        if let Some(tally) = request.sink.tally().filter(|_| request.priority == Priority::Demand) {
            tally.demand_requests.add(1);
        }
        let asked = Instant::now();
        let work = FuturesUnordered::new();
        let outcome = async {
            let mut stream = self.open(source, range).await.map_err(|e| Error::blob(doing(), e))?;
            let mut cutter = Cutter::new(&request.ztoc, first..request.spans.end);
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|e| Error::blob(doing(), e))?;
                fetches.bytes.add(chunk.len() as u64);
                permit.arrived(chunk.len() as u64);
                self.line.lock().arrived(Instant::now(), chunk.len() as u64);
                cutter.push(&chunk, |span, body| {
                    let (done, landed) = oneshot::channel();
                    self.inflaters.add(Job { fetch: fetch.clone(), span, body, done });
                    work.push(landed);
                });
            }
            if cutter.is_done() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Unreachable, format!("{}: the stream ended early", doing())))
        }
        .await;
        let received_in = asked.elapsed().as_millis();
        // Spans that arrived count, also after an error. A wrong span says more than a line that broke behind it.
        let outcome = all_landed(work).await.and(outcome);
        if let Err(error) = &outcome {
            self.counters.failed(error.kind());
        }
        *source.failing.lock() = outcome.as_ref().err().map(ToString::to_string);
        let (took, priority) = (asked.elapsed().as_millis(), request.priority);
        tracing::debug!(
            layer = %request.digest(), ?priority, first, end = request.spans.end, bytes, received_in, took,
            "a request for spans ended"
        );
        outcome
    }

    async fn open(&self, source: &Source, range: Range<u64>) -> Result<oci::ByteStream, oci::Error> {
        let blob = &source.blob;
        let busy = blob.busy_answers();
        let asked = Instant::now();
        let stream = blob.read_range(range).await;
        let was_busy = blob.busy_answers() != busy;
        self.counters.busy.add(u64::from(was_busy));
        self.budget.answered(&source.host, was_busy);
        if stream.is_ok() && !was_busy {
            self.line.lock().answered(asked.elapsed());
        }
        stream
    }
}

/// Waits until every span that arrived has landed; an error of one of them, if there is any.
async fn all_landed(mut work: FuturesUnordered<oneshot::Receiver<Result<(), Error>>>) -> Result<(), Error> {
    let mut outcome = Ok(());
    while let Some(landed) = work.next().await {
        outcome = outcome.and(landed.map_err(inflate::lost).flatten());
    }
    outcome
}

/// Cuts the bytes of a run of spans into spans. Two neighbors may share a byte (the deflate block of the second
/// begins within it), and there may be bytes between them that belong to neither.
struct Cutter<'a> {
    ztoc: &'a Ztoc,
    spans: Range<u32>,
    /// Compressed offset of the next byte that arrives.
    at: u64,
    body: Vec<u8>,
}

impl<'a> Cutter<'a> {
    fn new(ztoc: &'a Ztoc, spans: Range<u32>) -> Self {
        let at = ztoc.spans().compressed(SpanId(spans.start)).start.0;
        Self { ztoc, spans, at, body: Vec::new() }
    }

    fn is_done(&self) -> bool {
        self.spans.is_empty()
    }

    fn push(&mut self, chunk: &Bytes, mut whole: impl FnMut(SpanId, Vec<u8>)) {
        let table = self.ztoc.spans();
        let mut chunk = &chunk[..];
        while let Some(span) = self.spans.clone().next() {
            let range = table.compressed(SpanId(span));
            let between = to_usize(range.start.0.saturating_sub(self.at)).min(chunk.len());
            chunk = &chunk[between..];
            self.at += between as u64;
            let length = to_usize(range.end.0.saturating_sub(range.start.0));
            if self.body.capacity() < length {
                self.body.reserve_exact(length - self.body.len());
            }
            let missing = length.saturating_sub(self.body.len()).min(chunk.len());
            self.body.extend_from_slice(&chunk[..missing]);
            chunk = &chunk[missing..];
            self.at += missing as u64;
            if self.body.len() < length || self.at < range.start.0 {
                return;
            }
            self.spans.start += 1;
            let body = std::mem::take(&mut self.body);
            if !self.spans.is_empty() {
                // The byte that the next span shares with this one has arrived already.
                let next = table.compressed(SpanId(span + 1)).start.0;
                let shared = to_usize(self.at.saturating_sub(next)).min(body.len());
                self.body.extend_from_slice(&body[body.len() - shared..]);
            }
            whole(SpanId(span), body);
        }
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a range of one request fits into memory")
}
