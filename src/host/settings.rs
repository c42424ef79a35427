//! The settings of a service, read from Dovecot's configuration process.
//!
//! Values are Dovecot's own after its checks; ranges of ours are in `c-shim/settings.c`.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::time::Duration;

use super::bindings as ffi;

/// All settings that the services know. A service that did not ask for a module of Dovecot's sees that
/// module's defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `base_dir`
    pub base_dir: PathBuf,
    /// `state_dir`
    pub state_dir: PathBuf,
    /// `replicator_host`: a socket's path if the port is 0.
    pub replicator_host: String,
    /// `replicator_port`
    pub replicator_port: u16,
    /// `auth_socket_path`
    pub auth_socket_path: PathBuf,
    /// `doveadm_socket_path`
    pub doveadm_socket_path: PathBuf,
    /// `doveadm_password`
    pub doveadm_password: String,
    /// `doveadm_port`; 0: none.
    pub doveadm_port: u16,
    /// `replication_dsync_parameters`
    pub replication_dsync_parameters: String,
    /// `replication_full_sync_interval`
    pub replication_full_sync_interval: Duration,
    /// `replication_max_conns`
    pub replication_max_conns: u32,
    /// `replication_sync_deadline`
    pub replication_sync_deadline: Duration,
    /// `replication_retry_min_interval`
    pub replication_retry_min_interval: Duration,
    /// `replication_retry_max_interval`
    pub replication_retry_max_interval: Duration,
    /// `replication_probe_timeout`
    pub replication_probe_timeout: Duration,
    /// User and group that the process drops to; `None` if it stays who it is.
    pub owner: Option<(u32, u32)>,
}

fn text(value: *const c_char) -> String {
    if value.is_null() {
        return String::new();
    }
    // SAFETY: not NULL, and Dovecot's settings pool keeps C strings until the service ends.
    let value = unsafe { CStr::from_ptr(value) };
    value.to_string_lossy().into_owned()
}

fn secs(value: u32) -> Duration {
    Duration::from_secs(value.into())
}

fn msecs(value: u32) -> Duration {
    Duration::from_millis(value.into())
}

/// Reads the settings of these modules and starts logging. The process exits on an error, as
/// Dovecot's services do. Called once, after the service was begun.
pub(super) fn read(modules: &[&CStr]) -> Settings {
    let modules: Vec<*const c_char> = modules
        .iter()
        .map(|name| name.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    let mut raw = std::mem::MaybeUninit::<ffi::replication_shim_settings>::zeroed();
    // SAFETY: `modules` ends with NULL and lives through the call; `raw` has room for what is written.
    unsafe { ffi::replication_shim_service_settings(modules.as_ptr(), raw.as_mut_ptr()) };
    // SAFETY: the call has filled it, and all zeros were a value as well.
    let raw = unsafe { raw.assume_init() };
    Settings {
        base_dir: text(raw.base_dir).into(),
        state_dir: text(raw.state_dir).into(),
        replicator_host: text(raw.replicator_host),
        replicator_port: u16::try_from(raw.replicator_port).unwrap_or_default(),
        auth_socket_path: text(raw.auth_socket_path).into(),
        doveadm_socket_path: text(raw.doveadm_socket_path).into(),
        doveadm_password: text(raw.doveadm_password),
        doveadm_port: u16::try_from(raw.doveadm_port).unwrap_or_default(),
        replication_dsync_parameters: text(raw.replication_dsync_parameters),
        replication_full_sync_interval: secs(raw.replication_full_sync_interval_secs),
        replication_max_conns: raw.replication_max_conns,
        replication_sync_deadline: secs(raw.replication_sync_deadline_secs),
        replication_retry_min_interval: msecs(raw.replication_retry_min_interval_msecs),
        replication_retry_max_interval: secs(raw.replication_retry_max_interval_secs),
        replication_probe_timeout: msecs(raw.replication_probe_timeout_msecs),
        owner: owner(),
    }
}

fn owner() -> Option<(u32, u32)> {
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: both are written to only during the call.
    let changes = unsafe { ffi::replication_shim_service_owner(&raw mut uid, &raw mut gid) };
    changes.then_some((uid, gid))
}

impl Settings {
    /// The value of `plugin { key = ... }`, if the module `mail` was asked for and it is set.
    #[must_use]
    pub fn plugin(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        // SAFETY: settings were read, as `self` is there; `key` is a C string that lives through
        // the call.
        let value = unsafe { ffi::replication_shim_service_plugin_setting(key.as_ptr()) };
        (!value.is_null()).then(|| text(value))
    }
}
