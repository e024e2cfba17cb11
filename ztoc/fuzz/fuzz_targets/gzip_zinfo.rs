//! Any bytes as the zinfo of a gzipped layer, in a ztoc that is otherwise right.
//!
//! Input: which layer, flags (bit 0: sizes and last span are stated too, else they are true; bit 1: one digest
//! too few), the zinfo. The windows of its checkpoints are left out and put in here, as they are in the layer.
//!
//! Checkpoints that are all true must inflate to their part of the layer.
#![no_main]

use std::collections::HashSet;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use ztoc::{SpanId, Ztoc};
use ztoc_fuzz::ask;
use ztoc_fuzz::assemble::{self, Assembled};
use ztoc_fuzz::input::Input;
use ztoc_fuzz::mutate::{self, Dice};
use ztoc_fuzz::seeds::{self, Layer, RECORD, WINDOW};

/// Each checkpoint has a window of 32 KiB.
const MOST_RECORDS: usize = 32;
/// The count and the span size.
const HEADER: usize = 12;

/// A layer, and every place where a checkpoint can be.
struct Known {
    layer: Layer,
    places: HashSet<Vec<u8>>,
}

static LAYERS: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let known = |layer: Layer| {
        let records = seeds::records(&layer.bytes, 1);
        let places = records[HEADER..].chunks(RECORD).map(<[u8]>::to_vec).collect();
        Known { layer, places }
    };
    seeds::gzipped().into_iter().map(known).collect()
});
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds::gzip_zinfos);

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let known = &LAYERS[usize::from(input.byte()) % LAYERS.len()];
    let Layer { bytes: layer, inflated } = &known.layer;
    let flags = input.byte();
    let stated = (flags & 1 != 0).then(|| (input.signed(), input.signed(), i32::from(input.short() as i16)));
    let compact = input.rest();
    if compact.len() > HEADER + (MOST_RECORDS + 1) * RECORD {
        return;
    }
    let zinfo = with_windows(compact, inflated);
    let count = compact.first_chunk::<4>().map_or(0, |have| i32::from_le_bytes(*have));
    let digests =
        usize::try_from(count).unwrap_or(0).min(compact.len()).saturating_sub(usize::from(flags & 2 != 0));
    let (compressed_size, uncompressed_size, max_span_id) =
        stated.unwrap_or((layer.len() as i64, inflated.len() as i64, count.wrapping_sub(1)));
    let assembled = Assembled {
        algorithm: assemble::GZIP,
        zinfo: &zinfo,
        max_span_id,
        digests,
        compressed_size,
        uncompressed_size,
    };
    let bytes = assemble::with_right_digests(assembled.encode(), layer);
    let Ok(ztoc) = Ztoc::from_vec(bytes) else { return };
    ask(&ztoc, layer);
    let mut records = compact[HEADER..].chunks_exact(RECORD);
    let whole =
        records.len() == count as usize && records.by_ref().all(|record| known.places.contains(record));
    if whole && stated.is_none() {
        check(&ztoc, layer, inflated);
    }
});

/// The zinfo with the window of each checkpoint behind it: what precedes its place in the layer.
fn with_windows(compact: &[u8], inflated: &[u8]) -> Vec<u8> {
    let (header, records) = compact.split_at(compact.len().min(HEADER));
    let mut zinfo = header.to_vec();
    let mut records = records.chunks_exact(RECORD);
    for record in &mut records {
        zinfo.extend_from_slice(record);
        let out = u64::from_le_bytes(*record[8..].first_chunk().expect("a record has 17 bytes"));
        let before = usize::try_from(out).ok().and_then(|out| inflated.get(..out)).unwrap_or_default();
        let before = &before[before.len().saturating_sub(WINDOW)..];
        zinfo.resize(zinfo.len() + WINDOW - before.len(), 0);
        zinfo.extend_from_slice(before);
    }
    zinfo.extend_from_slice(records.remainder());
    zinfo
}

fn check(ztoc: &Ztoc, layer: &[u8], inflated: &[u8]) {
    for span in (0..ztoc.spans().len().min(64)).map(SpanId) {
        let (range, held) = (ztoc.spans().compressed(span), ztoc.spans().uncompressed(span));
        let compressed = &layer[range.start.0 as usize..range.end.0 as usize];
        let mut out = Vec::new();
        ztoc.inflate_span(span, compressed, &mut out).expect("checkpoints that are true");
        assert!(out == inflated[held.start.0 as usize..held.end.0 as usize], "span {span}");
    }
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut dice = Dice::new(seed);
    if let Some(len) = mutate::seed(data, max_size, &mut dice, &SEEDS) {
        return len;
    }
    // take a checkpoint out, and count them right again: what is left is still true
    if dice.roll(4) == 0 && size > 2 + HEADER + RECORD && data[1] == 0 {
        let records = (size - 2 - HEADER) / RECORD;
        let size = mutate::remove(data, size, 2 + HEADER + RECORD * dice.roll(records), RECORD);
        data[2..6].copy_from_slice(&(records as u32 - 1).to_le_bytes());
        return size;
    }
    fuzzer_mutate(data, size, max_size)
});
