//! `doveadm replicator show <user>`: all that is known of a user, a line per replica.

use super::client::request;
use super::{Column, Kind};

/// The columns, in the order of the answer's fields.
pub const COLUMNS: &[Column] = &[
    Column::of(c"username", Kind::Text),
    Column::of(c"replica", Kind::Number),
    Column::of(c"target", Kind::Text),
    Column::of(c"priority", Kind::Text),
    Column::of(c"pending", Kind::Time),
    Column::of(c"fast sync", Kind::Time),
    Column::of(c"full sync", Kind::Time),
    Column::of(c"success sync", Kind::Time),
    Column::of(c"failures", Kind::Number),
    Column::of(c"reason", Kind::Text),
    Column::of(c"next sync", Kind::Secs),
    Column::of(c"syncing", Kind::Flag),
    Column::of(c"state", Kind::Text),
];

/// The line that asks for a user.
#[must_use]
pub fn show_request(username: &[u8]) -> Vec<u8> {
    request(&[b"SHOW", username])
}
