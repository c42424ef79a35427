//! What the store keeps: a record per (user, replica).
//!
//! Writes are numbered, the numbers grow, and the store keeps their order. A user whose replicas are not yet known
//! has one record with an empty target. The state text is in the store alone.

use crate::engine::Priority;
use crate::engine::time::UnixSecs;

/// One (user, replica), without the state text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The user.
    pub username: Vec<u8>,
    /// The replica, as `mail_replica` has it; empty: not looked up yet.
    pub target: Vec<u8>,
    /// Of the changes that no successful sync has followed yet.
    pub priority: Priority,
    /// When the oldest of them was notified; when nothing is pending, when the last one was.
    pub last_update: UnixSecs,
    /// When the last sync ended that was a success or a failure.
    pub last_fast_sync: UnixSecs,
    /// When the last successful full sync ended.
    pub last_full_sync: UnixSecs,
    /// When the last successful sync ended.
    pub last_success: UnixSecs,
    /// Failures in a row; not 0: a retry is due.
    pub failures: u32,
    /// Why the last of them failed.
    pub reason: String,
    /// The next sync is to be full.
    pub force_full: bool,
    /// The store has a state text for it.
    pub has_state: bool,
    /// Whether the state is that of the last sync.
    pub stale: Stale,
}

/// What a state that is not that of the last sync may lead to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stale {
    /// It is that of the last sync.
    #[default]
    No,
    /// There was, or may have been, a sync whose state the store does not have.
    State,
    /// And a fast sync of local changes began from the older one: a full sync is to follow.
    Changes,
}

impl Stale {
    /// By the number that the store has.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::No),
            1 => Some(Self::State),
            2 => Some(Self::Changes),
            _ => None,
        }
    }
}

/// What becomes of the state text of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StateChange {
    /// It stays.
    #[default]
    Keep,
    /// It is replaced.
    Set(Vec<u8>),
    /// It is removed.
    Forget,
    /// It becomes that of the record of (username, this target), which stays as it is.
    CopyFrom(Vec<u8>),
}

/// One change of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordChange {
    /// Insert or replace the record of (username, target).
    Put {
        /// All of it but the state.
        record: Record,
        /// The state.
        state: StateChange,
    },
    /// Remove the record of (username, target), its state too; it may be absent.
    Remove {
        /// The user.
        username: Vec<u8>,
        /// The replica, or empty.
        target: Vec<u8>,
    },
    /// Every user is queued after the unclean boot: keep this boot's id.
    BootSettled,
}

/// A numbered change of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// To be told to `handle_stored`, when this and every write before it is safe.
    pub seq: u64,
    /// What changes.
    pub change: RecordChange,
}

/// What the driver knows of the time between the last run and this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The machine has not been down since, or went down cleanly: the store is whole.
    Trusted,
    /// The machine went down uncleanly, or the store was lost: every user is synced once.
    Unclean,
}
