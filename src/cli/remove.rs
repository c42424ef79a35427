//! `doveadm replicator remove <username>`: have the replicator forget a user.

use super::client::request;

/// The line that asks for it.
#[must_use]
pub fn remove_request(username: &[u8]) -> Vec<u8> {
    request(&[b"REMOVE", username])
}
