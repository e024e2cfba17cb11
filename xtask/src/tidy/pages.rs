//! What the documentation says of the code: chores, reasons and tests that it names exist, and no file names this machine.

use std::{collections::BTreeSet, fs};

use xtask::machine::root;

use super::{
    arrows,
    source::{self, read},
};

pub(super) fn no_file_names_this_machine() -> Vec<String> {
    let mut broken = Vec::new();
    let folders = ["work", "root", "home", "tmp", "var/tmp"].map(|name| format!("/{name}/"));
    let hosts = source::package_hosts();
    for path in source::tracked() {
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
    broken
}

pub(super) fn documented_chores_exist() -> Vec<String> {
    let chores = source::chores();
    let mut broken = Vec::new();
    for page in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"] {
        let text = read(page);
        for rest in text.split("cargo xtask ").skip(1) {
            let word: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            if !word.is_empty() && !chores.contains(&word) {
                broken.push(format!("{page}: cargo xtask {word}"));
            }
        }
    }
    broken
}

pub(super) fn documented_reasons_are_the_reasons() -> Vec<String> {
    let page = read("docs/operating.md");
    let source = read("snapshotter/src/reason.rs");
    // `Self::NoIndex => "no_index",`
    let names = source.lines().filter_map(|line| {
        let (variant, name) = line.trim().split_once(" => \"")?;
        variant.starts_with("Self::").then(|| name.split('"').next().unwrap_or_default().to_owned())
    });
    let given: BTreeSet<String> = names.collect();
    // The first column of the table whose head says `reason`.
    let rows = page.lines().skip_while(|line| !is_reason_head(line)).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let documented: BTreeSet<String> =
        rows.filter_map(|row| row.split('`').nth(1).map(str::to_owned)).collect();
    let missing = given.difference(&documented).map(|name| format!("{name} is not documented"));
    let extra = documented.difference(&given).map(|name| format!("{name} is documented and does not exist"));
    missing.chain(extra).collect()
}

pub(super) fn tests_that_pages_name_exist() -> Vec<String> {
    let sources = source::rust_sources();
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
    unknown
}

pub(super) fn the_map_is_that_of_the_imports() -> Vec<String> {
    let page = read("ARCHITECTURE.md");
    let map = arrows::map();
    let is_right = page.contains(&format!("```text\n{map}```\n"));
    if is_right { Vec::new() } else { vec![format!("put this in its place (cargo xtask map):\n{map}")] }
}

fn is_reason_head(line: &str) -> bool {
    let first = line.strip_prefix('|').and_then(|rest| rest.split('|').next()).unwrap_or_default();
    first.trim().trim_matches('`').eq_ignore_ascii_case("reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_a_machine_are_found_where_a_path_begins() {
        let folder = ["/home", "/"].concat();
        assert!(source::begins_a_path(&format!("see {folder}me"), &folder));
        assert!(!source::begins_a_path(&format!("see usr{folder}me"), &folder));
    }

    #[test]
    fn the_table_of_chores_is_read() {
        assert!(source::chores().contains("tidy"));
    }
}
