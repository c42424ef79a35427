//! `doveadm replicator dsync-status`: each of the replicator's connections to doveadm-server.

use super::client::request;
use super::{Column, Layout};

/// The columns, in the order of the answer's fields.
pub const COLUMNS: &[Column] = &[
    Column::text(c"username", Layout::Wide),
    Column::text(c"type", Layout::Plain),
    Column::text(c"status", Layout::Plain),
];

/// The line that asks for the connections.
#[must_use]
pub fn dsync_status_request() -> Vec<u8> {
    request(&[b"STATUS-DSYNC"])
}
