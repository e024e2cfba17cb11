//! Any bytes as a gzipped layer: built whole and in pieces; then each span, alone, must inflate to exactly its
//! part of the whole.
//!
//! Input: mode, span size, lengths of the pieces, then by mode: 0, a layer; 1, a deflate stream, which gets a
//! header and (if another inflater can read it) the trailer it needs; 2, bytes that are put into stored blocks
//! and blocks of fixed codes, member by member. In 1 and 2 the tar ends before them, so that they may be
//! anything.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ztoc::{Compression, ErrorKind, SpanId, Ztoc};
use ztoc_fuzz::input::Input;
use ztoc_fuzz::mutate::{self, Dice};
use ztoc_fuzz::{ask, pieces, seeds, wrap};

/// More than this is not inflated in mode 1.
const LIMIT: usize = 1 << 18;

static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds::gzip_checkpoints);

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mode = input.byte();
    // each span has a window of 32 KiB: some dozens of spans are enough
    let span_size = u64::from(input.short()).max(500);
    let lengths = input.take(4);
    let lengths = if lengths.is_empty() { &[50] } else { lengths };
    let rest = input.rest();
    let (layer, expected) = match mode {
        0 => (rest.to_vec(), None),
        1 => stream(rest),
        _ => {
            let (layer, content) = wrap::in_blocks(rest, lengths);
            (layer, Some(content))
        }
    };
    let built = pieces::build(&layer, Compression::Gzip, span_size, lengths);
    let (built, inflated) = match built {
        Ok(built) => built,
        Err(error) => {
            assert!(mode < 2, "{error}");
            assert!(expected.is_none() || error.kind() == ErrorKind::Corrupt, "{error}");
            return;
        }
    };
    assert!(expected.is_none_or(|expected| expected == inflated), "two inflaters disagree");
    let ztoc = Ztoc::from_vec(built.ztoc).expect("what was built can be opened");
    ztoc.verify_prefix(&layer[..ztoc.prefix().end.0 as usize]).expect("a header");
    check(&ztoc, &layer, &inflated);
    ask(&ztoc, &layer);
});

/// A layer around a deflate stream; and what it inflates to, if it does.
fn stream(deflate: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let blocks = [&wrap::end_of_tar()[..], deflate].concat();
    let mut out = vec![0; LIMIT];
    let mut inflater = DecompressorOxide::new();
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, used, len) = decompress(&mut inflater, &blocks, &mut out, 0, flags);
    out.truncate(len);
    if status == TINFLStatus::Done {
        (wrap::member(&blocks[..used], &out), Some(out))
    } else {
        (wrap::member(&blocks, &out), None)
    }
}

fn check(ztoc: &Ztoc, layer: &[u8], inflated: &[u8]) {
    let spans = ztoc.spans();
    let mut all = Vec::new();
    for span in (0..spans.len()).map(SpanId) {
        let (range, held) = (spans.compressed(span), spans.uncompressed(span));
        let compressed = &layer[range.start.0 as usize..range.end.0 as usize];
        let mut out = Vec::new();
        ztoc.inflate_span(span, compressed, &mut out).expect("a span of ours");
        assert!(out == inflated[held.start.0 as usize..held.end.0 as usize], "span {span}");
        if span.0 + 1 < spans.len() {
            assert!(out.len() as u64 > spans.span_size());
            all.extend(out);
        } else {
            let tail = (inflated.len() - all.len()).saturating_sub(out.len()) as u64;
            ztoc.inflating_to_the_end(compressed, tail)
                .and_then(|it| it.all(&mut all))
                .expect("the end of the layer");
        }
    }
    assert!(all == inflated, "the spans are not the layer");
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut dice = Dice::new(seed);
    mutate::seed(data, max_size, &mut dice, &SEEDS).unwrap_or_else(|| fuzzer_mutate(data, size, max_size))
});
