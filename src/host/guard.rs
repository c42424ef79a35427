//! The boundary that no panic crosses.
//!
//! Each function that C calls is a guard and one call. A panic is caught, logged once, and from then on
//! the module steps aside for the rest of the process: the host goes on as if it were not loaded.
//!
//! The feature `panics` is for tests alone: a build with it panics in the hook that the environment
//! variable `REPLICATION_PANIC_IN` names. What is installed is built without it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

static STEPPED_ASIDE: AtomicBool = AtomicBool::new(false);

/// Where the last panic was. The panic hook writes it, as only it is told; [`guard`] takes it.
static PLACE: Mutex<Option<String>> = Mutex::new(None);

/// Runs `body`, or gives `otherwise` if it panics or something of ours has panicked before.
pub fn guard<R>(hook: &str, otherwise: R, body: impl FnOnce() -> R) -> R {
    if stepped_aside() {
        return otherwise;
    }
    let body = || {
        #[cfg(feature = "panics")]
        assert!(
            std::env::var_os("REPLICATION_PANIC_IN")
                .is_none_or(|name| *name != *hook.replace(' ', "_")),
            "a test wants it"
        );
        body()
    };
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(payload) => {
            STEPPED_ASIDE.store(true, Ordering::Relaxed);
            let place = PLACE.lock().unwrap_or_else(PoisonError::into_inner).take();
            log::error!(
                "replication: BUG: panic in {hook} at {}: {} - this process goes on without replication; \
                 its later changes are replicated with the user's next change or full sync",
                place.as_deref().unwrap_or("an unknown place"),
                message(&*payload)
            );
            otherwise
        }
    }
}

/// Whether something of ours has panicked in this process.
#[must_use]
pub fn stepped_aside() -> bool {
    STEPPED_ASIDE.load(Ordering::Relaxed)
}

/// Keeps Rust from writing panics to stderr by itself; [`guard`] logs them.
pub fn silence_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(|place| format!("{}:{}", place.file(), place.line()));
        *PLACE.lock().unwrap_or_else(PoisonError::into_inner) = place;
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
