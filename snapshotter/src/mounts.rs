//! Whether overlays of any process still have our mount among their lower layers: said by the kernel's lists.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt, path::Path};

/// Whether some overlay, in any mount namespace, stands on something below `mount`. Where that cannot be told, it does.
pub(crate) fn are_over(mount: &Path) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    let mut seen = HashSet::new();
    processes.flatten().any(|process| {
        let path = process.path();
        // One list a namespace. A process that is gone has none.
        let Ok(namespace) = fs::metadata(path.join("ns/mnt")) else { return false };
        seen.insert(namespace.ino())
            && fs::read_to_string(path.join("mountinfo")).is_ok_and(|list| is_over(&list, mount))
    })
}

/// The same for one list.
fn is_over(list: &str, mount: &Path) -> bool {
    let lower = format!("{}/", mount.display());
    // `… - overlay SOURCE OPTIONS`
    let overlays = list.lines().filter_map(|line| line.split_once(" - overlay "));
    let mut paths = overlays.flat_map(|(_, rest)| rest.split([',', ':', '=', ' ']));
    paths.any(|path| path.starts_with(&lower))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_on_the_mount_are_told_from_others() {
        let row = "36 35 98:0 / /mnt rw shared:1 - ";
        let overlay = |options: &str| format!("{row}ext4 /dev/a rw\n{row}overlay overlay rw,{options}\n");
        let mount = Path::new("/r/fuse");
        for (list, expected) in [
            (overlay("lowerdir=/r/fuse/1:/r/fuse/2,upperdir=/r/snapshots/1/fs"), true),
            (overlay("lowerdir=/a:/r/fuse/12,index=off"), true),
            (overlay("lowerdir+=/r/fuse/7"), true),
            (overlay("lowerdir=/r/fuse2/1,upperdir=/r/x"), false),
            (format!("{row}fuse.soci soci rw\n36 35 0:5 / /r/fuse/x rw - ext4 /r/fuse/1 rw"), false),
            (String::new(), false),
        ] {
            assert_eq!(is_over(&list, mount), expected, "{list}");
        }
        assert!(!are_over(Path::new("/nonexistent/mount")));
    }
}
