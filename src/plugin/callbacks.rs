//! What the C shim calls. `make header` writes include/replication-callbacks.h from this file.

use std::ffi::c_void;

/// The functions that c-shim/plugin.c calls, given to it at init.
#[repr(C)]
pub struct ReplicationCallbacks {
    /// The user of this context has been deinitialized; the context is given back.
    pub user_deinit: unsafe extern "C" fn(context: *mut c_void),
    /// The timeout for a new try has come.
    pub retry: extern "C" fn(),
    /// A sync of this mailbox, a `struct mailbox`, has failed.
    pub sync_failed: unsafe extern "C" fn(mailbox: *mut c_void),
}
