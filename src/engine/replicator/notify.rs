//! The aggregators' lines: notifications, requests to wait for a sync, and their acknowledgement.

use super::Replicator;
use super::action::{Action, ConnectionId};
use super::config::MAX_USERNAME_BYTES;
use super::journal::Need;
use super::queue::Place;
use super::users::UserId;
use super::waiters::Whom;
use crate::engine::Priority;
use crate::engine::time::{Mono, Now};
use std::time::Duration;

/// A waiter whose user is not tried again within this time is refused at once.
pub(super) const WAITERS_PATIENCE: Duration = Duration::from_secs(2);

impl Replicator {
    /// False: read no line from an aggregator until it is true again. Ask before each line. What was read is kept; a line handed
    /// in nevertheless for a name that is not known is never acknowledged.
    #[must_use]
    pub fn accepts_notifications(&self) -> bool {
        self.loaded && !self.unknown.is_full()
    }

    /// Notifications for these users come next. Changes nothing: to know of them together is faster.
    pub fn look_ahead<'a>(&self, usernames: impl Iterator<Item = &'a [u8]>) {
        std::hint::black_box(self.users.look_ahead(usernames));
    }

    /// `U\t<user>\t<low|high>[\t<line>]`: something has changed. The line is acknowledged when it is stored.
    pub fn handle_notification(
        &mut self,
        now: Now,
        connection: ConnectionId,
        username: &[u8],
        priority: Priority,
        line: Option<u64>,
    ) {
        self.clock.observe(now);
        let (_, need) = self.note(now, username, priority);
        if let Some(line) = line {
            self.journal.acknowledge(connection, line, need);
        }
        self.advance(now);
    }

    /// `U\t<user>\tsync\t<request>`: something has changed, and somebody waits for it to be synced.
    /// `acknowledge`: the line is also covered by `Action::Acknowledge`.
    pub fn handle_sync_request(
        &mut self,
        now: Now,
        connection: ConnectionId,
        username: &[u8],
        request: u64,
        acknowledge: bool,
    ) {
        self.clock.observe(now);
        let (whom, need) = self.note(now, username, Priority::Sync);
        if acknowledge {
            self.journal.acknowledge(connection, request, need);
        }
        let refused = match whom {
            None => Some("User is not replicated"),
            Some(Whom::User(user)) => self.why_not_wait(now.mono, user),
            Some(Whom::Unknown(_)) => None,
        };
        let added = match (refused, whom) {
            (None, Some(whom)) => self
                .waiters
                .add(whom, connection, request)
                .map_err(|_| "Too many requests are waiting".to_owned()),
            (reason, _) => Err(reason.unwrap_or_default().to_owned()),
        };
        if added.is_err() {
            self.totals.waiters_failed += 1;
            self.actions.push_back(Action::AnswerWaiter {
                connection,
                request,
                answer: added,
            });
        }
        self.advance(now);
    }

    /// The one who waits hung up.
    pub fn handle_waiter_gone(&mut self, connection: ConnectionId, request: u64) {
        self.waiters.gone(connection, request);
    }

    /// The aggregator is gone: nobody waits, nothing is acknowledged. What it told stays.
    pub fn handle_connection_closed(&mut self, connection: ConnectionId) {
        self.waiters.connection_closed(connection);
        self.journal.connection_closed(connection);
    }

    /// Takes a notification; who is to be synced (None: nobody), and when it is safe.
    fn note(&mut self, now: Now, username: &[u8], priority: Priority) -> (Option<Whom>, Need) {
        self.totals.notifications += 1;
        let stored = Need::Upto(self.journal.upto());
        if username.is_empty() || username.len() > MAX_USERNAME_BYTES {
            self.totals.dropped_unknown += 1;
            return (None, stored);
        }
        if let Some(user) = self.users.find(username) {
            if self.is_left_out(user) && self.is_looked_up(now.mono, user) {
                self.totals.dropped_not_replicated += 1;
                return (None, stored);
            }
            self.raise_user(now, user, priority, false);
            return (Some(Whom::User(user)), Need::Upto(self.journal.upto()));
        }
        let Some((id, unknown)) = self.unknown.entry(username, now.mono) else {
            return (None, Need::Never);
        };
        unknown.priority = unknown.priority.max(priority);
        unknown.notifications += 1;
        (Some(Whom::Unknown(id)), Need::Unknown(id))
    }

    pub(super) fn is_left_out(&self, user: UserId) -> bool {
        self.users.get(user).is_some_and(|user| user.left_out)
    }

    /// Why it is no use to wait for the user.
    fn why_not_wait(&self, now: Mono, user: UserId) -> Option<&'static str> {
        for id in self.users.row_ids(user) {
            match self.queue.place(id) {
                Place::Peer(peer) if self.peers.is_down(peer) => {
                    return Some("Peer is not reachable");
                }
                Place::Retry(at) if at > now + WAITERS_PATIENCE => {
                    return Some("Last sync failed, waiting for the next try");
                }
                _ => {}
            }
        }
        None
    }
}
