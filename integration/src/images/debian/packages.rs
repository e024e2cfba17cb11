//! Debian's packages without installing them: what apt would install into an empty system, downloaded into a
//! folder of ours, and unpacked into another.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{run, spawn};

const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);

/// apt with a system that has nothing.
pub(super) struct Apt {
    folder: PathBuf,
}

impl Apt {
    pub(super) fn new(folder: &Path) -> Result<Apt> {
        fs::create_dir_all(folder.join("archives/partial"))?;
        File::create(folder.join("status"))?;
        Ok(Apt { folder: folder.to_owned() })
    }

    /// The closure of `packages`, downloaded; sorted by name.
    pub(super) fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        run(self.install(&["--download-only"], packages), DOWNLOAD_LIMIT).context("download packages")?;
        let simulated = run(self.install(&["--simulate"], packages), DOWNLOAD_LIMIT)?;
        let names = simulated.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
        let mut files = names.map(|name| self.file(name)).collect::<Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    }

    fn install(&self, how: &[&str], packages: &[&str]) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "--no-install-recommends"]);
        for option in [
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache::archives={folder}/archives/"),
            // Not the machine's own index of packages: it would be rebuilt for the empty system.
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "Debug::NoLocking=1".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.arg("install").args(how).args(packages);
        command
    }

    /// `archives/NAME_VERSION_ARCH.deb`
    fn file(&self, name: &str) -> Result<PathBuf> {
        let prefix = format!("{name}_");
        for entry in fs::read_dir(self.folder.join("archives"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                return Ok(entry.path());
            }
        }
        bail!("{name} was not downloaded")
    }
}

/// Unpacks one package over `tree`, through links to directories.
pub(super) fn extract(package: &Path, tree: &Path) -> Result<()> {
    let doing = || format!("unpack {}", package.display());
    let mut reader = Command::new("dpkg-deb");
    reader.arg("--fsys-tarfile").arg(package).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut reader = spawn(reader).with_context(doing)?;
    let mut writer = Command::new("tar");
    writer.args(["--extract", "--preserve-permissions", "--same-owner", "--numeric-owner"]);
    writer.args(["--keep-directory-symlink", "--warning=no-timestamp", "--directory"]).arg(tree);
    writer.stdin(reader.stdout.take().context("read a package")?);
    let wrote = spawn(writer).with_context(doing)?.wait()?;
    let read = reader.wait()?;
    if !wrote.success() || !read.success() {
        bail!("{}: {read}, {wrote}", doing());
    }
    Ok(())
}
