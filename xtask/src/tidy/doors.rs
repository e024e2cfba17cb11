//! Where foreign protocols and unsafe code may stand, and how large a file may be.

use super::source::{self, Source};

/// Where a foreign protocol may be named: files, or folders with everything in them.
const DOORS: &[(&str, &[&str])] = &[
    (
        "fuser",
        &["layerfs/src/fuse.rs", "layerfs/src/fuse/", "layerfs/src/connection.rs", "layerfs/src/connection/"],
    ),
    (
        "tonic",
        &[
            "snapshotter/src/api/",
            "snapshotter/src/images/containerd.rs",
            "snapshotter/src/process/worker/wiring.rs",
            "cli/src/containerd.rs",
            "cli/src/containerd/",
            "cli/src/daemon_client.rs",
            "proto/",
            "integration/",
        ],
    ),
    ("axum", &["snapshotter/src/api/metrics.rs"]),
    (
        "clap",
        &[
            "cli/src/args.rs",
            "cli/src/args/",
            "cli/src/main.rs",
            "snapshotter/src/args.rs",
            "snapshotter/src/main.rs",
        ],
    ),
];
const UNSAFE: &[&str] = &[
    "ztoc/src/gzip/inflate.rs",
    "layerfs/src/raw.rs",
    "snapshotter/src/process/descriptors.rs",
    "xtask/src/process.rs",
];
/// Without tests; a longer file is a table.
const LINES_MAX: usize = 500;

pub(super) fn files_are_short() -> Vec<String> {
    let sources = source::rust_sources().iter().filter(|file| !file.is_test());
    let long = sources.filter(|file| file.lines_without_tests() > LINES_MAX);
    long.map(|file| format!("{}: {} lines", file.path, file.lines_without_tests())).collect()
}

pub(super) fn unsafe_code_is_on_islands() -> Vec<String> {
    let files = source::rust_sources().iter().filter(|file| !UNSAFE.contains(&file.path.as_str()));
    files.flat_map(|file| file.lines_with_word(concat!("un", "safe"))).collect()
}

pub(super) fn foreign_protocols_stay_at_their_doors() -> Vec<String> {
    let mut broken = Vec::new();
    for (foreign, doors) in DOORS {
        let is_door = |file: &Source| {
            doors.iter().any(|door| match door.strip_suffix('/') {
                Some(_) => file.path.starts_with(door),
                None => file.path == *door,
            })
        };
        for file in source::rust_sources().iter().filter(|file| file.is_source() && !is_door(file)) {
            broken.extend(file.lines_with_path(foreign));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_paths_are_found_in_code_alone() {
        let word = concat!("un", "safe");
        let odd = Source::new("a/src/b.rs", &format!("// {word}\nlet x = {word}_code;\n{word} {{}}\n"));
        assert_eq!(odd.lines_with_word(word).len(), 1);
        let door = Source::new("a/src/b.rs", "use fuser::X;\nlet y = my_fuser::Z;\n// fuser::W\n");
        assert_eq!(door.lines_with_path("fuser").len(), 1);
    }
}
