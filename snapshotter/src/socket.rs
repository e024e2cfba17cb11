//! Unix sockets that the daemon listens on, and where an address says they lie.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// The address of a socket that the service manager passes.
pub(crate) const BY_DESCRIPTOR: &str = "fd://";
/// The socket's path if the service manager passes none.
pub(crate) const DEFAULT_SOCKET: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";

/// The path that an address names: `PATH`, `unix://PATH`, or the default for `fd://`.
pub(crate) fn path_of(address: &str) -> anyhow::Result<PathBuf> {
    match address.split_once("://") {
        None => Ok(address.into()),
        Some(("unix", path)) => Ok(path.into()),
        Some(_) if address == BY_DESCRIPTOR => Ok(DEFAULT_SOCKET.into()),
        Some(_) => bail!("unknown protocol for address {address}; use unix://PATH, a path, or fd://"),
    }
}

/// Listens on a socket that only root may use. A socket that no process listens on any more is replaced.
///
/// # Errors
/// When another process listens there, or the folder cannot be made.
pub(crate) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let doing = || format!("listen on {}", path.display());
    if let Some(folder) = path.parent() {
        make_folder(folder).with_context(doing)?;
    }
    if UnixStream::connect(path).is_ok() {
        bail!("{}: another process listens there", doing());
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(doing),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(doing)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(doing)?;
    Ok(listener)
}

/// Makes a folder, and those above it, for root alone.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_process_listens_on_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/s.sock");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(format!("{:#}", listen(&path).unwrap_err()).contains("another process listens there"));
        drop(first);
        listen(&path).unwrap();
    }
}
