//! What is done about results of dsync that repeat: the smallest thing that helps, said once and counted. Nothing is ever
//! deleted but a state, which a full sync makes anew.
//!
//! - A state that is refused is made anew by a full sync; until then it is there for one that follows a cut.
//! - Fast syncs that a concurrent change ends again and again: a full sync. Not where one failed in between: a full sync after one
//!   that was cut off may take a mail that was only half over for one that was expunged.
//! - Mailboxes that dsync renamed: another sync (see `renames`).
//! - A lock that another dsync of the user holds: we step back until it has ended. Of two nodes that lock each other out the one whose
//!   host name is the lower goes on first, which both find by themselves; where the peer's is not known, or the same, chance decides.
//!
//! What is left is stuck: tried at the slowest pace, shown with its reason.

use std::cmp::Ordering;
use std::time::Duration;

use super::Replicator;
use super::backoff::doubled;
use super::log::{Level, LogEvent};
use super::notify::WAITERS_PATIENCE;
use super::peers::PeerId;
use super::queue::{Place, millis, pause_after_change};
use super::record::StateChange;
use super::syncs::{Pause, Running, shortened};
use super::users::RowId;
use super::waiters::Whom;
use crate::engine::Priority;
use crate::engine::healing::{Observed, Side};
use crate::engine::time::{Mono, Now};

/// After this many syncs in a row that a concurrent change ended a full sync is made, some 5 s after the first.
const CHANGES_BEFORE_FULL: u32 = 8;
/// After this many the user counts as failing.
const CHANGES_TOLERATED: u32 = 10;
/// After this many the user is stuck.
const CHANGES_BEFORE_STUCK: u32 = 12;
/// Each sync that a concurrent change ends brings something over: what is new need not wait longer than this.
const CHANGED_AGAIN: Duration = Duration::from_secs(2);
/// The first and the longest pause after another dsync's lock; the end of that dsync ends the pause.
const SHORTEST_STEP_BACK: Duration = Duration::from_secs(1);
const LONGEST_STEP_BACK: Duration = Duration::from_secs(30);
/// The same of the node that goes on first, and of the one that lets it: in each try the second pause is longer than the first with
/// time for a sync between them, whatever is taken off.
const SHORTEST_OF_FIRST: Duration = Duration::from_millis(250);
const LONGEST_OF_FIRST: Duration = Duration::from_secs(10);
const SHORTEST_OF_SECOND: Duration = Duration::from_secs(4);
const LONGEST_OF_SECOND: Duration = Duration::from_secs(60);
/// After this many syncs in a row that a lock ended the user counts as failing.
const LOCKS_TOLERATED: u32 = 5;

impl Replicator {
    /// A dsync process of this node, ours or the peer's dsync-server, tells what it saw.
    pub fn handle_observed(&mut self, now: Now, username: &[u8], observed: &Observed) {
        self.totals.healed_guids += u64::from(observed.guids_healed);
        self.totals.healed_deletes += u64::from(observed.undeleted);
        if observed.renames > 0 {
            self.handle_renamed(now, username);
        }
        let Some(hostnames) = &observed.hostnames else {
            return;
        };
        if hostnames.are_the_peers_failure() {
            self.handle_peers_sync_cut_off(now, username);
        }
        let Some(peer) = self.peer_of_sync(username, hostnames.side) else {
            return;
        };
        if self.peers.is_called(peer, hostnames, now.mono) {
            let name = String::from_utf8_lossy(&hostnames.own).into_owned();
            self.log.push(LogEvent {
                level: Level::Error,
                username: None,
                target: Some(self.peers.target(peer).to_vec()),
                text: format!(
                    "Peer has this node's own host name, {name}, so that their dsyncs cannot keep each other out: \
                     give each node its own, or set DOVECOT_HOSTNAME in Dovecot's environment"
                ),
            });
        }
    }

    /// Which peer a dsync process of this node has talked with.
    fn peer_of_sync(&self, username: &[u8], side: Side) -> Option<PeerId> {
        let user = self.users.find(username);
        if side == Side::Ours {
            let is_running = |id: &RowId| matches!(self.queue.place(*id), Place::Running(_));
            let row = self.users.row_ids(user?).find(is_running)?;
            return self.users.row(row)?.peer;
        }
        // Of several it is not known which one it was; a user whom only the peer has synced was not looked up yet.
        let user = user.filter(|user| self.users.replicas(*user) == 1);
        let row = user.and_then(|user| self.users.row(RowId { user, replica: 0 }));
        let peer = row.and_then(|row| row.peer);
        peer.or_else(|| self.peers.only())
    }

    /// Somebody changed something during the sync: it is done again, with the state that it had.
    pub(super) fn changed(&mut self, now: Now, running: &Running, reason: &str) {
        let id = running.row;
        self.totals.syncs_changed += 1;
        let text = match reason.is_empty() {
            true => "Mailboxes keep changing during sync",
            false => reason,
        };
        let work = self.queue.work_mut(id);
        work.changes = work.changes.saturating_add(1);
        work.blames_peer = false;
        let changes = work.changes;
        if changes == CHANGES_BEFORE_FULL && work.failures == 0 {
            let text = format!("{changes} syncs in a row did not settle it: {text}");
            self.force_full_sync(running, &text);
        }
        let pause = match changes {
            ..=CHANGES_BEFORE_STUCK => Pause::Growing,
            _ => Pause::Longest,
        };
        if changes > CHANGES_TOLERATED {
            self.fail(now, id, text, pause, Level::Warning);
        } else {
            self.keep_pending(running);
        }
        let pause = match pause {
            Pause::Longest => self.config.retry_max_interval,
            _ => pause_after_change(changes, self.config.retry_max_interval),
        };
        let at = now.mono + self.jitter.shorten(pause);
        self.place(id, Place::Retry(at));
        if at > now.mono + WAITERS_PATIENCE {
            self.refuse_waiters(Whom::User(id.user), "Mailboxes keep changing during sync");
        }
    }

    /// Another dsync of the user is at work: ours comes after it.
    pub(super) fn locked(&mut self, now: Now, running: &Running, reason: &str) {
        let id = running.row;
        self.totals.syncs_locked += 1;
        let work = self.queue.work_mut(id);
        work.locks = work.locks.saturating_add(1);
        work.blames_peer = false;
        let locks = work.locks;
        if locks > LOCKS_TOLERATED {
            self.fail(now, id, reason, Pause::Growing, Level::Warning);
        } else {
            self.keep_pending(running);
            if locks == 1 {
                let text = format!(
                    "Stepping back, another dsync of the user holds a lock: {}",
                    shortened(reason)
                );
                self.say_of_row(Level::Info, id, text);
            }
        }
        let pause = self.step_back(now, id, locks);
        self.place(id, Place::Retry(now.mono + pause));
        self.refuse_waiters(Whom::User(id.user), "Locked by another dsync of the user");
    }

    /// Whoever it is steps back at the same time if both held what the other wanted.
    fn step_back(&mut self, now: Now, id: RowId, locks: u32) -> Duration {
        let peer = self.users.row(id).and_then(|row| row.peer);
        let peer = peer.and_then(|peer| self.peers.get(peer));
        let (shortest, longest) = match peer.and_then(|peer| peer.order(now.mono)) {
            Some(Ordering::Less) => (SHORTEST_OF_FIRST, LONGEST_OF_FIRST),
            Some(Ordering::Greater) => (SHORTEST_OF_SECOND, LONGEST_OF_SECOND),
            // Half of it is random.
            Some(Ordering::Equal) | None => {
                let pause = doubled(SHORTEST_STEP_BACK, LONGEST_STEP_BACK, locks);
                return pause - self.jitter.part_of(pause / 2);
            }
        };
        self.jitter.shorten(doubled(shortest, longest, locks))
    }

    /// What the sync was started for is still to be done.
    pub(super) fn keep_pending(&mut self, running: &Running) {
        let id = running.row;
        if let Some(row) = self.users.row_mut(id) {
            row.priority = row.priority.max(running.priority);
            // It was started for something, if only its time had come.
            if !row.is_pending() {
                row.priority = Priority::Low;
            }
        }
        self.touch(id);
    }

    pub(super) fn is_state_doubted(&self, id: RowId) -> bool {
        self.queue.work(id).is_some_and(|work| work.state_doubted)
    }

    /// The peer, or dsync itself, will not go on from the state: a full sync follows. The state stays until that has come through, for a sync that
    /// was cut off is to be followed by one that begins from it; if it is refused then, too, nothing is left of it.
    pub(super) fn doubt_state(&mut self, running: &Running, reason: &str) {
        let id = running.row;
        let is_doubted = self.is_state_doubted(id);
        let Some(row) = self.users.row_mut(id).filter(|row| row.has_state) else {
            return;
        };
        if is_doubted && running.from_state {
            row.has_state = false;
            self.queue.work_mut(id).state_doubted = false;
            return self.journal.set_state(id, StateChange::Forget);
        }
        if running.full && !running.from_state {
            return;
        }
        row.force_full = true;
        self.queue.work_mut(id).state_doubted = true;
        self.touch(id);
        self.totals.healed_states += 1;
        let text = format!("The sync state is forgotten, a full sync follows: {reason}");
        self.say_of_row(Level::Info, id, text);
    }

    pub(super) fn is_full_tried(&self, id: RowId) -> bool {
        self.queue.work(id).is_some_and(|work| work.full_tried)
    }

    fn force_full_sync(&mut self, running: &Running, reason: &str) {
        let id = running.row;
        let work = self.queue.work_mut(id);
        if std::mem::replace(&mut work.full_tried, true) || running.full {
            return;
        }
        self.totals.healed_repeats += 1;
        if let Some(row) = self.users.row_mut(id) {
            row.force_full = true;
        }
        self.touch(id);
        let text = format!("A full sync is made, {}", shortened(reason));
        self.say_of_row(Level::Info, id, text);
    }

    /// The peer has synced a user who waits for `at`: the user can be synced after all, or the dsync has ended that held the
    /// lock. Once in a pause, which does not grow if that was an error.
    pub(super) fn wake(&mut self, now: Now, id: RowId, at: Mono) {
        let work = self.queue.work_mut(id);
        if work.locks > 0 {
            self.make_ready(id);
        } else if work.failures > 0
            && work.woken_before.is_none()
            && at > now.mono + WAITERS_PATIENCE
        {
            work.woken_before = Some(at);
            self.make_ready(id);
        }
    }

    /// How long the pause still is in which the row was woken, if it was.
    pub(super) fn rest_of_pause(&mut self, now: Mono, id: RowId) -> Option<Duration> {
        let work = self.queue.work_mut(id);
        work.woken_before = work.woken_before.filter(|at| *at > now);
        work.woken_before.map(|at| at.since(now))
    }

    /// Something new came for a row that waits for `at`.
    pub(super) fn bring_forward(&mut self, now: Now, id: RowId, at: Mono) {
        let follows_renames = self.queue.work(id).is_some_and(|work| work.after_renames);
        if (self.is_settling(id) || follows_renames) && self.queue.failures(id) == 0 {
            self.queue.work_mut(id).since = millis(now.mono);
            return self.make_ready(id);
        }
        let is_changed = self.queue.work(id).is_some_and(|work| work.changes > 0);
        let soon = now.mono + CHANGED_AGAIN;
        match is_changed && soon < at {
            true => self.place(id, Place::Retry(soon)),
            false => self.recount(id.user),
        }
    }
}
