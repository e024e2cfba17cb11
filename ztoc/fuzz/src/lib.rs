//! What the fuzz targets share: the layers of ztoc's own tests, inputs cut into parts, ztocs around any zinfo, and
//! mutations that keep what a parser checks first.
//!
//! Seeds are no files. Each target's mutator now and then hands out one of its seeds instead of a mutation. So a run
//! needs nothing prepared, and seeds are never stale.

pub mod assemble;
pub mod input;
pub mod mutate;
pub mod pieces;
pub mod seeds;
pub mod wrap;

#[path = "../../tests/it/ask.rs"]
mod ask;
#[path = "../../tests/it/layers.rs"]
#[allow(dead_code, reason = "shared with the tests of ztoc, which use all of it")]
mod layers;

/// Asks a ztoc everything.
pub fn ask(ztoc: &ztoc::Ztoc, layer: &[u8]) {
    // where every answer is an error, that is fine too
    let _ = ask::everything(ztoc, layer);
}
