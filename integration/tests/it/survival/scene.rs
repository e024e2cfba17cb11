//! A daemon, a containerd, and an image that programs read from in containers.

use std::{
    ffi::CString,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    containerd::Containerd,
    daemon::{Daemon, pull, with_containerd_from},
    images::{Layer, Tar, tar::Entry},
    lab::Lab,
    machine::{Binaries, binaries, ensure_debian},
    process::wait_until,
};

use rustix::mount::{MountFlags, mount};

use crate::{
    adoption::readers,
    image::{Stage, noise, stage},
};

/// For what takes moments on a machine that has nothing else to do.
pub(super) const LIMIT: Duration = Duration::from_secs(120);
/// Of these a span is brought for each; only a test reads them that wants to see whether bytes can be had.
const LOOSE: usize = 48;
const LOOSE_BYTES: usize = 1 << 20;

/// See the module.
pub(super) struct Scene {
    pub(super) containerd: Containerd,
    pub(super) daemon: Daemon,
    pub(super) stage: Stage,
    /// The last to go.
    pub(super) lab: Lab,
}

fn layers() -> Result<Vec<Layer>> {
    ensure_debian(&["busybox-static"])?;
    let program = std::fs::read("/bin/busybox")?;
    let shell = Tar::new([
        Entry::directory("bin"),
        Entry::file("bin/busybox", program).mode(0o755),
        Entry::directory("loose"),
    ]);
    let loose = |tar: Tar, number: usize| {
        tar.with(Entry::file(format!("loose/{number}"), noise(number as u64, LOOSE_BYTES)))
    };
    let loose = (0..LOOSE).fold(Tar::new([]), loose);
    Ok([shell, loose, readers::layer()].iter().map(|tar| Layer::gzip(&tar.bytes())).collect())
}

impl Scene {
    /// The image is there, lazily; nothing is fetched in the background.
    pub(super) fn new(name: &str, configuration: &str) -> Result<Scene> {
        Scene::on(Lab::new(name)?, configuration)
    }

    /// The same on a disk of this many bytes.
    pub(super) fn on_small_disk(name: &str, configuration: &str, bytes: u64) -> Result<Scene> {
        let lab = Lab::new(name)?;
        let (root, size) = (lab.folder("soci/root")?, CString::new(format!("size={bytes}"))?);
        mount("small", &root, "tmpfs", MountFlags::empty(), size.as_c_str()).context("mount a small disk")?;
        Scene::on(lab, configuration)
    }

    /// The same with a daemon from elsewhere.
    pub(super) fn from(name: &str, programs: Binaries) -> Result<Scene> {
        Scene::with(Lab::new(name)?, "", programs)
    }

    fn on(lab: Lab, configuration: &str) -> Result<Scene> {
        Scene::with(lab, configuration, binaries()?)
    }

    fn with(lab: Lab, configuration: &str, programs: Binaries) -> Result<Scene> {
        let flags = ["--span-size", "1048576", "--min-layer-size", "0"];
        let stage = stage(&lab, layers()?, &flags)?;
        let configuration = format!("{configuration}\n[fill]\nenable = false\n");
        let (daemon, containerd) = with_containerd_from(&lab, &configuration, programs)?;
        let scene = Scene { containerd, daemon, stage, lab };
        scene.pull()?;
        ensure!(scene.daemon.prepared() == [true; 3], "{:?}", scene.daemon.prepared());
        Ok(scene)
    }

    pub(super) fn pull(&self) -> Result<String> {
        pull(&self.lab, &binaries()?, &self.containerd, &self.stage.lazy)
    }

    /// Starts a container; its root, as seen from here.
    pub(super) fn container(&self, id: &str) -> Result<PathBuf> {
        let image = &self.stage.lazy;
        let words = ["run", "-d", "--net-host", "--snapshotter", "soci", image, id];
        self.containerd.ctr(&[&words[..], &["/bin/busybox", "sleep", "100000"]].concat())?;
        let tasks = self.containerd.ctr(&["tasks", "ls"])?;
        let row = tasks.lines().find(|line| line.split_whitespace().next() == Some(id));
        let pid = row.and_then(|row| row.split_whitespace().nth(1)).with_context(|| tasks.clone())?;
        Ok(Path::new("/proc").join(pid).join("root"))
    }

    /// Ends and removes a container, and its snapshot.
    pub(super) fn remove(&self, id: &str) -> Result<()> {
        self.containerd.ctr(&["tasks", "rm", "-f", id])?;
        self.containerd.ctr(&["containers", "rm", id])?;
        // The snapshot goes with the next collection; the end of an image is a reason for one.
        self.containerd.ctr(&["images", "tag", &self.stage.lazy, "collect:now"])?;
        self.containerd.ctr(&["images", "rm", "--sync", "collect:now"])?;
        Ok(())
    }

    /// containerd lets some time pass before it calls a snapshotter again that was not there.
    pub(super) fn wait_for_calls(&self) -> Result<()> {
        wait_until("containerd to call again", LIMIT, || {
            Ok(self.containerd.ctr(&["snapshots", "--snapshotter", "soci", "ls"]).is_ok().then_some(()))
        })
    }

    /// Of the one mount: which it is, for another has another number.
    pub(super) fn mount(&self) -> Result<Option<String>> {
        let path = self.daemon.root().join("fuse");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mut rows = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found = rows.rfind(|row| row.get(4).is_some_and(|at| Path::new(at) == path));
        Ok(found.and_then(|row| row.get(2).map(ToString::to_string)))
    }
}

/// Whether a process runs; one that only waits to be asked how it ended does not.
pub(super) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Reads one of the files that nothing else reads, and compares it.
pub(super) fn read_loose(root: &Path, number: usize) -> Result<()> {
    assert!(number < LOOSE);
    let path = root.join(format!("loose/{number}"));
    let mut bytes = vec![0; LOOSE_BYTES];
    File::open(&path)
        .and_then(|file| file.read_exact_at(&mut bytes, 0))
        .with_context(|| format!("read {}", path.display()))?;
    ensure!(bytes == noise(number as u64, LOOSE_BYTES), "other bytes in {}", path.display());
    Ok(())
}
