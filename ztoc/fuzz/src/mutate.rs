//! Mutations: libFuzzer's own, a seed now and then, and, for tars, headers whose checksums are made right.

/// Small and quick, and the same for the same seed.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u32) -> Dice {
        Dice(u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `sides`, which is not 0.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % sides
    }
}

/// One of the seeds in place of `data`, once in a hundred times; gives its length.
pub fn seed(data: &mut [u8], max_size: usize, dice: &mut Dice, seeds: &[Vec<u8>]) -> Option<usize> {
    if dice.roll(100) > 0 {
        return None;
    }
    let seed = &seeds[dice.roll(seeds.len())];
    let len = seed.len().min(max_size);
    data[..len].copy_from_slice(&seed[..len]);
    Some(len)
}

/// Puts `part` in front of place `at` of the first `size` bytes, if there is room; gives the new size.
pub fn insert(data: &mut [u8], size: usize, max_size: usize, at: usize, part: &[u8]) -> usize {
    if size + part.len() > max_size {
        return size;
    }
    data.copy_within(at..size, at + part.len());
    data[at..at + part.len()].copy_from_slice(part);
    size + part.len()
}

/// Removes bytes; gives the new size.
pub fn remove(data: &mut [u8], size: usize, at: usize, len: usize) -> usize {
    let end = (at + len).min(size);
    data.copy_within(end..size, at);
    size - (end - at)
}

/// Makes the checksums of a tar's headers right. Every block counts as a header that is not all zeros and
/// states a checksum in digits.
pub fn close_headers(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512) {
        if !block[148..154].iter().all(u8::is_ascii_digit) {
            continue;
        }
        block[148..156].copy_from_slice(b"        ");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
