//! The configuration that workers run with: the last one that was read without an error.
//!
//! It is read at the start and at each upgrade, so that a typo in the file is reported then, and not when the next worker
//! has to be started.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::config::Config;

#[derive(Debug)]
pub(super) struct Configuration {
    path: PathBuf,
    must_exist: bool,
    /// The file's text, which workers inherit.
    kept: File,
}

impl Configuration {
    pub(super) fn read(path: &Path, must_exist: bool) -> anyhow::Result<Self> {
        let kept = File::from(memfd_create("soci configuration", MemfdFlags::CLOEXEC)?);
        let mut configuration = Self { path: path.to_owned(), must_exist, kept };
        configuration.renew()?;
        Ok(configuration)
    }

    /// Reads the file again. After an error, the last configuration stays.
    pub(super) fn renew(&mut self) -> anyhow::Result<()> {
        let text = Config::text(&self.path, self.must_exist).map_err(anyhow::Error::msg)?;
        let config = Config::parse(&text);
        let config =
            config.map_err(|e| anyhow::Error::msg(format!("read config {}: {e}", self.path.display())))?;
        for remark in &config.remarks {
            tracing::warn!(config = %self.path.display(), line = remark.line, "{}", remark.text);
        }
        self.keep(&text)?;
        Ok(())
    }

    fn keep(&self, text: &str) -> io::Result<()> {
        self.kept.set_len(0)?;
        self.kept.write_all_at(text.as_bytes(), 0)
    }
}

impl AsFd for Configuration {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kept.as_fd()
    }
}
