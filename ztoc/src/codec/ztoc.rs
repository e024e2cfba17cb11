//! The ztoc as a FlatBuffer, in both directions.
//!
//! Writing creates objects in exactly the order of the original tool, so that the bytes, and the digest, are the same.
//! That is: entries from last to first, strings before the tables that hold them, nothing shared but vtables, defaults left
//! out. Reading checks everything once, in one pass, and leaves the bytes where they
//! are; see [`Ztoc`].

use std::sync::Arc;

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, TableFinishedWIPOffset, Vector, WIPOffset};

use super::{gzip_zinfo, slot, tar_zinfo};
use crate::error::Error;
use crate::flatbuffer::{Table, Vector as FlatVector};
use crate::shrinking_vec::ShrinkingVec;
use crate::toc::{BLOCK, CollectedEntry, EntryKind, FileEntry};
use crate::zinfo::{Compression, MAX_OFFSET, SpanTable, Stated};
use crate::ztoc::{Bytes, MAX_ZTOC_BYTES, Parts, Windows, Ztoc, fields};

/// The version that is written. No reader looks at it.
pub(crate) const VERSION: &[u8] = b"0.9";

/// A whole ztoc but its entries, to be written.
pub(crate) struct Content<'a> {
    pub(crate) version: &'a [u8],
    pub(crate) build_tool: &'a [u8],
    pub(crate) compressed_size: i64,
    pub(crate) uncompressed_size: i64,
    pub(crate) compression: Compression,
    pub(crate) max_span_id: i32,
    pub(crate) digests: &'a [[u8; 32]],
    /// let go as they are written
    pub(crate) checkpoints: ShrinkingVec<u8>,
}

/// One entry, to be written.
pub(crate) struct Row<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: &'a str,
    pub(crate) offset: i64,
    pub(crate) size: i64,
    pub(crate) link: &'a [u8],
    pub(crate) mode: i64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) uname: &'a [u8],
    pub(crate) gname: &'a [u8],
    pub(crate) mod_time: String,
    pub(crate) device: (i64, i64),
    pub(crate) pax: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Row<'a> {
    pub(crate) fn of(entry: CollectedEntry<'a>) -> Row<'a> {
        Row {
            name: entry.name,
            kind: entry.numbers.kind.as_str(),
            // a stream of 2^63 bytes does not come by
            offset: i64::try_from(entry.numbers.offset).unwrap_or(i64::MAX),
            size: entry.numbers.size,
            link: entry.link,
            mode: entry.numbers.mode,
            uid: entry.numbers.uid,
            gid: entry.numbers.gid,
            uname: entry.uname,
            gname: entry.gname,
            mod_time: entry.numbers.mtime.to_text(),
            device: entry.numbers.device,
            pax: entry.records,
        }
    }
}

/// How many bytes of a ztoc an entry becomes, at most, and hardly less. Vtables are not counted: entries share
/// them, and there are few (see [`VTABLES`]).
pub(crate) fn encoded_len(entry: &FileEntry) -> u64 {
    // a length, the bytes, a NUL, padding
    let string = |len: usize| (4 + len + 1).next_multiple_of(4) as u64;
    // an offset in the table or the vector, besides
    let strings = [&entry.name, &entry.link, &entry.uname, &entry.gname].map(|bytes| 4 + string(bytes.len()));
    let fixed = [entry.kind.as_str().len(), LONGEST_TIME].map(|len| 4 + string(len));
    let records = entry.pax.iter().map(|record| 16 + string(record.key.len()) + string(record.value.len()));
    let numbers =
        [entry.size, entry.mode, entry.device.0, entry.device.1].iter().filter(|n| **n != 0).count();
    let table = 4 + 8 + 8 * numbers as u64 + 8 + 3 * 4; // vtable, offset, numbers, owner and group, padding
    let vectors = 4 + 4 + 4; // of the records, and a place in that of the entries
    strings.iter().chain(&fixed).sum::<u64>() + records.sum::<u64>() + table + vectors
}

const LONGEST_TIME: usize = "2006-01-02T15:04:05.999999999Z".len();

/// Room for every vtable there can be: which of seven numbers are there, and how they are padded.
pub(crate) const VTABLES: u64 = 16 * 1024;

/// Writes a ztoc. `rows` hands over the entries, from the last to the first. `capacity` is a guess at the length; it
/// has no influence on the bytes. The caller has made sure that they fit into [`MAX_ZTOC_BYTES`].
pub(crate) fn encode(
    content: Content<'_>,
    rows: impl FnOnce(&mut dyn FnMut(&Row<'_>)),
    capacity: usize,
) -> Vec<u8> {
    let mut fbb = FlatBufferBuilder::with_capacity(capacity);
    let version = fbb.create_byte_string(content.version);
    let build_tool = fbb.create_byte_string(content.build_tool);

    let mut tables = Vec::new();
    rows(&mut |row| tables.push(encode_row(&mut fbb, row)));
    tables.reverse();
    let metadata = encode_offsets(&mut fbb, &tables);
    let toc = fbb.start_table();
    fbb.push_slot_always(slot(0), metadata);
    let toc = fbb.end_table(toc);
    drop(tables);

    let checkpoints = encode_bytes(&mut fbb, content.checkpoints);
    let digests: Vec<_> =
        content.digests.iter().map(|digest| fbb.create_byte_string(digest_text(digest).as_bytes())).collect();
    let digests = encode_offsets(&mut fbb, &digests);
    let algorithm: i8 = match content.compression {
        Compression::Gzip => GZIP,
        Compression::Uncompressed => UNCOMPRESSED,
    };
    let info = fbb.start_table();
    fbb.push_slot(slot(1), content.max_span_id, 0);
    fbb.push_slot_always(slot(2), digests);
    fbb.push_slot_always(slot(3), checkpoints);
    fbb.push_slot(slot(0), algorithm, GZIP);
    let info = fbb.end_table(info);

    let root = fbb.start_table();
    fbb.push_slot_always(slot(0), version);
    fbb.push_slot_always(slot(1), build_tool);
    fbb.push_slot_always(slot(4), toc);
    fbb.push_slot(slot(2), content.compressed_size, 0);
    fbb.push_slot(slot(3), content.uncompressed_size, 0);
    fbb.push_slot_always(slot(5), info);
    let root = fbb.end_table(root);
    fbb.finish_minimal(root);
    // in place: a copy would double the memory at the peak
    let (mut bytes, start) = fbb.collapse();
    bytes.drain(..start);
    bytes.shrink_to_fit();
    bytes
}

const GZIP: i8 = 1;
const UNCOMPRESSED: i8 = 2;

type Finished = WIPOffset<TableFinishedWIPOffset>;

fn encode_row(fbb: &mut FlatBufferBuilder<'_>, row: &Row<'_>) -> Finished {
    let name = fbb.create_byte_string(row.name);
    let kind = fbb.create_byte_string(row.kind.as_bytes());
    let link = fbb.create_byte_string(row.link);
    let uname = fbb.create_byte_string(row.uname);
    let gname = fbb.create_byte_string(row.gname);
    let mod_time = fbb.create_byte_string(row.mod_time.as_bytes());
    let records: Vec<Finished> = row
        .pax
        .iter()
        .map(|(key, value)| {
            let key = fbb.create_byte_string(key);
            let value = fbb.create_byte_string(value);
            let table = fbb.start_table();
            fbb.push_slot_always(slot(0), key);
            fbb.push_slot_always(slot(1), value);
            fbb.end_table(table)
        })
        .collect();
    let records = encode_offsets(fbb, &records);
    let table = fbb.start_table();
    fbb.push_slot_always(slot(0), name);
    fbb.push_slot_always(slot(1), kind);
    fbb.push_slot(slot(2), row.offset, 0);
    fbb.push_slot(slot(3), row.size, 0);
    fbb.push_slot_always(slot(4), link);
    fbb.push_slot(slot(5), row.mode, 0);
    fbb.push_slot(slot(6), row.uid, 0);
    fbb.push_slot(slot(7), row.gid, 0);
    fbb.push_slot_always(slot(8), uname);
    fbb.push_slot_always(slot(9), gname);
    fbb.push_slot_always(slot(10), mod_time);
    fbb.push_slot(slot(11), row.device.0, 0);
    fbb.push_slot(slot(12), row.device.1, 0);
    fbb.push_slot_always(slot(13), records);
    fbb.end_table(table)
}

/// A vector of bytes, written from its end as every vector is.
fn encode_bytes<'f>(
    fbb: &mut FlatBufferBuilder<'f>,
    mut bytes: ShrinkingVec<u8>,
) -> WIPOffset<Vector<'f, u8>> {
    /// So many are written before they are let go.
    const PART: usize = 1 << 20;
    let len = bytes.len();
    fbb.start_vector::<u8>(len);
    while !bytes.is_empty() {
        let rest = bytes.len().saturating_sub(PART);
        for byte in bytes[rest..].iter().rev() {
            fbb.push(*byte);
        }
        bytes.truncate(rest);
    }
    fbb.end_vector::<u8>(len)
}

fn encode_offsets<'f, T>(
    fbb: &mut FlatBufferBuilder<'f>,
    offsets: &[WIPOffset<T>],
) -> WIPOffset<Vector<'f, ForwardsUOffset<T>>> {
    fbb.create_vector(offsets)
}

const DIGEST_PREFIX: &str = "sha256:";

fn digest_text(digest: &[u8; 32]) -> String {
    use std::fmt::Write;
    digest.iter().fold(DIGEST_PREFIX.to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

/// Lower-case hexadecimal only: digests are compared as texts by others.
fn digest_bytes(text: &[u8]) -> Option<[u8; 32]> {
    let hex = text.strip_prefix(DIGEST_PREFIX.as_bytes())?;
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut digest = [0; 32];
    if hex.len() != 2 * digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(digest)
}

impl Ztoc {
    /// Opens a ztoc over bytes it shares, a memory map or a vector, which are used in place from then on.
    ///
    /// Everything is checked here, once: bounds, entries that overlap, checkpoints, the span table, sizes.
    /// Whether hard links have targets is another question: [`Ztoc::check_hard_links`]. Should the bytes
    /// change later, values are wrong, but nothing panics.
    pub fn open(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Result<Ztoc, Error> {
        let parts = decode((*bytes).as_ref())?;
        Ok(Ztoc::from_parts(bytes, parts))
    }

    /// Opens a ztoc in a vector, see [`Ztoc::open`].
    pub fn from_vec(bytes: Vec<u8>) -> Result<Ztoc, Error> {
        let bytes: Bytes = Arc::new(bytes);
        Ztoc::open(bytes)
    }
}

fn decode(bytes: &[u8]) -> Result<Parts, Error> {
    if bytes.len() as u64 > MAX_ZTOC_BYTES {
        return Err(Error::too_large("read ztoc: larger than any that can be built"));
    }
    let malformed = || Error::corrupt("read ztoc: malformed");
    let root = Table::root(bytes).ok_or_else(malformed)?;
    let toc = root.table(4).flatten().ok_or_else(malformed)?;
    let info = root.table(5).flatten().ok_or_else(malformed)?;
    let size = |slot| root.i64(slot).and_then(|size| u64::try_from(size).ok()).ok_or_else(malformed);
    let (compressed_size, uncompressed_size) = (size(2)?, size(3)?);
    let within = |part: &[u8]| {
        let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
        start..start + part.len()
    };

    let digests = info.vector(2).ok_or_else(malformed)?;
    let digests = (0..digests.len())
        .map(|index| digests.string(index).and_then(digest_bytes))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::corrupt("read ztoc: a span digest that is no SHA-256"))?;
    let max_span_id = info.i32(1).ok_or_else(malformed)?;
    let zinfo = info.bytes(3).ok_or_else(malformed)?;
    let stated = |span_size| Stated { span_size, compressed_size, uncompressed_size, max_span_id, digests };
    let algorithm = info.i8(0, GZIP).ok_or_else(malformed)?;
    let (compression, spans, first_implied) = match algorithm {
        GZIP => {
            let decoded = gzip_zinfo::decode(zinfo)?;
            let spans = SpanTable::gzip(stated(decoded.span_size), decoded.checkpoints)?;
            (Compression::Gzip, spans, decoded.first_implied)
        }
        UNCOMPRESSED => {
            let (span_size, size) = tar_zinfo::decode(zinfo)?;
            (Compression::Uncompressed, SpanTable::plain(stated(span_size), size)?, false)
        }
        _ => return Err(Error::unsupported("read ztoc: unknown compression")),
    };
    Ok(Parts {
        version: root.bytes(0).map(within).ok_or_else(malformed)?,
        build_tool: root.bytes(1).map(within).ok_or_else(malformed)?,
        compression,
        compressed_size,
        uncompressed_size,
        entries: decode_entries(bytes, toc.vector(0).ok_or_else(malformed)?)?,
        windows: Windows {
            first: within(zinfo).start + gzip_zinfo::FIRST_WINDOW,
            stride: gzip_zinfo::RECORD,
            first_implied,
        },
        spans,
    })
}

/// Checks every entry and gives the places of their tables, in the order of their offsets.
fn decode_entries(bytes: &[u8], vector: FlatVector<'_>) -> Result<Vec<u32>, Error> {
    let mut left = Left::of(bytes);
    let mut entries = Vec::with_capacity(vector.len());
    let mut sorted = true;
    let mut last = 0;
    for index in 0..vector.len() {
        let checked = vector.table(index).and_then(|table| check_entry(&table, &mut left));
        let (position, offset, end) =
            checked.ok_or_else(|| Error::corrupt("read toc: malformed or impossible entry"))?;
        sorted &= last <= offset;
        last = offset;
        entries.push((offset, end, position));
    }
    // the original does not trust the order either
    if !sorted {
        entries.sort_by_key(|(offset, ..)| *offset);
    }
    let mut next = 0;
    for (offset, end, _) in &entries {
        if next > *offset {
            return Err(Error::corrupt("read toc: entries overlap"));
        }
        next = *end;
    }
    Ok(entries.into_iter().map(|(.., position)| position).collect())
}

/// What all entries together may still hold. Tables and strings can be named many times over: without limits a
/// small ztoc could stand for any number of long names, and a walk over them would not end.
struct Left {
    records: usize,
    text: usize,
}

impl Left {
    /// Every record takes at least 8 bytes of its own where records are not shared, as they never are. Texts
    /// are not shared by the builder, but others may write a user's name, or the target of many links, once.
    fn of(bytes: &[u8]) -> Left {
        Left { records: bytes.len() / 8, text: bytes.len().saturating_mul(16) }
    }

    fn text(&mut self, text: &[u8]) -> Option<()> {
        self.text = self.text.checked_sub(text.len())?;
        Some(())
    }
}

/// Checks one entry; gives the place of its table, its offset, and where the next header can begin.
fn check_entry(table: &Table<'_>, left: &mut Left) -> Option<(u32, u64, u64)> {
    for text in [fields::NAME, fields::LINK, fields::UNAME, fields::GNAME, fields::MOD_TIME] {
        left.text(table.bytes(text)?)?;
    }
    EntryKind::from_bytes(table.bytes(fields::KIND)?)?;
    for number in [fields::MODE, fields::DEVMAJOR, fields::DEVMINOR] {
        table.i64(number)?;
    }
    table.u32(fields::UID)?;
    table.u32(fields::GID)?;
    let offset = u64::try_from(table.i64(fields::OFFSET)?).ok()?;
    let size = u64::try_from(table.i64(fields::SIZE)?).ok()?;
    let end = offset.checked_add(size)?.checked_next_multiple_of(BLOCK)?;
    let records = table.vector(fields::PAX)?;
    left.records = left.records.checked_sub(records.len())?;
    for index in 0..records.len() {
        let record = records.table(index)?;
        left.text(record.bytes(0)?)?;
        left.text(record.bytes(1)?)?;
    }
    let position = u32::try_from(table.position()).ok()?;
    (end <= MAX_OFFSET).then_some((position, offset, end))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// The format on its own, without a layer: two entries of nothing, and spans that are not there.
    #[test]
    fn serialisation_only() {
        let row = || Row {
            name: b"",
            kind: "",
            offset: 0,
            size: 0,
            link: b"",
            mode: 0,
            uid: 0,
            gid: 0,
            uname: b"",
            gname: b"",
            mod_time: "0001-01-01T00:00:00Z".to_owned(),
            device: (0, 0),
            pax: Vec::new(),
        };
        let content = || Content {
            version: VERSION,
            build_tool: b"AWS SOCI CLI",
            compressed_size: 2_000_000,
            uncompressed_size: 2_500_000,
            compression: Compression::Gzip,
            max_span_id: 3,
            digests: &[],
            checkpoints: vec![0; 65536].into(),
        };
        let rows = |each: &mut dyn FnMut(&Row<'_>)| [row(), row()].iter().for_each(each);
        let bytes = encode(content(), rows, 0);
        assert_eq!(bytes.len(), 65928);
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        assert_eq!(
            digest_text(&digest),
            "sha256:eba28fdf50b1b57543f57dd051b2468c1d4f57b64d2006c75aa4de1d03e6c7ec"
        );
        assert_eq!(encode(content(), rows, 1 << 20), bytes);
    }

    #[test]
    fn digests_as_text() {
        let text = "sha256:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff";
        let digest = digest_bytes(text.as_bytes()).unwrap();
        assert_eq!(digest_text(&digest), text);
        for bad in
            ["", "sha256:", &text[..70], &text.to_uppercase(), &text.replace('f', "F"), &format!("{text}0")]
        {
            assert_eq!(digest_bytes(bad.as_bytes()), None, "{bad}");
        }
    }
}
