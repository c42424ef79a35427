//! The boundary that no panic crosses.
//!
//! Each function that C calls is a guard and one call. A panic is caught, logged once, and from then on
//! the module steps aside for the rest of the process: the host goes on as if it were not loaded.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

static STEPPED_ASIDE: AtomicBool = AtomicBool::new(false);

/// Runs `body`, or gives `otherwise` if it panics or something of ours has panicked before.
pub fn guard<R>(hook: &str, otherwise: R, body: impl FnOnce() -> R) -> R {
    if STEPPED_ASIDE.load(Ordering::Relaxed) {
        return otherwise;
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(payload) => {
            STEPPED_ASIDE.store(true, Ordering::Relaxed);
            log::error!(
                "replication: BUG: panic in {hook}: {} - this process goes on without replication; \
                 its later changes are replicated with the user's next change or full sync",
                message(&*payload)
            );
            otherwise
        }
    }
}

/// Keeps Rust from writing panics to stderr by itself; [`guard`] logs them.
pub fn silence_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        if let Some(place) = panic.location() {
            log::error!("replication: panic at {}:{}", place.file(), place.line());
        }
    }));
}

/// Gives the panic hook back, so that nothing of this module is left when it is unloaded.
pub fn restore_panic_hook() {
    drop(std::panic::take_hook());
}

fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
