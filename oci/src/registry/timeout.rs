//! How long a caller waits for a registry if it can do without: until the next byte, and in all. Work that is
//! waited for tries again, follows redirects and logs in as it likes; whatever comes meanwhile, `http` notes here. The
//! note is the task's own, so that it need not be handed through everything that asks.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::error::{Error, ErrorKind};

tokio::task_local! {
    /// When something last came for this task.
    static HEARD: Cell<Instant>;
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// without a byte
    pub silence: Duration,
    pub total: Duration,
}

impl Timeouts {
    /// What `work` ends with, or `Unreachable`. Only what comes in this task counts, not in tasks that `work` starts.
    pub async fn bound<T>(self, doing: &str, work: impl Future<Output = T>) -> Result<T, Error> {
        let began = Instant::now();
        let bounded = async {
            tokio::select! {
                // Work first: what has come in time is heard, however late we look.
                biased;
                done = work => Ok(done),
                why = self.end(began) => Err(Error::new(ErrorKind::Unreachable, doing).because(why)),
            }
        };
        HEARD.scope(Cell::new(began), bounded).await
    }

    async fn end(self, began: Instant) -> String {
        loop {
            let (silent, late) = (HEARD.with(Cell::get) + self.silence, began + self.total);
            let now = Instant::now();
            if late <= now {
                return format!("not all of it came within {} s", self.total.as_secs());
            }
            if silent <= now {
                return format!("nothing came for {} s", self.silence.as_secs());
            }
            sleep_until(silent.min(late)).await;
        }
    }
}

/// Something has come.
pub(super) fn heard() {
    // Most that asks is not bounded.
    let _ = HEARD.try_with(|at| at.set(Instant::now()));
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(3600);

    async fn hear(times: u32) {
        for _ in 0..times {
            sleep(SHORT / 4).await;
            heard();
        }
    }

    async fn ends(patience: Timeouts, times: u32) -> String {
        let work = async {
            hear(times).await;
            std::future::pending::<()>().await;
        };
        let error = patience.bound("do it", work).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        std::error::Error::source(&error).unwrap().to_string()
    }

    #[tokio::test]
    async fn silence_ends_it_and_so_does_the_total() {
        let silent = Timeouts { silence: SHORT, total: LONG };
        assert!(ends(silent, 0).await.starts_with("nothing came"));
        assert!(ends(silent, 8).await.starts_with("nothing came"));
        let slow = Timeouts { silence: LONG, total: SHORT };
        assert!(ends(slow, u32::MAX).await.starts_with("not all of it came"));
    }

    #[tokio::test]
    async fn what_keeps_coming_may_take_longer_than_silence_may() {
        let patience = Timeouts { silence: SHORT, total: LONG };
        let began = Instant::now();
        patience.bound("do it", hear(40)).await.unwrap();
        assert!(began.elapsed() > SHORT * 5);
    }

    #[tokio::test]
    async fn without_bounds_nothing_is_noted() {
        hear(1).await;
    }
}
