//! Files as the rules see them: lines of code without comments, and without tests where the rule is about the product.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use xtask::{machine::root, process::run};

const LIMIT: Duration = Duration::from_secs(60);
/// Public hosts: naming them tells nothing about a machine.
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

    /// Whether it belongs to a crate's `src` and is no file of tests.
    pub(super) fn is_library_of(&self, name: &str) -> bool {
        self.path.starts_with(&format!("{name}/src/")) && !self.is_test()
    }

    pub(super) fn is_source(&self) -> bool {
        self.path.contains("/src/") && !self.is_test()
    }

    pub(super) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Each line of code with its number, up to the tests at the foot.
    pub(super) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
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

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
}

/// The members of the workspace: the quoted words of its list.
pub(super) fn crates() -> BTreeSet<String> {
    let manifest = read("Cargo.toml");
    let list =
        manifest.split("members = [").nth(1).and_then(|rest| rest.split("]").next()).unwrap_or_default();
    list.lines().filter_map(|line| line.split('"').nth(1).map(str::to_owned)).collect()
}

/// What a crate's manifest depends on, tests left out.
pub(super) fn dependencies(name: &str) -> Vec<String> {
    let manifest = read(format!("{name}/Cargo.toml"));
    let table = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let lines = table.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| !name.is_empty() && !name.starts_with('#')).map(str::to_owned).collect()
}

pub(super) fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
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
    let text = read("xtask/src/main.rs");
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
