//! Which layer is shown in which slot of the one connection.
//!
//! A slot is a folder in the connection's root, named by its number, and a run of node numbers from its base. Numbers
//! and bases are given out in order, stored before they are used, and never given out twice while the connection
//! lives. So a node that the kernel has cached of a removed slot never becomes a node of another layer. Node number =
//! base + the node's number within its layer; a binary search finds the slot of a node.
//! ```text
//! <root>/slots.json    {"next_slot": …, "next_base": …, "slots": [{"number", "base", "nodes", "layer", "ztoc", "inherited"}]}
//! ```
//!
//! The caller knows which snapshots use a slot, and keeps that elsewhere. When the file is lost, a slot can be shown
//! again by its number, with another base. If the mount is older than the loss, bases then begin above all that were
//! ever given out: lost nodes are stale, and never those of another layer.

use std::{
    fs, io,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ErrorKind},
    layer::Layer,
    sync::{Mutex, RwLock},
    tree::{Inherited, NodeId},
};

/// Node 1 is the connection's root.
const FIRST_BASE: u64 = 2;

/// A slot in the stored list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SlotRecord {
    /// Name of its folder in the connection's root.
    number: u32,
    base: u64,
    nodes: u32,
    layer: String,
    ztoc: Option<String>,
    /// Attributes of the directories that the layer implies without containing them.
    inherited: Vec<Inherited>,
}

impl SlotRecord {
    fn is_of(&self, layer: &Layer, inherited: &[Inherited]) -> bool {
        let id = layer.id();
        self.layer == id.layer.to_string()
            && self.ztoc == id.ztoc.map(|ztoc| ztoc.to_string())
            && self.nodes == layer.node_count()
            && self.inherited == inherited
    }
}

/// How nodes are numbered within a layer. To be raised whenever that changes: a node number that the kernel knows
/// must not become another node under a living mount.
const NUMBERING: u32 = 1;

#[derive(Debug, Default, Serialize, Deserialize)]
struct SlotList {
    #[serde(default = "first_numbering")]
    numbering: u32,
    next_slot: u32,
    next_base: u64,
    slots: Vec<SlotRecord>,
}

fn first_numbering() -> u32 {
    1
}

impl SlotList {
    fn from(next_base: u64) -> Self {
        Self { numbering: NUMBERING, next_slot: 1, next_base, slots: Vec::new() }
    }

    /// Whether no two slots share a number or a node, and new slots will not either.
    fn is_sound(&self) -> bool {
        let mut runs: Vec<_> = self.slots.iter().map(|slot| (slot.base, u64::from(slot.nodes))).collect();
        runs.sort_unstable();
        let end = runs.iter().try_fold(FIRST_BASE, |free, (base, nodes)| {
            (*base >= free).then(|| base.checked_add(*nodes)).flatten()
        });
        let mut numbers: Vec<_> = self.slots.iter().map(|slot| slot.number).collect();
        numbers.sort_unstable();
        let are_distinct = numbers.windows(2).all(|pair| pair[0] != pair[1]);
        let last = numbers.last().copied().unwrap_or(0);
        end.is_some_and(|end| end <= self.next_base) && are_distinct && last < self.next_slot
    }
}

/// A slot that is served.
#[derive(Debug, Clone)]
pub(crate) struct ShownSlot {
    pub(crate) number: u32,
    base: u64,
    pub(crate) layer: Arc<Layer>,
}

impl ShownSlot {
    /// The connection-wide number of one of its nodes.
    pub(crate) fn number_of(&self, node: NodeId) -> u64 {
        self.base + u64::from(node.0)
    }
}

/// All slots of a connection.
#[derive(Debug)]
pub struct Slots {
    path: PathBuf,
    /// The list on disk; its lock guards the file.
    stored: Mutex<SlotList>,
    /// Sorted by base; replaced as a whole, so that a lookup holds the lock for one clone of an `Arc`.
    shown: RwLock<Arc<Vec<ShownSlot>>>,
    /// Numbers and nodes of slots that are known and deliberately not served.
    refused: RwLock<Vec<(u32, Range<u64>)>>,
}

impl Slots {
    /// Reads the list that an earlier process stored in the file `path`; no slot of it is shown yet. A file that
    /// cannot be read is set aside. For a new mount, which no process has served yet.
    ///
    /// # Errors
    /// When the file cannot be opened, or set aside.
    pub fn open(path: PathBuf) -> Result<Self, Error> {
        let (slots, is_known) = Self::open_or(path, FIRST_BASE)?;
        if !is_known {
            // If the file is missing at a later start, it was lost.
            let written = slots.write(&slots.stored.lock());
            written.unwrap_or_else(|error| {
                tracing::warn!(
                    %error,
                    "the new list of slots cannot be written; it is written again with the first slot"
                );
            });
        }
        Ok(slots)
    }

    /// Reads the list for a mount that was served before: the kernel may know slots that the file has lost.
    ///
    /// # Errors
    /// As [`Slots::open`].
    pub fn open_again(path: PathBuf) -> Result<Self, Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // Above four billion nodes for each second before now, and positive as long as seconds have 31 bits.
        let beyond = (now << 32).max(1 << 32);
        let (slots, is_known) = Self::open_or(path, beyond)?;
        if !is_known {
            tracing::error!(
                "the list of slots is lost: containers may get ESTALE from files that they had looked up"
            );
        }
        Ok(slots)
    }

    /// The list, and whether the file was there.
    fn open_or(path: PathBuf, first_base: u64) -> Result<(Self, bool), Error> {
        let doing = || format!("read slots in {}", path.display());
        let known = match fs::read(&path) {
            Ok(bytes) => {
                let read: Result<SlotList, _> = serde_json::from_slice(&bytes);
                let why = match &read {
                    Ok(stored) if stored.numbering != NUMBERING => {
                        Some("another version made it, which numbers nodes otherwise".to_owned())
                    }
                    Ok(stored) if stored.is_sound() => None,
                    Ok(_) => Some("slots overlap".to_owned()),
                    Err(error) => Some(error.to_string()),
                };
                if let Some(error) = &why {
                    tracing::error!(
                        path = %path.display(), error,
                        "the list of slots is damaged; it is set aside, and containers may get ESTALE"
                    );
                    fs::rename(&path, path.with_extension("damaged")).map_err(|e| Error::io(doing(), e))?;
                }
                read.ok().filter(|_| why.is_none())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io(doing(), e)),
        };
        let is_known = known.is_some();
        let stored = Mutex::new(known.unwrap_or_else(|| SlotList::from(first_base)));
        Ok((Self { path, stored, shown: RwLock::default(), refused: RwLock::default() }, is_known))
    }

    /// Shows `layer` and returns the number of its slot. A layer that is shown already, with the same inherited
    /// attributes, keeps its slot.
    ///
    /// # Errors
    /// When the slot cannot be stored; the layer is not shown then.
    pub(crate) fn show(&self, layer: &Arc<Layer>, inherited: &[Inherited]) -> Result<u32, Error> {
        let mut stored = self.stored.lock();
        let shown = self.all();
        let is_shown = |number| shown.iter().any(|slot| slot.number == number);
        let same = stored.slots.iter().find(|slot| slot.is_of(layer, inherited) && is_shown(slot.number));
        if let Some(record) = same {
            return Ok(record.number);
        }
        let number = stored.next_slot;
        self.add(&mut stored, number, layer, inherited)?;
        Ok(number)
    }

    /// Shows `layer` in the slot `number`, where an earlier process showed it, with the same node numbers if they are
    /// known.
    ///
    /// # Errors
    /// As [`Slots::show`].
    pub(crate) fn show_again(
        &self,
        number: u32,
        layer: &Arc<Layer>,
        inherited: &[Inherited],
    ) -> Result<(), Error> {
        let mut stored = self.stored.lock();
        let known = stored.slots.iter().find(|slot| slot.number == number);
        match known.filter(|slot| slot.is_of(layer, inherited)) {
            Some(record) => {
                self.insert(ShownSlot { number, base: record.base, layer: layer.clone() });
                Ok(())
            }
            None => {
                stored.slots.retain(|slot| slot.number != number);
                self.add(&mut stored, number, layer, inherited)
            }
        }
    }

    /// Keeps the slot `number` of an earlier process without serving it.
    pub(crate) fn refuse(&self, number: u32) {
        let known = self.stored.lock().slots.iter().find(|slot| slot.number == number).cloned();
        let nodes = known.map_or(0..0, |slot| slot.base..slot.base + u64::from(slot.nodes));
        self.refused.write().push((number, nodes));
    }

    /// Whether a node number belongs to a slot that is not served on purpose.
    pub(crate) fn is_refused(&self, node: u64) -> bool {
        self.refused.read().iter().any(|(_, nodes)| nodes.contains(&node))
    }

    pub(crate) fn is_name_refused(&self, name: &[u8]) -> bool {
        self.refused.read().iter().any(|(number, _)| number.to_string().as_bytes() == name)
    }

    /// Marks numbers up to `number` as used, whatever the file says.
    pub(crate) fn skip(&self, number: u32) {
        let mut stored = self.stored.lock();
        stored.next_slot = stored.next_slot.max(number.saturating_add(1));
    }

    fn add(
        &self,
        stored: &mut SlotList,
        number: u32,
        layer: &Arc<Layer>,
        inherited: &[Inherited],
    ) -> Result<(), Error> {
        let before = (stored.next_slot, stored.next_base);
        let base = stored.next_base;
        let next = number.checked_add(1).zip(base.checked_add(u64::from(layer.node_count())));
        let Some((next_slot, next_base)) = next else {
            return Err(Error::new(ErrorKind::Unsupported, "give out a slot: there are no numbers left"));
        };
        stored.slots.push(SlotRecord {
            number,
            base,
            nodes: layer.node_count(),
            layer: layer.id().layer.to_string(),
            ztoc: layer.id().ztoc.map(|ztoc| ztoc.to_string()),
            inherited: inherited.to_vec(),
        });
        stored.next_slot = stored.next_slot.max(next_slot);
        stored.next_base = next_base;
        if let Err(error) = self.write(stored) {
            stored.slots.pop();
            (stored.next_slot, stored.next_base) = before;
            return Err(error);
        }
        self.insert(ShownSlot { number, base, layer: layer.clone() });
        Ok(())
    }

    fn insert(&self, slot: ShownSlot) {
        let mut shown = self.shown.write();
        let mut all: Vec<_> = shown.iter().filter(|other| other.number != slot.number).cloned().collect();
        all.push(slot);
        all.sort_by_key(|slot| slot.base);
        *shown = Arc::new(all);
    }

    /// Removes all stored slots that are neither shown nor refused: no snapshot uses them.
    pub(crate) fn forget_unshown(&self) -> Result<(), Error> {
        let mut stored = self.stored.lock();
        let shown = self.all();
        let refused = self.refused.read().clone();
        stored.slots.retain(|record| {
            shown.iter().any(|slot| slot.number == record.number)
                || refused.iter().any(|(number, _)| *number == record.number)
        });
        self.write(&stored)
    }

    /// Removes a slot for good; its numbers are not used again. An unknown slot is no error. The file is not written:
    /// what it still lists is not shown again after the next start.
    pub(crate) fn hide(&self, number: u32) {
        let mut stored = self.stored.lock();
        stored.slots.retain(|slot| slot.number != number);
        self.refused.write().retain(|(refused, _)| *refused != number);
        let mut shown = self.shown.write();
        *shown = Arc::new(shown.iter().filter(|slot| slot.number != number).cloned().collect());
    }

    /// Writes under another name, then renames: a killed process leaves the old list or the new one. Not synced: a
    /// power cut that takes the list ends the connection, too, and the caller knows which snapshots use which slot.
    fn write(&self, stored: &SlotList) -> Result<(), Error> {
        let doing = || format!("write slots to {}", self.path.display());
        let bytes = serde_json::to_vec(stored).map_err(|e| Error::with(ErrorKind::Corrupt, doing(), e))?;
        let other = self.path.with_extension("new");
        let written = fs::write(&other, bytes);
        written.and_then(|()| fs::rename(&other, &self.path)).map_err(|e| Error::io(doing(), e))
    }

    pub(crate) fn all(&self) -> Arc<Vec<ShownSlot>> {
        self.shown.read().clone()
    }

    pub(crate) fn named(&self, name: &[u8]) -> Option<ShownSlot> {
        let number: u32 = std::str::from_utf8(name).ok()?.parse().ok()?;
        // Each slot has one name: `007` is not a slot.
        let found = self.all().iter().find(|slot| slot.number == number)?.clone();
        (found.number.to_string().as_bytes() == name).then_some(found)
    }

    /// The slot that a node number belongs to, and the node within its layer.
    pub(crate) fn of_node(&self, number: u64) -> Option<(ShownSlot, NodeId)> {
        let shown = self.all();
        let after = shown.partition_point(|slot| slot.base <= number);
        let slot = shown.get(after.checked_sub(1)?)?;
        let node = NodeId(u32::try_from(number - slot.base).ok()?);
        slot.layer.contains(node).then(|| (slot.clone(), node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_lost_list_are_never_given_out_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("slots.json");
        let next_base = |slots: &Slots| slots.stored.lock().next_base;
        assert_eq!(next_base(&Slots::open(path.clone()).unwrap()), FIRST_BASE);
        let again = Slots::open_again(path.clone()).unwrap();
        assert_eq!(next_base(&again), FIRST_BASE, "no slot was shown, and none was lost");
        let slot = |number: u32, base: u64, nodes: u32| {
            format!(
                r#"{{"number":{number},"base":{base},"nodes":{nodes},"layer":"l","ztoc":null,"inherited":[]}}"#
            )
        };
        let list = |next_slot: u32, next_base: u64, slots: &[String]| {
            format!(r#"{{"next_slot":{next_slot},"next_base":{next_base},"slots":[{}]}}"#, slots.join(","))
        };
        for (text, is_sound) in [
            (list(3, 9, &[slot(1, 2, 3), slot(2, 5, 4)]), true),
            (list(3, 9, &[slot(2, 5, 4), slot(1, 2, 3)]), true),
            (list(3, 8, &[slot(1, 2, 3), slot(2, 5, 4)]), false),
            (list(3, 9, &[slot(1, 2, 4), slot(2, 5, 4)]), false),
            (list(2, 9, &[slot(1, 2, 3), slot(2, 5, 4)]), false),
            (list(3, 9, &[slot(1, 2, 3), slot(1, 5, 4)]), false),
            (list(3, u64::MAX, &[slot(1, u64::MAX, 3)]), false),
            (list(3, 9, &[slot(1, 0, 3)]), false),
            ("{".to_owned(), false),
            (r#"{"numbering":1,"next_slot":1,"next_base":2,"slots":[]}"#.to_owned(), true),
            (r#"{"numbering":2,"next_slot":1,"next_base":2,"slots":[]}"#.to_owned(), false),
        ] {
            fs::write(&path, &text).unwrap();
            let base = next_base(&Slots::open_again(path.clone()).unwrap());
            assert_eq!(base < 1 << 32, is_sound, "{text}");
            assert_eq!(path.exists(), is_sound, "{text}");
        }
    }
}
