//! What this machine can do, and making it able: Debian's packages, the workspace's own binaries, folders for
//! what is kept between runs. A hard part (Debian 12 has it) is installed, or the test fails; for a part that
//! moves a test says `skip` and ends.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;

/// The real parts that tests stand on.
pub const HARD_PARTS: &[&str] = &[
    "containerd",
    "runc",
    "docker-registry",
    "skopeo",
    "umoci",
    "busybox-static",
    "fuse3",
    "iproute2",
    "tar",
    "gzip",
];

/// Folder with `soci` and `soci-snapshotter-grpc`; set by `cargo xtask`, else they are built.
pub const BINARIES: &str = "SOCI_BINARIES";
/// File to which each skipped test appends a line; set by `cargo xtask test`, which counts them.
pub const SKIPPED_LOG: &str = "SKIPPED_LOG";
/// Set by `cargo xtask test --long`.
pub const LONG: &str = "SOCI_LONG";

/// Installing over a slow line.
const INSTALL_LIMIT: Duration = Duration::from_secs(900);
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The product's programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    pub soci: PathBuf,
    pub daemon: PathBuf,
}

/// How the product's programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// Installs those of `packages` that are missing, and says so. Cheap when none is.
pub fn ensure_debian(packages: &[&str]) -> Result<()> {
    static PRESENT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut present = PRESENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !present.contains(*package) && !is_installed(package))
        .collect();
    if !missing.is_empty() {
        say(&format!("installing what is missing: {}", missing.join(" ")));
        install(&missing).with_context(|| format!("install {}", missing.join(" ")))?;
        if let Some(package) = missing.iter().find(|package| !is_installed(package)) {
            bail!("{package} is not there after its installation");
        }
    }
    present.extend(packages.iter().map(|package| (*package).to_owned()));
    Ok(())
}

/// The lists of packages, fetched when there are none.
pub fn ensure_package_lists() -> Result<()> {
    let known = fs::read_dir("/var/lib/apt/lists")
        .map(|list| list.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages")));
    if known.unwrap_or(false) {
        return Ok(());
    }
    say("fetching the lists of packages");
    apt(&["update"])
}

/// The product's programs: those of `cargo xtask`, or built now, once per process.
pub fn binaries() -> Result<Binaries> {
    static FOUND: OnceLock<Result<Binaries, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| match env::var_os(BINARIES) {
        Some(folder) => in_folder(Path::new(&folder)).map_err(|error| format!("{error:#}")),
        None => build(Profile::Dev).map_err(|error| format!("{error:#}")),
    });
    found.clone().map_err(anyhow::Error::msg)
}

/// Builds the product's programs.
pub fn build(profile: Profile) -> Result<Binaries> {
    let target = target_dir()?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "-p", "cli", "-p", "snapshotter"]).current_dir(root());
    command.arg("--target-dir").arg(&target);
    // What cargo tells the running program about its own package would have build scripts run again, here and in
    // whatever is built next.
    let of_ours = |key: &str| key.starts_with("CARGO_PKG_") || key.starts_with("CARGO_MANIFEST_");
    for (key, _) in env::vars().filter(|(key, _)| of_ours(key)) {
        command.env_remove(key);
    }
    let folder = match profile {
        Profile::Dev => target.join("debug"),
        Profile::Release => {
            command.arg("--release");
            target.join("release")
        }
    };
    process::run(command, BUILD_LIMIT).context("build the product")?;
    in_folder(&folder)
}

/// The workspace's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member lies in its workspace")
}

/// Where cargo writes: above the running program.
pub fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("find the running program")?;
    let tagged = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    tagged.map(Path::to_owned).with_context(|| format!("{} is in no target folder", program.display()))
}

/// Where made things are kept between runs.
pub fn fixtures() -> Result<PathBuf> {
    let folder = target_dir()?.join("fixtures");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Whether the long tests were asked for.
pub fn long() -> bool {
    env::var_os(LONG).is_some()
}

/// Says that the calling test does nothing, and why, so that it is counted. The test returns after it.
pub fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED: {test}: {reason}");
    say(&line);
    let Some(path) = env::var_os(SKIPPED_LOG) else { return };
    let file = File::options().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written.expect("the list of skipped tests can be written");
}

/// To the screen.
#[allow(clippy::print_stderr)] // the harness talks here and nowhere else
pub fn say(text: &str) {
    eprintln!("{text}");
}

fn in_folder(folder: &Path) -> Result<Binaries> {
    let binaries = Binaries { soci: folder.join("soci"), daemon: folder.join("soci-snapshotter-grpc") };
    for path in [&binaries.soci, &binaries.daemon] {
        if !path.exists() {
            bail!("{} is missing", path.display());
        }
    }
    Ok(binaries)
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${db:Status-Status}", package]);
    process::run(query, INSTALL_LIMIT).is_ok_and(|status| status == "installed")
}

fn install(packages: &[&str]) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root can");
    }
    let _no_services = NoServices::begin()?;
    apt(&["update"])?;
    let mut words = vec!["install", "-y", "--no-install-recommends"];
    words.extend(packages);
    apt(&words)
}

fn apt(words: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    // Another test may be installing: wait for it.
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(words);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    process::run(command, INSTALL_LIMIT).map(|_| ())
}

/// While it lives, packages that are installed do not start their services. An existing policy is respected.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> Result<NoServices> {
        let made = File::options().write(true).create_new(true).mode(0o755).open(POLICY);
        let Ok(mut file) = made else { return Ok(NoServices { ours: false }) };
        let guard = NoServices { ours: true };
        file.write_all(b"#!/bin/sh\nexit 101\n").context("write policy-rc.d")?;
        file.set_permissions(fs::Permissions::from_mode(0o755)).context("write policy-rc.d")?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}
