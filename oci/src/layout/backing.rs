//! Where a layout's files are: in a folder, or in a tar. Names are relative: `index.json`, `blobs/sha256/…`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{TryStreamExt, stream};
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_blocking;

use super::archive::Archive;
use super::draft::Draft;
use crate::blob::ByteStream;
use crate::error::{Error, ErrorKind};

/// Bytes of a file read at once: each piece costs a hop to another thread, and several layers are on their way at once.
const PIECE_BYTES: u64 = 256 << 10;

/// See the module.
#[derive(Debug, Clone)]
pub(super) enum Backing {
    Folder(PathBuf),
    Archive(Arc<Archive>),
}

impl Backing {
    pub(super) fn path(&self) -> &Path {
        match self {
            Backing::Folder(path) => path,
            Backing::Archive(archive) => archive.path(),
        }
    }

    /// As messages name one of its files.
    pub(super) fn say(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    /// A file's bytes: the file they lie in, and where.
    pub(super) async fn open(&self, name: &str, doing: &str) -> Result<(Arc<File>, Range<u64>), Error> {
        let folder = match self {
            Backing::Archive(archive) => {
                let missing = || {
                    let error = Error::new(ErrorKind::NotFound, doing);
                    error.because(format!("{} has no member {name}", archive.path().display()))
                };
                return archive.member(name).ok_or_else(missing);
            }
            Backing::Folder(folder) => folder,
        };
        let (path, said) = (folder.join(name), doing.to_owned());
        blocking(doing, move || {
            let io = |cause| Error::io(&said, cause);
            // A pipe would be waited for.
            if !std::fs::metadata(&path).map_err(io)?.is_file() {
                return Err(Error::new(ErrorKind::Unsupported, &said).because("it is not a file"));
            }
            let file = File::open(&path).map_err(io)?;
            let size = file.metadata().map_err(io)?.len();
            Ok((Arc::new(file), 0..size))
        })
        .await
    }

    pub(super) async fn has(&self, name: &str) -> Result<bool, Error> {
        match self {
            Backing::Archive(archive) => Ok(archive.member(name).is_some()),
            Backing::Folder(folder) => {
                let path = folder.join(name);
                let found = tokio::fs::try_exists(&path).await;
                found.map_err(|cause| Error::io(format!("look for {}", path.display()), cause))
            }
        }
    }

    /// A file of `size` bytes, whole or not at all.
    pub(super) async fn put(&self, name: &str, size: u64, source: ByteStream) -> Result<(), Error> {
        match self {
            Backing::Folder(folder) => put_file(folder.join(name), source).await,
            Backing::Archive(archive) => put_member(archive, name, size, source).await,
        }
    }
}

async fn put_file(path: PathBuf, mut source: ByteStream) -> Result<(), Error> {
    let doing = format!("write {}", path.display());
    let io = |cause| Error::io(&doing, cause);
    let (said, beside) = (doing.clone(), path.clone());
    let opened = blocking(&doing, move || Draft::beside(&beside).map_err(|cause| Error::io(said, cause)));
    let (draft, file) = opened.await?;
    let mut file = tokio::fs::File::from_std(file);
    while let Some(piece) = source.try_next().await? {
        file.write_all(&piece).await.map_err(io)?;
    }
    file.flush().await.map_err(io)?;
    file.sync_all().await.map_err(io)?;
    let said = doing.clone();
    blocking(&doing, move || draft.move_to(&path).map_err(|cause| Error::io(said, cause))).await
}

async fn put_member(
    archive: &Arc<Archive>,
    name: &str,
    size: u64,
    mut source: ByteStream,
) -> Result<(), Error> {
    let doing = format!("write {} to {}", name, archive.path().display());
    let (to, named) = (archive.clone(), name.to_owned());
    let (file, start) = blocking(&doing, move || to.reserve(&named, size)).await?;
    let mut at = start;
    while let Some(piece) = source.try_next().await? {
        if at + piece.len() as u64 > start + size {
            let error = Error::new(ErrorKind::Corrupt, doing);
            return Err(error.because(format!("it is longer than its {size} bytes")));
        }
        let (file, length, said) = (file.clone(), piece.len() as u64, doing.clone());
        blocking(&doing, move || file.write_all_at(&piece, at).map_err(|cause| Error::io(said, cause)))
            .await?;
        at += length;
    }
    if at - start != size {
        let error = Error::new(ErrorKind::Corrupt, doing);
        return Err(error.because(format!("it has {} bytes, expected {size}", at - start)));
    }
    archive.add(name, start, size);
    Ok(())
}

/// Work that waits for a disk, on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|cause| Error::new(ErrorKind::Io, doing).because(cause))?
}

/// A range of a file, piece by piece; a file that is shorter is `Corrupt`.
pub(super) fn pieces(file: Arc<File>, range: Range<u64>, doing: String) -> ByteStream {
    Box::pin(stream::try_unfold(range, move |range| {
        let (file, doing) = (file.clone(), doing.clone());
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + PIECE_BYTES);
            let read = spawn_blocking(move || {
                let mut bytes = vec![0; (end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start).map(|()| Bytes::from(bytes))
            });
            let read = read.await.map_err(|cause| Error::new(ErrorKind::Io, &doing).because(cause))?;
            let bytes = read.map_err(|cause| match cause.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Error::new(ErrorKind::Corrupt, &doing).because("the file is shorter than its blob")
                }
                _ => Error::io(&doing, cause),
            })?;
            Ok(Some((bytes, end..range.end)))
        }
    }))
}
