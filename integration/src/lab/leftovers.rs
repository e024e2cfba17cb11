//! Programs that belong to a lab and are not our children: containerd's shims, the containers under them, a
//! worker whose supervisor is gone. They are known by the lab's mark in their environment, and by descent from
//! one that has it. Only such are ever killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

use super::MARK;
use crate::process::wait_until;

/// A killed process that has not ended by then hangs in the kernel.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn of(folder: &Path) -> Vec<u32> {
    let mut entry = format!("{MARK}=").into_bytes();
    entry.extend(folder.as_os_str().as_bytes());
    let all = processes();
    let is_marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == entry)
    };
    let mut found: BTreeSet<u32> = all.keys().copied().filter(is_marked).collect();
    // This process may itself run inside another lab's command; it and its threads are no leftovers.
    found.remove(&std::process::id());
    loop {
        let children = all.iter().filter(|(pid, parent)| found.contains(parent) && !found.contains(pid));
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        if children.is_empty() {
            return found.into_iter().collect();
        }
        found.extend(children);
    }
}

/// Kills them all, and waits for their end.
pub(super) fn kill(folder: &Path) -> Result<()> {
    wait_until("the end of what was left behind", LIMIT, || {
        let left = of(folder);
        for pid in &left {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        Ok(left.is_empty().then_some(()))
    })
}

/// Every process that has not ended, and its parent.
fn processes() -> BTreeMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parent(pid)?))).collect()
}

/// None for one that has ended and waits to be reaped.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z" && state != "X").then_some(parent)
}
