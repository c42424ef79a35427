//! State of a mail process: one thread, set at init, taken back at deinit.

use std::cell::RefCell;

use libc::pthread_t;

use crate::host::thread;

/// A cell for what only the process's main thread touches.
///
/// Not a thread-local: its destructor would outlive the plugin's unloading. Nor `std::thread::current()`,
/// whose handle nobody frees then.
pub struct MainThread<T>(RefCell<Option<(pthread_t, T)>>);

// SAFETY: every access compares the thread with the one that called `set`; the first `set` and `take`
// are made by plugin init and deinit, which Dovecot calls on the main thread.
unsafe impl<T> Sync for MainThread<T> {}

impl<T> MainThread<T> {
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }

    pub fn set(&self, value: T) {
        *self.0.borrow_mut() = Some((thread::current(), value));
    }

    pub fn take(&self) -> Option<T> {
        self.0.borrow_mut().take().map(|(_, value)| value)
    }

    /// Gives `body` the state; `None` before init, after deinit, on another thread, and inside itself.
    pub fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut cell = self.0.try_borrow_mut().ok()?;
        let (owner, value) = cell.as_mut()?;
        (*owner == thread::current()).then(|| body(value))
    }
}
