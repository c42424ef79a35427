//! Everything that can be asked of the engine, without a scan of all users in one go.

use super::Replicator;
use super::mask::wildcard_match;
use super::periodic;
use super::queue::Place;
use super::status::{
    Activity, Counters, Cursor, PeerDetails, ReplicaDetails, SyncStatus, Totals, UserDetails,
    UserStatus,
};
use super::users::{Row, RowId, UserId};
use super::waiters::Whom;
use crate::engine::Priority;
use crate::engine::time::{Now, UnixSecs};

impl Replicator {
    /// `STATUS`
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// `replication_max_conns`: `STATUS-DSYNC` shows one line for each.
    #[must_use]
    pub fn max_conns(&self) -> usize {
        self.config.max_conns
    }

    /// One page of `STATUS\t<mask>`: looks at `max_users` users from `cursor` on and calls `show` for each that matches.
    /// Where to go on; None at the end. Any input may come between two pages: who is known all the time is shown once.
    pub fn list(
        &self,
        now: Now,
        cursor: Cursor,
        max_users: u32,
        mask: &[u8],
        show: &mut dyn FnMut(UserStatus<'_>),
    ) -> Option<Cursor> {
        let slots = self.users.slots();
        let end = cursor.0.saturating_add(max_users.max(1)).min(slots);
        for slot in cursor.0..end {
            let id = UserId(slot);
            let is_shown = self.users.get(id).is_some_and(|user| !user.left_out);
            if is_shown && wildcard_match(self.users.name(id), mask) {
                show(self.status_of(now, id));
            }
        }
        (end < slots).then_some(Cursor(end))
    }

    /// `STATUS-DSYNC`: the syncs that run.
    pub fn syncs(&self) -> impl Iterator<Item = SyncStatus<'_>> {
        self.running.values().map(|running| SyncStatus {
            username: self.users.name(running.row.user),
            target: self.peers.target(running.peer),
            sync_type: running.sync_type,
        })
    }

    /// The (user, target) whose states are likely to be wanted next: of those who are being looked up, and of
    /// those who wait for a connection, in their order. Looks at the first `rows_max` of them: a queue may be
    /// long, and few of it have a state after a first start.
    pub fn next_states(&self, rows_max: usize) -> impl Iterator<Item = (&[u8], &[u8])> {
        let looked_up = self.lookups.values();
        looked_up
            .flat_map(|(user, _)| self.users.row_ids(*user))
            .filter(|id| self.queue.place(*id) == Place::Lookup)
            .chain(self.queue.ready())
            .take(rows_max)
            .filter_map(|id| {
                let row = self.users.row(id).filter(|row| row.has_state)?;
                Some((self.users.name(id.user), self.target_of(row)))
            })
    }

    /// Replicas of users that nothing has helped. Looks at all that are not idle.
    #[must_use]
    pub fn replicas_stuck(&self) -> u64 {
        self.queue.stuck() as u64
    }

    /// All that is known of a user.
    #[must_use]
    pub fn show(&self, now: Now, username: &[u8]) -> Option<UserDetails> {
        let id = self.users.find(username)?;
        let row_ids = self.users.row_ids(id);
        let replicas = row_ids.filter_map(|row_id| {
            let row = self.users.row(row_id)?;
            let work = self.queue.work(row_id);
            let is_pending = row.is_pending() || self.queue.place(row_id) != Place::Idle;
            Some(ReplicaDetails {
                target: self.target_of(row).to_vec(),
                priority: row.priority,
                pending_since: is_pending.then_some(row.last_update),
                activity: self.activity_of(row_id),
                last_fast_sync: row.last_fast_sync,
                last_full_sync: row.last_full_sync,
                last_success: row.last_success,
                failures: work.map_or(0, |work| work.failures),
                reason: work.map_or(String::new(), |work| work.reason.to_string()),
                stuck: work.is_some_and(|work| work.stuck),
                next_sync_secs: self.next_sync_secs(now, row_id),
            })
        });
        Some(UserDetails {
            username: username.to_vec(),
            left_out: self.is_left_out(id),
            replicas: replicas.collect(),
            waiters: u32::try_from(self.waiters.count(Whom::User(id))).unwrap_or(u32::MAX),
        })
    }

    /// All that is known of the peers.
    #[must_use]
    pub fn peers(&self, now: Now) -> Vec<PeerDetails> {
        let peers = self.peers.iter().filter(|(_, peer)| peer.users > 0);
        let peers = peers.map(|(id, peer)| PeerDetails {
            target: peer.target.to_vec(),
            reachable: peer.reachable,
            since: peer.since,
            reason: peer.reason.clone(),
            same_hostname: String::from_utf8_lossy(
                peer.same_hostname(now.mono).unwrap_or_default(),
            )
            .into_owned(),
            waiting: u32::try_from(self.queue.waiting_for(id).count()).unwrap_or(u32::MAX),
            users: peer.users,
            next_probe_secs: peer.next_probe().map(|at| {
                let millis = at.since(now.mono).as_millis();
                u32::try_from(millis.div_ceil(1000)).unwrap_or(u32::MAX)
            }),
        });
        peers.collect()
    }

    fn status_of(&self, now: Now, id: UserId) -> UserStatus<'_> {
        let oldest =
            |time: fn(&Row) -> UnixSecs| self.users.rows(id).map(time).min().unwrap_or_default();
        let row_ids = self.users.row_ids(id);
        UserStatus {
            username: self.users.name(id),
            priority: self
                .users
                .rows(id)
                .map(|row| row.priority)
                .max()
                .unwrap_or(Priority::None),
            last_fast_sync: oldest(|row| row.last_fast_sync),
            last_full_sync: oldest(|row| row.last_full_sync),
            failed: self.users.row_ids(id).any(|row| {
                self.users.row(row).is_some_and(|row| row.failed)
                    || self.is_away(self.queue.place(row))
            }),
            last_success: oldest(|row| row.last_success),
            next_sync_secs: row_ids
                .map(|row| self.next_sync_secs(now, row))
                .min()
                .unwrap_or(0),
        }
    }

    fn next_sync_secs(&self, now: Now, id: RowId) -> u32 {
        match self.queue.place(id) {
            Place::Retry(at) => u32::try_from(at.since(now.mono).as_secs()).unwrap_or(u32::MAX),
            Place::Idle => {
                let username = self.users.name(id.user);
                let is_new = self
                    .users
                    .row(id)
                    .is_some_and(|row| row.last_fast_sync.0 == 0);
                let interval = match is_new {
                    true => periodic::first_sync_spread_secs(self.users.len()),
                    false => periodic::secs(self.config.full_sync_interval),
                };
                periodic::secs_to_phase(username, interval, now.wall)
            }
            _ => 0,
        }
    }

    fn activity_of(&self, id: RowId) -> Activity {
        match self.queue.place(id) {
            Place::Idle => Activity::Idle,
            Place::Ready | Place::Parked => Activity::Queued,
            Place::Lookup => Activity::LookingUp,
            Place::Peer(_) => Activity::WaitingForPeer,
            Place::Retry(_) => Activity::WaitingForRetry,
            Place::Running(_) => Activity::Syncing,
        }
    }
}
