//! Which thread runs, told without a handle: `std::thread::current()` makes one that a module that is
//! unloaded never frees.

use libc::pthread_t;

/// The running thread.
#[must_use]
pub fn current() -> pthread_t {
    // SAFETY: it always succeeds.
    unsafe { libc::pthread_self() }
}
