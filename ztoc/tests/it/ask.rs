//! Everything that can be asked of a ztoc, for ztocs that may say anything. The fuzz targets ask it too.

use ztoc::{SpanId, UncompressedOffset, Ztoc};

/// Asks an opened ztoc everything; what it answers is not our concern, that it answers is. The number stands
/// for all the answers.
pub(crate) fn everything(ztoc: &Ztoc, layer: &[u8]) -> usize {
    let mut answers = ztoc.version().len() + ztoc.build_tool().len();
    for entry in ztoc.entries() {
        let range = entry.header();
        let area = layer.get(range.start.0 as usize..range.end.0 as usize).unwrap_or_default();
        answers += usize::from(entry.verify_header(area).is_ok());
        answers += entry.pax().count() + entry.xattrs().count() + entry.uname().len() + entry.gname().len();
        answers += usize::from(entry.mtime().is_some()) + entry.link_target().len();
        answers += ztoc.spans().covering(entry.data()).len();
        answers += ztoc.spans().end_span_as_listed(entry.data().end).index();
        answers += extract(ztoc, layer, entry.data().start, entry.data().end);
        assert!(format!("{entry:?}").contains("Entry"));
    }
    answers += usize::from(ztoc.check_hard_links().is_ok()) + usize::from(ztoc.find(b"d/f").is_some());
    let prefix = layer.get(..ztoc.prefix().end.0 as usize).unwrap_or_default();
    answers += usize::from(ztoc.verify_prefix(prefix).is_ok());
    for span in (0..ztoc.spans().len()).map(SpanId) {
        let compressed = compressed(ztoc, layer, span);
        let mut out = Vec::new();
        if ztoc.inflate_span(span, compressed, &mut out).is_ok() {
            let range = ztoc.spans().uncompressed(span);
            assert_eq!(out.len() as u64, range.end - range.start);
            answers += 1;
        }
        if span.0 == 0 || span.0 + 1 == ztoc.spans().len() {
            answers += usize::from(
                ztoc.inflating_to_the_end(compressed, 1000).and_then(|it| it.all(&mut out)).is_ok(),
            );
        }
    }
    answers + extract(ztoc, layer, UncompressedOffset(0), UncompressedOffset(ztoc.uncompressed_size()))
}

/// A span's compressed bytes; nothing where the layer does not reach so far.
pub(crate) fn compressed<'a>(ztoc: &Ztoc, layer: &'a [u8], span: SpanId) -> &'a [u8] {
    let range = ztoc.spans().compressed(span);
    layer.get(range.start.0 as usize..range.end.0 as usize).unwrap_or_default()
}

/// How many bytes come of extracting a range: all of them, or none.
fn extract(ztoc: &Ztoc, layer: &[u8], start: UncompressedOffset, end: UncompressedOffset) -> usize {
    let bytes = ztoc.extract(start..end, &mut |span, _| Ok(compressed(ztoc, layer, span).to_vec()));
    let Ok(bytes) = bytes else { return 0 };
    assert_eq!(bytes.len() as u64, end.0.saturating_sub(start.0));
    bytes.len()
}
