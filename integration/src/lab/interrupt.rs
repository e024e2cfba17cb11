//! Ctrl-C and SIGTERM close the labs of this process before they end it. A second signal changes nothing: the
//! closing is bounded.

use std::sync::{Mutex, PoisonError, Weak};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use super::Inner;
use crate::machine::say;

static LABS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

pub(super) fn remember(lab: &std::sync::Arc<Inner>) {
    let mut labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
    labs.retain(|lab| lab.strong_count() > 0);
    labs.push(std::sync::Arc::downgrade(lab));
}

/// Begins to listen; once per process.
pub(super) fn watch() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime for signals can be made");
    // Registered here, so that no signal is lost between this call and the thread's first step.
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let listen = |kind| signal(kind).expect("signals can be listened for");
        (listen(SignalKind::interrupt()), listen(SignalKind::terminate()))
    };
    thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => libc::SIGINT,
                _ = terminate.recv() => libc::SIGTERM,
            }
        });
        say("stopping everything");
        let labs = std::mem::take(&mut *LABS.lock().unwrap_or_else(PoisonError::into_inner));
        for lab in labs.iter().filter_map(Weak::upgrade) {
            if let Err(error) = lab.close() {
                say(&format!("close lab {}: {error:#}", lab.name));
            }
        }
        std::process::exit(128 + number);
    });
}
