//! Who needs the mount: containers whose snapshots stand on layers that are shown there.

use std::collections::{HashMap, HashSet};

use super::Snapshotter;
use crate::{
    error::Error,
    store::{Kind, Record},
};

impl Snapshotter {
    /// Keys of the active and view snapshots with a lazily shown layer below them, in order.
    pub(crate) fn needing_mount(&self) -> Result<Vec<String>, Error> {
        Ok(needing(&self.store.all()?))
    }
}

fn needing(records: &[Record]) -> Vec<String> {
    let by_name: HashMap<&str, &Record> =
        records.iter().map(|record| (record.name.as_str(), record)).collect();
    let stands_on_lazy = |record: &Record| {
        let (mut next, mut seen) = (record.parent.as_str(), HashSet::new());
        while let Some(below) = by_name.get(next).filter(|_| seen.insert(next)) {
            if below.lazy.is_some() {
                return true;
            }
            next = &below.parent;
        }
        false
    };
    let open = records.iter().filter(|record| record.kind != Kind::Committed);
    open.filter(|record| stands_on_lazy(record)).map(|record| record.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use oci::{Descriptor, Digest};

    use super::*;
    use crate::store::Lazy;

    #[test]
    fn containers_on_lazy_layers_need_the_mount() {
        let record = |name: &str, parent: &str, kind, slot: Option<u32>| Record {
            id: 0,
            name: name.into(),
            parent: parent.into(),
            kind,
            created: 0,
            updated: 0,
            labels: HashMap::new(),
            usage: (0, 0),
            lazy: slot.map(|slot| Lazy {
                slot,
                layer: Descriptor::new("application/octet-stream", Digest::sha256(b""), 0),
                ztoc: None,
                inherited: Vec::new(),
            }),
        };
        let records = [
            record("lazy", "", Kind::Committed, Some(1)),
            record("above", "lazy", Kind::Committed, None),
            record("plain", "", Kind::Committed, None),
            record("a", "above", Kind::Active, None),
            record("b", "plain", Kind::Active, None),
            record("c", "lazy", Kind::View, None),
            record("d", "", Kind::Active, None),
            record("e", "unknown", Kind::Active, None),
        ];
        assert_eq!(needing(&records), ["a", "c"]);
        assert!(needing(&[]).is_empty());
    }
}
