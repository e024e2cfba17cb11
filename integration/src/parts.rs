//! Parts that move: newer releases than Debian 12 has, from Debian unstable and from Go's module proxy, brought
//! into the build folder and cached there. They may not be had, on another day or behind another proxy: then a
//! test that wants one says so with [`skip`](crate::machine::skip), and counts as skipped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::Digest as _;

use crate::machine::{root, say, target_dir};
use crate::process::run;

const FETCH_LIMIT: Duration = Duration::from_secs(300);
/// A first build of nerdctl takes a minute or two on two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// The newest that builds from what the module proxy has.
const NERDCTL: &str = "github.com/containerd/nerdctl/v2@v2.1.2";
/// As new as the Kubernetes that its module wants from the proxy.
const CRICTL: &str = "sigs.k8s.io/cri-tools@v1.30.0";

/// A folder with `containerd`, `ctr` and `containerd-shim-runc-v2` of Debian unstable (2.1 or later).
///
/// # Errors
/// When it cannot be had here and now; the reason reads as a sentence.
pub fn containerd_2() -> Result<PathBuf> {
    containerd_from(2, 0)
}

/// The same, where it is of this release or a later one.
///
/// # Errors
/// As [`containerd_2`].
pub fn containerd_from(major: u32, minor: u32) -> Result<PathBuf> {
    let binaries = unpacked("containerd")?.join("usr/bin");
    let mut version = Command::new(binaries.join("containerd"));
    version.arg("--version");
    let said = run(version, FETCH_LIMIT).context("containerd of Debian unstable does not run here")?;
    let number = |word: &str| {
        let mut parts = word.trim_start_matches('v').split('.').map(str::parse::<u32>);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    if said.split_whitespace().find_map(number).is_none_or(|known| known < (major, minor)) {
        bail!("Debian unstable has an older containerd than {major}.{minor}: {}", said.trim());
    }
    Ok(binaries)
}

/// The Go tool `soci` of Debian unstable, and the identifier that it writes into its ztocs.
///
/// # Errors
/// As [`containerd_2`]; and for releases other than 0.4, whose ways of being called are not known here.
pub fn go_soci() -> Result<(PathBuf, &'static str)> {
    let program = unpacked("soci-snapshotter")?.join("usr/bin/soci");
    let mut version = Command::new(&program);
    version.arg("--version");
    let said = run(version, FETCH_LIMIT).context("soci of Debian unstable does not run here")?;
    if !said.contains(" 0.4.") {
        bail!("Debian unstable has another soci than 0.4: {}", said.trim());
    }
    Ok((program, "AWS SOCI CLI v0.1"))
}

/// A package of Debian unstable, unpacked and not installed.
fn unpacked(package: &str) -> Result<PathBuf> {
    let folder = cached(&format!("unstable-{package}"), |folder| {
        say(&format!("fetching {package} of Debian unstable"));
        let apt = unstable(&folder.join("apt"))?;
        let mut download = apt("download");
        download.arg(package).current_dir(folder);
        run(download, FETCH_LIMIT)?;
        let files = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
        let file = files.filter(|path| path.extension().is_some_and(|end| end == "deb")).last();
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(file.context("no package came")?).arg(folder.join("root"));
        run(unpack, FETCH_LIMIT).map(drop)
    })?;
    Ok(folder.join("root"))
}

/// nerdctl, built from its module.
///
/// # Errors
/// As [`containerd_2`].
pub fn nerdctl() -> Result<PathBuf> {
    go_program("nerdctl", NERDCTL)
}

/// crictl, what CRI is spoken with by hand, built from its module.
///
/// # Errors
/// As [`containerd_2`].
pub fn crictl() -> Result<PathBuf> {
    go_program("crictl", CRICTL)
}

/// The program of this name, from `cmd/NAME` of a Go module.
fn go_program(name: &str, module: &str) -> Result<PathBuf> {
    let folder = cached(name, |folder| {
        say(&format!("building {name} from its Go module"));
        let mut download = Command::new("go");
        download.args(["mod", "download", "-json", module]).current_dir(folder);
        let said = run(download, FETCH_LIMIT).context("Go, or the module, cannot be had")?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let module = said["Dir"].as_str().context("the module has no folder")?;
        let mut build = Command::new("go");
        build.args(["build", "-mod=mod", "-modfile"]).arg(folder.join("go.mod"));
        build.arg("-o").arg(folder.join(name)).arg(format!("./cmd/{name}")).current_dir(module);
        // The module's folder is read-only: what `go build` would note lies beside the binary.
        fs::copy(Path::new(module).join("go.mod"), folder.join("go.mod"))?;
        fs::copy(Path::new(module).join("go.sum"), folder.join("go.sum"))?;
        let mut writable = Command::new("chmod");
        writable.arg("u+w").arg(folder.join("go.mod")).arg(folder.join("go.sum"));
        run(writable, FETCH_LIMIT)?;
        run(build, BUILD_LIMIT).context("the module does not build").map(drop)
    })?;
    Ok(folder.join(name))
}

/// containerd's own suite for snapshotters, a Go test program. It wants the daemon's path in `SOCI_DAEMON`.
///
/// # Errors
/// As [`containerd_2`].
pub fn snapshotter_suite() -> Result<PathBuf> {
    let sources = root().join("integration/conformance");
    let mut said = sha2::Sha256::new();
    for name in ["suite_test.go", "go.mod", "go.sum"] {
        said.update(fs::read(sources.join(name))?);
    }
    let name = said.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>();
    let folder = cached(&format!("suite-{name}"), |folder| {
        say("building containerd's suite for snapshotters from its Go module");
        let mut download = Command::new("go");
        download.args(["mod", "download"]).current_dir(&sources);
        run(download, FETCH_LIMIT).context("Go, or the suite's modules, cannot be had")?;
        let mut build = Command::new("go");
        build.args(["test", "-mod=readonly", "-c", "-o"]).arg(folder.join("suite"));
        build.arg(".").current_dir(&sources);
        run(build, BUILD_LIMIT).context("the suite does not build").map(drop)
    })?;
    Ok(folder.join("suite"))
}

/// A folder of the build folder's, made by `make` once and whole.
fn cached(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let parts = target_dir()?.join("parts");
    fs::create_dir_all(&parts)?;
    // One maker at a time; the others find it made.
    let lock = File::create(parts.join(format!("{name}.lock")))?;
    lock.lock().context("wait for another maker of parts")?;
    let folder = parts.join(name);
    if !folder.exists() {
        let work = parts.join(format!("{name}.new"));
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work)?;
        make(&work)?;
        fs::rename(&work, &folder)?;
    }
    Ok(folder)
}

/// apt-get with Debian unstable as its only source, from wherever this machine has Debian from, and with state of
/// its own.
fn unstable(folder: &Path) -> Result<impl Fn(&str) -> Command + use<>> {
    for part in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(folder.join(part))?;
    }
    File::create(folder.join("status"))?;
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let line = format!("deb [signed-by={keyring}] {} unstable main\n", debian_source()?);
    fs::write(folder.join("sources.list"), line)?;
    let options: Vec<String> = [
        ("Dir::Etc::sourcelist", "sources.list"),
        ("Dir::State::lists", "lists"),
        ("Dir::State::status", "status"),
        ("Dir::Cache::archives", "archives"),
    ]
    .map(|(name, path)| format!("{name}={}", folder.join(path).display()))
    .into();
    let apt = move |verb: &str| {
        let mut command = Command::new("apt-get");
        command.arg("-q");
        for option in &options {
            command.arg("-o").arg(option);
        }
        let others = ["Dir::Etc::sourceparts=-", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="];
        for option in others.iter().chain(&["Debug::NoLocking=1", "APT::Sandbox::User=root"]) {
            command.arg("-o").arg(option);
        }
        command.arg(verb);
        command
    };
    run(apt("update"), FETCH_LIMIT).context("Debian unstable cannot be reached")?;
    Ok(apt)
}

/// The address that this machine's apt has Debian from, in either style of its sources.
fn debian_source() -> Result<String> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let files = parts.map(|entry| entry.path()).chain(["/etc/apt/sources.list".into()]);
    let texts = files.filter_map(|path| fs::read_to_string(path).ok());
    let words: Vec<String> = texts
        .flat_map(|text| {
            let lines = text.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
            lines.flat_map(str::split_whitespace).map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let found = words.iter().map(|word| word.trim_end_matches('/'));
    let found = found.filter(|word| word.contains("://")).find(|word| word.ends_with("/debian"));
    found.map(str::to_owned).context("this machine's apt has no source of Debian")
}
