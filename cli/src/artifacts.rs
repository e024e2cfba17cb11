//! The list of artifacts in a local store: what `list` prints, where an earlier build's ztocs are found, and which index
//! belongs to which image.
//!
//! Each store has one file of JSON, `<root>/artifacts/<store>.json`; containerd's namespaces are stores of their own. The
//! file is written beside its place and moved there, under a lock. It can always be made anew from the store itself
//! (`soci rebuild-db`). The Go tool's `artifacts.db` in the same folder is left alone.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::files::read_file;

/// A list longer than this is none that we wrote: it would be of a million artifacts.
const LIST_BYTES_MAX: u64 = 1 << 30;
const FORMAT: u32 = 1;

/// What an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Index,
    Ztoc,
    Prefetch,
}

/// One artifact. A member that has no meaning for its kind is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Artifact {
    pub(crate) digest: Digest,
    /// bytes
    pub(crate) size: u64,
    pub(crate) kind: Kind,
    /// of a ztoc or prefetch artifact its layer, of an index its image manifest
    pub(crate) of: Digest,
    /// of an index: what the image's name stood for
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<Digest>,
    /// of an index: `v1` or `v2`
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) version: String,
    /// of an index, as `linux/arm64`; empty where it is not known
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) platform: String,
    /// of a ztoc, uncompressed bytes
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) span_size: u64,
    /// nanoseconds since 1970
    pub(crate) created: u64,
    /// built on this machine. Builds do not reuse artifacts that were only found in the store
    #[serde(default)]
    pub(crate) built: bool,
}

#[derive(Serialize, Deserialize)]
struct Listing {
    format: u32,
    artifacts: Vec<Artifact>,
}

/// The list of one store. What is read of it is a copy; changes go through [`Artifacts::change`].
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    folder: PathBuf,
    store: String,
}

/// Artifacts by their digests, and by what they belong to: an index of several images is several artifacts.
#[derive(Debug, Default)]
pub(crate) struct List(BTreeMap<(Digest, Digest), Artifact>);

impl List {
    pub(crate) fn get(&self, digest: &Digest) -> Option<&Artifact> {
        self.values().find(|artifact| artifact.digest == *digest)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Artifact> {
        self.0.values()
    }

    /// One that was built here stays one.
    pub(crate) fn insert(&mut self, mut artifact: Artifact) {
        let key = (artifact.digest, artifact.of);
        artifact.built |= self.0.get(&key).is_some_and(|old| old.built);
        self.0.insert(key, artifact);
    }

    /// Takes out all that have one of these digests.
    pub(crate) fn remove(&mut self, digests: &[Digest]) {
        self.0.retain(|(digest, _), _| !digests.contains(digest));
    }
}

impl Artifacts {
    /// The list of the store of that name below `root`. Nothing is read or made yet.
    pub(crate) fn of(root: &Path, store: &str) -> Result<Artifacts, Error> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if store.is_empty() || !store.chars().all(good) {
            return Err(Error::new(ErrorKind::Invalid, format!("namespace {store:?}: not the name of one")));
        }
        Ok(Artifacts { folder: root.join("artifacts"), store: store.to_owned() })
    }

    /// All artifacts; none where there is no list yet.
    pub(crate) fn read(&self) -> Result<List, Error> {
        let path = self.path();
        let bytes = match read_file(&path, LIST_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(List::default()),
            Err(error) if error.kind() == ErrorKind::Denied => {
                let what =
                    format!("read the list of artifacts {}: permission denied; see --root", path.display());
                return Err(Error::new(ErrorKind::Denied, what));
            }
            Err(error) => return Err(error),
        };
        let doing = format!("read the list of artifacts {} (soci rebuild-db makes it anew)", path.display());
        let corrupt = |cause| Error::new(ErrorKind::Corrupt, &doing).because(cause);
        let listing: Listing = serde_json::from_slice(&bytes).map_err(corrupt)?;
        if listing.format != FORMAT {
            let why = format!("its format is {}", listing.format);
            return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
        }
        let mut list = List::default();
        listing.artifacts.into_iter().for_each(|artifact| list.insert(artifact));
        Ok(list)
    }

    /// Ok if the list can be changed. Asked before long work.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let _lock = self.lock()?;
        self.read().map(drop)
    }

    /// Changes the list while no other process does.
    pub(crate) fn change(&self, change: impl FnOnce(&mut List)) -> Result<(), Error> {
        let _lock = self.lock()?;
        let mut artifacts = self.read()?;
        change(&mut artifacts);
        self.write(artifacts)
    }

    /// Adds artifacts; those that are listed already are what they are now.
    pub(crate) fn add(&self, artifacts: Vec<Artifact>) -> Result<(), Error> {
        if artifacts.is_empty() {
            return Ok(());
        }
        self.change(|list| artifacts.into_iter().for_each(|artifact| list.insert(artifact)))
    }

    /// Puts what was found since `began` (nanoseconds since 1970) in the place of all that was listed before, whatever
    /// state the list was in. What was listed, too, keeps the time of its making, and whether it was built here.
    pub(crate) fn replace(&self, mut found: List, began: u64) -> Result<(), Error> {
        let _lock = self.lock()?;
        for old in self.read().unwrap_or_default().0.into_values() {
            match found.0.get_mut(&(old.digest, old.of)) {
                Some(new) => (new.created, new.built) = (old.created, old.built),
                None if old.created >= began => found.insert(old),
                None => {}
            }
        }
        self.write(found)
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.store))
    }

    /// Held until it is dropped. Others wait; none holds it for longer than it takes to write a file.
    fn lock(&self) -> Result<File, Error> {
        let doing = |what: &Path| format!("write the list of artifacts {}", what.display());
        let mut folder = DirBuilder::new();
        folder.recursive(true).mode(0o700);
        folder.create(&self.folder).map_err(|cause| Error::io(doing(&self.folder), cause))?;
        let path = self.folder.join("lock");
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|cause| Error::io(doing(&path), cause))?;
        file.lock().map_err(|cause| Error::io(doing(&path), cause))?;
        Ok(file)
    }

    fn write(&self, artifacts: List) -> Result<(), Error> {
        let path = self.path();
        let io = |cause| Error::io(format!("write the list of artifacts {}", path.display()), cause);
        let listing = Listing { format: FORMAT, artifacts: artifacts.0.into_values().collect() };
        let draft = path.with_extension("draft");
        let mut file = File::options();
        let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&draft).map_err(io)?;
        file.write_all(&oci::canonical_json(&listing)).map_err(io)?;
        file.sync_all().map_err(io)?;
        std::fs::rename(&draft, &path).map_err(io)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the form in which serde calls it
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(content: &str, created: u64) -> Artifact {
        Artifact {
            digest: Digest::sha256(content.as_bytes()),
            size: content.len() as u64,
            kind: Kind::Ztoc,
            of: Digest::sha256(b"layer"),
            image: None,
            version: String::new(),
            platform: String::new(),
            span_size: 4 << 20,
            created,
            built: true,
        }
    }

    #[test]
    fn kept_and_changed() {
        let root = tempfile::tempdir().unwrap();
        let list = Artifacts::of(&root.path().join("not/there"), "containerd-default").unwrap();
        assert_eq!(list.read().unwrap().values().count(), 0);
        assert!(!root.path().join("not").exists(), "reading makes nothing");
        list.add(Vec::new()).unwrap();
        list.add(vec![artifact("a", 1), artifact("b", 2)]).unwrap();
        list.add(vec![artifact("b", 3)]).unwrap();
        let times = || list.read().unwrap().values().map(|a| a.created).sum::<u64>();
        assert_eq!(times(), 4);
        let found = |built: bool| {
            let mut found = List::default();
            for artifact in [artifact("b", 9), artifact("c", 9)] {
                found.insert(Artifact { built, ..artifact });
            }
            found
        };
        list.replace(found(false), 4).unwrap();
        assert_eq!(times(), 3 + 9, "b keeps its time, a is gone");
        let built = |content: &str| list.read().unwrap().get(&artifact(content, 0).digest).unwrap().built;
        assert!(built("b") && !built("c"));
        list.add(vec![Artifact { built: false, ..artifact("b", 5) }]).unwrap();
        assert!(built("b"), "built once, it stays so");
        list.replace(List::default(), 9).unwrap();
        assert_eq!(times(), 9, "what came since is kept");
        let other = Artifacts::of(&root.path().join("not/there"), "soci").unwrap();
        assert_eq!(other.read().unwrap().values().count(), 0);
    }

    /// Two images may have the very same index.
    #[test]
    fn one_index_of_two_images() {
        let root = tempfile::tempdir().unwrap();
        let list = Artifacts::of(root.path(), "soci").unwrap();
        let other = Artifact { of: Digest::sha256(b"another"), ..artifact("a", 1) };
        list.add(vec![artifact("a", 1), other]).unwrap();
        assert_eq!(list.read().unwrap().values().count(), 2);
        list.change(|list| list.remove(&[artifact("a", 1).digest])).unwrap();
        assert_eq!(list.read().unwrap().values().count(), 0);
    }

    #[test]
    fn many_at_once_lose_nothing() {
        let root = tempfile::tempdir().unwrap();
        let list = Artifacts::of(root.path(), "soci").unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let list = list.clone();
                scope.spawn(move || {
                    for number in 0..8 {
                        list.add(vec![artifact(&format!("{thread} {number}"), 1)]).unwrap();
                    }
                });
            }
        });
        assert_eq!(list.read().unwrap().values().count(), 32);
    }

    #[test]
    fn a_list_that_is_none() {
        let root = tempfile::tempdir().unwrap();
        let list = Artifacts::of(root.path(), "soci").unwrap();
        list.add(vec![artifact("a", 1)]).unwrap();
        let path = root.path().join("artifacts/soci.json");
        for (content, kind) in
            [("nonsense", ErrorKind::Corrupt), (r#"{"format":2,"artifacts":[]}"#, ErrorKind::Unsupported)]
        {
            std::fs::write(&path, content).unwrap();
            let error = list.read().unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains("rebuild-db"), "{error}");
            assert!(list.add(vec![artifact("b", 1)]).is_err(), "it is not written over");
        }
        list.replace(List::default(), 0).unwrap();
        assert_eq!(list.read().unwrap().values().count(), 0);
        assert!(Artifacts::of(root.path(), "../x").is_err());
    }
}
