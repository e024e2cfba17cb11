//! The tests of the crate as a whole: the bytes it must make, what must come back out of them, and what it
//! must refuse.
#![allow(clippy::unwrap_used, reason = "a test that unwraps has failed; clippy sees that in `#[test]` only")]

mod ask;
mod derived;
mod golden;
mod hostile;
mod layers;
mod roundtrip;
mod unusual;
