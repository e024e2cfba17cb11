//! A tar, written entry by entry, with the odd things that layers hold: every kind of entry, attributes, times
//! with fractions and before 1970, long names in both dialects, names that are not UTF-8. It knows the tree that
//! a plain unpacking of it gives ([`Tar::tree`]), so that a test states its layer once.

mod expect;
mod header;

use std::collections::BTreeMap;

/// How what does not fit a header is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// records before the entry, as Go and Docker write
    #[default]
    Pax,
    /// entries `L` and `K` for long names, base-256 for odd numbers, as GNU tar writes by default
    Gnu,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    /// to an earlier path of the same tar
    HardLink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// One entry, made by one of the functions named for its kinds, and changed by the others.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// seconds, and nanoseconds added to them
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The entries of one layer, in their order.
#[derive(Debug, Clone, Default)]
pub struct Tar {
    dialect: Dialect,
    entries: Vec<Entry>,
}

/// 2024-01-01: entries are as old as that unless said otherwise.
pub const USUAL_MTIME: i64 = 1_704_067_200;

impl Entry {
    pub fn new(path: impl AsRef<[u8]>, kind: Kind) -> Entry {
        let mode = match &kind {
            Kind::Directory => 0o755,
            Kind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        let path = path.as_ref().to_vec();
        Entry { path, kind, mode, uid: 0, gid: 0, mtime: (USUAL_MTIME, 0), xattrs: BTreeMap::new() }
    }

    pub fn directory(path: impl AsRef<[u8]>) -> Entry {
        Entry::new(path, Kind::Directory)
    }

    pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
        Entry::new(path, Kind::File(content.as_ref().to_vec()))
    }

    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
        Entry::new(path, Kind::Symlink(target.as_ref().to_vec()))
    }

    pub fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
        Entry::new(path, Kind::HardLink(target.as_ref().to_vec()))
    }

    /// The mark that takes away `path` of the layers below.
    pub fn whiteout(path: impl AsRef<[u8]>) -> Entry {
        let path = path.as_ref();
        let cut = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        Entry::file([&path[..cut], b".wh.", &path[cut..]].concat(), "")
    }

    /// The mark that takes away everything in the directory `path` of the layers below.
    pub fn opaque(path: impl AsRef<[u8]>) -> Entry {
        Entry::file([path.as_ref(), b"/.wh..wh..opq"].concat(), "")
    }

    #[must_use]
    pub fn mode(mut self, mode: u32) -> Entry {
        self.mode = mode;
        self
    }

    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Entry {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Before 1970 with a fraction: -2 seconds and 500 000 000 ns are 1.5 s before.
    #[must_use]
    pub fn mtime(mut self, seconds: i64, nanoseconds: u32) -> Entry {
        self.mtime = (seconds, nanoseconds);
        self
    }

    #[must_use]
    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Entry {
        self.xattrs.insert(name.as_ref().to_vec(), value.as_ref().to_vec());
        self
    }
}

impl Tar {
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Tar {
        Tar { dialect: Dialect::Pax, entries: entries.into_iter().collect() }
    }

    #[must_use]
    pub fn dialect(mut self, dialect: Dialect) -> Tar {
        self.dialect = dialect;
        self
    }

    #[must_use]
    pub fn with(mut self, entry: Entry) -> Tar {
        self.entries.push(entry);
        self
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tar, with its end.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for entry in &self.entries {
            header::write(&mut out, entry, self.dialect);
        }
        out.resize(out.len() + 2 * header::BLOCK, 0);
        out
    }
}
