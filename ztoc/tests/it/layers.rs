//! Tars and gzip files written by hand, so that every byte is known and no compressor has a say.

use std::io::Write;

use sha2::{Digest, Sha256};

/// The gzip header every file here begins with.
pub(crate) const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One header block; every field can be set before it is closed.
#[derive(Clone)]
pub(crate) struct Header(pub(crate) [u8; 512]);

impl Header {
    pub(crate) fn new(name: &str, typeflag: u8, size: u64) -> Header {
        let mut header = Header([0; 512]);
        header = header.field(0, name.as_bytes()).field(257, b"ustar\x0000");
        header.0[156] = typeflag;
        header
            .mode(0o644)
            .octal(108, 7, 0)
            .octal(116, 7, 0)
            .octal(329, 7, 0)
            .octal(337, 7, 0)
            .size(size)
            .mtime(0)
    }

    pub(crate) fn field(mut self, at: usize, bytes: &[u8]) -> Header {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn octal(self, at: usize, digits: usize, value: u64) -> Header {
        self.field(at, format!("{value:0digits$o}\0").as_bytes())
    }

    pub(crate) fn mode(self, mode: u64) -> Header {
        self.octal(100, 7, mode)
    }

    pub(crate) fn owner(self, uid: u64, gid: u64, uname: &str, gname: &str) -> Header {
        self.octal(108, 7, uid).octal(116, 7, gid).field(265, uname.as_bytes()).field(297, gname.as_bytes())
    }

    pub(crate) fn size(self, size: u64) -> Header {
        self.octal(124, 11, size)
    }

    pub(crate) fn mtime(self, mtime: u64) -> Header {
        self.octal(136, 11, mtime)
    }

    pub(crate) fn link(self, target: &str) -> Header {
        self.field(157, target.as_bytes())
    }

    pub(crate) fn gnu(self) -> Header {
        self.field(257, b"ustar  \0")
    }

    /// The block, with its checksum.
    pub(crate) fn close(mut self) -> Vec<u8> {
        self = self.field(148, b"        ");
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.field(148, format!("{sum:06o}\0 ").as_bytes()).0.to_vec()
    }

    /// The block and its data.
    pub(crate) fn with(self, data: &[u8]) -> Vec<u8> {
        [self.close(), padded(data)].concat()
    }
}

pub(crate) fn padded(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().next_multiple_of(512), 0);
    bytes
}

/// A regular file.
pub(crate) fn file(name: &str, data: &[u8]) -> Vec<u8> {
    Header::new(name, b'0', data.len() as u64).with(data)
}

/// A PAX header with these records, in this order.
pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = 1 + key.len() + 1 + value.len() + 1;
        // the length counts its own digits
        let len = (1..).map(|digits| rest + digits).find(|len| len.to_string().len() + rest == *len).unwrap();
        body.extend_from_slice(format!("{len} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    Header::new("PaxHeaders.0/x", b'x', body.len() as u64).with(&body)
}

/// The end of a tar.
pub(crate) fn end() -> Vec<u8> {
    vec![0; 1024]
}

/// The tar of most test vectors: one file, `hello.txt`.
pub(crate) fn hello() -> Vec<u8> {
    [file("hello.txt", b"hello\n"), end()].concat()
}

/// One member of every kind, in every dialect (V12).
pub(crate) fn zoo() -> Vec<u8> {
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.user.b", b"2"),
        ("SCHILY.xattr.user.a", b"1"),
        ("mtime", b"1700000000.123456789"),
        ("path", b"dir/longname"),
        ("LIBARCHIVE.x", b""),
    ];
    let long = [b"l/".to_vec(), vec![b'n'; 150], vec![0]].concat();
    [
        Header::new("./dir/", b'5', 0).mode(0o755).mtime(1_700_000_000).close(),
        Header::new("./dir/f", b'0', 3)
            .mode(0o4755)
            .owner(1000, 1001, "u", "g")
            .mtime(1_700_000_000)
            .with(b"abc"),
        Header::new("dir/s", b'2', 0).mode(0o777).link("f").close(),
        Header::new("dir/h", b'1', 0).link("dir/f").close(),
        Header::new("dir/c", b'3', 0).close(),
        Header::new("dir/b", b'4', 0).close(),
        Header::new("dir/p", b'6', 0).close(),
        pax(records),
        file("x", b"hi"),
        Header::new("old/", 0, 0).mode(0o755).close(),
        Header::new("old/f", 0, 1).with(b"z"),
        Header::new("././@LongLink", b'L', long.len() as u64).gnu().with(&long),
        Header::new("l/nnn", b'0', 4).gnu().with(b"long"),
        end(),
    ]
    .concat()
}

/// A gzip member around deflate blocks made by hand.
pub(crate) fn member(blocks: &[u8], data: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    [&GZIP_HEADER[..], blocks, &crc.sum().to_le_bytes(), &(data.len() as u32).to_le_bytes()].concat()
}

/// A stored deflate block.
pub(crate) fn stored(data: &[u8], last: bool) -> Vec<u8> {
    let len = u16::try_from(data.len()).unwrap();
    [&[u8::from(last)][..], &len.to_le_bytes(), &(!len).to_le_bytes(), data].concat()
}

/// A member of stored blocks of `block` bytes each.
pub(crate) fn gzip_stored(data: &[u8], block: usize) -> Vec<u8> {
    let count = data.len().div_ceil(block);
    let blocks = data.chunks(block).enumerate().map(|(index, part)| stored(part, index + 1 == count));
    member(&blocks.collect::<Vec<_>>().concat(), data)
}

/// A member of blocks with fixed Huffman codes, literals only, so that blocks end in the middle of a byte.
pub(crate) fn gzip_literals(data: &[u8], block: usize) -> Vec<u8> {
    let mut bits: Vec<bool> = Vec::new();
    let count = data.chunks(block).count();
    for (index, part) in data.chunks(block).enumerate() {
        bits.extend([index + 1 == count, true, false]);
        for byte in part {
            let (code, len) = match u16::from(*byte) {
                short @ 0..144 => (0x30 + short, 8),
                long => (0x190 + long - 144, 9),
            };
            bits.extend((0..len).rev().map(|bit| code >> bit & 1 == 1));
        }
        bits.extend([false; 7]);
    }
    let bytes = bits
        .chunks(8)
        .map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | u8::from(*bit) << at));
    member(&bytes.collect::<Vec<_>>(), data)
}

/// A member made by a compressor.
pub(crate) fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}
