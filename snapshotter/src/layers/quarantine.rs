//! Layers that made workers crash: left alone until the daemon is started anew or another program serves, so that one
//! of them cannot keep the node down.
//!
//! What was under way in two crashes, one after the other and not long after it, is held. A worker that is killed, by
//! hand or for lack of memory, says nothing about a layer.
//!
//! ```text
//! <root>/quarantine.json    {"since": seconds since 1970, "suspected": […], "held": […]}
//! ```

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use layerfs::{LayerId, LayerMark};
use serde::{Deserialize, Serialize};

const FILE: &str = "quarantine.json";
/// Two crashes that are further apart have another reason than a layer that is asked for again and again.
const APART: Duration = Duration::from_secs(600);

/// As stored; a layer is a word.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// When the last crash was noted.
    since: u64,
    /// What was under way then.
    suspected: Vec<u64>,
    held: Vec<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Quarantine(Vec<LayerMark>);

impl Quarantine {
    /// What is held from now on. `at_crash`: what was under way when the worker before this one crashed, if it did.
    pub(crate) fn open(root: &Path, at_crash: Option<&[LayerMark]>) -> Self {
        let path = root.join(FILE);
        let stored =
            fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let stored = match at_crash {
            None => stored,
            Some(at_crash) => {
                let next = after_crash(stored, at_crash, now);
                let written = serde_json::to_vec(&next).map_err(io::Error::from);
                if let Err(error) = written.and_then(|bytes| fs::write(&path, bytes)) {
                    tracing::warn!(%error, "note what was under way in a crash");
                }
                next
            }
        };
        Self(stored.held.into_iter().map(LayerMark).collect())
    }

    /// What was noted of earlier processes no longer counts.
    pub(crate) fn lift(root: &Path) {
        match fs::remove_file(root.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "forget layers that made us crash");
            }
            _ => {}
        }
    }

    pub(crate) fn holds(&self, layer: &LayerId) -> bool {
        self.0.contains(&layer.mark())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

fn after_crash(before: Stored, at_crash: &[LayerMark], now: u64) -> Stored {
    let mut now_at: Vec<u64> = at_crash.iter().map(|mark| mark.0).collect();
    now_at.sort_unstable();
    now_at.dedup();
    let mut held = before.held;
    if now.saturating_sub(before.since) < APART.as_secs() {
        held.extend(now_at.iter().filter(|mark| before.suspected.contains(mark)));
    }
    held.sort_unstable();
    held.dedup();
    Stored { since: now, suspected: now_at, held }
}

#[cfg(test)]
mod tests {
    use oci::Digest;

    use super::*;

    #[test]
    fn what_was_under_way_twice_is_held() {
        let marks = |words: &[u64]| words.iter().copied().map(LayerMark).collect::<Vec<_>>();
        type Row = (&'static [(u64, &'static [u64])], &'static [u64]);
        let rows: &[Row] = &[
            (&[(1000, &[1, 2])], &[]),
            (&[(1000, &[1, 2]), (1001, &[2, 3])], &[2]),
            (&[(1000, &[1, 2]), (1001, &[3]), (1002, &[2])], &[]),
            (&[(1000, &[1]), (1001, &[1, 1]), (1002, &[4]), (1003, &[4])], &[1, 4]),
            (&[(1000, &[1]), (1600, &[1])], &[]),
            (&[(1000, &[]), (1001, &[])], &[]),
        ];
        for (crashes, expected) in rows {
            let after = crashes
                .iter()
                .fold(Stored::default(), |stored, (at, words)| after_crash(stored, &marks(words), *at));
            assert_eq!(after.held, *expected, "{crashes:?}");
        }
    }

    #[test]
    fn it_lasts_until_it_is_lifted() {
        let root = tempfile::tempdir().unwrap();
        let layer = LayerId { layer: Digest::sha256(b"poison"), ztoc: None };
        let at_crash = [layer.mark()];
        assert!(!Quarantine::open(root.path(), Some(&at_crash)).holds(&layer));
        assert!(!Quarantine::open(root.path(), None).holds(&layer));
        assert!(Quarantine::open(root.path(), Some(&at_crash)).holds(&layer));
        assert!(Quarantine::open(root.path(), None).holds(&layer));
        fs::write(root.path().join(FILE), "damaged").unwrap();
        assert_eq!(Quarantine::open(root.path(), None).len(), 0);
        Quarantine::lift(root.path());
        Quarantine::lift(root.path());
        assert!(!root.path().join(FILE).exists());
    }
}
