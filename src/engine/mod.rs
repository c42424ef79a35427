//! The decisions, pure: no clock, file, socket, thread, global, log, or iteration in hash order.
//!
//! Time and randomness are arguments. Inputs are methods `handle_*`, outputs are plain data taken
//! with `poll_*`. Everything here runs in a test without Dovecot.
#![forbid(unsafe_code)]

mod abi;
pub mod aggregator;
pub mod healing;
pub mod location;
mod notification;
mod outage;
mod pending;
mod priority;
pub mod protocol;
pub mod replicator;
pub mod strescape;
mod sync_reply;
pub mod sync_state;
mod sync_timeout;
pub mod time;
pub mod verify;

/// A map whose keys are our own numbers or users whom userdb knows. What anybody can name is kept in the standard
/// library's, which holds out against names that are chosen to collide.
pub(crate) type FastMap<Key, Value> =
    std::collections::HashMap<Key, Value, foldhash::fast::RandomState>;

pub use abi::is_same_abi;
pub use notification::{LINE_MAX_BYTES, Notification, notification_line};
pub use outage::{Outage, RETRY_FIRST, RETRY_LONGEST};
pub use pending::{PENDING_USERS_MAX, Pending};
pub use priority::Priority;
pub use sync_reply::{InvalidReply, REPLY_MAX_BYTES, SyncReply, SyncReplyReader};
pub use sync_timeout::{InvalidSyncTimeout, SYNC_TIMEOUT_MAX, parse_sync_timeout};
