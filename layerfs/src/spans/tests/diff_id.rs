//! The diff ID of a complete layer: known, kept, given up, and computed beside eviction.

use std::{sync::mpsc, time::Duration};

use super::*;
use crate::spans::diff_id::NoDiffId;

/// A channel, and the listener that sends to it.
fn listen(spans: &Spans) -> mpsc::Receiver<Option<Digest>> {
    let (sender, heard) = mpsc::channel();
    spans.when_diff_id_known(Box::new(move |digest: Option<&Digest>| sender.send(digest.copied()).unwrap()));
    heard
}

/// Reads the whole layer, and waits until it is stored.
async fn read_all(spans: &Spans) {
    let _ = spans.read(range(0, spans.ztoc.uncompressed_size()), whole()).await.unwrap();
    spans.settled().await;
    spans.engine.finish(Duration::from_secs(5));
}

/// The disk loses the end of the layer's data.
fn cut(root: &Path) {
    fs::OpenOptions::new().write(true).open(find(root, "data")).unwrap().set_len(1_000).unwrap();
}

/// The digest covers everything that the layer inflates to, padding included, and is kept.
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
            assert_eq!(spans.compute_diff_id(|_| {}), Err(NoDiffId::Missing), "no span is stored");
            let heard = listen(&spans);
            read_all(&spans).await;
            assert!(heard.try_recv().is_err(), "a reader has just had to wait");
            spans.check_diff_id(|_| {});
            assert_eq!(heard.try_recv(), Ok(Some(expected)), "{padding}");
        }
        let spans = spans(root.path(), &made);
        assert_eq!(listen(&spans).try_recv(), Ok(Some(expected)), "it is known from before");
    }
}

#[tokio::test]
async fn a_layer_that_was_incomplete_at_its_check_is_checked_again() {
    let root = TempDir::new().unwrap();
    let (tar, made) = layer();
    let spans = spans(root.path(), &made);
    let heard = listen(&spans);
    read_all(&spans).await;
    assert!(spans.diff_id_check.lock().begun);
    cut(root.path());
    spans.check_diff_id(|_| {});
    assert!(heard.try_recv().is_err() && !spans.diff_id_check.lock().begun);
    // A reader notices the damage and fetches the spans again.
    read_all(&spans).await;
    assert!(spans.diff_id_check.lock().begun, "it is complete again");
    spans.check_diff_id(|_| {});
    assert_eq!(heard.try_recv(), Ok(Some(Digest::sha256(&tar))));
}

/// The last span lands while a check finds that it was missing.
#[tokio::test]
async fn a_span_that_lands_during_a_check_is_not_overlooked() {
    let root = TempDir::new().unwrap();
    let (_, made) = layer();
    let spans = spans(root.path(), &made);
    let _heard = listen(&spans);
    read_all(&spans).await;
    cut(root.path());
    spans.begin_check_if_complete();
    spans.check_diff_id(|_| {});
    assert!(spans.diff_id_check.lock().begun, "checked once more");
    spans.check_diff_id(|_| {});
    assert!(!spans.diff_id_check.lock().begun, "and no more");
}

/// Hashing a large layer must not keep all of it on a disk that other layers need.
#[tokio::test]
async fn spans_can_be_evicted_while_a_layer_is_hashed() {
    let root = TempDir::new().unwrap();
    let (tar, made) = layer();
    let spans = spans(root.path(), &made);
    read_all(&spans).await;
    let evict = |span| {
        let _ = spans.evict(span); // the first attempt clears the mark of the last read
        spans.evict(span)
    };
    let mut evicted = 0;
    let digest = spans.compute_diff_id(|span| {
        assert_eq!(evict(span), EvictAttempt::Evicted, "span {span} is hashed and not pinned any more");
        evicted += 1;
    });
    assert_eq!(digest, Ok(Digest::sha256(&tar)));
    assert_eq!(evicted, spans.ztoc.spans().len());
    read_all(&spans).await;
    let last = SpanId(spans.ztoc.spans().len() - 1);
    let lost = spans.compute_diff_id(|_| {
        let _ = evict(last);
    });
    assert_eq!(lost, Err(NoDiffId::Lost), "the last span was evicted before it was hashed");
}

#[tokio::test]
async fn hashing_is_no_use_of_a_span() {
    let root = TempDir::new().unwrap();
    let (_, made) = layer();
    let spans = spans(root.path(), &made);
    read_all(&spans).await;
    assert_eq!(spans.evict(SpanId(0)), EvictAttempt::InUse, "a reader has just read it");
    spans.compute_diff_id(|_| {}).unwrap();
    assert_eq!(spans.evict(SpanId(0)), EvictAttempt::Evicted);
}

/// A store that never holds the layer long enough: the work ends, and listeners learn it.
#[tokio::test]
async fn a_layer_that_loses_spans_at_every_check_is_given_up() {
    let root = TempDir::new().unwrap();
    let (_, made) = layer();
    let spans = spans(root.path(), &made);
    let heard = listen(&spans);
    let last = SpanId(spans.ztoc.spans().len() - 1);
    let evict = || {
        let _ = (spans.evict(last), spans.evict(last));
    };
    for attempt in 0..4 {
        read_all(&spans).await;
        evict();
        spans.check_diff_id(|_| {});
        assert!(heard.try_recv().is_err(), "a check that reads nothing is no attempt: {attempt}");
        read_all(&spans).await;
        assert!(heard.try_recv().is_err(), "attempt {attempt}");
        spans.check_diff_id(|_| evict());
    }
    assert_eq!(heard.try_recv(), Ok(None));
}
