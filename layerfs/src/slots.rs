//! Which layer is shown where in the one connection.
//!
//! A slot is a folder in the connection's root, named by its number, and a run of node numbers from its base.
//! Numbers and bases are given out in order, stored before they are used, and never given out twice while the
//! connection lives: what the kernel has cached of a slot that is gone can never be taken for another's. Node
//! number = base + the node's number within its layer; the slot of a node is found by binary search.
//!
//! ```text
//! <root>/slots.json    {"next_slot": …, "next_base": …, "slots": [{"number", "base", "nodes", "layer", "inherited"}]}
//! ```

use std::{fs, io, path::PathBuf, str::FromStr, sync::Arc};

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ErrorKind},
    layer::Layer,
    sync::{Mutex, RwLock},
    tree::{Inherited, NodeId},
};

/// Node 1 is the connection's root.
const FIRST_BASE: u64 = 2;

/// A slot as stored: enough for another process to show the same layer in the same place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlotRecord {
    /// Name of its folder in the connection's root.
    pub number: u32,
    base: u64,
    nodes: u32,
    layer: String,
    /// Attributes of the directories that the layer only implies.
    pub inherited: Vec<Inherited>,
}

impl SlotRecord {
    /// Digest of the layer shown in it; `None` for a record that was tampered with.
    pub fn layer(&self) -> Option<Digest> {
        Digest::from_str(&self.layer).ok()
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    next_slot: u32,
    next_base: u64,
    slots: Vec<SlotRecord>,
}

/// A slot that is served.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) number: u32,
    base: u64,
    pub(crate) layer: Arc<Layer>,
}

impl Shown {
    /// The connection-wide number of one of its nodes.
    pub(crate) fn number_of(&self, node: NodeId) -> u64 {
        self.base + u64::from(node.0)
    }
}

/// All slots of a connection.
#[derive(Debug)]
pub struct Slots {
    path: PathBuf,
    /// What is on disk; guards the file.
    stored: Mutex<Stored>,
    /// Sorted by base; replaced as a whole, so that a lookup holds the lock for one clone of an `Arc`.
    shown: RwLock<Arc<Vec<Shown>>>,
}

impl Slots {
    /// Reads what an earlier process stored under `path`, a file; nothing of it is shown yet.
    ///
    /// # Errors
    /// When the file is there and cannot be read: guessing would give out node numbers twice.
    pub fn open(path: PathBuf) -> Result<Self, Error> {
        let stored = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                Error::with(ErrorKind::Corrupt, format!("read slots in {}", path.display()), e)
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Stored { next_slot: 1, next_base: FIRST_BASE, slots: Vec::new() }
            }
            Err(e) => return Err(Error::io(format!("read slots in {}", path.display()), e)),
        };
        Ok(Self { path, stored: Mutex::new(stored), shown: RwLock::default() })
    }

    /// The stored slots, for a new process to show again.
    pub fn records(&self) -> Vec<SlotRecord> {
        self.stored.lock().slots.clone()
    }

    /// Shows `layer` and returns the number of its slot, which is an existing one where the same layer with the
    /// same inherited attributes has one.
    ///
    /// # Errors
    /// When the slot cannot be stored; nothing is shown then.
    pub(crate) fn show(&self, layer: &Arc<Layer>, inherited: &[Inherited]) -> Result<u32, Error> {
        let mut stored = self.stored.lock();
        let digest = layer.digest().to_string();
        let same = |slot: &SlotRecord| slot.layer == digest && slot.inherited == inherited;
        let record = if let Some(record) = stored.slots.iter().find(|slot| same(slot)) {
            if record.nodes != layer.node_count() {
                let doing = format!("show layer {digest} in slot {}: it has other nodes now", record.number);
                return Err(Error::new(ErrorKind::Corrupt, doing));
            }
            record.clone()
        } else {
            let record = SlotRecord {
                number: stored.next_slot,
                base: stored.next_base,
                nodes: layer.node_count(),
                layer: digest,
                inherited: inherited.to_vec(),
            };
            let before = (stored.next_slot, stored.next_base);
            stored.next_slot += 1;
            stored.next_base += u64::from(record.nodes);
            stored.slots.push(record.clone());
            if let Err(error) = self.write(&stored) {
                stored.slots.pop();
                (stored.next_slot, stored.next_base) = before;
                return Err(error);
            }
            record
        };
        let mut shown = self.shown.write();
        if !shown.iter().any(|slot| slot.number == record.number) {
            let mut all = shown.to_vec();
            all.push(Shown { number: record.number, base: record.base, layer: layer.clone() });
            all.sort_by_key(|slot| slot.base);
            *shown = Arc::new(all);
        }
        Ok(record.number)
    }

    /// Takes a slot away for good; its numbers are not used again. Unknown ones are no error.
    pub(crate) fn hide(&self, number: u32) -> Result<(), Error> {
        let mut stored = self.stored.lock();
        stored.slots.retain(|slot| slot.number != number);
        let written = self.write(&stored);
        let mut shown = self.shown.write();
        *shown = Arc::new(shown.iter().filter(|slot| slot.number != number).cloned().collect());
        written
    }

    fn write(&self, stored: &Stored) -> Result<(), Error> {
        let doing = || format!("write slots to {}", self.path.display());
        let bytes = serde_json::to_vec(stored).map_err(|e| Error::with(ErrorKind::Corrupt, doing(), e))?;
        let other = self.path.with_extension("new");
        fs::write(&other, bytes)
            .and_then(|()| fs::rename(&other, &self.path))
            .map_err(|e| Error::io(doing(), e))
    }

    pub(crate) fn all(&self) -> Arc<Vec<Shown>> {
        self.shown.read().clone()
    }

    pub(crate) fn named(&self, name: &[u8]) -> Option<Shown> {
        let number: u32 = std::str::from_utf8(name).ok()?.parse().ok()?;
        // One name a slot: `007` is none.
        let found = self.all().iter().find(|slot| slot.number == number)?.clone();
        (found.number.to_string().as_bytes() == name).then_some(found)
    }

    /// The slot that a node number belongs to, and the node within its layer.
    pub(crate) fn of_node(&self, number: u64) -> Option<(Shown, NodeId)> {
        let shown = self.all();
        let after = shown.partition_point(|slot| slot.base <= number);
        let slot = shown.get(after.checked_sub(1)?)?;
        let node = NodeId(u32::try_from(number - slot.base).ok()?);
        slot.layer.contains(node).then(|| (slot.clone(), node))
    }
}
