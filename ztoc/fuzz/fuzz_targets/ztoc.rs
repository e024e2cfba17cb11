//! Any bytes as a ztoc, and everything a reader asks of it, with any bytes as its layer.
//!
//! Input: mode (bit 0: put a window of zeros in, bit 1: make the span digests right), where the window goes,
//! how long the ztoc is, the ztoc, the layer.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use ztoc::Ztoc;
use ztoc_fuzz::input::Input;
use ztoc_fuzz::mutate::{self, Dice};
use ztoc_fuzz::{ask, assemble, seeds};

static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds::ztocs);

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mode = input.byte();
    let at = usize::from(input.short());
    let len = usize::from(input.short());
    let mut bytes = input.take(len).to_vec();
    let layer = input.rest();
    if mode & 1 != 0 {
        let at = at.min(bytes.len());
        bytes.splice(at..at, [0; seeds::WINDOW]);
    }
    if mode & 2 != 0 {
        bytes = assemble::with_right_digests(bytes, layer);
    }
    if let Ok(ztoc) = Ztoc::from_vec(bytes) {
        ask(&ztoc, layer);
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut dice = Dice::new(seed);
    mutate::seed(data, max_size, &mut dice, &SEEDS).unwrap_or_else(|| fuzzer_mutate(data, size, max_size))
});
