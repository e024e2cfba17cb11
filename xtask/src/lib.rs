//! The part of the chores that tests use, too: the machine, processes, and steps that are told and timed.
//!
//! `cargo xtask` is compiled before everything else. So this crate depends on nothing of the product, and on little else.

/// A list of steps, each announced, timed and remembered.
pub mod steps;
/// What this machine can do, and installing what is missing.
pub mod machine;
/// Child processes that end with their owner.
pub mod process;
