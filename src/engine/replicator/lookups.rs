//! What userdb says of users, and what follows from it.

use std::time::Duration;

use super::Replicator;
use super::action::{Action, LookupId, UserLookup};
use super::backoff::doubled;
use super::log::Level;
use super::peers::PeerId;
use super::queue::Place;
use super::syncs::Pause;
use super::unknown::UnknownId;
use super::users::{RowId, UserId};
use super::waiters::Whom;
use crate::engine::Priority;
use crate::engine::time::{Mono, Now};

/// Why a known user is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// A row of it is to be synced, and its replicas are not known well enough.
    Due,
    /// The sync to this peer ended with NOUSER or NOREPLICATE (`true`): whose word was that?
    Denied(PeerId, bool),
    /// A complete listing does not have it.
    Missing,
    /// An administrator wants to know its replicas.
    Asked,
}

/// When userdb cannot answer for a user whose replicas are known from before, it is asked again after this time.
const LOOKUP_RETRY: Duration = Duration::from_secs(60);

impl Replicator {
    /// The answer to `Action::LookupUser`.
    pub fn handle_user_looked_up(&mut self, now: Now, lookup: LookupId, result: UserLookup) {
        self.clock.observe(now);
        if let Some(id) = self.unknown.end_lookup(lookup) {
            self.unknown_looked_up(now, id, result);
        } else if let Some((user, why)) = self.lookups.remove(&lookup) {
            self.known_looked_up(now, user, why, result);
        }
        self.advance(now);
    }

    /// Whether what userdb said of the user is young enough to be believed.
    pub(super) fn is_looked_up(&self, now: Mono, user: UserId) -> bool {
        let checked = self.users.get(user).map_or(0, |user| user.checked_secs);
        let age = Self::checked_secs(now).saturating_sub(checked);
        checked != 0 && u64::from(age) < self.config.listing_interval.as_secs().max(1)
    }

    fn unknown_looked_up(&mut self, now: Now, id: UnknownId, result: UserLookup) {
        match result {
            UserLookup::Found {
                username,
                targets,
                noreplicate,
            } => match self.users.insert(&username) {
                Some(user) => {
                    self.hand_over_unknown(now, id, user);
                    if !self.busy.contains_key(&user) {
                        self.believe(now, user, &targets, noreplicate);
                        self.release(user);
                    }
                }
                None => self.unknown_failed(now, id, "Too many users"),
            },
            UserLookup::NotFound => {
                self.refuse_waiters(Whom::Unknown(id), "User not found");
                let Some(unknown) = self.unknown.remove(id) else {
                    return;
                };
                self.totals.dropped_unknown += unknown.notifications;
                for (command, _) in unknown.commands {
                    let answer = Err("User not found".to_owned());
                    self.actions
                        .push_back(Action::AnswerCommand { command, answer });
                }
            }
            UserLookup::TempFail(reason) => self.unknown_failed(now, id, &reason),
        }
    }

    fn hand_over_unknown(&mut self, now: Now, id: UnknownId, user: UserId) {
        let Some(unknown) = self.unknown.remove(id) else {
            return;
        };
        self.recount(user);
        if unknown.priority != Priority::None || unknown.force_full {
            self.raise_user(now, user, unknown.priority, unknown.force_full);
        }
        self.waiters.hand_over(Whom::Unknown(id), Whom::User(user));
        for (command, done) in unknown.commands {
            self.journal.answer_when_stored(Action::AnswerCommand {
                command,
                answer: Ok(done),
            });
        }
    }

    fn unknown_failed(&mut self, now: Now, id: UnknownId, reason: &str) {
        let reason = format!("User lookup failed: {reason}");
        self.refuse_waiters(Whom::Unknown(id), &reason);
        let (min, max) = (
            self.config.retry_min_interval,
            self.config.retry_max_interval,
        );
        let Some(unknown) = self.unknown.get_mut(id) else {
            return;
        };
        unknown.failures = unknown.failures.saturating_add(1);
        let pause = doubled(min, max, unknown.failures);
        for (command, _) in std::mem::take(&mut unknown.commands) {
            self.actions.push_back(Action::AnswerCommand {
                command,
                answer: Err(reason.clone()),
            });
        }
        let at = now.mono + self.jitter.shorten(pause);
        self.unknown.retry_at(id, at);
    }

    fn known_looked_up(&mut self, now: Now, user: UserId, why: Why, result: UserLookup) {
        match result {
            UserLookup::Found {
                username,
                targets,
                noreplicate,
            } => {
                if username == self.users.name(user) {
                    self.believe(now, user, &targets, noreplicate);
                    self.release(user);
                    if let Why::Denied(peer, noreplicate) = why {
                        self.denied_by_peer(now, user, peer, noreplicate);
                    }
                } else {
                    self.rename(now, user, &username, &targets, noreplicate);
                }
            }
            UserLookup::NotFound => {
                let text = "User not found in userdb, no longer replicated".to_owned();
                self.say_of_user(Level::Info, user, text);
                self.remove_user(user, "User not found");
            }
            UserLookup::TempFail(reason) => self.lookup_failed(now, user, why, &reason),
        }
    }

    /// Takes over what userdb said.
    fn believe(&mut self, now: Now, user: UserId, targets: &[Vec<u8>], noreplicate: bool) {
        if let Some(user) = self.users.get_mut(user) {
            user.checked_secs = Self::checked_secs(now.mono);
        }
        if noreplicate || !self.set_targets(now, user, targets) {
            self.leave_out(user);
        }
    }

    /// userdb calls the user by another name: what is pending is that one's.
    fn rename(
        &mut self,
        now: Now,
        user: UserId,
        username: &[u8],
        targets: &[Vec<u8>],
        noreplicate: bool,
    ) {
        let Some(other) = self.users.insert(username) else {
            return self.lookup_failed(now, user, Why::Due, "Too many users");
        };
        let rows = self.users.rows(user);
        let (priority, full) = rows.fold((Priority::None, false), |(priority, full), row| {
            let pending = match row.failed {
                true => row.priority.max(Priority::Low),
                false => row.priority,
            };
            (priority.max(pending), full || row.force_full)
        });
        self.recount(other);
        if priority != Priority::None || full {
            self.raise_user(now, other, priority, full);
        }
        self.waiters.hand_over(Whom::User(user), Whom::User(other));
        self.remove_user(user, "User not found");
        if !self.busy.contains_key(&other) {
            self.believe(now, other, targets, noreplicate);
            self.release(other);
        }
    }

    fn lookup_failed(&mut self, now: Now, user: UserId, why: Why, reason: &str) {
        let reason = format!("User lookup failed: {reason}");
        let asked_again = LOOKUP_RETRY.min(self.config.listing_interval / 2);
        let believed = self.config.listing_interval - asked_again;
        // What the store has may be a part of the replicas only, if the crash came between their writes.
        let is_known = self
            .users
            .get(user)
            .is_some_and(|user| user.checked_secs != 0 && !user.left_out);
        self.busy.remove(&user);
        match why {
            Why::Missing | Why::Asked => {}
            // What was true an hour ago is better than nothing.
            Why::Due if is_known => {
                let checked = Self::checked_secs(now.mono - believed);
                if let Some(user) = self.users.get_mut(user) {
                    user.checked_secs = checked;
                }
            }
            Why::Due | Why::Denied(..) => {
                for id in self.users.row_ids(user) {
                    let denied = match why {
                        Why::Denied(peer, _) => self.has_peer(id, peer),
                        _ => self.queue.place(id) == Place::Lookup,
                    };
                    if denied {
                        self.fail(now, id, &reason, Pause::Growing, Level::Warning);
                    }
                }
                self.refuse_waiters(Whom::User(user), &reason);
            }
        }
        self.release(user);
    }

    /// The local userdb has the user, and replicates it: the word was the peer's.
    fn denied_by_peer(&mut self, now: Now, user: UserId, peer: PeerId, noreplicate: bool) {
        let target = String::from_utf8_lossy(self.peers.target(peer)).into_owned();
        let reason = match noreplicate {
            true => format!("User is not replicated at {target}"),
            false => format!("User is unknown at {target}"),
        };
        for id in self.users.row_ids(user) {
            if self.has_peer(id, peer) {
                self.fail(now, id, &reason, Pause::Longest, Level::Warning);
            }
        }
        self.refuse_waiters(Whom::User(user), &reason);
    }

    fn has_peer(&self, id: RowId, peer: PeerId) -> bool {
        self.users.row(id).is_some_and(|row| row.peer == Some(peer))
    }
}
