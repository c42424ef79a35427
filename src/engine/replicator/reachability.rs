//! What follows from a peer's being away or back, and from a sync that does not get on.

use std::time::Duration;

use super::action::{Action, ProbeId, SyncId};
use super::log::{Level, LogEvent};
use super::peers::{PeerId, Proof};
use super::queue::{Place, key_after_peer};
use super::users::RowId;
use super::waiters::Whom;
use super::{Busy, Replicator};
use crate::engine::time::{Mono, Now};

/// When a sync has not got on for this time its peer is probed; if that is away, the sync is ended.
const STALLED: Duration = Duration::from_secs(10);
const PEER_IS_AWAY: &str = "No progress, and the peer is not reachable";

impl Replicator {
    /// The answer to `Action::Probe`; `Err` has the reason.
    pub fn handle_probe_finished(&mut self, now: Now, probe: ProbeId, result: Result<(), String>) {
        self.clock.observe(now);
        let proof = self.peers.end_probe(probe, result, now, &mut self.jitter);
        if let Some((peer, proof)) = proof {
            self.proven(now, peer, proof);
        }
        self.advance(now);
    }

    /// Begins a probe of the peer, if it needs one now.
    pub(super) fn probe(&mut self, now: Now, peer: PeerId) {
        if let Some(probe) = self.peers.begin_probe(peer, now.mono) {
            let target = self.peers.target(peer).to_vec();
            self.actions.push_back(Action::Probe { probe, target });
        }
    }

    /// Whatever went wrong may be the peer's fault: a probe is to tell before its next sync.
    pub(super) fn suspect(&mut self, now: Now, peer: PeerId) {
        if self.peers.suspect(peer) {
            self.probe(now, peer);
        }
    }

    pub(super) fn proven(&mut self, now: Now, peer: PeerId, proof: Proof) {
        match proof {
            Proof::Gone => self.peer_gone(now, peer),
            Proof::StillAway => {}
            Proof::Back => self.peer_back(peer),
            Proof::There => {
                let waiting: Vec<RowId> = self.queue.waiting_for(peer).collect();
                for id in waiting {
                    self.make_ready(id);
                }
            }
        }
    }

    fn peer_gone(&mut self, now: Now, peer: PeerId) {
        let blocked: Vec<RowId> = self
            .queue
            .ready_and_retrying()
            .filter(|id| {
                self.users
                    .row(*id)
                    .is_some_and(|row| row.peer == Some(peer))
            })
            .filter(|id| match self.queue.place(*id) {
                Place::Retry(_) => self.queue.work(*id).is_some_and(|work| work.blames_peer),
                _ => true,
            })
            .collect();
        for id in blocked {
            self.place(id, Place::Peer(peer));
        }
        let waiting: Vec<RowId> = self.queue.waiting_for(peer).collect();
        for id in &waiting {
            self.recount(id.user);
        }
        for user in self.waiters.users() {
            let is_syncing = matches!(self.busy.get(&user), Some(Busy::Sync(_)));
            let is_blocked = self.users.rows(user).any(|row| row.peer == Some(peer));
            if is_blocked && !is_syncing {
                self.refuse_waiters(Whom::User(user), "Peer is not reachable");
            }
        }
        let stalled: Vec<SyncId> = self
            .running
            .iter()
            .filter(|(_, running)| running.peer == peer)
            .filter(|(_, running)| now.mono.since(running.last_progress) >= STALLED)
            .map(|(sync, _)| *sync)
            .collect();
        for sync in stalled {
            self.abort(sync, PEER_IS_AWAY, false);
        }
        let reason = self.peers.get(peer).map_or("", |peer| &peer.reason);
        let waiting = waiting.len();
        let text = format!("Peer is not reachable: {reason} ({waiting} users are waiting)");
        self.say_of_peer(Level::Warning, peer, text);
    }

    fn peer_back(&mut self, peer: PeerId) {
        let waiting: Vec<RowId> = self.queue.waiting_for(peer).collect();
        let text = format!(
            "Peer is reachable again ({} users were waiting)",
            waiting.len()
        );
        self.say_of_peer(Level::Info, peer, text);
        for id in waiting {
            let work = self.queue.work_mut(id);
            work.failures = work.failures.min(1);
            let key = key_after_peer(work.since);
            self.queue.set_key(id, key);
            self.make_ready(id);
        }
    }

    fn say_of_peer(&mut self, level: Level, peer: PeerId, text: String) {
        self.log.push(LogEvent {
            level,
            username: None,
            target: Some(self.peers.target(peer).to_vec()),
            text,
        });
    }

    /// Ends syncs at their deadline, and has the peers of those probed that do not get on.
    pub(super) fn check_progress(&mut self, now: Now) {
        let deadline = self.config.sync_deadline;
        let (mut late, mut stalled) = (Vec::new(), Vec::new());
        for (sync, running) in &mut self.running {
            let quiet = now.mono.since(running.last_progress);
            if running.aborted.is_some() {
                continue;
            }
            if quiet >= deadline {
                late.push(*sync);
            } else if quiet >= STALLED && !running.probed {
                running.probed = true;
                stalled.push((*sync, running.peer));
            }
        }
        let text = format!(
            "No progress for {} secs (replication_sync_deadline)",
            deadline.as_secs()
        );
        for sync in late {
            self.abort(sync, &text, false);
        }
        for (sync, peer) in stalled {
            if self.peers.is_down(peer) {
                self.abort(sync, PEER_IS_AWAY, false);
            } else {
                self.suspect(now, peer);
            }
        }
    }

    pub(super) fn next_progress_check(&self) -> Option<Mono> {
        let running = self
            .running
            .values()
            .filter(|running| running.aborted.is_none());
        let checks = running.map(|running| {
            let wait = match running.probed {
                true => self.config.sync_deadline,
                false => self.config.sync_deadline.min(STALLED),
            };
            running.last_progress + wait
        });
        checks.min()
    }

    pub(super) fn abort(&mut self, sync: SyncId, reason: &str, at_once: bool) {
        if let Some(running) = self.running.get_mut(&sync) {
            running.aborted = Some(reason.into());
            self.totals.syncs_aborted += 1;
            let reason = reason.to_owned();
            self.actions.push_back(Action::AbortSync {
                sync,
                reason,
                at_once,
            });
        }
    }
}
