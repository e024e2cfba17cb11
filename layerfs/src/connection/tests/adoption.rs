//! One mount, one server after the other, all in this process. The kernel sees what it sees of several processes: a
//! descriptor that is read no more, and then again. (The `integration` crate kills real processes.)

use std::os::fd::{AsFd, BorrowedFd};

use super::*;
use crate::{
    connection::{Mounted, Parameters},
    fuse::{Counts, Door, init},
};

/// What a supervisor holds; the mount goes with it.
struct HeldMount {
    mounted: Mounted,
    store: Arc<Store>,
    engine: Arc<Engine>,
    root: TempDir,
}

impl HeldMount {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let mounted = Mounted::new(&root.path().join("fuse")).expect("these tests need root and /dev/fuse");
        let (store, engine) = (Store::open(root.path(), DiskLimits::default()).unwrap(), engine());
        Self { mounted, store, engine, root }
    }

    /// What a supervisor gives to a worker that it starts.
    fn handed(&self) -> Mounted {
        let stored = serde_json::to_string(self.mounted.parameters()).unwrap();
        let parameters: Parameters = serde_json::from_str(&stored).unwrap();
        let device = self.mounted.as_fd().try_clone_to_owned().unwrap();
        Mounted::inherited(self.mounted.path(), device, parameters)
    }

    fn slots(&self) -> Slots {
        Slots::open(self.root.path().join("slots.json")).unwrap()
    }

    fn adopt(&self) -> Connection {
        Connection::adopt(self.handed(), self.slots(), &self.store, &self.engine).unwrap()
    }

    fn layer(&self, made: &TestLayer) -> Arc<Layer> {
        let ztoc = Digest::sha256(&made.ztoc);
        let layer = Layer::create(&self.store, &self.engine, &made.digest, &ztoc, &made.ztoc).unwrap();
        layer.add_source("origin", made.blob.clone());
        layer
    }
}

impl Drop for HeldMount {
    fn drop(&mut self) {
        let _ = self.mounted.unmount();
    }
}

/// Reads in a process of its own: this process has the descriptor, and could not be killed while it waited.
fn cat(path: &Path) -> tokio::task::JoinHandle<Vec<u8>> {
    let mut cat = Command::new("cat");
    cat.arg(path);
    tokio::task::spawn_blocking(move || cat.output().unwrap().stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_server_that_dies_before_it_serves_loses_nothing() {
    let held = HeldMount::new();
    let made = made(&zoo().end());
    drop(held.adopt());
    let path = held.mounted.path().join("1");
    let reader = cat(&path.join("d/f"));
    drop(held.adopt());
    let mut connection = held.adopt();
    let slot = connection.show(&held.layer(&made), &[]).unwrap();
    assert_eq!(connection.slot_path(slot), path);
    assert!(!reader.is_finished(), "no server has answered it yet");
    connection.serve(|| {}).unwrap();
    connection.serve(|| {}).unwrap();
    assert!(reader.await.unwrap() == noise(3, 200_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_requests_that_a_dead_server_took_are_answered_by_the_next() {
    let held = HeldMount::new();
    let made = made(&zoo().end());
    let path = held.mounted.path().join("1");
    let reader = cat(&path.join("d/f"));
    // Reads the request of the kernel, and does not answer.
    let dead = held.handed();
    let taken = outside(move || rustix::io::read(&dead, &mut vec![0; 2 << 20]).unwrap());
    assert!(taken.await > 40, "a request");
    let mut connection = held.adopt();
    connection.show(&held.layer(&made), &[]).unwrap();
    connection.serve(|| {}).unwrap();
    assert!(reader.await.unwrap() == noise(3, 200_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_the_root_is_listed_anew_at_once_after_adoption() {
    let held = HeldMount::new();
    let (one, two) = (made(&zoo().end()), made(&zoo().file("more", b"m").end()));
    let mut connection = held.adopt();
    connection.serve(|| {}).unwrap();
    let root = held.mounted.path();
    let listed = || {
        let root = root.to_owned();
        outside(move || {
            let mut names: Vec<u32> = fs::read_dir(root)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
                .collect();
            names.sort_unstable();
            names
        })
    };
    assert!(listed().await.is_empty());
    let first = connection.show(&held.layer(&one), &[]).unwrap();
    assert_eq!(listed().await, [first]);
    let second = connection.show(&held.layer(&two), &[]).unwrap();
    assert_eq!(listed().await, [first, second]);
    connection.hide(first);
    assert_eq!(listed().await, [second]);
    connection.hide(second);
    assert!(listed().await.is_empty());
}

/// The mounting process tells the kernel one thing, and the serving process believes that it told another: both must
/// be the same to the last byte.
#[tokio::test(flavor = "multi_thread")]
async fn fuse_the_reply_to_the_kernel_and_the_reply_of_the_library_are_equal() {
    let held = HeldMount::new();
    let door = Door {
        slots: Arc::new(held.slots()),
        store: held.store.clone(),
        runtime: held.engine.runtime().clone(),
        counts: Arc::new(Counts::default()),
        counters: held.engine.counters().clone(),
    };
    let (_session, reply) = held.mounted.initialized(door).unwrap();
    assert_eq!(reply, init::answer(init::OWN, held.mounted.parameters()));
    assert!(held.mounted.parameters().can_resend(), "these tests need Linux 6.9");
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_descriptors_are_the_device_and_are_closed_on_exec() {
    let held = HeldMount::new();
    let connection = held.adopt();
    let session = connection.session.as_ref().unwrap();
    let device = |descriptor: BorrowedFd<'_>| rustix::fs::fstat(descriptor).unwrap().st_rdev;
    for descriptor in [held.mounted.as_fd(), connection.mounted().as_fd(), session.as_fd()] {
        let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(device(descriptor), device(held.mounted.as_fd()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_connection_that_has_ended_is_not_taken_over() {
    let held = HeldMount::new();
    let note = held.root.path().join("fuse.json");
    held.mounted.note(&note).unwrap();
    let handed = || {
        let device = held.mounted.as_fd().try_clone_to_owned().unwrap();
        Mounted::handed(held.mounted.path(), &note, device)
    };
    assert!(!held.mounted.has_ended());
    handed().unwrap();
    let device = crate::connection::mount::mounted_device(held.mounted.path()).unwrap().unwrap();
    let minor = device.split_once(':').unwrap().1;
    // It is still mounted, and no request will ever be answered.
    let control = held.root.path().join("control");
    fs::create_dir(&control).unwrap();
    rustix::mount::mount("control", &control, "fusectl", rustix::mount::MountFlags::empty(), None).unwrap();
    let aborted = fs::write(control.join(minor).join("abort"), "1");
    rustix::mount::unmount(&control, rustix::mount::UnmountFlags::DETACH).unwrap();
    aborted.unwrap();
    assert!(held.mounted.has_ended());
    assert!(handed().unwrap_err().to_string().contains("ended the connection"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_a_mount_that_another_program_unmounts_is_put_back_and_taken_over_meanwhile() {
    let mut held = HeldMount::new();
    let note = held.root.path().join("fuse.json");
    held.mounted.note(&note).unwrap();
    assert!(!held.mounted.put_back().unwrap(), "it is there");
    let made = made(&zoo().end());
    let mut connection = held.adopt();
    connection.show(&held.layer(&made), &[]).unwrap();
    connection.serve(|| {}).unwrap();
    let at = |held: &HeldMount| crate::connection::mount::mounted_device(held.mounted.path()).unwrap();
    let device = at(&held);
    rustix::mount::unmount(held.mounted.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(at(&held).is_none() && !held.mounted.has_ended());
    let taken =
        Mounted::handed(held.mounted.path(), &note, held.mounted.as_fd().try_clone_to_owned().unwrap());
    assert!(!taken.unwrap().has_ended());
    for _ in 0..2 {
        assert!(held.mounted.put_back().unwrap());
        assert_eq!(at(&held), device);
        rustix::mount::unmount(held.mounted.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    assert!(held.mounted.put_back().unwrap());
    assert!(cat(&held.mounted.path().join("1/d/f")).await.unwrap() == noise(3, 200_000));
}
