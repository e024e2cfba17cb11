//! Layers that are not compressed: spans by arithmetic.
//!
//! Span `i` is `[i * span_size, (i + 1) * span_size)` of the tar, the last one ends where the layer ends. An
//! empty layer has no span. Compressed and uncompressed offsets have the same numbers here; only the ends of
//! the last span differ, because the tar may end (two zero blocks) before the layer does.

/// How many spans a layer of `size` bytes has; nothing when `span_size` is 0 or the count is no `u32`.
pub(crate) fn spans(size: u64, span_size: u64) -> Option<u32> {
    if span_size == 0 {
        return None;
    }
    // the last number is written as an i32
    u32::try_from(size.div_ceil(span_size)).ok().filter(|count| i32::try_from(*count).is_ok())
}

/// Where span `index` begins; the caller has made sure that there is such a span.
pub(crate) fn start(index: u32, span_size: u64) -> u64 {
    u64::from(index).saturating_mul(span_size)
}

/// The span of an offset, as if the layer had no end.
pub(crate) fn span_of(offset: u64, span_size: u64) -> u32 {
    u32::try_from(offset / span_size.max(1)).unwrap_or(u32::MAX)
}
