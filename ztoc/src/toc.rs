//! Tar headers to entries: the reader that fills a toc, and checks one member of it later.
//!
//! `TarReader` is pushed the bytes of a tar in pieces of any size and gives one `FileEntry` for each
//! member, in archive order, with nothing skipped, merged, cleaned or sorted. It reads what Go's `archive/tar`
//! reads and refuses what that refuses: the Go tool makes its ztocs with it, and ours have to be the same bytes. These
//! are V7, USTAR, STAR and GNU headers, PAX records, GNU long names, and the PAX forms of GNU sparse files. Contents of files are stepped over. It holds one member at a time, at most about a mebibyte of it.

mod collected;
mod header;
mod pax;
mod sparse;
mod time;
mod record;

use std::mem;

use crate::error::Error;
use header::{Header, Kind};

pub(crate) use collected::{Collected, CollectedEntry};
pub(crate) use record::{Record, XATTR_PREFIX};
pub use time::MTime;

/// The unit in which a tar is written.
pub(crate) const BLOCK: u64 = 512;

/// The longest PAX header, long name or sparse map that is read; Go's limit.
const MAX_SPECIAL: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A file with contents.
    Regular,
    /// Another name of a file that comes earlier in the layer.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

impl EntryKind {
    const NAMES: [(EntryKind, &'static str); 7] = [
        (EntryKind::Regular, "reg"),
        (EntryKind::HardLink, "hardlink"),
        (EntryKind::Symlink, "symlink"),
        (EntryKind::Directory, "dir"),
        (EntryKind::CharDevice, "char"),
        (EntryKind::BlockDevice, "block"),
        (EntryKind::Fifo, "fifo"),
    ];

    /// The word for it in a ztoc.
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    pub(crate) fn from_bytes(name: &[u8]) -> Option<EntryKind> {
        Self::NAMES.iter().find(|(_, text)| text.as_bytes() == name).map(|(kind, _)| *kind)
    }
}

/// One member of a tar, as its headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileEntry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Where the first of its header blocks is.
    pub(crate) header: u64,
    /// Where its data is, or would be.
    pub(crate) offset: u64,
    /// The size it claims; negative only where the kind has no data.
    pub(crate) size: i64,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: i64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) uname: Vec<u8>,
    pub(crate) gname: Vec<u8>,
    pub(crate) mtime: MTime,
    pub(crate) device: (i64, i64),
    /// Every PAX record, in ascending order of their keys.
    pub(crate) pax: Vec<Record>,
    /// A sparse file with holes: its data in the tar is not its contents.
    pub(crate) holes: bool,
}

/// What the next bytes are.
#[derive(Debug)]
enum State {
    Header,
    /// The block after a block of zeros.
    SecondZero,
    /// Data, and the padding after it, to step over.
    Data {
        left: u64,
        padding: u64,
    },
    /// The body of a header that describes the next member.
    Special {
        kind: Kind,
        left: u64,
        padding: u64,
    },
    /// The map at the front of a sparse file's data; `left` is what the member stores from here on.
    Map {
        entry: Box<FileEntry>,
        map: sparse::Map,
        left: u64,
        padding: u64,
    },
    End,
}

/// Reads a tar as it comes by.
#[derive(Debug)]
pub(crate) struct TarReader {
    state: State,
    /// How much of the tar was read, up to its end marker.
    position: u64,
    block: [u8; BLOCK as usize],
    filled: usize,
    /// Where the headers of the next member begin.
    header_start: u64,
    special: Vec<u8>,
    pax: Vec<Record>,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl TarReader {
    pub(crate) fn new() -> TarReader {
        TarReader {
            state: State::Header,
            position: 0,
            block: [0; BLOCK as usize],
            filled: 0,
            header_start: 0,
            special: Vec::new(),
            pax: Vec::new(),
            long_name: Vec::new(),
            long_link: Vec::new(),
        }
    }

    /// Goes on with `bytes`; entries that became complete are handed to `entries`. After an error the reader
    /// is spent.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        entries: &mut dyn FnMut(FileEntry) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while !bytes.is_empty() {
            let used = match &mut self.state {
                State::End => return Ok(()),
                State::Data { left, padding } => {
                    let used = step_over(left, bytes.len());
                    let used = used + step_over(padding, bytes.len() - used);
                    if *left == 0 && *padding == 0 {
                        self.state = State::Header;
                    }
                    used
                }
                State::Special { left, .. } if *left > 0 => {
                    let used = step_over(left, bytes.len());
                    self.special.extend_from_slice(&bytes[..used]);
                    used
                }
                State::Special { .. } => 0,
                State::Header | State::SecondZero | State::Map { .. } => {
                    let used = bytes.len().min(self.block.len() - self.filled);
                    self.block[self.filled..self.filled + used].copy_from_slice(&bytes[..used]);
                    self.filled += used;
                    used
                }
            };
            self.position += used as u64;
            bytes = &bytes[used..];
            self.settle(entries)?;
        }
        Ok(())
    }

    /// Acts on what is complete.
    fn settle(&mut self, entries: &mut dyn FnMut(FileEntry) -> Result<(), Error>) -> Result<(), Error> {
        if let State::Special { kind, left: 0, padding } = self.state {
            self.apply_special(kind)?;
            self.state = after(0, padding);
        }
        if self.filled < self.block.len() {
            return Ok(());
        }
        self.filled = 0;
        match mem::replace(&mut self.state, State::End) {
            State::Header if self.block.iter().all(|byte| *byte == 0) => self.state = State::SecondZero,
            State::Header => self.read_header(entries)?,
            State::SecondZero if self.block.iter().all(|byte| *byte == 0) => {}
            State::SecondZero => return Err(Error::corrupt("read tar: a header after a zero block")),
            State::Map { mut entry, mut map, left, padding } => {
                if map.push(&self.block)? {
                    entry.holes = map.finish(entry.size)?;
                    entry.offset = self.position;
                    self.state = after(left, padding);
                    entries(*entry)?;
                } else {
                    self.state = map_or_error(entry, map, left, padding)?;
                }
            }
            // no block is gathered in the others
            other => self.state = other,
        }
        Ok(())
    }

    fn read_header(&mut self, entries: &mut dyn FnMut(FileEntry) -> Result<(), Error>) -> Result<(), Error> {
        let header = Header::parse(&self.block)?;
        let kind = header.kind()?;
        let stored = if kind.has_data() { header.size } else { 0 };
        let stored = u64::try_from(stored).map_err(|_| Error::corrupt("read tar header: negative size"))?;
        if let Kind::Entry(_) | Kind::OldRegular = kind {
            return self.begin_entry(header, kind, entries);
        }
        if stored > MAX_SPECIAL {
            return Err(Error::too_large("read tar header: a PAX header or a long name above 1 MiB"));
        }
        self.special.clear();
        self.state = State::Special { kind, left: stored, padding: padding(stored) };
        // an empty body is complete at once
        self.settle(entries)
    }

    fn apply_special(&mut self, kind: Kind) -> Result<(), Error> {
        match kind {
            Kind::Pax => self.pax = pax::parse(&self.special)?,
            Kind::LongName => self.long_name = header::text(&self.special).to_vec(),
            Kind::LongLink => self.long_link = header::text(&self.special).to_vec(),
            Kind::Entry(_) | Kind::OldRegular => {}
        }
        self.special.clear();
        Ok(())
    }

    fn begin_entry(
        &mut self,
        header: Header,
        kind: Kind,
        entries: &mut dyn FnMut(FileEntry) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut entry = header.into_entry(self.header_start, self.position);
        pax::merge(mem::take(&mut self.pax), &mut entry)?;
        // GNU long names come before PAX ones
        let long_name = mem::take(&mut self.long_name);
        if !long_name.is_empty() {
            entry.name = long_name;
        }
        let long_link = mem::take(&mut self.long_link);
        if !long_link.is_empty() {
            entry.link = long_link;
        }
        entry.kind = match kind {
            Kind::Entry(kind) => kind,
            // before there was a type for directories, a slash at the end of the name told them
            _ if entry.name.ends_with(b"/") => EntryKind::Directory,
            _ => EntryKind::Regular,
        };
        let stored = if entry.kind == EntryKind::Regular { entry.size } else { 0 };
        let left = u64::try_from(stored).map_err(|_| Error::corrupt("read tar header: negative size"))?;
        let padding = padding(left);
        let map = sparse::apply(&mut entry)?;
        if let (Some(_), false) = (&map, entry.kind == EntryKind::Regular) {
            return Err(Error::corrupt("read tar header: a sparse map on something that is not a file"));
        }
        // whatever comes after this member belongs to the next one
        self.header_start = self.position + left + padding;
        match map {
            Some(map) if map.in_data() => self.state = map_or_error(Box::new(entry), map, left, padding)?,
            map => {
                entry.holes = map.map_or(Ok(false), |map| map.finish(entry.size))?;
                self.state = after(left, padding);
                entries(entry)?;
            }
        }
        Ok(())
    }

    /// The size of the archive, once all bytes were pushed. Two blocks of zeros end it, or the end of the
    /// bytes before a header, after one block of zeros, or (as in Go) within the padding of a file.
    pub(crate) fn finish(&self) -> Result<u64, Error> {
        match &self.state {
            State::Header | State::SecondZero if self.filled > 0 => {}
            State::Data { left, .. } | State::Special { left, .. } if *left > 0 => {}
            State::Map { .. } => {}
            _ => return Ok(self.position),
        }
        Err(Error::corrupt("read tar: unexpected end"))
    }
}

/// The rest of a sparse file's data when another block of it belongs to the map.
fn map_or_error(entry: Box<FileEntry>, map: sparse::Map, left: u64, padding: u64) -> Result<State, Error> {
    let left = left.checked_sub(BLOCK).ok_or_else(|| Error::corrupt("read sparse map: unexpected end"))?;
    Ok(State::Map { entry, map, left, padding })
}

/// The state in which `left` bytes and their padding are stepped over.
fn after(left: u64, padding: u64) -> State {
    if left == 0 && padding == 0 { State::Header } else { State::Data { left, padding } }
}

fn step_over(left: &mut u64, available: usize) -> usize {
    let used = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
    *left -= used as u64;
    used
}

/// What is missing to a whole block.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK
}
