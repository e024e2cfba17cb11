//! Conversions between stores in memory and registries in process; reading indexes.

// In a test an unwrap is an assertion; clippy sees that only in plain `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod convert;
mod odd_images;
mod create;
mod images;
mod locate;
mod manifest;
mod prefetch;
mod registries;
mod verify;
