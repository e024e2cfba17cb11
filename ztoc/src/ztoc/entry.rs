//! One entry of a toc, read from the ztoc's bytes as it is asked.

use std::collections::HashSet;
use std::ops::Range;

use super::{Ztoc, fields};
use crate::error::{Error, ErrorKind};
use crate::flatbuffer::{Table, Vector};
use crate::toc::{BLOCK, EntryKind, FileEntry, MTime, TarReader, XATTR_PREFIX};
use crate::units::UncompressedOffset;

/// One member of the layer's tar.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    ztoc: &'a Ztoc,
    index: usize,
    /// Nothing only if the bytes changed since the ztoc was opened.
    table: Option<Table<'a>>,
}

impl<'a> Entry<'a> {
    pub(super) fn new(ztoc: &'a Ztoc, index: usize, table: Option<Table<'a>>) -> Entry<'a> {
        Entry { ztoc, index, table }
    }

    fn bytes(&self, slot: usize) -> &'a [u8] {
        self.table.and_then(|table| table.bytes(slot)).unwrap_or_default()
    }

    fn number(&self, slot: usize) -> i64 {
        self.table.and_then(|table| table.i64(slot)).unwrap_or_default()
    }

    fn unsigned(&self, slot: usize) -> u64 {
        u64::try_from(self.number(slot)).unwrap_or_default()
    }

    /// Its number, in the order of offsets.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The name as the tar has it: any bytes, `./` and `/` in front and behind included.
    pub fn name(&self) -> &'a [u8] {
        self.bytes(fields::NAME)
    }

    /// What it is.
    pub fn kind(&self) -> EntryKind {
        EntryKind::from_bytes(self.bytes(fields::KIND)).unwrap_or(EntryKind::Regular)
    }

    /// Where a link leads, as the tar has it; empty for others.
    pub fn link_target(&self) -> &'a [u8] {
        self.bytes(fields::LINK)
    }

    /// The mode field of the tar as it is, which may hold more than permissions.
    pub fn mode(&self) -> i64 {
        self.number(fields::MODE)
    }

    /// The owner.
    pub fn uid(&self) -> u32 {
        self.table.and_then(|table| table.u32(fields::UID)).unwrap_or_default()
    }

    /// The group.
    pub fn gid(&self) -> u32 {
        self.table.and_then(|table| table.u32(fields::GID)).unwrap_or_default()
    }

    /// The owner's name.
    pub fn uname(&self) -> &'a [u8] {
        self.bytes(fields::UNAME)
    }

    /// The group's name.
    pub fn gname(&self) -> &'a [u8] {
        self.bytes(fields::GNAME)
    }

    /// When it was modified; nothing when the ztoc's text is no time.
    pub fn mtime(&self) -> Option<MTime> {
        MTime::from_text(self.mod_time_text())
    }

    /// When it was modified, as the ztoc has it.
    pub fn mod_time_text(&self) -> &'a [u8] {
        self.bytes(fields::MOD_TIME)
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> (i64, i64) {
        (self.number(fields::DEVMAJOR), self.number(fields::DEVMINOR))
    }

    /// The size in bytes that the tar states, also for what has no data.
    pub fn size(&self) -> u64 {
        self.unsigned(fields::SIZE)
    }

    /// Where its data is in the tar.
    pub fn data(&self) -> Range<UncompressedOffset> {
        let start = UncompressedOffset(self.unsigned(fields::OFFSET));
        start..UncompressedOffset(start.0.saturating_add(self.size()))
    }

    /// Where its headers are in the tar: from the end of the data before it to its own data.
    pub fn header(&self) -> Range<UncompressedOffset> {
        let start = self.index.checked_sub(1).map_or(0, |before| {
            let end = self.ztoc.entry(before).data().end.0;
            end.checked_next_multiple_of(BLOCK).unwrap_or(end)
        });
        let end = self.data().start;
        UncompressedOffset(start.min(end.0))..end
    }

    fn records(&self) -> Option<Vector<'a>> {
        self.table.and_then(|table| table.vector(fields::PAX))
    }

    /// Its PAX records, key and value.
    pub fn pax(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.records().into_iter().flat_map(|records| {
            (0..records.len()).filter_map(move |index| {
                let record = records.table(index)?;
                Some((record.bytes(0)?, record.bytes(1)?))
            })
        })
    }

    /// Its extended attributes, name and value.
    pub fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.pax().filter_map(|(key, value)| Some((key.strip_prefix(XATTR_PREFIX)?, value)))
    }

    /// Whether it has extended attributes; cheap.
    pub fn has_xattrs(&self) -> bool {
        self.xattrs().next().is_some()
    }

    /// Compares the entry with its headers in the tar, the bytes of [`Entry::header`]: an index that is not
    /// covered by a chain of digests may claim anything, the layer itself may not. The headers must be one
    /// member's, whole, and agree in name, type, size, time, link, mode, owner, group, device and extended
    /// attributes.
    pub fn verify_header(&self, header_area: &[u8]) -> Result<(), Error> {
        let mut found = None;
        let mut reader = TarReader::new();
        let read = reader.push(header_area, &mut |entry| {
            found = Some(entry);
            Ok(())
        });
        // whatever it is, it is not what the toc says
        read.map_err(|error| error.within(ErrorKind::Corrupt, "compare tar header"))?;
        let differs = match found {
            // data follows the headers: anything else is a second member, or a part of one
            Some(entry) if entry.offset == header_area.len() as u64 => self.difference(&entry),
            _ => Some("extent"),
        };
        match differs {
            None => Ok(()),
            Some(what) => Err(Error::corrupt(format!("compare tar header: {what} differs from the toc"))),
        }
    }

    fn difference(&self, header: &FileEntry) -> Option<&'static str> {
        let xattrs = header
            .pax
            .iter()
            .filter_map(|record| Some((record.key.strip_prefix(XATTR_PREFIX)?, record.value.as_slice())));
        let mut ours: Vec<_> = self.xattrs().collect();
        ours.sort_unstable();
        let checks = [
            (self.name() == header.name, "name"),
            (self.kind() == header.kind, "type"),
            (i64::try_from(self.size()) == Ok(header.size), "size"),
            (self.mtime() == Some(header.mtime), "time"),
            (self.link_target() == header.link, "link target"),
            (self.mode() == header.mode, "mode"),
            (self.uid() == header.uid, "owner"),
            (self.gid() == header.gid, "group"),
            (self.device() == header.device, "device"),
            (ours.into_iter().eq(xattrs), "set of extended attributes"),
        ];
        checks.iter().find(|(same, _)| !same).map(|(_, what)| *what)
    }
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("index", &self.index)
            .field("name", &format_args!("{}", self.name().escape_ascii()))
            .field("kind", &self.kind())
            .field("data", &self.data())
            .finish_non_exhaustive()
    }
}

/// Names are compared as paths: without `.`, empty parts and what `..` undoes.
pub(super) fn check_hard_links(ztoc: &Ztoc) -> Result<(), Error> {
    if !ztoc.entries().any(|entry| entry.kind() == EntryKind::HardLink) {
        return Ok(());
    }
    let mut seen = HashSet::with_capacity(ztoc.len());
    for entry in ztoc.entries() {
        if entry.kind() == EntryKind::HardLink && !seen.contains(&clean(entry.link_target())) {
            let name = entry.name().escape_ascii();
            return Err(Error::corrupt(format!("read toc: hard link {name} has no target before it")));
        }
        seen.insert(clean(entry.name()));
    }
    Ok(())
}

fn clean(name: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts
}
