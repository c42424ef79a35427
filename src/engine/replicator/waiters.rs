//! Those who wait for a sync.
//!
//! A waiter is satisfied by a success at each replica, of syncs that began after it came. What began before does not count.

use std::collections::BTreeMap;

use super::action::{Action, ConnectionId};
use super::config::MAX_WAITERS;
use super::unknown::UnknownId;
use super::users::UserId;

/// Whom a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whom {
    User(UserId),
    Unknown(UnknownId),
}

/// Counts waiters: those that came before a sync began have a lower number than it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn(u64);

#[derive(Debug)]
struct Waiter {
    turn: Turn,
    connection: ConnectionId,
    request: u64,
    /// The replicas, bit by bit, that have not had their success.
    left: u8,
}

const ALL_REPLICAS: u8 = u8::MAX;

#[derive(Debug, Default)]
pub(super) struct Waiters {
    waiting: BTreeMap<Whom, Vec<Waiter>>,
    whom: BTreeMap<(ConnectionId, u64), Whom>,
    last: Turn,
}

/// There are too many waiters, or this request waits already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

impl Waiters {
    pub(super) fn add(
        &mut self,
        whom: Whom,
        connection: ConnectionId,
        request: u64,
    ) -> Result<(), Refused> {
        if self.whom.len() >= MAX_WAITERS || self.whom.contains_key(&(connection, request)) {
            return Err(Refused);
        }
        self.last.0 += 1;
        self.whom.insert((connection, request), whom);
        self.waiting.entry(whom).or_default().push(Waiter {
            turn: self.last,
            connection,
            request,
            left: ALL_REPLICAS,
        });
        Ok(())
    }

    /// A sync that begins now is for the waiters up to this turn.
    pub(super) fn turn(&self) -> Turn {
        self.last
    }

    pub(super) fn count(&self, whom: Whom) -> usize {
        self.waiting.get(&whom).map_or(0, Vec::len)
    }

    pub(super) fn users(&self) -> Vec<UserId> {
        let users = self.waiting.keys().filter_map(|whom| match whom {
            Whom::User(user) => Some(*user),
            Whom::Unknown(_) => None,
        });
        users.collect()
    }

    /// A sync of this replica, one of `replicas`, succeeded; it began at `turn`.
    pub(super) fn succeeded(
        &mut self,
        user: UserId,
        replica: u8,
        replicas: u8,
        turn: Turn,
    ) -> Vec<Action> {
        let wanted = ALL_REPLICAS
            .checked_shl(u32::from(replicas))
            .map_or(ALL_REPLICAS, |bits| !bits);
        let done = 1_u8.checked_shl(u32::from(replica)).unwrap_or(0);
        self.answer(Whom::User(user), Ok(()), |waiter| {
            if waiter.turn <= turn {
                waiter.left &= !done;
            }
            waiter.left & wanted == 0
        })
    }

    /// Refuses those who came before `turn`.
    pub(super) fn refuse_before(&mut self, user: UserId, turn: Turn, reason: &str) -> Vec<Action> {
        self.answer(Whom::User(user), Err(reason.to_owned()), |waiter| {
            waiter.turn <= turn
        })
    }

    pub(super) fn refuse(&mut self, whom: Whom, reason: &str) -> Vec<Action> {
        self.answer(whom, Err(reason.to_owned()), |_| true)
    }

    /// The replicas are other ones now: each needs its success.
    pub(super) fn begin_anew(&mut self, user: UserId) {
        for waiter in self
            .waiting
            .get_mut(&Whom::User(user))
            .into_iter()
            .flatten()
        {
            waiter.left = ALL_REPLICAS;
        }
    }

    pub(super) fn hand_over(&mut self, from: Whom, to: Whom) {
        let Some(mut moved) = self.waiting.remove(&from) else {
            return;
        };
        for waiter in &mut moved {
            waiter.left = ALL_REPLICAS;
            // A sync of `to` that runs now may have begun before the mail was saved.
            self.last.0 += 1;
            waiter.turn = self.last;
            self.whom.insert((waiter.connection, waiter.request), to);
        }
        self.waiting.entry(to).or_default().append(&mut moved);
    }

    pub(super) fn gone(&mut self, connection: ConnectionId, request: u64) {
        let Some(whom) = self.whom.remove(&(connection, request)) else {
            return;
        };
        if let Some(waiters) = self.waiting.get_mut(&whom) {
            waiters.retain(|w| (w.connection, w.request) != (connection, request));
            if waiters.is_empty() {
                self.waiting.remove(&whom);
            }
        }
    }

    pub(super) fn connection_closed(&mut self, connection: ConnectionId) {
        let range = (connection, 0)..=(connection, u64::MAX);
        let requests: Vec<_> = self.whom.range(range).map(|(key, _)| key.1).collect();
        for request in requests {
            self.gone(connection, request);
        }
    }

    fn answer(
        &mut self,
        whom: Whom,
        answer: Result<(), String>,
        mut is_done: impl FnMut(&mut Waiter) -> bool,
    ) -> Vec<Action> {
        let Some(waiters) = self.waiting.get_mut(&whom) else {
            return Vec::new();
        };
        let mut actions = Vec::new();
        waiters.retain_mut(|waiter| {
            let done = is_done(waiter);
            if done {
                self.whom.remove(&(waiter.connection, waiter.request));
                actions.push(Action::AnswerWaiter {
                    connection: waiter.connection,
                    request: waiter.request,
                    answer: answer.clone(),
                });
            }
            !done
        });
        if waiters.is_empty() {
            self.waiting.remove(&whom);
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: UserId = UserId(7);
    const AGGREGATOR: ConnectionId = ConnectionId(1);

    #[test]
    fn success_of_a_sync_that_began_before_the_request_is_none() {
        let mut waiters = Waiters::default();
        let before = waiters.turn();
        waiters.add(Whom::User(USER), AGGREGATOR, 1).expect("room");
        assert_eq!(waiters.succeeded(USER, 0, 1, before), []);
        let after = waiters.turn();
        assert_eq!(waiters.succeeded(USER, 0, 1, after).len(), 1);
        assert_eq!(waiters.succeeded(USER, 0, 1, after), []);
    }

    #[test]
    fn every_replica_must_succeed() {
        let mut waiters = Waiters::default();
        waiters.add(Whom::User(USER), AGGREGATOR, 1).expect("room");
        let turn = waiters.turn();
        assert_eq!(waiters.succeeded(USER, 1, 8, turn), []);
        for replica in [0, 2, 3, 4, 5, 6] {
            assert_eq!(waiters.succeeded(USER, replica, 8, turn), []);
        }
        assert_eq!(waiters.succeeded(USER, 7, 8, turn).len(), 1);
    }

    #[test]
    fn maximum_is_taken_one_more_is_refused_and_the_gone_cost_nothing() {
        let mut waiters = Waiters::default();
        for request in 0..MAX_WAITERS as u64 {
            let user = Whom::User(UserId(request as u32 % 100));
            waiters.add(user, AGGREGATOR, request).expect("room");
        }
        let more = waiters.add(Whom::User(USER), ConnectionId(2), 0);
        assert_eq!(more, Err(Refused));
        waiters.gone(AGGREGATOR, 7);
        assert_eq!(waiters.count(Whom::User(USER)), MAX_WAITERS / 100 - 1);
        waiters.connection_closed(AGGREGATOR);
        assert!(waiters.whom.is_empty() && waiters.waiting.is_empty());
    }
}
