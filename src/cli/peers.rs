//! `doveadm replicator peers`: each peer, whether it is reachable, since when, and who waits for it.

use super::client::request;
use super::{Column, Kind};

/// The columns, in the order of the answer's fields.
pub const COLUMNS: &[Column] = &[
    column(c"target", Kind::Text),
    column(c"state", Kind::Text),
    column(c"since", Kind::Time),
    column(c"users waiting", Kind::Number),
    column(c"reason", Kind::Text),
    column(c"next probe", Kind::Secs),
];

const fn column(name: &'static std::ffi::CStr, kind: Kind) -> Column {
    Column { name, kind }
}

/// The line that asks for the peers.
#[must_use]
pub fn peers_request() -> Vec<u8> {
    request(&[b"PEERS"])
}
