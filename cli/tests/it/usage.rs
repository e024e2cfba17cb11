//! Help, version, and what cannot be done.

use std::collections::BTreeSet;

use crate::soci;

#[test]
fn version() {
    for flag in ["--version", "-v", "-version"] {
        let told = soci(&[flag]);
        assert_eq!(told.code, 0);
        let words: Vec<&str> = told.stdout.split_whitespace().collect();
        assert_eq!(words[..3], ["soci", "version", "0.15.0"], "{}", told.stdout);
        assert_eq!(words.len(), 4);
        assert_eq!(told.stdout.lines().count(), 1);
    }
}

#[test]
fn help() {
    for args in [&["--help"][..], &["-h"], &["help"], &[], &["index"], &["ztoc"]] {
        let told = soci(args);
        assert_eq!(told.code, 0, "{args:?}");
        assert!(told.stdout.contains("Usage:"), "{args:?}: {}", told.stdout);
        assert!(told.stderr.is_empty(), "{args:?}");
    }
    let told = soci(&["convert", "--help"]);
    for flag in ["--platform", "--span-size", "--min-layer-size", "--optimizations", "--namespace"] {
        assert!(told.stdout.contains(flag), "{flag}");
    }
}

#[test]
fn refuses() {
    let check = |args: &[&str], code: i32, expected: &str| {
        let told = soci(args);
        assert_eq!(told.code, code, "{args:?}");
        assert!(told.stderr.contains(expected), "{args:?}: {}", told.stderr);
        assert!(told.stdout.is_empty(), "{args:?}");
    };
    let (a, b) = ("docker://h.invalid/a:t", "docker://h.invalid/b:t");
    check(&["frobnicate"], 3, "No help topic for 'frobnicate'");
    check(&["convert", "--frobnicate"], 1, "soci: flag provided but not defined: -frobnicate");
    check(&["convert"], 1, "soci: source image needs to be specified");
    check(&["convert", a], 1, "soci: destination needs to be specified");
    check(&["convert", a, "docker://h.invalid/b"], 1, "must be a tagged ref of the form");
    let digest = format!("docker://h.invalid/b:t@sha256:{}", "a".repeat(64));
    check(&["convert", a, &digest], 1, "has a digest");
    check(&["convert", "docker-archive:file", b], 1, "supported are docker://");
    let nowhere = ["--address", "/nonexistent/socket", "convert", "alpine", b];
    check(&nowhere, 1, "connect to containerd at /nonexistent/socket (is it running? see --address)");
    check(&["--content-store", "x", "convert", a, b], 1, "unknown content store type: x; must be one of");
    check(&["convert", "-n", "a/b", a, "h.invalid/b:t", "--address", "/nonexistent/socket"], 1, "connect to");
    check(
        &["convert", "oci:/nonexistent/folder", b],
        1,
        "soci: open OCI layout /nonexistent/folder: not found",
    );
    check(&["convert", "docker://Bad/B", b], 1, "parse image name");
    check(&["convert", "--span-size", "-1", a, b], 1, "soci: span size must be >= 0");
    check(&["convert", "--min-layer-size=-1", a, b], 1, "soci: min layer size must be >= 0");
    check(
        &["convert", "--optimizations", "speed", a, b],
        1,
        "optimization speed is not a valid optimization [xattr]",
    );
    check(&["convert", "--platform", "a/b/c/d", a, b], 1, "parse platform");
    check(&["index", "info", "docker://h.invalid/a:t"], 1, "it needs a digest");
    check(&["ztoc", "info", "/nonexistent/file"], 1, "soci: read /nonexistent/file: not found");
    check(&["ztoc", "info", "sha256:12"], 1, "parse digest");
    check(&["ztoc", "get-file", "x"], 1, "please provide both a ztoc digest and a filename to extract");
}

/// Every flag of every command stands in docs/commands.md, and nothing else does.
#[test]
fn the_documented_flags_are_the_flags() {
    let page = include_str!("../../../docs/commands.md");
    let documented: BTreeSet<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.strip_prefix("--"))
        .map(|flag| flag.split([' ', '=']).next().unwrap_or_default())
        .collect();
    let commands = [
        "convert",
        "create",
        "push",
        "verify",
        "rebuild-db",
        "index list",
        "index info",
        "index remove",
        "ztoc list",
        "ztoc info",
        "ztoc get-file",
        "prefetch list",
        "prefetch info",
        "image pull",
        "status",
        "daemon upgrade",
    ];
    let mut flags = BTreeSet::from(["version".to_owned()]);
    for command in commands {
        assert!(page.contains(&format!("`soci {}", command.split(' ').next().unwrap())), "{command}");
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = soci(&words).stdout;
        let found =
            help.lines().filter_map(|line| line.split("--").nth(1).filter(|_| line.starts_with("  ")));
        flags.extend(found.map(|flag| {
            flag.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect::<String>()
        }));
    }
    let flags: BTreeSet<&str> = flags.iter().map(String::as_str).collect();
    assert_eq!(documented, flags);
}
