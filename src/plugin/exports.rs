//! Every symbol that Dovecot looks up by name, and no other.
//!
//! Source of the names: Dovecot, `src/lib/module-dir.c`: `lib20_replication_plugin.so` gives
//! `replication_plugin_dependencies`, `_init` and `_deinit`, and `lib10_doveadm_replicator_plugin.so`
//! `doveadm_replicator_plugin_version`, `_init` and `_deinit`.

/// A pointer that C reads.
#[repr(transparent)]
pub struct CPointer<T>(*const T);

// SAFETY: the pointers are to constants; nobody writes through them.
unsafe impl<T> Sync for CPointer<T> {}

#[cfg(feature = "plugin")]
mod mail_plugin {
    use std::ffi::c_char;

    use super::CPointer;
    use crate::host::bindings as ffi;
    use crate::host::guard::guard;
    use crate::plugin::hooks;

    // No replication_plugin_version: of another release Dovecot would refuse it, and with it every login
    // and delivery. init compares instead.

    /// The plugins that must be loaded also: an array that ends with NULL. Of notify init asks the version.
    #[unsafe(no_mangle)]
    pub static replication_plugin_dependencies: [CPointer<c_char>; 2] =
        [CPointer(c"notify".as_ptr()), CPointer(std::ptr::null())];

    /// Called after loading.
    #[unsafe(no_mangle)]
    pub extern "C" fn replication_plugin_init(module: *mut ffi::module) {
        crate::mark();
        // First, so that a panic of init can be logged.
        guard("log init", (), hooks::init_log);
        guard("init", (), || hooks::init(module));
    }

    /// Called before unloading.
    #[unsafe(no_mangle)]
    pub extern "C" fn replication_plugin_deinit() {
        guard("deinit", (), hooks::deinit);
        hooks::unhook();
    }
}

#[cfg(feature = "doveadm")]
mod doveadm_module {
    use super::CPointer;
    use crate::host::bindings as ffi;
    use crate::host::guard::guard;
    use crate::plugin::doveadm;

    /// The ABI this module was built for; doveadm compares it with its own.
    #[unsafe(no_mangle)]
    pub static doveadm_replicator_plugin_version: CPointer<u8> =
        CPointer(ffi::DOVECOT_ABI_VERSION.as_ptr().cast());

    /// Called after loading.
    #[unsafe(no_mangle)]
    pub extern "C" fn doveadm_replicator_plugin_init(_module: *mut ffi::module) {
        crate::mark();
        guard("init", (), doveadm::init);
    }

    /// Called before unloading.
    #[unsafe(no_mangle)]
    pub extern "C" fn doveadm_replicator_plugin_deinit() {
        doveadm::deinit();
    }
}
