//! When fast syncs do not look at everything: a stale state, and the one full sync that makes up for it.
//!
//! dsync exports the flags of mails up to the last UID that its state calls common; a mail above that is exported as a new one, and
//! where the other side has it already its flags are ignored (`dsync-mailbox-export.c`, `dsync-mailbox-import.c` of 2.3.13 to 2.4.5, tried). So
//! a flag set here on a mail that came by a sync whose state we do not have is not brought over, and the new state says that
//! all is well. A row is stale from when there was such a sync: the peer's, of which it told no state (or while ours was at work);
//! or ours, if it failed after it had begun. What is notified for a stale row is synced at once, fast; when the row has been
//! quiet for a moment a full sync follows, from the state and without `-f`, never before a fast one has come through. That is kept in the store; a sync that runs when we are killed has failed (its mark may be
//! lost with the last 20 ms of writes).

use std::time::Duration;

use super::Replicator;
use super::action::Mailboxes;
use super::queue::Place;
use super::record::Stale;
use super::users::{Cut, Row, RowId};
use crate::engine::time::{Mono, Now};

/// Nothing is notified for so long before the full sync.
const QUIET: Duration = Duration::from_secs(2);
/// A row that is never quiet has waited so long.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// From one full sync to the next that follows a stale state: this, or so many times what the last one took.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(10);
const TIMES_ITS_DURATION: u32 = 20;

/// A full sync that is to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settling {
    since: Mono,
    at: Mono,
}

impl Row {
    /// A full sync after one that was cut off takes a mail that is only half over for one that was expunged; a fast one does not
    /// (tried on 2.3.13, 2.3.19.1 and 2.4.5).
    pub(super) fn is_fast_first(&self) -> bool {
        self.has_state && (self.stale == Stale::State || self.cut != Cut::No)
    }

    /// Without a state dsync would look for common mails by itself, and that also where another sync was cut off just before.
    /// `refusals`: of syncs that began with the last modseqs, or in what comes after that.
    pub(super) fn mailboxes(&self, refusals: u8) -> Mailboxes {
        match self.cut {
            Cut::Known => Mailboxes::WithFirstModseq,
            // The peer, should it be behind, is given a moment.
            Cut::RefusedOnce => match refusals {
                0 | 1 => Mailboxes::WithLastModseq,
                2 => Mailboxes::WithoutModseqs,
                _ => Mailboxes::WithFirstMail,
            },
            Cut::Unknown if !self.has_state => Mailboxes::WithFirstModseq,
            Cut::No | Cut::Unknown | Cut::Refused => Mailboxes::AsTheyAre,
        }
    }
}

impl Replicator {
    /// A sync of ours failed after it had begun.
    pub(super) fn mark_cut_off(&mut self, id: RowId) {
        if let Some(row) = self.users.row_mut(id) {
            row.stale = Stale::State;
            row.cut = match row.cut {
                Cut::RefusedOnce | Cut::Refused => Cut::RefusedOnce,
                Cut::No | Cut::Unknown | Cut::Known => Cut::Known,
            };
            self.touch(id);
        }
    }

    /// A fast sync was not cut off.
    pub(super) fn came_through(&mut self, id: RowId) {
        if let Some(row) = self.users.row_mut(id) {
            row.cut = Cut::No;
            if row.has_state && row.stale == Stale::State {
                row.stale = Stale::Changes;
                self.touch(id);
            }
        }
    }

    /// There was a sync whose state we do not have.
    pub(super) fn mark_stale(&mut self, id: RowId) {
        if let Some(row) = self.users.row_mut(id) {
            if row.stale == Stale::No {
                row.stale = Stale::State;
                self.touch(id);
            }
        }
    }

    /// The peer's sync has left this state; with it the row is as after a sync of ours.
    pub(super) fn take_peers_state(&mut self, id: RowId, full: bool, state: &[u8]) {
        let place = self.queue.place(id);
        let is_settling = self.is_settling(id);
        let Some(row) = self.users.row_mut(id) else {
            return;
        };
        // A sync that runs may have begun from a state older than the peer's, and brings its own. A state that is not of a full sync
        // need not have all mailboxes: without one before it the next sync is to be full.
        let is_running = matches!(place, Place::Running(_));
        if is_running && full && !state.is_empty() && !row.has_state {
            // Should ours be cut off, the next one has something to begin from: it need not be full, and lose mail.
            row.stale = Stale::State;
            self.keep_state(id, state.to_vec());
            return self.touch(id);
        }
        if !is_running && !state.is_empty() && row.cut == Cut::RefusedOnce {
            // The peer's has gone on from the mailboxes, or from what there was to go on from: nothing is half over.
            row.cut = Cut::Refused;
        }
        if is_running || state.is_empty() || row.peer.is_none() || !(full || row.has_state) {
            return self.mark_stale(id);
        }
        // What became of one that was cut off, or that a crash made us forget, that state does not say.
        if full || !is_settling && row.cut == Cut::No {
            row.stale = Stale::No;
        }
        if full && is_settling {
            self.queue.work_mut(id).settling = None;
            if matches!(place, Place::Retry(_)) && self.queue.failures(id) == 0 {
                self.place(id, Place::Idle);
            }
        }
        self.keep_state(id, state.to_vec());
        self.touch(id);
    }

    /// A full sync is to follow when the row is quiet.
    pub(super) fn settle_later(&mut self, now: Now, id: RowId) {
        let Some(row) = self.users.row(id) else {
            return;
        };
        let duration = Duration::from_secs(row.full_sync_secs.into());
        let interval = SHORTEST_INTERVAL.max(duration * TIMES_ITS_DURATION);
        let passed = now.wall.0.saturating_sub(row.last_full_sync.0);
        let earliest = now.mono + interval.saturating_sub(Duration::from_secs(passed.into()));
        let work = self.queue.work_mut(id);
        let since = work.settling.map_or(now.mono, |settling| settling.since);
        let at = (now.mono + QUIET).min(since + LONGEST_WAIT).max(earliest);
        work.settling = Some(Settling { since, at });
    }

    pub(super) fn is_settling(&self, id: RowId) -> bool {
        self.settling_at(id).is_some()
    }

    /// When the full sync is to be, should nothing come before it.
    pub(super) fn settling_at(&self, id: RowId) -> Option<Mono> {
        let settling = self.queue.work(id)?.settling?;
        Some(settling.at)
    }

    pub(super) fn is_settling_due(&self, now: Now, id: RowId) -> bool {
        self.settling_at(id).is_some_and(|at| at <= now.mono)
    }
}
