//! Hostile bytes: nothing panics, nothing hangs, nothing is made up.

use std::io;
use std::sync::LazyLock;

use proptest::prelude::*;
use ztoc::{Compression, ErrorKind, Options, SpanId, UncompressedOffset, Ztoc};

use crate::ask;
use crate::layers::{Header, end, file, gzip, gzip_literals, padded, pax};

struct Layer {
    bytes: Vec<u8>,
    compression: Compression,
    ztoc: Vec<u8>,
}

fn tar() -> Vec<u8> {
    [
        Header::new("d/", b'5', 0).close(),
        pax(&[("SCHILY.xattr.user.a", b"1"), ("mtime", b"1.5"), ("path", b"d/f")]),
        file("f", &[b'f'; 3000]),
        Header::new("l", b'1', 0).link("d/f").close(),
        Header::new("././@LongLink", b'L', 200).gnu().with(&[b'n'; 200]),
        file("n", b"n"),
        pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"3")]),
        file("s", &[padded(b"1\n0\n3\n"), b"abc".to_vec()].concat()),
        end(),
    ]
    .concat()
}

fn layer(bytes: Vec<u8>, compression: Compression) -> Layer {
    let options = Options { span_size: 2000, ..Options::default() };
    let ztoc = ztoc::build(&bytes[..], compression, &options).unwrap().ztoc;
    Layer { bytes, compression, ztoc }
}

static LAYERS: LazyLock<[Layer; 3]> = LazyLock::new(|| {
    [
        layer(tar(), Compression::Uncompressed),
        layer(gzip_literals(&tar(), 1500), Compression::Gzip),
        layer(gzip(&tar(), 6), Compression::Gzip),
    ]
});

fn open(bytes: Vec<u8>, layer: &[u8]) -> Option<usize> {
    Ztoc::from_vec(bytes).ok().map(|ztoc| ask::everything(&ztoc, layer))
}

/// Every byte of the parts of a ztoc that have a structure, which its windows have not.
fn structured(ztoc: &[u8]) -> Vec<usize> {
    let near_text =
        |at: usize| ztoc[at.saturating_sub(40)..(at + 40).min(ztoc.len())].iter().any(|b| *b != 0);
    let all: Vec<usize> = (0..ztoc.len()).filter(|at| near_text(*at)).collect();
    all.iter().copied().filter(|at| *at < 2000 || *at + 4000 > ztoc.len() || at % 97 == 0).collect()
}

#[test]
fn every_structured_byte_of_a_ztoc_changed() {
    let (mut opened, mut refused) = (0, 0);
    for layer in &*LAYERS {
        assert!(open(layer.ztoc.clone(), &layer.bytes).unwrap() > 0);
        for at in structured(&layer.ztoc) {
            let was = layer.ztoc[at];
            for now in [was ^ 0x01, was ^ 0x80, was ^ 0xff, 0] {
                let mut bytes = layer.ztoc.clone();
                bytes[at] = now;
                match open(bytes, &layer.bytes) {
                    Some(_) => opened += 1,
                    None => refused += 1,
                }
            }
        }
    }
    // if nearly all were refused, this would test little
    assert!(opened > 500 && refused > 500, "{opened} opened, {refused} refused");
}

#[test]
fn ztocs_cut_short() {
    let ztoc = &LAYERS[0].ztoc;
    // a FlatBuffer is written from its end; the last bytes may be padding
    for len in 0..ztoc.len() - 4 {
        assert!(Ztoc::from_vec(ztoc[..len].to_vec()).is_err(), "{len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn several_changes(
        which in 0..3usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 4]>(), 1..5usize), 1..6),
    ) {
        let layer = &LAYERS[which];
        let mut bytes = layer.ztoc.clone();
        let places = structured(&bytes);
        for (place, new, len) in changes {
            let at = places[place.index(places.len())];
            let end = (at + len).min(bytes.len());
            bytes[at..end].copy_from_slice(&new[..end - at]);
        }
        let answers = open(bytes.clone(), &layer.bytes);
        prop_assert_eq!(answers, open(bytes, &layer.bytes), "the same bytes, the same answers");
    }

    #[test]
    fn random_bytes_are_no_ztoc(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Ztoc::from_vec(bytes).is_err());
    }

    #[test]
    fn layers_with_changes(
        which in 0..3usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let layer = &LAYERS[which];
        let mut bytes = layer.bytes.clone();
        for (at, new) in changes {
            let at = at.index(bytes.len());
            bytes[at] = new;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let options = Options { span_size: 2000, ..Options::default() };
        // if it can be built it can be used, all of it
        if let Ok(built) = ztoc::build(&bytes[..], layer.compression, &options) {
            let ztoc = Ztoc::from_vec(built.ztoc).unwrap();
            for entry in ztoc.entries() {
                let range = UncompressedOffset(entry.header().start.0)..entry.data().end;
                // an archive may end in the middle of the padding, and a size without data points behind it
                if range.end.0 <= ztoc.uncompressed_size() {
                    let bytes = ztoc.extract(range.clone(), &mut |_, range| {
                        Ok(bytes[range.start.0 as usize..range.end.0 as usize].to_vec())
                    });
                    let header = (entry.header().end - entry.header().start) as usize;
                    let verified = entry.verify_header(&bytes.unwrap()[..header]);
                    // a year of five digits cannot be stored
                    prop_assert!(verified.is_ok() || entry.mtime().is_none(), "{:?}", verified);
                }
            }
        }
    }
}

#[test]
fn spans_cut_short_or_changed() {
    for layer in &*LAYERS {
        let ztoc = Ztoc::from_vec(layer.ztoc.clone()).unwrap();
        for span in (0..ztoc.spans().len()).map(SpanId) {
            let range = ztoc.spans().compressed(span);
            let compressed = &layer.bytes[range.start.0 as usize..range.end.0 as usize];
            for len in 0..compressed.len() {
                let mut out = Vec::new();
                let error = ztoc.inflate_span(span, &compressed[..len], &mut out).unwrap_err();
                assert_eq!((error.kind(), out.len()), (ErrorKind::Corrupt, 0));
                let mut changed = compressed.to_vec();
                changed[len] ^= 1;
                assert_eq!(ztoc.verify_span(span, &changed).unwrap_err().kind(), ErrorKind::Corrupt);
            }
        }
    }
}

/// A ztoc that claims more than the stream holds: the digest is right, so the inflater is asked for bytes that
/// do not come. The original waits for them for ever.
#[test]
fn sizes_beyond_the_stream() {
    for layer in &*LAYERS {
        let ztoc = Ztoc::from_vec(layer.ztoc.clone()).unwrap();
        let size = ztoc.uncompressed_size().to_le_bytes();
        let places = layer.ztoc.windows(8).enumerate().filter(|(_, bytes)| *bytes == size);
        let mut refused = 0;
        for (at, _) in places {
            for larger in [ztoc.uncompressed_size() + 1, 1 << 20, 1 << 40, i64::MAX as u64] {
                let mut bytes = layer.ztoc.clone();
                bytes[at..at + 8].copy_from_slice(&larger.to_le_bytes());
                let Ok(changed) = Ztoc::from_vec(bytes) else { continue };
                if changed.uncompressed_size() != larger {
                    continue; // another number that happened to be the same
                }
                let last = SpanId(changed.spans().len() - 1);
                let range = changed.spans().compressed(last);
                let compressed = &layer.bytes[range.start.0 as usize..range.end.0 as usize];
                let mut out = Vec::new();
                let error = changed.inflate_span(last, compressed, &mut out).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert!(out.capacity() < 1 << 26, "memory follows the input, not the claim");
                changed.inflating_to_the_end(compressed, 1000).and_then(|it| it.all(&mut out)).unwrap_err();
                assert!(out.is_empty(), "nothing is handed out after an error");
                refused += 1;
            }
        }
        assert_eq!(refused, 4);
    }
}

/// Records shared by all entries: a small ztoc that would take long to check.
#[test]
fn shared_records_do_not_multiply() {
    let members: Vec<u8> =
        (0..50).flat_map(|index| [pax(&[("a", b"1")]), file(&format!("f{index}"), b"")].concat()).collect();
    let layer = [members, end()].concat();
    let built = ztoc::build(&layer[..], Compression::Uncompressed, &Options::default()).unwrap();
    let ztoc = Ztoc::from_vec(built.ztoc.clone()).unwrap();
    assert_eq!(ztoc.entries().map(|entry| entry.pax().count()).sum::<usize>(), 50);
    // one entry's vector of records is made so long that it reaches over everything behind it
    let mut long = built.ztoc;
    let at =
        long.windows(12).rposition(|bytes| bytes[..4] == [1, 0, 0, 0] && bytes[8..12] != [0; 4]).unwrap();
    long[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Ztoc::from_vec(long).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// A long name shared by all entries: a small ztoc that would take long to walk over.
#[test]
fn shared_names_do_not_multiply() {
    const FILES: usize = 3000;
    let name = [b"d/".repeat(50_000), b"f".to_vec()].concat();
    let members: Vec<u8> = (0..FILES).flat_map(|index| file(&format!("f{index}"), b"")).collect();
    let long = Header::new("././@LongLink", b'L', name.len() as u64).gnu().with(&name);
    let layer = [members, long, file("long", b""), end()].concat();
    let mut bytes = ztoc::build(&layer[..], Compression::Uncompressed, &Options::default()).unwrap().ztoc;
    assert!(bytes.len() < 1 << 20);
    // the vector of entries is found by its length, and each made to lead to the last one's table
    let count = (FILES as u32 + 1).to_le_bytes();
    let at = bytes.windows(4).position(|word| word == count).unwrap() + 4;
    let place = |index: usize| at + 4 * index..at + 4 * index + 4;
    let offset = u32::from_le_bytes(bytes[place(FILES)].try_into().unwrap()) as usize;
    let shared = at + 4 * FILES + offset;
    for index in 0..FILES {
        let offset = (shared - place(index).start) as u32;
        bytes[place(index)].copy_from_slice(&offset.to_le_bytes());
        // each entry is sound; so are few of them
        if index == 0 {
            let ztoc = Ztoc::from_vec(bytes.clone()).unwrap();
            assert_eq!(ztoc.entries().filter(|entry| entry.name() == name).count(), 2);
        }
    }
    assert_eq!(Ztoc::from_vec(bytes).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_fetch_that_fails_or_lies() {
    let layer = &LAYERS[1];
    let ztoc = Ztoc::from_vec(layer.ztoc.clone()).unwrap();
    let range = || ztoc.find(b"d/f").unwrap().data();
    let error = ztoc.extract(range(), &mut |_, _| Err(io::Error::other("gone"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "gone");
    let error = ztoc.extract(range(), &mut |_, range| Ok(vec![0; (range.end - range.start) as usize]));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Corrupt);
    let behind = UncompressedOffset(0)..UncompressedOffset(ztoc.uncompressed_size() + 1);
    assert_eq!(ztoc.extract(behind, &mut |_, _| unreachable!()).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_sink_that_fails() {
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for layer in &*LAYERS {
        let mut builder = ztoc::Builder::new(layer.compression, &Options::default()).unwrap();
        assert_eq!(builder.push(&layer.bytes, &mut Full).unwrap_err().kind(), ErrorKind::Io);
    }
}

/// A map of a file can change after it was opened.
#[test]
fn bytes_that_change_under_us() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Changing {
        versions: Vec<Vec<u8>>,
        now: AtomicUsize,
    }
    impl AsRef<[u8]> for Changing {
        fn as_ref(&self) -> &[u8] {
            &self.versions[self.now.load(Ordering::Relaxed)]
        }
    }
    const EMPTY: usize = 1;
    for layer in &*LAYERS {
        let len = layer.ztoc.len();
        let versions = vec![
            layer.ztoc.clone(),
            vec![0xff; len],
            vec![0; len],
            vec![1; len],
            Vec::new(),
            vec![3; len / 2],
        ];
        let count = versions.len();
        let bytes = Arc::new(Changing { versions, now: AtomicUsize::new(0) });
        let ztoc = Ztoc::open(bytes.clone()).unwrap();
        let names = ztoc.entries().map(|entry| entry.name().len()).sum::<usize>();
        assert!(names > 0);
        for version in 1..count {
            bytes.now.store(version, Ordering::Relaxed);
            ask::everything(&ztoc, &layer.bytes);
            assert_eq!(ztoc.as_bytes().len(), bytes.versions[version].len());
        }
        bytes.now.store(EMPTY, Ordering::Relaxed);
        assert!(ztoc.entries().all(|entry| entry.name().is_empty() && entry.data().is_empty()));
    }
}
