//! A chain of snapshots becomes a list of mounts, with the options of containerd's overlay snapshotter and in its order.
//!
//! Pure, but for [`options`], which asks the kernel.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// One mount as containerd is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `bind` or `overlay`.
    pub(crate) kind: String,
    /// A folder, or `overlay`.
    pub(crate) source: String,
    /// As `mount -o` takes them.
    pub(crate) options: Vec<String>,
}

/// The purpose of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Write,
    Look,
}

/// Options of every overlay: those of the configuration, then what this kernel needs or is better without.
pub(crate) fn options(configured: &[String], folder: &Path) -> Vec<String> {
    let mut options = configured.to_vec();
    let mut add = |name: &str, option: &str| {
        if !configured.iter().any(|given| given.split('=').next() == Some(name)) {
            options.push(option.to_owned());
        }
    };
    let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // In another user namespace overlayfs must not use trusted attributes. (On tmpfs it has no others.)
    if !is_initial(&users) && !is_on_tmpfs(folder) {
        add("userxattr", "userxattr");
    }
    if Path::new("/sys/module/overlay/parameters/index").exists() {
        add("index", "index=off");
    }
    options
}

/// Whether a map of users is that of the initial user namespace, which maps every user to itself.
fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"]) || map.is_empty()
}

fn is_on_tmpfs(folder: &Path) -> bool {
    const TMPFS_MAGIC: i128 = 0x0102_1994;
    rustix::fs::statfs(folder).is_ok_and(|found| i128::from(found.f_type) == TMPFS_MAGIC)
}

/// The mount for a layer that containerd unpacks before it names the layers below: a folder, called an overlay.
///
/// It cannot be mounted, and containerd does not mount it. Because of the type, containerd writes whiteouts as overlayfs
/// reads them, as it does for the snapshotter `overlayfs`.
pub(crate) fn rebased(own: &Path) -> Vec<Mount> {
    let options = ["rw".to_owned(), format!("upperdir={}", own.join("fs").display())].into();
    vec![Mount { kind: "overlay".into(), source: "overlay".into(), options }]
}

/// The mounts of a snapshot whose own folder is `own` (with `fs` and `work` in it), over `lowers`, the
/// topmost first. `mapping` are the options for a container with users of its own, `extra` those of every overlay.
pub(crate) fn mounts(
    own: &Path,
    what: Use,
    lowers: &[PathBuf],
    mapping: Vec<String>,
    extra: &[String],
) -> Vec<Mount> {
    // overlayfs refuses the same folder twice (ELOOP); the higher one hides the lower one completely.
    let mut distinct: Vec<&PathBuf> = Vec::with_capacity(lowers.len());
    for lower in lowers {
        if !distinct.contains(&lower) {
            distinct.push(lower);
        }
    }
    let mut options = mapping;
    let bind = |source: &Path, access: &str| {
        let options = [options.as_slice(), &[access.to_owned(), "rbind".to_owned()]].concat();
        vec![Mount { kind: "bind".into(), source: source.display().to_string(), options }]
    };
    match (what, distinct.as_slice()) {
        (Use::Write, []) => return bind(&own.join("fs"), "rw"),
        (Use::Look, []) => return bind(&own.join("fs"), "ro"),
        (Use::Look, [only]) => return bind(only, "ro"),
        (Use::Write | Use::Look, _) => {}
    }
    if what == Use::Write {
        options.push(format!("workdir={}", own.join("work").display()));
        options.push(format!("upperdir={}", own.join("fs").display()));
    }
    let lowers: Vec<_> = distinct.iter().map(|lower| lower.display().to_string()).collect();
    options.push(format!("lowerdir={}", lowers.join(":")));
    options.extend_from_slice(extra);
    vec![Mount { kind: "overlay".into(), source: "overlay".into(), options }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_mounts() {
        let own = Path::new("/s/9");
        let lower = |name: &str| PathBuf::from(name);
        type Row = (Use, &'static [&'static str], &'static str, &'static str, &'static [&'static str]);
        let rows: &[Row] = &[
            (Use::Write, &[], "bind", "/s/9/fs", &["rw", "rbind"]),
            (Use::Look, &[], "bind", "/s/9/fs", &["ro", "rbind"]),
            (Use::Look, &["/f/1"], "bind", "/f/1", &["ro", "rbind"]),
            (Use::Look, &["/f/1", "/f/1"], "bind", "/f/1", &["ro", "rbind"]),
            (Use::Look, &["/f/2", "/f/1"], "overlay", "overlay", &["lowerdir=/f/2:/f/1", "index=off"]),
            (
                Use::Write,
                &["/f/2", "/f/1", "/f/2"],
                "overlay",
                "overlay",
                &["workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/f/2:/f/1", "index=off"],
            ),
        ];
        for (what, lowers, kind, source, options) in rows {
            let lowers: Vec<_> = lowers.iter().map(|name| lower(name)).collect();
            let found = mounts(own, *what, &lowers, Vec::new(), &["index=off".to_owned()]);
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].kind.as_str(), found[0].source.as_str()), (*kind, *source));
            assert_eq!(found[0].options, *options, "{what:?} {lowers:?}");
            let mapping = ["uidmap=0:1:2".to_owned(), "gidmap=0:3:4".to_owned()];
            let mapped = mounts(own, *what, &lowers, mapping.to_vec(), &["index=off".to_owned()]);
            assert_eq!(mapped[0].options, [&mapping[..], &found[0].options].concat(), "in front");
        }
    }

    #[test]
    fn options_of_every_overlay() {
        let here = options(&[], Path::new("/"));
        let own = ["volatile".to_owned(), "index=on".to_owned()];
        let with = options(&own, Path::new("/"));
        assert_eq!(with[..2], own, "those of the configuration come first");
        assert!(!with.contains(&"index=off".to_owned()), "and are the last word: {with:?}");
        let rest = here.iter().filter(|option| *option != "index=off");
        assert!(with[2..].iter().eq(rest), "{with:?} {here:?}");
        for (map, expected) in [
            ("         0          0 4294967295\n", true),
            ("         0       1000          1\n", false),
            ("         0          0 4294967295\n  5 6 7\n", false),
        ] {
            assert_eq!(is_initial(map), expected, "{map}");
        }
    }
}
