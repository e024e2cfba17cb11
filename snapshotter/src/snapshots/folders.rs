//! The folders of snapshots on the local disk: made before a record, removed after it.
//!
//! A folder without a record is about to get one, or is to be removed. A thread removes folders, one after the other, so
//! that no request waits for it. The next start and every [`Folders::sweep`] find what the thread did not get to. Numbers
//! are never reused. Folders whose names are not numbers are left alone.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::Mutex,
};

use layerfs::{Inherited, LowerEntry, Trash};

use crate::{error::Error, snapshots::store::Kind, sync::lock};

/// The folders of all snapshots.
#[derive(Debug)]
pub(crate) struct Folders {
    /// `<root>/snapshotter/snapshots`
    home: PathBuf,
    /// Numbers of snapshots that have their folders and not yet their records.
    making: Mutex<HashSet<u64>>,
    trash: Trash,
}

/// A snapshot that has its folder and is about to get its record. Its folder is kept while this lives.
#[derive(Debug)]
pub(crate) struct Making<'a> {
    folders: &'a Folders,
    id: u64,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        lock(&self.folders.making).remove(&self.id);
    }
}

impl Folders {
    /// Makes the folder of folders if it is missing, and answers with the numbers in it, too.
    pub(crate) fn open(home: &Path) -> Result<(Self, Vec<u64>), Error> {
        let failed = |e| Error::internal(format!("make folder {}", home.display()), e);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(home).map_err(failed)?;
        let trash = Trash::start().map_err(failed)?;
        let folders = Self { home: home.to_owned(), making: Mutex::default(), trash };
        let present = folders.numbers()?;
        Ok((folders, present))
    }

    /// The folder of a snapshot. `fs` is in it and, for a snapshot that is written to, `work`.
    pub(crate) fn of(&self, id: u64) -> PathBuf {
        self.home.join(id.to_string())
    }

    /// The snapshot's own files.
    pub(crate) fn files(&self, id: u64) -> PathBuf {
        self.of(id).join("fs")
    }

    /// Makes the folder of a snapshot, its files owned by `owner`.
    pub(crate) fn make(&self, id: u64, kind: Kind, owner: Option<(u32, u32)>) -> io::Result<Making<'_>> {
        lock(&self.making).insert(id);
        let making = Making { folders: self, id };
        let made = make(&self.of(id), kind, owner);
        if made.is_err() {
            self.discard(id);
        }
        made.map(|()| making)
    }

    /// Has the thread remove the folder of a snapshot that has no record.
    pub(crate) fn discard(&self, id: u64) {
        self.trash.discard(self.of(id));
    }

    /// Removes every folder that is not in `used`. When this returns, they are gone.
    pub(crate) fn sweep(&self, used: impl FnOnce() -> Result<HashSet<u64>, Error>) -> Result<(), Error> {
        // A folder that the thread has half removed is listed, too; the removal waits for the thread.
        self.unused(used)?.into_iter().for_each(|id| self.trash.remove(&self.of(id)));
        Ok(())
    }

    /// Has the thread remove every folder that is not in `used`.
    pub(crate) fn discard_unused(
        &self,
        used: impl FnOnce() -> Result<HashSet<u64>, Error>,
    ) -> Result<(), Error> {
        self.unused(used)?.into_iter().for_each(|id| self.discard(id));
        Ok(())
    }

    fn unused(&self, used: impl FnOnce() -> Result<HashSet<u64>, Error>) -> Result<Vec<u64>, Error> {
        // In this order: a snapshot that is being made is among the folders first, then in the set, then among the records.
        let mut present = self.numbers()?;
        let making = lock(&self.making).clone();
        let used = used()?;
        present.retain(|id| !making.contains(id) && !used.contains(id));
        Ok(present)
    }

    fn numbers(&self) -> Result<Vec<u64>, Error> {
        let listed = fs::read_dir(&self.home).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let listed =
            listed.map_err(|e| Error::internal(format!("list folder {}", self.home.display()), e))?;
        Ok(listed.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }
}

fn make(folder: &Path, kind: Kind, owner: Option<(u32, u32)>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(folder)?;
    let own = folder.join("fs");
    fs::DirBuilder::new().mode(0o755).create(&own)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
    if let Some((uid, gid)) = owner {
        chown(&own, Some(uid), Some(gid))?;
    }
    if kind == Kind::Active {
        fs::DirBuilder::new().mode(0o711).create(folder.join("work"))?;
    }
    Ok(())
}

/// What a lower layer that containerd unpacked has at `path`, on the local disk.
pub(crate) fn below(root: &Path, path: &[u8]) -> LowerEntry {
    let mut at = root.to_owned();
    let mut found = None;
    for part in path.split(|byte| *byte == b'/') {
        let folder = at.clone();
        at.push(OsStr::from_bytes(part));
        let Ok(metadata) = fs::symlink_metadata(&at) else {
            let mut value = [0; 2];
            let opaque = rustix::fs::lgetxattr(&folder, "trusted.overlay.opaque", value.as_mut_slice());
            return if opaque == Ok(1) && value[0] == b'y' { LowerEntry::Hidden } else { LowerEntry::Absent };
        };
        if metadata.is_symlink() {
            return LowerEntry::Link;
        }
        if !metadata.is_dir() {
            return LowerEntry::Hidden;
        }
        found = Some(metadata);
    }
    let Some(found) = found else { return LowerEntry::Absent };
    LowerEntry::Directory(Inherited {
        path: path.to_vec(),
        mode: (found.mode() & 0o7777) as u16,
        uid: found.uid(),
        gid: found.gid(),
        mtime: (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap_or(0)),
        xattrs: xattrs(&at),
    })
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 64 << 10]; // the kernel's limit for a list
    let Ok(length) = rustix::fs::llistxattr(path, names.as_mut_slice()) else { return Vec::new() };
    names.truncate(length);
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10]; // and for a value
        if !name.starts_with(b"trusted.overlay.")
            && let Ok(length) = rustix::fs::lgetxattr(path, name, value.as_mut_slice())
        {
            value.truncate(length);
            found.push((name.to_vec(), value));
        }
    }
    found
}

/// Bytes on disk and inodes below `path`, itself too; hard links count once.
pub(crate) fn disk_usage(path: &Path) -> io::Result<(u64, u64)> {
    let (mut bytes, mut seen) = (0, HashSet::new());
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            // Files of a running container come and go.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if seen.insert((found.dev(), found.ino())) {
            bytes += found.blocks() * 512;
        }
        if found.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => open.extend(entries.flatten().map(|entry| entry.path())),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok((bytes, seen.len() as u64))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn folders() -> (TempDir, Folders) {
        let root = TempDir::new().unwrap();
        let (folders, present) = Folders::open(&root.path().join("snapshots")).unwrap();
        assert!(present.is_empty());
        (root, folders)
    }

    fn made(folders: &Folders, id: u64) {
        drop(folders.make(id, Kind::Active, None).unwrap());
        fs::write(folders.files(id).join("file"), b"x").unwrap();
    }

    #[test]
    fn a_sweep_removes_folders_that_are_neither_used_nor_being_made() {
        let (_root, folders) = folders();
        (1..5).for_each(|id| made(&folders, id));
        let being_made = folders.make(5, Kind::View, None).unwrap();
        let strange = folders.home.join("not a number");
        fs::create_dir(&strange).unwrap();
        folders.sweep(|| Ok(HashSet::from([2, 4]))).unwrap();
        let mut left = folders.numbers().unwrap();
        left.sort_unstable();
        assert_eq!(left, [2, 4, 5]);
        assert!(strange.exists());
        drop(being_made);
        folders.sweep(|| Ok(HashSet::new())).unwrap();
        assert!(folders.numbers().unwrap().is_empty());
    }

    #[test]
    fn a_snapshot_that_gets_its_record_during_a_sweep_keeps_its_folder() {
        let (_root, folders) = folders();
        let mut making = Some(folders.make(1, Kind::Active, None).unwrap());
        // The record is written, and the mark removed, after the folders were listed.
        folders
            .sweep(|| {
                making.take();
                Ok(HashSet::from([1]))
            })
            .unwrap();
        assert!(folders.files(1).exists());
    }

    #[test]
    fn a_discard_does_not_wait_and_a_sweep_does() {
        let (_root, folders) = folders();
        made(&folders, 1);
        let pause = folders.trash.pause();
        folders.discard(1);
        assert!(folders.of(1).exists());
        drop(pause);
        folders.sweep(|| Ok(HashSet::new())).unwrap();
        assert!(!folders.of(1).exists());
    }

    #[test]
    fn folders_of_an_earlier_process_are_removed() {
        let root = TempDir::new().unwrap();
        let home = root.path().join("snapshots");
        let (folders, _) = Folders::open(&home).unwrap();
        (1..4).for_each(|id| made(&folders, id));
        drop(folders);
        let (folders, mut present) = Folders::open(&home).unwrap();
        present.sort_unstable();
        assert_eq!(present, [1, 2, 3]);
        folders.discard_unused(|| Ok(HashSet::from([2]))).unwrap();
        // The thread removes one after the other.
        while folders.numbers().unwrap() != [2] {
            std::thread::yield_now();
        }
    }
}
