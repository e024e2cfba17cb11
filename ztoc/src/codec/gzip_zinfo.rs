//! The checkpoints of a gzipped layer as bytes: a header of two numbers, then one record for each checkpoint.
//!
//! The header is the count (`i32`) and the span size (`i64`). A record is the compressed offset (`i64`), the
//! uncompressed offset (`i64`), the number of unused bits (`u8`) and the window (32768 bytes). All numbers are little
//! endian. There is no version: the length tells whether the first checkpoint is there (today) or left out
//! and implied to follow a gzip header of ten bytes (the old form). Windows are not copied, only located.

use crate::error::Error;
use crate::gzip::{Checkpoint, WINDOW};
use crate::shrinking_vec::ShrinkingVec;

const HEADER: usize = 12;
/// The length of a record, and so the distance between two windows.
pub(crate) const RECORD: usize = 17 + WINDOW;
/// Where the first window that is stored is.
pub(crate) const FIRST_WINDOW: usize = HEADER + RECORD - WINDOW;

/// Collects checkpoints as they are found.
pub(crate) struct Writer {
    blob: ShrinkingVec<u8>,
    count: i32,
}

impl Writer {
    pub(crate) fn new() -> Writer {
        let mut blob = ShrinkingVec::default();
        blob.extend_from_slice(&[0; HEADER]);
        Writer { blob, count: 0 }
    }

    /// How long the bytes are by now.
    pub(crate) fn len(&self) -> usize {
        self.blob.len()
    }

    pub(crate) fn count(&self) -> i32 {
        self.count
    }

    pub(crate) fn push(&mut self, checkpoint: Checkpoint, window: &[u8]) {
        self.blob.extend_from_slice(&checkpoint.input.to_le_bytes());
        self.blob.extend_from_slice(&checkpoint.output.to_le_bytes());
        self.blob.extend_from_slice(&[checkpoint.bits]);
        self.blob.extend_from_slice(window);
        self.count += 1;
    }

    pub(crate) fn finish(mut self, span_size: u64) -> ShrinkingVec<u8> {
        self.blob[..4].copy_from_slice(&self.count.to_le_bytes());
        self.blob[4..HEADER].copy_from_slice(&span_size.to_le_bytes());
        self.blob
    }
}

/// Checkpoints, and whether the first is among the records.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) span_size: u64,
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// Whether the first checkpoint is implied, and has a window of zeros.
    pub(crate) first_implied: bool,
}

pub(crate) fn decode(blob: &[u8]) -> Result<Decoded, Error> {
    decode_blob(blob).ok_or_else(|| Error::corrupt("read gzip zinfo: wrong length or impossible number"))
}

fn decode_blob(blob: &[u8]) -> Option<Decoded> {
    let (header, records) = blob.split_first_chunk::<HEADER>()?;
    let have = i32::from_le_bytes(*header.first_chunk::<4>()?);
    let have = usize::try_from(have).ok().filter(|have| *have > 0)?;
    let span_size = offset(&header[4..])?;
    let first_implied = records.len() == (have - 1).checked_mul(RECORD)?;
    if !first_implied && records.len() != have.checked_mul(RECORD)? {
        return None;
    }
    let mut checkpoints = Vec::with_capacity(have);
    if first_implied {
        checkpoints.push(Checkpoint { input: 10, output: 0, bits: 0 });
    }
    for record in records.chunks_exact(RECORD) {
        checkpoints.push(Checkpoint {
            input: offset(record)?,
            output: offset(&record[8..])?,
            bits: record[16],
        });
    }
    Some(Decoded { span_size, checkpoints, first_implied })
}

fn offset(bytes: &[u8]) -> Option<u64> {
    u64::try_from(i64::from_le_bytes(*bytes.first_chunk()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(have: i32, records: usize) -> Vec<u8> {
        let mut blob = [&have.to_le_bytes()[..], &7u64.to_le_bytes()].concat();
        for record in 1..=records as u64 {
            blob.extend([record * 100, record * 10].iter().flat_map(|number| number.to_le_bytes()));
            blob.push(3);
            blob.extend([record as u8; WINDOW]);
        }
        blob
    }

    #[test]
    fn both_forms() {
        let new = decode(&blob(2, 2)).unwrap();
        assert!(!new.first_implied);
        assert_eq!(new.span_size, 7);
        assert_eq!(new.checkpoints[1], Checkpoint { input: 200, output: 20, bits: 3 });

        let old = decode(&blob(3, 2)).unwrap();
        assert!(old.first_implied);
        assert_eq!(old.checkpoints[0], Checkpoint { input: 10, output: 0, bits: 0 });
        assert_eq!(old.checkpoints[1], Checkpoint { input: 100, output: 10, bits: 3 });
        assert_eq!(decode(&blob(1, 0)).unwrap().checkpoints.len(), 1);
    }

    #[test]
    fn lengths_that_fit_neither_form() {
        for (have, records, cut) in [(0, 0, 0), (-1, 0, 0), (3, 1, 0), (1, 2, 0), (1, 1, 1), (i32::MAX, 1, 0)]
        {
            let blob = blob(have, records);
            assert!(decode(&blob[..blob.len() - cut]).is_err(), "{have} {records} {cut}");
        }
        assert!(decode(&[0; 11]).is_err());
    }
}
