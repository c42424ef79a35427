//! What happens to a row or a user whatever the cause: raised, moved, counted, written, removed.

use super::journal::Entry;
use super::log::{Level, LogEvent};
use super::queue::{self, Place, millis};
use super::record::{Record, RecordChange, Stale, Write};
use super::status::Bucket;
use super::users::{Row, RowId, UserId};
use super::waiters::Whom;
use super::{Busy, Replicator};
use crate::engine::Priority;
use crate::engine::time::Now;

impl Replicator {
    /// The next change of the store. Changes of a row that were not taken yet are one.
    pub fn poll_write(&mut self) -> Option<Write> {
        loop {
            let (seq, entry) = self.journal.take()?;
            let change = match entry {
                Entry::Change(change) => Some(change),
                Entry::Row(row) => self.put(row),
            };
            if let Some(change) = change {
                self.journal.given(seq);
                return Some(Write { seq, change });
            }
            self.settle();
        }
    }

    fn put(&mut self, id: RowId) -> Option<RecordChange> {
        let row = self.users.row_mut(id).filter(|row| row.dirty)?;
        row.dirty = false;
        let state = self.journal.take_state(id).unwrap_or_default();
        let record = self.record(id)?;
        Some(RecordChange::Put { record, state })
    }

    /// The row as it is to be found after a crash: what a sync that runs was started for is still pending.
    fn record(&self, id: RowId) -> Option<Record> {
        let row = self.users.row(id)?;
        let work = self.queue.work(id);
        let running = match self.queue.place(id) {
            Place::Running(sync) => self.running.get(&sync),
            _ => None,
        };
        Some(Record {
            username: self.users.name(id.user).to_vec(),
            target: self.target_of(row).to_vec(),
            priority: row
                .priority
                .max(running.map_or(Priority::None, |running| running.priority)),
            last_update: row.last_update,
            last_fast_sync: row.last_fast_sync,
            last_full_sync: row.last_full_sync,
            last_success: row.last_success,
            failures: match row.failed {
                true => work.map_or(1, |work| work.failures.max(1)),
                false => 0,
            },
            reason: match row.failed {
                true => work.map_or(String::new(), |work| work.reason.to_string()),
                false => String::new(),
            },
            force_full: row.force_full || running.is_some_and(|running| running.forced),
            has_state: row.has_state,
            stale: match running {
                Some(_) => Stale::State,
                None => row.stale,
            },
        })
    }

    /// The target of the row, empty if it has none.
    pub(super) fn target_of(&self, row: &Row) -> &[u8] {
        row.peer.map_or(&[], |peer| self.peers.target(peer))
    }

    /// The row has changed: it is to be written.
    pub(super) fn touch(&mut self, id: RowId) {
        if let Some(row) = self.users.row_mut(id) {
            if !row.dirty {
                row.dirty = true;
                self.journal.push(Entry::Row(id));
            }
        }
    }

    /// Something has changed for all replicas of the user.
    pub(super) fn raise_user(&mut self, now: Now, user: UserId, priority: Priority, full: bool) {
        for id in self.users.row_ids(user) {
            self.raise(now, id, priority, full);
        }
    }

    /// Something has changed for the row; `full`: only a full sync will do.
    pub(super) fn raise(&mut self, now: Now, id: RowId, priority: Priority, full: bool) {
        let Some(row) = self.users.row_mut(id) else {
            return;
        };
        if priority > row.priority || (full && !row.force_full) {
            if !row.is_pending() {
                row.last_update = now.wall;
            }
            row.priority = row.priority.max(priority);
            row.force_full |= full;
            self.touch(id);
        }
        self.enqueue(now, id);
    }

    /// The row is to be synced as soon as it can be. One that waits for its next try after a failure goes on waiting.
    pub(super) fn enqueue(&mut self, now: Now, id: RowId) {
        let Some(row) = self.users.row(id) else {
            return;
        };
        let priority = match row.force_full {
            true => row.priority.max(Priority::Low),
            false => row.priority,
        };
        let key = queue::key(millis(now.mono), priority);
        match self.queue.place(id) {
            Place::Idle => {
                self.queue.work_mut(id).since = millis(now.mono);
                self.queue.set_key(id, key);
                self.make_ready(id);
            }
            Place::Ready | Place::Parked | Place::Lookup | Place::Peer(_) => {
                let earlier = self.queue.work(id).map_or(key, |work| work.key.min(key));
                self.queue.set_key(id, earlier);
                self.recount(id.user);
            }
            Place::Retry(at) => self.bring_forward(now, id, at),
            Place::Running(_) => self.recount(id.user),
        }
    }

    /// Queued, with the key it has; with its peer if that is away.
    pub(super) fn make_ready(&mut self, id: RowId) {
        let peer = self.users.row(id).and_then(|row| row.peer);
        let place = match peer.filter(|peer| self.peers.is_down(*peer)) {
            Some(peer) => Place::Peer(peer),
            None => Place::Ready,
        };
        self.place(id, place);
        if place != Place::Ready {
            self.refuse_waiters(Whom::User(id.user), "Peer is not reachable");
        }
    }

    pub(super) fn place(&mut self, id: RowId, place: Place) {
        self.queue.set_place(id, place);
        self.recount(id.user);
    }

    /// The user's sync or lookup is over: what waited for its end goes on.
    pub(super) fn release(&mut self, user: UserId) {
        self.busy.remove(&user);
        for id in self.users.row_ids(user) {
            if matches!(self.queue.place(id), Place::Parked | Place::Lookup) {
                self.make_ready(id);
            }
        }
    }

    /// Puts the user where the counters are to have it.
    pub(super) fn recount(&mut self, id: UserId) {
        let bucket = self.bucket(id);
        if let Some(user) = self.users.get_mut(id) {
            let before = std::mem::replace(&mut user.bucket, bucket);
            self.counters.move_user(before, bucket);
        }
    }

    pub(super) fn bucket(&self, id: UserId) -> Bucket {
        if self.users.get(id).is_none_or(|user| user.left_out) {
            return Bucket::Uncounted;
        }
        let mut priority = Priority::None;
        let (mut failed, mut queued) = (false, false);
        for row_id in self.users.row_ids(id) {
            let Some(row) = self.users.row(row_id) else {
                continue;
            };
            let place = self.queue.place(row_id);
            failed |= row.failed || self.is_away(place);
            // What is not tried now is no queued request, whatever it waits for: health checks look at the failed.
            if self.is_away(place) || row.failed && matches!(place, Place::Retry(_)) {
                continue;
            }
            priority = priority.max(row.priority);
            queued |= match place {
                Place::Ready | Place::Parked | Place::Lookup => true,
                Place::Peer(_) => !row.failed,
                Place::Idle | Place::Retry(_) | Place::Running(_) => false,
            };
        }
        match (priority, failed, queued) {
            (Priority::Sync, _, _) => Bucket::QueuedSync,
            (Priority::High, _, _) => Bucket::QueuedHigh,
            (Priority::Low, _, _) => Bucket::QueuedLow,
            (Priority::None, true, true) => Bucket::QueuedFailed,
            (Priority::None, true, false) => Bucket::WaitingFailed,
            (Priority::None, false, true) => Bucket::QueuedFullResync,
            (Priority::None, false, false) => Bucket::Idle,
        }
    }

    /// Whether it waits for a peer that is known to be away.
    pub(super) fn is_away(&self, place: Place) -> bool {
        matches!(place, Place::Peer(peer) if self.peers.is_down(peer))
    }

    /// Forgets the rows of the user, here and in the store; the user stays, with one empty row.
    pub(super) fn remove_rows(&mut self, user: UserId) {
        let username = self.users.name(user).to_vec();
        for id in self.users.row_ids(user) {
            self.queue.take(id);
            self.journal.take_state(id);
            let Some(row) = self.users.row(id) else {
                continue;
            };
            let (peer, target) = (row.peer, self.target_of(row).to_vec());
            self.journal.push(Entry::Change(RecordChange::Remove {
                username: username.clone(),
                target,
            }));
            if let Some(peer) = peer {
                self.peers.remove_user(peer);
            }
        }
        self.users.set_rows(user, vec![Row::default()]);
    }

    /// Takes the user out of syncing; stays known, so that what is notified can be dropped.
    pub(super) fn leave_out(&mut self, user: UserId) {
        self.refuse_waiters(Whom::User(user), "User is not replicated");
        self.remove_rows(user);
        if let Some(user) = self.users.get_mut(user) {
            user.left_out = true;
        }
        self.recount(user);
    }

    /// The user is gone. No sync of it may run.
    pub(super) fn remove_user(&mut self, user: UserId, reason: &str) {
        debug_assert!(!matches!(self.busy.get(&user), Some(Busy::Sync(_))));
        self.refuse_waiters(Whom::User(user), reason);
        self.remove_rows(user);
        self.busy.remove(&user);
        self.lookups.retain(|_, (looked_up, _)| *looked_up != user);
        if let Some(removed) = self.users.get(user) {
            self.counters.move_user(removed.bucket, Bucket::Uncounted);
        }
        self.users.remove(user);
    }

    pub(super) fn refuse_waiters(&mut self, whom: Whom, reason: &str) {
        let answers = self.waiters.refuse(whom, reason);
        self.totals.waiters_failed += answers.len() as u64;
        self.actions.extend(answers);
    }

    /// Says something of a user.
    pub(super) fn say_of_user(&mut self, level: Level, user: UserId, text: String) {
        self.log.push(LogEvent {
            level,
            username: Some(self.users.name(user).to_vec()),
            target: None,
            text,
        });
    }

    /// Says something of a row.
    pub(super) fn say_of_row(&mut self, level: Level, id: RowId, text: String) {
        let target = self.users.row(id).map(|row| self.target_of(row).to_vec());
        self.log.push(LogEvent {
            level,
            username: Some(self.users.name(id.user).to_vec()),
            target,
            text,
        });
    }
}
