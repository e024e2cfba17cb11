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

use super::draft::Draft;
use crate::error::{Error, ErrorKind};

/// A layout with more members is none: an image has a few hundred blobs.
const HEADERS_MAX: usize = 100_000;
/// A name, and what else precedes a member.
const SPECIAL_BYTES_MAX: u64 = 1 << 20;
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
    /// None once the archive is finished.
    unfinished: Option<Unfinished>,
}

/// An archive that is being written.
#[derive(Debug)]
struct Unfinished {
    draft: Draft,
    /// Where the next member begins.
    end: u64,
}

impl Archive {
    /// Lists the members of an archive that is there. Blocks; reads headers only.
    pub(super) fn open(path: &Path) -> Result<Archive, Error> {
        let doing = format!("open OCI archive {}", path.display());
        let io = |cause| Error::io(&doing, cause);
        let refuse = |why: &str| Error::new(ErrorKind::Unsupported, &doing).because(why);
        // A pipe would be waited for.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(refuse("it is not a file"));
        }
        let file = File::open(path).map_err(io)?;
        let mut start = [0; 4];
        let known = (&file).read(&mut start).map_err(io)?;
        if matches!(&start[..known], [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | b"BZh9" | [0xfd, b'7', ..])
        {
            return Err(refuse("it is compressed; a part of it can only be read once it is not"));
        }
        let members = list(&file).map_err(|cause| match cause.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Error::new(ErrorKind::Corrupt, &doing).because(cause)
            }
            _ => Error::io(&doing, cause),
        })?;
        let state = Mutex::new(State { members, unfinished: None });
        Ok(Archive { path: path.to_owned(), file: Arc::new(file), state })
    }

    /// A new archive, to be at `path` once it is finished; where that is a link, at what it leads to. Blocks.
    pub(super) fn create(path: &Path) -> Result<Archive, Error> {
        let doing = format!("create OCI archive {}", path.display());
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if std::fs::metadata(&path).is_ok_and(|data| !data.is_file()) {
            let error = Error::new(ErrorKind::Unsupported, doing);
            return Err(error.because("there is something that is not a file"));
        }
        let (draft, file) = Draft::beside(&path).map_err(|cause| Error::io(doing, cause))?;
        let state = State { members: BTreeMap::new(), unfinished: Some(Unfinished { draft, end: 0 }) };
        Ok(Archive { path, file: Arc::new(file), state: Mutex::new(state) })
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
            let Some(unfinished) = &mut state.unfinished else {
                let error = Error::new(ErrorKind::Unsupported, doing);
                return Err(error.because("an archive that is finished cannot be changed; write a new one"));
            };
            let at = unfinished.end;
            unfinished.end = at + BLOCK + size.div_ceil(BLOCK) * BLOCK;
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
        let Some(Unfinished { draft, end }) = self.state().unfinished.take() else { return Ok(()) };
        // The padding of the last member, and the two blocks of zeros.
        self.file.set_len(end + 2 * BLOCK).map_err(io)?;
        self.file.sync_all().map_err(io)?;
        draft.move_to(&self.path).map_err(io)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The members of a tar and where they lie. Headers are read one by one, and nothing is believed of them but what is
/// looked at here: the tar may come from anywhere.
fn list(file: &File) -> io::Result<BTreeMap<String, Range<u64>>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let length = file.metadata()?.len();
    let (mut members, mut special) = (BTreeMap::new(), Special::default());
    let (mut at, mut headers) = (0_u64, 0);
    while at + BLOCK <= length {
        let mut block = [0; BLOCK as usize];
        file.read_exact_at(&mut block, at)?;
        if block.iter().all(|&byte| byte == 0) {
            break;
        }
        headers += 1;
        if headers > HEADERS_MAX {
            return Err(invalid("it has more members than any layout"));
        }
        let header = tar::Header::from_byte_slice(&block);
        let counted = block.iter().enumerate().map(|(at, &byte)| match at {
            // its own place counts as blanks
            148..156 => u32::from(b' '),
            _ => u32::from(byte),
        });
        let sum: u32 = counted.sum();
        if header.cksum().map_err(broken)? != sum {
            return Err(invalid("a header's checksum is wrong"));
        }
        let start = at + BLOCK;
        let size = special.size.map_or_else(|| header.entry_size().map_err(broken), Ok)?;
        let end = start.checked_add(size).filter(|end| *end <= length).ok_or(io::ErrorKind::UnexpectedEof)?;
        let kind = header.entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            special.read(file, start..end, kind)?;
        } else {
            let found = std::mem::take(&mut special);
            if kind.is_file() {
                let name = found.name.unwrap_or_else(|| header.path_bytes().into_owned());
                let name = String::from_utf8_lossy(&name).trim_start_matches("./").to_owned();
                members.insert(name, start..end);
            }
        }
        at = start + size.div_ceil(BLOCK) * BLOCK;
    }
    Ok(members)
}

/// What is no tar, in whatever kind of error that is told.
fn broken(cause: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause)
}

/// What precedes a member, and says more of it than its header can.
#[derive(Default)]
struct Special {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Special {
    fn read(&mut self, file: &File, range: Range<u64>, kind: tar::EntryType) -> io::Result<()> {
        let length = range.end - range.start;
        if length > SPECIAL_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a header is longer than any name"));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut bytes, range.start)?;
        if kind.is_gnu_longname() {
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            bytes.truncate(end);
            self.name = Some(bytes);
            return Ok(());
        }
        for record in tar::PaxExtensions::new(&bytes) {
            let record = record.map_err(broken)?;
            match record.key_bytes() {
                b"path" => self.name = Some(record.value_bytes().to_vec()),
                b"size" => self.size = record.value().ok().and_then(|text| text.parse().ok()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The same member has the same bytes at any time, whichever process writes it.
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
