//! The folders of snapshots on our own disk: made before a record, removed after it, in their own time.
//!
//! A folder without a record is one that is just being made, or rubbish. To remove a snapshot takes nothing of its
//! folder: that is rubbish from then on, and a thread of ours removes it, one tree after the other. What it did not come
//! to is found again by the next start and by every [`Folders::sweep`]. Numbers are never given twice, so nobody is in
//! the way. Folders of other names than numbers are not ours, and are left alone.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use layerfs::{Inherited, LowerEntry};

use crate::{error::Error, store::Kind, sync::lock};

/// All folders of snapshots.
#[derive(Debug)]
pub(crate) struct Folders {
    remover: Arc<Remover>,
    /// Numbers of snapshots whose folders are there and whose records are not yet.
    making: Mutex<HashSet<u64>>,
    /// Its other end is a thread's, which ends with it, after the tree that it is at.
    rubbish: Sender<u64>,
}

#[derive(Debug)]
struct Remover {
    /// `<root>/snapshotter/snapshots`
    home: PathBuf,
    /// Held while a tree is removed: who waits for it knows that nobody else is at one.
    turn: Mutex<()>,
}

/// A snapshot that has its folder, and gets its record as long as this is there.
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
    /// Makes the folder of folders where it is missing, and says which numbers are in it.
    pub(crate) fn open(home: &Path) -> Result<(Self, Vec<u64>), Error> {
        let doing = || format!("make folder {}", home.display());
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(home).map_err(|e| Error::internal(doing(), e))?;
        let remover = Arc::new(Remover { home: home.to_owned(), turn: Mutex::default() });
        let (rubbish, numbers) = channel();
        let removing = remover.clone();
        let thread = thread::Builder::new().name("remove".into());
        thread.spawn(move || removing.run(&numbers)).map_err(|e| Error::internal(doing(), e))?;
        let folders = Self { remover, making: Mutex::default(), rubbish };
        let present = folders.numbers()?;
        Ok((folders, present))
    }

    /// The folder of a snapshot; `fs` and, where it is written to, `work` are in it.
    pub(crate) fn of(&self, id: u64) -> PathBuf {
        self.remover.of(id)
    }

    /// The snapshot's own files.
    pub(crate) fn files(&self, id: u64) -> PathBuf {
        self.of(id).join("fs")
    }

    /// Makes the folder of a snapshot, its files owned by `owner`. It is rubbish without a record.
    pub(crate) fn make(&self, id: u64, kind: Kind, owner: Option<(u32, u32)>) -> io::Result<Making<'_>> {
        lock(&self.making).insert(id);
        let making = Making { folders: self, id };
        let made = make(&self.of(id), kind, owner);
        if made.is_err() {
            self.discard(id);
        }
        made.map(|()| making)
    }

    /// The snapshot has no record any more, or got none: its folder goes, sooner or later.
    pub(crate) fn discard(&self, id: u64) {
        // Without the thread it is found by the next sweep.
        let _ = self.rubbish.send(id);
    }

    /// Removes every folder of which `used` does not know; all of them are gone when it is back.
    pub(crate) fn sweep(&self, used: impl FnOnce() -> Result<HashSet<u64>, Error>) -> Result<(), Error> {
        for id in self.unused(used)? {
            self.remover.remove(id);
        }
        // One that was taken for removal earlier, and is so far only half gone, was listed above, too: whoever is at it
        // has been waited for.
        Ok(())
    }

    /// The same, and nobody waits.
    pub(crate) fn discard_unused(
        &self,
        used: impl FnOnce() -> Result<HashSet<u64>, Error>,
    ) -> Result<(), Error> {
        self.unused(used)?.into_iter().for_each(|id| self.discard(id));
        Ok(())
    }

    fn unused(&self, used: impl FnOnce() -> Result<HashSet<u64>, Error>) -> Result<Vec<u64>, Error> {
        // In this order: a snapshot that is being made is among the folders, then in the set, then among the
        // records.
        let mut present = self.numbers()?;
        let making = lock(&self.making).clone();
        let used = used()?;
        present.retain(|id| !making.contains(id) && !used.contains(id));
        Ok(present)
    }

    fn numbers(&self) -> Result<Vec<u64>, Error> {
        let home = &self.remover.home;
        let listed = fs::read_dir(home).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let listed = listed.map_err(|e| Error::internal(format!("list folder {}", home.display()), e))?;
        Ok(listed.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }
}

impl Remover {
    fn of(&self, id: u64) -> PathBuf {
        self.home.join(id.to_string())
    }

    fn run(&self, numbers: &Receiver<u64>) {
        for id in numbers {
            self.remove(id);
        }
    }

    fn remove(&self, id: u64) {
        let _turn = lock(&self.turn);
        match fs::remove_dir_all(self.of(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(id, %error, "remove the folder of a snapshot that is gone");
            }
            _ => {}
        }
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

/// What a lower layer that containerd unpacked has at `path`, on our own disk.
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
    fn a_sweep_takes_what_is_neither_used_nor_being_made() {
        let (_root, folders) = folders();
        (1..5).for_each(|id| made(&folders, id));
        let being_made = folders.make(5, Kind::View, None).unwrap();
        let strange = folders.remover.home.join("of somebody else");
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
    fn a_snapshot_that_gets_its_record_during_a_sweep_stays() {
        let (_root, folders) = folders();
        let mut making = Some(folders.make(1, Kind::Active, None).unwrap());
        // The record is written, and the mark taken away, when the folders are listed already.
        folders
            .sweep(|| {
                making.take();
                Ok(HashSet::from([1]))
            })
            .unwrap();
        assert!(folders.files(1).exists());
    }

    #[test]
    fn what_is_discarded_goes_without_anybody_waiting_and_a_sweep_waits_for_it() {
        let (_root, folders) = folders();
        made(&folders, 1);
        let turn = lock(&folders.remover.turn); // the remover is busy with another one
        folders.discard(1);
        assert!(folders.of(1).exists());
        drop(turn);
        folders.sweep(|| Ok(HashSet::new())).unwrap();
        assert!(!folders.of(1).exists());
    }

    #[test]
    fn an_earlier_process_left_its_rubbish() {
        let root = TempDir::new().unwrap();
        let home = root.path().join("snapshots");
        let (folders, _) = Folders::open(&home).unwrap();
        (1..4).for_each(|id| made(&folders, id));
        drop(folders);
        let (folders, mut present) = Folders::open(&home).unwrap();
        present.sort_unstable();
        assert_eq!(present, [1, 2, 3]);
        folders.discard_unused(|| Ok(HashSet::from([2]))).unwrap();
        // The thread takes one after the other.
        while folders.numbers().unwrap() != [2] {
            thread::yield_now();
        }
    }
}
