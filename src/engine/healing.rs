//! What dsync's own processes see that the replicator cannot: mailboxes that they brought together, renamed or undeleted, and the
//! peer's host name.

use std::cmp::Ordering;

use super::strescape::tabunescape;

/// What is looked at of a stream's beginning for the peer's handshake, in bytes.
pub const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// The longest host name that is believed, in bytes.
pub const HOSTNAME_BYTES_MAX: usize = 255;

/// What a dsync process tells the replicator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Mailboxes with two GUIDs that have the peer's now.
    pub guids_healed: u32,
    /// Mailboxes that dsync renamed on this node, or made under a name of its own.
    pub renames: u32,
    /// Mailboxes whose deletion had been ended half-way.
    pub undeleted: u32,
    /// Told where it matters: they are the same, or the sync failed.
    pub hostnames: Option<Hostnames>,
}

/// The host names of the two nodes of a sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hostnames {
    /// The peer's.
    pub peer: Vec<u8>,
    /// This node's, as the dsync process has it.
    pub own: Vec<u8>,
    /// Which side this node was on.
    pub side: Side,
}

/// Who began a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This node.
    Ours,
    /// The peer: this node ran `dsync-server`.
    Peers,
}

impl Hostnames {
    /// Less: this node's is the lower one, and the peer finds the opposite. dsync's own order (`strcmp` in `dsync-brain.c`), by which
    /// the node of the lower name keeps the lock.
    #[must_use]
    pub fn order(&self) -> Ordering {
        self.own.cmp(&self.peer)
    }

    /// Whether dsyncs of the two cannot keep each other out.
    #[must_use]
    pub fn are_the_same(&self) -> bool {
        self.order() == Ordering::Equal
    }
}

impl Hostnames {
    /// Whether a sync that the peer began has failed: of one name they are told without a failure, too.
    #[must_use]
    pub fn are_the_peers_failure(&self) -> bool {
        self.side == Side::Peers && !self.are_the_same()
    }
}

impl Observed {
    /// Leaves out the names that nobody needs: what is told of each sync would cost each sync.
    pub fn keep_hostnames_that_matter(&mut self, failed: bool) {
        self.hostnames = self
            .hostnames
            .take()
            .filter(|hostnames| failed || hostnames.are_the_same());
    }

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

/// Whether a part of the mailbox's name is one that dsync gives where another mailbox has the name: `NAME-temp-` and a number, a GUID or a
/// hash in hexadecimal digits. Source: Dovecot, `src/doveadm/dsync/dsync-mailbox-tree-sync.c` of 2.3.13 to 2.4.5.
#[must_use]
pub fn is_dsyncs_own_name(mailbox: &str) -> bool {
    mailbox.match_indices("-temp-").any(|(at, mark)| {
        let rest = mailbox.get(at + mark.len()..).unwrap_or_default();
        let is_digit = |letter: char| letter.is_ascii_hexdigit();
        let digits = rest.find(|letter| !is_digit(letter)).unwrap_or(rest.len());
        let next = rest.get(digits..).and_then(|rest| rest.chars().next());
        // Whatever the separator is, it is no letter.
        matches!(digits, 1..=8 | 32) && !next.is_some_and(char::is_alphanumeric)
    })
}

/// The line for the log: dsync has renamed the mailbox.
#[must_use]
pub fn renamed_to_own_name(mailbox: &str, name: &str) -> String {
    format!("Mailbox {mailbox} was renamed to {name}: both nodes gave its name to another mailbox")
}

/// The line for the log: dsync has made the mailbox.
#[must_use]
pub fn created_under_own_name(name: &str) -> String {
    format!("Mailbox {name} was made: on the other node, it seems, another mailbox took its name")
}

/// The line for the log: the index was marked deleted, and nobody was deleting the mailbox any more.
#[must_use]
pub fn undeleted(mailbox: &str) -> String {
    format!(
        "Mailbox {mailbox} was deleted half-way, and the other node has it: it is a mailbox again"
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

/// Whether the peer ends the stream with its first word after its handshake: it failed, and said why to its own log. `None`: it has not
/// said anything more yet. The bytes are what is left of the stream from the handshake on, or from later. Source as above.
#[must_use]
pub fn is_ended_after_handshake(stream: &[u8]) -> Option<bool> {
    let whole = stream.iter().rposition(|&byte| byte == b'\n')?;
    let lines: Vec<&[u8]> = stream.get(..whole)?.split(|&byte| byte == b'\n').collect();
    let is_handshake = |line: &&[u8]| line.starts_with(b"H") && !line.starts_with(b"Hhostname\t");
    let begin = lines.iter().position(is_handshake).map_or(0, |at| at + 1);
    lines.get(begin).map(|line| *line == b"X")
}

/// The line for the log where the peer could not have the lock that dsyncs of the user share: as dsync says it where the lock is.
#[must_use]
pub fn locked_at_peer(hostname: &str, secs: u64) -> String {
    format!(
        "Couldn't lock the user's .dovecot-sync.lock on {hostname}: Timed out, as it seems: its dsync-server ended after \
         {secs} secs, the reason is in its log"
    )
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
    fn name_that_dsync_gave_is_told_from_a_clients() {
        for name in [
            "New-temp-1",
            "New-temp-162a7d197c5c076b977e000083ecc375",
            "Del-temp-1/a/y",
            "a.b-temp-f.c",
            "x-temp-/y-temp-2",
            "New-temp-1-temp-2",
        ] {
            assert!(is_dsyncs_own_name(name), "{name}");
        }
        for name in [
            "INBOX",
            "temp-1",
            "my-temp",
            "my-temp-",
            "my-temp-/a",
            "-temp-zoo",
            "x-temp-1st",
            "x-temp-123456789",
        ] {
            assert!(!is_dsyncs_own_name(name), "{name}");
        }
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

    #[test]
    fn end_after_the_handshake_is_told_from_all_that_may_follow() {
        for (stream, ended) in [
            (&b"Hhostname\tsync_box\n.\nHnode-a\t\n"[..], None),
            (b"Hhostname\tsync_box\n.\nHnode-a\t\nX", None),
            (b"Hhostname\tsync_box\n.\nHnode-a\t\nX\n", Some(true)),
            (b"Hnode-a\t\nS0123\t1\nX\n", Some(false)),
            (b"X\n", Some(true)),
            (b".\n", Some(false)),
            (b"", None),
        ] {
            assert_eq!(is_ended_after_handshake(stream), ended, "{stream:?}");
        }
    }
}
