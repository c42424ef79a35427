//! The doveadm module: `doveadm replicator show|peers|verify`, and what replication needs of `sync` and `dsync-server`.
//!
//! Loaded into doveadm and doveadm-server. Whatever fails here, panics included, the stock commands go on as if
//! the module were not there.

mod commands;
mod dsync;
mod mailboxes;
mod observer;
mod verify;
mod watchdog;

use log::LevelFilter;

use crate::host::guard::{restore_panic_hook, silence_panic_hook};
use crate::host::log as dovecot_log;

/// Registers the subcommands and wraps `sync` and `dsync-server`.
pub fn init() {
    dovecot_log::init(LevelFilter::Info);
    silence_panic_hook();
    commands::register();
    watchdog::init();
    dsync::wrap_commands();
}

/// Leaves nothing of the module behind that could be called.
pub fn deinit() {
    watchdog::deinit();
    mailboxes::unwrap();
    restore_panic_hook();
}
