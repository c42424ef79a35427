//! A walk over all users, a part of them at a time, that finds whose time has come.
//!
//! So an idle user needs no place in a timer, and the walk costs the same whether it is due or not.

use std::time::Duration;

use super::Replicator;
use super::journal::Entry;
use super::periodic;
use super::queue::Place;
use super::record::RecordChange;
use super::users::{RowId, UserId};
use crate::engine::Priority;
use crate::engine::time::{Mono, Now};

/// Each user is looked at once in this many steps at least.
const STEPS: u32 = 60;
const FEWEST_USERS_IN_STEP: u32 = 4096;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// With this many rows ready the walk waits: there is enough to do.
const MAX_READY: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Sweep {
    next: Mono,
    cursor: u32,
    /// This walk has met rows that wait for their first sync, or for the one after an unclean boot.
    found_first_syncs: bool,
    found_resyncs: bool,
    /// Whether the end of the syncs after an unclean boot is still to be told to the store.
    pub(super) boot_is_unsettled: bool,
}

impl Sweep {
    pub(super) fn next(&self) -> Mono {
        self.next
    }
}

impl Replicator {
    pub(super) fn sweep_soon(&mut self, now: Now) {
        self.sweep.next = self.sweep.next.min(now.mono + SHORTEST_PAUSE);
    }

    pub(super) fn sweep_if_due(&mut self, now: Now) {
        if self.sweep.next > now.mono {
            return;
        }
        let slots = self.users.slots();
        let step = (slots / STEPS + 1).max(FEWEST_USERS_IN_STEP);
        let mut looked_at = 0;
        while looked_at < step && self.sweep.cursor < slots && self.queue.ready_len() < MAX_READY {
            self.look_at(now, UserId(self.sweep.cursor));
            self.sweep.cursor += 1;
            looked_at += 1;
        }
        let mut found = self.sweep.found_first_syncs || self.sweep.found_resyncs;
        if self.sweep.cursor >= slots {
            found |= self.end_walk();
        }
        let pause = match found || slots > FEWEST_USERS_IN_STEP {
            true => SHORTEST_PAUSE,
            false => (self.config.full_sync_interval / STEPS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE),
        };
        self.sweep.next = now.mono + pause;
    }

    /// Whether the walk met rows that wait for their first sync.
    fn end_walk(&mut self) -> bool {
        self.sweep.cursor = 0;
        let found_resyncs = std::mem::take(&mut self.sweep.found_resyncs);
        let found_first_syncs = std::mem::take(&mut self.sweep.found_first_syncs);
        if self.sweep.boot_is_unsettled && !found_resyncs {
            self.sweep.boot_is_unsettled = false;
            self.journal.push(Entry::Change(RecordChange::BootSettled));
        }
        found_first_syncs || found_resyncs
    }

    fn look_at(&mut self, now: Now, user: UserId) {
        let is_left_out = self.is_left_out(user);
        if is_left_out && self.is_looked_up(now.mono, user) {
            return;
        }
        for id in self.users.row_ids(user) {
            match self.queue.place(id) {
                Place::Idle => self.look_at_idle(now, id, is_left_out),
                _ => self.forget_resync(id),
            }
        }
    }

    /// A row that is queued or being synced is pending in the store: that is as good.
    fn forget_resync(&mut self, id: RowId) {
        if let Some(row) = self.users.row_mut(id) {
            row.resync &= !row.is_pending();
            self.sweep.found_resyncs |= row.resync;
        }
    }

    fn look_at_idle(&mut self, now: Now, id: RowId, is_left_out: bool) {
        let Some(row) = self.users.row(id) else {
            return;
        };
        let horizon = self.clock.horizon;
        let username = self.users.name(id.user);
        let spread = periodic::first_sync_spread_secs(self.users.len());
        let is_new = row.last_fast_sync.0 == 0 && row.last_success.0 == 0 && !is_left_out;
        if row.resync {
            if periodic::is_first_sync_due(username, spread, horizon, now.wall) {
                if let Some(row) = self.users.row_mut(id) {
                    row.resync = false;
                }
                self.raise(now, id, Priority::Low, false);
            } else {
                self.sweep.found_resyncs = true;
            }
        } else if is_new {
            // A first seen time ahead of the clock is from before that was set back.
            let since = match row.last_update > now.wall {
                true => horizon,
                false => horizon.max(row.last_update),
            };
            if periodic::is_first_sync_due(username, spread, since, now.wall) {
                self.enqueue(now, id);
            } else {
                self.sweep.found_first_syncs = true;
            }
        } else if self.is_full_sync_due(now, id) {
            self.enqueue(now, id);
        }
    }
}
