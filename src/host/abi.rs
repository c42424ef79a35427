//! Which Dovecot this process is, and which one this build is for.
//!
//! Nothing else of Dovecot may be used before the two are known to be one: structures differ from
//! release to release, and functions that are named here may be missing (c-shim/weak.h).

use std::ffi::CStr;

use super::bindings as ffi;

/// What this build is for, as `2.4.ABIv1`.
#[must_use]
pub fn built_for() -> &'static CStr {
    // With the NUL that a string of C ends with.
    CStr::from_bytes_until_nul(ffi::DOVECOT_ABI_VERSION).unwrap_or_default()
}

/// What runs; `None` if it does not say so.
#[must_use]
pub fn running() -> Option<&'static CStr> {
    // SAFETY: called on the main thread, as every hook is.
    let version = unsafe { ffi::replication_shim_running_abi() };
    // SAFETY: NULL or a constant of the notify plugin, which is unloaded after this one.
    (!version.is_null()).then(|| unsafe { CStr::from_ptr(version) })
}

/// Whether Dovecot's log functions are there, of whatever release.
#[must_use]
pub fn can_log() -> bool {
    // SAFETY: it compares addresses.
    unsafe { ffi::replication_shim_can_log() }
}
