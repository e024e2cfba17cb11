//! GNU sparse files in their PAX forms: 0.0 and 0.1 with the map in the records, 1.0 with the map in front of
//! the data.
//!
//! The map is read for three reasons: to refuse what Go refuses, to know where the data begins (1.0), and to
//! know whether there are holes. A ztoc has no place for holes, so [`Map::finish`] tells of them and the
//! builder refuses the layer.

use super::{BLOCK, FileEntry, MAX_SPECIAL, record};
use crate::error::Error;

/// The record that holds the map of form 0.1, and into which form 0.0 is folded.
pub(super) const MAP: &[u8] = b"GNU.sparse.map";

/// The repeated records of form 0.0 on their way to one record of form 0.1.
#[derive(Default)]
pub(super) struct Folded {
    values: Vec<Vec<u8>>,
}

impl Folded {
    /// Takes a record if it is one of them.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<bool, Error> {
        let expected_at: usize = match key {
            b"GNU.sparse.offset" => 0,
            b"GNU.sparse.numbytes" => 1,
            _ => return Ok(false),
        };
        if self.values.len() % 2 != expected_at || value.contains(&b',') {
            return Err(bad());
        }
        self.values.push(value.to_vec());
        Ok(true)
    }

    pub(super) fn into_map(self) -> Option<Vec<u8>> {
        (!self.values.is_empty()).then(|| self.values.join(&b','))
    }
}

/// A sparse map, whole or still coming.
#[derive(Debug)]
pub(super) struct Map {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Offsets and lengths in turn.
    Records(Vec<i64>),
    /// The blocks read so far, and how many lines the first of them announces, once it is there.
    Data { text: Vec<u8>, lines: u64, announced: Option<u64> },
}

/// Makes the entry what it is if it is a sparse file: its name and size from the records. Gives its map.
pub(super) fn apply(entry: &mut FileEntry) -> Result<Option<Map>, Error> {
    let value = |key: &[u8]| {
        let found = entry.pax.binary_search_by(|record| record.key.as_slice().cmp(key));
        found.map_or(&[][..], |at| entry.pax[at].value.as_slice())
    };
    let in_data = match (value(b"GNU.sparse.major"), value(b"GNU.sparse.minor")) {
        (b"0", b"0" | b"1") => false,
        (b"1", b"0") => true,
        // without a version, the map tells
        (b"", b"") if !value(MAP).is_empty() => false,
        _ => return Ok(None),
    };
    let source = if in_data {
        Source::Data { text: Vec::new(), lines: 0, announced: None }
    } else {
        let map = value(MAP);
        let numbers = if map.is_empty() { Vec::new() } else { list(map, b',').ok_or_else(bad)? };
        let count = record::integer(value(b"GNU.sparse.numblocks")).ok_or_else(bad)?;
        if count.checked_mul(2) != i64::try_from(numbers.len()).ok() {
            return Err(bad());
        }
        Source::Records(numbers)
    };
    let name = value(b"GNU.sparse.name").to_vec();
    let size = match value(b"GNU.sparse.size") {
        b"" => value(b"GNU.sparse.realsize"),
        size => size,
    };
    if !size.is_empty() {
        entry.size = record::integer(size).ok_or_else(bad)?;
    }
    if !name.is_empty() {
        entry.name = name;
    }
    Ok(Some(Map { source }))
}

impl Map {
    /// Whether the map is at the front of the data.
    pub(super) fn in_data(&self) -> bool {
        matches!(self.source, Source::Data { .. })
    }

    /// Takes a block of data; true when the map is complete.
    pub(super) fn push(&mut self, block: &[u8]) -> Result<bool, Error> {
        let Source::Data { text, lines, announced } = &mut self.source else { return Ok(true) };
        text.extend_from_slice(block);
        *lines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
        // read once: the line may be as long as the map
        if *lines > 0 && announced.is_none() {
            let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let count = record::integer(first).and_then(|count| u64::try_from(count).ok()).ok_or_else(bad)?;
            *announced = Some(count.checked_mul(2).ok_or_else(bad)?);
        }
        if announced.is_some_and(|announced| announced < *lines) {
            return Ok(true);
        }
        if text.len() as u64 + BLOCK > MAX_SPECIAL {
            return Err(Error::too_large("read sparse map: longer than 1 MiB"));
        }
        Ok(false)
    }

    /// Checks the map against the size of the file; true when there are holes.
    pub(super) fn finish(self, size: i64) -> Result<bool, Error> {
        let numbers = match self.source {
            Source::Records(numbers) => numbers,
            Source::Data { text, .. } => {
                let mut lines = text.split(|byte| *byte == b'\n');
                let count = lines.next().and_then(record::integer).ok_or_else(bad)?;
                let count = usize::try_from(count).ok().and_then(|count| count.checked_mul(2));
                let lines = lines.take(count.ok_or_else(bad)?);
                lines.map(record::integer).collect::<Option<_>>().ok_or_else(bad)?
            }
        };
        if size < 0 {
            return Err(bad());
        }
        let mut reached = 0;
        let mut data: i64 = 0;
        for pair in numbers.chunks_exact(2) {
            let (offset, length) = (pair[0], pair[1]);
            let end = offset.checked_add(length).ok_or_else(bad)?;
            if offset < reached || length < 0 || end > size {
                return Err(bad());
            }
            (reached, data) = (end, data + length);
        }
        Ok(data < size)
    }
}

fn list(text: &[u8], separator: u8) -> Option<Vec<i64>> {
    text.split(|byte| *byte == separator).map(record::integer).collect()
}

fn bad() -> Error {
    Error::corrupt("read sparse map: bad map")
}
