//! What runs inside a Dovecot service process, seen from its host.
//!
//! The host (libdovecot's ioloop, or a loop in a test) watches one descriptor and one timeout and
//! passes on the connections that the master's listeners accept. Everything else is the daemon's.

use std::os::fd::{OwnedFd, RawFd};

use crate::engine::time::{Mono, Now};

/// A service: the aggregator or the replicator.
pub trait Daemon {
    /// Readable when [`Daemon::handle_ready`] has work: the epoll descriptor of the daemon's own poll.
    fn poll_fd(&self) -> RawFd;

    /// A client connected to the listener of this socket name (`replicator-doveadm`), or `fd` is the
    /// read end of a fifo.
    fn handle_connection(&mut self, now: Now, listener: &str, fd: OwnedFd, fifo: bool);

    /// The poll descriptor is readable.
    fn handle_ready(&mut self, now: Now);

    /// When [`Daemon::handle_timeout`] is to be called next.
    fn next_timeout(&self) -> Option<Mono>;

    /// The time of [`Daemon::next_timeout`] has come.
    fn handle_timeout(&mut self, now: Now);

    /// The master reloads or stops: hand over what is held. Called once, last.
    fn handle_shutdown(&mut self, now: Now);

    /// How many accepted connections have closed since the last call; the master counts them.
    fn take_closed_connections(&mut self) -> usize;
}
