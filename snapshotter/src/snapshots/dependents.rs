//! Who needs the mount: containers whose snapshots stand on layers that are shown there.

use std::collections::{BTreeSet, HashMap};

use crate::{
    error::Error,
    snapshots::{
        snapshotter::Snapshotter,
        store::{Kind, Record},
    },
};

impl Snapshotter {
    /// Keys of the active and view snapshots with a lazily shown layer below them, in order.
    pub(crate) fn needing_mount(&self) -> Result<Vec<String>, Error> {
        let records = self.store.all()?;
        let users: BTreeSet<&str> = standing(&records).into_iter().map(|(_, user)| user).collect();
        Ok(users.into_iter().map(ToOwned::to_owned).collect())
    }
}

/// Each active or view snapshot with each slot that it stands on.
pub(crate) fn standing(records: &[Record]) -> Vec<(u32, &str)> {
    let by_name: HashMap<_, _> = records.iter().map(|record| (record.name.as_str(), record)).collect();
    let mut found = Vec::new();
    for user in records.iter().filter(|record| record.kind != Kind::Committed) {
        let mut next = by_name.get(user.parent.as_str());
        // A parent is committed before its child is made, so this ends; that a database is whole is not taken for granted.
        for _ in 0..records.len() {
            let Some(record) = next else { break };
            found.extend(record.lazy.as_ref().map(|lazy| (lazy.slot, user.name.as_str())));
            next = by_name.get(record.parent.as_str());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use oci::Digest;

    use super::*;
    use crate::snapshots::store::Lazy;

    fn record(name: &str, parent: &str, kind: Kind, slot: Option<u32>) -> Record {
        let layer =
            serde_json::json!({ "mediaType": "x", "size": 1, "digest": Digest::sha256(b"x").to_string() });
        let lazy = slot.map(|slot| Lazy {
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
            lazy,
        }
    }

    #[test]
    fn who_stands_on_what() {
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
        let mut found = standing(&records);
        found.sort_unstable();
        assert_eq!(found, [(1, "container"), (1, "look"), (2, "container")]);
    }
}
