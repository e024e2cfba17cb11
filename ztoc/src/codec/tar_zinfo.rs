//! The zinfo of a layer that is not compressed: a FlatBuffer of its own, with a version, the span size and the
//! size of the layer.

use flatbuffers::FlatBufferBuilder;

use super::slot;
use crate::error::Error;
use crate::flatbuffer::Table;

/// Written, and not looked at when read.
const VERSION: i32 = 2;

/// Both are below 2^63, which the builder sees to.
pub(crate) fn encode(span_size: i64, size: i64) -> Vec<u8> {
    let mut fbb = FlatBufferBuilder::new();
    let table = fbb.start_table();
    fbb.push_slot(slot(0), VERSION, 0);
    fbb.push_slot(slot(1), span_size, 0);
    fbb.push_slot(slot(2), size, 0);
    let table = fbb.end_table(table);
    fbb.finish_minimal(table);
    fbb.finished_data().to_vec()
}

/// The span size and the size of the layer.
pub(crate) fn decode(blob: &[u8]) -> Result<(u64, u64), Error> {
    let read = || {
        let table = Table::root(blob)?;
        Some((u64::try_from(table.i64(1)?).ok()?, u64::try_from(table.i64(2)?).ok()?))
    };
    read().ok_or_else(|| Error::corrupt("read tar zinfo: not one"))
}
