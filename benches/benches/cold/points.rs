//! Where to read: one place in each span of a layer, chosen at random but the same in each run.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use ztoc::{Entry, EntryKind, SpanId, Ztoc};

use super::Indexed;

/// Bytes of a read: a page.
pub(crate) const LENGTH: usize = 4096;

/// A page of a file, in one span.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) path: PathBuf,
    /// Within the file.
    pub(crate) offset: u64,
    /// Within the uncompressed layer.
    pub(crate) at: usize,
}

/// A page in every span that holds a whole one of a file that no layer above has, too.
pub(crate) fn of(ztoc: &Ztoc, uppers: &[Indexed]) -> Vec<Point> {
    let mut random = Random(1);
    let is_seen = |entry: &Entry<'_>| uppers.iter().all(|upper| upper.ztoc.find(entry.name()).is_none());
    let files: Vec<Entry<'_>> =
        ztoc.entries().filter(|entry| entry.kind() == EntryKind::Regular).filter(is_seen).collect();
    let spans = (0..ztoc.spans().len()).map(SpanId);
    spans
        .filter_map(|span| {
            let span = ztoc.spans().uncompressed(span);
            let pages = files.iter().filter_map(|file| {
                let data = file.data();
                let first = span.start.0.saturating_sub(data.start.0).div_ceil(LENGTH as u64);
                let last = span.end.0.min(data.end.0).checked_sub(data.start.0)? / LENGTH as u64;
                (first < last).then_some((file, first..last))
            });
            let pages: Vec<_> = pages.collect();
            let (file, pages) = pages.get(random.below(pages.len()))?;
            let count = usize::try_from(pages.end - pages.start).ok()?;
            let offset = (pages.start + random.below(count) as u64) * LENGTH as u64;
            let at = usize::try_from(file.data().start.0 + offset).ok()?;
            Some(Point { path: path(file.name()), offset, at })
        })
        .collect()
}

fn path(name: &[u8]) -> PathBuf {
    let name = Path::new(OsStr::from_bytes(name));
    name.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

pub(crate) fn shuffle(points: &mut [Point], seed: u64) {
    let mut random = Random(seed);
    for place in (1..points.len()).rev() {
        points.swap(place, random.below(place + 1));
    }
}

/// The layer as it is when unpacked.
pub(crate) fn inflated(indexed: &Indexed) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    for span in (0..indexed.ztoc.spans().len()).map(SpanId) {
        let range = indexed.ztoc.spans().compressed(span);
        let compressed = &indexed.layer.bytes[usize::try_from(range.start.0)?..usize::try_from(range.end.0)?];
        indexed.ztoc.inflate_span(span, compressed, &mut plain)?;
    }
    Ok(plain)
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        let mut state = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0 = state;
        usize::try_from(state >> 16).unwrap_or_default() % bound.max(1)
    }
}
