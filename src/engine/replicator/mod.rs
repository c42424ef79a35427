//! The replicator's decisions: who is synced when, to where, and who is told.
//!
//! Inputs are `handle_*`, outputs `poll_*`. After each input, and when the time of `next_timeout` has come (`handle_timeout`),
//! the driver takes all of `poll_write`, then `poll_action`, then `poll_log`. The writes go to the store in their
//! order; `handle_stored` is told when they are safe. A change is pending in the store from before it is acknowledged until a
//! sync that began after it has succeeded at each replica: a crash at any moment loses nothing.
//!
//! Left out on purpose: how dsync is run, what its log lines mean, how long userdb and probes may take (the driver answers
//! each in bounded time).

mod action;
mod advance;
mod backoff;
mod commands;
mod config;
mod healing;
mod journal;
mod listing;
mod log;
mod lookups;
mod mask;
mod names;
mod notify;
mod peers;
mod peers_syncs;
mod periodic;
mod queue;
mod reachability;
mod record;
mod renames;
mod report;
mod restore;
mod rows;
mod settle;
mod status;
mod sweep;
mod syncs;
mod targets;
mod unknown;
mod users;
mod waiters;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

pub use action::*;
pub use config::*;
pub use log::{Level, LogEvent};
pub use mask::{has_wildcard, wildcard_match};
pub use record::*;
pub use status::{
    Activity, Counters, Cursor, PeerDetails, ReplicaDetails, SyncStatus, SyncType, Totals,
    UserDetails, UserStatus,
};

use std::collections::{BTreeMap, VecDeque};

use super::time::{Mono, Now, UnixSecs};
use backoff::Jitter;
use commands::Commands;
use journal::Journal;
use listing::Listing;
use log::Log;
use lookups::Why;
use peers::Peers;
use queue::Queue;
use renames::Renames;
use sweep::Sweep;
use syncs::{LocalServer, Running};
use unknown::UnknownUsers;
use users::{UserId, Users};
use waiters::Waiters;

/// The engine.
#[derive(Debug)]
pub struct Replicator {
    config: Config,
    jitter: Jitter,
    users: Users,
    queue: Queue,
    peers: Peers,
    waiters: Waiters,
    renames: Renames,
    unknown: UnknownUsers,
    journal: Journal,
    busy: BTreeMap<UserId, Busy>,
    running: BTreeMap<SyncId, Running>,
    /// Syncs of the peers that this node serves: how many, by username.
    peers_syncs: BTreeMap<Box<[u8]>, peers_syncs::PeersSyncs>,
    lookups: BTreeMap<LookupId, (UserId, Why)>,
    local_server: LocalServer,
    listing: Listing,
    sweep: Sweep,
    commands: Commands,
    counters: Counters,
    totals: Totals,
    log: Log,
    actions: VecDeque<Action>,
    clock: Clock,
    loaded: bool,
    last_id: u64,
}

/// Why no sync of a user may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    Sync(SyncId),
    Lookup(LookupId),
}

/// Notices when the wall clock is set.
#[derive(Debug)]
struct Clock {
    last: Now,
    /// What was due by the wall clock before this is not made up for.
    horizon: UnixSecs,
}

/// The wall clock may differ from the monotonic one by this much before it counts as set.
const MAX_CLOCK_DRIFT_SECS: u64 = 60;

impl Clock {
    fn observe(&mut self, now: Now) {
        let passed = now.mono.since(self.last.mono).as_secs();
        let expected = u64::from(self.last.wall.0).saturating_add(passed);
        if expected.abs_diff(u64::from(now.wall.0)) > MAX_CLOCK_DRIFT_SECS {
            self.horizon = now.wall;
        }
        if passed > 0 || now.wall.0.abs_diff(self.last.wall.0) > 1 {
            self.last = now;
        }
    }
}

impl Replicator {
    /// An engine without users; `seed` is for jitter.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: Now) -> Self {
        Self {
            config,
            jitter: Jitter::new(seed),
            users: Users::default(),
            queue: Queue::default(),
            peers: Peers::default(),
            waiters: Waiters::default(),
            renames: Renames::default(),
            unknown: UnknownUsers::default(),
            journal: Journal::default(),
            busy: BTreeMap::new(),
            running: BTreeMap::new(),
            peers_syncs: BTreeMap::new(),
            lookups: BTreeMap::new(),
            local_server: LocalServer::default(),
            listing: Listing::default(),
            sweep: Sweep::default(),
            commands: Commands::default(),
            counters: Counters::default(),
            totals: Totals::default(),
            log: Log::default(),
            actions: VecDeque::new(),
            clock: Clock {
                last: now,
                horizon: now.wall,
            },
            loaded: false,
            last_id: 0,
        }
    }

    /// The next thing for the driver to do. Take all of `poll_write` before.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next thing for the driver to log.
    pub fn poll_log(&mut self) -> Option<LogEvent> {
        self.log.pop()
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn checked_secs(now: Mono) -> u32 {
        u32::try_from(now.0 / 1000).map_or(u32::MAX, |secs| secs.saturating_add(1))
    }
}
