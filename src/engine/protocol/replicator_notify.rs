//! `replicator-notify`, the replicator's side: what an aggregator tells and what it is answered.
//!
//! ```text
//! C: VERSION\treplicator-notify\t1\t<minor>
//! S: VERSION\treplicator-notify\t1\t1            (only to a minor of 1 or more)
//! C: U\t<username>\t<low|high>[\t<id>]           (the id only after the answer to VERSION)
//! C: U\t<username>\tsync\t<id>
//! S: +\t<id>    or    -\t<id>[\t<reason>]        (the sync's result)
//! S: A\t<id>                                     (minor 1: every line up to this id is safe)
//! ```
//! Minor 0 is Dovecot 2.3's (`src/replication/replicator/notify-connection.c`): there only `sync` carries
//! an id and nothing is acknowledged. Unlike there, a bad line does not end the connection: it is
//! reported and the rest of the stream goes on, and an id in it counts as taken, or one bad line
//! would be sent again for ever.

use super::line::{Line, LineReader};
use crate::engine::Priority;
use crate::engine::replicator::MAX_USERNAME_BYTES;
use crate::engine::strescape;

/// The longest line taken, in bytes. Stock's limit.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

const NAME: &[u8] = b"replicator-notify";
const MAJOR: &[u8] = b"1";

/// What the aggregator said.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Its version; answer it with [`append_version`] if this is true.
    Hello {
        /// The client speaks minor 1: it is answered, and its lines are acknowledged.
        acknowledged: bool,
    },
    /// A user changed.
    Notify {
        /// Whose mails changed.
        username: Vec<u8>,
        /// How urgent it is.
        priority: Priority,
        /// The line's number where it has one. A `sync` always has.
        id: Option<u64>,
    },
    /// A line that means nothing; it is dropped.
    Invalid {
        /// The number of the line, if it could be read: counts as taken.
        id: Option<u64>,
        /// What is wrong, for the log.
        reason: String,
    },
}

/// The client speaks another protocol or another major version; the connection is of no use.
#[derive(Debug, PartialEq, Eq)]
pub struct Incompatible {
    /// What it said instead, shortened and printable.
    pub line: String,
}

/// Reads an aggregator's connection.
#[derive(Debug)]
pub struct NotifyReader {
    lines: LineReader,
    version_received: bool,
}

impl Default for NotifyReader {
    fn default() -> Self {
        Self::new()
    }
}

impl NotifyReader {
    /// A reader for a new connection.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lines: LineReader::new(MAX_LINE_BYTES),
            version_received: false,
        }
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
    }

    /// Whom the lines that are held are about, as far as it can be told without unescaping.
    pub fn waiting_usernames(&self) -> impl Iterator<Item = &[u8]> {
        let lines = self.lines.waiting();
        lines.filter_map(|line| line.split(|&byte| byte == b'\t').nth(1))
    }

    /// The next request; `None` until more bytes arrive.
    ///
    /// # Errors
    ///
    /// The client is not one of this protocol's major version.
    pub fn next_request(&mut self) -> Result<Option<Request>, Incompatible> {
        let line = match self.lines.next_line() {
            None => return Ok(None),
            Some(Line::TooLong(start)) if self.version_received => {
                return Ok(Some(Request::Invalid {
                    id: None,
                    reason: format!("line too long: {}...", printable(start)),
                }));
            }
            Some(Line::TooLong(line) | Line::Complete(line)) => line,
        };
        if self.version_received {
            return Ok(Some(parse_line(line)));
        }
        let acknowledged = parse_version(line).ok_or_else(|| Incompatible {
            line: printable(line),
        })?;
        self.version_received = true;
        Ok(Some(Request::Hello { acknowledged }))
    }
}

fn parse_version(line: &[u8]) -> Option<bool> {
    let mut fields = line.split(|&byte| byte == b'\t');
    let is_ours = fields.next()? == b"VERSION" && fields.next()? == NAME;
    if !is_ours || fields.next()? != MAJOR {
        return None;
    }
    let minor = parse_number(fields.next().unwrap_or(b"0"))?;
    Some(minor >= 1)
}

fn parse_line(line: &[u8]) -> Request {
    let mut fields = line.split(|&byte| byte == b'\t');
    let command = fields.next().unwrap_or_default();
    let username = fields.next().map(strescape::tabunescape);
    let word = fields.next();
    let id_field = fields.next();
    let id = id_field.and_then(parse_number);
    let invalid = |what: &str| Request::Invalid {
        id,
        reason: format!("{what}: {}", printable(line)),
    };
    if command != b"U" {
        return invalid("unknown command");
    }
    let (Some(username), Some(word)) = (username, word) else {
        return invalid("too few fields");
    };
    if username.is_empty() || username.len() > MAX_USERNAME_BYTES || username.contains(&0) {
        return invalid("invalid username");
    }
    match Priority::parse(word) {
        None => invalid("invalid priority"),
        Some(Priority::Sync) if id.is_none() => invalid("invalid sync id"),
        Some(priority) if id.is_some() || id_field.is_none_or(<[u8]>::is_empty) => {
            Request::Notify {
                username,
                priority,
                id,
            }
        }
        Some(_) => invalid("invalid id"),
    }
}

/// A decimal number of at most 19 digits, without a sign.
#[must_use]
pub fn parse_number(field: &[u8]) -> Option<u64> {
    if field.is_empty() || field.len() > 19 || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Bytes from outside as a log line may show them: at most 80 bytes, control characters replaced.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let shown = bytes.get(..80).unwrap_or(bytes);
    String::from_utf8_lossy(shown)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Appends the answer to a client of minor 1.
pub fn append_version(out: &mut Vec<u8>) {
    out.extend_from_slice(b"VERSION\treplicator-notify\t1\t1\n");
}

/// Appends the word that every line up to and including `id` is safe.
pub fn append_acknowledged(out: &mut Vec<u8>, id: u64) {
    out.extend_from_slice(format!("A\t{id}\n").as_bytes());
}

/// Appends the result of the `sync` with this id. The reason is left out where it is empty.
pub fn append_sync_result(out: &mut Vec<u8>, id: u64, ok: bool, reason: &str) {
    out.extend_from_slice(format!("{}\t{id}", if ok { '+' } else { '-' }).as_bytes());
    if !ok && !reason.is_empty() {
        out.push(b'\t');
        strescape::append_tabescaped(out, reason.as_bytes());
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(stream: &[u8]) -> Vec<Request> {
        let mut reader = NotifyReader::new();
        reader.push(stream);
        std::iter::from_fn(|| reader.next_request().unwrap()).collect()
    }

    fn notify(username: &str, priority: Priority, id: Option<u64>) -> Request {
        Request::Notify {
            username: username.into(),
            priority,
            id,
        }
    }

    #[test]
    fn a_stock_aggregator_is_understood_and_not_acknowledged() {
        assert_eq!(
            requests(
                b"VERSION\treplicator-notify\t1\t0\nU\tu1\tlow\nU\ta\x01tb\thigh\nU\tu2\tsync\t7\n"
            ),
            [
                Request::Hello {
                    acknowledged: false
                },
                notify("u1", Priority::Low, None),
                notify("a\tb", Priority::High, None),
                notify("u2", Priority::Sync, Some(7)),
            ]
        );
    }

    #[test]
    fn our_aggregator_gives_every_line_a_number() {
        assert_eq!(
            requests(b"VERSION\treplicator-notify\t1\t1\nU\tu1\tlow\t1\nU\tu1\tsync\t2\tmore\n"),
            [
                Request::Hello { acknowledged: true },
                notify("u1", Priority::Low, Some(1)),
                notify("u1", Priority::Sync, Some(2)),
            ]
        );
    }

    #[test]
    fn bad_lines_are_named_and_the_stream_goes_on() {
        let stream = b"VERSION\treplicator-notify\t1\t1\nX\tu\tlow\t1\nU\tu\nU\t\tlow\t3\nU\tu\x010\tlow\t4\nU\tu\turgent\t5\nU\tu\tsync\nU\tu\tsync\t-1\nU\tu\tlow\tx\n\nU\tok\tlow\t9\n";
        let all = requests(stream);
        let ids: Vec<_> = all
            .iter()
            .filter_map(|request| match request {
                Request::Invalid { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        assert_eq!(
            ids,
            [
                Some(1),
                None,
                Some(3),
                Some(4),
                Some(5),
                None,
                None,
                None,
                None
            ]
        );
        assert_eq!(all.last(), Some(&notify("ok", Priority::Low, Some(9))));
    }

    #[test]
    fn another_protocol_or_major_version_ends_the_connection() {
        for bad in [
            &b"VERSION\treplicator-notify\t2\t0\n"[..],
            b"VERSION\tdoveadm-server\t1\t0\n",
            b"U\tu\tlow\n",
            b"\n",
            b"VERSION\treplicator-notify\t1\tx\n",
        ] {
            let mut reader = NotifyReader::new();
            reader.push(bad);
            assert!(reader.next_request().is_err());
        }
    }

    #[test]
    fn names_and_lines_are_taken_at_the_limit_and_not_past_it() {
        let line = |length: usize| {
            let mut stream = b"VERSION\treplicator-notify\t1\t0\nU\t".to_vec();
            stream.resize(stream.len() + length, b'u');
            stream.extend_from_slice(b"\tlow\n");
            requests(&stream).pop().unwrap()
        };
        assert!(matches!(line(MAX_USERNAME_BYTES), Request::Notify { .. }));
        assert!(matches!(
            line(MAX_USERNAME_BYTES + 1),
            Request::Invalid { .. }
        ));
        let mut stream = b"VERSION\treplicator-notify\t1\t0\n".to_vec();
        stream.resize(stream.len() + MAX_LINE_BYTES + 1, b'u');
        stream.extend_from_slice(b"\nU\tu\tlow\n");
        let all = requests(&stream);
        assert!(matches!(all[1], Request::Invalid { .. }));
        assert_eq!(all[2], notify("u", Priority::Low, None));
    }

    #[test]
    fn answers_are_as_the_protocol_has_them() {
        let mut out = Vec::new();
        append_version(&mut out);
        append_acknowledged(&mut out, 12);
        append_sync_result(&mut out, 3, true, "ignored");
        append_sync_result(&mut out, 4, false, "");
        append_sync_result(&mut out, 5, false, "peer\taway");
        assert_eq!(
            out,
            b"VERSION\treplicator-notify\t1\t1\nA\t12\n+\t3\n-\t4\n-\t5\tpeer\x01taway\n"
        );
    }
}
