//! The snapshot database: names, parents, kinds, labels, and the slot of each shown layer.
//!
//! It is one redb file with two tables. Every call is one short transaction. A record is JSON of a few hundred bytes, so
//! that a person can read it.
//!
//! After an error of the disk, for example while it is full, redb refuses to work until the file is opened again. The next
//! call does that.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ErrorKind},
    layers::shown::ShownLayer,
};

const USE: &str = "use snapshot database";

/// Name or key -> record.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// `parent NUL child` -> nothing.
const CHILDREN: TableDefinition<'_, &str, ()> = TableDefinition::new("children");

/// As containerd knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Read only, not to be committed.
    View,
    /// Being written.
    Active,
    /// Immutable; can be a parent.
    Committed,
}

/// One snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Name of its folder.
    pub(crate) id: u64,
    /// Its key while active, its name once committed.
    pub(crate) name: String,
    /// The name of its parent, empty for none.
    pub(crate) parent: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// When it was made, or committed, and last changed: nanoseconds since 1970.
    pub(crate) created: u64,
    /// See `created`.
    pub(crate) updated: u64,
    /// As the client gave them, and ours.
    pub(crate) labels: HashMap<String, String>,
    /// Bytes and inodes at commit.
    pub(crate) usage: (u64, u64),
    /// Set for layers that are shown through FUSE.
    #[serde(rename = "lazy")]
    pub(crate) shown: Option<ShownLayer>,
}

/// The name of a record, and what is wrong with it.
pub(crate) type Unreadable = (String, serde_json::Error);

/// The open database.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// None while it cannot be opened.
    database: RwLock<Option<Database>>,
    /// The disk has failed: the file has to be opened again.
    is_broken: AtomicBool,
    next: AtomicU64,
}

impl Store {
    /// Opens `path`, making it where it is missing.
    ///
    /// # Errors
    /// When another process has it open, or it is damaged.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let database = RwLock::new(Some(open(path)?));
        let store = Self {
            path: path.to_owned(),
            database,
            is_broken: AtomicBool::new(false),
            next: AtomicU64::new(1),
        };
        let (readable, damaged) = store.readable()?;
        for (name, error) in damaged {
            tracing::error!(name, %error, "the record of a snapshot is damaged: snapshots above it fail, and nothing is cleaned up");
        }
        let last = readable.iter().map(|record| record.id).max().unwrap_or(0);
        store.next.store(last + 1, Ordering::Relaxed);
        Ok(store)
    }

    /// A number that no snapshot has, nor had since the database was opened.
    pub(crate) fn new_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Ids start above what folders are left from snapshots whose records are gone.
    pub(crate) fn skip_ids(&self, used: u64) {
        self.next.fetch_max(used + 1, Ordering::Relaxed);
    }

    /// Writes a new active or view snapshot.
    pub(crate) fn create(
        &self,
        id: u64,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Record, Error> {
        let (now, labels) = (now(), without_empty(labels));
        let record = Record {
            id,
            name: key.to_owned(),
            parent: parent.to_owned(),
            kind,
            created: now,
            updated: now,
            labels,
            usage: (0, 0),
            shown: None,
        };
        self.write(&format!("create snapshot {key:?}"), |snapshots, children| {
            if key.is_empty() {
                return Err(Error::new(ErrorKind::InvalidArgument, "create snapshot: the key is empty"));
            }
            if read(snapshots, key)?.is_some() {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("snapshot {key:?}: already exists"),
                ));
            }
            check_parent(snapshots, parent, ErrorKind::InvalidArgument)?;
            put(snapshots, children, &record)
        })?;
        Ok(record)
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`, which begins with it: it has the commit's
    /// labels, and its times. One that was made without a parent takes the commit's.
    pub(crate) fn commit(&self, key: &str, name: &str, commit: Commit) -> Result<Record, Error> {
        self.write(&format!("commit snapshot {key:?}"), |snapshots, children| {
            let mut record = read(snapshots, key)?.ok_or_else(|| not_found(key))?;
            if name.is_empty() {
                return Err(Error::new(ErrorKind::InvalidArgument, "commit snapshot: the name is empty"));
            }
            if read(snapshots, name)?.is_some() {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("snapshot {name:?}: already exists"),
                ));
            }
            if record.kind != Kind::Active {
                let doing = format!("commit snapshot {key:?}: it is not active");
                return Err(Error::new(ErrorKind::FailedPrecondition, doing));
            }
            delete(snapshots, children, &record)?;
            if record.parent.is_empty() {
                record.parent = commit.parent;
                check_parent(snapshots, &record.parent, ErrorKind::FailedPrecondition)?;
            } else if !commit.parent.is_empty() && commit.parent != record.parent {
                let doing = format!("commit snapshot {key:?}: its parent is {:?} already", record.parent);
                return Err(Error::new(ErrorKind::InvalidArgument, doing));
            }
            record.name = name.to_owned();
            record.kind = Kind::Committed;
            record.labels = without_empty(commit.labels);
            record.usage = commit.usage;
            record.shown = commit.shown;
            record.updated = now();
            record.created = record.updated;
            put(snapshots, children, &record)?;
            Ok(record)
        })
    }

    /// Takes a snapshot out; one with children stays.
    pub(crate) fn remove(&self, name: &str) -> Result<Record, Error> {
        self.write(&format!("remove snapshot {name:?}"), |snapshots, children| {
            let record = read(snapshots, name)?.ok_or_else(|| not_found(name))?;
            let prefix = format!("{name}\0");
            let next = children.range(prefix.as_str()..).map_err(internal)?.next().transpose();
            if next.map_err(internal)?.is_some_and(|(key, _)| key.value().starts_with(&prefix)) {
                let doing = format!("remove snapshot {name:?}: it has children");
                return Err(Error::new(ErrorKind::FailedPrecondition, doing));
            }
            delete(snapshots, children, &record)?;
            Ok(record)
        })
    }

    /// Changes the labels of a snapshot.
    pub(crate) fn relabel(
        &self,
        name: &str,
        change: impl FnOnce(&mut HashMap<String, String>) -> Result<(), Error>,
    ) -> Result<Record, Error> {
        self.write(&format!("update snapshot {name:?}"), |snapshots, children| {
            let mut record = read(snapshots, name)?.ok_or_else(|| not_found(name))?;
            change(&mut record.labels)?;
            record.labels = without_empty(record.labels);
            record.updated = now();
            put(snapshots, children, &record)?;
            Ok(record)
        })
    }

    /// One snapshot.
    pub(crate) fn get(&self, name: &str) -> Result<Record, Error> {
        let mut chain = self.chain(name, 1)?;
        chain.pop().ok_or_else(|| not_found(name))
    }

    /// The snapshot `name` and its ancestors, itself first, at most `limit`.
    pub(crate) fn chain(&self, name: &str, limit: usize) -> Result<Vec<Record>, Error> {
        let doing = || format!("read snapshot {name:?}");
        let opened = self.opened()?;
        let reading = database(&opened)?.begin_read().map_err(|e| self.failed(&doing(), e))?;
        let mut chain = Vec::new();
        let mut next = name.to_owned();
        let snapshots = match reading.open_table(SNAPSHOTS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) if next.is_empty() => return Ok(chain),
            Err(TableError::TableDoesNotExist(_)) => return Err(not_found(name)),
            Err(e) => return Err(self.failed(&doing(), e)),
        };
        while !next.is_empty() && chain.len() < limit {
            let record = read(&snapshots, &next).inspect_err(|e| self.note(e))?;
            let record = record.ok_or_else(|| not_found(&next))?;
            next.clone_from(&record.parent);
            chain.push(record);
        }
        Ok(chain)
    }

    /// Every snapshot, in the order of names. One damaged record is an error: a caller that removes what is unused must know
    /// all of them.
    pub(crate) fn all(&self) -> Result<Vec<Record>, Error> {
        let (all, mut damaged) = self.readable()?;
        match damaged.pop() {
            None => Ok(all),
            Some((name, error)) => Err(Error::internal(format!("read snapshot {name:?}"), error)),
        }
    }

    /// Every snapshot whose record can be read, and the names of the others.
    pub(crate) fn readable(&self) -> Result<(Vec<Record>, Vec<Unreadable>), Error> {
        let doing = "list snapshots";
        let opened = self.opened()?;
        let reading = database(&opened)?.begin_read().map_err(|e| self.failed(doing, e))?;
        let snapshots = match reading.open_table(SNAPSHOTS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok((Vec::new(), Vec::new())),
            Err(e) => return Err(self.failed(doing, e)),
        };
        let (mut readable, mut damaged) = (Vec::new(), Vec::new());
        for row in snapshots.iter().map_err(|e| self.failed(doing, e))? {
            let (name, value) = row.map_err(|e| self.failed(doing, e))?;
            match serde_json::from_slice(value.value()) {
                Ok(record) => readable.push(record),
                Err(error) => damaged.push((name.value().to_owned(), error)),
            }
        }
        Ok((readable, damaged))
    }

    /// The numbers of all snapshots.
    pub(crate) fn ids(&self) -> Result<HashSet<u64>, Error> {
        Ok(self.all()?.iter().map(|record| record.id).collect())
    }

    fn write<T>(
        &self,
        doing: &str,
        change: impl FnOnce(&mut Table<'_, &str, &[u8]>, &mut Table<'_, &str, ()>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let opened = self.opened()?;
        let writing = database(&opened)?.begin_write().map_err(|e| self.failed(doing, e))?;
        let done = {
            let mut snapshots = writing.open_table(SNAPSHOTS).map_err(|e| self.failed(doing, e))?;
            let mut children = writing.open_table(CHILDREN).map_err(|e| self.failed(doing, e))?;
            change(&mut snapshots, &mut children).inspect_err(|e| self.note(e))
        }?;
        writing.commit().map_err(|e| self.failed(doing, e))?;
        Ok(done)
    }

    /// The database, opened again where the disk has failed it.
    fn opened(&self) -> Result<RwLockReadGuard<'_, Option<Database>>, Error> {
        if self.is_broken.load(Ordering::Acquire) {
            // The lock waits until no other call uses the file.
            let mut opened = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if self.is_broken.load(Ordering::Acquire) {
                // The file is locked as long as it is open.
                drop(opened.take());
                *opened = Some(open(&self.path)?);
                self.is_broken.store(false, Ordering::Release);
                tracing::warn!(path = %self.path.display(), "the snapshot database was opened again after an error");
            }
        }
        Ok(self.database.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn failed(&self, doing: &str, error: impl Into<redb::Error>) -> Error {
        let error = Error::internal(doing, error.into());
        self.note(&error);
        error
    }

    /// An error of the disk is not over when the disk is well again.
    fn note(&self, error: &Error) {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
        if let Some(redb::Error::Io(_) | redb::Error::PreviousIo) = source {
            self.is_broken.store(true, Ordering::Release);
        }
    }
}

fn open(path: &Path) -> Result<Database, Error> {
    let doing = || format!("open snapshot database {}", path.display());
    Database::create(path).map_err(|e| Error::internal(doing(), e))
}

fn database<'a>(opened: &'a RwLockReadGuard<'_, Option<Database>>) -> Result<&'a Database, Error> {
    opened.as_ref().ok_or_else(|| {
        // Another call has failed to open it, and is about to return.
        Error::new(ErrorKind::Internal, "use snapshot database: it cannot be opened")
    })
}

/// What a commit adds to a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Commit {
    pub(crate) parent: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) usage: (u64, u64),
    pub(crate) shown: Option<ShownLayer>,
}

/// As containerd's snapshotters, which drop them whenever they write labels.
fn without_empty(mut labels: HashMap<String, String>) -> HashMap<String, String> {
    labels.retain(|_, value| !value.is_empty());
    labels
}

/// `wrong` is what it means that the parent is there and not committed: containerd has a word for each verb.
fn check_parent(snapshots: &Table<'_, &str, &[u8]>, parent: &str, wrong: ErrorKind) -> Result<(), Error> {
    if parent.is_empty() {
        return Ok(());
    }
    let record = read(snapshots, parent)?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("parent snapshot {parent:?}: not found")))?;
    if record.kind == Kind::Committed {
        return Ok(());
    }
    Err(Error::new(wrong, format!("parent snapshot {parent:?} is not committed")))
}

fn read(
    snapshots: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<Record>, Error> {
    let Some(value) = snapshots.get(name).map_err(internal)? else { return Ok(None) };
    serde_json::from_slice(value.value()).map(Some).map_err(|e| Error::internal(USE, e))
}

fn put(
    snapshots: &mut Table<'_, &str, &[u8]>,
    children: &mut Table<'_, &str, ()>,
    record: &Record,
) -> Result<(), Error> {
    let bytes = serde_json::to_vec(record).map_err(|e| Error::internal(USE, e))?;
    snapshots.insert(record.name.as_str(), bytes.as_slice()).map_err(internal)?;
    if !record.parent.is_empty() {
        children.insert(format!("{}\0{}", record.parent, record.name).as_str(), ()).map_err(internal)?;
    }
    Ok(())
}

fn delete(
    snapshots: &mut Table<'_, &str, &[u8]>,
    children: &mut Table<'_, &str, ()>,
    record: &Record,
) -> Result<(), Error> {
    snapshots.remove(record.name.as_str()).map_err(internal)?;
    children.remove(format!("{}\0{}", record.parent, record.name).as_str()).map_err(internal)?;
    Ok(())
}

fn internal(source: impl Into<redb::Error>) -> Error {
    Error::internal(USE, source.into())
}

fn not_found(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("snapshot {name:?}: not found"))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
