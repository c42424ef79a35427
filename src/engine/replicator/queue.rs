//! What each row that is not idle is doing, and who is next.
//!
//! Order is by key, the smallest first: the time since when a row waits, less a head start for its priority. So a sync goes
//! before a high, that before a low, and so on, but none waits behind higher ones for longer than the difference.
//! The head starts are those of Dovecot 2.3.20 and later (`replicator-queue.c`).

use std::collections::BTreeSet;
use std::time::Duration;

use super::action::SyncId;
use super::peers::PeerId;
use super::settle::Settling;
use super::users::{RowId, UserId};
use crate::engine::time::Mono;
use crate::engine::{FastMap, Priority};

/// The order of a row: milliseconds of the monotonic clock, less a head start.
pub(super) type Key = i64;

const MINUTE_MILLIS: i64 = 60 * 1000;
/// The head start of those that a returned peer is to sync first.
const LONGEST_HEAD_START_MILLIS: i64 = 45 * MINUTE_MILLIS;

/// The key of a row that waits since `since` (milliseconds of the monotonic clock).
pub(super) fn key(since: i64, priority: Priority) -> Key {
    since.saturating_sub(match priority {
        Priority::None => 0,
        Priority::Low => 15 * MINUTE_MILLIS,
        Priority::High => 30 * MINUTE_MILLIS,
        Priority::Sync => LONGEST_HEAD_START_MILLIS,
    })
}

/// The key of a row that waited for its peer since `since`: all such have the same head start.
pub(super) fn key_after_peer(since: i64) -> Key {
    since.saturating_sub(LONGEST_HEAD_START_MILLIS)
}

pub(super) fn millis(at: Mono) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

/// Where a row is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    #[default]
    Idle,
    /// To be started as soon as there is a connection.
    Ready,
    /// Ready, but its user is busy with a lookup or another replica.
    Parked,
    /// Its user is being looked up for it.
    Lookup,
    /// The peer is not known to be reachable.
    Peer(PeerId),
    /// To be ready at this time.
    Retry(Mono),
    Running(SyncId),
}

/// What a row that is not idle, or that has failed, has on top of its `Row`.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    place: Place,
    pub(super) key: Key,
    /// Since when it waits, in milliseconds of the monotonic clock; may be before its origin.
    pub(super) since: i64,
    /// Failures in a row.
    pub(super) failures: u32,
    /// Syncs in a row that a concurrent change ended.
    pub(super) changes: u32,
    /// Syncs in a row that another dsync's lock ended.
    pub(super) locks: u32,
    /// The peer's NOTIFY has made it be tried before this, the end of its pause.
    pub(super) woken_before: Option<Mono>,
    /// A full sync was asked for because nothing else helped.
    pub(super) full_tried: bool,
    /// The mailboxes do not match the state: a full sync is to make it anew. Should that be cut off, there is nothing better.
    pub(super) state_doubted: bool,
    /// Syncs in a row that did not go on from the mailboxes put into the state with their last modseq, or in what comes after that.
    pub(super) refusals: u8,
    /// Nothing has helped.
    pub(super) stuck: bool,
    pub(super) reason: Box<str>,
    /// The last failure may be the peer's.
    pub(super) blames_peer: bool,
    /// The administrator was told of the failure.
    pub(super) reported: bool,
    /// Whatever becomes of the failures.
    pub(super) settling: Option<Settling>,
    /// For a sync to follow one in which dsync renamed mailboxes; what is notified need not wait.
    pub(super) after_renames: bool,
    /// For the end of a sync that the peer began.
    pub(super) waits_for_peer: bool,
}

impl Work {
    pub(super) fn is_idle(&self) -> bool {
        self.place == Place::Idle
    }

    /// Of work that is not in the queue.
    pub(super) fn set_place(&mut self, place: Place) {
        self.place = place;
    }

    pub(super) fn forget_failures(&mut self) {
        self.failures = 0;
        self.changes = 0;
        self.locks = 0;
        self.woken_before = None;
        self.full_tried = false;
        self.stuck = false;
        self.reason = Box::default();
        self.blames_peer = false;
        self.reported = false;
    }
}

/// The table becomes smaller when it has so many times the room that it needs.
const MOST_SPARE: usize = 16;
/// But never below this, in rows.
const FEW: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Looked up several times for each notification, in no order.
    rows: FastMap<RowId, Box<Work>>,
    ready: BTreeSet<(Key, RowId)>,
    retry: BTreeSet<(Mono, RowId)>,
    peers: BTreeSet<(PeerId, RowId)>,
}

impl Queue {
    pub(super) fn place(&self, row: RowId) -> Place {
        self.rows.get(&row).map_or(Place::Idle, |work| work.place)
    }

    pub(super) fn work(&self, row: RowId) -> Option<&Work> {
        self.rows.get(&row).map(Box::as_ref)
    }

    pub(super) fn failures(&self, row: RowId) -> u32 {
        self.work(row).map_or(0, |work| work.failures)
    }

    pub(super) fn refusals(&self, row: RowId) -> u8 {
        self.work(row).map_or(0, |work| work.refusals)
    }

    /// To change all but place and key.
    pub(super) fn work_mut(&mut self, row: RowId) -> &mut Work {
        self.rows.entry(row).or_default()
    }

    pub(super) fn set_place(&mut self, row: RowId, place: Place) {
        if place == Place::Idle && !self.rows.contains_key(&row) {
            return;
        }
        self.leave(row);
        let work = self.rows.entry(row).or_default();
        work.place = place;
        if place == Place::Idle && work.failures == 0 && work.settling.is_none() {
            self.remove(row);
        }
        self.enter(row);
    }

    pub(super) fn set_key(&mut self, row: RowId, key: Key) {
        self.leave(row);
        self.work_mut(row).key = key;
        self.enter(row);
    }

    /// Takes the row out, with all that is known of it.
    pub(super) fn take(&mut self, row: RowId) -> Option<Work> {
        self.leave(row);
        self.remove(row)
    }

    fn remove(&mut self, row: RowId) -> Option<Work> {
        let work = self.rows.remove(&row)?;
        // What a burst needed is not kept for ever.
        let wanted = self.rows.len() * MOST_SPARE;
        if self.rows.capacity() > wanted.max(FEW) {
            self.rows.shrink_to(self.rows.len() * 2);
        }
        Some(*work)
    }

    pub(super) fn put(&mut self, row: RowId, work: Work) {
        self.leave(row);
        self.rows.insert(row, Box::new(work));
        self.enter(row);
    }

    fn enter(&mut self, row: RowId) {
        let Some(Work { place, key, .. }) = self.rows.get(&row).map(Box::as_ref) else {
            return;
        };
        let (place, key) = (*place, *key);
        match place {
            Place::Ready => {
                self.ready.insert((key, row));
            }
            Place::Retry(at) => {
                self.retry.insert((at, row));
            }
            Place::Peer(peer) => {
                self.peers.insert((peer, row));
            }
            Place::Idle | Place::Parked | Place::Lookup | Place::Running(_) => {}
        }
    }

    pub(super) fn first_ready(&self) -> Option<RowId> {
        self.ready.first().map(|(_, row)| *row)
    }

    /// The rows that are started next, in this order.
    pub(super) fn ready(&self) -> impl Iterator<Item = RowId> + '_ {
        self.ready.iter().map(|(_, row)| *row)
    }

    pub(super) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn next_retry(&self) -> Option<Mono> {
        self.retry.first().map(|(at, _)| *at)
    }

    /// A row whose time has come.
    pub(super) fn due_retry(&self, now: Mono) -> Option<RowId> {
        let (at, row) = self.retry.first()?;
        (*at <= now).then_some(*row)
    }

    pub(super) fn waiting_for(&self, peer: PeerId) -> impl Iterator<Item = RowId> + '_ {
        let lowest = RowId {
            user: UserId(0),
            replica: 0,
        };
        self.peers
            .range((peer, lowest)..)
            .take_while(move |(waits_for, _)| *waits_for == peer)
            .map(|(_, row)| *row)
    }

    /// The rows that wait for a connection or for their next try.
    pub(super) fn ready_and_retrying(&self) -> impl Iterator<Item = RowId> + '_ {
        self.ready().chain(self.retry.iter().map(|(_, row)| *row))
    }

    pub(super) fn stuck(&self) -> usize {
        self.rows.values().filter(|work| work.stuck).count()
    }

    fn leave(&mut self, row: RowId) {
        let Some(work) = self.rows.get(&row) else {
            return;
        };
        match work.place {
            Place::Ready => {
                self.ready.remove(&(work.key, row));
            }
            Place::Retry(at) => {
                self.retry.remove(&(at, row));
            }
            Place::Peer(peer) => {
                self.peers.remove(&(peer, row));
            }
            Place::Idle | Place::Parked | Place::Lookup | Place::Running(_) => {}
        }
    }
}

/// The pause before a sync that a concurrent change ended is tried again.
pub(super) fn pause_after_change(changes: u32, longest: Duration) -> Duration {
    super::backoff::doubled(Duration::from_millis(20), longest, changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(user: u32) -> RowId {
        RowId {
            user: UserId(user),
            replica: 0,
        }
    }

    fn ready(queue: &mut Queue, user: u32, since: i64, priority: Priority) {
        queue.set_key(row(user), key(since, priority));
        queue.set_place(row(user), Place::Ready);
    }

    #[test]
    fn higher_priority_goes_first_but_not_for_ever() {
        let mut queue = Queue::default();
        let hour = 60 * MINUTE_MILLIS;
        ready(&mut queue, 1, hour, Priority::None);
        ready(&mut queue, 2, hour, Priority::Low);
        ready(&mut queue, 3, hour, Priority::High);
        ready(&mut queue, 4, hour, Priority::Sync);
        ready(&mut queue, 5, hour - 31 * MINUTE_MILLIS, Priority::Low);
        let mut order = Vec::new();
        while let Some(row) = queue.first_ready() {
            order.push(row.user.0);
            queue.set_place(row, Place::Idle);
        }
        assert_eq!(order, [5, 4, 3, 2, 1]);
    }

    #[test]
    fn row_is_in_one_place_at_a_time() {
        let mut queue = Queue::default();
        ready(&mut queue, 1, 0, Priority::Low);
        queue.set_place(row(1), Place::Retry(Mono(9)));
        assert_eq!(queue.first_ready(), None);
        assert_eq!(queue.due_retry(Mono(8)), None);
        assert_eq!(queue.due_retry(Mono(9)), Some(row(1)));
        let peer = PeerId::first();
        queue.set_place(row(1), Place::Peer(peer));
        assert_eq!(queue.next_retry(), None);
        assert_eq!(queue.waiting_for(peer).count(), 1);
        queue.set_key(row(1), 5);
        queue.set_place(row(1), Place::Idle);
        assert_eq!(queue.waiting_for(peer).count(), 0);
        assert!(queue.work(row(1)).is_none());
    }

    #[test]
    fn what_a_burst_needed_is_given_back() {
        let mut queue = Queue::default();
        for user in 0..40_000 {
            queue.set_place(row(user), Place::Ready);
        }
        for user in 1..40_000 {
            queue.set_place(row(user), Place::Idle);
        }
        assert!(
            queue.rows.capacity() <= 2 * FEW,
            "{}",
            queue.rows.capacity()
        );
        assert_eq!(queue.first_ready(), Some(row(0)));
        queue.set_place(row(1), Place::Idle);
        assert!(queue.work(row(1)).is_none());
    }
}
