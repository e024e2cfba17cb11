//! The rules of the house that a machine can see. Each test names the rule, collects every break of it, and fails
//! with the list. What is checked is what git tracks.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use integration::machine::{root, say};

use crate::faults::table::{ROWS, STAGES};
use source::{Source, crates, rust_sources, tracked};

/// Which of our crates each may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("ztoc", &[]),
    ("oci", &[]),
    ("proto", &[]),
    ("index", &["oci", "ztoc"]),
    ("layerfs", &["oci", "ztoc"]),
    ("snapshotter", &["layerfs", "index", "oci", "ztoc", "proto"]),
    ("cli", &["index", "oci", "ztoc", "proto"]),
    ("integration", &["cli", "snapshotter", "layerfs", "index", "oci", "ztoc", "proto"]),
    ("benches", &["layerfs", "ztoc", "oci", "integration"]),
    ("xtask", &["integration"]),
];
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
            "cli/src/store.rs",
            "cli/src/store/",
            "cli/src/control.rs",
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
    "integration/src/process.rs",
];
const LINES_MAX: usize = 800;
const LINES_REMARKABLE: usize = 500;

#[test]
fn modules_import_down_the_list() {
    let mut broken = Vec::new();
    for name in crates() {
        let Some(order) = source::modules(&name) else { continue };
        let place = |module: &str| order.iter().position(|listed| listed == module);
        for file in rust_sources().iter().filter(|file| file.is_library_of(&name)) {
            let Some(from) = file.top_module().and_then(|module| place(&module)) else { continue };
            for (line, module) in file.imports() {
                if place(&module).is_some_and(|to| to < from) {
                    broken.push(format!("{}:{line}: imports `{module}`, which stands above", file.path));
                }
            }
        }
    }
    report("imports point down the list of modules in lib.rs", &broken);
}

#[test]
fn files_are_rooms() {
    let mut broken = Vec::new();
    for file in rust_sources() {
        let lines = file.lines_without_tests();
        if lines > LINES_MAX {
            broken.push(format!("{}: {lines} lines", file.path));
        } else if lines > LINES_REMARKABLE {
            say(&format!("{}: {lines} lines; is there a reason?", file.path));
        }
    }
    report("no file has more than 800 lines", &broken);
}

#[test]
fn unsafe_lives_on_islands() {
    let mut broken = Vec::new();
    for file in rust_sources().iter().filter(|file| !UNSAFE.contains(&file.path.as_str())) {
        broken.extend(file.lines_with_word(concat!("un", "safe")));
    }
    report("memory is handled by hand on the named islands only", &broken);
}

#[test]
fn foreign_protocols_stay_at_their_doors() {
    let mut broken = Vec::new();
    for (foreign, doors) in DOORS {
        let is_door = |file: &Source| {
            doors.iter().any(|door| match door.strip_suffix('/') {
                Some(_) => file.path.starts_with(door),
                None => file.path == *door,
            })
        };
        for file in rust_sources().iter().filter(|file| file.is_source() && !is_door(file)) {
            broken.extend(file.lines_with_path(foreign));
        }
    }
    report("foreign protocols stay at their doors", &broken);
}

#[test]
fn crates_depend_along_the_arrows() {
    let mut broken = Vec::new();
    let known: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let ours = crates();
    assert_eq!(known.keys().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), ours);
    for name in &ours {
        let manifest = read(format!("{name}/Cargo.toml"));
        let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
        let dependencies = manifest.get("dependencies").and_then(|table| table.as_table());
        for dependency in dependencies.into_iter().flat_map(toml::Table::keys) {
            if ours.contains(dependency) && !known[name.as_str()].contains(&dependency.as_str()) {
                broken.push(format!("{name} depends on {dependency}"));
            }
        }
    }
    report("crates depend along the arrows", &broken);
}

#[test]
fn no_file_knows_this_machine() {
    let mut broken = Vec::new();
    let folders = ["work", "root", "home", "tmp", "var/tmp"].map(|name| format!("/{name}/"));
    let hosts = source::package_hosts();
    for path in tracked() {
        let Ok(bytes) = fs::read(root().join(path)) else { continue };
        for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            for folder in folders.iter().filter(|folder| source::begins_a_path(line, folder)) {
                broken.push(format!("{path}:{}: names {folder}", number + 1));
            }
            for _ in hosts.iter().filter(|host| line.contains(host.as_str())) {
                broken.push(format!("{path}:{}: names a package host", number + 1));
            }
        }
    }
    report("no tracked file names a path or a package host of one machine", &broken);
}

#[test]
fn the_readme_names_real_chores() {
    let Ok(readme) = fs::read_to_string(root().join("README.md")) else { return };
    let chores = source::chores();
    assert!(!chores.is_empty(), "xtask has a table of chores");
    let named = readme.split("cargo xtask ").skip(1).filter_map(|rest| {
        let word: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        (!word.is_empty()).then_some(word)
    });
    let broken: Vec<String> = named.filter(|word| !chores.contains(word)).collect();
    report("every `cargo xtask …` in the README exists", &broken);
}

#[test]
fn the_documented_reasons_are_the_reasons() {
    let Ok(page) = fs::read_to_string(root().join("docs/operating.md")) else { return };
    let source = read("snapshotter/src/reason.rs");
    // `Self::NoIndex => "no_index",`
    let names = source.lines().filter_map(|line| {
        let (variant, name) = line.trim().split_once(" => \"")?;
        variant.starts_with("Self::").then(|| name.split('"').next().unwrap_or_default().to_owned())
    });
    let given: BTreeSet<String> = names.collect();
    assert!(!given.is_empty(), "reason.rs has a table of names");
    // The first column of the table whose head says `reason`.
    let rows = page.lines().skip_while(|line| !is_reason_head(line)).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let documented: BTreeSet<String> =
        rows.filter_map(|row| row.split('`').nth(1).map(str::to_owned)).collect();
    let missing = given.difference(&documented).map(|name| format!("{name} is not documented"));
    let extra = documented.difference(&given).map(|name| format!("{name} is documented and does not exist"));
    report(
        "the table of reasons in docs/operating.md is complete",
        &missing.chain(extra).collect::<Vec<_>>(),
    );
}

#[test]
fn the_documented_faults_are_the_faults() {
    let page = read("docs/semantics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeSet<String> = rows.map(str::to_owned).collect();
    let given: BTreeSet<String> = ROWS
        .iter()
        .map(|row| {
            let outcomes = row.cells.map(|outcome| outcome.to_string()).join(" | ");
            format!("| `{}` | {} | {outcomes} |", row.name, row.words)
        })
        .collect();
    let head = STAGES.map(|stage| stage.to_string()).join(" | ");
    let head = (!page.contains(&format!(" | {head} |\n"))).then(|| format!("the columns are not {head}"));
    let missing = given.difference(&documented).map(|row| format!("not documented: {row}"));
    let extra = documented.difference(&given).map(|row| format!("documented, and no such row: {row}"));
    let broken: Vec<String> = head.into_iter().chain(missing).chain(extra).collect();
    report("the table in docs/semantics.md is that of the tests", &broken);
}

#[test]
fn tests_that_pages_name_exist() {
    let sources = rust_sources();
    let mut unknown = Vec::new();
    for page in ["docs/semantics.md", "docs/operating.md"] {
        let text = read(page);
        let words = text.split('`').skip(1).step_by(2);
        let tests = words.filter(|word| {
            let is_name = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            // A sentence, where a metric has a word or two.
            is_name
                && word.matches('_').count() > 3
                && ["containerd_", "fuse_"].iter().any(|kind| word.starts_with(kind))
        });
        let exists = |word: &str| sources.iter().any(|file| !file.lines_with_word(word).is_empty());
        unknown.extend(tests.filter(|word| !exists(word)).map(|word| format!("{page}: {word}")));
    }
    report("every test that a page names exists", &unknown);
}

fn is_reason_head(line: &str) -> bool {
    let first = line.strip_prefix('|').and_then(|rest| rest.split('|').next()).unwrap_or_default();
    let word = first.trim().trim_matches('`');
    word.eq_ignore_ascii_case("reason")
}

#[track_caller]
fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The rules themselves, on small examples: a rule that finds nothing must be able to find something.
#[test]
fn rules_find_what_they_forbid() {
    let text = "//! crate::above in words\nuse crate::{\n    below::X,\n    above::{Y, inner::Z},\n};\n\
                fn f() { crate::other::g(); }\n\
                #[cfg(test)]\nmod tests {\n    use crate::tested;\n}\n";
    let file = Source::new("demo/src/here/inner.rs", text);
    let imports: Vec<String> = file.imports().into_iter().map(|(_, module)| module).collect();
    assert_eq!(imports, ["below", "above", "other"]);
    assert_eq!(file.top_module().as_deref(), Some("here"));
    assert_eq!(file.lines_without_tests(), 6);
    let word = concat!("un", "safe");
    let odd = Source::new("a/src/b.rs", &format!("// {word}\nlet x = {word}_code;\n{word} {{}}\n"));
    assert_eq!(odd.lines_with_word(word).len(), 1);
    let door = Source::new("a/src/b.rs", "use fuser::X;\nlet y = my_fuser::Z;\n// fuser::W\n");
    assert_eq!(door.lines_with_path("fuser").len(), 1);
    let folder = ["/home", "/"].concat();
    assert!(source::begins_a_path(&format!("see {folder}me"), &folder));
    assert!(!source::begins_a_path(&format!("see usr{folder}me"), &folder));
}
