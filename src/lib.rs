//! Mailbox replication for Dovecot: the mail plugin, the aggregator and the replicator.
//!
//! One package builds everything; a Cargo feature says for which host process. docs/ARCHITECTURE.md
//! names the rooms and the arrows between them. `engine` is pure and always there; `host` and
//! `plugin` are the only rooms that touch Dovecot, and the only ones with `unsafe`.

pub mod cli;

pub mod engine;

#[cfg(feature = "services")]
pub mod services;

#[cfg(any(feature = "plugin", feature = "daemon", feature = "doveadm"))]
pub mod host;

#[cfg(any(feature = "plugin", feature = "doveadm"))]
pub mod plugin;

/// By this mark `make install` and `make uninstall` know a file as ours.
#[cfg(any(feature = "plugin", feature = "daemon", feature = "doveadm"))]
static MARK: [u8; 26] = *b"dovecot-replication module";

/// Called where each of our files begins: a linker takes out what nothing refers to, `#[used]` or not.
#[cfg(any(feature = "plugin", feature = "daemon", feature = "doveadm"))]
fn mark() {
    std::hint::black_box(&MARK);
}
