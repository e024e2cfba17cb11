//! A fuzzed input, taken from its front: numbers where a target needs some, and the rest as it is. What is
//! missing is zero.

/// The bytes that are left.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let (front, rest) = self.0.split_at(self.0.len().min(N));
        array[..front.len()].copy_from_slice(front);
        self.0 = rest;
        array
    }

    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn signed(&mut self) -> i64 {
        i64::from_le_bytes(self.array())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most `len` bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(self.0.len().min(len));
        self.0 = rest;
        front
    }

    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}
