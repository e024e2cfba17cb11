//! A layout in a tar: members by name, read where they lie, and written one behind the other. A member's place is
//! given out before its bytes come, so that several can be written at a time. An archive that is being written is
//! a draft beside its place until it is finished, and gone if it never is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind};

/// A layout with more members is none: an image has a few hundred blobs.
const MEMBERS_MAX: usize = 100_000;
/// The unit of a tar.
const BLOCK: u64 = 512;

/// A tar whose members can be read, and, where it is a draft, added to.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    members: BTreeMap<String, Range<u64>>,
    draft: Option<Draft>,
}

#[derive(Debug)]
struct Draft {
    path: PathBuf,
    end: u64,
}

impl Archive {
    /// Lists the members of an archive that is there. Blocks; reads headers only.
    pub(super) fn open(path: &Path) -> Result<Archive, Error> {
        let doing = format!("open OCI archive {}", path.display());
        let io = |cause| Error::io(&doing, cause);
        let refuse = |why: &str| Error::new(ErrorKind::Unsupported, &doing).because(why);
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(refuse("it is not a file"));
        }
        let mut start = [0; 4];
        let known = (&file).read(&mut start).map_err(io)?;
        if matches!(&start[..known], [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | b"BZh9" | [0xfd, b'7', ..])
        {
            return Err(refuse("it is compressed; a part of it can only be read once it is not"));
        }
        io::Seek::rewind(&mut &file).map_err(io)?;
        let mut members = BTreeMap::new();
        let mut tar = tar::Archive::new(&file);
        let broken = |cause: io::Error| Error::new(ErrorKind::Corrupt, &doing).because(cause);
        for entry in tar.entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.trim_start_matches("./").to_owned();
            let start = entry.raw_file_position();
            members.insert(name, start..start.saturating_add(entry.size()));
            if members.len() > MEMBERS_MAX {
                return Err(refuse("it has more members than any layout"));
            }
        }
        let state = Mutex::new(State { members, draft: None });
        Ok(Archive { path: path.to_owned(), file: Arc::new(file), state })
    }

    /// A new archive, to be at `path` once it is finished. Blocks.
    pub(super) fn create(path: &Path, draft: PathBuf) -> Result<Archive, Error> {
        let doing = format!("create OCI archive {}", path.display());
        let options = File::options().read(true).write(true).create_new(true).open(&draft);
        let file = Arc::new(options.map_err(|cause| Error::io(doing, cause))?);
        let state = State { members: BTreeMap::new(), draft: Some(Draft { path: draft, end: 0 }) };
        Ok(Archive { path: path.to_owned(), file, state: Mutex::new(state) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A member's bytes: a range of the archive's file.
    pub(super) fn member(&self, name: &str) -> Option<(Arc<File>, Range<u64>)> {
        let range = self.state().members.get(name)?.clone();
        Some((self.file.clone(), range))
    }

    /// Makes room for a member behind all others and writes its header; where its bytes go. It is no member before
    /// [`Archive::add`] says so. Blocks.
    pub(super) fn reserve(&self, name: &str, size: u64) -> Result<(Arc<File>, u64), Error> {
        let doing = format!("write {} to {}", name, self.path.display());
        let at = {
            let mut state = self.state();
            let Some(draft) = &mut state.draft else {
                let error = Error::new(ErrorKind::Unsupported, doing);
                return Err(error.because("an archive that is finished cannot be changed; write a new one"));
            };
            let at = draft.end;
            draft.end = at + BLOCK + size.div_ceil(BLOCK) * BLOCK;
            at
        };
        let header = header(name, size).map_err(|cause| Error::io(&doing, cause))?;
        self.file.write_all_at(&header, at).map_err(|cause| Error::io(doing, cause))?;
        Ok((self.file.clone(), at + BLOCK))
    }

    /// Makes what was written at `at` the member of that name.
    pub(super) fn add(&self, name: &str, at: u64, size: u64) {
        self.state().members.insert(name.to_owned(), at..at + size);
    }

    /// Ends the archive and moves it to its place. Blocks.
    pub(super) fn finish(&self) -> Result<(), Error> {
        let doing = format!("write {}", self.path.display());
        let io = |cause| Error::io(&doing, cause);
        let Some(draft) = self.state().draft.take() else { return Ok(()) };
        let finished = (|| {
            // the padding of the last member, and the two blocks of zeros
            self.file.set_len(draft.end + 2 * BLOCK)?;
            self.file.sync_all()?;
            std::fs::rename(&draft.path, &self.path)
        })();
        if finished.is_err() {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(&draft.path);
        }
        finished.map_err(io)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let Some(draft) = self.state().draft.take() {
            // What is left of a draft harms nobody.
            let _ = std::fs::remove_file(draft.path);
        }
    }
}

/// The same bytes for the same member, whoever writes it and when.
fn header(name: &str, size: u64) -> io::Result<[u8; BLOCK as usize]> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(*header.as_bytes())
}
