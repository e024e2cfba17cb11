//! Folders on their way off the disk: out of everybody's way at once, and gone when a thread has come to them. Gigabytes
//! are not taken off a disk while somebody waits.

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

use crate::sync::Mutex;

/// See the module.
#[derive(Debug)]
pub(super) struct Trash {
    folder: PathBuf,
    /// Its other end is the thread's, which ends with it.
    moved: Sender<PathBuf>,
    next: AtomicU64,
    /// Held while a folder is removed: who waits for it knows that nobody else is at one.
    turn: Arc<Mutex<()>>,
}

impl Trash {
    /// What an earlier process did not come to goes, too.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        super::make_folder(&folder)?;
        let (moved, folders) = channel();
        for left in fs::read_dir(&folder)?.flatten() {
            let _ = moved.send(left.path());
        }
        let turn = Arc::new(Mutex::default());
        let ours = turn.clone();
        let work = move || folders.iter().for_each(|folder| remove(&ours, &folder));
        Builder::new().name("remove".into()).spawn(work)?;
        Ok(Self { folder, moved, next: AtomicU64::new(0), turn })
    }

    /// All that was taken so far is off the disk when this is back.
    pub(super) fn empty(&self) -> io::Result<()> {
        for left in fs::read_dir(&self.folder)?.flatten() {
            remove(&self.turn, &left.path());
        }
        Ok(())
    }

    /// Takes a folder of the same disk away.
    pub(super) fn take(&self, folder: &Path) -> io::Result<()> {
        loop {
            let to = self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
            match fs::rename(folder, &to) {
                // An earlier process's, which is not gone yet.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) => {}
                taken => {
                    taken?;
                    // Without the thread the next start finds it.
                    let _ = self.moved.send(to);
                    return Ok(());
                }
            }
        }
    }
}

fn remove(turn: &Mutex<()>, folder: &Path) {
    let _turn = turn.lock();
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "take a removed layer off the disk");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_is_taken_is_out_of_the_way_and_then_gone_whoever_left_it() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &Path| {
            fs::create_dir_all(path.join("below")).unwrap();
            fs::write(path.join("below/file"), b"x").unwrap();
        };
        let (home, layer) = (root.path().join("rubbish"), root.path().join("layer"));
        // An earlier process's, under the name that the next one would give.
        make(&home.join("0"));
        let trash = Trash::open(home.clone()).unwrap();
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
        // The thread comes to it by itself, too.
        while fs::read_dir(&home).unwrap().next().is_some() {
            thread::yield_now();
        }
    }
}
