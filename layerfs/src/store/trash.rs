//! A thread that removes folders: gigabytes are not taken off a disk while a caller waits.
//!
//! [`Trash`] removes folders where they are, one after the other, in the order in which they were discarded. A
//! caller that needs a folder gone now removes it itself with [`Trash::remove`], which waits for the folder that
//! the thread is at. The trash keeps no list on disk: what a killed process did not remove, the next start has to
//! find and discard.
//!
//! The store moves a removed layer into a folder of its own first, so that its name is free at once.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    thread::Builder,
};

use crate::sync::{Mutex, MutexGuard};

/// Folders on their way off the disk. Dropping it ends the thread after the discarded folders are gone.
#[derive(Debug)]
pub struct Trash {
    queue: Sender<PathBuf>,
    /// Held while a folder is removed.
    turn: Arc<Mutex<()>>,
}

/// Nothing is removed as long as this lives; see [`Trash::pause`].
#[derive(Debug)]
pub struct TrashPause<'a>(#[expect(dead_code, reason = "it is held, not read")] MutexGuard<'a, ()>);

impl Trash {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> io::Result<Self> {
        let (queue, folders) = channel::<PathBuf>();
        let turn = Arc::new(Mutex::default());
        let thread_turn = turn.clone();
        let run = move || folders.iter().for_each(|folder| remove(&thread_turn, &folder));
        Builder::new().name("remove".into()).spawn(run)?;
        Ok(Self { queue, turn })
    }

    /// Has the thread remove a folder and everything in it. An absent folder is no error; a folder that cannot be
    /// removed is logged and stays.
    pub fn discard(&self, folder: PathBuf) {
        // If the thread has died the folder stays; the next start finds it.
        let _ = self.queue.send(folder);
    }

    /// Removes a folder and everything in it. When this returns the folder is gone, also if the thread had begun with
    /// it, or the log says why it stays.
    pub fn remove(&self, folder: &Path) {
        remove(&self.turn, folder);
    }

    /// Waits for the folder that is being removed, and keeps all others until the value is dropped.
    pub fn pause(&self) -> TrashPause<'_> {
        TrashPause(self.turn.lock())
    }
}

/// A folder that other folders are moved into before they are removed.
#[derive(Debug)]
pub(super) struct TrashFolder {
    folder: PathBuf,
    next: AtomicU64,
    trash: Trash,
}

impl TrashFolder {
    /// Opens the folder and discards what an earlier process left in it.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        super::make_folder(&folder)?;
        let trash = Trash::start()?;
        for left in fs::read_dir(&folder)?.flatten() {
            trash.discard(left.path());
        }
        Ok(Self { folder, next: AtomicU64::new(0), trash })
    }

    /// Returns when every folder that was taken before is off the disk.
    pub(super) fn empty(&self) -> io::Result<()> {
        for left in fs::read_dir(&self.folder)?.flatten() {
            self.trash.remove(&left.path());
        }
        Ok(())
    }

    /// Moves a folder of the same disk away, and discards it.
    pub(super) fn take(&self, folder: &Path) -> io::Result<()> {
        loop {
            let to = self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
            match fs::rename(folder, &to) {
                // A folder of an earlier process, which is not gone yet, has this name.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) => {}
                Err(e) => return Err(e),
                Ok(()) => {
                    self.trash.discard(to);
                    return Ok(());
                }
            }
        }
    }
}

fn remove(turn: &Mutex<()>, folder: &Path) {
    let turn = turn.lock();
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(
                folder = %folder.display(), %error,
                "a folder that is not used any more cannot be removed"
            );
        }
        _ => {}
    }
    drop(turn);
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn make(path: &Path) {
        fs::create_dir_all(path.join("below")).unwrap();
        fs::write(path.join("below/file"), b"x").unwrap();
    }

    #[test]
    fn a_taken_folder_leaves_its_place_at_once_and_the_disk_later() {
        let root = tempfile::tempdir().unwrap();
        let (home, layer) = (root.path().join("rubbish"), root.path().join("layer"));
        // An earlier process left a folder, under the first name that this one uses.
        make(&home.join("0"));
        let trash = TrashFolder::open(home.clone()).unwrap();
        for _ in 0..3 {
            make(&layer);
            trash.take(&layer).unwrap();
            assert!(!layer.exists());
        }
        assert_eq!(trash.take(&layer).unwrap_err().kind(), io::ErrorKind::NotFound);
        trash.empty().unwrap();
        assert!(fs::read_dir(&home).unwrap().next().is_none());
        make(&layer);
        trash.take(&layer).unwrap();
        // The thread removes it without a call.
        while fs::read_dir(&home).unwrap().next().is_some() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_discarded_folder_stays_during_a_pause_and_a_removal_waits_for_the_thread() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("snapshot");
        make(&folder);
        let trash = Trash::start().unwrap();
        let pause = trash.pause();
        trash.discard(folder.clone());
        assert!(folder.exists());
        drop(pause);
        trash.remove(&folder);
        assert!(!folder.exists());
        trash.remove(&folder); // an absent folder is no error
    }
}
