//! The whole command against the Go tool: the indexes of an image in containerd, by either's `create`, turn and turn
//! about, each into a store of its own that is empty before. Bar: a fifth of the time. The Go tool is the one that
//! Debian unstable has; where it cannot be had there is nothing to compare with.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::Result;
use benches::{best_of, layer, tell};
use integration::{
    containerd::Containerd,
    images::{Image, debian_python_image, push_image},
    lab::Lab,
    machine::{Profile, build, fixtures, say},
    parts,
    process::run_measured,
    registry::Registry,
};

const LIMIT: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    let go = match parts::go_soci() {
        Ok((program, _)) => program,
        Err(error) => {
            say(&format!("no Go tool to compare with: {error:#}"));
            return Ok(());
        }
    };
    let ours = build(Profile::Release)?.soci;
    let lab = Lab::new("bench-create")?;
    let registry = Registry::start(&lab)?;
    let containerd = Containerd::start(&lab)?;
    let one_large = Image::new(vec![layer(5_000, 100_000)]);
    for (what, image) in
        [("debian-python", debian_python_image(&fixtures()?)?), ("one-large-layer", one_large)]
    {
        let pushed = push_image(registry.host(), &format!("{what}:1"), &image)?;
        containerd.pull(&pushed.reference, "overlayfs")?;
        let create = |mut command: Command, home: &Path| {
            fs::remove_dir_all(home).and_then(|()| fs::create_dir(home)).expect("a folder of our own");
            command.arg("--address").arg(containerd.address()).args(["--namespace", containerd.namespace()]);
            command.args(["--content-store", "soci", "create", &pushed.reference]);
            run_measured(command, LIMIT).expect("an index is made").1
        };
        let home = lab.folder("home")?;
        let (mut peak, mut go_peak) = (0, 0);
        let (left, right) = best_of(
            3,
            || {
                let mut command = lab.command(&ours);
                command.arg("--root").arg(&home);
                peak = peak.max(create(command, &home));
            },
            || go_peak = go_peak.max(create(lab.secluded(&go, &home), &home)),
        );
        tell(&format!("soci create of {what}"), left, "the Go tool", right, 0.2);
        say(&format!("memory at the peak: {} MiB, the Go tool {} MiB", peak >> 20, go_peak >> 20));
    }
    lab.close()
}
