//! Spans on their way to the disk: who waits for the beginning, disks that take and do not give back, panics, wholes.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use futures::FutureExt;
use oci::{Digest, testing::FaultyBlob};
use tempfile::TempDir;
use tokio::sync::oneshot;
use ztoc::{UncompressedOffset, Ztoc};

use super::*;
use crate::{
    DiskLimits, Store,
    fetch::{FillScope, FillSource as _, FillStep},
    spans::MOST_DAMAGED,
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

fn whole() -> std::ops::Range<UncompressedOffset> {
    range(0, FILE)
}

fn range(from: u64, to: u64) -> std::ops::Range<UncompressedOffset> {
    UncompressedOffset(from)..UncompressedOffset(to)
}

/// Claims a span as a reader does; the test is the one who brings it.
fn claimed(spans: &Spans, span: u32) -> Arc<Flight<SpanOutcome>> {
    let _ = spans.table.claims().claim(span).expect("nobody has it");
    spans.table.first(span).expect("nobody else brings it")
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
    assert_eq!(early.now_or_never().expect("all of it is there").unwrap(), tar[512..20_000]);
    assert!((&mut late).now_or_never().is_none());
    // Who brought it fails; who waits for the rest fetches for itself.
    spans.settle(SpanId(0), Err(Error::new(ErrorKind::Io, "bring a span")));
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
        panic!("a test's");
    }));
    assert!(panicked.is_err());
    let outcome = flight.reach(u64::MAX).now_or_never().expect("it has ended");
    assert!(matches!(outcome, super::super::Reached::Ended(Err(_))));
    assert_eq!(spans.read(range(0, 512), whole()).await.unwrap(), tar[..512]);
}

/// The disk takes everything, and has nothing when it is asked.
#[tokio::test]
async fn a_disk_that_does_not_give_back_is_no_error_and_not_asked_for_ever() {
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
    // Each span is given to the disk so often, and fetched for each reader afterwards.
    let most = 8 * (u64::from(MOST_DAMAGED) + 1) + 8;
    assert!(made.blob.reads().len() as u64 <= most, "{:?}", made.blob.reads());
    assert!(spans.claim_within(&mut spans.table.claims(), 0..1, 1).is_empty(), "fill lets it be");
    for _ in 0..MOST_DAMAGED {
        let _ = spans.read(range(0, spans.ztoc.uncompressed_size()), whole()).await.unwrap();
    }
    spans.filling.store(true, SeqCst);
    assert!(
        matches!(spans.next_step(1 << 20, FillScope::Any), FillStep::Done),
        "and does not come back for it"
    );
}

fn find(root: &Path, name: &str) -> std::path::PathBuf {
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
    panic!("there is no {name}");
}

/// The digest is of everything that the layer inflates to, padding included, and is kept.
#[tokio::test]
async fn a_complete_layer_has_its_diff_id() {
    for padding in [0, 9_216] {
        let root = TempDir::new().unwrap();
        let (mut tar, _) = layer();
        tar.resize(tar.len() + padding, 0);
        let made = made(&tar);
        let expected = Digest::sha256(&tar);
        {
            let spans = spans(root.path(), &made);
            assert_eq!(spans.digest_whole().ok(), None, "nothing is there");
            let (tell, mut told) = oneshot::channel();
            spans.when_whole(Box::new(move |digest: Option<&Digest>| tell.send(digest.copied()).unwrap()));
            spans.read(range(0, spans.ztoc.uncompressed_size()), whole()).await.unwrap();
            spans.settled().await;
            assert!(told.try_recv().is_err(), "somebody has just had to wait");
            spans.finish_check();
            assert_eq!(told.try_recv(), Ok(Some(expected)), "{padding}");
        }
        let spans = spans(root.path(), &made);
        let (tell, mut told) = oneshot::channel();
        spans.when_whole(Box::new(move |digest: Option<&Digest>| tell.send(digest.copied()).unwrap()));
        assert_eq!(told.try_recv(), Ok(Some(expected)), "it is known from before");
    }
}

/// Padding without end is not stored: the files are right, the whole is not compared.
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
    assert_eq!(spans.digest_whole().ok(), None);
}

/// Where the stream breaks behind the last byte of the last span, in the same breath, its files are served.
#[tokio::test]
async fn what_is_damaged_behind_the_last_span_does_not_spoil_it() {
    let root = TempDir::new().unwrap();
    let (mut tar, _) = layer();
    let cut = tar.len() - 1024;
    tar.resize(tar.len() + 9_216, 0);
    // The checksum of a second member is wrong. Who made the ztoc has not looked at it.
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
    assert_eq!(spans.table.missing(), 0, "and it is kept: fill would bring it again and again");
}

/// Who says that something is urgent has something to claim; else the engine would ask without end.
#[tokio::test]
async fn what_is_on_its_way_is_not_urgent() {
    let root = TempDir::new().unwrap();
    let (_, made) = layer();
    let spans = spans(root.path(), &made);
    spans.fill_order.lock().demanded(2..3, 0..5);
    assert!(!spans.is_urgent(), "nothing is brought of itself here");
    spans.wanted.lock().push_back(1);
    assert!(spans.is_urgent());
    let _flight = claimed(&spans, 1);
    assert!(!spans.is_urgent());
    assert!(matches!(spans.next_step(1 << 20, FillScope::Urgent), FillStep::NotUrgent));
    spans.settle(SpanId(1), Err(Error::new(ErrorKind::Io, "bring a span")));
    assert!(spans.is_urgent(), "it did not come");
}

/// A layer that there is no room for is not given up; and what cannot be written for another reason fills no disk.
#[tokio::test]
async fn fill_waits_for_room_and_not_for_a_layer_that_was_opened_anew() {
    let root = TempDir::new().unwrap();
    let (tar, made) = layer();
    let spans = spans(root.path(), &made);
    spans.filling.store(true, SeqCst);
    let turn = |spans: &Spans| spans.next_step(1, FillScope::Any);
    assert!(matches!(turn(&spans), FillStep::Fetch(request) if request.spans == (0..1)));
    let anew = spans.files.store().layer(&made.id()).unwrap();
    assert!(spans.files.put_piece(UncompressedOffset(0), &tar[..10]).is_err(), "its time is over");
    assert!(matches!(turn(&spans), FillStep::Done), "whoever has it now brings it");
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

/// What could not be read once is looked at again when it has come back.
#[tokio::test]
async fn a_layer_that_was_not_whole_when_it_was_looked_at_is_looked_at_again() {
    let root = TempDir::new().unwrap();
    let (tar, made) = layer();
    let spans = spans(root.path(), &made);
    let (tell, mut told) = oneshot::channel();
    let all = range(0, spans.ztoc.uncompressed_size());
    spans.when_whole(Box::new(move |digest: Option<&Digest>| tell.send(digest.copied()).unwrap()));
    let _ = spans.read(all.clone(), whole()).await.unwrap();
    spans.engine.finish(Duration::from_secs(5));
    assert!(spans.whole.lock().begun);
    fs::OpenOptions::new().write(true).open(find(root.path(), "data")).unwrap().set_len(1_000).unwrap();
    spans.finish_check();
    assert!(told.try_recv().is_err() && !spans.whole.lock().begun);
    // A reader finds out, and has it brought again.
    let _ = spans.read(all, whole()).await.unwrap();
    spans.engine.finish(Duration::from_secs(5));
    assert!(spans.whole.lock().begun, "it is complete again");
    spans.finish_check();
    assert_eq!(told.try_recv(), Ok(Some(Digest::sha256(&tar))));
}

/// The last span that comes while somebody finds that it was missing is not overlooked.
#[tokio::test]
async fn a_span_that_comes_while_the_layer_is_looked_at_is_noticed() {
    let root = TempDir::new().unwrap();
    let (_, made) = layer();
    let spans = spans(root.path(), &made);
    spans.when_whole(Box::new(|_| {}));
    let _ = spans.read(range(0, spans.ztoc.uncompressed_size()), whole()).await.unwrap();
    spans.engine.finish(Duration::from_secs(5));
    // What is looked at is not complete, and something comes before that is noted.
    fs::OpenOptions::new().write(true).open(find(root.path(), "data")).unwrap().set_len(1_000).unwrap();
    spans.begin_check_if_complete();
    spans.finish_check();
    assert!(spans.whole.lock().begun, "looked at once more");
    spans.finish_check();
    assert!(!spans.whole.lock().begun, "and no more");
}

/// Who has a layer open that was opened anew reads what is fetched for him; nothing is damaged by that.
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
