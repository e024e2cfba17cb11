//! A file that is written beside its place and moved there when it is complete. A reader sees all of it or nothing.

use std::{
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
};

/// Removed when dropped, unless it was moved to its place. Blocks.
#[derive(Debug)]
pub(super) struct Draft(Option<PathBuf>);

impl Draft {
    /// Makes a file beside `path`, of a name that no other writer of the folder uses.
    pub(super) fn beside(path: &Path) -> io::Result<(Self, File)> {
        let folder = path.parent().unwrap_or(Path::new(""));
        loop {
            let salt = RandomState::new().hash_one(path);
            let draft = folder.join(format!(".draft-{salt:016x}"));
            match File::options().read(true).write(true).create_new(true).open(&draft) {
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                opened => return opened.map(|file| (Self(Some(draft)), file)),
            }
        }
    }

    /// Moves the file to its place. It is removed if that fails.
    pub(super) fn move_to(mut self, path: &Path) -> io::Result<()> {
        let Some(draft) = &self.0 else { return Ok(()) };
        fs::rename(draft, path)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // A draft that stays takes room, and nothing else.
            let _ = fs::remove_file(path);
        }
    }
}
