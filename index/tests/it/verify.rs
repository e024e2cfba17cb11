//! Whether ztocs are true.

use index::{Verdict, verify};
use oci::Descriptor;
use oci::image::media_type::OCTET_STREAM;
use oci::testing::MemoryStore;
use ztoc::{Compression, Options};

use crate::images::{gzip, layer, tar};

fn build(layer: &[u8], options: &Options) -> Vec<u8> {
    ztoc::build(layer, Compression::Gzip, options).unwrap().ztoc
}

async fn verdict(store: &MemoryStore, layer: &Descriptor, ztoc: Vec<u8>) -> Verdict {
    let ztoc = store.add_blob(OCTET_STREAM, ztoc);
    verify(store, layer, store, &ztoc, &|_| {}).await.unwrap()
}

#[tokio::test]
async fn verdicts() {
    let store = MemoryStore::new();
    let hello = layer(&store, "hello.txt");
    let bytes = gzip(&tar("hello.txt", b'0'));
    let good = build(&bytes, &Options::default());
    assert_eq!(verdict(&store, &hello, good.clone()).await, Verdict::Same);
    let odd = Options { span_size: 512, build_tool: "another tool".to_owned(), ..Options::default() };
    assert_eq!(verdict(&store, &hello, build(&bytes, &odd)).await, Verdict::Same);

    let check = async |ztoc: Vec<u8>, expected: &str| {
        let said = verdict(&store, &hello, ztoc).await.to_string();
        assert!(said.starts_with("false: ") && said.contains(expected), "{said}");
    };
    check(b"nonsense".to_vec(), "read ztoc").await;
    check(build(&gzip(&tar("other.txt", b'0')), &Options::default()), "span 0 has another digest").await;
    // The last h of a ztoc is that of the file's name.
    let mut changed = good;
    *changed.iter_mut().rev().find(|byte| **byte == b'h').unwrap() = b'j';
    check(changed, "file hello.txt: another name").await;
}

/// What would steer a reader although the table of files is right.
#[tokio::test]
async fn lies_beside_the_table() {
    let store = MemoryStore::new();
    let opaque = layer(&store, ".wh..wh..opq");
    let good = build(&gzip(&tar(".wh..wh..opq", b'0')), &Options::default());
    let mut ztoc = store.add_blob(OCTET_STREAM, good.clone());
    assert_eq!(verify(&store, &opaque, &store, &ztoc, &|_| {}).await.unwrap(), Verdict::Same);
    ztoc.annotations.insert(index::manifest::DISABLE_XATTRS.to_owned(), "true".to_owned());
    let said = verify(&store, &opaque, &store, &ztoc, &|_| {}).await.unwrap().to_string();
    assert!(said.starts_with("false: ") && said.contains("extended attributes"), "{said}");

    // One checkpoint, and a span size of 4 MiB.
    let zinfo = [&1_i32.to_le_bytes()[..], &(4_i64 << 20).to_le_bytes()].concat();
    let at = good.windows(zinfo.len()).position(|bytes| bytes == zinfo).unwrap();
    let mut changed = good;
    changed[at + 4..at + 12].fill(0);
    let said = verdict(&store, &opaque, changed).await.to_string();
    assert!(said.starts_with("false: ") && said.contains("span size is 0"), "{said}");
}

#[tokio::test]
async fn what_gives_no_verdict() {
    let store = MemoryStore::new();
    let hello = layer(&store, "hello.txt");
    let good = store.add_blob(OCTET_STREAM, build(&gzip(&tar("hello.txt", b'0')), &Options::default()));
    let zstd =
        Descriptor { media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(), ..hello.clone() };
    let unknown = verify(&store, &zstd, &store, &good, &|_| {}).await.unwrap();
    assert!(matches!(unknown, Verdict::Unknown(_)), "{unknown}");
    let missing = Descriptor::of(OCTET_STREAM, b"missing");
    let error = verify(&store, &hello, &store, &missing, &|_| {}).await.unwrap_err();
    assert_eq!(error.kind(), index::ErrorKind::NotFound);
    let wrong = Descriptor { size: hello.size - 1, ..hello };
    let error = verify(&store, &wrong, &store, &good, &|_| {}).await.unwrap_err();
    assert_eq!(error.kind(), index::ErrorKind::Corrupt);
}
