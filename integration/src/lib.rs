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

pub mod reference;

pub mod images;

pub mod registry;

pub mod ecr;

pub mod link;

pub mod daemon;

pub mod containerd;

pub mod lab;

pub mod parts;

pub mod machine;

pub mod process;

pub mod tree;
