//! Whatever goes in comes out: random tars, compressed in random ways and pushed in random pieces, are read
//! back through their ztocs and compared with the tar itself.

use proptest::prelude::*;
use ztoc::{Builder, Built, Compression, EntryKind, Options, SpanId, UncompressedOffset, Ztoc};

use crate::layers::{Header, end, file, gzip, gzip_literals, gzip_stored, hex, pax, sha256};

#[derive(Clone, Debug)]
enum Kind {
    File {
        noise: bool,
        len: usize,
        pax: bool,
    },
    Directory,
    Symlink,
    /// To the member before, or a file if there is none.
    HardLink,
    Device,
    Fifo,
}

/// How a member comes to its name.
#[derive(Clone, Debug)]
enum Name {
    Short,
    /// Any bytes but NUL, in a PAX record.
    Record(Vec<u8>),
    /// The same, in a GNU long name.
    Long(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Member {
    kind: Kind,
    name: Name,
}

#[derive(Clone, Debug)]
enum Packing {
    Plain,
    Stored { block: usize },
    Literals { block: usize },
    Compressed { levels: Vec<u32>, cuts: Vec<prop::sample::Index> },
}

#[derive(Clone, Debug)]
struct Case {
    members: Vec<Member>,
    padding: usize,
    packing: Packing,
    span_size: u64,
    pieces: Vec<usize>,
}

fn kind() -> impl Strategy<Value = Kind> {
    let len = prop_oneof![1 => Just(0), 4 => 0..2000usize, 4 => 0..200_000usize, 1 => 300_000..700_000usize];
    prop_oneof![
        6 => (any::<bool>(), len, any::<bool>())
            .prop_map(|(noise, len, pax)| Kind::File { noise, len, pax }),
        1 => Just(Kind::Directory),
        1 => Just(Kind::Symlink),
        1 => Just(Kind::HardLink),
        1 => Just(Kind::Device),
        1 => Just(Kind::Fifo),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    let odd = || prop::collection::vec(1..=255u8, 1..400);
    prop_oneof![2 => Just(Name::Short), 1 => odd().prop_map(Name::Record), 1 => odd().prop_map(Name::Long)]
}

fn member() -> impl Strategy<Value = Member> {
    (kind(), name()).prop_map(|(kind, name)| Member { kind, name })
}

fn packing() -> impl Strategy<Value = Packing> {
    prop_oneof![
        1 => Just(Packing::Plain),
        1 => (1..60_000usize).prop_map(|block| Packing::Stored { block }),
        1 => (1000..60_000usize).prop_map(|block| Packing::Literals { block }),
        4 => (prop::collection::vec(0..10u32, 1..4), prop::collection::vec(any::<prop::sample::Index>(), 3))
            .prop_map(|(levels, cuts)| Packing::Compressed { levels, cuts }),
    ]
}

prop_compose! {
    fn case()(
        members in prop::collection::vec(member(), 0..8),
        padding in prop_oneof![Just(0), 0..100_000usize],
        packing in packing(),
        span_size in prop_oneof![1..3000u64, 1000..300_000u64],
        pieces in prop::collection::vec(prop_oneof![1..20usize, 1..100_000usize], 1..8),
    ) -> Case {
        Case { members, padding, packing, span_size, pieces }
    }
}

/// Bytes that do or do not compress.
fn data(noise: bool, len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if noise { (state >> 32) as u8 } else { (state >> 40) as u8 & 3 }
    };
    (0..len).map(next).collect()
}

struct Expected {
    name: Vec<u8>,
    kind: EntryKind,
    link: Vec<u8>,
    data: Vec<u8>,
}

/// The tar, and what is in it.
fn tar(case: &Case) -> (Vec<u8>, Vec<Expected>) {
    let mut tar = Vec::new();
    let mut expected: Vec<Expected> = Vec::new();
    for (index, member) in case.members.iter().enumerate() {
        let short = format!("m{index}");
        let before = expected.last().map(|before| before.name.clone());
        let (typeflag, kind, link, data) = match (&member.kind, before) {
            (Kind::File { noise, len, .. }, _) => {
                (b'0', EntryKind::Regular, Vec::new(), data(*noise, *len, index as u64 + 1))
            }
            (Kind::Directory, _) => (b'5', EntryKind::Directory, Vec::new(), Vec::new()),
            (Kind::Symlink, _) => (b'2', EntryKind::Symlink, b"m0".to_vec(), Vec::new()),
            (Kind::HardLink, Some(before)) => (b'1', EntryKind::HardLink, before, Vec::new()),
            (Kind::HardLink, None) => (b'0', EntryKind::Regular, Vec::new(), Vec::new()),
            (Kind::Device, _) => (b'3', EntryKind::CharDevice, Vec::new(), Vec::new()),
            (Kind::Fifo, _) => (b'6', EntryKind::Fifo, Vec::new(), Vec::new()),
        };
        let mut records: Vec<(&str, &[u8])> = Vec::new();
        if matches!(member.kind, Kind::File { pax: true, .. }) {
            records.extend([("mtime", &b"1.5"[..]), ("SCHILY.xattr.user.x", &b"\xffy\0"[..])]);
        }
        let name = match &member.name {
            Name::Short => short.clone().into_bytes(),
            Name::Record(name) => {
                records.push(("path", name));
                name.clone()
            }
            Name::Long(name) => {
                tar.extend(Header::new("././@LongLink", b'L', name.len() as u64).gnu().with(name));
                name.clone()
            }
        };
        if !records.is_empty() {
            tar.extend(pax(&records));
        }
        if !link.is_empty() {
            tar.extend(Header::new("././@LongLink", b'K', link.len() as u64).gnu().with(&link));
        }
        tar.extend(Header::new(&short, typeflag, data.len() as u64).with(&data));
        expected.push(Expected { name, kind, link, data });
    }
    tar.extend(end());
    tar.resize(tar.len() + case.padding, 0);
    (tar, expected)
}

fn pack(packing: &Packing, tar: &[u8]) -> (Vec<u8>, Compression) {
    let layer = match packing {
        Packing::Plain => return (tar.to_vec(), Compression::Uncompressed),
        Packing::Stored { block } => gzip_stored(tar, *block),
        Packing::Literals { block } => gzip_literals(tar, *block),
        Packing::Compressed { levels, cuts } => {
            // not within the first byte: an empty first member is refused
            let mut cuts: Vec<_> = cuts.iter().map(|cut| 1 + cut.index(tar.len())).collect();
            cuts.truncate(levels.len() - 1);
            cuts.extend([0, tar.len()]);
            cuts.sort_unstable();
            let parts = cuts.windows(2).zip(levels.iter().cycle());
            parts.flat_map(|(cut, level)| gzip(&tar[cut[0]..cut[1]], *level)).collect()
        }
    };
    (layer, Compression::Gzip)
}

/// Pushes the layer in pieces of the lengths given, over and over; gives what the sink got too.
fn build_in_pieces(layer: &[u8], compression: Compression, case: &Case) -> (Built, Vec<u8>) {
    let options = Options { span_size: case.span_size, ..Options::default() };
    let mut builder = Builder::new(compression, &options).unwrap();
    let mut sink = Vec::new();
    let mut rest = layer;
    // tiny pieces of a large layer take long
    let least = layer.len() / 2000;
    for piece in case.pieces.iter().cycle() {
        let (now, later) = rest.split_at(rest.len().min(piece + least));
        builder.push(now, &mut sink).unwrap();
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    (builder.finish(&mut sink).unwrap(), sink)
}

fn check(case: &Case, ranges: &[(prop::sample::Index, prop::sample::Index)]) {
    let (tar, expected) = tar(case);
    let (layer, compression) = pack(&case.packing, &tar);
    let (built, inflated) = build_in_pieces(&layer, compression, case);
    assert!(inflated == tar, "the sink got the tar");
    assert_eq!(hex(&built.whole.unwrap().diff_id), sha256(&tar));
    assert_eq!(hex(&built.whole.unwrap().layer), sha256(&layer));
    assert_eq!((built.compressed_size, built.uncompressed_len), (layer.len() as u64, tar.len() as u64));
    let options = Options { span_size: case.span_size, ..Options::default() };
    let whole = ztoc::build(&layer[..], compression, &options).unwrap();
    assert!(whole.ztoc == built.ztoc, "pieces make no difference");

    let ztoc = Ztoc::from_vec(built.ztoc).unwrap();
    assert_eq!(ztoc.uncompressed_size(), (tar.len() - case.padding) as u64);
    ztoc.verify_prefix(&layer[..ztoc.prefix().end.0 as usize]).unwrap();
    check_spans(&ztoc, &layer, &tar);

    let mut fetched = 0;
    let mut extract = |start: u64, end: u64| {
        let range = UncompressedOffset(start)..UncompressedOffset(end);
        let bytes = ztoc.extract(range, &mut |_, range| {
            fetched += 1;
            Ok(layer[range.start.0 as usize..range.end.0 as usize].to_vec())
        });
        bytes.unwrap()
    };
    assert_eq!(ztoc.len(), expected.len());
    for (entry, Expected { name, kind, link, data }) in ztoc.entries().zip(&expected) {
        assert_eq!((entry.name(), entry.kind(), entry.link_target()), (&name[..], *kind, &link[..]));
        assert!(extract(entry.data().start.0, entry.data().end.0) == *data);
        entry.verify_header(&extract(entry.header().start.0, entry.header().end.0)).unwrap();
    }
    for (a, b) in ranges {
        let size = ztoc.uncompressed_size() as usize + 1;
        let (start, end) = (a.index(size).min(b.index(size)), a.index(size).max(b.index(size)));
        assert!(extract(start as u64, end as u64) == tar[start..end]);
    }
    assert!(fetched > 0 || ranges.is_empty());
}

/// Every span is its part of the tar, and all of them are all of it.
fn check_spans(ztoc: &Ztoc, layer: &[u8], tar: &[u8]) {
    let spans = ztoc.spans();
    let mut all = Vec::new();
    for span in (0..spans.len()).map(SpanId) {
        let range = spans.compressed(span);
        let compressed = &layer[range.start.0 as usize..range.end.0 as usize];
        let range = spans.uncompressed(span);
        let mut out = Vec::new();
        ztoc.inflate_span(span, compressed, &mut out).unwrap();
        assert!(out == tar[range.start.0 as usize..range.end.0 as usize], "span {span}");
        if span.0 + 1 < spans.len() {
            assert!(out.len() as u64 > spans.span_size() || ztoc.compression() == Compression::Uncompressed);
            all.extend(out);
            continue;
        }
        let tail = (tar.len() - all.len()).saturating_sub(out.len()) as u64;
        ztoc.inflating_to_the_end(compressed, tail).and_then(|it| it.all(&mut all)).unwrap();
        if tail > 0 {
            ztoc.inflating_to_the_end(compressed, tail - 1)
                .and_then(|it| it.all(&mut Vec::new()))
                .unwrap_err();
        }
    }
    assert!(all == tar, "the spans and the tail are the tar");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers(
        case in case(),
        ranges in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..10),
    ) {
        check(&case, &ranges);
    }
}

/// Large enough for many output buffers, and for spans of several blocks.
#[test]
fn a_large_layer() {
    let members = vec![
        Member { kind: Kind::File { noise: false, len: 3 << 20, pax: false }, name: Name::Short },
        Member { kind: Kind::File { noise: true, len: 2 << 20, pax: true }, name: Name::Short },
    ];
    let packing = Packing::Compressed { levels: vec![6], cuts: Vec::new() };
    let case = Case { members, padding: 0, packing, span_size: 1 << 20, pieces: vec![70_000] };
    let ranges = (0..0).map(|_: u32| unreachable!()).collect::<Vec<_>>();
    check(&case, &ranges);
}

/// Compressed a thousandfold: the output of few bytes is many buffers.
#[test]
fn a_layer_of_zeros() {
    let tar = [file("zeros", &vec![0; 20 << 20]), end()].concat();
    let layer = gzip(&tar, 9);
    assert!(layer.len() < tar.len() / 500);
    let built = ztoc::build(&layer[..], Compression::Gzip, &Options::default()).unwrap();
    assert_eq!(hex(&built.whole.unwrap().diff_id), sha256(&tar));
    let ztoc = Ztoc::from_vec(built.ztoc).unwrap();
    check_spans(&ztoc, &layer, &tar);
}

/// The old form of a gzip zinfo leaves the first checkpoint out.
#[test]
fn old_zinfo() {
    let tar = [file("f", &data(true, 100_000, 1)), end()].concat();
    let layer = gzip_stored(&tar, 1000);
    let options = Options { span_size: 30_000, ..Options::default() };
    let new = ztoc::build(&layer[..], Compression::Gzip, &options).unwrap().ztoc;
    // the vector is found by its header, shortened by a record in place, and what is left over is not used
    let spans = Ztoc::from_vec(new.clone()).unwrap().spans().len();
    assert_eq!(spans, 4);
    let header = [&spans.to_le_bytes()[..], &30_000u64.to_le_bytes()].concat();
    let at = new.windows(header.len()).position(|bytes| bytes == header).unwrap();
    let record = 32768 + 17;
    let mut old = new.clone();
    old[at - 4..at].copy_from_slice(&(12 + 3 * record as u32).to_le_bytes());
    old.copy_within(at + 12 + record..at + 12 + 4 * record, at + 12);
    assert_ne!(old, new);
    check_spans(&Ztoc::from_vec(old).unwrap(), &layer, &tar);
}
