//! The bytes that the original tool makes, pinned by digest. Layers are built by hand from the format; the
//! numbers were taken from the original once.

use ztoc::{
    Built, CompressedOffset, Compression, EntryKind, ErrorKind, MTime, Options, SpanId, UncompressedOffset,
    Ztoc,
};

use crate::layers::{Header, end, file, gzip_literals, gzip_stored, hello, hex, member, sha256, stored, zoo};

pub(crate) const GZIP: Compression = Compression::Gzip;
pub(crate) const PLAIN: Compression = Compression::Uncompressed;

pub(crate) fn build(layer: &[u8], compression: Compression, span_size: u64) -> Result<Built, ztoc::Error> {
    ztoc::build(layer, compression, &Options { span_size, ..Options::default() })
}

/// Builds, compares the length and the digest of the ztoc, and opens it.
pub(crate) fn check(
    layer: &[u8],
    compression: Compression,
    span_size: u64,
    len: Option<usize>,
    digest: &str,
) -> Ztoc {
    let built = build(layer, compression, span_size).unwrap();
    assert_eq!(sha256(&built.ztoc), digest);
    if let Some(len) = len {
        assert_eq!(built.ztoc.len(), len);
    }
    assert_eq!(hex(&built.whole.unwrap().layer), sha256(layer));
    assert_eq!(built.compressed_size, layer.len() as u64);
    let ztoc = Ztoc::from_vec(built.ztoc).unwrap();
    assert_eq!(ztoc.version(), b"0.9");
    assert_eq!(ztoc.build_tool(), b"AWS SOCI CLI v0.2");
    assert_eq!(ztoc.compression(), compression);
    assert_eq!(ztoc.spans().span_size(), span_size);
    ztoc
}

pub(crate) fn compressed(ztoc: &Ztoc) -> Vec<(u64, u64)> {
    let ranges = (0..ztoc.spans().len()).map(|span| ztoc.spans().compressed(SpanId(span)));
    ranges.map(|range| (range.start.0, range.end.0)).collect()
}

pub(crate) fn starts(ztoc: &Ztoc) -> Vec<u64> {
    (0..ztoc.spans().len()).map(|span| ztoc.spans().uncompressed(SpanId(span)).start.0).collect()
}

fn digests(ztoc: &Ztoc) -> Vec<String> {
    (0..ztoc.spans().len()).map(|span| hex(ztoc.spans().digest(SpanId(span)))).collect()
}

/// The bytes of `hello.txt`, through its spans.
pub(crate) fn read_hello(ztoc: &Ztoc, layer: &[u8]) {
    let entry = ztoc.find(b"hello.txt").unwrap();
    let bytes = ztoc.extract(entry.data(), &mut |_, range| {
        Ok(layer[range.start.0 as usize..range.end.0 as usize].to_vec())
    });
    assert_eq!(bytes.unwrap(), b"hello\n");
}

#[test]
fn base_tar() {
    assert_eq!(sha256(&hello()), "fa01e42d19005c93c2a6fc09347768cc08a524c9a3d7cc27b5b992321e01474a");
}

#[test]
fn v1_one_stored_block() {
    let layer = gzip_stored(&hello(), 2048);
    assert_eq!(layer.len(), 2071);
    assert_eq!(sha256(&layer), "57907f9575ecf8d880444a27790799b512a7d46398905e565d13038d66d3b061");
    let ztoc = check(
        &layer,
        GZIP,
        4_194_304,
        Some(33200),
        "3da338d98e6659ffdde98f633089d35aa95d7a97b00325aa9c8d5d0798bb5c02",
    );
    assert_eq!(compressed(&ztoc), [(10, 2071)]);
    assert_eq!(digests(&ztoc), ["146d2125518900390c3e949fecda87e3fa8583b1f4f3b48d1e62c3fdf720fc52"]);
    assert_eq!((ztoc.compressed_size(), ztoc.uncompressed_size()), (2071, 2048));
    ztoc.verify_prefix(&layer[..10]).unwrap();
    ztoc.verify_prefix(&layer[..9]).unwrap_err();
    read_hello(&ztoc, &layer);

    let entry = ztoc.entry(0);
    assert_eq!(
        (entry.name(), entry.kind(), entry.size(), entry.mode()),
        (&b"hello.txt"[..], EntryKind::Regular, 6, 420)
    );
    assert_eq!(entry.data(), UncompressedOffset(512)..UncompressedOffset(518));
    assert_eq!(entry.header(), UncompressedOffset(0)..UncompressedOffset(512));
    assert_eq!(entry.mod_time_text(), b"1970-01-01T00:00:00Z");
    assert_eq!(entry.pax().count(), 0);

    let built = build(&layer, GZIP, 4_194_304).unwrap();
    assert_eq!(hex(&built.whole.unwrap().diff_id), sha256(&hello()));
    assert!(!built.has_xattrs && !built.has_opaque);
}

#[test]
fn v2_stored_blocks() {
    let layer = gzip_stored(&hello(), 512);
    assert_eq!(layer.len(), 2086);
    assert_eq!(sha256(&layer), "7c330ed16b577a8502c132764fa50ffefe2dc95104b8993eee32f938372c59ee");
    let ztoc = check(
        &layer,
        GZIP,
        511,
        Some(131_800),
        "005fb1f0f2ba07f333d4e8efd04b213e1ca81a4f46e4fd5d133d1adb1a0e59ad",
    );
    assert_eq!(compressed(&ztoc), [(10, 527), (527, 1044), (1044, 1561), (1561, 2086)]);
    assert_eq!(starts(&ztoc), [0, 512, 1024, 1536]);
    assert_eq!(ztoc.spans().covering(ztoc.entry(0).data()), 1..2);
    read_hello(&ztoc, &layer);
}

#[test]
fn v3_blocks_that_end_within_a_byte() {
    let layer = gzip_literals(&hello(), 512);
    assert_eq!(layer.len(), 2071);
    assert_eq!(sha256(&layer), "afcbd10da10c8720ff56f21f7ef20164f4f8173afaa5a09676afadf14ceefdd7");
    let ztoc = check(
        &layer,
        GZIP,
        511,
        Some(131_800),
        "fb469096a52e292212f8fea623adf6977b5282f6bed77da5e0b656feb88af4a3",
    );
    assert_eq!(compressed(&ztoc), [(10, 524), (523, 1037), (1036, 1550), (1549, 2071)]);
    read_hello(&ztoc, &layer);

    let ztoc = check(
        &layer,
        GZIP,
        512,
        Some(66064),
        "a511f6513691438b6297954d904c3d02039e7d96e2a09495792c80588dc9c95c",
    );
    assert_eq!(compressed(&ztoc), [(10, 1037), (1036, 2071)]);
    assert_eq!(starts(&ztoc), [0, 1024]);
    assert_eq!(
        digests(&ztoc),
        [
            "39bb6e6a0e9f0921e938d2d2e0030700347a8f89041980a35e52f1ced69cc07f",
            "38262b6090d5cf3fa7c7dc0c15153ca7bced588f35aa69d8f6a1e762a54bb59b",
        ]
    );
    read_hello(&ztoc, &layer);
}

#[test]
fn v4_two_members() {
    let tar = hello();
    let layer = [gzip_stored(&tar[..1024], 1024), gzip_stored(&tar[1024..], 1024)].concat();
    assert_eq!(layer.len(), 2094);
    assert_eq!(sha256(&layer), "384f6fabe123920c6ff191e9ea2fd758bed73d8040729783d67eb3ac0559920d");
    // the window of the second span is part of the digest: it holds the data of the first member
    let ztoc =
        check(&layer, GZIP, 1000, None, "0116172f4e3bffc17502481250062ee0daec8529a0d1aa71926789c21ed43e5d");
    assert_eq!(compressed(&ztoc), [(10, 1057), (1057, 2094)]);
    read_hello(&ztoc, &layer);
    let window_at = |ztoc: &Ztoc| {
        let window = [vec![0; 31744], tar[..1024].to_vec()].concat();
        assert_eq!(sha256(&window), "e86144008e9dcc85959222ce3fe7a4d57c8c995fd99a8476142d1bdfcf65decc");
        ztoc.as_bytes().windows(window.len()).position(|bytes| bytes == window)
    };
    assert!(window_at(&ztoc).is_some());

    let one = Ztoc::from_vec(build(&layer, GZIP, 1024).unwrap().ztoc).unwrap();
    assert_eq!(compressed(&one), [(10, 2094)]);
    read_hello(&one, &layer);
}

#[test]
fn v5_what_is_not_gzip_to_its_end() {
    let layer = gzip_stored(&hello(), 2048);
    for tail in [&b"garbage"[..], &[0; 512], &[0]] {
        let error = build(&[&layer, tail].concat(), GZIP, 4_194_304).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    for len in [0, 1, 9, 10, 100, layer.len() - 8, layer.len() - 1] {
        let error = build(&layer[..len], GZIP, 4_194_304).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}");
    }
    for at in [layer.len() - 8, layer.len() - 1] {
        let mut wrong = layer.clone();
        wrong[at] ^= 1;
        assert_eq!(build(&wrong, GZIP, 4_194_304).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn v6_a_layer_that_begins_with_an_empty_block_is_refused() {
    let tar = hello();
    let empty_block = member(&[stored(b"", false), stored(&tar, true)].concat(), &tar);
    let empty_member = [member(&stored(b"", true), b""), gzip_stored(&tar, 2048)].concat();
    assert_eq!(empty_member.len(), 23 + 2071);
    for layer in [empty_block, empty_member] {
        assert_eq!(build(&layer, GZIP, 4_194_304).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn v7_padding_behind_the_end() {
    let layer = [hello(), vec![0; 8192]].concat();
    let ztoc = check(
        &layer,
        PLAIN,
        4096,
        Some(616),
        "c682993e65ee345a053663693378504dd72a9f42d57336b0e2bc9b6996d148f0",
    );
    assert_eq!((ztoc.compressed_size(), ztoc.uncompressed_size()), (10240, 2048));
    assert_eq!(compressed(&ztoc), [(0, 4096), (4096, 8192), (8192, 10240)]);
    // the archive ends before the last span begins
    assert!(ztoc.spans().uncompressed(SpanId(2)).is_empty());
    let built = build(&layer, PLAIN, 4096).unwrap();
    assert_eq!(built.uncompressed_len, 10240);
    assert_eq!(hex(&built.whole.unwrap().diff_id), sha256(&layer));
    read_hello(&ztoc, &layer);
}

#[test]
fn v8_plain_tar() {
    let layer = hello();
    let ztoc = check(
        &layer,
        PLAIN,
        1024,
        Some(536),
        "08b90ee9f68d7e145b07629c4a3f400c2ef3cce5f7d7e6a66f9d2a4fe9cc6a06",
    );
    assert_eq!(
        digests(&ztoc),
        [
            "f3afcfc779543ef75c3754fa02e8c8860c086d2a4569f20d188d0e01c40517dc",
            "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
        ]
    );
    let zinfo = "140000000000000000000a001c0018000c0004000a00000000080000000000000004000000000000\
                 0000000002000000";
    assert!(hex(ztoc.as_bytes()).contains(zinfo));
    read_hello(&ztoc, &layer);
    check(
        &layer,
        PLAIN,
        4_194_304,
        Some(456),
        "02b672497d058029ac60eb6ae6d86de525d4baa4134600735559775b19fa3fac",
    );
    check(&layer, PLAIN, 4096, Some(456), "0c4e0435f7d0d384321c3ea43cb4bc2f9d3b21c54aa047210792881420b29388");
}

#[test]
fn v9_no_bytes_at_all() {
    let ztoc = check(
        b"",
        PLAIN,
        4096,
        Some(164),
        "cdc1f40da3b8614fa5296c976cf14b110a1ac442c9b16ec3ba585fca1b53c887",
    );
    let expected = "14000000100014001000 0c00000000000800 0400\
                    100000001c0000005c0000006400000078000000\
                    0c00140007001000 0c000800\
                    0c00000000000002100000000800 0000ffffffff\
                    00000000\
                    20000000\
                    0c00000008001400100004000800000000100000000000000000000002000000\
                    0000\
                    060008000400\
                    0600000004000000\
                    00000000\
                    11000000 41575320534f434920434c4920763 02e32 000000\
                    03000000 302e3900";
    assert_eq!(hex(ztoc.as_bytes()), expected.replace(' ', ""));
    assert!(ztoc.spans().is_empty() && ztoc.is_empty());
    assert_eq!(ztoc.spans().covering(UncompressedOffset(0)..UncompressedOffset(5)), 0..0);
    let mut out = Vec::new();
    assert!(ztoc.inflating_to_the_end(b"", 0).is_err());
    ztoc.inflate_span(SpanId(0), b"", &mut out).unwrap_err();
}

#[test]
fn v10_gzip_of_nothing() {
    let layer = member(&stored(b"", true), b"");
    assert_eq!(layer.len(), 23);
    let ztoc = check(
        &layer,
        GZIP,
        4_194_304,
        Some(33016),
        "02cb6b1c14a28fdbe30826fb2db01dbd4a579645140087be6a949b0f376d83f1",
    );
    assert_eq!(compressed(&ztoc), [(10, 23)]);
    assert_eq!((ztoc.len(), ztoc.uncompressed_size()), (0, 0));
}

#[test]
fn v12_entry_zoo() {
    let layer = zoo();
    assert_eq!(sha256(&layer), "b9bb986df6c798857bb0770795423e9fb7a342da0e68bd94ae79d66ad865cf9c");
    let ztoc = check(
        &layer,
        PLAIN,
        4096,
        Some(2560),
        "8efd08b7165f08d6ac7fbafa0f7e2ea2106cb1e544e9e182415d5e0dc709828c",
    );
    check(
        &layer,
        PLAIN,
        4_194_304,
        Some(2400),
        "3b489538e3dd881c42857ebfe1b85c6dfd7b34d9f40760bd021e1ab0bbc6acf4",
    );
    assert_eq!(ztoc.uncompressed_size(), 10752);

    let long_name = format!("l/{}", "n".repeat(150));
    let expected = [
        ("./dir/", EntryKind::Directory, 512, 0),
        ("./dir/f", EntryKind::Regular, 1024, 3),
        ("dir/s", EntryKind::Symlink, 2048, 0),
        ("dir/h", EntryKind::HardLink, 2560, 0),
        ("dir/c", EntryKind::CharDevice, 3072, 0),
        ("dir/b", EntryKind::BlockDevice, 3584, 0),
        ("dir/p", EntryKind::Fifo, 4096, 0),
        ("dir/longname", EntryKind::Regular, 5632, 2),
        ("old/", EntryKind::Directory, 6656, 0),
        ("old/f", EntryKind::Regular, 7168, 1),
        (&long_name, EntryKind::Regular, 9216, 4),
    ];
    let found: Vec<_> = ztoc
        .entries()
        .map(|entry| {
            (std::str::from_utf8(entry.name()).unwrap(), entry.kind(), entry.data().start.0, entry.size())
        })
        .collect();
    assert_eq!(found, expected);
    let headers: Vec<_> = ztoc.entries().map(|entry| entry.header().start.0).collect();
    assert_eq!(headers, [0, 512, 1536, 2048, 2560, 3072, 3584, 4096, 6144, 6656, 7680]);

    let owned = ztoc.entry(1);
    assert_eq!(
        (owned.mode(), owned.uid(), owned.gid(), owned.uname(), owned.gname()),
        (2541, 1000, 1001, &b"u"[..], &b"g"[..])
    );
    assert_eq!(ztoc.entry(0).mod_time_text(), b"2023-11-14T22:13:20Z");
    assert_eq!((ztoc.entry(2).link_target(), ztoc.entry(3).link_target()), (&b"f"[..], &b"dir/f"[..]));
    let with_pax = ztoc.entry(7);
    assert_eq!(with_pax.mtime(), Some(MTime { seconds: 1_700_000_000, nanoseconds: 123_456_789 }));
    let keys: Vec<_> = with_pax.pax().map(|(key, _)| String::from_utf8_lossy(key)).collect();
    assert_eq!(keys, ["LIBARCHIVE.x", "SCHILY.xattr.user.a", "SCHILY.xattr.user.b", "mtime", "path"]);
    assert_eq!(with_pax.xattrs().collect::<Vec<_>>(), [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"2")]);
    assert!(with_pax.has_xattrs() && !owned.has_xattrs());
    let built = build(&layer, PLAIN, 4096).unwrap();
    assert!(built.has_xattrs && !built.has_opaque);
    ztoc.check_hard_links().unwrap();
}

#[test]
fn v12_headers_agree_with_the_entries() {
    let layer = zoo();
    let ztoc = Ztoc::from_vec(build(&layer, PLAIN, 4096).unwrap().ztoc).unwrap();
    for entry in ztoc.entries() {
        let area = entry.header().start.0 as usize..entry.header().end.0 as usize;
        entry.verify_header(&layer[area.clone()]).unwrap();
        // what is one byte short, one block long, or another entry's
        entry.verify_header(&layer[area.start..area.end - 1]).unwrap_err();
        entry.verify_header(&layer[area.start..area.end + 512]).unwrap_err();
        for other in ztoc.entries().filter(|other| other.index() != entry.index()) {
            let area = other.header().start.0 as usize..other.header().end.0 as usize;
            entry.verify_header(&layer[area]).unwrap_err();
        }
    }
}

#[test]
fn v13_members_that_a_ztoc_cannot_express() {
    let global = Header::new("pax_global_header", b'g', 10).with(b"10 a=bcde\n");
    for (members, flag) in [
        (global, "'g'"),
        (Header::new("f", b'7', 0).close(), "'7'"),
        (Header::new("f", b'S', 0).gnu().close(), "'S'"),
        (Header::new("f", b'V', 0).gnu().close(), "'V'"),
        (Header::new("f", b'M', 0).gnu().close(), "'M'"),
        (Header::new("f", b'D', 0).gnu().close(), "'D'"),
    ] {
        let error = build(&[members, hello()].concat(), PLAIN, 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(flag), "{error}");
    }
}

#[test]
fn v13_broken_tars() {
    let tar = hello();
    for layer in [
        [vec![0; 512], file("f", b"x"), end()].concat(),
        tar[..513].to_vec(),
        tar[..517].to_vec(),
        tar[..100].to_vec(),
        tar[..1025].to_vec(),
        tar[..1537].to_vec(),
        {
            let mut wrong = tar.clone();
            wrong[0] ^= 1; // the checksum no longer holds
            wrong
        },
    ] {
        assert_eq!(
            build(&layer, PLAIN, 4096).unwrap_err().kind(),
            ErrorKind::Corrupt,
            "{} bytes",
            layer.len()
        );
    }
}

#[test]
fn v13_a_hard_link_with_a_size() {
    let data = [b'd'; 600];
    let layer =
        [file("f", &data), Header::new("h", b'1', 600).link("f").close(), file("g", b"x"), end()].concat();
    assert_eq!(build(&layer, PLAIN, 4096).unwrap_err().kind(), ErrorKind::Unsupported);
    // a small one loads, but hides the header of what follows
    let layer =
        [file("f", &data), Header::new("h", b'1', 6).link("f").close(), file("g", b"x"), end()].concat();
    assert_eq!(build(&layer, PLAIN, 4096).unwrap_err().kind(), ErrorKind::Unsupported);
    // at the end there is nothing to hide
    let layer = [file("f", &data), Header::new("h", b'1', 6).link("f").close(), end()].concat();
    assert_eq!(Ztoc::from_vec(build(&layer, PLAIN, 4096).unwrap().ztoc).unwrap().entry(1).size(), 6);
}

#[test]
fn v14_ranges_to_spans() {
    let layer = gzip_literals(&hello(), 512);
    let ztoc = Ztoc::from_vec(build(&layer, GZIP, 512).unwrap().ztoc).unwrap();
    let spans = ztoc.spans();
    for (offset, span) in [(0, 0), (1023, 0), (1024, 1), (1_000_000_000, 1)] {
        assert_eq!(spans.span_of(UncompressedOffset(offset)), SpanId(span));
    }
    let range = |start, end| UncompressedOffset(start)..UncompressedOffset(end);
    assert_eq!(spans.end_span_as_listed(UncompressedOffset(1024)), SpanId(1));
    assert_eq!(spans.covering(range(512, 1024)), 0..1);
    assert_eq!(spans.covering(range(1023, 1025)), 0..2);
    assert_eq!(spans.covering(range(1024, 1024)), 1..1);
    assert_eq!(spans.compressed(SpanId(7)), CompressedOffset(2071)..CompressedOffset(2071));

    let plain = Ztoc::from_vec(build(&hello(), PLAIN, 1024).unwrap().ztoc).unwrap();
    assert_eq!(plain.spans().end_span_as_listed(UncompressedOffset(2048)), SpanId(2));
    assert_eq!(plain.spans().span_of(UncompressedOffset(2048)), SpanId(1));
}
