//! A registry that behaves as Amazon's does: tokens and signed URLs that expire under a running container.

use anyhow::{Result, ensure};
use integration::{
    daemon::{LOG_LIMIT, soci, with_containerd},
    ecr::Ecr,
    images::{Image, Layer, Tar, push_image, tar::Entry},
    lab::Lab,
    link::Link,
    machine::binaries,
    process::wait_until,
    reference::mount,
    registry::Registry,
};

use crate::{
    image::{SMALL, noise},
    read_path::{NO_FILL, pull},
};

const SIZE: usize = 200_000;

#[test]
fn containerd_an_ecr_whose_tokens_and_signatures_expire() -> Result<()> {
    let lab = Lab::new("ecr")?;
    let registry = Registry::start(&lab)?;
    // The first two far apart in one layer, which knows where the store is when the second is read; the others each
    // in one that has to ask.
    let file = |seed: u64| Entry::file(format!("file{seed}"), noise(seed, SIZE));
    let between = Entry::file("between", noise(99, 20 * SIZE));
    let lowest = Layer::gzip(&Tar::new([file(0), between, file(1)]).bytes());
    let others = (2..6).map(|seed| Layer::gzip(&Tar::new([file(seed)]).bytes()));
    let image = Image::new(std::iter::once(lowest).chain(others).collect());
    push_image(registry.host(), "app:plain", &image)?;
    let place = |tag: &str| format!("docker://{}/app:{tag}", registry.host());
    let (from, to) = (place("plain"), place("soci"));
    soci(&lab, &binaries()?, &[&["convert"], SMALL, &[&from, &to]].concat())?;
    let ecr = Ecr::start(&lab, registry.host())?;
    let (_daemon, containerd) = with_containerd(&lab, NO_FILL)?;
    let layers = pull(&lab, &containerd, &format!("{}/app:soci", ecr.api.host()))?;
    ensure!(layers.iter().all(|line| line.ends_with(" lazy")), "{layers:?}");
    let mounted = mount(&lab, &containerd, "soci")?;
    let read = |seed: u64| std::fs::read(mounted.path().join(format!("file{seed}")));
    let right = |seed: u64| -> Result<()> {
        ensure!(read(seed)? == noise(seed, SIZE), "file{seed} has other bytes");
        Ok(())
    };
    let saw = |link: &Link, status: u16| link.exchanges().iter().any(|exchange| exchange.status == status);

    right(0)?;
    ensure!(saw(&ecr.store, 206), "blobs come from the store");
    ensure!(!saw(&ecr.store, 403) && !saw(&ecr.api, 403), "every request is let in");
    ecr.expire_signatures();
    right(1)?;
    ensure!(saw(&ecr.store, 403), "the old signature was tried");

    // The token has been renewed where it is looked for.
    ecr.expire_token();
    ecr.hand_out()?;
    right(2)?;
    ensure!(saw(&ecr.api, 403), "the old token was tried");

    // It has not: a reader waits until it is.
    ecr.expire_token();
    ecr.api.reset();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| right(3));
        let denied = || ecr.api.exchanges().iter().filter(|exchange| exchange.status == 403).count();
        let waits = wait_until("a second denial", LOG_LIMIT, || Ok((denied() > 1).then_some(())));
        let finished = reader.is_finished();
        ecr.hand_out()?;
        reader.join().expect("a reader does not panic")?;
        ensure!(!finished, "a reader does not wait");
        waits
    })?;

    // It expires by itself after one more request.
    ecr.expire_token_after(1);
    right(4)?;
    ecr.hand_out()?;
    right(5)?;
    (0..6).try_for_each(right)
}
