//! Spans on their way to the disk: early readers, disks that lose bytes, panics, late requests, complete layers.

mod diff_id;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::atomic::Ordering::SeqCst,
};

use futures::FutureExt;
use oci::{Digest, testing::FaultyBlob};
use tempfile::TempDir;

use super::{
    damage::MAX_FAILED_READS,
    landing::{FlightEnd, MAX_TAIL},
    table::{Flight, Reached},
    *,
};
use crate::{
    DiskLimits, Store,
    fetch::{FillScope, FillSource as _, FillStep, Priority},
    testing::{SPAN, Tar, TestLayer, engine, gzip, made, noise},
};

const FILE: u64 = 400_000;

fn layer() -> (Vec<u8>, TestLayer) {
    let tar = Tar::default().file("f", &noise(3, FILE as usize)).end();
    let made = made(&tar);
    (tar, made)
}

fn spans(root: &Path, made: &TestLayer) -> Arc<Spans> {
    let store = Store::open(root, DiskLimits::default()).unwrap();
    let ztoc = Arc::new(Ztoc::from_vec(made.ztoc.clone()).unwrap());
    let spans = Spans::open(ztoc, store.layer(&made.id()).unwrap(), engine());
    spans.add_source("origin", made.blob.clone());
    spans
}

fn whole() -> Range<UncompressedOffset> {
    range(0, FILE)
}

fn range(from: u64, to: u64) -> Range<UncompressedOffset> {
    UncompressedOffset(from)..UncompressedOffset(to)
}

/// Claims a span as a reader does; the test fetches it.
fn claimed(spans: &Spans, span: u32) -> Arc<Flight<SpanOutcome>> {
    let flight = spans.table.claims().claim(span).expect("no request fetches it");
    assert!(flight.begin_landing());
    flight
}

#[tokio::test]
async fn the_beginning_of_a_span_is_read_before_its_end_has_come() {
    let root = TempDir::new().unwrap();
    let (tar, made) = layer();
    let spans = spans(root.path(), &made);
    let flight = claimed(&spans, 0);
    let mut early = Box::pin(spans.read(range(512, 20_000), whole()));
    let mut late = Box::pin(spans.read(range(512, 40_000), whole()));
    spans.files.put_piece(UncompressedOffset(0), &tar[..19_999]).unwrap();
    flight.advance(19_999);
    assert!((&mut early).now_or_never().is_none(), "a byte is missing");
    spans.files.put_piece(UncompressedOffset(19_999), &tar[19_999..30_000]).unwrap();
    flight.advance(30_000);
    assert_eq!(early.now_or_never().expect("all of its bytes are stored").unwrap(), tar[512..20_000]);
    assert!((&mut late).now_or_never().is_none());
    // The request fails; the reader that waits for the rest makes a request of its own.
    spans.settle(SpanId(0), Err(Error::new(ErrorKind::Io, "fetch a span")));
    assert_eq!(late.await.unwrap(), tar[512..40_000]);
    assert_eq!(made.blob.reads().len(), 1);
}

#[tokio::test]
async fn a_panic_while_a_span_is_stored_ends_its_flight() {
    let root = TempDir::new().unwrap();
    let (tar, made) = layer();
    let spans = spans(root.path(), &made);
    let flight = claimed(&spans, 0);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _ending = FlightEnd { spans: &spans, span: SpanId(0), outcome: None };
        panic!("this test panics on purpose");
    }));
    assert!(panicked.is_err());
    let outcome = flight.reach(u64::MAX).now_or_never().expect("the flight has ended");
    assert!(matches!(outcome, Reached::Ended(Err(_))));
    assert_eq!(spans.read(range(0, 512), whole()).await.unwrap(), tar[..512]);
}

/// The disk takes every write and returns nothing.
#[tokio::test]
async fn a_disk_that_returns_nothing_is_no_error_and_is_given_up() {
    let root = TempDir::new().unwrap();
    let (tar, made) = layer();
    let store = Store::open(root.path(), DiskLimits::default()).unwrap();
    drop(store.layer(&made.id()).unwrap());
    let data = find(root.path(), "data");
    fs::remove_file(&data).unwrap();
    std::os::unix::fs::symlink("/dev/null", &data).unwrap();
    let spans = spans(root.path(), &made);
    for from in (0..FILE).step_by(50_000) {
        let to = from + 1_000;
        assert_eq!(spans.read(range(from, to), whole()).await.unwrap(), tar[from as usize..to as usize]);
    }
    // Each span is stored this many times, and fetched for each reader afterwards.
    let most = 8 * (u64::from(MAX_FAILED_READS) + 1) + 8;
    assert!(made.blob.reads().len() as u64 <= most, "{:?}", made.blob.reads());
    assert!(spans.claim_within(&mut spans.table.claims(), 0..1, 1).is_empty(), "fill does not claim it");
    for _ in 0..MAX_FAILED_READS {
        let _ = spans.read(range(0, spans.ztoc.uncompressed_size()), whole()).await.unwrap();
    }
    spans.filling.store(true, SeqCst);
    assert!(
        matches!(spans.next_step(1 << 20, FillScope::Any), FillStep::Done),
        "and does not ask for it again"
    );
}

fn find(root: &Path, name: &str) -> PathBuf {
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            if entry.file_name() == name {
                return entry.path();
            }
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
        }
    }
    panic!("there is no file {name}");
}

/// Padding without end is not stored: the files are right, the diff ID is not checked.
#[tokio::test]
async fn more_padding_than_a_tar_has_does_not_spoil_the_last_span() {
    let root = TempDir::new().unwrap();
    let (mut tar, _) = layer();
    let end = tar.len();
    tar.resize(end + MAX_TAIL as usize + 1, 0);
    let made = made(&tar);
    let spans = spans(root.path(), &made);
    let size = spans.ztoc.uncompressed_size();
    assert_eq!(spans.read(range(0, size), whole()).await.unwrap(), tar[..size as usize]);
    spans.settled().await;
    assert_eq!(spans.table.missing(), 0);
    assert_eq!(spans.compute_diff_id(|_| {}).ok(), None);
}

/// Where the stream breaks behind the last byte of the last span, in the same deflate block, its files are served.
#[tokio::test]
async fn damage_behind_the_last_span_does_not_spoil_it() {
    let root = TempDir::new().unwrap();
    let (mut tar, _) = layer();
    let cut = tar.len() - 1024;
    tar.resize(tar.len() + 9_216, 0);
    // The checksum of a second gzip member is wrong. The builder of the ztoc did not compare it.
    let mut bytes = [gzip(&tar[..cut]), gzip(&tar[cut..])].concat();
    let options = ztoc::Options { span_size: SPAN, ..ztoc::Options::default() };
    let built = ztoc::build(bytes.as_slice(), ztoc::Compression::Gzip, &options).unwrap();
    let ztoc = Ztoc::from_vec(built.ztoc.clone()).unwrap();
    let last = SpanId(ztoc.spans().len() - 1);
    let compressed = |at: &[u8]| {
        let range = ztoc.spans().compressed(last);
        at[range.start.0 as usize..range.end.0 as usize].to_vec()
    };
    let right = Digest::sha256(&compressed(&bytes)).to_string();
    let trailer = bytes.len() - 8;
    bytes[trailer] ^= 1;
    let wrong = Digest::sha256(&compressed(&bytes)).to_string();
    let mut ztoc = built.ztoc;
    let at = ztoc.windows(right.len()).position(|window| window == right.as_bytes()).unwrap();
    ztoc[at..at + wrong.len()].copy_from_slice(wrong.as_bytes());
    let made =
        TestLayer { digest: Digest::sha256(&bytes), ztoc, blob: Arc::new(FaultyBlob::new(bytes, 7_000)) };
    let spans = spans(root.path(), &made);
    let size = spans.ztoc.uncompressed_size();
    assert!(size > cut as u64, "the last span ends in the second member");
    assert_eq!(spans.read(range(0, size), whole()).await.unwrap(), tar[..size as usize]);
    spans.settled().await;
    assert_eq!(spans.table.missing(), 0, "it is kept: fill would fetch it again and again");
}

/// A layer that says it has urgent spans has one to claim; else the engine would ask it without end.
#[tokio::test]
async fn spans_under_way_are_not_urgent() {
    let root = TempDir::new().unwrap();
    let (_, made) = layer();
    let spans = spans(root.path(), &made);
    spans.fill_order.lock().demanded(2..3, 0..5);
    assert!(!spans.is_urgent(), "the background does not fill this layer");
    spans.wanted.lock().push_back(1);
    assert!(spans.is_urgent());
    let _flight = claimed(&spans, 1);
    assert!(!spans.is_urgent());
    assert!(matches!(spans.next_step(1 << 20, FillScope::Urgent), FillStep::NotUrgent));
    spans.settle(SpanId(1), Err(Error::new(ErrorKind::Io, "fetch a span")));
    assert!(spans.is_urgent(), "the request failed");
}

/// Fill waits while the disk has no room; a write that fails for another reason does not make the disk full.
#[tokio::test]
async fn fill_waits_for_room_and_not_for_a_layer_that_was_opened_anew() {
    let root = TempDir::new().unwrap();
    let (tar, made) = layer();
    let spans = spans(root.path(), &made);
    spans.filling.store(true, SeqCst);
    let turn = |spans: &Spans| spans.next_step(1, FillScope::Any);
    assert!(matches!(turn(&spans), FillStep::Fetch(request) if request.spans == (0..1)));
    let anew = spans.files.store().layer(&made.id()).unwrap();
    assert!(spans.files.put_piece(UncompressedOffset(0), &tar[..10]).is_err(), "its lease is over");
    assert!(matches!(turn(&spans), FillStep::Done), "the new table fetches it");
    let ztoc = spans.ztoc.clone();
    let spans = Spans::open(ztoc, anew, spans.engine.clone());
    spans.add_source("origin", made.blob.clone());
    spans.filling.store(true, SeqCst);
    assert!(matches!(turn(&spans), FillStep::Fetch(_)), "the disk is not full");
    let small = TempDir::new().unwrap();
    let store =
        Store::open(small.path(), DiskLimits { max_bytes: Some(1), ..DiskLimits::default() }).unwrap();
    let spans = Spans::open(spans.ztoc.clone(), store.layer(&made.id()).unwrap(), spans.engine.clone());
    spans.add_source("origin", made.blob.clone());
    spans.filling.store(true, SeqCst);
    assert_eq!(spans.read(range(512, 20_000), whole()).await.unwrap(), tar[512..20_000]);
    spans.settled().await;
    assert!(matches!(turn(&spans), FillStep::NoRoom));
}

/// An old table of a layer that was opened anew fetches for its readers; that is no damage.
#[tokio::test]
async fn a_layer_that_was_opened_anew_is_not_counted_as_damaged() {
    let root = TempDir::new().unwrap();
    let (tar, made) = layer();
    let spans = spans(root.path(), &made);
    assert_eq!(spans.read(range(0, 20_000), whole()).await.unwrap(), tar[..20_000]);
    spans.settled().await;
    let _anew = spans.files.store().layer(&made.id()).unwrap();
    assert_eq!(spans.read(range(0, 20_000), whole()).await.unwrap(), tar[..20_000]);
    assert_eq!(spans.engine.counters().damaged.now(), 0);
}

/// A request can outlive its claims: a span of it landed, was evicted, and was claimed again by another request.
#[tokio::test]
async fn a_fetch_that_is_over_does_not_end_another_fetch_of_the_same_span() {
    let root = TempDir::new().unwrap();
    let (_, test_layer) = layer();
    let spans = spans(root.path(), &test_layer);
    spans.filling.store(true, SeqCst);
    let step = || match spans.next_step(1, FillScope::Any) {
        FillStep::Fetch(request) => request,
        other => panic!("span 0 is missing: {other:?}"),
    };
    let error = || Error::new(ErrorKind::Unreachable, "fetch spans");
    let first = step();
    assert_eq!(first.spans, 0..1);
    first.sink.fail(SpanId(0), error());
    spans.fill_order.lock().demanded(0..1, 0..1);
    let claimed_again = spans.claim_within(&mut spans.table.claims(), 0..1, 1);
    assert_eq!(claimed_again[0].span, 0);
    let second = spans.requests(claimed_again, Priority::Demand).pop().expect("one run of spans");
    // The first request fails late.
    first.sink.fail(SpanId(0), error());
    let flight = spans.table.claims().under_way(0).expect("the second request still fetches the span");
    assert!(flight.reach(u64::MAX).now_or_never().is_none(), "readers of the second request still wait");
    second.sink.fail(SpanId(0), error());
    assert!(spans.table.claims().under_way(0).is_none());
}

/// What the disk loses is not counted as stored, so that the limit of the store is about spans that are there.
#[tokio::test]
async fn unreadable_spans_are_not_counted_as_stored() {
    let root = TempDir::new().unwrap();
    let (tar, test_layer) = layer();
    let spans = spans(root.path(), &test_layer);
    let stored = || spans.files.store().counts().1;
    let size = spans.ztoc.uncompressed_size();
    for round in 0..=MAX_FAILED_READS {
        assert_eq!(spans.read(range(0, size), whole()).await.unwrap(), tar[..size as usize]);
        spans.settled().await;
        if round < MAX_FAILED_READS {
            assert_eq!(stored(), size, "round {round}");
            fs::OpenOptions::new().write(true).open(find(root.path(), "data")).unwrap().set_len(0).unwrap();
        }
    }
    assert!(spans.damage.is_unreadable(0), "the disk lost span 0 too often");
    assert_eq!(stored(), 0);
}
