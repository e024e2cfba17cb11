//! Reading what is on disk already, through the kernel, against the same files on the disk's own file system.
//! Bar: 1.3. Needs root and FUSE; everything lives in a lab of its own.

use std::{fs, path::Path, sync::Arc};

use anyhow::Result;
use benches::{best_of, layer, tell};
use integration::{lab::Lab, reference::unpack_layer};
use layerfs::{Connection, DiskLimits, Engine, Layer, Limits, Slots, Store};
use oci::testing::FaultyBlob;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let lab = Lab::new("bench")?;
    let root = lab.folder("store")?;
    for (what, layer) in
        [("5 000 small files", layer(5_000, 2_000)), ("20 large files", layer(20, 10_000_000))]
    {
        let store = Store::open(&root, DiskLimits::default())?;
        let engine = Engine::new(runtime.handle().clone(), Limits::default());
        let slots = Slots::open(root.join("slots.json"))?;
        let connection = Connection::mount(&root.join("fuse"), slots, &store, &engine)?;
        let blob = Arc::new(FaultyBlob::new(layer.bytes.clone(), 64 << 10));
        let shown =
            runtime.block_on(Layer::stream(&store, &engine, "origin", blob, ztoc::Compression::Gzip))?;
        let lazy = connection.slot_path(connection.show(&shown, &[])?);
        let plain = unpack_layer(&lab, &layer)?;
        let (ours, theirs) = best_of(5, || read_all(&lazy), || read_all(&plain));
        tell(&format!("read {what} through FUSE"), ours, "on disk", theirs, 1.3);
        let (ours, theirs) = best_of(5, || stat_all(&lazy), || stat_all(&plain));
        tell(&format!("stat {what} through FUSE"), ours, "on disk", theirs, 1.3);
    }
    lab.close()
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(folder).expect("a directory").flatten() {
        let path = entry.path();
        let found = fs::symlink_metadata(&path).expect("it is there");
        visit(&path, &found);
        if found.is_dir() {
            walk(&path, visit);
        }
    }
}

fn read_all(folder: &Path) {
    walk(folder, &mut |path, found| {
        if found.is_file() {
            assert_eq!(fs::read(path).expect("a file").len() as u64, found.len());
        }
    });
}

fn stat_all(folder: &Path) {
    let mut bytes = 0;
    walk(folder, &mut |_, found| bytes += found.len());
    assert!(bytes > 0);
}
