//! What is loaded into Dovecot: the mail plugin (feature `plugin`) and the doveadm module (feature
//! `doveadm`).
//!
//! `exports` holds every symbol that Dovecot looks up, and nothing else is exported. Nothing here
//! starts a thread.

mod exports;

#[cfg(feature = "plugin")]
pub mod callbacks;
#[cfg(feature = "doveadm")]
mod doveadm;
#[cfg(feature = "plugin")]
mod fifo;
#[cfg(feature = "plugin")]
mod hooks;
#[cfg(feature = "plugin")]
mod main_thread;
#[cfg(feature = "plugin")]
mod notifier;
#[cfg(feature = "plugin")]
mod socket;
