//! The lines that mail processes write into the fifo and the socket of the aggregator.
//!
//! `<username> \t <low|high|sync> [\t <field>...] \n`, fields tab-escaped. Further fields are ignored.
//! Source: Dovecot 2.3, `aggregator/notify-connection.c` and `plugins/replication`.
//! Empty lines are nothing: the aggregator itself fills a fifo with them when it leaves it.

use std::fmt;

use crate::engine::strescape::split_tabescaped;
use crate::engine::{LINE_MAX_BYTES, Notification, Priority};

/// Longest line, in bytes with its LF.
pub const MAX_LINE: usize = LINE_MAX_BYTES;
/// Longest username, in bytes after unescaping.
pub const MAX_USERNAME: usize = 1024;

/// Why a line says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineError {
    /// Longer than [`MAX_LINE`].
    TooLong,
    /// No username or no priority.
    MissingField,
    /// Empty, too long, with NUL, or not UTF-8.
    InvalidUsername,
    /// None of low, high and sync.
    UnknownPriority,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "line is longer than {MAX_LINE} bytes"),
            Self::MissingField => f.write_str("line has no username or no priority"),
            Self::InvalidUsername => f.write_str("username is not valid"),
            Self::UnknownPriority => f.write_str("priority is not one of low, high, sync"),
        }
    }
}

/// Reads a line without its LF; `None` for an empty one. The username is not empty, at most
/// [`MAX_USERNAME`] bytes, UTF-8 and without NUL; the priority is never [`Priority::None`].
///
/// # Errors
/// See [`LineError`].
pub fn parse_notification(line: &[u8]) -> Result<Option<Notification>, LineError> {
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() >= MAX_LINE {
        return Err(LineError::TooLong);
    }
    let mut fields = split_tabescaped(line);
    let (Some(username), Some(word)) = (fields.next(), fields.next()) else {
        return Err(LineError::MissingField);
    };
    let valid = !username.is_empty()
        && username.len() <= MAX_USERNAME
        && !username.contains(&0)
        && std::str::from_utf8(&username).is_ok();
    if !valid {
        return Err(LineError::InvalidUsername);
    }
    match Priority::parse(&word) {
        None | Some(Priority::None) => Err(LineError::UnknownPriority),
        Some(priority) => Ok(Some(Notification {
            username: username.into_boxed_slice(),
            priority,
        })),
    }
}

/// What stands at the start of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A line, without its LF; it takes one byte more than it is long.
    Line(&'a [u8]),
    /// This many bytes belong to a line that was already reported as too long.
    Skip(usize),
    /// A line that is too long begins; this many bytes of it are there.
    TooLong(usize),
    /// The rest is the beginning of a line.
    Incomplete,
}

/// Finds lines in a stream and gets over those that are too long.
#[derive(Debug, Default)]
pub struct LineSplitter {
    skipping: bool,
}

impl LineSplitter {
    /// Looks at the start of `stream`. The caller takes off what the step says and calls again.
    pub fn step<'a>(&mut self, stream: &'a [u8]) -> Step<'a> {
        let lf = stream.iter().position(|&byte| byte == b'\n');
        if self.skipping {
            return match lf {
                Some(at) => {
                    self.skipping = false;
                    Step::Skip(at.saturating_add(1))
                }
                None if stream.is_empty() => Step::Incomplete,
                None => Step::Skip(stream.len()),
            };
        }
        match lf {
            Some(at) if at < MAX_LINE => Step::Line(stream.get(..at).unwrap_or_default()),
            Some(at) => Step::TooLong(at.saturating_add(1)),
            None if stream.len() < MAX_LINE => Step::Incomplete,
            None => {
                self.skipping = true;
                Step::TooLong(stream.len())
            }
        }
    }

    /// Whether the stream is inside a line that is too long.
    #[must_use]
    pub const fn is_skipping(&self) -> bool {
        self.skipping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, priority: Priority) -> Result<Option<Notification>, LineError> {
        Ok(Some(Notification {
            username: name.as_bytes().into(),
            priority,
        }))
    }

    #[test]
    fn lines_of_stock_writers_are_read_and_further_fields_ignored() {
        assert_eq!(parse_notification(b"u1\tlow"), user("u1", Priority::Low));
        assert_eq!(
            parse_notification(b"u1\thigh\tguid"),
            user("u1", Priority::High)
        );
        assert_eq!(
            parse_notification(b"a\x01tb\tsync"),
            user("a\tb", Priority::Sync)
        );
        assert_eq!(parse_notification(b""), Ok(None));
    }

    #[test]
    fn what_is_no_notification_has_its_reason() {
        for (line, error) in [
            (&b"u1"[..], LineError::MissingField),
            (b"\tlow", LineError::InvalidUsername),
            (b"a\0b\tlow", LineError::InvalidUsername),
            (b"a\x010b\tlow", LineError::InvalidUsername),
            (b"\xff\xfe\tlow", LineError::InvalidUsername),
            (b"u1\tnone", LineError::UnknownPriority),
            (b"u1\turgent", LineError::UnknownPriority),
            (b"u1\t", LineError::UnknownPriority),
        ] {
            assert_eq!(parse_notification(line), Err(error), "{line:?}");
        }
    }

    #[test]
    fn username_is_taken_at_its_limit_and_refused_past_it() {
        let line = |length: usize| [&vec![b'u'; length][..], b"\tlow"].concat();
        assert!(parse_notification(&line(MAX_USERNAME)).is_ok());
        assert_eq!(
            parse_notification(&line(MAX_USERNAME + 1)),
            Err(LineError::InvalidUsername)
        );
    }

    #[test]
    fn line_is_taken_at_its_limit_and_refused_past_it() {
        let mut at = vec![b'x'; MAX_LINE - 1];
        at.push(b'\n');
        let mut splitter = LineSplitter::default();
        assert_eq!(splitter.step(&at), Step::Line(&at[..MAX_LINE - 1]));
        at.insert(0, b'x');
        assert_eq!(splitter.step(&at), Step::TooLong(MAX_LINE + 1));
        assert!(!splitter.is_skipping());
        assert_eq!(splitter.step(&at[..MAX_LINE - 1]), Step::Incomplete);
        assert_eq!(splitter.step(&at[..MAX_LINE]), Step::TooLong(MAX_LINE));
        assert!(splitter.is_skipping());
        assert_eq!(splitter.step(b""), Step::Incomplete);
        assert_eq!(splitter.step(b"xxx"), Step::Skip(3));
        assert_eq!(splitter.step(b"xx\nu\tlow\n"), Step::Skip(3));
        assert_eq!(splitter.step(b"u\tlow\n"), Step::Line(b"u\tlow"));
    }
}
