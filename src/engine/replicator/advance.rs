//! What goes on after each input and at each timeout: all that can begin now begins.

use super::action::{Action, LookupId};
use super::config::MAX_LOOKUPS;
use super::peers::Gate;
use super::queue::{Place, millis};
use super::users::{RowId, UserId};
use super::{Busy, Replicator};
use crate::engine::time::{Mono, Now};

/// A row that failed this often in a row has no head start any more.
const FAILURES_WITH_HEAD_START: u32 = 3;

impl Replicator {
    /// The time of `next_timeout` has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.clock.observe(now);
        if self.loaded {
            self.check_progress(now);
            self.list_users_if_due(now);
            self.sweep_if_due(now);
            self.work_on_commands(now);
        }
        self.advance(now);
    }

    /// When `handle_timeout` is to be called next.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Mono> {
        if !self.loaded {
            return None;
        }
        if self.commands.has_work() || self.can_look_for_missing() {
            return Some(Mono(0));
        }
        let lookups = self
            .unknown
            .next_due()
            .filter(|_| self.may_look_up_unknown());
        let due = [
            self.queue.next_retry(),
            self.peers.next_probe(),
            self.local_server.next_try(),
            self.next_progress_check(),
            self.listing.next(),
            lookups,
        ];
        Some(due.into_iter().flatten().fold(self.sweep.next(), Mono::min))
    }

    /// The store has this write and all before it, safe from SIGKILL.
    pub fn handle_stored(&mut self, seq: u64) {
        self.journal.stored(seq);
        self.settle();
    }

    pub(super) fn advance(&mut self, now: Now) {
        if self.loaded {
            self.retry(now);
            self.probe_if_due(now);
            self.look_up_unknown(now);
            self.look_for_missing(now);
            self.start_ready(now);
        }
        self.settle();
    }

    /// Says what the store's progress, or a lookup, allows to be said.
    pub(super) fn settle(&mut self) {
        let unknown = &self.unknown;
        let said = self.journal.settled(|id| unknown.contains(id));
        self.actions.extend(said);
    }

    fn retry(&mut self, now: Now) {
        while let Some(id) = self.queue.due_retry(now.mono) {
            let failures = self.queue.work(id).map_or(0, |work| work.failures);
            if failures > FAILURES_WITH_HEAD_START {
                self.queue.set_key(id, millis(now.mono));
            }
            self.make_ready(id);
        }
    }

    fn probe_if_due(&mut self, now: Now) {
        while let Some(peer) = self.peers.due_probe(now.mono) {
            self.probe(now, peer);
        }
    }

    /// Names that are not known leave half of the lookups to the users that are due.
    fn may_look_up_unknown(&self) -> bool {
        self.unknown.lookups() < MAX_LOOKUPS / 2 && self.open_lookups() < MAX_LOOKUPS
    }

    pub(super) fn open_lookups(&self) -> usize {
        self.lookups.len() + self.unknown.lookups()
    }

    fn look_up_unknown(&mut self, now: Now) {
        while self.may_look_up_unknown() {
            let lookup = LookupId(self.last_id + 1);
            let Some(username) = self.unknown.begin_lookup(now.mono, lookup) else {
                return;
            };
            self.last_id = lookup.0;
            self.actions
                .push_back(Action::LookupUser { lookup, username });
        }
    }

    fn start_ready(&mut self, now: Now) {
        while self.local_server.may_start(now.mono)
            && self.running.len() < self.config.max_conns.max(1)
            && self.open_lookups() < MAX_LOOKUPS
        {
            let Some(id) = self.queue.first_ready() else {
                return;
            };
            self.start(now, id);
        }
    }

    /// Takes the row one step on: to its lookup, to its peer's probe, or to its sync.
    fn start(&mut self, now: Now, id: RowId) {
        if self.busy.contains_key(&id.user) {
            self.place(id, Place::Parked);
            return;
        }
        let peer = self.users.row(id).and_then(|row| row.peer);
        match peer.filter(|_| self.is_looked_up(now.mono, id.user)) {
            None => {
                self.place(id, Place::Lookup);
                self.look_up(id.user, super::Why::Due);
            }
            Some(peer) => match self.peers.gate(peer) {
                Gate::Open if self.is_put_off(id) => self.wait_for_peer(now, id),
                Gate::Open => self.start_sync(now, id, peer),
                Gate::Closed => {
                    self.place(id, Place::Peer(peer));
                    self.probe(now, peer);
                }
            },
        }
    }

    pub(super) fn look_up(&mut self, user: UserId, why: super::Why) {
        let lookup = LookupId(self.next_id());
        self.lookups.insert(lookup, (user, why));
        self.busy.insert(user, Busy::Lookup(lookup));
        self.actions.push_back(Action::LookupUser {
            lookup,
            username: self.users.name(user).to_vec(),
        });
    }
}
