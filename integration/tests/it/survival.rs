//! Containers outlive whatever becomes of the daemon: its worker, its supervisor, both, its binary, its disk. Everything
//! is real: containers read through their overlays while processes are killed, stopped, replaced.

mod killed;
mod mount;
mod replaced;
mod scene;
mod stopped;
