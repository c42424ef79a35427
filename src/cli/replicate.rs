//! `doveadm replicator replicate [-f] [-p <priority>] <mask>`: sync these users now.

use super::client::request;
use super::{Column, Layout};

/// The only column.
pub const COLUMNS: &[Column] = &[Column::text(c"result", Layout::Untitled)];

/// The line that asks for it; without a priority it is low.
#[must_use]
pub fn replicate_request(mask: &[u8], priority: Option<&[u8]>, full: bool) -> Vec<u8> {
    let flags: &[u8] = if full { b"f" } else { b"" };
    request(&[b"REPLICATE", priority.unwrap_or(b"low"), flags, mask])
}

/// What is printed when it is done.
#[must_use]
pub fn result(users: &[u8]) -> Vec<u8> {
    [users, b" users updated"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_priority_is_low_unless_it_is_given() {
        assert_eq!(
            replicate_request(b"u*", None, false),
            b"REPLICATE\tlow\t\tu*\n"
        );
        assert_eq!(
            replicate_request(b"u\t*", Some(b"high"), true),
            b"REPLICATE\thigh\tf\tu\x01t*\n"
        );
        assert_eq!(result(b"12"), b"12 users updated");
    }
}
