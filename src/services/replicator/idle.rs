//! Connections to `doveadm-server` between two syncs.
//!
//! A process that serves one sync after the other is spared its start, and the replicator a connection; stock's replicator begins each
//! anew. The one that was at work last is taken first, so that those which are not needed end soon: each holds a process of
//! `service doveadm`, and the peer's dsyncs need some too.

use std::time::Duration;

use super::socket::{Input, Socket};
use super::{Connection, Peer, Replicator, Turn};
use crate::engine::protocol::doveadm_server::DoveadmReader;
use crate::engine::time::{Mono, Now};

/// Syncs on one connection: what a long life does to a process of Dovecot (memory, old settings) stays bounded.
pub(super) const SYNCS_MAX: u32 = 50;
/// A connection ends when it has waited for so long, or for up to twice as long.
const IDLE: Duration = Duration::from_secs(1);

/// A sync that follows another of its user so soon has a process of its own, as with stock. On Maildir of 2.3 a sync that begins in the
/// very moment in which the last one ended, the peer's perhaps, while mail comes in on both nodes, more often meets Dovecot's
/// `Expunged message reappeared`, and a mail is doubled: it is as if the time that a process takes to start were needed.
pub(super) const REST: Duration = Duration::from_millis(100);

/// The process on the other side of a connection.
#[derive(Debug, Default)]
pub(super) struct Worker {
    pub(super) reader: DoveadmReader,
    /// Known with its first bytes.
    pub(super) pid: Option<i32>,
    /// Syncs that it has served.
    pub(super) syncs: u32,
    /// Whose sync was the last that is over, and since when.
    last: Option<(Vec<u8>, Mono)>,
}

impl Worker {
    fn has_just_synced(&self, now: Now, username: &[u8]) -> bool {
        let last = self.last.as_ref();
        last.is_some_and(|(user, end)| user == username && now.mono.since(*end) < REST)
    }
}

/// The connections that wait, the one that waits longest first.
#[derive(Debug, Default)]
pub(super) struct Idle {
    slots: Vec<(usize, Mono)>,
    next_look: Option<Mono>,
}

impl Idle {
    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// When [`Replicator::end_idle`] has something to do.
    pub(super) const fn next_look(&self) -> Option<Mono> {
        self.next_look
    }

    pub(super) fn forget(&mut self, slot: usize) {
        self.slots.retain(|(other, _)| *other != slot);
    }
}

impl Replicator {
    /// The user's sync is over.
    pub(super) fn put_idle(
        &mut self,
        now: Now,
        slot: usize,
        socket: Socket,
        mut worker: Worker,
        username: &[u8],
    ) {
        worker.last = Some((username.to_vec(), now.mono));
        self.put(slot, socket, Peer::Idle(worker));
        self.idle.slots.push((slot, now.mono));
        self.idle.next_look.get_or_insert(now.mono + IDLE);
    }

    pub(super) fn take_idle(
        &mut self,
        now: Now,
        username: &[u8],
    ) -> Option<(usize, Socket, Worker)> {
        if self.has_just_synced(now, username) {
            // The new connection is not to be one more.
            if !self.idle.slots.is_empty() {
                self.end_longest_idle();
            }
            return None;
        }
        while let Some((slot, _)) = self.idle.slots.pop() {
            let Some(Connection {
                mut socket,
                peer: Peer::Idle(worker),
                ..
            }) = self.take(slot)
            else {
                continue;
            };
            // What it may have said in the meantime is not said of the next sync.
            if Self::serve_idle(&mut socket) == Turn::Wait {
                return Some((slot, socket, worker));
            }
            self.free.push(slot);
        }
        None
    }

    /// Whether a sync of the user ended a moment ago. (Not seen if two others were served by its process since; that takes them longer.)
    fn has_just_synced(&self, now: Now, username: &[u8]) -> bool {
        let idle = self.idle.slots.iter().map(|(slot, _)| slot);
        idle.chain(self.syncs.values()).any(|&slot| {
            let connection = self.connections.get(slot).and_then(Option::as_ref);
            connection
                .and_then(|connection| connection.peer.worker())
                .is_some_and(|worker| worker.has_just_synced(now, username))
        })
    }

    fn end_longest_idle(&mut self) {
        let (slot, _) = self.idle.slots.remove(0);
        if self.take(slot).is_some() {
            self.free.push(slot);
        }
    }

    /// It has nothing to say: what is heard is its end.
    pub(super) fn serve_idle(socket: &mut Socket) -> Turn {
        match socket.read(&mut [0; 1]) {
            Input::Blocked => Turn::Wait,
            Input::Closed | Input::Data(_) => Turn::Close,
        }
    }

    /// Ends those that nobody has needed.
    pub(super) fn end_idle(&mut self, now: Now) {
        if self.idle.next_look.is_none_or(|due| due > now.mono) {
            return;
        }
        while let Some(&(_, since)) = self.idle.slots.first() {
            if now.mono.since(since) < IDLE {
                break;
            }
            self.end_longest_idle();
        }
        self.idle.next_look = (!self.idle.slots.is_empty()).then(|| now.mono + IDLE);
    }
}
