//! What a container leaves outside its lab when no process was left to remove it: runc's record, its cgroups, its
//! shim's socket. containerd and runc put these in the same places for every caller. Ours are told by the lab's
//! word, with which its namespaces begin, and in the one that Kubernetes has everywhere by the bundles in the lab.

use std::fs;
use std::path::{Path, PathBuf};

use oci::Digest;

/// Where runc, as containerd calls it, keeps its records: NAMESPACE/ID.
const RECORDS: &str = "/run/containerd/runc";
/// The namespace that all pods are in.
const PODS: &str = "k8s.io";
/// Beside containerd's socket: NAMESPACE/ID, as long as there is such a container.
const BUNDLES: &str = "state/io.containerd.runtime.v2.task";
/// Where shims listen, under the hash of containerd's address, namespace and ID.
const SOCKETS: &str = "/run/containerd/s";
/// Either one hierarchy, or one for each folder in it.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Removes them; `address` is the socket of the lab's containerd. To be called when no process is left.
pub(super) fn remove(word: &str, address: &Path) {
    for namespace in named(Path::new(RECORDS), word) {
        for container in subfolders(&namespace) {
            remove_socket(&container, address);
        }
        let _ = fs::remove_dir_all(namespace);
    }
    let bundles = address.with_file_name(BUNDLES).join(PODS);
    for container in subfolders(&bundles).iter().filter_map(|bundle| bundle.file_name()) {
        let record = Path::new(RECORDS).join(PODS).join(container);
        remove_socket(&record, address);
        let _ = fs::remove_dir_all(record);
    }
    let roots = subfolders(Path::new(CGROUPS)).into_iter().chain([CGROUPS.into()]);
    for group in roots.flat_map(|root| named(&root, word)) {
        remove_groups(&group);
    }
}

/// The socket of the shim of the container with this record.
fn remove_socket(container: &Path, address: &Path) {
    let mut names = container.iter().rev();
    let (Some(id), Some(namespace)) = (names.next(), names.next()) else { return };
    let socket = Digest::sha256(address.join(namespace).join(id).as_os_str().as_encoded_bytes()).hex();
    let _ = fs::remove_file(Path::new(SOCKETS).join(socket));
}

/// A cgroup is removed by removing its folder, from the inside out; its files go with it.
fn remove_groups(group: &Path) {
    for inner in subfolders(group) {
        remove_groups(&inner);
    }
    let _ = fs::remove_dir(group);
}

/// Folders in `folder` whose name is `word`, or begins with it and goes on with what is no digit.
fn named(folder: &Path, word: &str) -> Vec<PathBuf> {
    let mut found = subfolders(folder);
    found.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(word).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    found
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}
