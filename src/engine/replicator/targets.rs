//! A user's replicas become other ones.

use super::Replicator;
use super::config::MAX_REPLICAS;
use super::journal::Entry;
use super::log::Level;
use super::peers::PeerId;
use super::queue::{Place, Work, key};
use super::record::{RecordChange, StateChange};
use super::users::{Row, UserId};
use crate::engine::Priority;
use crate::engine::time::Now;

/// A row before the change, with all that hangs on it.
struct Old {
    row: Row,
    work: Option<Work>,
    state: Option<StateChange>,
}

impl Replicator {
    /// Gives the user these replicas. No sync of the user may run. False: there is none among them.
    pub(super) fn set_targets(&mut self, now: Now, user: UserId, targets: &[Vec<u8>]) -> bool {
        let peers = self.intern(user, targets);
        if peers.is_empty() {
            return false;
        }
        if let Some(known) = self.users.get_mut(user) {
            known.left_out = false;
        }
        let before: Vec<Option<PeerId>> = self.users.rows(user).map(|row| row.peer).collect();
        if before.iter().copied().eq(peers.iter().copied().map(Some)) {
            for peer in peers {
                self.peers.remove_user(peer);
            }
        } else {
            self.replace_rows(now, user, &peers);
        }
        self.recount(user);
        true
    }

    /// The peers of the targets, each once, each with one user more.
    fn intern(&mut self, user: UserId, targets: &[Vec<u8>]) -> Vec<PeerId> {
        let mut peers = Vec::new();
        for target in targets {
            if peers.iter().any(|peer| self.peers.target(*peer) == target) {
                continue;
            }
            if peers.len() == MAX_REPLICAS {
                let text = format!("More than {MAX_REPLICAS} replicas: the others are left out");
                self.say_of_user(Level::Error, user, text);
                break;
            }
            match self.peers.add_user(target) {
                Some(peer) => peers.push(peer),
                None => {
                    let target = String::from_utf8_lossy(target).into_owned();
                    let text = format!(
                        "mail_replica={target} is left out: not a target, or too many different ones"
                    );
                    self.say_of_user(Level::Error, user, text);
                }
            }
        }
        peers
    }

    fn replace_rows(&mut self, now: Now, user: UserId, peers: &[PeerId]) {
        let mut old: Vec<Old> = Vec::new();
        for id in self.users.row_ids(user) {
            old.push(Old {
                work: self.queue.take(id),
                state: self.journal.take_state(id),
                row: self.users.row(id).cloned().unwrap_or_default(),
            });
        }
        // What waits for a replica that was not known waits for each; a new one starts with all that waits.
        let unassigned = pending(old.iter().filter(|old| old.row.peer.is_none()));
        let any = pending(old.iter());
        let (mut rows, mut works, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for peer in peers {
            let kept = old.iter().position(|old| old.row.peer == Some(*peer));
            let first = old.iter().position(|old| old.row.peer.is_none());
            let (mut of_row, carried) = match (kept, first) {
                (Some(at), _) => (old.swap_remove(at), unassigned),
                (None, Some(at)) => {
                    let mut template = old.swap_remove(at);
                    template.row.peer = Some(*peer);
                    if template.row.has_state {
                        template.state = Some(StateChange::CopyFrom(Vec::new()));
                    }
                    gone.push(Vec::new());
                    (template, any)
                }
                (None, None) => (Old::new(*peer), any),
            };
            of_row.carry(now, carried);
            of_row.row.dirty = false;
            rows.push(of_row.row);
            works.push((of_row.work, of_row.state));
        }
        self.users.set_rows(user, rows);
        for (id, (work, state)) in self.users.row_ids(user).zip(works) {
            if let Some(work) = work {
                self.queue.put(id, work);
            }
            if let Some(state) = state {
                self.journal.set_state(id, state);
            }
            self.touch(id);
        }
        for Old { row, .. } in old {
            gone.push(self.target_of(&row).to_vec());
            if let Some(peer) = row.peer {
                self.peers.remove_user(peer);
            }
        }
        // After the new rows are written: a crash in between leaves what waits twice, not never.
        for target in gone {
            let username = self.users.name(user).to_vec();
            self.journal
                .push(Entry::Change(RecordChange::Remove { username, target }));
        }
        self.waiters.begin_anew(user);
    }
}

/// What waits in a row.
#[derive(Clone, Copy)]
struct Pending {
    priority: Priority,
    full: bool,
    since: i64,
}

fn pending<'a>(rows: impl Iterator<Item = &'a Old>) -> Option<Pending> {
    rows.filter_map(Old::pending).reduce(|one, other| Pending {
        priority: one.priority.max(other.priority),
        full: one.full || other.full,
        since: one.since.min(other.since),
    })
}

impl Old {
    fn new(peer: PeerId) -> Self {
        Self {
            row: Row {
                peer: Some(peer),
                ..Row::default()
            },
            work: None,
            state: None,
        }
    }

    fn pending(&self) -> Option<Pending> {
        let is_idle = self.work.as_ref().is_none_or(Work::is_idle);
        if is_idle && !self.row.is_pending() {
            return None;
        }
        Some(Pending {
            priority: match self.row.failed || self.row.force_full {
                true => self.row.priority.max(Priority::Low),
                false => self.row.priority,
            },
            full: self.row.force_full,
            since: self.work.as_ref().map_or(0, |work| work.since),
        })
    }

    fn carry(&mut self, now: Now, pending: Option<Pending>) {
        let Some(pending) = pending else { return };
        if !self.row.is_pending() {
            self.row.last_update = now.wall;
        }
        self.row.priority = self.row.priority.max(pending.priority);
        self.row.force_full |= pending.full;
        if self.work.as_ref().is_none_or(Work::is_idle) {
            let mut work = self.work.take().unwrap_or_default();
            work.since = pending.since;
            work.key = key(pending.since, self.row.priority);
            // The lookup that brought the replicas is over when its user is released.
            work.set_place(Place::Lookup);
            self.work = Some(work);
        }
    }
}
