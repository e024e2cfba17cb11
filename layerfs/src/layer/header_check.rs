//! Before the first read of a file: its tar header is compared with the table of files.
//!
//! An index given by hand, or of version 1, is not covered by the image's chain of digests, so its table of files may
//! lie. A file whose header differs is an error for good; other files are not affected. Each header is compared once.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use ztoc::{Entry, UncompressedOffset};

use crate::{
    error::{Error, ErrorKind},
    spans::Spans,
    store::LayerId,
};

/// Between the data of two files there are headers: PAX records and long names of 1 MiB each at most.
const MAX_HEADER_BYTES: u64 = 4 << 20;

/// What a read has to do first.
pub(super) enum HeaderStep {
    /// The header agrees.
    Done,
    /// These bytes have to be fetched and given to [`HeaderCheck::compare`].
    Fetch(Range<UncompressedOffset>),
}

/// Which headers of a layer were compared.
pub(super) struct HeaderCheck {
    /// One bit for each entry of the table of files.
    compared: Box<[AtomicU64]>,
}

impl HeaderCheck {
    pub(super) fn new(entries: usize) -> Self {
        Self { compared: (0..entries.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Compares the header of `entry` if its bytes are on disk.
    pub(super) fn begin(&self, id: &LayerId, spans: &Spans, entry: &Entry<'_>) -> Result<HeaderStep, Error> {
        if self.is_compared(entry.index()) {
            return Ok(HeaderStep::Done);
        }
        let header = entry.header();
        if header.end - header.start > MAX_HEADER_BYTES {
            return Err(Error::new(ErrorKind::Corrupt, "compare a tar header of over 4 MiB"));
        }
        match spans.read_ready(&header) {
            Some(bytes) => self.compare(id, entry, &bytes?).map(|()| HeaderStep::Done),
            None => Ok(HeaderStep::Fetch(header)),
        }
    }

    /// Compares the header of `entry` with its bytes.
    pub(super) fn compare(&self, id: &LayerId, entry: &Entry<'_>, header: &[u8]) -> Result<(), Error> {
        let index = entry.index();
        entry.verify_header(header).map_err(|error| {
            Error::with(ErrorKind::Corrupt, format!("compare entry {index} of layer {id}"), error)
        })?;
        self.compared[index / 64].fetch_or(1 << (index % 64), Ordering::AcqRel);
        Ok(())
    }

    fn is_compared(&self, index: usize) -> bool {
        self.compared[index / 64].load(Ordering::Acquire) & (1 << (index % 64)) != 0
    }
}
