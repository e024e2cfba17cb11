//! The tests of the crate as a whole: the bytes it must make, what must come back out of them, and what it
//! must refuse.

mod golden;
mod hostile;
mod layers;
mod roundtrip;
