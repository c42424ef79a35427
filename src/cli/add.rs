//! `doveadm replicator add <mask>`: make these users known to the replicator.

use super::client::request;

/// The line that asks for it.
#[must_use]
pub fn add_request(mask: &[u8]) -> Vec<u8> {
    request(&[b"ADD", mask])
}
