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

/// The truth: a layer as a plain unpacking leaves it.
pub mod reference;
/// Images to test with, written by the harness or made of Debian packages.
pub mod images;
/// A real registry.
pub mod registry;
/// A look-alike of Amazon ECR.
pub mod ecr;
/// A line in front of a registry that is slow, counts and breaks things.
pub mod link;
/// Our daemon.
pub mod daemon;
/// A real containerd.
pub mod containerd;
/// A folder with everything that belongs to one test.
pub mod lab;
/// Real parts that move: newer containerds, nerdctl, crictl.
pub mod parts;
/// A folder with its attributes, to be compared.
pub mod tree;

pub use xtask::{machine, process, steps};
