//! Any bytes as a tar that is not compressed: built whole and in pieces, and everything built can be used.
//!
//! Input: span size, lengths of the pieces, the tar.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use ztoc::{Compression, EntryKind, Ztoc};
use ztoc_fuzz::input::Input;
use ztoc_fuzz::mutate::{self, Dice};
use ztoc_fuzz::{ask, pieces, seeds};

/// The bytes before the tar.
const FRONT: usize = 6;
const BLOCK: usize = 512;

static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds::tar_tocs);

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let span_size = u64::from(input.short()).max(64);
    let lengths = input.take(FRONT - 2);
    let tar = input.rest();
    let lengths = if lengths.is_empty() { &[0] } else { lengths };
    let Ok((built, inflated)) = pieces::build(tar, Compression::Uncompressed, span_size, lengths) else {
        return;
    };
    assert!(inflated == tar);
    let ztoc = Ztoc::from_vec(built.ztoc).expect("what was built can be opened");
    ztoc.check_hard_links().expect("what was built can be mounted");
    assert_eq!(ztoc.compressed_size(), tar.len() as u64);
    assert!(ztoc.uncompressed_size() <= tar.len() as u64);
    for entry in ztoc.entries() {
        let (header, contents) = (entry.header(), entry.data());
        assert!(header.start < header.end && header.end == contents.start);
        let area = &tar[header.start.0 as usize..header.end.0 as usize];
        // a year of five digits cannot be stored
        assert!(entry.verify_header(area).is_ok() || entry.mtime().is_none());
        // a link that states a size has no data: it may point behind the end
        if entry.kind() == EntryKind::Regular || entry.size() == 0 {
            assert!(contents.end.0 <= ztoc.uncompressed_size());
            let bytes = ztoc.extract(contents.clone(), &mut |_, range| {
                Ok(tar[range.start.0 as usize..range.end.0 as usize].to_vec())
            });
            assert!(bytes.expect("it is there") == tar[contents.start.0 as usize..contents.end.0 as usize]);
        }
    }
    ask(&ztoc, tar);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut dice = Dice::new(seed);
    if let Some(len) = mutate::seed(data, max_size, &mut dice, &SEEDS) {
        return len;
    }
    let blocks = size.saturating_sub(FRONT) / BLOCK;
    let size = match dice.roll(8) {
        // blocks of a seed in front of any block; or one of ours gone
        0 | 1 => {
            let seed = &SEEDS[dice.roll(SEEDS.len())][FRONT..];
            let from = dice.roll(seed.len() / BLOCK);
            let count = 1 + dice.roll((seed.len() / BLOCK - from).min(4));
            let part = &seed[from * BLOCK..(from + count) * BLOCK];
            let at = (FRONT + dice.roll(blocks + 1) * BLOCK).min(size);
            mutate::insert(data, size, max_size, at, part)
        }
        2 if blocks > 0 => mutate::remove(data, size, FRONT + dice.roll(blocks) * BLOCK, BLOCK),
        _ => fuzzer_mutate(data, size, max_size),
    };
    if dice.roll(8) > 0 && size > FRONT {
        mutate::close_headers(&mut data[FRONT..size]);
    }
    size
});
