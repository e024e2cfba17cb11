//! Which way imports point: between crates, and between the files and folders of a crate.
//!
//! The order of `mod` lines in a file is the order in which a request meets the modules. Imports point down that list,
//! never up, at every level. No two files import each other, directly or around a corner. A file and the files of its own
//! folder count as one there, because a part may use the type that it is a part of.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{self, Source};

/// Which of our crates each may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("ztoc", &[]),
    ("oci", &[]),
    ("proto", &[]),
    ("index", &["oci", "ztoc"]),
    ("layerfs", &["oci", "ztoc"]),
    ("snapshotter", &["layerfs", "index", "oci", "ztoc", "proto"]),
    ("cli", &["index", "oci", "ztoc", "proto"]),
    ("xtask", &[]),
    ("integration", &["cli", "snapshotter", "layerfs", "index", "oci", "ztoc", "proto", "xtask"]),
    ("benches", &["layerfs", "ztoc", "oci", "integration"]),
];

pub(super) fn crates_depend_along_the_arrows() -> Vec<String> {
    let known: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let ours = source::crates();
    let mut broken: Vec<String> = ours
        .iter()
        .filter(|name| !known.contains_key(name.as_str()))
        .map(|name| format!("{name}: has no row"))
        .collect();
    for name in ours.iter().filter(|name| known.contains_key(name.as_str())) {
        let dependencies = source::dependencies(name);
        let wrong = dependencies
            .iter()
            .filter(|one| ours.contains(*one) && !known[name.as_str()].contains(&one.as_str()));
        broken.extend(wrong.map(|one| format!("{name} depends on {one}")));
    }
    broken
}

/// A module as its path below the crate. `main.rs` and `lib.rs` are both the empty one: their modules form one list.
type Module = Vec<String>;

/// The modules of one crate, and what each imports.
#[derive(Debug, Default)]
struct Crate {
    /// The modules that each file declares, in order.
    declared: BTreeMap<Module, Vec<String>>,
    /// Importing module, line, imported module.
    imports: Vec<(Module, String, Module)>,
}

impl Crate {
    fn of(name: &str) -> Self {
        let files: Vec<&Source> =
            source::rust_sources().iter().filter(|file| file.is_library_of(name)).collect();
        Self::read(&files)
    }

    fn read(files: &[&Source]) -> Self {
        let mut all = Self::default();
        for file in files {
            all.declared.entry(module(&file.path)).or_default().extend(declared(file));
        }
        for file in files {
            let from = module(&file.path);
            for (line, path) in paths(file, &from, &all.declared[&from]) {
                let to = all.file_of(&path);
                if to != from {
                    all.imports.push((from.clone(), format!("{}:{line}", file.path), to));
                }
            }
        }
        all
    }

    /// The file that a path leads into: its longest part that is a file's module.
    fn file_of(&self, path: &[String]) -> Module {
        let lengths = (0..=path.len()).rev();
        lengths
            .map(|length| path[..length].to_vec())
            .find(|part| self.declared.contains_key(part))
            .unwrap_or_default()
    }

    fn upward(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for (from, place, to) in &self.imports {
            let common = from.iter().zip(to).take_while(|(one, other)| one == other).count();
            let (Some(own), Some(other)) = (from.get(common), to.get(common)) else { continue };
            let Some(order) = self.declared.get(&from[..common]) else { continue };
            let position = |name: &String| order.iter().position(|listed| listed == name);
            if let (Some(to), Some(from)) = (position(other), position(own))
                && to < from
            {
                broken.push(format!("{place}: `{own}` imports `{other}`, which stands above it"));
            }
        }
        broken
    }

    /// Files that reach each other through imports, each group once.
    fn circles(&self) -> Vec<Vec<String>> {
        let mut next: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
        // A file and its own folder are one.
        let is_apart = |from: &Module, to: &Module| !from.starts_with(to) && !to.starts_with(from);
        for (from, _, to) in self.imports.iter().filter(|(from, _, to)| is_apart(from, to)) {
            next.entry(from).or_default().insert(to);
        }
        let reached = |start: &Module| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(module) = open.pop() {
                for to in next.get(module).into_iter().flatten() {
                    if seen.insert(*to) {
                        open.push(to);
                    }
                }
            }
            seen
        };
        let reach: BTreeMap<&Module, BTreeSet<&Module>> =
            next.keys().map(|module| (*module, reached(module))).collect();
        let mut circles = BTreeSet::new();
        for (module, seen) in &reach {
            let group: Vec<String> = seen
                .iter()
                .filter(|other| reach.get(*other).is_some_and(|back| back.contains(module)))
                .map(|other| if other.is_empty() { "lib".to_owned() } else { other.join("::") })
                .collect();
            if seen.contains(module) && group.len() > 1 {
                circles.insert(group);
            }
        }
        circles.into_iter().collect()
    }
}

pub(super) fn imports_point_down() -> Vec<String> {
    source::crates().iter().flat_map(|name| Crate::of(name).upward()).collect()
}

pub(super) fn files_form_no_circle() -> Vec<String> {
    let mut broken = Vec::new();
    for name in source::crates() {
        broken.extend(
            Crate::of(&name).circles().into_iter().map(|files| format!("{name}: {}", files.join(" <-> "))),
        );
    }
    broken
}

/// The crates whose rooms the map shows, from the roots to the leaves.
const MAPPED: &[&str] = &["cli", "snapshotter", "index", "layerfs", "oci", "ztoc"];

/// The top modules of each crate in their order, each with the modules that it imports: a drawing of the real imports.
pub(super) fn map() -> String {
    let mut map = String::new();
    for name in MAPPED {
        let all = Crate::of(name);
        let order = all.declared.get(&Module::new()).cloned().unwrap_or_default();
        map.push_str(&format!("{name}\n"));
        for room in &order {
            let used = order.iter().filter(|other| {
                let from_room = |from: &Module| from.first() == Some(room);
                *other != room
                    && all.imports.iter().any(|(from, _, to)| from_room(from) && to.first() == Some(*other))
            });
            let used: Vec<&str> = used.map(String::as_str).collect();
            map.push_str(format!("  {room:<14}{}", used.join(" ")).trim_end());
            map.push('\n');
        }
    }
    map
}

fn module(path: &str) -> Module {
    let inside = path.split_once("/src/").map_or(path, |(_, inside)| inside);
    let inside = inside.strip_suffix(".rs").unwrap_or(inside);
    let parts: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if matches!(parts.as_slice(), [one] if one == "lib" || one == "main") { Vec::new() } else { parts }
}

/// The modules that a file declares and that have files of their own, in order; those of tests left out.
fn declared(file: &Source) -> Vec<String> {
    let mut is_of_tests = false;
    let mut found = Vec::new();
    for (_, line) in file.code() {
        let line = line.trim();
        let name = ["pub ", "pub(crate) ", "pub(super) "].iter().find_map(|start| line.strip_prefix(start));
        if let Some(name) = name.unwrap_or(line).strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'))
            && !is_of_tests
        {
            found.push(name.to_owned());
        }
        is_of_tests = line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(any(test");
    }
    found
}

/// Every path that a file names within its crate, as a path from the crate's root, with the line.
fn paths(file: &Source, own: &Module, children: &[String]) -> Vec<(usize, Module)> {
    let mut found = Vec::new();
    let mut code = file.code().peekable();
    while let Some((number, line)) = code.next() {
        if is_of_tests(line) {
            // The item below it is compiled for tests only.
            code.next();
            continue;
        }
        let trimmed = line.trim_start();
        let statement = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "];
        let Some(start) = statement.iter().find_map(|start| trimmed.strip_prefix(start)) else {
            found.extend(
                inline(line).into_iter().filter_map(|path| Some((number, absolute(&path, own, children)?))),
            );
            continue;
        };
        let mut tree = start.to_owned();
        while !tree.contains(';') {
            let Some((_, more)) = code.next() else { break };
            tree.push_str(more);
        }
        let tree = tree.split(';').next().unwrap_or_default();
        found.extend(
            flat(tree).into_iter().filter_map(|path| Some((number, absolute(&path, own, children)?))),
        );
    }
    found
}

fn is_of_tests(line: &str) -> bool {
    line.trim_start().starts_with("#[cfg(test)]")
}

/// The paths of a tree of imports.
fn flat(tree: &str) -> Vec<Module> {
    let (mut depth, mut part, mut parts) = (0usize, String::new(), Vec::new());
    for character in tree.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if character == ',' && depth == 0 {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(character);
        }
    }
    parts.push(part);
    let mut found = Vec::new();
    for part in parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()) {
        let (head, inner) = part.split_once('{').map_or((part, None), |(head, inner)| (head, Some(inner)));
        let words = head.split("::").map(|word| word.split_whitespace().next().unwrap_or_default());
        let head: Module = words.filter(|word| !word.is_empty()).map(str::to_owned).collect();
        match inner.map(|inner| inner.rsplit_once('}').map_or(inner, |(inside, _)| inside)) {
            Some(inner) => found.extend(flat(inner).into_iter().map(|rest| [head.clone(), rest].concat())),
            None => found.push(head),
        }
    }
    found
}

/// The paths in a line of code that is no import.
fn inline(line: &str) -> Vec<Module> {
    let is_part = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    let words = line.split(|character| !is_part(character)).filter(|word| word.contains("::"));
    words.map(|word| word.split("::").map(str::to_owned).collect()).collect()
}

/// A path as seen from the crate's root; none if it leads out of the crate, or is of the file itself.
fn absolute(path: &[String], own: &Module, children: &[String]) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => absolute(rest, own, children),
        "super" => {
            let ups = path.iter().take_while(|word| *word == "super").count();
            let base = own.get(..own.len().checked_sub(ups)?)?;
            Some([base, &path[ups..]].concat())
        }
        _ if children.contains(first) => Some([own.as_slice(), path].concat()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Crate {
        let files: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        Crate::read(&files.iter().collect::<Vec<_>>())
    }

    #[test]
    fn imports_up_the_list_are_found_at_every_level() {
        let all = read(&[
            ("a/src/lib.rs", "mod above;\nmod below;\n"),
            ("a/src/main.rs", "use a::below::X;\n"),
            (
                "a/src/above.rs",
                "//! crate::below\nmod first;\nmod second;\nuse crate::{\n    below::X,\n};\n",
            ),
            ("a/src/above/first.rs", "fn f() { super::second::g(); }\n"),
            ("a/src/above/second.rs", "use super::first::X;\n"),
            ("a/src/below.rs", "use crate::above::{Y, first::Z};\n#[cfg(test)]\nuse crate::above::Y;\n"),
        ]);
        let places: Vec<_> =
            all.upward().iter().map(|line| line.split(": ").next().unwrap().to_owned()).collect();
        assert_eq!(places, ["a/src/above/second.rs:1", "a/src/below.rs:1", "a/src/below.rs:1"]);
    }

    #[test]
    fn circles_of_files_are_found() {
        let all = read(&[
            ("a/src/lib.rs", "mod one;\nmod two;\nmod three;\n"),
            ("a/src/one.rs", "mod part;\nuse part::X;\n"),
            ("a/src/one/part.rs", "use super::Y;\nuse crate::two::Z;\n"),
            ("a/src/two.rs", "use crate::three::Z;\n"),
            (
                "a/src/three.rs",
                "fn f() { crate::one::part::g(); }\n#[cfg(test)]\nmod tests {\n    use crate::two::W;\n}\n",
            ),
        ]);
        assert_eq!(all.circles(), [["one::part", "three", "two"]]);
    }

    #[test]
    fn trees_of_imports_are_flattened() {
        let found: Vec<String> =
            flat("a::{b, c::{d, self}, e as f}").iter().map(|path| path.join("::")).collect();
        assert_eq!(found, ["a::b", "a::c::d", "a::c::self", "a::e"]);
    }
}
