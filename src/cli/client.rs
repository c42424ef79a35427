//! The client's side of `replicator-doveadm`, over any byte stream.
//!
//! ```text
//! C: VERSION\treplicator-doveadm-client\t1\t0      S: VERSION\treplicator-doveadm-server\t1\t<minor>
//! C: SHOW\t<user>   or   PEERS                     S: a line per row, then a blank line; or -<reason>
//! C: STATUS[\t<mask>]   or   STATUS-DSYNC          S: a line per row, then a blank line
//! C: REPLICATE, ADD, REMOVE                        S: +[<number>] or -<reason>
//! ```
//! Fields are tab-escaped. A stock replicator ends the connection at a command that it does not know.

use std::fmt;
use std::io::{self, BufRead, Write};

use crate::engine::healing::{Observed, Side};
use crate::engine::strescape::{append_tabescaped, split_tabescaped, tabunescape};

/// The longest line of an answer, in bytes without its LF.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// The most rows of an answer. Nobody has that many replicas or peers; what goes on for ever is no answer.
pub const ROWS_MAX: usize = 100_000;

/// The most rows of an answer with a row per user.
pub const USER_ROWS_MAX: usize = 100_000_000;

/// What a client begins with.
pub const HELLO: &[u8] = b"VERSION\treplicator-doveadm-client\t1\t0\n";

const EX_USAGE: i32 = 64;
const EX_NOUSER: i32 = 67;
const EX_UNAVAILABLE: i32 = 69;
const EX_TEMPFAIL: i32 = 75;
const EX_PROTOCOL: i32 = 76;

/// Why there is no answer.
#[derive(Debug)]
pub enum AnswerError {
    /// The connection failed or timed out.
    Io(io::Error),
    /// The server greets as something else, or in another major version.
    Incompatible,
    /// The server hung up at the command, as a stock replicator does.
    Unsupported,
    /// The server hung up in the middle of the answer.
    Disconnected,
    /// The server refused, and why: it does not know the user.
    Refused(String),
    /// The server did not do what it was told, and why.
    Rejected(String),
    /// More or longer lines than an answer may have.
    TooMuch,
}

impl AnswerError {
    /// What doveadm exits with (sysexits.h).
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Io(_) | Self::Disconnected => EX_TEMPFAIL,
            Self::Incompatible | Self::TooMuch => EX_PROTOCOL,
            Self::Unsupported => EX_UNAVAILABLE,
            Self::Refused(_) => EX_NOUSER,
            Self::Rejected(_) => EX_USAGE,
        }
    }
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) if is_timeout(e) => f.write_str("read() timed out"),
            Self::Io(e) => write!(f, "read() failed: {}", errno_text(e)),
            Self::Incompatible => f.write_str("not a compatible replicator-doveadm socket"),
            Self::Unsupported => f.write_str(
                "the replicator does not know this command (is it Dovecot's own replicator, or an older one?)",
            ),
            Self::Disconnected => f.write_str("Replicator disconnected unexpectedly"),
            Self::Refused(reason) | Self::Rejected(reason) => write!(f, "Replicator failed: {reason}"),
            Self::TooMuch => write!(
                f,
                "the answer has a line of over {LINE_BYTES_MAX} bytes or too many lines"
            ),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The error as strerror() has it, without the number that Rust adds.
#[must_use]
pub fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text.get(..end).unwrap_or_default().to_owned(),
        None => text,
    }
}

/// A line of these fields.
#[must_use]
pub fn request(fields: &[&[u8]]) -> Vec<u8> {
    let mut line = Vec::new();
    for (at, field) in fields.iter().enumerate() {
        if at > 0 {
            line.push(b'\t');
        }
        append_tabescaped(&mut line, field);
    }
    line.push(b'\n');
    line
}

/// Tells the replicator that the peer has synced the user: no flag, no state.
#[must_use]
pub fn notify_request(username: &[u8]) -> Vec<u8> {
    request(&[b"NOTIFY", username, b"", b""])
}

/// Tells the replicator that this process serves a sync of the peer, from now until it tells [`SERVED`].
#[must_use]
pub fn serving_request(username: &[u8]) -> Vec<u8> {
    request(&[b"SERVING", username])
}

/// The sync that this process served has ended.
pub const SERVED: &[u8] = b"SERVED\n";

/// What a dsync process of this node tells of what it saw.
#[must_use]
pub fn observed_request(username: &[u8], observed: &Observed) -> Vec<u8> {
    let counts = [observed.guids_healed, observed.renames, observed.undeleted];
    let counts = counts.map(|count| count.to_string());
    let mut fields: Vec<&[u8]> = vec![b"OBSERVED", username];
    fields.extend(counts.iter().map(String::as_bytes));
    if let Some(names) = &observed.hostnames {
        let ran: &[u8] = match names.side {
            Side::Ours => b"sync",
            Side::Peers => b"dsync-server",
        };
        fields.extend([&names.peer, &names.own, ran]);
    }
    request(&fields)
}

/// A replicator that has greeted.
#[derive(Debug)]
pub struct Client<S, W> {
    server: S,
    send: W,
}

impl<S: BufRead, W: Write> Client<S, W> {
    /// Greets, and waits for the server to do so.
    ///
    /// # Errors
    ///
    /// The server does not, or as something else.
    pub fn greet(mut server: S, mut send: W) -> Result<Self, AnswerError> {
        send.write_all(HELLO).map_err(AnswerError::Io)?;
        let Some(greeting) = read_line(&mut server)? else {
            return Err(AnswerError::Disconnected);
        };
        let mut words = greeting.split(|&b| b == b'\t');
        let start = (words.next(), words.next(), words.next());
        if start
            != (
                Some(b"VERSION".as_slice()),
                Some(b"replicator-doveadm-server".as_slice()),
                Some(b"1".as_slice()),
            )
        {
            return Err(AnswerError::Incompatible);
        }
        Ok(Self { server, send })
    }

    /// Asks, and gives each row of the answer to `each_row`.
    ///
    /// # Errors
    ///
    /// See [`AnswerError`]; rows may have been given before it.
    pub fn ask(
        mut self,
        request: &[u8],
        rows_max: usize,
        mut each_row: impl FnMut(Vec<Vec<u8>>),
    ) -> Result<(), AnswerError> {
        self.send.write_all(request).map_err(AnswerError::Io)?;
        for rows in 0..=rows_max {
            let Some(line) = read_line(&mut self.server)? else {
                return Err(if rows == 0 {
                    AnswerError::Unsupported
                } else {
                    AnswerError::Disconnected
                });
            };
            if line.is_empty() {
                return Ok(());
            }
            if let Some(reason) = refusal(&line) {
                return Err(AnswerError::Refused(reason));
            }
            if rows < rows_max {
                each_row(split_tabescaped(&line).collect());
            }
        }
        Err(AnswerError::TooMuch)
    }

    /// Has something done; gives what follows the `+`.
    ///
    /// # Errors
    ///
    /// It was not done, or nobody knows.
    pub fn order(mut self, request: &[u8]) -> Result<Vec<u8>, AnswerError> {
        self.send.write_all(request).map_err(AnswerError::Io)?;
        match read_line(&mut self.server)? {
            None => Err(AnswerError::Disconnected),
            Some(line) => match line.split_first() {
                Some((b'+', rest)) => Ok(tabunescape(rest)),
                reason => {
                    let reason = reason.map_or(&b""[..], |(_, reason)| reason);
                    let reason = String::from_utf8_lossy(&tabunescape(reason)).into_owned();
                    Err(AnswerError::Rejected(reason))
                }
            },
        }
    }
}

/// The reason of a `-<reason>` line. A row has several fields, even where its first begins with `-`.
fn refusal(line: &[u8]) -> Option<String> {
    let reason = line.strip_prefix(b"-")?;
    (!reason.contains(&b'\t')).then(|| String::from_utf8_lossy(&tabunescape(reason)).into_owned())
}

/// The next line without its LF; `None` at the end, also in the middle of a line.
fn read_line(server: &mut impl BufRead) -> Result<Option<Vec<u8>>, AnswerError> {
    let mut line = Vec::new();
    loop {
        let available = match server.fill_buf() {
            Ok(available) => available,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            // A server that hung up with our request unread resets the connection.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(e) => return Err(AnswerError::Io(e)),
        };
        if available.is_empty() {
            return Ok(None);
        }
        let (part, used, whole) = match available.iter().position(|&b| b == b'\n') {
            Some(end) => (available.get(..end), end + 1, true),
            None => (Some(available), available.len(), false),
        };
        let part = part.unwrap_or_default();
        if line.len() + part.len() > LINE_BYTES_MAX {
            return Err(AnswerError::TooMuch);
        }
        line.extend_from_slice(part);
        server.consume(used);
        if whole {
            return Ok(Some(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::healing::Hostnames;

    const GREETING: &str = "VERSION\treplicator-doveadm-server\t1\t0\n";

    type Row = Vec<Vec<u8>>;

    fn ask_text(answer: &str) -> (Result<(), AnswerError>, Vec<Row>, Vec<u8>) {
        let mut sent = Vec::new();
        let mut rows = Vec::new();
        let bytes = format!("{GREETING}{answer}");
        let result = Client::greet(bytes.as_bytes(), &mut sent).and_then(|client| {
            let request = request(&[b"SHOW", b"u\t1"]);
            client.ask(&request, ROWS_MAX, |row| rows.push(row))
        });
        (result, rows, sent)
    }

    #[test]
    fn rows_are_unescaped_up_to_the_blank_line() {
        let (result, rows, sent) = ask_text("u\x01t1\t1\ttcp:a\n-u\tx\n\nlater\n");
        assert!(result.is_ok());
        assert_eq!(
            rows,
            [
                vec![b"u\t1".to_vec(), b"1".to_vec(), b"tcp:a".to_vec()],
                vec![b"-u".to_vec(), b"x".to_vec()]
            ]
        );
        assert_eq!(
            sent,
            b"VERSION\treplicator-doveadm-client\t1\t0\nSHOW\tu\x01t1\n"
        );
        let (result, rows, _) = ask_text("\n");
        assert!(result.is_ok() && rows.is_empty());
    }

    #[test]
    fn each_failure_has_its_own_exit_code() {
        for (answer, code) in [
            ("", 69),
            ("u\t1\n", 75),
            ("u\t1", 69),
            ("-User not found\n", 67),
        ] {
            assert_eq!(
                ask_text(answer).0.unwrap_err().exit_code(),
                code,
                "{answer:?}"
            );
        }
        for greeting in [
            "VERSION\treplicator-doveadm-server\t2\t0\n",
            "VERSION\treplicator-notify\t1\t0\n",
            "+\n",
        ] {
            let result = Client::greet(greeting.as_bytes(), io::sink());
            assert_eq!(result.unwrap_err().exit_code(), 76, "{greeting:?}");
        }
        let result = Client::greet(&b""[..], io::sink());
        assert_eq!(result.unwrap_err().exit_code(), 75);
    }

    #[test]
    fn an_order_is_done_or_rejected_with_its_reason() {
        for (answer, done) in [
            ("+\n", Ok(&b""[..])),
            ("+2\n", Ok(b"2")),
            (
                "-User not found\n",
                Err(("Replicator failed: User not found", 64)),
            ),
            ("\n", Err(("Replicator failed: ", 64))),
            ("+2", Err(("Replicator disconnected unexpectedly", 75))),
        ] {
            let bytes = format!("{GREETING}{answer}");
            let client = Client::greet(bytes.as_bytes(), io::sink()).unwrap();
            let result = client.order(b"REPLICATE\tlow\t\t*\n");
            let result = result.map_err(|e| (e.to_string(), e.exit_code()));
            let done = done.map(<[u8]>::to_vec);
            let done = done.map_err(|(text, code): (&str, i32)| (text.to_owned(), code));
            assert_eq!(result, done, "{answer:?}");
        }
    }

    #[test]
    fn lines_are_taken_at_the_limit_and_not_past_it() {
        for (length, ok) in [(LINE_BYTES_MAX, true), (LINE_BYTES_MAX + 1, false)] {
            let (result, _, _) = ask_text(&format!("{}\n\n", "x".repeat(length)));
            assert_eq!(result.is_ok(), ok, "{length}");
        }
    }

    #[test]
    fn rows_are_taken_at_the_limit_and_not_past_it() {
        for (count, ok) in [(ROWS_MAX, true), (ROWS_MAX + 1, false)] {
            let (result, rows, _) = ask_text(&format!("{}\n", "u\t1\n".repeat(count)));
            assert_eq!(result.is_ok(), ok, "{count}");
            assert_eq!(rows.len(), ROWS_MAX);
        }
    }

    #[test]
    fn errors_read_as_dovecots() {
        let error = io::Error::from_raw_os_error(111);
        assert_eq!(errno_text(&error), "Connection refused");
        assert_eq!(errno_text(&io::Error::other("x")), "x");
    }

    #[test]
    fn notify_carries_neither_flag_nor_state() {
        assert_eq!(notify_request(b"u\n"), b"NOTIFY\tu\x01n\t\t\n");
        let observed = Observed {
            guids_healed: 2,
            renames: 3,
            undeleted: 0,
            hostnames: Some(Hostnames {
                peer: b"h".to_vec(),
                own: b"g".to_vec(),
                side: Side::Peers,
            }),
        };
        assert_eq!(
            observed_request(b"u", &observed),
            b"OBSERVED\tu\t2\t3\t0\th\tg\tdsync-server\n"
        );
    }
}
