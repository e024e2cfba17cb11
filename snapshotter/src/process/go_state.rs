//! The state of another implementation in the root folder: recognised, and left alone.
//!
//! AWS's daemon has the same default root. Its snapshots' folders have numbers as ours have, so to start there would be to
//! remove them as rubbish. Nothing of it can be taken over: its layers are mounts of its own process.

use std::path::Path;

/// What the other one writes there, and we never do.
const TRACES: &[&str] = &["snapshotter/metadata.db", "metadata.db", "soci/spancache"];

/// Whether the root folder may be used.
///
/// # Errors
/// A sentence for whoever starts the daemon: what is there, and what can be done.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let Some(trace) = TRACES.iter().find(|trace| root.join(trace).symlink_metadata().is_ok()) else {
        return Ok(());
    };
    let shown = root.display();
    Err(format!(
        "the root folder {shown} is another soci-snapshotter's ({trace} is there), and is left as it is; while that one \
         still runs, remove the containers and images that it holds in containerd (nerdctl --snapshotter soci rm, rmi), \
         then stop it, move its folder away (mv {shown} {shown}.old) or choose another --root, and start again"
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_is_somebody_elses() {
        for trace in TRACES {
            let root = TempDir::new().unwrap();
            fs::create_dir_all(root.path().join(trace).parent().unwrap()).unwrap();
            assert_eq!(check(root.path()), Ok(()), "folders alone are nobody's");
            fs::write(root.path().join(trace), b"").unwrap();
            let said = check(root.path()).unwrap_err();
            let root = root.path().to_str().unwrap();
            assert!(said.contains(trace) && said.contains(root) && said.contains("--root"), "{said}");
        }
        let root = TempDir::new().unwrap();
        for ours in ["snapshotter/snapshots/1", "layers/sha256", "fuse"] {
            fs::create_dir_all(root.path().join(ours)).unwrap();
        }
        fs::write(root.path().join("snapshotter/snapshots.redb"), b"").unwrap();
        assert_eq!(check(root.path()), Ok(()));
        assert_eq!(check(&root.path().join("not there")), Ok(()));
    }
}
