//! The settings that the engine decides by, and the named maxima of everything it holds.

use std::time::Duration;

/// Longest username taken, in bytes. Longer ones are refused before they reach a table.
pub const MAX_USERNAME_BYTES: usize = 1024;
/// Most users in the table.
pub const MAX_USERS: usize = 16_000_000;
/// Most replicas of one user; further ones are left out with one error.
pub const MAX_REPLICAS: usize = 8;
/// Longest replica target taken, in bytes.
pub const MAX_TARGET_BYTES: usize = 1024;
/// Most different replica targets.
pub const MAX_PEERS: usize = 10_000;
/// Most names that wait for their first userdb lookup; at this number the engine accepts no more lines.
pub const MAX_UNKNOWN: usize = 10_000;
/// Most userdb lookups asked and not answered, but for one for each sync that ended with a denial.
pub const MAX_LOOKUPS: usize = 64;
/// Most requests that wait for a sync; further ones are answered `-` at once.
pub const MAX_WAITERS: usize = 20_000;
/// Most administrator's commands in work; further ones are refused at once.
pub const MAX_COMMANDS: usize = 256;
/// Longest reason kept for a failure, in bytes.
pub const MAX_REASON_BYTES: usize = 512;
/// Most log events held for a driver that does not take them; further ones are counted only.
pub const MAX_LOG_EVENTS: usize = 1024;

/// What the administrator sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `replication_max_conns`: syncs at once, at least 1.
    pub max_conns: usize,
    /// `replication_full_sync_interval`: each user has a full sync once in this time; zero: never by itself.
    pub full_sync_interval: Duration,
    /// `replication_sync_deadline`: a sync without progress that long is ended.
    pub sync_deadline: Duration,
    /// `replication_retry_min_interval`: the pause after the first failure.
    pub retry_min_interval: Duration,
    /// `replication_retry_max_interval`: the longest pause after failures.
    pub retry_max_interval: Duration,
    /// How long a dsync waits for the user's lock (`-l`), here and at the peer; zero: none waits.
    pub lock_timeout: Duration,
    /// How often users are listed, and how long what userdb said of a user is believed.
    pub listing_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_conns: 10,
            full_sync_interval: Duration::from_secs(24 * 60 * 60),
            sync_deadline: Duration::from_secs(10 * 60),
            retry_min_interval: Duration::from_millis(500),
            retry_max_interval: Duration::from_secs(5 * 60),
            lock_timeout: Duration::from_secs(30),
            listing_interval: Duration::from_secs(60 * 60),
        }
    }
}
