//! The administrator's commands, and `NOTIFY` of the peer.

use std::collections::VecDeque;

use super::Replicator;
use super::action::{Action, CommandDone, CommandId};
use super::config::{MAX_COMMANDS, MAX_LOOKUPS};
use super::lookups::Why;
use super::mask::{has_wildcard, wildcard_match};
use super::queue::Place;
use super::users::{RowId, UserId};
use crate::engine::Priority;
use crate::engine::time::Now;

/// Users looked at in one step of a command for many.
const STEP_USERS: u32 = 1000;

#[derive(Debug, Default)]
pub(super) struct Commands {
    replicate: VecDeque<Replicate>,
}

#[derive(Debug)]
struct Replicate {
    command: CommandId,
    priority: Priority,
    full: bool,
    mask: Vec<u8>,
    cursor: u32,
    users: u64,
}

impl Commands {
    pub(super) fn has_work(&self) -> bool {
        !self.replicate.is_empty()
    }
}

impl Replicator {
    /// `REPLICATE\t<priority>\t<f or empty>\t<mask>`: answered with the number of users when all of it is stored.
    /// A mask without wildcards names a user, who need not be known yet.
    pub fn handle_replicate(
        &mut self,
        now: Now,
        command: CommandId,
        priority: Priority,
        full: bool,
        mask: &[u8],
    ) {
        self.clock.observe(now);
        if !has_wildcard(mask) {
            self.replicate_user(now, command, priority, full, mask);
        } else if self.commands_in_work() >= MAX_COMMANDS {
            self.refuse_command(command, "Too many commands");
        } else {
            self.commands.replicate.push_back(Replicate {
                command,
                priority,
                full,
                mask: mask.to_vec(),
                cursor: 0,
                users: 0,
            });
        }
        self.advance(now);
    }

    /// `ADD\t<mask>`: the user becomes known if userdb has it, or all that a listing by the mask has. The replicas of one
    /// who is known become so too.
    pub fn handle_add(&mut self, now: Now, command: CommandId, mask: &[u8]) {
        self.clock.observe(now);
        if !has_wildcard(mask) {
            match self.users.find(mask) {
                Some(user) => {
                    self.look_up_if_never(user);
                    self.answer(command, CommandDone::Done);
                }
                None => self.look_up_for(now, command, CommandDone::Done, mask),
            }
        } else if self.commands_in_work() >= MAX_COMMANDS {
            self.refuse_command(command, "Too many commands");
        } else {
            self.listing.wanted.push_back((mask.to_vec(), command));
        }
        self.advance(now);
    }

    /// `REMOVE\t<username>`: the user is forgotten, until it is listed or notified again.
    pub fn handle_remove(&mut self, now: Now, command: CommandId, username: &[u8]) {
        self.clock.observe(now);
        match self.users.find(username) {
            None => self.refuse_command(command, "User not found"),
            Some(user) => {
                self.remove_by_command(user);
                self.answer(command, CommandDone::Done);
            }
        }
        self.advance(now);
    }

    /// `NOTIFY\t<username>\t<f or empty>\t<state>`: the peer has synced the user. It says nothing of what changed here meanwhile:
    /// that stays pending.
    pub fn handle_notify(
        &mut self,
        now: Now,
        command: CommandId,
        username: &[u8],
        full: bool,
        state: &[u8],
    ) {
        self.clock.observe(now);
        match self.users.find(username) {
            None => self.look_up_for(now, command, CommandDone::Done, username),
            Some(user) => {
                if self.users.replicas(user) == 1 && !self.is_left_out(user) {
                    let replica = 0;
                    self.synced_by_peer(now, RowId { user, replica }, full, state);
                } else {
                    // It does not say which of them it is.
                    for id in self.users.row_ids(user) {
                        self.mark_stale(id);
                    }
                }
                self.answer(command, CommandDone::Done);
            }
        }
        self.advance(now);
    }

    pub(super) fn work_on_commands(&mut self, now: Now) {
        let Some(mut job) = self.commands.replicate.pop_front() else {
            return;
        };
        let slots = self.users.slots();
        let end = job.cursor.saturating_add(STEP_USERS).min(slots);
        while job.cursor < end {
            let user = UserId(job.cursor);
            job.cursor += 1;
            let is_counted = self.users.get(user).is_some_and(|user| !user.left_out);
            if is_counted && wildcard_match(self.users.name(user), &job.mask) {
                self.replicate_now(now, user, job.priority, job.full);
                job.users += 1;
            }
        }
        if job.cursor < slots {
            self.commands.replicate.push_front(job);
        } else {
            self.answer(job.command, CommandDone::Users(job.users));
        }
    }

    fn replicate_user(
        &mut self,
        now: Now,
        command: CommandId,
        priority: Priority,
        full: bool,
        username: &[u8],
    ) {
        let done = CommandDone::Users(1);
        match self.users.find(username) {
            Some(user) => {
                if self.is_left_out(user) {
                    // The administrator may just have changed that.
                    if let Some(user) = self.users.get_mut(user) {
                        user.checked_secs = 0;
                    }
                }
                self.replicate_now(now, user, priority, full);
                self.answer(command, done);
            }
            None => {
                self.look_up_for(now, command, done, username);
                if let Some((_, unknown)) = self.unknown.entry(username, now.mono) {
                    unknown.priority = unknown.priority.max(priority);
                    unknown.force_full |= full;
                }
            }
        }
    }

    /// The administrator wants it now: a row that waits for its next try is tried at once.
    fn replicate_now(&mut self, now: Now, user: UserId, priority: Priority, full: bool) {
        self.raise_user(now, user, priority, full);
        for id in self.users.row_ids(user) {
            // Fast syncs get nowhere: an order is what is left.
            if full && self.queue.work(id).is_some_and(|work| work.stuck) {
                self.came_through(id);
            }
            if matches!(self.queue.place(id), Place::Retry(_)) {
                self.make_ready(id);
            }
        }
    }

    /// A user who was never due has not been looked up.
    fn look_up_if_never(&mut self, user: UserId) {
        let is_known =
            self.is_left_out(user) || self.users.rows(user).any(|row| row.peer.is_some());
        if !is_known && !self.busy.contains_key(&user) && self.open_lookups() < MAX_LOOKUPS {
            self.look_up(user, Why::Asked);
        }
    }

    fn look_up_for(&mut self, now: Now, command: CommandId, done: CommandDone, username: &[u8]) {
        match self.unknown.entry(username, now.mono) {
            Some((_, unknown)) if unknown.commands.len() < MAX_COMMANDS => {
                unknown.commands.push((command, done));
            }
            _ => self.refuse_command(command, "Too many users are being looked up"),
        }
    }

    fn remove_by_command(&mut self, user: UserId) {
        match self.running_sync(user) {
            None => self.remove_user(user, "User was removed"),
            Some(running) => {
                running.doomed = true;
                running.priority = Priority::None;
                running.forced = false;
                for id in self.users.row_ids(user) {
                    if let Some(row) = self.users.row_mut(id) {
                        row.priority = Priority::None;
                        row.failed = false;
                        row.force_full = false;
                    }
                    self.touch(id);
                    self.recount(user);
                }
            }
        }
    }

    fn synced_by_peer(&mut self, now: Now, id: RowId, full: bool, state: &[u8]) {
        self.take_peers_state(id, full, state);
        let place = self.queue.place(id);
        let is_running = matches!(place, Place::Running(_));
        let changes = self.queue.work(id).map_or(0, |work| work.changes);
        let Some(row) = self.users.row_mut(id) else {
            return;
        };
        // dsync-server tells of a sync that ended with CHANGED too. While ours do not succeed, theirs proves nothing; and two nodes
        // that both end so would wake each other for ever.
        if changes > 0 {
            return;
        }
        if !row.failed {
            row.last_fast_sync = now.wall;
            row.last_success = now.wall;
            if full && !is_running {
                row.last_full_sync = now.wall;
            }
            self.touch(id);
        }
        if let Place::Retry(at) = place {
            self.wake(now, id, at);
        }
        self.recount(id.user);
    }

    fn answer(&mut self, command: CommandId, done: CommandDone) {
        self.journal.answer_when_stored(Action::AnswerCommand {
            command,
            answer: Ok(done),
        });
    }

    fn refuse_command(&mut self, command: CommandId, reason: &str) {
        self.actions.push_back(Action::AnswerCommand {
            command,
            answer: Err(reason.to_owned()),
        });
    }

    fn commands_in_work(&self) -> usize {
        self.commands.replicate.len() + self.listing.wanted.len()
    }
}
