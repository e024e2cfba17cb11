//! Files as the rules see them: lines of code without comments, without tests where the rule is about the product.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use integration::machine::root;
use integration::process::run;

const LIMIT: Duration = Duration::from_secs(60);
/// Hosts that everyone knows; naming them tells nothing about a machine.
const PUBLIC_HOSTS: &[&str] =
    &["debian.org", "github.com", "crates.io", "golang.org", "pypi.org", "rust-lang.org"];

pub(super) struct Source {
    /// from the workspace's folder
    pub(super) path: String,
    text: String,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    /// Of a crate's `src`, without files of tests.
    pub(super) fn is_library_of(&self, name: &str) -> bool {
        self.path.starts_with(&format!("{name}/src/")) && !self.is_test()
    }

    pub(super) fn is_source(&self) -> bool {
        self.path.contains("/src/") && !self.is_test()
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// The module of `lib.rs` that it belongs to; none for the roots themselves.
    pub(super) fn top_module(&self) -> Option<String> {
        let (_, inside) = self.path.split_once("/src/")?;
        let first = inside.split('/').next()?;
        let module = first.strip_suffix(".rs").unwrap_or(first);
        (!matches!(module, "lib" | "main")).then(|| module.to_owned())
    }

    /// Each line of code with its number, up to the tests at the foot.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().take(self.lines_without_tests()).enumerate();
        lines.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(at, line)| (at + 1, line))
    }

    pub(super) fn lines_without_tests(&self) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let inline = lines.windows(2).position(|pair| {
            pair[0].starts_with("#[cfg(test)]") && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        });
        inline.unwrap_or(lines.len())
    }

    /// The top modules that it names as `crate::module`, also in a group.
    pub(super) fn imports(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let mut group: Option<Group> = None;
        for (number, line) in self.code() {
            let mut rest = line;
            loop {
                if let Some(open) = &mut group {
                    let end = open.take(rest, &mut |word| found.push((number, word)));
                    let Some(end) = end else { break };
                    (group, rest) = (None, &rest[end..]);
                }
                let Some(at) = rest.find("crate::") else { break };
                let is_visibility = rest[..at].ends_with("in ");
                let is_other = rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
                rest = &rest[at + "crate::".len()..];
                if is_visibility || is_other {
                    continue;
                }
                match rest.strip_prefix('{') {
                    Some(inner) => (group, rest) = (Some(Group::default()), inner),
                    None => found.push((number, word(rest).to_owned())),
                }
            }
        }
        found
    }

    /// Lines of code where `wanted` stands as a word.
    pub(super) fn lines_with_word(&self, wanted: &str) -> Vec<String> {
        self.lines_where(|line| words(line).any(|word| word == wanted))
    }

    /// Lines of code that name something in the crate `foreign`, or import it.
    pub(super) fn lines_with_path(&self, foreign: &str) -> Vec<String> {
        let path = format!("{foreign}::");
        let import = format!("use {foreign};");
        self.lines_where(|line| {
            line.contains(&import)
                || line.match_indices(&path).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                })
        })
    }

    fn lines_where(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let lines = self.code().filter(|(_, line)| wanted(line));
        lines.map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim())).collect()
    }
}

/// An import's braces that are open: the first word behind the brace and behind each comma at that depth.
#[derive(Default)]
struct Group {
    depth: usize,
    seen: bool,
}

impl Group {
    /// Takes a line, or the part of it that belongs to the group, whose length it returns.
    fn take(&mut self, line: &str, found: &mut impl FnMut(String)) -> Option<usize> {
        for (at, character) in line.char_indices() {
            match character {
                '}' if self.depth == 0 => return Some(at + 1),
                '}' => self.depth -= 1,
                '{' => self.depth += 1,
                ',' if self.depth == 0 => self.seen = false,
                c if self.depth == 0 && !self.seen && (c.is_alphabetic() || c == '_') => {
                    self.seen = true;
                    found(word(&line[at..]).to_owned());
                }
                _ => {}
            }
        }
        None
    }
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
}

/// The members of the workspace.
pub(super) fn crates() -> BTreeSet<String> {
    let manifest: toml::Table = super::read("Cargo.toml").parse().expect("a manifest is TOML");
    let members = manifest["workspace"]["members"].as_array().expect("the workspace has members");
    members.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

/// The modules of a crate, as `lib.rs` lists them; none where it has no library.
pub(super) fn modules(name: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(root().join(name).join("src/lib.rs")).ok()?;
    let lines = text.lines().filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
        line.strip_prefix("mod ")?.strip_suffix(';').map(str::to_owned)
    });
    Some(lines.collect())
}

/// Every file that git tracks.
pub(super) fn tracked() -> &'static [String] {
    static FILES: OnceLock<Vec<String>> = OnceLock::new();
    FILES.get_or_init(|| {
        let mut git = Command::new("git");
        git.args(["ls-files", "-z"]).current_dir(root());
        let list = run(git, LIMIT).expect("git lists its files");
        list.split_terminator('\0').map(str::to_owned).collect()
    })
}

pub(super) fn rust_sources() -> &'static [Source] {
    static SOURCES: OnceLock<Vec<Source>> = OnceLock::new();
    SOURCES.get_or_init(|| {
        let paths = tracked().iter().filter(|path| path.ends_with(".rs"));
        // One that is tracked and gone is about to be removed.
        paths
            .filter_map(|path| Some(Source::new(path, &fs::read_to_string(root().join(path)).ok()?)))
            .collect()
    })
}

/// The table of chores in xtask: tuples that begin with a name.
pub(super) fn chores() -> BTreeSet<String> {
    let text = super::read("xtask/src/main.rs");
    let table = text.split("const CHORES").nth(1).and_then(|rest| rest.split("];").next());
    let tuples = table.unwrap_or_default().split('(').filter(|tuple| tuple.trim_start().starts_with('"'));
    tuples.filter_map(|tuple| tuple.split('"').nth(1).map(str::to_owned)).collect()
}

/// Whether `folder` stands in `line` where a path begins.
pub(super) fn begins_a_path(line: &str, folder: &str) -> bool {
    let mut places = line.match_indices(folder);
    places.any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/}>)$*".contains(c)))
}

/// The hosts that this machine gets packages from, but the public ones.
pub(super) fn package_hosts() -> BTreeSet<String> {
    let mut texts = Vec::new();
    let home = std::env::var("HOME").unwrap_or_default();
    let cargo = std::env::var("CARGO_HOME").unwrap_or_else(|_| format!("{home}/.cargo"));
    for folder in ["/etc/apt/sources.list.d", "/etc/apt/apt.conf.d"] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        texts.extend(entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()));
    }
    let files = [
        "/etc/apt/sources.list".to_owned(),
        "/etc/pip.conf".to_owned(),
        format!("{cargo}/config.toml"),
        format!("{home}/.config/pip/pip.conf"),
    ];
    texts.extend(files.iter().filter_map(|path| fs::read_to_string(path).ok()));
    let variables: BTreeMap<String, String> = std::env::vars().collect();
    for name in ["GOPROXY", "PIP_INDEX_URL", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        texts.extend(variables.get(name).cloned());
    }
    let hosts = texts.iter().flat_map(|text| text.split("://").skip(1)).map(|rest| {
        let authority = rest.split(['/', ' ', '"', '\'', '\n', ',', ';']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        host.split(':').next().unwrap_or_default().to_owned()
    });
    let is_private = |host: &String| {
        host.contains('.')
            && host != "127.0.0.1"
            && !PUBLIC_HOSTS.iter().any(|public| host == public || host.ends_with(&format!(".{public}")))
    };
    hosts.filter(is_private).collect()
}
