//! The `soci` command: flags in, one library call, text out. What is typed is parsed in `args`, what it means is
//! settled by the command it belongs to, what is printed goes through `output`. Errors come up with their causes
//! and are told once, at the end of `main`.
//!
//! The modules stand in the order in which a command meets them; imports point down the list.

pub mod commands;

mod local;

pub mod args;

mod place;

mod artifacts;

mod store;

mod control;

mod files;

pub mod output;

mod time;

pub mod error;
