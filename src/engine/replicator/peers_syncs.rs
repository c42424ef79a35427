//! Syncs that the peers began, as far as this node's dsync-servers tell of them.

use std::time::Duration;

use super::action::{Mailboxes, SyncId};
use super::queue::Place;
use super::users::RowId;
use super::{Busy, Replicator};
use crate::engine::time::{Mono, Now};

/// How often a sync that is put off for the peer's looks whether that has ended, should nobody tell.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How much longer than the wait for a lock, a tenth of that apart, a peer's sync lasts that waited for one in vain.
const LOCK_SLACK: Duration = Duration::from_secs(1);

/// The syncs of the peer that are served of one user.
#[derive(Debug)]
pub(super) struct PeersSyncs {
    count: usize,
    /// When the last one began.
    begun: Mono,
}

impl Replicator {
    /// A dsync-server of this node has begun to serve a sync of the peer.
    pub fn handle_peers_sync_begun(&mut self, now: Now, username: &[u8]) {
        let begun = now.mono;
        let syncs = self.peers_syncs.entry(username.into());
        let syncs = syncs.or_insert(PeersSyncs { count: 0, begun });
        syncs.count += 1;
        syncs.begun = begun;
    }

    /// It has ended, however.
    pub fn handle_peers_sync_ended(&mut self, now: Now, username: &[u8]) {
        if let Some(syncs) = self.peers_syncs.get_mut(username) {
            syncs.count = syncs.count.saturating_sub(1);
            if syncs.count > 0 {
                return;
            }
        }
        self.peers_syncs.remove(username);
        let user = self.users.find(username);
        let ids = user.map(|user| self.users.row_ids(user));
        for id in ids.into_iter().flatten() {
            let waits = self.queue.work(id).is_some_and(|work| work.waits_for_peer);
            if waits && matches!(self.queue.place(id), Place::Retry(_)) {
                self.queue.work_mut(id).waits_for_peer = false;
                self.make_ready(id);
            }
        }
        self.advance(now);
    }

    /// Mailboxes may get another GUID while the peer's sync lasts, and be half over after it: a sync that needs to know them begins after it.
    /// It would only wait for its lock.
    pub(super) fn is_put_off(&self, id: RowId) -> bool {
        let row = self.users.row(id);
        let refusals = self.queue.refusals(id);
        row.is_some_and(|row| !row.has_state || row.mailboxes(refusals) != Mailboxes::AsTheyAre)
            && self.is_served(id)
    }

    fn is_served(&self, id: RowId) -> bool {
        !self.peers_syncs.is_empty() && self.peers_syncs.contains_key(self.users.name(id.user))
    }

    pub(super) fn wait_for_peer(&mut self, now: Now, id: RowId) {
        self.place(id, Place::Retry(now.mono + LOOK_AGAIN));
        self.queue.work_mut(id).waits_for_peer = true;
    }

    /// Whether a sync that was just started, and whose mailboxes were listed, is to begin now. If not it was put off.
    pub fn may_begin(&mut self, now: Now, sync: SyncId) -> bool {
        let row = self.running.get(&sync).map(|running| running.row);
        let Some(id) = row.filter(|id| self.is_served(*id)) else {
            return true;
        };
        let Some(running) = self.running.remove(&sync) else {
            return true;
        };
        self.busy.remove(&id.user);
        if running.doomed {
            self.end_doomed(now, &running);
        } else {
            self.not_begun(&running);
            self.wait_for_peer(now, id);
        }
        if !self.busy.contains_key(&id.user) {
            self.release(id.user);
        }
        self.advance(now);
        false
    }

    /// A sync that the peer began has failed here, or its dsync-server was killed. If that was in its middle, a full one of ours is not to
    /// come next; and none of ours that waited for the end of the peer's is to go on, for its state is from before: what is half over of a mailbox that
    /// is not in it would be taken for expunged.
    pub fn handle_peers_sync_cut_off(&mut self, now: Now, username: &[u8]) {
        let Some(user) = self.users.find(username) else {
            return;
        };
        for id in self.users.row_ids(user) {
            self.mark_cut_off(id);
        }
        let Some(Busy::Sync(sync)) = self.busy.get(&user) else {
            return;
        };
        let (sync, lock_timeout) = (*sync, self.config.lock_timeout);
        // Then nothing of it is half over: it has waited for a lock in vain, as ours may do still.
        let began_nothing = self.peers_syncs.get(username).is_some_and(|syncs| {
            let lasted = now.mono.since(syncs.begun);
            (lock_timeout * 9 / 10..lock_timeout * 11 / 10 + LOCK_SLACK).contains(&lasted)
        });
        let waited = self.running.get(&sync).is_some_and(|running| {
            // Else it is the peer's that has waited, for ours.
            let is_young = now.mono.since(running.begun) < lock_timeout * 5 / 6;
            running.mailboxes == Mailboxes::AsTheyAre && is_young
        });
        if waited && !began_nothing {
            self.abort(sync, "A sync of the peer was cut off before this one", true);
        }
    }
}
