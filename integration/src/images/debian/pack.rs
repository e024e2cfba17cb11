//! A tree becomes a layer: GNU tar with sorted names, numeric owners and one time for all, and `gzip -6`, so that
//! the same tree gives the same bytes, and they are such as every builder makes.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use oci::Digest;
use sha2::{Digest as _, Sha256};

use crate::process::spawn;

pub(super) struct Packed {
    pub(super) file: PathBuf,
    pub(super) diff_id: Digest,
    /// uncompressed
    pub(super) size: u64,
}

pub(super) fn pack(tree: &Path, file: &Path) -> Result<Packed> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--numeric-owner", "--mtime=@1704067200", "--format=posix"]);
    tar.args(["--pax-option=delete=atime,delete=ctime", "--directory"]).arg(tree);
    // Without an entry for the top itself, as builders write layers.
    let mut names: Vec<_> = std::fs::read_dir(tree)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    tar.arg("--").args(names).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut tar = spawn(tar).context("run tar")?;
    let mut gzip = Command::new("gzip");
    gzip.args(["-n", "-6"]).stdin(Stdio::piped()).stdout(File::create(file)?);
    let mut gzip = spawn(gzip).context("run gzip")?;
    let mut out = gzip.stdin.take().context("write to gzip")?;
    let mut hasher = Sha256::new();
    let mut size = 0;
    let mut source = tar.stdout.take().context("read from tar")?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = source.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        size += length as u64;
        out.write_all(&buffer[..length]).context("write to gzip")?;
    }
    drop(out);
    let (tar, gzip) = (tar.wait()?, gzip.wait()?);
    if !tar.success() || !gzip.success() {
        bail!("pack {}: {tar}, {gzip}", tree.display());
    }
    Ok(Packed { file: file.to_owned(), diff_id: Digest::from_sha256(hasher.finalize().into()), size })
}
