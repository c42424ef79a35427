//! `doveadm replicator show <user>`: all that is known of a user, a line per replica.

use super::client::request;
use super::{Column, Kind};

/// How it is called.
pub const USAGE: &str = "[-a <replicator socket path>] <user>";

/// The columns, in the order of the answer's fields.
pub const COLUMNS: &[Column] = &[
    column(c"username", Kind::Text),
    column(c"replica", Kind::Number),
    column(c"target", Kind::Text),
    column(c"priority", Kind::Text),
    column(c"pending", Kind::Time),
    column(c"fast sync", Kind::Time),
    column(c"full sync", Kind::Time),
    column(c"success sync", Kind::Time),
    column(c"failures", Kind::Number),
    column(c"reason", Kind::Text),
    column(c"next sync", Kind::Secs),
    column(c"syncing", Kind::Flag),
];

const fn column(name: &'static std::ffi::CStr, kind: Kind) -> Column {
    Column { name, kind }
}

/// The line that asks for a user.
#[must_use]
pub fn show_request(username: &[u8]) -> Vec<u8> {
    request(&[b"SHOW", username])
}
