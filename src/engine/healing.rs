//! What dsync's own processes see that the replicator cannot: mailboxes that they brought together, and the peer's host name.

use super::strescape::tabunescape;

/// What is looked at of a stream's beginning for the peer's handshake, in bytes.
pub const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// What a dsync process tells the replicator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Mailboxes with two GUIDs that have the peer's now.
    pub guids_healed: u32,
    /// The peer's host name; empty unless it is this node's own.
    pub same_hostname: Vec<u8>,
}

impl Observed {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The line for the log: the mailbox was there before dsync came to create the peer's, and has the peer's GUID now.
#[must_use]
pub fn guid_taken(mailbox: &str, guid: [u8; 16]) -> String {
    let guid: String = guid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "Mailbox {mailbox} was made on both nodes, with two GUIDs: {guid}, the higher one, is taken from the other node"
    )
}

/// The host name in the handshake of dsync's stream, if these bytes, which begin with any whole line before it, have it.
/// Each kind of record is announced by a line of its letter and the names of its fields; then a handshake is a line `H`
/// with the values, the host name first. Source: Dovecot, `src/doveadm/dsync/dsync-ibc-stream.c` of 2.3.13 to 2.4.1.
#[must_use]
pub fn hostname_in_handshake(stream: &[u8]) -> Option<Vec<u8>> {
    let whole = stream.iter().rposition(|&byte| byte == b'\n')?;
    let lines = stream.get(..whole)?.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| line.strip_prefix(b"H"))
        .map(|values| values.split(|&byte| byte == b'\t').next())
        .find(|name| *name != Some(b"hostname"))
        .flatten()
        .map(tabunescape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_guid_is_said_with_its_mailbox() {
        let line = guid_taken("a b", [0xab; 16]);
        assert!(line.starts_with("Mailbox a b was made on both nodes"));
        assert!(line.contains(&"ab".repeat(16)));
    }

    #[test]
    fn hostname_is_the_first_value_of_the_handshake() {
        let stream =
            b"VERSION\tdsync\t3\t5\nHhostname\tsync_box\nSmailbox_guid\nHnode\x01t-a\t\x02\nX\n";
        let found = hostname_in_handshake(stream);
        assert_eq!(found.as_deref(), Some(&b"node\t-a"[..]));
        let end = stream.len() - 4;
        assert_eq!(hostname_in_handshake(&stream[..end]), None);
        assert_eq!(hostname_in_handshake(&stream[..30]), None);
        assert_eq!(
            hostname_in_handshake(b"Hnode-b\t\n"),
            Some(b"node-b".to_vec())
        );
        assert_eq!(hostname_in_handshake(b""), None);
    }
}
