//! A sync from its start to what its end means.

use std::time::Duration;

use super::action::{Action, Mailboxes, SyncId, SyncOutcome};
use super::backoff::doubled;
use super::config::MAX_REASON_BYTES;
use super::log::Level;
use super::notify::WAITERS_PATIENCE;
use super::peers::PeerId;
use super::periodic;
use super::queue::Place;
use super::record::{Stale, StateChange};
use super::status::SyncType;
use super::users::{Cut, RowId, UserId};
use super::waiters::{Turn, Whom};
use super::{Busy, Replicator, Why};
use crate::engine::Priority;
use crate::engine::sync_state::has_no_mailbox;
use crate::engine::time::{Mono, Now};

/// After this many failures in a row the administrator is told.
const FAILURES_REPORTED: u32 = 3;
/// So often mailboxes are put into the state anew after the first refusal: in a second or two, in which the peer may do it.
const REFUSALS_MAX: u8 = 5;
/// The pause after what only an administrator can mend.
const ADMIN_PAUSE: Duration = Duration::from_secs(60 * 60);

/// A sync that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) row: RowId,
    pub(super) peer: PeerId,
    /// Of what it was started for.
    pub(super) priority: Priority,
    pub(super) full: bool,
    /// It is full because that was asked for, not because of the interval.
    pub(super) forced: bool,
    /// It is full and begins from the state.
    pub(super) from_state: bool,
    pub(super) mailboxes: Mailboxes,
    /// It looks at all mails without `-f`, and not at flags of mails that both nodes have.
    begun_from_mailboxes: bool,
    /// What the row was before it began, to be so again unless it is a success.
    stale: Stale,
    /// dsync has renamed mailboxes here.
    pub(super) renamed: bool,
    /// Something was notified, or what was is not over yet, or a full one was wanted.
    for_changes: bool,
    pub(super) sync_type: SyncType,
    /// Which waiters came before it.
    turn: Turn,
    pub(super) begun: Mono,
    pub(super) last_progress: Mono,
    /// Since the last progress its peer was probed.
    pub(super) probed: bool,
    /// Why it is being ended.
    pub(super) aborted: Option<Box<str>>,
    /// The user was removed while it ran.
    pub(super) doomed: bool,
}

/// How long a row waits after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// From `retry_min_interval` to `retry_max_interval`; then the row is stuck.
    Growing,
    /// The same, but it is the peer's not being there.
    Away,
    /// `retry_max_interval`
    Longest,
    /// An hour.
    Admin,
}

/// The local doveadm-server, without which no sync can start.
#[derive(Debug, Default)]
pub(super) struct LocalServer {
    failures: u32,
    retry_at: Option<Mono>,
}

impl LocalServer {
    pub(super) fn may_start(&mut self, now: Mono) -> bool {
        self.retry_at = self.retry_at.filter(|at| *at > now);
        self.retry_at.is_none()
    }

    /// While it is not known to be back, one sync tries for all.
    fn tries(&mut self, now: Mono, shortest: Duration) {
        if self.failures > 0 {
            self.retry_at = Some(now + doubled(shortest, WAITERS_PATIENCE, self.failures));
        }
    }

    /// True: it was away.
    fn is_back(&mut self) -> bool {
        self.retry_at = None;
        std::mem::take(&mut self.failures) > 0
    }

    pub(super) fn next_try(&self) -> Option<Mono> {
        self.retry_at
    }
}

impl Replicator {
    pub(super) fn start_sync(&mut self, now: Now, id: RowId, peer: PeerId) {
        let is_full_due = self.is_full_sync_due(now, id);
        let settles = self.is_settling_due(now, id);
        let is_doubted = self.is_state_doubted(id);
        let refusals = self.queue.refusals(id);
        let Some(row) = self.users.row_mut(id) else {
            return;
        };
        let priority = std::mem::take(&mut row.priority);
        let wants_full = row.force_full || is_full_due || settles;
        // A sync that is neither full nor has a state does not look into mailboxes whose counters are equal.
        let is_fast_first = row.is_fast_first();
        let full = !row.has_state || wants_full && !is_fast_first || is_doubted;
        let mailboxes = row.mailboxes(refusals);
        // One that takes no mail for expunged will do for flags, and where a fast one is to come first that would end as the last.
        let from_state = full
            && row.has_state
            && match is_doubted {
                true => is_fast_first,
                false => settles && !row.force_full && !is_full_due,
            };
        let is_with_f = full && !from_state && mailboxes == Mailboxes::AsTheyAre;
        let forced = is_with_f && std::mem::take(&mut row.force_full);
        let stale = row.stale;
        // Until it fails, or the peer tells of a sync that it did not look at.
        if full && mailboxes == Mailboxes::AsTheyAre {
            row.stale = Stale::No;
        }
        let for_changes = priority != Priority::None || row.failed || wants_full;
        let sync_type = match full {
            true => SyncType::Full,
            false => SyncType::Incremental,
        };
        let has_state = row.has_state;
        let sync = SyncId(self.next_id());
        let running = Running {
            row: id,
            peer,
            priority,
            full,
            forced,
            from_state,
            mailboxes,
            begun_from_mailboxes: false,
            stale,
            renamed: false,
            for_changes,
            sync_type,
            turn: self.waiters.turn(),
            begun: now.mono,
            last_progress: now.mono,
            probed: false,
            aborted: None,
            doomed: false,
        };
        self.running.insert(sync, running);
        self.local_server
            .tries(now.mono, self.config.retry_min_interval);
        self.busy.insert(id.user, Busy::Sync(sync));
        self.totals.syncs_started += 1;
        self.totals.full_syncs_started += u64::from(full);
        self.totals.settling_syncs_started += u64::from(settles && full);
        self.place(id, Place::Running(sync));
        let work = self.queue.work_mut(id);
        work.waits_for_peer = false;
        work.after_renames = false;
        self.touch(id);
        self.actions.push_back(Action::StartSync {
            sync,
            username: self.users.name(id.user).to_vec(),
            target: self.peers.target(peer).to_vec(),
            full,
            from_state,
            mailboxes,
            has_state,
        });
    }

    /// The sync, a full one, begins from the user's mailboxes.
    pub fn handle_begun_from_mailboxes(&mut self, sync: SyncId) {
        if let Some(running) = self.running.get_mut(&sync) {
            running.begun_from_mailboxes = true;
        }
    }

    /// The sync has got on: bytes were moved, by it or by its processes.
    pub fn handle_sync_progress(&mut self, now: Now, sync: SyncId) {
        if let Some(running) = self.running.get_mut(&sync) {
            running.last_progress = now.mono;
            running.probed = false;
        }
    }

    /// The sync has ended. `reason`: the last error line that dsync logged, or empty.
    pub fn handle_sync_finished(
        &mut self,
        now: Now,
        sync: SyncId,
        outcome: SyncOutcome,
        reason: &str,
    ) {
        self.clock.observe(now);
        if let Some(running) = self.running.remove(&sync) {
            self.busy.remove(&running.row.user);
            if running.doomed {
                self.end_doomed(now, &running);
            } else {
                self.end_sync(now, &running, outcome, reason);
            }
            // Unless what its end means is being looked up.
            if !self.busy.contains_key(&running.row.user) {
                self.release(running.row.user);
            }
        }
        self.advance(now);
    }

    fn end_sync(&mut self, now: Now, running: &Running, outcome: SyncOutcome, reason: &str) {
        if outcome != SyncOutcome::NotStarted && self.local_server.is_back() {
            let text = "Syncs can be started again".to_owned();
            self.log.say(Level::Info, text);
        }
        if let SyncOutcome::Ok { state } = outcome {
            return self.succeeded(now, running, state);
        }
        let id = running.row;
        if let Some(row) = self.users.row_mut(id) {
            match running.from_state {
                true if row.stale == Stale::No => row.stale = running.stale,
                true => {}
                false if running.mailboxes == Mailboxes::AsTheyAre => {
                    row.force_full |= running.full;
                }
                false => {}
            }
            if running.begun_from_mailboxes && row.stale == Stale::No {
                row.stale = Stale::State;
            }
        }
        if let SyncOutcome::Changed { state } = outcome {
            match state.is_empty() {
                true => self.end_refused(running, "the mailboxes do not match it"),
                false => {
                    self.keep_state(id, state);
                    self.came_through(id);
                }
            }
            return self.changed(now, running, reason);
        }
        if may_have_begun(&outcome) {
            self.mark_cut_off(id);
        }
        if outcome == SyncOutcome::Locked {
            return self.locked(now, running, reason);
        }
        if outcome == SyncOutcome::NotStarted {
            return self.not_started(now, running, reason);
        }
        self.totals.syncs_failed += 1;
        let reason = match (&running.aborted, &outcome) {
            (Some(why), SyncOutcome::Timeout) => why,
            _ => reason,
        };
        let text = reason_of(&outcome, reason);
        let pause = match outcome {
            SyncOutcome::NoUser | SyncOutcome::NoReplicate => {
                // Not failed yet, but still pending.
                if let Some(row) = self.users.row_mut(id) {
                    row.priority = row.priority.max(running.priority).max(Priority::Low);
                }
                self.touch(id);
                self.place(id, Place::Lookup);
                let is_noreplicate = outcome == SyncOutcome::NoReplicate;
                self.look_up(id.user, Why::Denied(running.peer, is_noreplicate));
                return;
            }
            SyncOutcome::Usage | SyncOutcome::NoPerm => Pause::Admin,
            SyncOutcome::StateRefused => {
                self.end_refused(running, &text);
                if running.mailboxes != Mailboxes::AsTheyAre {
                    return self.changed(now, running, &text);
                }
                Pause::Growing
            }
            SyncOutcome::PeerUnreachable => Pause::Away,
            _ => Pause::Growing,
        };
        let level = match pause {
            Pause::Admin => Level::Error,
            Pause::Growing | Pause::Away | Pause::Longest => Level::Warning,
        };
        let blames_peer = may_be_the_peers_fault(&outcome);
        self.queue.work_mut(id).blames_peer = blames_peer;
        self.fail(now, id, &text, pause, level);
        let refused = self.waiters.refuse_before(id.user, running.turn, &text);
        self.totals.waiters_failed += refused.len() as u64;
        self.actions.extend(refused);
        if blames_peer {
            self.suspect(now, running.peer);
            if self.peers.is_down(running.peer) {
                self.place(id, Place::Peer(running.peer));
                self.refuse_waiters(Whom::User(id.user), "Peer is not reachable");
            }
        }
    }

    /// The peer, or dsync itself, will not go on from the state. Mailboxes put into it may be to blame: dsync refuses them where it has their
    /// first changes no more, or has not come to their last. The node that is behind has a last that both have had. Or one that the state has is not
    /// what it was. Whatever it is, a sync in which dsync would look for common mails by itself, in all mailboxes for the sake of one, comes last.
    fn end_refused(&mut self, running: &Running, reason: &str) {
        let id = running.row;
        let refused = match running.mailboxes {
            Mailboxes::AsTheyAre => None,
            Mailboxes::WithFirstModseq => Some(Cut::RefusedOnce),
            Mailboxes::WithLastModseq | Mailboxes::WithoutModseqs | Mailboxes::WithFirstMail => {
                let work = self.queue.work_mut(id);
                work.refusals = work.refusals.saturating_add(1);
                if work.refusals < REFUSALS_MAX {
                    return;
                }
                // Another way is gone now.
                work.changes = 0;
                Some(Cut::Refused)
            }
        };
        if let (Some(refused), Some(row)) = (refused, self.users.row_mut(id)) {
            row.cut = refused;
        }
        // Of a state that is doubted already the mailboxes are to blame.
        if running.mailboxes != Mailboxes::WithFirstModseq || !self.is_state_doubted(id) {
            self.doubt_state(running, reason);
        }
    }

    /// One from before the user's first mailbox is as good as none.
    pub(super) fn keep_state(&mut self, id: RowId, state: Vec<u8>) {
        let state = match has_no_mailbox(&state) {
            true => Vec::new(),
            false => state,
        };
        if let Some(row) = self.users.row_mut(id) {
            row.has_state = !state.is_empty();
            row.cut = Cut::No;
        }
        if self.queue.work(id).is_some() {
            let work = self.queue.work_mut(id);
            work.state_doubted = false;
            work.refusals = 0;
        }
        let change = match state.is_empty() {
            false => StateChange::Set(state),
            true => StateChange::Forget,
        };
        self.journal.set_state(id, change);
    }

    fn succeeded(&mut self, now: Now, running: &Running, state: Vec<u8>) {
        let id = running.row;
        self.totals.syncs_ok += 1;
        let reported = self.queue.work(id).filter(|work| work.reported);
        if let Some(failures) = reported.map(|work| work.failures) {
            let text = format!("Synced again after {failures} failures");
            self.say_of_row(Level::Info, id, text);
        }
        self.queue.work_mut(id).forget_failures();
        let Some(row) = self.users.row_mut(id) else {
            return;
        };
        row.last_fast_sync = now.wall;
        row.last_success = now.wall;
        if running.full {
            row.last_full_sync = now.wall;
            let secs = now.mono.since(running.begun).as_secs();
            let most = row.full_sync_secs.saturating_mul(2).saturating_add(1);
            row.full_sync_secs = u8::try_from(secs).unwrap_or(u8::MAX).min(most);
        }
        row.failed = false;
        row.resync = false;
        let goes_on = row.is_pending();
        let is_stale = row.stale != Stale::No || running.begun_from_mailboxes;
        let settles_later = is_stale && running.for_changes;
        if settles_later {
            row.stale = Stale::Changes;
        }
        self.keep_state(id, state);
        self.touch(id);
        if running.full {
            self.queue.work_mut(id).settling = None;
        }
        if settles_later {
            self.settle_later(now, id);
        }
        match self.settling_at(id).filter(|_| !goes_on) {
            Some(at) => self.place(id, Place::Retry(at)),
            None => self.place(id, Place::Idle),
        }
        if goes_on {
            self.enqueue(now, id);
        } else if running.renamed {
            self.sync_after_renames(now, id);
        }
        let replicas = self.users.replicas(id.user);
        let answers = self
            .waiters
            .succeeded(id.user, id.replica, replicas, running.turn);
        self.totals.waiters_ok += answers.len() as u64;
        self.actions.extend(answers);
        let proof = self.peers.succeeded(running.peer, now.wall);
        self.proven(now, running.peer, proof);
    }

    /// The local doveadm-server is away: no sync can start, and no user is to blame.
    fn not_started(&mut self, now: Now, running: &Running, reason: &str) {
        let id = running.row;
        let local = &mut self.local_server;
        if local.failures == 0 {
            let text = format!("No sync can be started: {}", shortened(reason));
            self.log.say(Level::Error, text);
        }
        local.failures = local.failures.saturating_add(1);
        local.tries(now.mono, self.config.retry_min_interval);
        if let Some(row) = self.users.row_mut(id) {
            row.priority = row.priority.max(running.priority);
            if !row.is_pending() {
                row.priority = Priority::Low;
            }
        }
        self.touch(id);
        self.make_ready(id);
        self.refuse_waiters(Whom::User(id.user), "No sync can be started");
    }

    /// The row is as it was before.
    pub(super) fn not_begun(&mut self, running: &Running) {
        if let Some(row) = self.users.row_mut(running.row) {
            if row.stale == Stale::No {
                row.stale = running.stale;
            }
            row.force_full |= running.forced;
        }
        self.keep_pending(running);
    }

    pub(super) fn end_doomed(&mut self, now: Now, running: &Running) {
        let user = running.row.user;
        if !self.users.rows(user).any(|row| row.is_pending()) {
            return self.remove_user(user, "User was removed");
        }
        // It was notified again since: userdb decides.
        if let Some(user) = self.users.get_mut(user) {
            user.checked_secs = 0;
        }
        // What the sync told is not taken, nor how it ended.
        self.mark_cut_off(running.row);
        self.place(running.row, Place::Idle);
        for id in self.users.row_ids(user) {
            self.enqueue(now, id);
        }
    }

    /// The row is tried again after a pause; what is pending stays so.
    pub(super) fn fail(&mut self, now: Now, id: RowId, reason: &str, pause: Pause, level: Level) {
        let (min, max) = (
            self.config.retry_min_interval,
            self.config.retry_max_interval,
        );
        let rest_of_pause = self.rest_of_pause(now.mono, id);
        let work = self.queue.work_mut(id);
        if rest_of_pause.is_none() {
            work.failures = work.failures.saturating_add(1);
        }
        work.reason = shortened(reason).into();
        let (failures, reported) = (work.failures, work.reported);
        let is_slow = matches!(pause, Pause::Longest | Pause::Admin);
        let may_get_stuck = pause == Pause::Growing || work.changes > 0;
        let pause = match pause {
            Pause::Growing | Pause::Away => doubled(min, max, failures),
            Pause::Longest => max,
            Pause::Admin => ADMIN_PAUSE.max(max),
        };
        let gets_stuck = may_get_stuck && !work.stuck && pause >= max;
        work.stuck |= gets_stuck;
        let is_told = gets_stuck || !reported && (is_slow || failures >= FAILURES_REPORTED);
        work.reported |= is_told;
        let pause = rest_of_pause.unwrap_or_else(|| self.jitter.shorten(pause));
        if is_told {
            let what = match (gets_stuck, self.is_full_tried(id)) {
                (false, _) => "Sync failed",
                (true, false) => "Stuck",
                (true, true) => "Stuck, a full sync did not help",
            };
            let (reason, secs) = (shortened(reason), pause.as_secs());
            let text = format!("{what}: {reason} (next try in {secs} secs)");
            self.say_of_row(level, id, text);
        }
        if let Some(row) = self.users.row_mut(id) {
            row.failed = true;
            row.last_fast_sync = now.wall;
        }
        self.touch(id);
        self.place(id, Place::Retry(now.mono + pause));
        if pause > WAITERS_PATIENCE {
            self.refuse_waiters(Whom::User(id.user), reason);
        }
    }

    pub(super) fn is_full_sync_due(&self, now: Now, id: RowId) -> bool {
        self.users.row(id).is_some_and(|row| {
            let interval = periodic::secs(self.config.full_sync_interval);
            let username = self.users.name(id.user);
            periodic::is_full_sync_due(username, row, interval, self.clock.horizon, now.wall)
        })
    }

    /// The user's sync, if one runs.
    pub(super) fn running_sync(&mut self, user: UserId) -> Option<&mut Running> {
        match self.busy.get(&user) {
            Some(Busy::Sync(sync)) => self.running.get_mut(sync),
            _ => None,
        }
    }
}

/// Whether mail may have been moved before it ended.
pub(super) fn may_have_begun(outcome: &SyncOutcome) -> bool {
    matches!(
        outcome,
        SyncOutcome::TempFail | SyncOutcome::Eof | SyncOutcome::Timeout | SyncOutcome::Other(_)
    )
}

fn may_be_the_peers_fault(outcome: &SyncOutcome) -> bool {
    matches!(
        outcome,
        SyncOutcome::TempFail
            | SyncOutcome::Eof
            | SyncOutcome::Timeout
            | SyncOutcome::PeerUnreachable
            | SyncOutcome::Other(_)
    )
}

fn reason_of(outcome: &SyncOutcome, reason: &str) -> String {
    if !reason.is_empty() {
        return shortened(reason).to_owned();
    }
    match outcome {
        SyncOutcome::Ok { .. } | SyncOutcome::Changed { .. } => String::new(),
        SyncOutcome::NoUser => "NOUSER".to_owned(),
        SyncOutcome::NoReplicate => "NOREPLICATE".to_owned(),
        SyncOutcome::TempFail => "TEMPFAIL".to_owned(),
        SyncOutcome::Eof => "dsync died".to_owned(),
        SyncOutcome::Timeout => "No progress".to_owned(),
        SyncOutcome::Usage => "USAGE: dsync or its peer does not take the parameters".to_owned(),
        SyncOutcome::NotFound => "NOTFOUND".to_owned(),
        SyncOutcome::NoPerm => "NOPERM".to_owned(),
        SyncOutcome::StateRefused => "State refused".to_owned(),
        SyncOutcome::Locked => "Locked by another dsync of the user".to_owned(),
        SyncOutcome::PeerUnreachable => "Peer is not reachable".to_owned(),
        SyncOutcome::NotStarted => "doveadm-server is not reachable".to_owned(),
        SyncOutcome::Other(code) => shortened(code).to_owned(),
    }
}

pub(super) fn shortened(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_reason_stays_whole_and_a_longer_one_is_cut_at_a_letter() {
        let longest = "r".repeat(MAX_REASON_BYTES);
        assert_eq!(shortened(&longest), longest);
        let longer = format!("{}ä", "r".repeat(MAX_REASON_BYTES - 1));
        assert_eq!(shortened(&longer), &longest[1..]);
    }
}
