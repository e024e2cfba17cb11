//! Whether overlays of any process still have the FUSE mount among their lower layers. The kernel's lists of mounts tell.

use std::{
    collections::HashSet,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

/// Whether an overlay in any mount namespace uses a folder below `mount`. True also if that cannot be found out.
pub(crate) fn are_over(mount: &Path) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    let mut seen = HashSet::new();
    processes.flatten().any(|process| {
        let path = process.path();
        // One list a namespace. A process that has ended has none.
        let Ok(namespace) = fs::metadata(path.join("ns/mnt")) else { return false };
        if seen.contains(&namespace.ino()) {
            return false;
        }
        let Ok(list) = fs::read(path.join("mountinfo")) else { return false };
        seen.insert(namespace.ino());
        is_over(&list, mount)
    })
}

/// The same for one list.
fn is_over(list: &[u8], mount: &Path) -> bool {
    let mount = mount.as_os_str().as_bytes();
    list.split(|byte| *byte == b'\n').any(|line| {
        let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else { return false };
        // `ID PARENT DEVICE ROOT PLACE OPTIONS… - TYPE SOURCE OPTIONS`
        match (fields.get(dash + 1).copied(), fields.get(dash + 3)) {
            (Some(b"overlay"), Some(options)) => is_overlay_over(options, mount),
            // A layer by itself, bound to a folder.
            (Some(b"fuse.soci"), _) => fields.get(3).is_some_and(|root| *root != b"/"),
            _ => false,
        }
    })
}

fn is_overlay_over(options: &[u8], mount: &[u8]) -> bool {
    let parts = options.split(|byte| matches!(byte, b',' | b':' | b'='));
    parts.map(unescape).any(|part| {
        let is_below = part.strip_prefix(mount).is_some_and(|rest| rest.starts_with(b"/"));
        // A list of many layers is shortened by the path that all of them begin with, to `fuse/1` or `1`. The latter may
        // belong to another snapshotter.
        let short = part.strip_prefix(b"fuse/").unwrap_or(&part);
        is_below || (!short.is_empty() && short.iter().all(u8::is_ascii_digit))
    })
}

/// The kernel writes characters that would end a word as octal numbers.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        let byte =
            digits.map(|digits| digits.iter().fold(0u32, |sum, digit| sum * 8 + u32::from(digit - b'0')));
        match (first, byte.and_then(|byte| u8::try_from(byte).ok())) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                rest = &after[3..];
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
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
            (overlay("lowerdir=12:13:2,upperdir=/r/snapshots/1/fs"), true),
            (overlay("lowerdir=12:13:2"), true),
            (overlay("lowerdir=fuse/12:snapshotter/snapshots/3/fs"), true),
            (overlay("lowerdir=/a:/b,uuid=on"), false),
            (overlay(""), false),
            (format!("{row}fuse.soci soci rw\n36 35 0:5 / /r/fuse/x rw - ext4 /r/fuse/1 rw"), false),
            ("36 35 0:5 /3 /mnt/look ro shared:1 - fuse.soci soci ro".to_owned(), true),
            (String::new(), false),
        ] {
            assert_eq!(is_over(list.as_bytes(), mount), expected, "{list}");
        }
        let odd = Path::new("/a, b=c\\d/fuse");
        let list = overlay("lowerdir=/x:/a\\054\\040b\\075c\\134d/fuse/1");
        assert!(is_over(list.as_bytes(), odd), "{list}");
        let foreign =
            [b"1 2 0:3 / /\xff rw - ext4 /dev/b rw\n", overlay("lowerdir=/r/fuse/1").as_bytes()].concat();
        assert!(is_over(&foreign, mount), "not all names are text");
        assert!(!are_over(Path::new("/nonexistent/mount")));
    }
}
