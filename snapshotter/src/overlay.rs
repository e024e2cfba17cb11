//! A chain of snapshots becomes a list of mounts. Pure.

use std::path::{Path, PathBuf};

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

/// What the snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Write,
    Look,
}

/// The mounts of a snapshot whose own folder is `own` (with `fs` and `work` in it), over `lowers`, the
/// topmost first. `extra` options are those of containerd's own overlay snapshotter on this kernel.
pub(crate) fn mounts(own: &Path, what: Use, lowers: &[PathBuf], extra: &[String]) -> Vec<Mount> {
    // overlayfs refuses the same folder twice (ELOOP); the higher one hides the lower one completely.
    let mut distinct: Vec<&PathBuf> = Vec::with_capacity(lowers.len());
    for lower in lowers {
        if !distinct.contains(&lower) {
            distinct.push(lower);
        }
    }
    let bind = |source: &Path, access: &str| {
        let options = vec![access.to_owned(), "rbind".to_owned()];
        vec![Mount { kind: "bind".into(), source: source.display().to_string(), options }]
    };
    match (what, distinct.as_slice()) {
        (Use::Write, []) => return bind(&own.join("fs"), "rw"),
        (Use::Look, []) => return bind(&own.join("fs"), "ro"),
        (Use::Look, [only]) => return bind(only, "ro"),
        (Use::Write | Use::Look, _) => {}
    }
    let mut options = extra.to_vec();
    if what == Use::Write {
        options.push(format!("workdir={}", own.join("work").display()));
        options.push(format!("upperdir={}", own.join("fs").display()));
    }
    let lowers: Vec<_> = distinct.iter().map(|lower| lower.display().to_string()).collect();
    options.push(format!("lowerdir={}", lowers.join(":")));
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
            (Use::Look, &["/f/2", "/f/1"], "overlay", "overlay", &["index=off", "lowerdir=/f/2:/f/1"]),
            (
                Use::Write,
                &["/f/2", "/f/1", "/f/2"],
                "overlay",
                "overlay",
                &["index=off", "workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/f/2:/f/1"],
            ),
        ];
        for (what, lowers, kind, source, options) in rows {
            let lowers: Vec<_> = lowers.iter().map(|name| lower(name)).collect();
            let found = mounts(own, *what, &lowers, &["index=off".to_owned()]);
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].kind.as_str(), found[0].source.as_str()), (*kind, *source));
            assert_eq!(found[0].options, *options, "{what:?} {lowers:?}");
        }
    }
}
