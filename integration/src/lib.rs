//! The harness: real registries, real containerd, our daemon, images, and the truth to compare with.
//!
//! A test makes a [`Lab`](lab::Lab): a folder with everything that belongs to the test. Into it go a
//! [`Registry`](registry::Registry), perhaps a [`Link`](link::Link) before it that counts and breaks things, or an
//! [`Ecr`](ecr::Ecr), a [`Containerd`](containerd::Containerd) and a [`Daemon`](daemon::Daemon), all with sockets
//! and state of their own, and images from [`images`]. What comes out is compared as a [`Tree`](tree::Tree) with
//! what [`reference`](mod@reference) says. When the lab goes, so does everything in it: processes, mounts, files;
//! also after a panic, after Ctrl-C, and (at the next run) after SIGKILL.
//!
//! Nothing here is mocked. The modules stand in the order in which a test meets them; imports point down.
//!
//! Without the feature `harness` only the last few are there, for `cargo xtask`: it is compiled before everything else, and
//! what it needs would be compiled twice, with other features than the whole workspace has.

#[cfg(feature = "harness")]
pub mod reference;

#[cfg(feature = "harness")]
pub mod images;

#[cfg(feature = "harness")]
pub mod registry;

#[cfg(feature = "harness")]
pub mod ecr;

#[cfg(feature = "harness")]
pub mod link;

#[cfg(feature = "harness")]
pub mod daemon;

#[cfg(feature = "harness")]
pub mod containerd;

#[cfg(feature = "harness")]
pub mod lab;

#[cfg(feature = "harness")]
pub mod parts;

pub mod steps;

pub mod machine;

pub mod process;

#[cfg(feature = "harness")]
pub mod tree;
