//! Coming back with what the store kept.

use super::Replicator;
use super::backoff::doubled;
use super::config::MAX_REPLICAS;
use super::log::Level;
use super::queue::{Place, key};
use super::record::{Boot, Record, Stale};
use super::users::{Cut, Row, RowId, UserId};
use crate::engine::Priority;
use crate::engine::time::Now;

fn cut_of(record: &Record) -> Cut {
    let is_stale = record.stale == Stale::State;
    match record.has_state {
        // Else the peer may have told of a sync without its state.
        true if is_stale && record.failures > 0 => Cut::Known,
        true => Cut::Unknown,
        false if is_stale => Cut::Known,
        false => Cut::No,
    }
}

impl Replicator {
    /// At the start, for each record of the store, before `handle_loaded`. A record without a replica beside others is
    /// what a crash left of the first lookup's writes: the user is looked up before its next sync.
    pub fn load(&mut self, now: Now, record: Record) {
        let is_new = self.users.find(&record.username).is_none();
        let Some(user) = self.users.insert(&record.username) else {
            let text = "A record of the store is left out: not a username, or too many".to_owned();
            return self.log.say(Level::Error, text);
        };
        let replicas = self.users.replicas(user);
        if !is_new && usize::from(replicas) > MAX_REPLICAS {
            return;
        }
        let peer = match record.target.as_slice() {
            [] => None,
            target => self.peers.add_user(target),
        };
        let row = Row {
            last_update: record.last_update,
            last_fast_sync: record.last_fast_sync,
            last_full_sync: record.last_full_sync,
            last_success: record.last_success,
            peer,
            priority: record.priority,
            failed: record.failures > 0,
            force_full: record.force_full,
            has_state: record.has_state,
            stale: record.stale,
            full_sync_secs: 0,
            resync: false,
            cut: cut_of(&record),
            dirty: false,
        };
        let mut rows: Vec<Row> = match is_new {
            true => Vec::new(),
            false => self.users.rows(user).cloned().collect(),
        };
        rows.push(row);
        let id = RowId {
            user,
            replica: u8::try_from(rows.len() - 1).unwrap_or(u8::MAX),
        };
        self.users.set_rows(user, rows);
        self.restore_work(now, id, &record);
        self.restore_settling(now, id);
        self.recount(user);
    }

    /// All records are loaded: what is pending goes on. Nothing is started or listed before.
    pub fn handle_loaded(&mut self, now: Now, boot: Boot) {
        self.clock.observe(now);
        for slot in 0..self.users.slots() {
            let user = UserId(slot);
            for id in self.users.row_ids(user) {
                if let Some(row) = self.users.row_mut(id) {
                    row.resync = boot == Boot::Unclean;
                }
            }
        }
        self.sweep.boot_is_unsettled = boot == Boot::Unclean;
        self.loaded = true;
        self.list_users_if_due(now);
        self.advance(now);
    }

    fn restore_settling(&mut self, now: Now, id: RowId) {
        if self
            .users
            .row(id)
            .is_some_and(|row| row.stale == Stale::Changes)
        {
            self.settle_later(now, id);
            if let (Place::Idle, Some(at)) = (self.queue.place(id), self.settling_at(id)) {
                self.queue.set_place(id, Place::Retry(at));
            }
        }
    }

    fn restore_work(&mut self, now: Now, id: RowId, record: &Record) {
        let failures = record.failures;
        let is_pending = record.priority != Priority::None || record.force_full;
        if failures == 0 && !is_pending {
            return;
        }
        let waited = now.wall.0.saturating_sub(record.last_update.0);
        let since = super::queue::millis(now.mono).saturating_sub(i64::from(waited) * 1000);
        let work = self.queue.work_mut(id);
        work.since = since;
        work.failures = failures;
        work.reason = record.reason.as_str().into();
        let priority = match record.force_full {
            true => record.priority.max(Priority::Low),
            false => record.priority,
        };
        self.queue.set_key(id, key(since, priority));
        let place = match failures {
            0 => Place::Ready,
            _ => {
                let (min, max) = (
                    self.config.retry_min_interval,
                    self.config.retry_max_interval,
                );
                // Whatever it waited for may have been mended by what brought the new start.
                let pause = self.jitter.part_of(doubled(min, max, failures));
                Place::Retry(now.mono + pause)
            }
        };
        self.queue.set_place(id, place);
    }
}
