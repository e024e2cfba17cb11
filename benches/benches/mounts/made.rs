//! Layers written by hand: many entries, few bytes, no two layers alike.

use anyhow::Result;
use integration::images::{Layer, Tar, tar::Entry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Entries of a folder.
pub(crate) const FOLDER: usize = 100;
/// Bytes of a file that is read: a page.
pub(crate) const PAGE: usize = 4096;

/// A layer with a folder of its own, which has `entries` empty files (their folders counted) and `pages` files of a
/// page each.
pub(crate) fn layer(number: usize, entries: usize, pages: usize) -> Layer {
    let top = format!("layer{number}");
    let mut tar = Tar::new([Entry::directory(&top)]);
    for entry in 0..entries.saturating_sub(1) {
        let path = format!("{top}/{}", path_in_layer(entry));
        tar = match entry % FOLDER {
            0 => tar.with(Entry::directory(path)),
            _ => tar.with(Entry::file(path, "")),
        };
    }
    for page in 0..pages {
        let bytes: Vec<u8> = (0..PAGE).map(|at| ((at * 31 + number * 7 + page) % 251) as u8).collect();
        tar = tar.with(Entry::file(format!("{top}/page{page}"), bytes));
    }
    Layer::gzip(&tar.bytes())
}

/// Where the entry of that number is in the layer's own folder: the first of each hundred is the others' folder.
pub(crate) fn path_in_layer(entry: usize) -> String {
    match entry % FOLDER {
        0 => format!("d{}", entry / FOLDER),
        _ => format!("d{}/f{entry}", entry / FOLDER),
    }
}

/// A layer holds two files open; a shell allows 1 024.
pub(crate) fn allow_many_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}
