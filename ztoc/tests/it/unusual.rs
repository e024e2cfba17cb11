//! Layers that are unusual but well formed, and how the builder takes them; `docs/format.md` has the list.

use ztoc::{Builder, Built, Compression, ErrorKind, MTime, Options, UncompressedOffset, Ztoc};

use crate::layers::{Header, end, file, hello, padded, pax};

const GZIP: Compression = Compression::Gzip;
const PLAIN: Compression = Compression::Uncompressed;

fn build(layer: &[u8], compression: Compression, span_size: u64) -> Result<Built, ztoc::Error> {
    ztoc::build(layer, compression, &Options { span_size, ..Options::default() })
}

#[test]
fn ends_of_tars() {
    let tar = hello();
    for (layer, size) in [
        (tar[..1024].to_vec(), 1024),
        (tar[..1536].to_vec(), 1536),
        (tar.clone(), 2048),
        // as Go: the end within the padding of a file is an end
        (tar[..518].to_vec(), 518),
        (tar[..700].to_vec(), 700),
        // nothing is read behind the end
        ([&tar[..], b"anything"].concat(), 2048),
    ] {
        let ztoc = Ztoc::from_vec(build(&layer, PLAIN, 4096).unwrap().ztoc).unwrap();
        assert_eq!((ztoc.len(), ztoc.uncompressed_size()), (1, size));
    }
}

#[test]
fn hard_links_to_nothing_are_refused() {
    for target in ["nothing", "later", "itself"] {
        let link = Header::new("itself", b'1', 0).link(target).close();
        let layer = [link, file("later", b"x"), end()].concat();
        assert_eq!(build(&layer, PLAIN, 4096).unwrap_err().kind(), ErrorKind::Unsupported, "{target}");
    }
    let link = Header::new("b", b'1', 0).link("/d/../a").close();
    let layer = [file("./a", b"x"), link, end()].concat();
    build(&layer, PLAIN, 4096).unwrap();
}

#[test]
fn sparse_files() {
    let sparse = |records: &[(&str, &[u8])], data: &[u8]| {
        [pax(records), file("f", data), file("g", b"x"), end()].concat()
    };
    let form_1 = |map: &str, size: &[u8], data: &[u8]| {
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"real"),
            ("GNU.sparse.realsize", size),
        ];
        sparse(records, &[padded(map.as_bytes()), data.to_vec()].concat())
    };
    // without holes it is an ordinary file behind its map
    let ztoc = Ztoc::from_vec(build(&form_1("1\n0\n3\n", b"3", b"abc"), PLAIN, 4096).unwrap().ztoc).unwrap();
    assert_eq!((ztoc.entry(0).name(), ztoc.entry(0).size()), (&b"real"[..], 3));
    assert_eq!(ztoc.entry(0).data().start, UncompressedOffset(2048));
    let layer = form_1("1\n0\n3\n", b"3", b"abc");
    ztoc.entry(0).verify_header(&layer[..2048]).unwrap();

    for (map, size, kind) in [
        ("1\n1\n3\n", &b"4"[..], ErrorKind::Unsupported),
        ("1\n0\n3\n", b"9999", ErrorKind::Unsupported),
        ("1\n0\n3\n", b"2", ErrorKind::Corrupt),
        ("x\n", b"3", ErrorKind::Corrupt),
        ("-1\n", b"3", ErrorKind::Corrupt),
        ("9223372036854775807\n", b"3", ErrorKind::Corrupt),
        ("2\n0\n2\n1\n1\n", b"3", ErrorKind::Corrupt),
        ("1\n", b"3", ErrorKind::Corrupt),
    ] {
        let error = build(&form_1(map, size, b"abc"), PLAIN, 4096).unwrap_err();
        assert_eq!(error.kind(), kind, "{map:?} {error}");
    }

    // 0.0: repeated records become one; 0.1 has it so
    let folded: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"3"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"1"),
        ("GNU.sparse.offset", b"1"),
        ("GNU.sparse.numbytes", b"2"),
    ];
    let built = build(&sparse(folded, b"abc"), PLAIN, 4096).unwrap();
    let ztoc = Ztoc::from_vec(built.ztoc).unwrap();
    let records: Vec<_> = ztoc.entry(0).pax().collect();
    assert_eq!(records[0], (&b"GNU.sparse.map"[..], &b"0,1,1,2"[..]));
    assert_eq!(records.len(), 3);
    let holes: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"5000"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"0,3")];
    assert_eq!(build(&sparse(holes, b"abc"), PLAIN, 4096).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn dialects() {
    let name = |header: Header| {
        let built = build(&[header.close(), end()].concat(), PLAIN, 4096);
        let ztoc = Ztoc::from_vec(built.unwrap().ztoc).unwrap();
        (String::from_utf8_lossy(ztoc.entry(0).name()).into_owned(), ztoc.entry(0).uname().to_vec())
    };
    let plain = Header::new("n", b'0', 0).owner(0, 0, "u", "g").field(345, b"prefix");
    assert_eq!(name(plain.clone()), ("prefix/n".into(), b"u".to_vec()));
    assert_eq!(name(plain.clone().field(508, b"tar\0")), ("prefix/n".into(), b"u".to_vec()));
    // V7 has neither
    assert_eq!(name(plain.clone().field(257, &[0; 8])), ("n".into(), Vec::new()));
    // GNU has times there; when they are none, it was an old Go that wrote a prefix
    assert_eq!(name(plain.clone().gnu().field(345, b"00000000000\0")), ("n".into(), b"u".to_vec()));
    assert_eq!(name(plain.gnu()), ("prefix/n".into(), b"u".to_vec()));

    // Sun summed signed bytes
    let mut sun = Header::new("\u{e4}", b'0', 0).field(148, b"        ");
    let sum: i64 = sun.0.iter().map(|byte| i64::from(byte.cast_signed())).sum();
    sun = sun.field(148, format!("{sum:06o}\0 ").as_bytes());
    let built = build(&[sun.0.to_vec(), end()].concat(), PLAIN, 4096).unwrap();
    assert_eq!(Ztoc::from_vec(built.ztoc).unwrap().entry(0).name(), "\u{e4}".as_bytes());
}

#[test]
fn records_override_the_header() {
    let records: &[(&str, &[u8])] = &[
        ("uid", b"4294967297"),
        ("gid", b"-1"),
        ("uname", b"\xff\xfe"),
        ("gname", b""),
        ("size", b"2"),
        ("mtime", b"-0.5"),
        ("SCHILY.xattr.security.capability", b"\0\n3 =\n"),
    ];
    let member = Header::new("n", b'0', 9).owner(5, 6, "u", "g").with(b"hi");
    let layer = [pax(&[("path", b"forgotten")]), pax(records), member, end()].concat();
    let built = build(&layer, PLAIN, 4096).unwrap();
    assert!(built.has_xattrs);
    let ztoc = Ztoc::from_vec(built.ztoc).unwrap();
    let entry = ztoc.entry(0);
    assert_eq!((entry.name(), entry.uid(), entry.gid()), (&b"n"[..], 1, u32::MAX));
    assert_eq!((entry.uname(), entry.gname(), entry.size()), (&b"\xff\xfe"[..], &b"g"[..], 2));
    assert_eq!(entry.mtime(), Some(MTime { seconds: -1, nanoseconds: 500_000_000 }));
    assert_eq!(entry.mod_time_text(), b"1969-12-31T23:59:59.5Z");
    assert_eq!(entry.xattrs().collect::<Vec<_>>(), [(&b"security.capability"[..], &b"\0\n3 =\n"[..])]);
    entry.verify_header(&layer[..entry.header().end.0 as usize]).unwrap();
    for (key, value) in [("uid", "x"), ("mtime", "x"), ("atime", "x"), ("size", "-1"), ("path", "a\0")] {
        let layer = [pax(&[(key, value.as_bytes())]), file("n", b""), end()].concat();
        assert_eq!(build(&layer, PLAIN, 4096).unwrap_err().kind(), ErrorKind::Corrupt, "{key}");
    }
}

#[test]
fn opaque_folders_are_noticed() {
    let layer = [file("d/.wh..wh..opq", b""), end()].concat();
    assert!(build(&layer, PLAIN, 4096).unwrap().has_opaque);
    let layer = [file("d/.wh.opq", b""), end()].concat();
    assert!(!build(&layer, PLAIN, 4096).unwrap().has_opaque);
}

#[test]
fn long_special_headers() {
    let long = |typeflag, len: usize| {
        let body = vec![b'n'; len];
        [Header::new("n", typeflag, len as u64).gnu().with(&body), file("f", b""), end()].concat()
    };
    let built = build(&long(b'L', 1 << 20), PLAIN, 4096).unwrap();
    assert_eq!(Ztoc::from_vec(built.ztoc).unwrap().entry(0).name().len(), 1 << 20);
    for typeflag in [b'L', b'K', b'x'] {
        let error = build(&long(typeflag, (1 << 20) + 1), PLAIN, 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }
}

#[test]
fn options_that_make_no_sense() {
    for compression in [GZIP, PLAIN] {
        for span_size in [0, u64::MAX] {
            assert_eq!(build(b"", compression, span_size).unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }
}

/// Others hold them across threads.
#[test]
fn values_can_be_sent() {
    fn sent<T: Send>(_: &T) -> bool {
        true
    }
    fn shared<T: Send + Sync>(_: &T) -> bool {
        true
    }
    let ztoc = Ztoc::from_vec(build(&hello(), PLAIN, 4096).unwrap().ztoc).unwrap();
    assert!(
        shared(&ztoc) && shared(&ztoc.entry(0)) && sent(&Builder::new(GZIP, &Options::default()).unwrap())
    );
}
