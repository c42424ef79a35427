//! The line that a mail process writes to the aggregator: `<username>\t<priority>\n`.
//!
//! Source: Dovecot 2.3, `replication-plugin.c` and `aggregator/notify-connection.c`. Fields after the
//! second are ignored by every reader, so a line can grow at its end.

use super::Priority;
use super::strescape::append_tabescaped;

/// The longest line, LF included: what a fifo takes in one piece (`PIPE_BUF` on Linux).
pub const LINE_MAX_BYTES: usize = 4096;

/// A user has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The username as Dovecot has it, any bytes.
    pub username: Box<[u8]>,
    /// How urgent.
    pub priority: Priority,
}

/// The line of a notification; `None` if it would be longer than [`LINE_MAX_BYTES`].
#[must_use]
pub fn notification_line(username: &[u8], priority: Priority) -> Option<Vec<u8>> {
    let mut line = Vec::with_capacity(username.len() + 8);
    append_tabescaped(&mut line, username);
    line.push(b'\t');
    line.extend_from_slice(priority.as_str().as_bytes());
    line.push(b'\n');
    (line.len() <= LINE_MAX_BYTES).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_dovecots() {
        assert_eq!(
            notification_line(b"u1@example.com", Priority::Low).unwrap(),
            b"u1@example.com\tlow\n"
        );
        assert_eq!(
            notification_line(b"a\tb\n", Priority::High).unwrap(),
            b"a\x01tb\x01n\thigh\n"
        );
    }

    #[test]
    fn line_is_one_atomic_write_or_none() {
        let longest = LINE_MAX_BYTES - b"\tlow\n".len();
        assert_eq!(
            notification_line(&vec![b'u'; longest], Priority::Low)
                .unwrap()
                .len(),
            LINE_MAX_BYTES
        );
        assert_eq!(
            notification_line(&vec![b'u'; longest + 1], Priority::Low),
            None
        );
        assert_eq!(
            notification_line(&vec![b'\t'; longest / 2 + 1], Priority::Low),
            None
        );
    }
}
