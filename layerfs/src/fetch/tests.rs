//! What a request tells its sink.

use std::sync::Arc;

use oci::testing::BlobFault;
use tokio::sync::mpsc;
use ztoc::{SpanId, Ztoc};

use super::{FetchRequest, Priority, Source, SpanSink};
use crate::{
    Error,
    testing::{Tar, engine, made, noise},
};

/// Notes each end of a span, and whether it landed.
#[derive(Debug)]
struct Notes(mpsc::UnboundedSender<(u32, bool)>);

impl SpanSink for Notes {
    fn is_awaited(&self, _: SpanId) -> bool {
        false
    }

    fn land(&self, span: SpanId, _: &[u8]) -> Result<(), Error> {
        self.0.send((span.0, true)).unwrap();
        Ok(())
    }

    fn fail(&self, span: SpanId, _: Error) {
        self.0.send((span.0, false)).unwrap();
    }
}

/// A span that landed may have been evicted and claimed again; its request must not end it a second time with an
/// error.
#[tokio::test]
async fn every_span_of_a_request_ends_once_also_when_others_fail() {
    let made = made(&Tar::default().file("f", &noise(1, 400_000)).end());
    let ztoc = Arc::new(Ztoc::from_vec(made.ztoc).unwrap());
    let first = ztoc.spans().compressed(SpanId(1)).end.0;
    made.blob.fail_next(BlobFault::BreakAfter(first + 1_000));
    made.blob.fail_next(BlobFault::Refuse(oci::ErrorKind::NotFound));
    let (notes, mut noted) = mpsc::unbounded_channel();
    let spans = 0..ztoc.spans().len();
    let (sources, sink) = (vec![Source::new("origin", made.blob.clone())], Arc::new(Notes(notes)));
    engine().fetch(FetchRequest { sources, ztoc, spans: spans.clone(), priority: Priority::Demand, sink });
    let mut found = Vec::new();
    while let Some(note) = noted.recv().await {
        found.push(note);
    }
    found.sort_unstable();
    let expected: Vec<_> = spans.map(|span| (span, span < 2)).collect();
    assert_eq!(found, expected);
}
