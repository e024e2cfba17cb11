//! The `spans` file of a layer's folder: which spans are stored, and their checksums.
//!
//! A header with the number of spans and the generation, then 16 bytes a span. A record is written after the bytes of
//! its span. Only the record of the last span has a tail: how many bytes are stored behind it. The caller decides
//! whether the file may be written.

use std::{fs::File, io, os::unix::fs::FileExt};

use ztoc::SpanId;

const MAGIC: [u8; 8] = *b"SOCISPN1";
const HEADER: u64 = 16;
const RECORD: u64 = 16;
const PRESENT: u8 = 1;

/// Whether a span is stored, as its record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoredState {
    Absent,
    Present,
    /// Stored before an unclean stop.
    Unproven,
}

/// The open file.
#[derive(Debug)]
pub(super) struct SpanRecords(File);

impl SpanRecords {
    pub(super) fn new(file: File) -> Self {
        Self(file)
    }

    /// The records of a layer of `count` spans. `None`: the file is not of this shape.
    pub(super) fn read(&self, count: u32, generation: u32) -> Option<Vec<StoredState>> {
        let mut header = [0; HEADER as usize];
        self.0.read_exact_at(&mut header, 0).ok()?;
        if header[..8] != MAGIC || header[8..12] != count.to_le_bytes() {
            return None;
        }
        let is_proven = header[12..16] == generation.to_le_bytes();
        let mut bytes = vec![0; count as usize * RECORD as usize];
        let read = read_up_to(&self.0, &mut bytes, HEADER);
        bytes.truncate(read / RECORD as usize * RECORD as usize);
        let records = bytes.chunks_exact(RECORD as usize).map(|record| match (record[0], is_proven) {
            (PRESENT, true) => StoredState::Present,
            (PRESENT, false) => StoredState::Unproven,
            _ => StoredState::Absent,
        });
        let mut records: Vec<_> = records.collect();
        records.resize(count as usize, StoredState::Absent);
        Some(records)
    }

    /// Removes every record.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.0.set_len(0)
    }

    pub(super) fn write_header(&self, count: u32, generation: u32) -> io::Result<()> {
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&count.to_le_bytes());
        header.extend_from_slice(&generation.to_le_bytes());
        self.0.write_all_at(&header, 0)
    }

    /// Records a stored span. `tail`: the bytes stored behind the last span, where they reach to the end of the
    /// stream.
    pub(super) fn write(&self, span: SpanId, checksum: u64, tail: Option<u64>) -> io::Result<()> {
        let mut record = [0; RECORD as usize];
        // 56 bits hold the tail plus one; 0 is an unknown tail.
        record[..8].copy_from_slice(&tail.map_or(0, |tail| (tail + 1) << 8).to_le_bytes());
        record[0] = PRESENT;
        record[8..].copy_from_slice(&checksum.to_le_bytes());
        self.0.write_all_at(&record, at(span))
    }

    pub(super) fn tail(&self, last: SpanId) -> Option<u64> {
        let mut record = [0; 8];
        self.0.read_exact_at(&mut record, at(last)).ok()?;
        (u64::from_le_bytes(record) >> 8).checked_sub(1)
    }

    pub(super) fn forget_tail(&self, last: SpanId) -> io::Result<()> {
        self.0.write_all_at(&[0; 7], at(last) + 1)
    }

    pub(super) fn checksum(&self, span: SpanId) -> Option<u64> {
        let mut checksum = [0; 8];
        self.0.read_exact_at(&mut checksum, at(span) + 8).ok()?;
        Some(u64::from_le_bytes(checksum))
    }

    /// Records a span as absent.
    pub(super) fn strike(&self, span: SpanId) -> io::Result<()> {
        self.0.write_all_at(&[0; RECORD as usize], at(span))
    }
}

fn at(span: SpanId) -> u64 {
    HEADER + u64::from(span.0) * RECORD
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> usize {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    read
}
