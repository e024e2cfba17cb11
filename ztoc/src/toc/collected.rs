//! The entries of a tar while a ztoc is being built: numbers in one vector, text in another. A layer of several hundred
//! thousand files costs tens of mebibytes so, and not hundreds. They go one by one while the ztoc is
//! written, so that it is never there twice.

use super::{EntryKind, FileEntry, MTime};
use crate::shrinking_vec::ShrinkingVec;

/// All entries so far, in archive order.
#[derive(Default)]
pub(crate) struct Collected {
    rows: ShrinkingVec<Row>,
    text: ShrinkingVec<u8>,
}

struct Row {
    numbers: Numbers,
    /// Where in the text its name begins; link, user, group and records follow.
    text: usize,
    name: u32,
    link: u32,
    uname: u32,
    gname: u32,
    records: u32,
}

/// What of an entry is not text.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) header: u64,
    pub(crate) offset: u64,
    pub(crate) size: i64,
    pub(crate) mode: i64,
    pub(crate) mtime: MTime,
    pub(crate) device: (i64, i64),
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) kind: EntryKind,
    pub(crate) holes: bool,
}

/// One entry.
pub(crate) struct CollectedEntry<'a> {
    pub(crate) numbers: Numbers,
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) uname: &'a [u8],
    pub(crate) gname: &'a [u8],
    pub(crate) records: Vec<(&'a [u8], &'a [u8])>,
}

impl Collected {
    /// Texts of an entry are at most a few mebibytes each, see `TarReader`; so lengths are `u32`.
    pub(crate) fn push(&mut self, entry: &FileEntry) {
        let text = self.text.len();
        let mut add = |part: &[u8]| {
            self.text.extend_from_slice(part);
            part.len() as u32
        };
        let [name, link, uname, gname] =
            [&entry.name, &entry.link, &entry.uname, &entry.gname].map(|s| add(s));
        for record in &entry.pax {
            add(&(record.key.len() as u32).to_le_bytes());
            add(&(record.value.len() as u32).to_le_bytes());
            add(&record.key);
            add(&record.value);
        }
        let numbers = Numbers {
            header: entry.header,
            offset: entry.offset,
            size: entry.size,
            mode: entry.mode,
            mtime: entry.mtime,
            device: entry.device,
            uid: entry.uid,
            gid: entry.gid,
            kind: entry.kind,
            holes: entry.holes,
        };
        let records = entry.pax.len() as u32;
        self.rows.push(Row { numbers, text, name, link, uname, gname, records });
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Where the headers of each entry begin, in archive order.
    pub(crate) fn headers(&self) -> impl Iterator<Item = u64> {
        self.rows.iter().map(|row| row.numbers.header)
    }

    /// The name of the first file with holes.
    pub(crate) fn holes(&self) -> Option<Vec<u8>> {
        let row = self.rows.iter().find(|row| row.numbers.holes)?;
        Some(row.entry(&self.text).name.to_vec())
    }

    /// Hands over the entries, from the last to the first, and lets go of them.
    pub(crate) fn drain_backwards(mut self, mut each: impl FnMut(CollectedEntry<'_>)) {
        while let Some(row) = self.rows.last() {
            each(row.entry(&self.text));
            self.text.truncate(row.text);
            self.rows.truncate(self.rows.len() - 1);
        }
    }
}

impl Row {
    fn entry<'a>(&self, text: &'a [u8]) -> CollectedEntry<'a> {
        let mut rest = &text[self.text..];
        let mut part = |len: u32| {
            let (part, after) = rest.split_at(len as usize);
            rest = after;
            part
        };
        let [name, link, uname, gname] = [self.name, self.link, self.uname, self.gname].map(&mut part);
        let mut record = |_| {
            let mut len = || u32::from_le_bytes(part(4).try_into().expect("four bytes"));
            let (key, value) = (len(), len());
            (part(key), part(value))
        };
        let records = (0..self.records).map(&mut record).collect();
        CollectedEntry { numbers: self.numbers, name, link, uname, gname, records }
    }
}
