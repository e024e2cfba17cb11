//! Where the targets begin: the layers of ztoc's tests and what is built from them, in the form each target
//! reads.

use std::io::Write;

use ztoc::{Compression, Options};

use crate::layers::{
    Header, end, file, gzip, gzip_literals, gzip_stored, hello, member, padded, pax, stored, zoo,
};

/// The length of a checkpoint's window.
pub const WINDOW: usize = 32768;
/// The length of a checkpoint in a zinfo, without its window.
pub const RECORD: usize = 17;

/// A layer, and what it inflates to.
#[derive(Debug)]
pub struct Layer {
    pub bytes: Vec<u8>,
    pub inflated: Vec<u8>,
}

/// Tars that hold everything a tar can.
pub fn tars() -> Vec<Vec<u8>> {
    let sparse = [
        pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"3")]),
        file("s", &[padded(b"1\n0\n3\n"), b"abc".to_vec()].concat()),
        pax(&[("GNU.sparse.size", b"3"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"0,3")]),
        file("t", b"abc"),
        end(),
    ];
    let odd = [
        pax(&[("uid", b"4294967297"), ("size", b"2"), ("mtime", b"-0.5"), ("linkpath", b"x")]),
        Header::new("n", b'0', 9).owner(5, 6, "u", "g").with(b"hi"),
        Header::new("././@LongLink", b'K', 9).gnu().with(b"long link"),
        Header::new("k", b'2', 0).gnu().close(),
        Header::new("p", b'0', 1).field(345, b"prefix").field(508, b"tar\0").with(b"x"),
        end(),
    ];
    vec![hello(), zoo(), sparse.concat(), odd.concat(), [hello(), vec![0; 1000]].concat()]
}

/// A tar of a few thousand bytes whose entries lie in several spans.
fn several() -> Vec<u8> {
    let text: Vec<u8> = (0..3000u32).map(|at| b'a' + (at * at % 23) as u8).collect();
    [file("hello.txt", b"hello\n"), file("text", &text), file("x", &[b'x'; 1500]), end()].concat()
}

/// Gzipped layers, each in another manner.
pub fn gzipped() -> Vec<Layer> {
    let tar = several();
    let mut named = flate2::GzBuilder::new()
        .filename("name")
        .extra(vec![1, 2, 3])
        .write(Vec::new(), flate2::Compression::new(6));
    named.write_all(&tar).expect("writing to memory");
    let members = [gzip(&tar[..2000], 1), gzip_stored(&tar[2000..2600], 200), gzip(&tar[2600..], 9)].concat();
    let layers = [
        gzip_stored(&tar, 700),
        gzip_literals(&tar, 500),
        members,
        named.finish().expect("writing to memory"),
        gzip_literals(&tar, 133),
    ];
    layers.into_iter().map(|bytes| Layer { bytes, inflated: tar.clone() }).collect()
}

/// A ztoc of a layer.
pub fn ztoc(layer: &[u8], compression: Compression, span_size: u64) -> Vec<u8> {
    let options = Options { span_size, ..Options::default() };
    ztoc::build(layer, compression, &options).expect("a layer of ours").ztoc
}

/// The zinfo of a gzipped layer without its windows.
pub fn records(layer: &[u8], span_size: u64) -> Vec<u8> {
    let bytes = ztoc(layer, Compression::Gzip, span_size);
    let count = ztoc::Ztoc::from_vec(bytes.clone()).expect("a ztoc of ours").spans().len();
    let header = [&count.to_le_bytes()[..], &span_size.to_le_bytes()].concat();
    let at = bytes.windows(header.len()).position(|part| part == header).expect("it has a zinfo");
    let records = bytes[at + header.len()..].chunks(RECORD + WINDOW).take(count as usize);
    records.fold(header, |all, record| [&all, &record[..RECORD]].concat())
}

/// For the target `ztoc`: its numbers, the ztoc (a window of zeros taken out), the layer.
pub fn ztocs() -> Vec<Vec<u8>> {
    let plain = tars().into_iter().chain([Vec::new()]).map(|tar| {
        let ztoc = ztoc(&tar, Compression::Uncompressed, 1000);
        encode_ztoc(0, 0, &ztoc, &tar)
    });
    let gzipped =
        [gzip_stored(&hello(), 300), gzip(&zoo(), 6), member(&stored(b"", true), b"")].map(|layer| {
            let ztoc = ztoc(&layer, Compression::Gzip, 1 << 20);
            let zeros = [0; WINDOW];
            let at = ztoc.windows(WINDOW).position(|part| part == zeros).expect("the first window is empty");
            encode_ztoc(1, at, &[&ztoc[..at], &ztoc[at + WINDOW..]].concat(), &layer)
        });
    plain.chain(gzipped).collect()
}

fn encode_ztoc(mode: u8, at: usize, ztoc: &[u8], layer: &[u8]) -> Vec<u8> {
    let shorts = [at, ztoc.len()].map(|number| (number as u16).to_le_bytes());
    [&[mode | 2][..], shorts.as_flattened(), ztoc, layer].concat()
}

/// For the target `gzip_zinfo`: which layer, no changes to the rest, the zinfo without windows.
pub fn gzip_zinfos() -> Vec<Vec<u8>> {
    let layers = gzipped();
    let all = layers.iter().enumerate().flat_map(|(index, layer)| {
        [300, 900, 1 << 20]
            .map(|span_size| [&[index as u8, 0][..], &records(&layer.bytes, span_size)].concat())
    });
    all.collect()
}

/// For the target `tar_zinfo`: how many digests, no changes to the rest, the zinfo as the format page has it.
pub fn tar_zinfos() -> Vec<Vec<u8>> {
    let front = [20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 28, 0, 24, 0, 12, 0, 4, 0, 10, 0, 0, 0];
    let all = [512u64, 4096, 1 << 20].map(|span_size| {
        let digests = [2048u64.div_ceil(span_size) as u8, 0];
        let numbers = [2048, span_size].map(u64::to_le_bytes);
        [&digests[..], &front, numbers.as_flattened(), &[0, 0, 0, 0, 2, 0, 0, 0]].concat()
    });
    all.into()
}

/// For the target `tar_toc`: span size, lengths of pieces, the tar.
pub fn tar_tocs() -> Vec<Vec<u8>> {
    tars().into_iter().map(|tar| [&[0, 4, 100, 1, 200, 37][..], &tar].concat()).collect()
}

/// For the target `gzip_checkpoints`: mode, span size, lengths of pieces, the layer.
pub fn gzip_checkpoints() -> Vec<Vec<u8>> {
    let whole = gzipped().into_iter().map(|layer| [&[0, 100, 0, 9, 1, 77, 200][..], &layer.bytes].concat());
    // the deflate stream alone, behind the header and before the trailer
    let streams = [gzip_literals(&several(), 300), gzip(&several(), 6), gzip(&several(), 1)]
        .map(|layer| [&[1, 100, 0, 9, 1, 77, 200][..], &layer[10..layer.len() - 8]].concat());
    let blocks = [&[2, 50, 0, 9, 1, 77, 200][..], &several()[..2000]].concat();
    whole.chain(streams).chain([blocks]).collect()
}
