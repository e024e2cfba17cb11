//! The worker: this test binary, started again by a supervisor of a test with the descriptor of the mount as its
//! standard input. It adopts, shows what was shown, serves, and never ends by itself.

use std::{
    env, fs,
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use layerfs::{Connection, DiskLimits, Engine, Layer, LayerId, Limits, Mounted, Slots, Store};

use super::{
    layers::{Kept, Slow, list},
    supervisor::{MOUNT, Stage},
};

/// The one test below that is a worker, by the name that the test binary knows it by.
pub(super) const NAME: &str = "adoption::worker::serves_until_it_is_killed";
/// What a worker is told, in its environment.
pub(super) const ROOT: &str = "SOCI_WORKER_ROOT";
pub(super) const PARAMETERS: &str = "SOCI_WORKER_PARAMETERS";
pub(super) const STAGE: &str = "SOCI_WORKER_STAGE";
/// What it says.
pub(super) const AT_STAGE: &str = "at its stage";
pub(super) const SERVED: &str = "serves";
/// Less than the big file, so that its bytes have to be fetched again and again.
const STORE_BYTES: u64 = 40 << 20;

/// A connection with everything behind it.
pub(super) struct Served {
    pub(super) connection: Connection,
    store: Arc<Store>,
    engine: Arc<Engine>,
    root: PathBuf,
}

impl Served {
    pub(super) fn adopt(root: &Path, mounted: Mounted) -> Result<Served> {
        let store = Store::open(root, DiskLimits { max_bytes: Some(STORE_BYTES), ..DiskLimits::default() })?;
        let engine = Engine::new(tokio::runtime::Handle::current(), Limits::default());
        let slots = Slots::open(root.join("slots.json"))?;
        let connection = Connection::adopt(mounted, slots, &store, &engine)?;
        Ok(Served { connection, store, engine, root: root.to_owned() })
    }

    pub(super) fn open(&self, kept: &Kept) -> Result<Arc<Layer>> {
        let id = LayerId { layer: kept.layer, ztoc: Some(kept.ztoc) };
        let layer = match Layer::stored(&self.store, &self.engine, &id)? {
            Some(layer) => layer,
            None => {
                let bytes = fs::read(self.root.join("blobs").join(kept.ztoc.hex()))?;
                Layer::create(&self.store, &self.engine, &kept.layer, &kept.ztoc, &bytes)?
            }
        };
        layer.add_source("file", Arc::new(Slow::open(&self.root, &kept.layer)?));
        Ok(layer)
    }

    pub(super) fn show_known(&self) -> Result<()> {
        for (number, kept) in (1..).zip(list(&self.root)?) {
            self.connection.show_again(number, &self.open(&kept)?, &[])?;
        }
        Ok(())
    }
}

fn say(what: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{what}")?)
}

/// Nothing to do, and no test, unless it was started by a supervisor.
#[test]
fn serves_until_it_is_killed() -> Result<()> {
    let Some(root) = env::var_os(ROOT).map(PathBuf::from) else { return Ok(()) };
    let told = |name| env::var(name).with_context(|| format!("read {name}"));
    let device = io::stdin().as_fd().try_clone_to_owned()?;
    let stage = told(STAGE)?;
    if stage == Stage::Takes.name() {
        // As a worker that died at the worst moment: it has a request, and no other process will get it.
        let length = rustix::io::read(&device, &mut vec![0; 2 << 20])?;
        say(&format!("{AT_STAGE}: took {length} bytes"))?;
        forever();
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let _inside = runtime.enter();
    let parameters = serde_json::from_str(&told(PARAMETERS)?)?;
    let mounted = Mounted::inherited(&root.join(MOUNT), device, parameters);
    let mut served = Served::adopt(&root, mounted)?;
    if stage == Stage::Adopts.name() {
        say(AT_STAGE)?;
        forever();
    }
    served.show_known()?;
    served.connection.serve(|| {})?;
    say(SERVED)?;
    forever()
}

fn forever() -> ! {
    loop {
        thread::park();
    }
}
