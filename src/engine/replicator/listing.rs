//! Listing the users: at the start, again regularly, and after a failure with growing delays.
//!
//! A listing that failed removes nobody. Whom a complete one does not have is looked up, and removed if userdb does not
//! know the user either.

use std::collections::VecDeque;
use std::time::Duration;

use super::action::{Action, CommandDone, CommandId, ListingId};
use super::backoff::doubled;
use super::config::MAX_LOOKUPS;
use super::log::Level;
use super::users::UserId;
use super::{Replicator, Why};
use crate::engine::time::{Mono, Now};

const SHORTEST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(5 * 60);
/// Users looked at in one step of the search for those that a listing did not have.
const STEP_USERS: u32 = 4096;
/// The search leaves this many lookups to those who are due.
const MISSING_LOOKUPS: usize = MAX_LOOKUPS / 2;

#[derive(Debug, Default)]
pub(super) struct Listing {
    current: Option<(ListingId, Scope)>,
    next_at: Mono,
    failures: u32,
    /// Of the listing of all users that is under way, or was last; 0: there was none.
    generation: u8,
    /// Listings that commands asked for.
    pub(super) wanted: VecDeque<(Vec<u8>, CommandId)>,
    /// Where the search for users that the last complete listing did not have goes on.
    missing_from: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    /// For this command.
    Mask(CommandId),
}

impl Listing {
    pub(super) fn next(&self) -> Option<Mono> {
        match (&self.current, self.wanted.is_empty()) {
            (Some(_), _) => None,
            (None, true) => Some(self.next_at),
            (None, false) => Some(Mono(0)),
        }
    }
}

impl Replicator {
    pub(super) fn list_users_if_due(&mut self, now: Now) {
        if self.listing.next().is_none_or(|at| at > now.mono) {
            return;
        }
        let listing = ListingId(self.next_id());
        let (mask, scope) = match self.listing.wanted.pop_front() {
            Some((mask, command)) => (mask, Scope::Mask(command)),
            None => {
                // The search of the one before would take the new generation's users for missing.
                self.listing.missing_from = None;
                self.listing.generation = self.listing.generation.checked_add(1).unwrap_or(1);
                (b"*".to_vec(), Scope::All)
            }
        };
        self.listing.current = Some((listing, scope));
        self.actions.push_back(Action::ListUsers { listing, mask });
    }

    /// One user of the listing.
    pub fn handle_listing_user(&mut self, now: Now, listing: ListingId, username: &[u8]) {
        self.clock.observe(now);
        let Some((_, scope)) = self.listing.current.filter(|(id, _)| *id == listing) else {
            return;
        };
        let is_new = self.users.find(username).is_none();
        let Some(user) = self.users.insert(username) else {
            return;
        };
        if is_new {
            self.recount(user);
            for id in self.users.row_ids(user) {
                if let Some(row) = self.users.row_mut(id) {
                    row.last_update = now.wall;
                }
            }
            self.sweep_soon(now);
        }
        if scope == Scope::All {
            let generation = self.listing.generation;
            if let Some(user) = self.users.get_mut(user) {
                user.listed = generation;
            }
        }
    }

    /// The listing is complete, or has failed for this reason.
    pub fn handle_listing_finished(
        &mut self,
        now: Now,
        listing: ListingId,
        result: Result<(), String>,
    ) {
        self.clock.observe(now);
        let current = self.listing.current.take_if(|(id, _)| *id == listing);
        match (current.map(|(_, scope)| scope), result) {
            (None, _) => {}
            (Some(Scope::Mask(command)), Ok(())) => {
                self.journal.answer_when_stored(Action::AnswerCommand {
                    command,
                    answer: Ok(CommandDone::Done),
                });
            }
            (Some(Scope::Mask(command)), Err(reason)) => {
                self.actions.push_back(Action::AnswerCommand {
                    command,
                    answer: Err(format!("Listing users failed: {reason}")),
                });
            }
            (Some(Scope::All), Ok(())) => {
                if self.listing.failures > 0 {
                    let text = "Listing users works again".to_owned();
                    self.log.say(Level::Info, text);
                }
                self.listing.failures = 0;
                self.listing.next_at = now.mono + self.config.listing_interval;
                self.listing.missing_from = Some(0);
            }
            (Some(Scope::All), Err(reason)) => {
                if self.listing.failures == 0 {
                    let text = format!(
                        "Listing users failed: {reason}; it is tried again, users already known stay"
                    );
                    self.log.say(Level::Error, text);
                }
                self.listing.failures = self.listing.failures.saturating_add(1);
                let pause = doubled(SHORTEST_RETRY, LONGEST_RETRY, self.listing.failures);
                self.listing.next_at = now.mono + self.jitter.shorten(pause);
            }
        }
        self.advance(now);
    }

    pub(super) fn can_look_for_missing(&self) -> bool {
        self.listing.missing_from.is_some() && self.lookups.len() < MISSING_LOOKUPS
    }

    /// One step of the search for users that the last complete listing did not have.
    pub(super) fn look_for_missing(&mut self, now: Now) {
        let Some(from) = self.listing.missing_from else {
            return;
        };
        let (slots, mut at) = (self.users.slots(), from);
        while at < slots && at < from.saturating_add(STEP_USERS) {
            if self.lookups.len() >= MISSING_LOOKUPS {
                break;
            }
            let user = UserId(at);
            at += 1;
            let generation = self.listing.generation;
            let is_missing = self
                .users
                .get(user)
                .is_some_and(|user| user.listed != generation);
            // Who is busy is looked up by what it is busy with, or after the next listing.
            if is_missing && !self.busy.contains_key(&user) && !self.was_just_looked_up(now, user) {
                self.look_up(user, Why::Missing);
            }
        }
        self.listing.missing_from = (at < slots).then_some(at);
    }

    fn was_just_looked_up(&self, now: Now, user: UserId) -> bool {
        let checked = self.users.get(user).map_or(0, |user| user.checked_secs);
        let age = Self::checked_secs(now.mono).saturating_sub(checked);
        checked != 0 && u64::from(age) < self.config.listing_interval.as_secs() / 2
    }
}
