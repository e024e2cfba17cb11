//! The `soci` command: flags in, one library call, text out. What is typed is parsed in `args`, what it means is
//! settled by the command it belongs to, what is printed goes through `output`. Errors come up with their causes
//! and are told once, at the end of `main`.
//!
//! The modules stand in the order in which a command meets them; imports point down the list.

/// One file a command.
pub mod commands;
/// The local store: where builds go, and where `list`, `info` and `push` find them.
mod local_store;
/// Flags as typed.
pub mod args;
/// Where an image lies, as the user names it.
mod location;
/// The list of artifacts that were built on this machine.
mod artifacts;
/// containerd's services as a store.
mod containerd;
/// Calls to the daemon.
mod daemon_client;
/// Files that are read whole, with a limit.
mod files;
/// Tables and JSON: everything that is printed.
pub mod output;
/// Times since 1970, in UTC.
mod time;
/// The error of this crate, its kinds and exit codes.
pub mod error;
