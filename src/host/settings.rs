//! The settings of a service, read from Dovecot's configuration process.
//!
//! Values are Dovecot's own after its checks; ranges of ours are in `c-shim/settings*.c`.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::time::Duration;

use super::bindings as ffi;
use super::daemon::dovecot_version;
use crate::engine::protocol::replicator_doveadm::StatusLayout;
use crate::engine::replicator::MAX_REPLICAS;
use crate::services::aggregator;
use crate::services::replicator::{self, DsyncDialect};

/// All settings that the services know. A service that reads one module of Dovecot's sees the
/// defaults of the others.
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

/// Reads the settings of this module, or all, and starts logging. The process exits on an error, as
/// Dovecot's services do. Called once, after the service was begun.
pub(super) fn read(module: Option<&CStr>) -> Settings {
    let module = module.map_or(std::ptr::null(), CStr::as_ptr);
    let mut raw = std::mem::MaybeUninit::<ffi::replication_shim_settings>::zeroed();
    // SAFETY: `module` is NULL or a C string; `raw` has room for what is written.
    unsafe { ffi::replication_shim_service_settings(module, raw.as_mut_ptr()) };
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

/// Expands 2.4's variables in a value for a user. Only after settings were read.
fn expand(value: &str, username: &[u8]) -> Option<Vec<u8>> {
    let value = CString::new(value).ok()?;
    let username = CString::new(username).ok()?;
    // SAFETY: both are C strings that live through the call.
    let expanded =
        unsafe { ffi::replication_shim_service_expand(value.as_ptr(), username.as_ptr()) };
    if expanded.is_null() {
        return None;
    }
    // SAFETY: not NULL: a C string that lives until the next call.
    Some(unsafe { CStr::from_ptr(expanded) }.to_bytes().to_vec())
}

/// The name of a user's nth replica in the configuration and in userdb.
fn replica_name(number: usize) -> String {
    match number {
        1 => "mail_replica".to_owned(),
        _ => format!("mail_replica{number}"),
    }
}

impl Settings {
    /// What of it the aggregator is told.
    #[must_use]
    pub fn aggregator(&self) -> aggregator::Config {
        aggregator::Config {
            state_dir: self.state_dir.clone(),
            replicator_host: self.replicator_host.clone(),
            replicator_port: self.replicator_port,
            owner: self.owner,
        }
    }

    /// What of it the replicator is told.
    #[must_use]
    pub fn replicator(&self) -> replicator::Settings {
        let version = dovecot_version();
        replicator::Settings {
            base_dir: self.base_dir.clone(),
            state_dir: self.state_dir.clone(),
            auth_socket_path: self.auth_socket_path.clone(),
            doveadm_socket_path: self.doveadm_socket_path.clone(),
            doveadm_password: self.doveadm_password.clone(),
            doveadm_port: self.doveadm_port,
            replication_dsync_parameters: self.replication_dsync_parameters.clone(),
            replication_full_sync_interval: self.replication_full_sync_interval,
            replication_max_conns: self.replication_max_conns,
            mail_replica: (1..=MAX_REPLICAS)
                .map(|number| self.of_user(&replica_name(number)).unwrap_or_default())
                .collect(),
            noreplicate: self.of_user("noreplicate"),
            replication_sync_deadline: self.replication_sync_deadline,
            replication_retry_min_interval: self.replication_retry_min_interval,
            replication_retry_max_interval: self.replication_retry_max_interval,
            replication_probe_timeout: self.replication_probe_timeout,
            status_layout: if version >= (2, 3, 20) {
                StatusLayout::Seven
            } else {
                StatusLayout::Six
            },
            expand: (version >= (2, 4, 0)).then_some(expand as replicator::Expand),
            dsync_dialect: if version >= (2, 4, 0) {
                DsyncDialect::V2_4
            } else {
                DsyncDialect::V2_3
            },
        }
    }

    /// A user's setting without a user, of `plugin { }` on 2.3, if all settings were read and it is set.
    #[must_use]
    pub fn of_user(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        // SAFETY: settings were read, as `self` is there; `key` is a C string that lives through
        // the call.
        let value = unsafe { ffi::replication_shim_service_user_setting(key.as_ptr()) };
        (!value.is_null()).then(|| text(value))
    }
}
