//! The snapshots that need the FUSE mount: those of containers, with a layer below them that is shown there. Pure.

use std::collections::{BTreeSet, HashMap};

use crate::snapshots::store::{Kind, Record};

/// Keys of the active and view snapshots with a shown layer below them, in order.
pub(crate) fn keys(records: &[Record]) -> Vec<String> {
    let keys: BTreeSet<&str> = slots(records).into_iter().map(|(_, key)| key).collect();
    keys.into_iter().map(ToOwned::to_owned).collect()
}

/// Each active or view snapshot's key with each slot below it.
pub(crate) fn slots(records: &[Record]) -> Vec<(u32, &str)> {
    let by_name: HashMap<_, _> = records.iter().map(|record| (record.name.as_str(), record)).collect();
    let mut found = Vec::new();
    for dependent in records.iter().filter(|record| record.kind != Kind::Committed) {
        let mut next = by_name.get(dependent.parent.as_str());
        // A parent is committed before its child is made, so a chain ends. A damaged database may have a circle.
        for _ in 0..records.len() {
            let Some(record) = next else { break };
            found.extend(record.shown.as_ref().map(|shown| (shown.slot, dependent.name.as_str())));
            next = by_name.get(record.parent.as_str());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use oci::Digest;

    use super::*;
    use crate::layers::shown::ShownLayer;

    fn record(name: &str, parent: &str, kind: Kind, slot: Option<u32>) -> Record {
        let layer =
            serde_json::json!({ "mediaType": "x", "size": 1, "digest": Digest::sha256(b"x").to_string() });
        let shown = slot.map(|slot| ShownLayer {
            slot,
            layer: serde_json::from_value(layer).unwrap(),
            ztoc: None,
            inherited: Vec::new(),
        });
        Record {
            id: 1,
            name: name.into(),
            parent: parent.into(),
            kind,
            created: 0,
            updated: 0,
            labels: HashMap::new(),
            usage: (0, 0),
            shown,
        }
    }

    #[test]
    fn each_container_has_the_slots_below_it() {
        let records = [
            record("low", "", Kind::Committed, Some(1)),
            record("middle", "low", Kind::Committed, None),
            record("high", "middle", Kind::Committed, Some(2)),
            record("container", "high", Kind::Active, None),
            record("look", "low", Kind::View, None),
            record("alone", "", Kind::Active, None),
            // What no database should have.
            record("circle", "circle", Kind::Committed, None),
            record("lost", "circle", Kind::Active, None),
        ];
        let mut found = slots(&records);
        found.sort_unstable();
        assert_eq!(found, [(1, "container"), (1, "look"), (2, "container")]);
    }
}
