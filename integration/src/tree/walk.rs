//! From a directory on disk (or on FUSE, or on overlayfs) to a [`Tree`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{Entry, Kind, Tree};

/// A list or a value of extended attributes, as long as the kernel allows.
const XATTR_BYTES_MAX: usize = 64 << 10;
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Everything below `top`, itself included; contents are read.
pub fn walk(top: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut inodes: BTreeMap<(u64, u64), BTreeSet<Vec<u8>>> = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(path) = waiting.pop() {
        let doing = || format!("walk {}", path.display());
        let metadata = fs::symlink_metadata(&path).with_context(doing)?;
        let relative = path.strip_prefix(top).expect("what is below the top begins with it");
        let relative = relative.as_os_str().as_bytes().to_vec();
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).with_context(doing)? {
                waiting.push(entry.with_context(doing)?.path());
            }
        } else if metadata.nlink() > 1 {
            inodes.entry((metadata.dev(), metadata.ino())).or_default().insert(relative.clone());
        }
        tree.insert(entry(&path, relative, &metadata).with_context(doing)?);
    }
    for group in inodes.values().filter(|group| group.len() > 1) {
        for path in group {
            if let Some(entry) = tree.entries.get_mut(path) {
                entry.links.clone_from(group);
            }
        }
    }
    Ok(tree)
}

fn entry(path: &Path, relative: Vec<u8>, metadata: &Metadata) -> Result<Entry> {
    let kind = kind(metadata);
    let is_device = matches!(kind, Kind::Character | Kind::Block);
    let device = metadata.rdev();
    Ok(Entry {
        path: relative,
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: if matches!(kind, Kind::File | Kind::Symlink) { metadata.size() } else { 0 },
        mtime_seconds: metadata.mtime(),
        mtime_nanoseconds: metadata.mtime_nsec(),
        target: match kind {
            Kind::Symlink => fs::read_link(path)?.as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        },
        links: BTreeSet::new(),
        device: if is_device { (libc::major(device), libc::minor(device)) } else { (0, 0) },
        xattrs: xattrs(path)?,
        content: if kind == Kind::File { Some(hash(path)?) } else { None },
    })
}

fn kind(metadata: &Metadata) -> Kind {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_symlink() => Kind::Symlink,
        () if kind.is_char_device() => Kind::Character,
        () if kind.is_block_device() => Kind::Block,
        () if kind.is_fifo() => Kind::Fifo,
        () if kind.is_socket() => Kind::Socket,
        () => Kind::File,
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut buffer = vec![0; XATTR_BYTES_MAX];
    let length = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).context("list attributes"),
    };
    let names: Vec<Vec<u8>> = buffer[..length].split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
    let mut found = BTreeMap::new();
    for name in names.into_iter().filter(|name| !name.is_empty() && !name.starts_with(OVERLAY)) {
        let length =
            rustix::fs::lgetxattr(path, name.as_slice(), &mut buffer[..]).context("read an attribute")?;
        found.insert(name, buffer[..length].to_vec());
    }
    Ok(found)
}

fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(&buffer[..length]),
        }
    }
}
