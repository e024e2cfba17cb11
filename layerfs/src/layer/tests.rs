//! Reads compared with the plain bytes: sources that fail and lie, stores that are full, damaged or found again.

mod power;
mod reference;
mod sample;

use std::{fs, os::unix::fs::FileExt, path::Path, sync::Arc};

use oci::testing::BlobFault;
use tempfile::TempDir;

use super::{Layer, ReadAnswer};
use crate::{
    DiskLimits, Error, ErrorKind, LayerId, MinFree, Store,
    testing::{Tar, TestLayer, engine, made, noise, opened},
    tree::NodeId,
};

/// Eight files of 100 000 bytes: each has bytes in two or three spans.
fn files() -> Vec<(String, Vec<u8>)> {
    (0..8).map(|seed| (format!("f{seed}"), noise(seed + 1, 100_000))).collect()
}

fn layer_of_files() -> TestLayer {
    made(&files().iter().fold(Tar::default(), |tar, (name, data)| tar.file(name, data)).end())
}

fn node(layer: &Layer, name: &str) -> NodeId {
    layer.lookup(NodeId::ROOT, name.as_bytes()).expect("the test wrote the file")
}

async fn read(layer: &Arc<Layer>, name: &str, offset: u64, size: u32) -> Result<Vec<u8>, Error> {
    let outcome = match layer.read(node(layer, name), offset, size) {
        ReadAnswer::Ready(outcome) => outcome,
        ReadAnswer::Later(outcome) => outcome.await,
    };
    // A reader has its bytes before the rest of their span is stored; tests that look at the store need the rest.
    layer.content.spans.settled().await;
    outcome
}

/// Reads every file to its end.
async fn assert_whole(layer: &Arc<Layer>) {
    for (name, data) in files() {
        assert_eq!(read(layer, &name, 0, 1 << 20).await.unwrap(), data, "{name}");
    }
}

fn is_ready(layer: &Layer, name: &str) -> bool {
    matches!(layer.read(node(layer, name), 0, 1), ReadAnswer::Ready(Ok(_)))
}

#[tokio::test]
async fn ranges_are_the_files_bytes_cut_at_their_end() {
    let root = TempDir::new().unwrap();
    let layer = opened(root.path(), None, &layer_of_files());
    for (name, data) in files() {
        for (offset, size) in
            [(0, 1), (99_999, 4096), (60_000, 20_000), (0, 1 << 20), (100_000, 10), (1 << 40, 1)]
        {
            let from = data.len().min(usize::try_from(offset).unwrap());
            let to = data.len().min(from + size as usize);
            assert_eq!(
                read(&layer, &name, offset, size).await.unwrap(),
                data[from..to],
                "{name} {offset} {size}"
            );
        }
    }
    assert!(layer.spans().1 <= 1, "every span but that of the end marker was read");
}

#[tokio::test]
async fn many_readers_of_one_span_fetch_it_once() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    let readers: Vec<_> = (0..50)
        .map(|_| {
            let layer = layer.clone();
            tokio::spawn(async move { read(&layer, "f0", 0, 1000).await })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), files()[0].1[..1000]);
    }
    assert_eq!(made.blob.reads().len(), 1);
}

#[tokio::test]
async fn passing_faults_are_not_noticed() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    for fault in [
        BlobFault::Refuse(oci::ErrorKind::Unreachable),
        BlobFault::Refuse(oci::ErrorKind::Denied),
        BlobFault::BreakAfter(10),
        BlobFault::BreakAfter(40_000),
        BlobFault::Lie,
    ] {
        made.blob.fail_next(fault);
    }
    let data = &files()[0].1;
    assert_eq!(read(&layer, "f0", 0, 100_000).await.unwrap(), *data);
    assert!(made.blob.reads().len() >= 4, "{:?}", made.blob.reads());
}

#[tokio::test]
async fn a_source_that_keeps_lying_is_an_error_and_never_other_bytes() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    for _ in 0..20 {
        made.blob.fail_next(BlobFault::Lie);
    }
    let error = read(&layer, "f1", 0, 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = read(&layer, "f7", 0, 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_source_that_refuses_is_an_error_at_once_and_good_again_later() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    made.blob.fail_next(BlobFault::Refuse(oci::ErrorKind::NotFound));
    assert_eq!(read(&layer, "f1", 0, 10).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(read(&layer, "f1", 0, 10).await.unwrap(), files()[1].1[..10]);
}

#[tokio::test]
async fn a_layer_without_a_source_is_not_found() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let store = Store::open(root.path(), DiskLimits::default()).unwrap();
    let digest = oci::Digest::sha256(&made.ztoc);
    let layer = Layer::create(&store, &engine(), &made.digest, &digest, &made.ztoc).unwrap();
    assert_eq!(read(&layer, "f1", 0, 10).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn fill_fetches_every_span_and_another_process_finds_them() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    layer.start_fill();
    while layer.spans().1 > 0 {
        tokio::task::yield_now().await;
    }
    drop(layer);
    let store = Store::open(root.path(), DiskLimits::default()).unwrap();
    let again = Layer::stored(&store, &engine(), &made.id()).unwrap().unwrap();
    assert_eq!(again.spans().1, 0);
    assert_whole(&again).await;
    let other = LayerId { ztoc: Some(oci::Digest::sha256(b"another ztoc")), ..made.id() };
    assert!(Layer::stored(&store, &engine(), &other).unwrap().is_none());
}

/// The machine stopped without an orderly end, and booted again.
fn another_boot(root: &Path) {
    let boot = root.join("layers/boot");
    let generation = fs::read_to_string(&boot).unwrap().split_once(' ').unwrap().1.to_owned();
    fs::write(boot, format!("another-boot {generation}")).unwrap();
}

fn layer_folder(root: &Path, made: &TestLayer) -> std::path::PathBuf {
    root.join("layers/sha256").join(made.digest.hex()).join(oci::Digest::sha256(&made.ztoc).hex())
}

#[tokio::test]
async fn after_an_unclean_stop_damaged_spans_are_fetched_again() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    assert_whole(&layer).await;
    drop(layer);
    // An unclean stop: torn bytes in the middle of the data, another boot.
    let data = fs::File::options().write(true).open(layer_folder(root.path(), &made).join("data")).unwrap();
    data.write_all_at(&[0; 5000], 200_000).unwrap();
    another_boot(root.path());
    let fetched = made.blob.reads().len();
    let layer = opened(root.path(), None, &made);
    assert_whole(&layer).await;
    assert!(made.blob.reads().len() > fetched);
}

#[tokio::test]
async fn after_an_unclean_stop_a_damaged_ztoc_is_not_used() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    drop(opened(root.path(), None, &made));
    let ztoc = fs::File::options().write(true).open(layer_folder(root.path(), &made).join("ztoc")).unwrap();
    ztoc.write_all_at(&[7], 40_000).unwrap();
    another_boot(root.path());
    for _ in 0..2 {
        let store = Store::open(root.path(), DiskLimits::default()).unwrap();
        assert!(Layer::stored(&store, &engine(), &made.id()).unwrap().is_none());
    }
}

#[tokio::test]
async fn after_an_orderly_stop_spans_are_used_on_another_boot() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    read(&layer, "f0", 0, 1 << 20).await.unwrap();
    let missing = layer.spans().1;
    drop(layer);
    Store::open(root.path(), DiskLimits::default()).unwrap().close().unwrap();
    another_boot(root.path());
    let store = Store::open(root.path(), DiskLimits::default()).unwrap();
    let layer = Layer::stored(&store, &engine(), &made.id()).unwrap().unwrap();
    assert!(layer.spans().1 <= missing, "read-ahead may have landed since");
    assert!(is_ready(&layer, "f0"));
}

#[tokio::test]
async fn a_data_file_cut_short_is_a_miss() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    read(&layer, "f7", 0, 1 << 20).await.unwrap();
    let data = fs::File::options().write(true).open(layer_folder(root.path(), &made).join("data")).unwrap();
    data.set_len(1000).unwrap();
    assert_eq!(read(&layer, "f7", 0, 1 << 20).await.unwrap(), files()[7].1);
}

#[tokio::test]
async fn the_store_keeps_its_limit_and_every_read_is_right() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), Some(200_000), &made);
    let all = layer.spans().0;
    assert!(all > 8, "{all} spans are too few to say anything");
    for round in 0..3 {
        for (name, data) in files() {
            assert_eq!(read(&layer, &name, 0, 1 << 20).await.unwrap(), data, "{name} in round {round}");
        }
    }
    assert!(all - layer.spans().1 <= 4, "{} of {all} spans are kept", all - layer.spans().1);
    use std::os::unix::fs::MetadataExt;
    let blocks = fs::metadata(layer_folder(root.path(), &made).join("data")).unwrap().blocks();
    assert!(blocks * 512 < 500_000, "holes are punched: {blocks} blocks");
}

#[tokio::test]
async fn a_layer_without_a_ztoc_is_streamed_whole() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let store = Store::open(root.path(), DiskLimits::default()).unwrap();
    let gzip = ztoc::Compression::Gzip;
    made.blob.fail_next(BlobFault::Lie);
    let refused = Layer::stream(&store, &engine(), "origin", made.blob.clone(), gzip).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    made.blob.fail_next(BlobFault::BreakAfter(50_000));
    let refused = Layer::stream(&store, &engine(), "origin", made.blob.clone(), gzip).await;
    assert!(refused.is_err());
    assert!(
        !root.path().join("layers/sha256").join(made.digest.hex()).exists(),
        "the layer's folder is gone"
    );

    let layer = Layer::stream(&store, &engine(), "origin", made.blob.clone(), gzip).await.unwrap();
    assert_eq!(layer.spans().1, 0);
    let reads = made.blob.reads().len();
    assert_whole(&layer).await;
    assert_eq!(made.blob.reads().len(), reads, "no byte is fetched twice");
    drop(layer);
    let own = LayerId { layer: made.digest, ztoc: None };
    let again = Layer::stored(&store, &engine(), &own).unwrap().unwrap();
    assert_eq!(again.spans().1, 0);
}

#[tokio::test]
async fn a_table_of_files_that_lies_about_a_file_is_an_error_for_that_file() {
    let root = TempDir::new().unwrap();
    let honest = Tar::default().file("a", &noise(1, 3000)).file("b", &noise(2, 3000)).end();
    // The same bytes of content at the same offsets, but one entry has another name in its header.
    let other = Tar::default().file("a", &noise(1, 3000)).file("c", &noise(2, 3000)).end();
    let (honest, other) = (made(&honest), made(&other));
    let mut lying = other.ztoc.clone();
    // The blob of `other` with the table of `honest`, with digests that fit: a wrong index that a user named.
    let swap = |bytes: &mut Vec<u8>| {
        let at = bytes.windows(8).rposition(|run| run == b"\x01\0\0\0c\0\0\0").unwrap();
        bytes[at + 4] = b'b';
    };
    swap(&mut lying);
    let store = Store::open(root.path(), DiskLimits::default()).unwrap();
    let digest = oci::Digest::sha256(&lying);
    let layer = Layer::create(&store, &engine(), &other.digest, &digest, &lying).unwrap();
    layer.add_source("origin", other.blob.clone());
    assert_eq!(read(&layer, "a", 0, 10).await.unwrap(), noise(1, 3000)[..10]);
    assert_eq!(read(&layer, "b", 0, 10).await.unwrap_err().kind(), ErrorKind::Corrupt);
    drop(honest);
}

#[test]
fn bytes_that_are_no_ztoc_are_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let root = TempDir::new().unwrap();
    let store = Store::open(root.path(), DiskLimits::default()).unwrap();
    let digest = oci::Digest::sha256(b"layer");
    let refused = Layer::create(&store, &engine(), &digest, &oci::Digest::sha256(b"junk"), b"junk");
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    let id = LayerId { layer: digest, ztoc: Some(oci::Digest::sha256(b"junk")) };
    assert!(Layer::stored(&store, &engine(), &id).unwrap().is_none(), "no ztoc is stored");
}

#[tokio::test]
async fn spans_not_proven_by_the_first_process_are_proven_by_the_second() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    assert_whole(&layer).await;
    drop(layer);
    let data = fs::File::options().write(true).open(layer_folder(root.path(), &made).join("data")).unwrap();
    data.write_all_at(&[0; 1000], 500_000).unwrap();
    another_boot(root.path());
    // The second process opens the store and is killed before it opens the layer.
    drop(Store::open(root.path(), DiskLimits::default()).unwrap());
    let layer = opened(root.path(), None, &made);
    assert_whole(&layer).await;
}

#[tokio::test]
async fn after_an_unclean_stop_good_spans_are_not_fetched_again() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    assert_whole(&layer).await;
    drop(layer);
    another_boot(root.path());
    let reads = made.blob.reads().len();
    let layer = opened(root.path(), None, &made);
    assert_whole(&layer).await;
    assert_eq!(made.blob.reads().len(), reads, "spans with the right checksum are not fetched again");
}

#[tokio::test]
async fn a_reader_that_joins_a_fill_does_not_get_its_error() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    made.blob.fail_next(BlobFault::Refuse(oci::ErrorKind::Unreachable));
    layer.start_fill();
    // The test's runtime has one thread: the fill has claimed its run when it first waits.
    while made.blob.reads().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(read(&layer, "f0", 0, 100_000).await.unwrap(), files()[0].1);
}

#[tokio::test]
async fn when_one_source_refuses_the_others_are_asked() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    let gone = Arc::new(oci::testing::FaultyBlob::new(b"".as_slice(), 1));
    for _ in 0..100 {
        gone.fail_next(BlobFault::Refuse(oci::ErrorKind::NotFound));
    }
    layer.add_source("another origin", gone.clone());
    assert_eq!(read(&layer, "f1", 0, 100_000).await.unwrap(), files()[1].1);
    assert!(!gone.reads().is_empty(), "the newest source was asked first");
}

/// Images that share a base come and go, and their repositories with them.
#[tokio::test]
async fn the_one_good_source_is_found_among_many_dead_ones_and_asked_first_afterwards() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    let gone: Vec<_> = (0..20)
        .map(|number| {
            let gone = Arc::new(oci::testing::FaultyBlob::new(b"".as_slice(), 1));
            (0..100).for_each(|_| gone.fail_next(BlobFault::Refuse(oci::ErrorKind::NotFound)));
            layer.add_source(&format!("host/gone{number}"), gone.clone());
            gone
        })
        .collect();
    let asked = || gone.iter().map(|gone| gone.reads().len()).sum::<usize>();
    assert_eq!(read(&layer, "f1", 0, 100_000).await.unwrap(), files()[1].1);
    let before = asked();
    assert!(before >= gone.len(), "each dead source was asked");
    assert_eq!(read(&layer, "f5", 0, 100_000).await.unwrap(), files()[5].1);
    assert_eq!(asked(), before, "failing sources are asked last now");
    // Sources of removed images are forgotten, but never the last one.
    (0..20).for_each(|number| layer.remove_source(&format!("host/gone{number}")));
    let origins = || layer.status().sources.into_iter().map(|source| source.origin).collect::<Vec<_>>();
    assert_eq!(origins(), ["origin"]);
    layer.remove_source("origin");
    assert_eq!(origins(), ["origin"]);
    for number in 0..1_000 {
        layer.add_source(&format!("host/{number}"), made.blob.clone());
    }
    assert!(origins().len() <= 256 && origins()[0] == "host/999");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_of_a_store_that_is_far_too_small_are_always_right() {
    for max_bytes in [1_000, 100_000, 300_000] {
        let root = TempDir::new().unwrap();
        let layer = opened(root.path(), Some(max_bytes), &layer_of_files());
        let readers: Vec<_> = (0..8)
            .map(|seed| {
                let layer = layer.clone();
                tokio::spawn(async move {
                    for turn in 0..40 {
                        let (name, data) = &files()[(seed * 3 + turn * 5) % 8];
                        let offset = turn * 1_999;
                        let found = read(&layer, name, offset as u64, 30_000).await.unwrap();
                        assert_eq!(found, data[offset..(offset + 30_000).min(data.len())], "{name} {offset}");
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_disk_with_too_little_room_is_not_filled_and_every_read_is_right() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let room = DiskLimits { min_free: MinFree::Bytes(u64::MAX), ..DiskLimits::default() };
    let store = Store::open(root.path(), room).unwrap();
    let ztoc = oci::Digest::sha256(&made.ztoc);
    let layer = Layer::create(&store, &engine(), &made.digest, &ztoc, &made.ztoc).unwrap();
    layer.add_source("origin", made.blob.clone());
    layer.start_fill();
    for _ in 0..2 {
        assert_whole(&layer).await;
    }
    let (all, missing) = layer.spans();
    assert!(all - missing <= 8, "{} of {all} spans are kept", all - missing);
}

#[tokio::test]
async fn wanted_spans_stay_wanted_after_a_failed_request() {
    let root = TempDir::new().unwrap();
    let made = layer_of_files();
    let layer = opened(root.path(), None, &made);
    made.blob.fail_next(BlobFault::Refuse(oci::ErrorKind::Unreachable));
    let (all, _) = layer.spans();
    layer.want([2..=3]);
    while layer.spans().1 > all - 2 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(made.blob.reads().len() > 1, "the first request was refused");
}

#[tokio::test]
async fn wanted_spans_are_fetched_and_no_others() {
    let root = TempDir::new().unwrap();
    let layer = opened(root.path(), None, &layer_of_files());
    let (all, _) = layer.spans();
    layer.want([2..=3, 7..=7, 3..=4, all..=u32::MAX, u32::MAX..=u32::MAX]);
    while layer.spans().1 > all - 4 {
        tokio::task::yield_now().await;
    }
    // One more span would be under way by now: the four spans were fetched in three requests.
    layer.want([0..=0]);
    while layer.spans().1 > all - 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(layer.spans().1, all - 5);
}

#[test]
fn a_store_that_cannot_note_its_generation_stores_nothing_and_leaves_no_clean_mark() {
    let root = TempDir::new().unwrap();
    let open = |boot: &str| Store::open_on(root.path(), DiskLimits::default(), boot, Arc::default()).unwrap();
    let (boot, clean) = (root.path().join("layers/boot"), root.path().join("layers/clean"));
    drop(open("one"));
    let noted = fs::read(&boot).unwrap();
    // For this note the disk is full. After a crash of the process alone there is nothing to note.
    let in_the_way = root.path().join(format!("layers/boot.new{}", std::process::id()));
    fs::create_dir(&in_the_way).unwrap();
    open("one").close().unwrap();
    assert!(clean.exists());
    fs::remove_file(&clean).unwrap();
    // The machine has crashed: the stored layers are in doubt, and stay so for the next start.
    let store = open("two");
    let layer = LayerId { layer: oci::Digest::sha256(b"layer"), ztoc: None };
    let put = store.layer(&layer).unwrap().put_ztoc(b"ztoc", &oci::Digest::sha256(b"ztoc"));
    assert!(put.is_err(), "the store writes nothing");
    store.close().unwrap();
    assert!(!clean.exists());
    assert_eq!(fs::read(&boot).unwrap(), noted);
    fs::remove_dir(&in_the_way).unwrap();
    drop(open("two"));
    assert_ne!(fs::read(&boot).unwrap(), noted);
}
