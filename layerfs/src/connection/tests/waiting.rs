//! Reads that wait for bytes, and reads that do not have to.

use std::{ops::Range, time::Duration};

use oci::{
    Blob,
    blob::{BoxFuture, ByteStream},
};
use rustix::fs::{Advice, fadvise};
use tokio::sync::Semaphore;

use super::*;
use crate::{fuse::RequestKind, testing::SPAN};

/// A blob that answers once the gate is open; with an error when the test is over.
#[derive(Debug)]
struct GatedBlob {
    blob: Arc<dyn Blob>,
    gate: Arc<Semaphore>,
}

impl Blob for GatedBlob {
    fn digest(&self) -> &Digest {
        self.blob.digest()
    }

    fn size(&self) -> Option<u64> {
        self.blob.size()
    }

    fn read_range(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, oci::Error>> {
        Box::pin(async move {
            let ended = |_| oci::Error::new(oci::ErrorKind::NotFound, "read a blob of a test that has ended");
            let _passed = self.gate.acquire().await.map_err(ended)?;
            self.blob.read_range(range).await
        })
    }

    fn read_all(&self) -> BoxFuture<'_, Result<ByteStream, oci::Error>> {
        self.read_range(0..self.size().unwrap_or(0))
    }
}

/// Opens the gate when dropped, so that readers end when a test fails.
struct GateOpener(Arc<Semaphore>);

impl Drop for GateOpener {
    fn drop(&mut self) {
        self.0.close();
    }
}

const STUCK: usize = 200;
/// Files between the waiting readers and the stored file: bytes that were fetched ahead of it and beside it.
const APART: usize = 20;

fn name(number: usize) -> String {
    format!("f{number:03}")
}

fn content(number: usize) -> Vec<u8> {
    noise(number as u64 + 1, SPAN as usize)
}

async fn until(what: &str, limit: Duration, is: impl Fn() -> bool) {
    let waited = tokio::time::timeout(limit, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} did not come"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_two_hundred_waiting_readers_do_not_block_others() {
    let lab = Lab::new();
    let last = STUCK + APART;
    let tar = (0..=last).fold(Tar::default(), |tar, number| tar.file(&name(number), &content(number)));
    let made = made(&tar.end());
    let (layer, gate) = (lab.layer(&made), Arc::new(Semaphore::new(0)));
    let path = lab.connection.slot_path(lab.connection.show(&layer, &[]).unwrap());
    let hit = path.join(name(last));
    let first = hit.clone();
    assert!(outside(move || fs::read(first)).await.unwrap() == content(last));
    layer.add_source("origin", Arc::new(GatedBlob { blob: made.blob.clone(), gate: gate.clone() }));
    let ends = GateOpener(gate.clone());
    let counts = lab.connection.counts.clone();
    let late = counts.of(RequestKind::LateRead);
    let readers: Vec<_> = (0..STUCK)
        .map(|number| {
            let path = path.join(name(number));
            tokio::task::spawn_blocking(move || fs::read(path))
        })
        .collect();
    until("all readers", Duration::from_secs(60), || counts.of(RequestKind::LateRead) >= late + STUCK as u64)
        .await;
    for _ in 0..20 {
        let (hit, counts) = (hit.clone(), counts.clone());
        let found = outside(move || {
            let asked = counts.of(RequestKind::Read);
            // Out of the kernel's cache, so that it has to ask.
            fadvise(fs::File::open(&hit).unwrap(), 0, None, Advice::DontNeed).unwrap();
            let found = fs::read(&hit);
            assert!(counts.of(RequestKind::Read) > asked, "the kernel sent the read");
            found
        });
        let found = tokio::time::timeout(Duration::from_secs(30), found).await;
        assert!(found.expect("the read of a stored file does not wait").unwrap() == content(last));
    }
    assert!(readers.iter().all(|reader| !reader.is_finished()), "the other readers still wait");
    gate.add_permits(STUCK);
    for (number, reader) in readers.into_iter().enumerate() {
        assert!(reader.await.unwrap().unwrap() == content(number), "{number}");
    }
    drop(ends);
}
