//! Any bytes as the zinfo of a layer that is not compressed, in a ztoc that is otherwise right.
//!
//! Input: how many digests, flags (bit 0: sizes and last span are stated too, else they are true), the zinfo.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use ztoc::{SpanId, Ztoc};
use ztoc_fuzz::assemble::{self, Assembled};
use ztoc_fuzz::input::Input;
use ztoc_fuzz::mutate::{self, Dice};
use ztoc_fuzz::{ask, seeds};

static LAYER: LazyLock<Vec<u8>> = LazyLock::new(|| seeds::tars().swap_remove(0));
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds::tar_zinfos);

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let digests = usize::from(input.byte());
    let stated = input.byte() & 1 != 0;
    let (compressed_size, uncompressed_size, max_span_id) = if stated {
        (input.signed(), input.signed(), i32::from(input.short() as i16))
    } else {
        (LAYER.len() as i64, LAYER.len() as i64, digests as i32 - 1)
    };
    let assembled = Assembled {
        algorithm: assemble::UNCOMPRESSED,
        zinfo: input.rest(),
        max_span_id,
        digests,
        compressed_size,
        uncompressed_size,
    };
    let bytes = assemble::with_right_digests(assembled.encode(), &LAYER);
    let Ok(ztoc) = Ztoc::from_vec(bytes) else { return };
    ask(&ztoc, &LAYER);
    for span in (0..ztoc.spans().len()).map(SpanId) {
        let (range, held) = (ztoc.spans().compressed(span), ztoc.spans().uncompressed(span));
        let Some(compressed) = LAYER.get(range.start.0 as usize..range.end.0 as usize) else { continue };
        let mut out = Vec::new();
        if ztoc.inflate_span(span, compressed, &mut out).is_ok() {
            // offsets on both sides are the same numbers here
            assert!(
                out.is_empty() || out == LAYER[held.start.0 as usize..held.end.0 as usize],
                "span {span}"
            );
        }
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut dice = Dice::new(seed);
    mutate::seed(data, max_size, &mut dice, &SEEDS).unwrap_or_else(|| fuzzer_mutate(data, size, max_size))
});
