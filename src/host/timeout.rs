//! One timeout in the process's root ioloop, which calls the plugin's retry.

use std::ptr::NonNull;
use std::time::Duration;

use super::bindings as ffi;

/// A pending timeout; removed when dropped.
pub struct RetryTimeout(NonNull<ffi::timeout>);

impl RetryTimeout {
    /// Calls `ReplicationCallbacks::retry` once after `delay`. `None` in a process without an ioloop.
    ///
    /// The timeout stays armed until it is dropped: drop it when it has fired.
    #[must_use]
    pub fn new(delay: Duration) -> Option<Self> {
        let msecs = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX).max(1);
        // SAFETY: called on the main thread, after the callbacks were set at init.
        NonNull::new(unsafe { ffi::replication_shim_retry_timeout_add(msecs) }).map(Self)
    }
}

impl Drop for RetryTimeout {
    fn drop(&mut self) {
        // SAFETY: the pointer came from timeout_add and is removed once, here.
        unsafe { ffi::replication_shim_timeout_remove(self.0.as_ptr()) };
    }
}
