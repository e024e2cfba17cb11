//! The tests of the whole. What needs root is named `privileged_`, what needs FUSE `fuse_`, what needs containerd
//! `containerd_`.

mod harness;

mod image;

mod adoption;

mod idmap;
/// Whatever becomes of the daemon, containers go on.
mod survival;

mod units;

mod read_path;

mod start;

mod faults;

mod metrics;

mod operating;

mod clients;

mod conformance;

mod snapshots;

mod interop;

mod commands;
