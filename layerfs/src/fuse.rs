//! The kernel's door: a request becomes a call of a layer, and the result a reply or an errno.
//!
//! Replies let the kernel cache as much as it can. Inside layers names, attributes and absences are valid forever.
//! The connection's own root, where layers come and go, is asked again after a second. The first OPEN, OPENDIR and
//! FLUSH are answered with ENOSYS: the kernel then sends no more of them, and no RELEASE. A request for an extended
//! attribute is **never** answered so, because the kernel would remember it for every layer of the connection. It
//! gets ENODATA, or EOPNOTSUPP for the attributes that `ls` would ask of each file, when the layer has none of them.
//!
//! Requests are answered on the thread that took them, except a read whose bytes have to be fetched. A task sends
//! that reply, so that no thread of the connection ever waits for a network. A panic in a callback, or in that task,
//! is caught here and logged. The request gets EIO, because fuser replies so when the reply is dropped. The thread goes
//! on.

mod counts;
pub(crate) mod init;

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use futures::FutureExt;
use tokio::runtime::Handle;

use crate::{
    crash_notes::InProgress,
    error::{Error, ErrorKind},
    layer::ReadAnswer,
    metrics::Counters,
    slots::{ShownSlot, Slots},
    store::Store,
    tree::{Attributes, NodeId, NodeKind},
};

pub(crate) use counts::{Counts, RequestKind};

/// Layers never change. A number of seconds beyond the kernel's range means no end.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// In the connection's root layers come and go.
const SHORT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) slots: Arc<Slots>,
    pub(crate) store: Arc<Store>,
    pub(crate) runtime: Handle,
    pub(crate) counts: Arc<Counts>,
    pub(crate) counters: Arc<Counters>,
}

/// A node of the connection: its root, or a node of a layer in a slot. The layer is noted as long as the value lives.
enum Target {
    Root,
    In(ShownSlot, NodeId, InProgress),
}

impl Door {
    fn place(&self, number: INodeNo) -> Result<Target, Errno> {
        if number == INodeNo::ROOT {
            return Ok(Target::Root);
        }
        match self.slots.of_node(number.0) {
            Some((slot, node)) => {
                let at = self.store.note(slot.layer.mark());
                Ok(Target::In(slot, node, at))
            }
            None if self.slots.is_refused(number.0) => Err(Errno::EIO),
            // A slot that was hidden: a process that still has one of its nodes open has a stale handle.
            None => Err(Errno::ESTALE),
        }
    }

    fn attributes(&self, number: INodeNo) -> Result<FileAttr, Errno> {
        Ok(match self.place(number)? {
            Target::Root => root(),
            Target::In(slot, node, _at) => file_attr(&slot, node),
        })
    }

    fn lookup_in(&self, parent: INodeNo, name: &OsStr) -> Result<(Duration, FileAttr), Errno> {
        match self.place(parent)? {
            Target::Root => {
                let refused = || self.slots.is_name_refused(name.as_bytes());
                let absent = || if refused() { Errno::EIO } else { Errno::ENOENT };
                let slot = self.slots.named(name.as_bytes()).ok_or_else(absent)?;
                Ok((SHORT, file_attr(&slot, NodeId::ROOT)))
            }
            Target::In(slot, node, _at) => {
                let found = slot.layer.lookup(node, name.as_bytes());
                Ok((FOREVER, found.map_or_else(absent, |node| file_attr(&slot, node))))
            }
        }
    }

    /// Calls `add` for entries from the `skip`-th on, until it returns true: the reply is full.
    fn list(
        &self,
        directory: INodeNo,
        skip: u64,
        mut add: impl FnMut(u64, &[u8], Duration, &FileAttr) -> bool,
    ) -> Result<(), Errno> {
        let skip = usize::try_from(skip).map_err(|_| Errno::EINVAL)?;
        let place = self.place(directory)?;
        let (own, above) = match &place {
            Target::Root => (root(), root()),
            Target::In(slot, node, _) if *node == NodeId::ROOT => (file_attr(slot, *node), root()),
            Target::In(slot, node, _) => (file_attr(slot, *node), file_attr(slot, slot.layer.parent(*node))),
        };
        for (number, (name, attr)) in [(&b"."[..], own), (b"..", above)].iter().enumerate().skip(skip) {
            if add(number as u64 + 1, name, FOREVER, attr) {
                return Ok(());
            }
        }
        let from = skip.saturating_sub(2);
        let mut next = from as u64 + 2;
        match place {
            Target::Root => {
                for slot in self.slots.all().iter().skip(from) {
                    next += 1;
                    if add(next, slot.number.to_string().as_bytes(), SHORT, &file_attr(slot, NodeId::ROOT)) {
                        break;
                    }
                }
            }
            Target::In(slot, node, _at) => {
                for child in slot.layer.children(node, from) {
                    next += 1;
                    if add(next, child.name, FOREVER, &file_attr(&slot, child.node)) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn xattr(&self, number: INodeNo, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let security = name == b"security.selinux";
        let acl = name.starts_with(b"system.posix_acl_");
        let Target::In(slot, node, _at) = self.place(number)? else {
            return Err(if security || acl { Errno::EOPNOTSUPP } else { Errno::ENODATA });
        };
        let tree = slot.layer.tree();
        if name == b"trusted.overlay.opaque" && tree.opaque(node) {
            return Ok(b"y".to_vec());
        }
        let has = tree.xattr_summary();
        if security && !has.selinux || acl && !has.acl {
            return Err(Errno::EOPNOTSUPP);
        }
        if !has.any {
            return Err(Errno::ENODATA);
        }
        let found = tree.xattrs(node).into_iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.to_vec()).ok_or(Errno::ENODATA)
    }

    /// Names, each followed by a NUL.
    fn xattr_names(&self, number: INodeNo) -> Result<Vec<u8>, Errno> {
        let Target::In(slot, node, _at) = self.place(number)? else { return Ok(Vec::new()) };
        let tree = slot.layer.tree();
        let mut names = Vec::new();
        if tree.opaque(node) {
            names.extend_from_slice(b"trusted.overlay.opaque\0");
        }
        if tree.xattr_summary().any {
            for (name, _) in tree.xattrs(node) {
                // The kernel would refuse the whole list for a name that it does not accept.
                if !name.is_empty() && name.len() <= 255 && !name.contains(&0) {
                    names.extend_from_slice(name);
                    names.push(0);
                }
            }
        }
        Ok(names)
    }

    /// Counts a request and answers it. A panic drops the reply, which answers with EIO.
    fn guarded(&self, request: RequestKind, answer: impl FnOnce()) {
        let counted = || {
            self.counts.note(request);
            answer();
        };
        if catch_unwind(AssertUnwindSafe(counted)).is_err() {
            note_panic(&self.counters, request);
        }
    }

    /// Answers a read that waits, from a task of its own, and catches a panic there.
    fn answer_later(
        &self,
        reply: ReplyData,
        slot: ShownSlot,
        node: INodeNo,
        outcome: impl Future<Output = Result<Vec<u8>, Error>> + Send + 'static,
    ) {
        let (counts, counters) = (self.counts.clone(), self.counters.clone());
        let shared = counters.clone();
        let answer = async move {
            counts.note(RequestKind::LateRead);
            let outcome = outcome.await;
            counters.reads_waited.add(u64::from(outcome.is_ok()));
            answer_read(&counters, reply, &slot, node, outcome);
        };
        let guarded = AssertUnwindSafe(answer).catch_unwind();
        self.runtime.spawn(async move {
            if guarded.await.is_err() {
                note_panic(&shared, RequestKind::LateRead);
            }
        });
    }
}

impl Filesystem for Door {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        init::configure(config);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guarded(RequestKind::Lookup, || match self.lookup_in(parent, name) {
            Ok((ttl, attr)) => reply.entry_with_ttls(&FOREVER, &ttl, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.guarded(RequestKind::Getattr, || match self.attributes(ino) {
            Ok(attr) => reply.attr(if ino == INodeNo::ROOT { &SHORT } else { &FOREVER }, &attr),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.guarded(RequestKind::Readlink, || match self.place(ino) {
            Ok(Target::In(slot, node, _at)) => match slot.layer.link_target(node) {
                Some(target) => reply.data(target),
                None => reply.error(Errno::EINVAL),
            },
            Ok(Target::Root) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(errno),
        });
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.guarded(RequestKind::Open, || reply.error(Errno::ENOSYS));
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.guarded(RequestKind::Opendir, || reply.error(Errno::ENOSYS));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.guarded(RequestKind::Flush, || reply.error(Errno::ENOSYS));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.guarded(RequestKind::Read, || {
            self.counts.note_size(size);
            let (slot, node, _at) = match self.place(ino) {
                Ok(Target::In(slot, node, at)) => (slot, node, at),
                Ok(Target::Root) => return reply.error(Errno::EISDIR),
                Err(errno) => return reply.error(errno),
            };
            match slot.layer.read(node, offset, size) {
                ReadAnswer::Ready(outcome) => {
                    self.counters.reads_ready.add(u64::from(outcome.is_ok()));
                    answer_read(&self.counters, reply, &slot, ino, outcome);
                }
                ReadAnswer::Later(outcome) => self.answer_later(reply, slot, ino, outcome),
            }
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.guarded(RequestKind::Readdir, || {
            let listed = self.list(ino, offset, |next, name, _, attr| {
                reply.add(attr.ino, next, attr.kind, OsStr::from_bytes(name))
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.guarded(RequestKind::Readdirplus, || {
            let listed = self.list(ino, offset, |next, name, ttl, attr| {
                reply.add(attr.ino, next, OsStr::from_bytes(name), &ttl, attr, Generation(0))
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.guarded(RequestKind::Statfs, || match self.store.statfs() {
            Ok(disk) => reply.statfs(
                disk.f_blocks,
                disk.f_bfree,
                disk.f_bavail,
                disk.f_files,
                disk.f_ffree,
                u32::try_from(disk.f_bsize).unwrap_or(4096),
                255,
                u32::try_from(disk.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))),
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.guarded(RequestKind::Getxattr, || answer_xattr(reply, size, self.xattr(ino, name.as_bytes())));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.guarded(RequestKind::Listxattr, || answer_xattr(reply, size, self.xattr_names(ino)));
    }
}

fn note_panic(counters: &Counters, request: RequestKind) {
    counters.panics.add(1);
    tracing::error!(?request, "a request panicked and was answered with EIO: please report this");
}

fn answer_read(
    counters: &Counters,
    reply: ReplyData,
    slot: &ShownSlot,
    node: INodeNo,
    outcome: Result<Vec<u8>, Error>,
) {
    let tally = slot.layer.tally();
    tally.reads.add(1);
    match outcome {
        Ok(bytes) => {
            counters.read_bytes.add(bytes.len() as u64);
            tally.read_bytes.add(bytes.len() as u64);
            reply.data(&bytes);
        }
        Err(error) => {
            counters.reads_failed.add(1);
            tally.reads_failed.add(1);
            tracing::error!(
                layer = %slot.layer.digest(), node = node.0, %error,
                "a read of a file failed; the program gets EIO"
            );
            reply.error(errno(&error));
        }
    }
}

/// Every fault of a layer is an I/O error to the program that reads.
fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::Denied
        | ErrorKind::Corrupt
        | ErrorKind::Unreachable
        | ErrorKind::Unsupported
        | ErrorKind::Full
        | ErrorKind::Io => Errno::EIO,
    }
}

fn answer_xattr(reply: ReplyXattr, size: u32, outcome: Result<Vec<u8>, Errno>) {
    match outcome {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

/// The root of the connection.
fn root() -> FileAttr {
    let attributes = Attributes {
        kind: NodeKind::Directory,
        size: 0,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink: 2,
        device: (0, 0),
        mtime: (0, 0),
    };
    to_attr(INodeNo::ROOT, &attributes)
}

/// Node number 0: the kernel caches that there is no such name.
fn absent() -> FileAttr {
    FileAttr { ino: INodeNo(0), ..root() }
}

fn file_attr(slot: &ShownSlot, node: NodeId) -> FileAttr {
    to_attr(INodeNo(slot.number_of(node)), &slot.layer.attributes(node))
}

fn to_attr(ino: INodeNo, attributes: &Attributes) -> FileAttr {
    let time = time(attributes.mtime);
    let (major, minor) = attributes.device;
    FileAttr {
        ino,
        size: attributes.size,
        blocks: attributes.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: match attributes.kind {
            NodeKind::Regular => FileType::RegularFile,
            NodeKind::Directory => FileType::Directory,
            NodeKind::Symlink => FileType::Symlink,
            NodeKind::CharDevice => FileType::CharDevice,
            NodeKind::BlockDevice => FileType::BlockDevice,
            NodeKind::Fifo => FileType::NamedPipe,
        },
        perm: attributes.mode,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        // The kernel's 32-bit encoding: 12 bits of major, 20 of minor.
        rdev: minor & 0xff | major << 8 | (minor & !0xff) << 12,
        blksize: 4096,
        flags: 0,
    }
}

fn time((seconds, nanoseconds): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    time.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
