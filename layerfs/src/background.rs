//! Asks for what nobody has asked for yet, one run of spans after another, and yields to readers.
//!
//! The fill of a layer belongs to the layer and ends with it. It goes on when no reader waits for anything
//! anywhere, so that it uses the link only when the link is free. A failure ends nothing: it waits, longer
//! each time, and goes on where it was. Where the store has a limit and is nearly full it stops for good: what
//! nobody asked for must not push out what readers need.

use std::{sync::Arc, sync::Weak, time::Duration};

use tokio::task::JoinHandle;

use crate::spans::Spans;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Stops when dropped.
#[derive(Debug)]
pub(crate) struct Fill(JoinHandle<()>);

impl Fill {
    pub(crate) fn start(spans: &Arc<Spans>) -> Self {
        let handle = spans.engine().runtime().clone();
        Self(handle.spawn(run(Arc::downgrade(spans))))
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(spans: Weak<Spans>) {
    let mut from = 0;
    let mut pause = FIRST_PAUSE;
    let mut missing = u32::MAX;
    loop {
        let Some(engine) = spans.upgrade().map(|spans| spans.engine().clone()) else { return };
        engine.calm().await;
        let Some(table) = spans.upgrade() else { return };
        if table.files().store().nearly_full() {
            return;
        }
        let wish = table.fill(from, engine.limits().fill_request);
        drop(table);
        if let Some((end, landed)) = wish {
            from = end;
            let _ = landed.await;
            continue;
        }
        // Through once. What failed meanwhile is tried again as long as that gets anywhere.
        let Some(left) = spans.upgrade().map(|spans| spans.missing()) else { return };
        if left == 0 || left == missing && pause == LONGEST_PAUSE {
            return;
        }
        pause = if left < missing { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        missing = left;
        from = 0;
        tokio::time::sleep(pause).await;
    }
}
