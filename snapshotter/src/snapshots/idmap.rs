//! Containers with users of their own: which users and groups of the container are which of the host. Pure.
//!
//! The client sends two labels, each `container:host:length[,…]`. The mounts get options with the same maps, as those of
//! containerd's overlay snapshotter do, and the kernel then shows the layers with other owners. Nothing is copied. Only
//! the folder that the container writes to changes its owner: it belongs to the container's root.

use std::collections::HashMap;

use crate::{
    error::{Error, ErrorKind},
    images::labels::{GID_MAPPING, UID_MAPPING},
};

type Labels = HashMap<String, String>;

/// No user has this number.
const NO_USER: u32 = u32::MAX;

/// The mount options, users first. None without labels.
pub(crate) fn options(labels: &Labels) -> Vec<String> {
    let option = |name: &str, label: &str| labels.get(label).map(|value| format!("{name}={value}"));
    option("uidmap", UID_MAPPING).into_iter().chain(option("gidmap", GID_MAPPING)).collect()
}

/// User and group of the host that the container's root is. `None` without labels. If one of the two labels is missing, root
/// is root for it.
pub(crate) fn root(labels: &Labels) -> Result<Option<(u32, u32)>, Error> {
    let (users, groups) = (labels.get(UID_MAPPING), labels.get(GID_MAPPING));
    if users.is_none() && groups.is_none() {
        return Ok(None);
    }
    Ok(Some((root_of(users)?, root_of(groups)?)))
}

fn root_of(map: Option<&String>) -> Result<u32, Error> {
    let Some(map) = map.filter(|map| !map.is_empty()) else { return Ok(0) };
    let wrong = |why: &str| {
        Error::new(ErrorKind::InvalidArgument, format!("read the mapping of users {map:?}: {why}"))
    };
    let mut root = None;
    for range in map.split(',') {
        let (container, host, length) = parsed(range).ok_or_else(|| wrong("not container:host:length"))?;
        if container == 0 && length > 0 {
            root = root.or(Some(host));
        }
    }
    root.ok_or_else(|| wrong("it maps the container's root to no user of the host"))
}

fn parsed(range: &str) -> Option<(u32, u32, u32)> {
    let mut numbers =
        range.split(':').map(|number| number.parse::<u32>().ok().filter(|number| *number != NO_USER));
    let three = (numbers.next()??, numbers.next()??, numbers.next()??);
    let (container, host, length) = three;
    let fits = container.checked_add(length).is_some() && host.checked_add(length).is_some();
    (fits && numbers.next().is_none()).then_some(three)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(users: Option<&str>, groups: Option<&str>) -> Labels {
        let both = [(UID_MAPPING, users), (GID_MAPPING, groups)];
        both.into_iter().filter_map(|(name, map)| Some((name.to_owned(), map?.to_owned()))).collect()
    }

    #[test]
    fn the_root_of_a_container_is_a_user_of_the_host() {
        type Row = (Option<&'static str>, Option<&'static str>, Result<Option<(u32, u32)>, ()>);
        let rows: &[Row] = &[
            (None, None, Ok(None)),
            (Some("0:100000:65536"), Some("0:200000:65536"), Ok(Some((100_000, 200_000)))),
            (Some("1:5:3,0:7:1"), Some("0:0:4294967294"), Ok(Some((7, 0)))),
            (Some("0:100000:65536"), None, Ok(Some((100_000, 0)))),
            (None, Some("0:3:1"), Ok(Some((0, 3)))),
            (Some("1:100000:65536"), None, Err(())),
            (Some("0:100000:0"), None, Err(())),
            (Some("0:100000"), None, Err(())),
            (Some("0:100000:1:2"), None, Err(())),
            (Some("0:-1:1"), None, Err(())),
            (Some("0:4294967295:1"), None, Err(())),
            (Some("0:4294967294:5"), None, Err(())),
            (Some("0:1:1,"), None, Err(())),
            (Some("bogus"), None, Err(())),
        ];
        for (users, groups, expected) in rows {
            let found = root(&labels(*users, *groups));
            if let Err(error) = &found {
                assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            }
            assert_eq!(found.map_err(drop), *expected, "{users:?} {groups:?}");
        }
    }

    #[test]
    fn options_are_the_labels() {
        assert_eq!(options(&labels(Some("0:1:2"), Some("0:3:4"))), ["uidmap=0:1:2", "gidmap=0:3:4"]);
        assert_eq!(options(&labels(None, Some("0:3:4"))), ["gidmap=0:3:4"]);
        assert!(options(&labels(None, None)).is_empty());
    }
}
