//! `doveadm replicator peers`: each peer, whether it is reachable, since when, and who waits for it.

use super::client::request;
use super::{Column, Kind};

/// The columns, in the order of the answer's fields.
pub const COLUMNS: &[Column] = &[
    Column::of(c"target", Kind::Text),
    Column::of(c"state", Kind::Text),
    Column::of(c"since", Kind::Time),
    Column::of(c"users waiting", Kind::Number),
    Column::of(c"reason", Kind::Text),
    Column::of(c"next probe", Kind::Secs),
    Column::of(c"users", Kind::Number),
    Column::of(c"same host name", Kind::Text),
];

/// The line that asks for the peers.
#[must_use]
pub fn peers_request() -> Vec<u8> {
    request(&[b"PEERS"])
}
