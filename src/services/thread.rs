//! Threads beside the daemon's own.
//!
//! The host's signals are the main thread's: what a host sets with [`prepare_threads`] is called first in
//! each thread, so that it can block them there.

use std::io;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

static PREPARE: OnceLock<fn()> = OnceLock::new();

/// What each thread does first. Set once, before the first thread.
pub fn prepare_threads(prepare: fn()) {
    let _ = PREPARE.set(prepare);
}

/// Starts a thread.
///
/// # Errors
/// As pthread_create(3).
pub(crate) fn spawn<T: Send + 'static>(
    builder: Builder,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    builder.spawn(move || {
        if let Some(prepare) = PREPARE.get() {
            prepare();
        }
        body()
    })
}
