//! What is shown: counters that are kept, a listing in pages, and all that is known of a user or a peer.

use crate::engine::Priority;
use crate::engine::time::UnixSecs;

/// The counters of `STATUS`, in its order. Each user is in one of the first seven at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `Queued 'sync' requests`
    pub queued_sync: u64,
    /// `Queued 'high' requests`
    pub queued_high: u64,
    /// `Queued 'low' requests`
    pub queued_low: u64,
    /// `Queued 'failed' requests`
    pub queued_failed: u64,
    /// `Queued 'full resync' requests`
    pub queued_full_resync: u64,
    /// `Waiting 'failed' requests`
    pub waiting_failed: u64,
    /// `Total number of known users`
    pub known_users: u64,
}

/// Where the counters have a user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Bucket {
    /// Left out, or not there yet.
    #[default]
    Uncounted,
    Idle,
    QueuedSync,
    QueuedHigh,
    QueuedLow,
    QueuedFailed,
    QueuedFullResync,
    WaitingFailed,
}

impl Counters {
    pub(super) fn move_user(&mut self, from: Bucket, to: Bucket) {
        if from == to {
            return;
        }
        if let Some(count) = self.count_mut(from) {
            *count -= 1;
        }
        if let Some(count) = self.count_mut(to) {
            *count += 1;
        }
        match (from, to) {
            (Bucket::Uncounted, _) => self.known_users += 1,
            (_, Bucket::Uncounted) => self.known_users -= 1,
            _ => {}
        }
    }

    fn count_mut(&mut self, bucket: Bucket) -> Option<&mut u64> {
        match bucket {
            Bucket::Uncounted | Bucket::Idle => None,
            Bucket::QueuedSync => Some(&mut self.queued_sync),
            Bucket::QueuedHigh => Some(&mut self.queued_high),
            Bucket::QueuedLow => Some(&mut self.queued_low),
            Bucket::QueuedFailed => Some(&mut self.queued_failed),
            Bucket::QueuedFullResync => Some(&mut self.queued_full_resync),
            Bucket::WaitingFailed => Some(&mut self.waiting_failed),
        }
    }
}

/// What happened since the start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Notifications taken.
    pub notifications: u64,
    /// Notifications dropped because userdb does not know the user.
    pub dropped_unknown: u64,
    /// Notifications dropped because the user is not replicated.
    pub dropped_not_replicated: u64,
    /// Syncs started.
    pub syncs_started: u64,
    /// Of these, full ones.
    pub full_syncs_started: u64,
    /// Syncs that succeeded.
    pub syncs_ok: u64,
    /// Syncs ended by a concurrent change.
    pub syncs_changed: u64,
    /// Syncs that failed.
    pub syncs_failed: u64,
    /// Full syncs because a state was stale.
    pub settling_syncs_started: u64,
    /// Syncs that another dsync's lock ended.
    pub syncs_locked: u64,
    /// Mailboxes with two GUIDs that this node's syncs brought together.
    pub healed_guids: u64,
    /// States that were refused or stale, and were forgotten.
    pub healed_states: u64,
    /// Full syncs asked for because fast ones ended with a change, or failed, again and again.
    pub healed_repeats: u64,
    /// Syncs made again because dsync had renamed mailboxes.
    pub healed_renames: u64,
    /// Mailboxes deleted half-way that this node's syncs made mailboxes again.
    pub healed_deletes: u64,
    /// Syncs ended at their deadline.
    pub syncs_aborted: u64,
    /// Waiters answered `+`.
    pub waiters_ok: u64,
    /// Waiters answered `-`.
    pub waiters_failed: u64,
}

/// One line of `STATUS\t<mask>`. With several replicas: the highest priority and the oldest times of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserStatus<'a> {
    /// The user.
    pub username: &'a [u8],
    /// Of what is pending.
    pub priority: Priority,
    /// 0: never.
    pub last_fast_sync: UnixSecs,
    /// 0: never.
    pub last_full_sync: UnixSecs,
    /// The last sync to a replica failed.
    pub failed: bool,
    /// 0: never.
    pub last_success: UnixSecs,
    /// Seconds until the next sync; 0: as soon as it can be.
    pub next_sync_secs: u32,
}

/// Where a listing goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(pub(super) u32);

/// One line of `STATUS-DSYNC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncStatus<'a> {
    /// The user.
    pub username: &'a [u8],
    /// The replica.
    pub target: &'a [u8],
    /// `full` or `incremental`.
    pub sync_type: SyncType,
}

/// Dovecot's kinds of a sync. Its third, `normal`, is not run: without a state and without `-f` dsync does not look into
/// mailboxes whose counters are equal on both sides, though their flags may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncType {
    /// With `-f`.
    Full,
    /// With a state.
    Incremental,
}

impl SyncType {
    /// Dovecot's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
        }
    }
}

/// All that is known of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserDetails {
    /// The user.
    pub username: Vec<u8>,
    /// userdb has `noreplicate` for it, or no replica.
    pub left_out: bool,
    /// One per replica; one with an empty target while replicas are not looked up.
    pub replicas: Vec<ReplicaDetails>,
    /// Deliveries that wait.
    pub waiters: u32,
}

/// All that is known of one replica of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaDetails {
    /// The replica, or empty.
    pub target: Vec<u8>,
    /// Of what is pending.
    pub priority: Priority,
    /// Since when something is pending.
    pub pending_since: Option<UnixSecs>,
    /// What it is doing.
    pub activity: Activity,
    /// 0: never.
    pub last_fast_sync: UnixSecs,
    /// 0: never.
    pub last_full_sync: UnixSecs,
    /// 0: never.
    pub last_success: UnixSecs,
    /// In a row.
    pub failures: u32,
    /// Why the last of them failed; empty if none did.
    pub reason: String,
    /// Nothing has helped: it is tried at the slowest pace.
    pub stuck: bool,
    /// Seconds until the next sync; 0: as soon as it can be.
    pub next_sync_secs: u32,
}

/// What a replica of a user is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Nothing is to be done.
    Idle,
    /// Waiting for a free connection, or for another replica of the same user.
    Queued,
    /// Being synced.
    Syncing,
    /// Asking userdb.
    LookingUp,
    /// Waiting for the peer to be reachable.
    WaitingForPeer,
    /// Waiting for the time of the next try.
    WaitingForRetry,
}

impl Activity {
    /// A word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Queued => "queued",
            Self::Syncing => "syncing",
            Self::LookingUp => "looking up",
            Self::WaitingForPeer => "waiting for peer",
            Self::WaitingForRetry => "waiting for retry",
        }
    }
}

/// All that is known of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerDetails {
    /// As `mail_replica` has it.
    pub target: Vec<u8>,
    /// None: not known yet, or not a target that can be probed.
    pub reachable: Option<bool>,
    /// Since when it is or is not; 0: not known.
    pub since: UnixSecs,
    /// Why it is not; empty if it is.
    pub reason: String,
    /// The host name that it shares with this node; empty: none, as far as its dsyncs have shown.
    pub same_hostname: String,
    /// Users that wait for it to be reachable.
    pub waiting: u32,
    /// Users that have it as a replica.
    pub users: u32,
    /// Seconds until it is probed again; None: it is reachable, or is being probed.
    pub next_probe_secs: Option<u32>,
}
