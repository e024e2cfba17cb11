//! A whole ztoc around any zinfo: what it says elsewhere is plausible, so that the zinfo is what is looked at.

use flatbuffers::{FlatBufferBuilder, VOffsetT};
use ztoc::{CompressedOffset, SpanId, Ztoc};

use crate::layers::{hex, sha256};

/// The algorithms, as a ztoc numbers them.
pub const GZIP: i8 = 1;
pub const UNCOMPRESSED: i8 = 2;

/// What a ztoc says beside its entries, of which there is one: `hello.txt`.
#[derive(Debug)]
pub struct Assembled<'a> {
    pub algorithm: i8,
    pub zinfo: &'a [u8],
    pub max_span_id: i32,
    pub digests: usize,
    pub compressed_size: i64,
    pub uncompressed_size: i64,
}

impl Assembled<'_> {
    /// The ztoc. Span digests are placeholders, see [`with_right_digests`].
    pub fn encode(&self) -> Vec<u8> {
        let slot = |number: VOffsetT| 4 + 2 * number;
        let mut fbb = FlatBufferBuilder::new();
        let version = fbb.create_byte_string(b"0.9");
        let name = fbb.create_byte_string(b"hello.txt");
        let kind = fbb.create_byte_string(b"reg");
        let entry = fbb.start_table();
        fbb.push_slot_always(slot(0), name);
        fbb.push_slot_always(slot(1), kind);
        fbb.push_slot(slot(2), 512i64, 0);
        fbb.push_slot(slot(3), 6i64, 0);
        let entry = fbb.end_table(entry);
        let entries = fbb.create_vector(&[entry]);
        let toc = fbb.start_table();
        fbb.push_slot_always(slot(0), entries);
        let toc = fbb.end_table(toc);
        // a string is a vector of bytes, and is copied at once
        let zinfo = fbb.create_byte_string(self.zinfo);
        let digests: Vec<_> = (0..self.digests)
            .map(|index| fbb.create_byte_string(format!("sha256:{index:064x}").as_bytes()))
            .collect();
        let digests = fbb.create_vector(&digests);
        let info = fbb.start_table();
        fbb.push_slot(slot(1), self.max_span_id, 0);
        fbb.push_slot_always(slot(2), digests);
        fbb.push_slot_always(slot(3), zinfo);
        fbb.push_slot(slot(0), self.algorithm, GZIP);
        let info = fbb.end_table(info);
        let root = fbb.start_table();
        fbb.push_slot_always(slot(0), version);
        fbb.push_slot_always(slot(4), toc);
        fbb.push_slot(slot(2), self.compressed_size, 0);
        fbb.push_slot(slot(3), self.uncompressed_size, 0);
        fbb.push_slot_always(slot(5), info);
        let root = fbb.end_table(root);
        fbb.finish_minimal(root);
        fbb.finished_data().to_vec()
    }
}

/// Replaces the span digests of a ztoc that opens by those of `layer`, so that its spans are inflated and not
/// only refused. A ztoc that names one digest for several spans keeps some wrong ones.
pub fn with_right_digests(mut bytes: Vec<u8>, layer: &[u8]) -> Vec<u8> {
    // each one is searched for: enough for any ztoc that is made here
    const MOST: u32 = 64;
    let Ok(ztoc) = Ztoc::from_vec(bytes.clone()) else { return bytes };
    for span in (0..ztoc.spans().len().min(MOST)).map(SpanId) {
        let range = ztoc.spans().compressed(span);
        let Some(compressed) = slice(layer, range.start, range.end) else { continue };
        let stated = hex(ztoc.spans().digest(span));
        let Some(at) = bytes.windows(64).position(|text| text == stated.as_bytes()) else { continue };
        bytes[at..at + 64].copy_from_slice(sha256(compressed).as_bytes());
    }
    bytes
}

fn slice(layer: &[u8], start: CompressedOffset, end: CompressedOffset) -> Option<&[u8]> {
    layer.get(usize::try_from(start.0).ok()?..usize::try_from(end.0).ok()?)
}
