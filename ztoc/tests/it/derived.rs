//! More bytes pinned by digest, for layers the original's numbers were not taken of.
//!
//! Offsets and spans are derived by hand; the comments say how. Digests were made by a second implementation of
//! the format page, in another language and with an inflater, a FlatBuffer writer and a tar reader of its own,
//! which also makes every number in `golden`.

use ztoc::{EntryKind, SpanId, UncompressedOffset, Ztoc};

use crate::golden::{GZIP, PLAIN, build, check, compressed, read_hello, starts};
use crate::layers::{Header, end, file, gzip_stored, hello, pax, sha256, stored};

type Found<'a> = (&'a [u8], EntryKind, u64, u64, &'a [u8]);

/// Name, kind, offset, size, link.
fn entries(ztoc: &Ztoc) -> Vec<Found<'_>> {
    let entries = ztoc.entries();
    let found = entries.map(|e| (e.name(), e.kind(), e.data().start.0, e.size(), e.link_target()));
    found.collect()
}

fn gnu_long(typeflag: u8, body: &[u8]) -> Vec<u8> {
    Header::new("././@LongLink", typeflag, body.len() as u64).gnu().with(body)
}

/// Names, links, users and values that are not UTF-8: from the header, from PAX, from GNU headers.
fn not_utf8() -> Vec<u8> {
    let long = [0xfe; 120];
    [
        Header::new("", b'0', 3).field(0, b"caf\xe9").owner(1, 2, "", "g").field(265, b"\xe9").with(b"abc"),
        Header::new("", b'5', 0).field(0, b"\xff\xfe/").mode(0o755).close(),
        Header::new("s", b'2', 0).field(157, b"caf\xe9").close(),
        pax(&[("path", b"\x80\xf0\x28\x8c/n"), ("SCHILY.xattr.user.x", b"\xc3\x28\0")]),
        file("x", b"hi"),
        gnu_long(b'L', &long),
        gnu_long(b'K', b"caf\xe9"),
        Header::new("h", b'1', 0).link("x").close(),
        end(),
    ]
    .concat()
}

#[test]
fn names_that_are_not_utf8() {
    let layer = not_utf8();
    assert_eq!(sha256(&layer), "3eff70153e5fd47cbf255828c151823d8978e3037634eeae5ada527d656d9829");
    let digest = "9daf61c749a926ba7afb8507571813be90be63b40b99e4f2c0cca9e337d93c8e";
    let ztoc = check(&layer, PLAIN, 4096, Some(1376), digest);
    // every header and every body below is one block of 512: the second member begins at 1024, the PAX header
    // at 2048 and its member's own at 3072, the two GNU headers at 4096 and 5120, the last header at 6144
    let expected: [Found<'_>; 5] = [
        (b"caf\xe9", EntryKind::Regular, 512, 3, b""),
        (b"\xff\xfe/", EntryKind::Directory, 1536, 0, b""),
        (b"s", EntryKind::Symlink, 2048, 0, b"caf\xe9"),
        (b"\x80\xf0\x28\x8c/n", EntryKind::Regular, 3584, 2, b""),
        (&[0xfe; 120], EntryKind::HardLink, 6656, 0, b"caf\xe9"),
    ];
    assert_eq!(entries(&ztoc), expected);
    assert_eq!(ztoc.uncompressed_size(), 6656 + 1024);
    assert_eq!((ztoc.entry(0).uname(), ztoc.entry(0).gname()), (&b"\xe9"[..], &b"g"[..]));
    assert_eq!(ztoc.entry(3).xattrs().collect::<Vec<_>>(), [(&b"user.x"[..], &b"\xc3\x28\0"[..])]);
    ztoc.check_hard_links().unwrap();

    // blocks of 2000 bytes are 2005 with their headers; 4000 is the first end of a block above 3000, and at
    // 10 + 2 * 2005; 7680 bytes are four blocks
    let layer = gzip_stored(&layer, 2000);
    let digest = "297faf2147ab440cc114bcf0cb43a9fa7004b0161c8fcb5354b2f475a2789322";
    let ztoc = check(&layer, GZIP, 3000, Some(66904), digest);
    assert_eq!(compressed(&ztoc), [(10, 4020), (4020, 10 + 4 * 5 + 7680 + 8)]);
    assert_eq!(entries(&ztoc), expected);
}

#[test]
fn long_links_devices_and_empty_files() {
    let (target, name) = ([b't'; 150], [b"l/", &[b'n'; 150][..]].concat());
    let layer = [
        file("empty", b""),
        gnu_long(b'K', &[&target[..], b"\0"].concat()),
        Header::new("s", b'2', 0).link("short").close(),
        gnu_long(b'L', &[&name[..], b"\0"].concat()),
        gnu_long(b'K', b"empty\0"),
        Header::new("h", b'1', 0).link("x").close(),
        Header::new("c", b'3', 0).field(329, b"0000004\x000000100\0").close(),
        Header::new("b", b'4', 0).field(329, b"0000010\x000000001\0").close(),
        Header::new("n", b'0', 1).field(345, b"prefix").with(b"z"),
        Header::new("./a/./b/", b'5', 0).mode(0o755).close(),
        end(),
    ]
    .concat();
    assert_eq!(sha256(&layer), "7fa1963cea77c32add6f3e554127f2c6b69730c4877ffe615c63bcc803c09932");
    let digest = "718ca49672eaca779c5a9db45bd7c0665accd05901bd6ab519180fbb07e588bf";
    let ztoc = check(&layer, PLAIN, 4096, Some(1824), digest);
    // one block of 512 for each header and each body
    let expected: [Found<'_>; 7] = [
        (b"empty", EntryKind::Regular, 512, 0, b""),
        (b"s", EntryKind::Symlink, 2048, 0, &target),
        (&name, EntryKind::HardLink, 4608, 0, b"empty"),
        (b"c", EntryKind::CharDevice, 5120, 0, b""),
        (b"b", EntryKind::BlockDevice, 5632, 0, b""),
        (b"prefix/n", EntryKind::Regular, 6144, 1, b""),
        (b"./a/./b/", EntryKind::Directory, 7168, 0, b""),
    ];
    assert_eq!(entries(&ztoc), expected);
    assert_eq!((ztoc.entry(3).device(), ztoc.entry(4).device()), ((4, 64), (8, 1)));
    assert_eq!(ztoc.uncompressed_size(), 7168 + 1024);
    for entry in ztoc.entries() {
        entry.verify_header(&layer[entry.header().start.0 as usize..entry.header().end.0 as usize]).unwrap();
    }
}

/// The checksum of `bytes`, as gzip has it.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[test]
fn members_with_names_and_extra_fields() {
    // flags: extra field, name, comment, and a checksum of the header
    let fixed = |flags| [0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 0xff];
    let first = [&fixed(4 | 8 | 16 | 2)[..], b"\x03\0abc", b"layer.tar\0", b"c\0"].concat();
    let first = [&first[..], &(crc(&first) as u16).to_le_bytes()].concat();
    let second = [&fixed(8)[..], b"x\0"].concat();
    let member = |header: &[u8], data: &[u8]| {
        let trailer = [crc(data), data.len() as u32].map(u32::to_le_bytes);
        [header, &stored(data, true), trailer.as_flattened()].concat()
    };
    let tar = hello();
    let layer = [member(&first, &tar[..1024]), member(&second, &tar[1024..])].concat();
    assert_eq!(sha256(&layer), "613785102035aeae6c48ae79bf262ce7c2282993eaeb17a407a613fa81b2065d");
    let digest = "899c5d1fa98a4977dde112ceba85e19d160c747dbd885a32284ef09bdee9109b";
    let ztoc = check(&layer, GZIP, 1000, Some(66064), digest);
    // 29 = 10 + 5 + 10 + 2 + 2 bytes of header, a block of 1029, a trailer of 8, 12 bytes of header
    assert_eq!(first.len(), 29);
    assert_eq!(compressed(&ztoc), [(29, 1078), (1078, 1078 + 1029 + 8)]);
    assert_eq!(starts(&ztoc), [0, 1024]);
    ztoc.verify_prefix(&layer[..29]).unwrap();
    ztoc.verify_prefix(&layer[..28]).unwrap_err();
    read_hello(&ztoc, &layer);

    let mut wrong = layer;
    wrong[27] ^= 1; // the header's checksum
    build(&wrong, GZIP, 1000).unwrap_err();
}

#[test]
fn an_end_marker_and_nothing_else() {
    let digest = "b9801d474a9e314e3ea0a153179a0aa36cdc2459861624b9b97d3ff5bf80031d";
    let ztoc = check(&end(), PLAIN, 4_194_304, Some(280), digest);
    assert_eq!((ztoc.len(), ztoc.uncompressed_size()), (0, 1024));
    let digest = "6551f8df98931f42c21bf468e8959f85a7caac0ec4eab1dc1ec4e53e4b9b9cca";
    let ztoc = check(&gzip_stored(&end(), 1024), GZIP, 4_194_304, Some(33024), digest);
    assert_eq!(compressed(&ztoc), [(10, 10 + 1029 + 8)]);
    assert_eq!((ztoc.len(), ztoc.uncompressed_size()), (0, 1024));
}

#[test]
fn padding_in_gzip() {
    // ten blocks of 1029 bytes; after the fifth, 5120 is more than 4096, after the tenth the member ends
    let layer = gzip_stored(&[hello(), vec![0; 8192]].concat(), 1024);
    let digest = "cb9d1a191804da2a5f62b07acc1f3654e8b56087b8a12256da714cc9db1806ac";
    let ztoc = check(&layer, GZIP, 4096, Some(66064), digest);
    assert_eq!(compressed(&ztoc), [(10, 10 + 5 * 1029), (10 + 5 * 1029, 10 + 10 * 1029 + 8)]);
    assert_eq!(ztoc.uncompressed_size(), 2048);
    assert!(ztoc.spans().uncompressed(SpanId(1)).is_empty(), "the archive ends before it");
    read_hello(&ztoc, &layer);
}

/// The span sizes that are in use, with a layer that is longer than the largest.
#[test]
fn span_sizes_from_64_kib_to_16_mib() {
    const BLOCK: u64 = 32768;
    let pattern: Vec<u8> = (0..=250).collect();
    let data: Vec<u8> = pattern.into_iter().cycle().take(17 << 20).collect();
    let tar = [file("big", &data), end()].concat();
    let layer = gzip_stored(&tar, BLOCK as usize);
    assert_eq!(sha256(&layer), "b909a0d8e5c160be3e0c311a3c9af5a4fba93fee44afda7634a3343bccc58220");
    let digests = [
        "78dfafe5b7b9c602d44dfc7a2082f25fa2826671607f35fb3ed3ce40e11a073d",
        "80b022847ebb245c9ae7b910ae3405980666a203be1110a7c99916d83909e112",
        "faf04fe746a6be64d8c9ac9a6097402e7c6cb97061efaabb3e8b15419bed3f85",
        "6dd0903e6152f1d5e1618d61d436c81a790ef7a5250d03d8afe21d81b4b1afef",
        "ad0918ecca0a019c92cb01dae8cbc5f6c124debbe12b4503a660bc3a19c43fc2",
        "976782813ecfc7003cd0c95552bf2e405c809ecd09979561209ff863d8bb7d52",
        "de82e0d730e116d703844313d9ce90e15e4bcae48007104465f09c5a30959f04",
        "a1ff8e5f25d37af0fc8da87803983a1012202106cc0826415114054db568d075",
        "d4fe32d971cc3c29928887a36239cd755a1e4e67121f2ef13dd31e89aba32a03",
    ];
    let plain = [
        "2e33fabdfc25e48aa718e83df9f72b7d3e2bd45d373cd9dab034bd3f2c10dc41",
        "4b60d334d217cc87873330babf3c2df3f694adc52afa5fa0edc7efe1afe437bf",
        "b5dae9311fa0380d03e032527b21fce5ae5cbb7bd6c9e09fc26a7f9517b42269",
        "c5a8e7655548bce1b34f99c63161878790c06a812c133ebdb51715908c4e97cc",
        "137419870e11665707304f2f13ad6a7a2ad3995646298cc47080fdb1cc72b418",
        "d3d27c4cb8ac304776a79887ed62eba0ac6d5ecb91d0ed41ad6856f7e4748165",
        "f07ad4a1e56e2d0ccb7a92fa187f6bba3f5ae44cee1e6a1a4e8ea723ca180932",
        "55f92a89d4dd0965f597daa2b282fc475997fca1bc0810fc44d73477871f873c",
        "6daf3c807def8ce4d91f0c243dddd8f914c7f9fd3faf0c9ba19cbee3435734ca",
    ];
    let mut span_size: u64 = 64 << 10;
    for (gzip, plain) in digests.into_iter().zip(plain) {
        let ztoc = check(&layer, GZIP, span_size, None, gzip);
        // spans must be longer than the span size, which is a multiple of the block: by one block; and the
        // block that ends the member is no place to begin
        let span = span_size + BLOCK;
        let blocks = (tar.len() as u64 - 1) / BLOCK;
        let expected: Vec<u64> = (0..=blocks * BLOCK / span).map(|index| index * span).collect();
        assert_eq!(starts(&ztoc), expected);
        let second = 10 + span / BLOCK * (BLOCK + 5);
        assert_eq!(compressed(&ztoc)[..2], [(10, second), (second, compressed(&ztoc)[1].1)]);
        // around the border between the first two spans
        let range = UncompressedOffset(span - 3)..UncompressedOffset(span + 3);
        let bytes = ztoc
            .extract(range, &mut |_, range| Ok(layer[range.start.0 as usize..range.end.0 as usize].to_vec()));
        assert_eq!(bytes.unwrap(), tar[span as usize - 3..span as usize + 3]);

        let ztoc = check(&tar, PLAIN, span_size, None, plain);
        assert_eq!(u64::from(ztoc.spans().len()), (tar.len() as u64).div_ceil(span_size));
        span_size *= 2;
    }
    assert_eq!(span_size, 32 << 20);
}
