//! Mounts below a folder: found in the kernel's table, detached newest first, what is not FUSE before what is.
//! Nothing below a mount is ever looked at: behind a FUSE mount may be a daemon that is gone.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};

/// The same point may be mounted over several times.
const ROUNDS: usize = 8;

pub(super) struct Mount {
    pub(super) point: PathBuf,
    is_fuse: bool,
}

/// In the order of the table: oldest first.
pub(super) fn below(folder: &Path) -> Result<Vec<Mount>> {
    let table = fs::read("/proc/self/mountinfo").context("read the table of mounts")?;
    let lines = table.split(|&byte| byte == b'\n');
    Ok(lines.filter_map(parse).filter(|mount| mount.point.starts_with(folder)).collect())
}

pub(super) fn detach(folder: &Path) -> Result<()> {
    for _ in 0..ROUNDS {
        let mut mounts = below(folder)?;
        if mounts.is_empty() {
            return Ok(());
        }
        mounts.reverse();
        mounts.sort_by_key(|mount| mount.is_fuse);
        for mount in mounts {
            // What fails shows in the next round, and at last in the error.
            let _ = unmount(&mount.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    bail!("mounts below {} cannot be detached", folder.display())
}

/// `36 35 98:0 /root /point options … - type source …`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let point = unescape(fields.nth(4)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { point: OsString::from_vec(point).into(), is_fuse: kind.starts_with(b"fuse") })
}

/// The kernel writes blanks and backslashes as `\040`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\');
        let value = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(first));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    bytes
}
