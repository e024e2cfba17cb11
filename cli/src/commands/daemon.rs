//! `soci daemon upgrade`: another program serves, and it is seen to.

use std::time::{Duration, Instant};

use super::Tools;
use crate::{
    args::Upgrade as Args,
    daemon_client,
    error::{Error, ErrorKind},
};

/// Calls of containerd are finished first, for a minute at most; then another process begins.
const LIMIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn upgrade(args: &Args, tools: &Tools<'_>) -> Result<(), Error> {
    let address = &args.daemon.daemon_address;
    let before = daemon_client::status(address).await?.daemon;
    daemon_client::upgrade(address).await?;
    let start = Instant::now();
    loop {
        tokio::time::sleep(PAUSE).await;
        // In between there may be no worker, or one that is busy with its start.
        if let Ok(status) = daemon_client::status(address).await
            && status.daemon.pid != before.pid
        {
            let now = status.daemon;
            tools.output.line(&format!(
                "soci-snapshotter-grpc {} {} serves, process {} (before: {} {})",
                now.version, now.revision, now.pid, before.version, before.revision
            ));
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            let why = format!(
                "upgrade soci-snapshotter-grpc at {address}: the process is still the same; its log says why"
            );
            return Err(Error::new(ErrorKind::Unreachable, why));
        }
    }
}
