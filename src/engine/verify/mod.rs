//! Whether two nodes hold the same of a user: what doveadm prints of each goes in, differences come out.
//!
//! Mails are not kept. A first pass over each node adds them up in blocks of UIDs, a few thousand for a mailbox of any
//! size; only mails of blocks that differ are looked at one by one, a bounded number at a time. What is kept of a user
//! are names, GUIDs and UIDVALIDITYs of the mailboxes, the subscriptions, the blocks, and the differences found.

mod blocks;
mod compare;
mod difference;
mod looks;
mod mail;
mod picture;
mod rows;
mod usernames;

pub use blocks::{BLOCKS_MAX, Blocks, DifferingBlock, UidRange};
pub use compare::{Suspect, compare, compare_mails};
pub use difference::{Difference, Value, What};
pub use looks::{FOUND_MAX, Found, LOOKS_MAX, Looks, Next};
pub use mail::{FETCH_COLUMNS, FETCH_FIELDS, Mail};
pub use picture::{MAILBOXES_MAX, Mailbox, Picture, STATUS_COLUMNS, STATUS_FIELDS};
pub use rows::{InvalidAnswer, Row, RowReader, TextHash, VALUE_BYTES_MAX};
pub use usernames::{USERNAMES_MAX, Usernames};
