//! Dovecot, wrapped safely.
//!
//! Bindings and `unsafe` stay in this room and in `plugin`. Pointers that Dovecot hands to a hook are
//! wrapped for the time of that hook; nothing here keeps one.

#[cfg(feature = "plugin")]
pub mod abi;
pub mod bindings;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod guard;
pub mod log;
pub mod thread;

#[cfg(feature = "doveadm")]
pub mod doveadm;
#[cfg(feature = "plugin")]
pub mod mail;
#[cfg(feature = "daemon")]
pub mod settings;
#[cfg(feature = "plugin")]
pub mod timeout;
