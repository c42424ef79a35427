//! The replicator's decisions: who is synced when, to where, and who is told.
//!
//! Inputs are `handle_*`, outputs `poll_*`. After each input, and when the time of `next_timeout` has come
//! (`handle_timeout`), the driver takes all of `poll_write`, then `poll_action`, then `poll_log`, until all are empty.
//! The writes go to the store in their order; `handle_stored` is told when they are safe.

mod action;
mod config;
mod log;
mod mask;
mod record;
mod status;

pub use action::*;
pub use config::*;
pub use log::{Level, LogEvent};
pub use mask::{has_wildcard, wildcard_match};
pub use record::*;
pub use status::*;

use super::Priority;
use super::time::{Mono, Now};
use std::collections::VecDeque;

/// The engine.
#[derive(Debug)]
pub struct Replicator {
    config: Config,
    log: log::Log,
    actions: VecDeque<Action>,
}

#[allow(unused_variables, missing_docs)]
impl Replicator {
    /// An engine without users; `seed` is for jitter.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: Now) -> Self {
        Self {
            config,
            log: log::Log::default(),
            actions: VecDeque::new(),
        }
    }
    /// At start, for each record of the store, before `handle_loaded`.
    pub fn load(&mut self, now: Now, record: Record) {}
    /// All records are loaded. Nothing is started or listed before.
    pub fn handle_loaded(&mut self, now: Now, boot: Boot) {}
    pub fn handle_listing_user(&mut self, now: Now, listing: ListingId, username: &[u8]) {}
    /// Err: why it failed.
    pub fn handle_listing_finished(
        &mut self,
        now: Now,
        listing: ListingId,
        result: Result<(), String>,
    ) {
    }
    pub fn handle_user_looked_up(&mut self, now: Now, lookup: LookupId, result: UserLookup) {}
    /// False: read no more from the aggregators until it is true again (nothing of what was read is lost).
    pub fn accepts_notifications(&self) -> bool {
        true
    }
    /// `U\t<user>\t<low|high>[\t<line>]`
    pub fn handle_notification(
        &mut self,
        now: Now,
        connection: ConnectionId,
        username: &[u8],
        priority: Priority,
        line: Option<u64>,
    ) {
    }
    /// `U\t<user>\tsync\t<request>`; `acknowledge`: the line is also covered by `Action::Acknowledge`.
    pub fn handle_sync_request(
        &mut self,
        now: Now,
        connection: ConnectionId,
        username: &[u8],
        request: u64,
        acknowledge: bool,
    ) {
    }
    /// The one who waits hung up.
    pub fn handle_waiter_gone(&mut self, connection: ConnectionId, request: u64) {}
    pub fn handle_connection_closed(&mut self, connection: ConnectionId) {}
    pub fn handle_stored(&mut self, seq: u64) {}
    pub fn handle_sync_progress(&mut self, now: Now, sync: SyncId) {}
    /// `reason`: the last error line that dsync logged, or empty.
    pub fn handle_sync_finished(
        &mut self,
        now: Now,
        sync: SyncId,
        outcome: SyncOutcome,
        reason: &str,
    ) {
    }
    pub fn handle_probe_finished(&mut self, now: Now, probe: ProbeId, result: Result<(), String>) {}
    /// `REPLICATE`; answered by `Action::AnswerCommand`, as all commands.
    pub fn handle_replicate(
        &mut self,
        now: Now,
        command: CommandId,
        priority: Priority,
        full: bool,
        mask: &[u8],
    ) {
    }
    /// `ADD`
    pub fn handle_add(&mut self, now: Now, command: CommandId, mask: &[u8]) {}
    /// `REMOVE`
    pub fn handle_remove(&mut self, now: Now, command: CommandId, username: &[u8]) {}
    /// `NOTIFY` of the peer.
    pub fn handle_notify(
        &mut self,
        now: Now,
        command: CommandId,
        username: &[u8],
        full: bool,
        state: &[u8],
    ) {
    }
    pub fn handle_timeout(&mut self, now: Now) {}
    /// When `handle_timeout` is to be called next.
    pub fn next_timeout(&self) -> Option<Mono> {
        None
    }

    pub fn poll_write(&mut self) -> Option<Write> {
        None
    }
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }
    pub fn poll_log(&mut self) -> Option<LogEvent> {
        self.log.pop()
    }

    /// `STATUS`
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
    pub fn totals(&self) -> Totals {
        Totals::default()
    }
    /// One page of `STATUS\t<mask>`: looks at `max_users` users from `cursor` on, calls `show` for each that matches;
    /// returns where to go on, None at the end. Any input may come between two pages.
    pub fn list(
        &self,
        now: Now,
        cursor: Cursor,
        max_users: usize,
        mask: &[u8],
        show: &mut dyn FnMut(UserStatus<'_>),
    ) -> Option<Cursor> {
        None
    }
    /// `STATUS-DSYNC`: the syncs that run; there are `max_conns` connections.
    pub fn syncs(&self) -> impl Iterator<Item = SyncStatus<'_>> + '_ {
        std::iter::empty()
    }
    pub fn max_conns(&self) -> usize {
        self.config.max_conns
    }
    pub fn show(&self, now: Now, username: &[u8]) -> Option<UserDetails> {
        None
    }
    pub fn peers(&self) -> Vec<PeerDetails> {
        Vec::new()
    }
}
