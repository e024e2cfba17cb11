//! The value: a ztoc that was checked, used in place over the bytes it owns.
//!
//! Beside the bytes it keeps only the place of each entry (four bytes) and the span table, so a mapped ztoc costs little
//! memory. Entries are in the order of their offsets and do not overlap. Names, links and windows are read from the
//! bytes each time. If those bytes change meanwhile, the answer is wrong (empty, or other bytes), but nothing panics.

mod compare;
mod entry;
mod extract;
mod inflate;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Error;
use crate::flatbuffer::Table;
use crate::gzip;
use crate::units::CompressedOffset;
use crate::units::SpanId;
use crate::zinfo::{Compression, SpanTable};

pub use entry::Entry;
pub use inflate::Inflating;

/// The longest ztoc that is built or opened, in bytes. The format ends at 2 GiB; a ztoc of half of that stands
/// for a layer of 128 GiB.
pub const MAX_ZTOC_BYTES: u64 = 1 << 30;

pub(crate) type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The slots of an entry's table.
pub(crate) mod fields {
    pub(crate) const NAME: usize = 0;
    pub(crate) const KIND: usize = 1;
    pub(crate) const OFFSET: usize = 2;
    pub(crate) const SIZE: usize = 3;
    pub(crate) const LINK: usize = 4;
    pub(crate) const MODE: usize = 5;
    pub(crate) const UID: usize = 6;
    pub(crate) const GID: usize = 7;
    pub(crate) const UNAME: usize = 8;
    pub(crate) const GNAME: usize = 9;
    pub(crate) const MOD_TIME: usize = 10;
    pub(crate) const DEVMAJOR: usize = 11;
    pub(crate) const DEVMINOR: usize = 12;
    pub(crate) const PAX: usize = 13;
}

/// What was found in the bytes, and checked.
pub(crate) struct Parts {
    pub(crate) version: Range<usize>,
    pub(crate) build_tool: Range<usize>,
    pub(crate) compression: Compression,
    pub(crate) compressed_size: u64,
    pub(crate) uncompressed_size: u64,
    /// Where the tables of the entries are, by offset.
    pub(crate) entries: Vec<u32>,
    pub(crate) windows: Windows,
    pub(crate) spans: SpanTable,
}

/// Where the windows of the checkpoints are: the first one's place, if it is not implied (and all zeros), and
/// how far they are apart.
pub(crate) struct Windows {
    pub(crate) first: usize,
    pub(crate) stride: usize,
    pub(crate) first_implied: bool,
}

impl Windows {
    /// Where in the bytes the window of a checkpoint is; nothing for an implied one.
    fn at(&self, index: usize) -> Option<usize> {
        let stored = index.checked_sub(usize::from(self.first_implied))?;
        stored.checked_mul(self.stride)?.checked_add(self.first)
    }
}

/// The ztoc of one layer.
pub struct Ztoc {
    bytes: Bytes,
    parts: Parts,
}

impl Ztoc {
    pub(crate) fn from_parts(bytes: Bytes, parts: Parts) -> Ztoc {
        Ztoc { bytes, parts }
    }

    /// The ztoc as it was opened; its SHA-256 is what an index refers to.
    pub fn as_bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// The version it states, `0.9` in all that exist. Nothing depends on it.
    pub fn version(&self) -> &[u8] {
        self.as_bytes().get(self.parts.version.clone()).unwrap_or_default()
    }

    /// What built it.
    pub fn build_tool(&self) -> &[u8] {
        self.as_bytes().get(self.parts.build_tool.clone()).unwrap_or_default()
    }

    /// How the layer is compressed.
    pub fn compression(&self) -> Compression {
        self.parts.compression
    }

    /// The length of the layer as stored in a registry, in bytes.
    pub fn compressed_size(&self) -> u64 {
        self.parts.compressed_size
    }

    /// The length of the tar in bytes, to the end of its end marker; padding may follow in the layer.
    pub fn uncompressed_size(&self) -> u64 {
        self.parts.uncompressed_size
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.parts.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.parts.entries.is_empty()
    }

    /// An entry by its number, in the order of offsets.
    ///
    /// # Panics
    /// When `index` is not below [`Ztoc::len`].
    pub fn entry(&self, index: usize) -> Entry<'_> {
        let position = self.parts.entries[index];
        Entry::new(self, index, Table::at(self.as_bytes(), position as usize))
    }

    /// All entries, in the order of offsets.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry<'_>> {
        (0..self.len()).map(|index| self.entry(index))
    }

    /// The first entry with exactly this name, in the order of offsets.
    pub fn find(&self, name: &[u8]) -> Option<Entry<'_>> {
        self.entries().find(|entry| entry.name() == name)
    }

    /// The spans of the layer.
    pub fn spans(&self) -> &SpanTable {
        &self.parts.spans
    }

    /// The bytes of the layer in front of the first span, which no span digest covers. In a gzipped layer they
    /// are its gzip header; else there are none.
    pub fn prefix(&self) -> Range<CompressedOffset> {
        CompressedOffset(0)..self.spans().compressed(SpanId(0)).start
    }

    /// Checks the bytes of [`Ztoc::prefix`]: a whole gzip header and nothing else, or nothing.
    pub fn verify_prefix(&self, prefix: &[u8]) -> Result<(), Error> {
        let expected = match self.compression() {
            Compression::Gzip => gzip::header::parse(prefix)? as u64,
            Compression::Uncompressed => 0,
        };
        if prefix.len() as u64 == expected && expected == self.prefix().end.0 {
            Ok(())
        } else {
            Err(Error::corrupt("check layer: the first span does not follow the gzip header"))
        }
    }

    /// Checks that every hard link names an entry before it, as names are once cleaned: a mount needs this.
    pub fn check_hard_links(&self) -> Result<(), Error> {
        entry::check_hard_links(self)
    }

    fn windows(&self) -> &Windows {
        &self.parts.windows
    }
}

impl fmt::Debug for Ztoc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ztoc")
            .field("bytes", &self.as_bytes().len())
            .field("entries", &self.len())
            .field("spans", &self.spans().len())
            .field("compression", &self.compression())
            .finish_non_exhaustive()
    }
}
