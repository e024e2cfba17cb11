//! The generation of the stored layers: one more after each unclean stop of the machine.
//!
//! It is noted with the boot id, before anything is written under it. Bytes of an older generation are used only
//! after they were verified again. A generation that cannot be noted stores nothing.

use std::{
    fs::{self, File},
    path::Path,
};

use xxhash_rust::xxh3::xxh3_64;

use super::replace;

/// The generation of this start, and whether it is on the disk.
pub(super) fn begin(layers: &Path, boot: &str) -> (u32, bool) {
    let noted = fs::read_to_string(layers.join("boot")).ok();
    let known = noted.as_deref().and_then(|text| text.split_once(' '));
    let known = known.and_then(|(last_boot, last)| Some((last_boot, last.trim().parse::<u32>().ok()?)));
    let clean = fs::remove_file(layers.join("clean")).is_ok();
    let same_boot = |last_boot| !boot.is_empty() && last_boot == boot;
    let generation = match known {
        Some((last_boot, last)) if clean || same_boot(last_boot) => last,
        Some((_, last)) => last.wrapping_add(1),
        // The first start, or a power cut took the note. The folder may hold spans of any generation, so this
        // generation has to be one that never was.
        None => xxh3_64(boot.as_bytes()) as u32,
    };
    if noted.is_some() && known.is_none_or(|(_, last)| last != generation) {
        tracing::warn!("the last stop was unclean: stored layers are verified again before they are used");
    }
    let note = format!("{boot} {generation}");
    if clean || noted.as_deref() != Some(&note) {
        // Synced before anything is written under it: after a power cut an older note would be believed.
        let written = replace(&layers.join("boot"), note.as_bytes());
        if let Err(error) = written.and_then(|()| File::open(layers)?.sync_all()) {
            tracing::error!(
                %error,
                "the boot id of the layers cannot be written: until the next start nothing is stored"
            );
            return (generation, false);
        }
    }
    (generation, true)
}
