//! Bytes to values and back: one module for each wire format. Writing is done with the FlatBuffers runtime,
//! table by table and slot by slot, because order and layout are part of a ztoc's digest; reading is done in
//! place (`flat`).

pub(crate) mod ztoc;
pub(crate) mod gzip_zinfo;
pub(crate) mod tar_zinfo;

/// The place of a slot in a vtable.
const fn slot(number: u16) -> u16 {
    4 + 2 * number
}
