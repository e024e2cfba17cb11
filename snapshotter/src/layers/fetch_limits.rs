//! Limits on what is fetched from registries in order to open layers: ztocs in memory, and layers streamed whole.
//!
//! Each registry has limits of its own, so that a slow registry delays no other. The process has limits for all
//! registries together, so that many of them cannot take all memory or all threads.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use oci::{Registry, Store as _, Timeouts};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::sync::lock;

/// A larger ztoc is refused before it is fetched: 384 MiB are the windows of a layer of 40 GiB in spans of 4 MiB.
pub(crate) const MAX_ZTOC_BYTES: u64 = 384 << 20;
/// Bytes of ztocs that are being fetched, from all registries together. While one registry sends the largest
/// ztoc, the others still have room for ordinary ones, which have a few MiB.
const MAX_ALL_ZTOC_BYTES: u64 = 512 << 20;
/// Bytes in one permit of the semaphores above, which count in 32 bits.
const PERMIT_BYTES: u64 = 1024;
/// A registry answers in less than a second, or within a few when it has to be asked again. The daemon does
/// without a ztoc from a registry that sends nothing for longer.
const ZTOC_SILENCE: Duration = Duration::from_secs(10);
/// Time for a ztoc of no size.
const ZTOC_TOTAL: Duration = Duration::from_secs(60);
/// Each so many bytes of a ztoc have one second more. On a slower line, the layer, which is some hundred times
/// as long, could not be read either.
const ZTOC_BYTES_PER_SECOND: u64 = 256 << 10;
/// Layers streamed whole from one registry at once.
const STREAMS_PER_HOST: usize = 4;
/// Layers streamed whole at once. Each holds a thread, and containerd's calls need threads, too.
const MAX_STREAMS: usize = 32;
/// Registries whose limits are remembered. Beyond it, those with nothing under way are forgotten.
const MAX_HOSTS: usize = 256;

/// See the module.
#[derive(Debug)]
pub(crate) struct FetchLimits {
    hosts: Mutex<HashMap<String, HostLimits>>,
    streams: Arc<Semaphore>,
    ztocs: Arc<Semaphore>,
}

/// The limits of one registry.
#[derive(Debug)]
struct HostLimits {
    streams: Arc<Semaphore>,
    ztocs: Arc<Semaphore>,
}

/// Room for one fetch, until it is dropped.
#[derive(Debug)]
pub(crate) struct FetchPermit {
    _of_host: OwnedSemaphorePermit,
    _of_process: OwnedSemaphorePermit,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            hosts: Mutex::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            ztocs: Arc::new(Semaphore::new((MAX_ALL_ZTOC_BYTES / PERMIT_BYTES) as usize)),
        }
    }
}

impl Default for HostLimits {
    fn default() -> Self {
        Self {
            streams: Arc::new(Semaphore::new(STREAMS_PER_HOST)),
            ztocs: Arc::new(Semaphore::new((MAX_ZTOC_BYTES / PERMIT_BYTES) as usize)),
        }
    }
}

impl HostLimits {
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.streams) > 1 || Arc::strong_count(&self.ztocs) > 1
    }
}

impl FetchLimits {
    /// Waits for room for a ztoc of `bytes` bytes, at most [`MAX_ZTOC_BYTES`], from this registry.
    ///
    /// # Errors
    /// None in practice: the semaphores are never closed.
    pub(crate) async fn ztoc(&self, registry: &Registry, bytes: u64) -> Result<FetchPermit, AcquireError> {
        self.ztoc_of_host(&host(registry), bytes).await
    }

    async fn ztoc_of_host(&self, host: &str, bytes: u64) -> Result<FetchPermit, AcquireError> {
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        let of_host = self.of_host(host, |limits| limits.ztocs.clone());
        let of_host = of_host.acquire_many_owned(permits).await?;
        let of_process = self.ztocs.clone().acquire_many_owned(permits).await?;
        Ok(FetchPermit { _of_host: of_host, _of_process: of_process })
    }

    /// Waits until one more layer may be streamed from this registry.
    ///
    /// # Errors
    /// None in practice: the semaphores are never closed.
    pub(crate) async fn stream(&self, registry: &Registry) -> Result<FetchPermit, AcquireError> {
        let of_host = self.of_host(&host(registry), |limits| limits.streams.clone());
        let of_host = of_host.acquire_owned().await?;
        let of_process = self.streams.clone().acquire_owned().await?;
        Ok(FetchPermit { _of_host: of_host, _of_process: of_process })
    }

    fn of_host(&self, host: &str, limit: fn(&HostLimits) -> Arc<Semaphore>) -> Arc<Semaphore> {
        let mut hosts = lock(&self.hosts);
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, limits| limits.is_used());
        }
        limit(hosts.entry(host.to_owned()).or_default())
    }
}

/// How long the daemon waits for a ztoc of `bytes` bytes.
pub(crate) fn ztoc_patience(bytes: u64) -> Timeouts {
    let total = ZTOC_TOTAL + Duration::from_secs(bytes / ZTOC_BYTES_PER_SECOND);
    Timeouts { silence: ZTOC_SILENCE, total }
}

fn host(registry: &Registry) -> String {
    let origin = registry.name();
    origin.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn ztocs_of_many_registries_share_one_bound() {
        let limits = FetchLimits::default();
        let ztoc = |host: &'static str, bytes| limits.ztoc_of_host(host, bytes).now_or_never();
        let large = ztoc("a.example", MAX_ZTOC_BYTES).unwrap().unwrap();
        assert!(ztoc("a.example", 1).is_none(), "the registry has no room left");
        let small = ztoc("b.example", 64 << 20).unwrap().unwrap();
        assert!(ztoc("c.example", MAX_ZTOC_BYTES).is_none(), "the process has no room left");
        drop((large, small));
        assert!(ztoc("c.example", MAX_ZTOC_BYTES).unwrap().is_ok());
    }

    #[test]
    fn registries_with_nothing_under_way_are_forgotten() {
        let limits = FetchLimits::default();
        let used = limits.ztoc_of_host("used.example", 1).now_or_never().unwrap().unwrap();
        for number in 0..2 * MAX_HOSTS {
            let host = format!("{number}.example");
            assert!(limits.ztoc_of_host(&host, 1).now_or_never().unwrap().is_ok());
        }
        let hosts = lock(&limits.hosts);
        assert!(hosts.len() <= MAX_HOSTS && hosts.contains_key("used.example"));
        drop((hosts, used));
    }
}
