//! Recognizes the state of AWS's Go daemon in the root folder, and leaves it alone.
//!
//! The Go daemon has the same default root. Its snapshots' folders have numbers, too, and this daemon would remove them as
//! unused. Its state cannot be taken over, because its layers are mounts of its own process.

use std::path::Path;

/// Files that the Go daemon writes there, and this daemon never does.
const TRACES: &[&str] = &["snapshotter/metadata.db", "metadata.db", "soci/spancache"];

/// Whether the root folder may be used.
///
/// # Errors
/// A sentence that says what was found, and what to do.
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
    fn state_of_the_go_daemon_is_refused() {
        for trace in TRACES {
            let root = TempDir::new().unwrap();
            fs::create_dir_all(root.path().join(trace).parent().unwrap()).unwrap();
            assert_eq!(check(root.path()), Ok(()), "empty folders are no state");
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
