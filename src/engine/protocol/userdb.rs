//! The auth server's userdb socket, the client's side: who is there, and what is said of a user.
//!
//! ```text
//! S: VERSION\t1\t<minor>            SPID\t<pid>          (in any order, other lines may follow)
//! C: VERSION\t1\t0
//! C: USER\t<id>\t<username>\tservice=replicator
//! S: USER\t<id>\t<username>\t<key>[=<value>]...   NOTFOUND\t<id>   FAIL\t<id>[\treason=...]
//! C: LIST\t<id>\tuser=<mask>\tservice=replicator
//! S: LIST\t<id>\t<username>...      DONE\t<id>\t[fail]
//! ```
//! Source: Dovecot, `src/auth/auth-master-connection.c`. While a listing runs the server reads nothing
//! else from the connection, so lookups want a connection of their own. A listing is always asked for
//! with a `user=` field: without it 2.4 lists nobody.

use super::line::{Line, LineReader};
use super::replicator_notify::{parse_number, printable};
use crate::engine::strescape;

/// The longest line taken, in bytes.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// What the auth server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The user is known, with these extra fields. A field without `=` has the value "yes".
    User {
        /// The number of the lookup.
        id: u64,
        /// The name as the userdb has it.
        username: Vec<u8>,
        /// Keys and values, unescaped, in the server's order.
        fields: Vec<(Vec<u8>, Vec<u8>)>,
    },
    /// There is no such user.
    NotFound {
        /// The number of the lookup.
        id: u64,
    },
    /// The lookup failed: nothing is known.
    Fail {
        /// The number of the lookup.
        id: u64,
        /// What the server says, possibly nothing.
        reason: String,
    },
    /// One user of a listing.
    Listed {
        /// The number of the listing.
        id: u64,
        /// The user's name, unescaped.
        username: Vec<u8>,
    },
    /// The listing is over.
    Done {
        /// The number of the listing.
        id: u64,
        /// It is not complete.
        failed: bool,
    },
}

/// The server is not an auth server of a version known.
#[derive(Debug, PartialEq, Eq)]
pub struct Incompatible {
    /// What it said, shortened and printable.
    pub line: String,
}

/// Reads a connection to the auth server.
#[derive(Debug)]
pub struct UserdbReader {
    lines: LineReader,
}

impl Default for UserdbReader {
    fn default() -> Self {
        Self::new()
    }
}

impl UserdbReader {
    /// A reader for a new connection.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lines: LineReader::new(MAX_LINE_BYTES),
        }
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
    }

    /// The next event; `None` until more bytes arrive. Lines that say nothing known are passed over.
    ///
    /// # Errors
    ///
    /// The server speaks another major version.
    pub fn next_event(&mut self) -> Result<Option<Event>, Incompatible> {
        while let Some(line) = self.lines.next_line() {
            let line = match line {
                Line::Complete(line) => line,
                Line::TooLong(start) => match overlong(start) {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                },
            };
            if let Some(version) = line.strip_prefix(b"VERSION\t") {
                if version.split(|&byte| byte == b'\t').next() != Some(b"1") {
                    return Err(Incompatible {
                        line: printable(line),
                    });
                }
            } else if let Some(event) = parse_line(line) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

/// An over-long answer to a lookup counts as failed: it must not be waited for for ever.
fn overlong(start: &[u8]) -> Option<Event> {
    let mut fields = start.split(|&byte| byte == b'\t');
    if fields.next()? != b"USER" {
        return None;
    }
    let id = parse_number(fields.next()?)?;
    let reason = format!("userdb reply is longer than {MAX_LINE_BYTES} bytes");
    Some(Event::Fail { id, reason })
}

fn parse_line(line: &[u8]) -> Option<Event> {
    let mut fields = line.split(|&byte| byte == b'\t');
    let command = fields.next()?;
    if !matches!(command, b"USER" | b"NOTFOUND" | b"FAIL" | b"LIST" | b"DONE") {
        return None;
    }
    let id = parse_number(fields.next()?)?;
    Some(match command {
        b"USER" => Event::User {
            id,
            username: strescape::tabunescape(fields.next()?),
            fields: fields.filter(|f| !f.is_empty()).map(key_value).collect(),
        },
        b"LIST" => Event::Listed {
            id,
            username: strescape::tabunescape(fields.next()?),
        },
        b"NOTFOUND" => Event::NotFound { id },
        b"FAIL" => Event::Fail {
            id,
            reason: fields
                .find_map(|field| field.strip_prefix(b"reason="))
                .map(|reason| printable(&strescape::tabunescape(reason)))
                .unwrap_or_default(),
        },
        _ => Event::Done {
            id,
            failed: fields.next() == Some(b"fail"),
        },
    })
}

fn key_value(field: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match field.iter().position(|&byte| byte == b'=') {
        None => (strescape::tabunescape(field), b"yes".to_vec()),
        Some(at) => {
            let (key, value) = field.split_at(at);
            (
                strescape::tabunescape(key),
                strescape::tabunescape(value.get(1..).unwrap_or_default()),
            )
        }
    }
}

/// Appends the client's greeting.
pub fn append_hello(out: &mut Vec<u8>) {
    out.extend_from_slice(b"VERSION\t1\t0\n");
}

/// Appends a lookup of this user.
pub fn append_lookup(out: &mut Vec<u8>, id: u64, username: &[u8]) {
    out.extend_from_slice(format!("USER\t{id}\t").as_bytes());
    strescape::append_tabescaped(out, username);
    out.extend_from_slice(b"\tservice=replicator\n");
}

/// Appends a listing of the users that match the mask.
pub fn append_list(out: &mut Vec<u8>, id: u64, mask: &[u8]) {
    out.extend_from_slice(format!("LIST\t{id}\tuser=").as_bytes());
    strescape::append_tabescaped(out, mask);
    out.extend_from_slice(b"\tservice=replicator\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(stream: &[u8]) -> Vec<Event> {
        let mut reader = UserdbReader::new();
        reader.push(stream);
        std::iter::from_fn(|| reader.next_event().unwrap()).collect()
    }

    #[test]
    fn lookups_and_listings_are_read_around_what_is_not_known() {
        let stream = b"VERSION\t1\t2\nSPID\t99\nCUID\t1\nUSER\t1\tu\x01t1\tuid=5\tnoreplicate\tmail_replica=tcp:a=b\tempty=\nNOTFOUND\t2\nFAIL\t3\treason=busy\nFAIL\t4\nLIST\t5\tu2\nLIST\t5\tu3\nDONE\t5\t\nDONE\t6\tfail\nDONE\tx\n";
        let pair = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        assert_eq!(
            events(stream),
            [
                Event::User {
                    id: 1,
                    username: b"u\t1".to_vec(),
                    fields: vec![
                        pair("uid", "5"),
                        pair("noreplicate", "yes"),
                        pair("mail_replica", "tcp:a=b"),
                        pair("empty", "")
                    ]
                },
                Event::NotFound { id: 2 },
                Event::Fail {
                    id: 3,
                    reason: "busy".into()
                },
                Event::Fail {
                    id: 4,
                    reason: String::new()
                },
                Event::Listed {
                    id: 5,
                    username: b"u2".to_vec()
                },
                Event::Listed {
                    id: 5,
                    username: b"u3".to_vec()
                },
                Event::Done {
                    id: 5,
                    failed: false
                },
                Event::Done {
                    id: 6,
                    failed: true
                },
            ]
        );
    }

    #[test]
    fn another_major_version_is_refused() {
        let mut reader = UserdbReader::new();
        reader.push(b"VERSION\t2\t0\n");
        assert!(reader.next_event().is_err());
    }

    #[test]
    fn an_answer_at_the_limit_is_read_and_one_past_it_is_a_failed_lookup() {
        let line = |length: usize| {
            let mut line = b"USER\t7\tu\tx=".to_vec();
            line.resize(length, b'v');
            line.push(b'\n');
            events(&line)
        };
        assert!(matches!(
            line(MAX_LINE_BYTES).as_slice(),
            [Event::User { .. }]
        ));
        assert!(matches!(
            line(MAX_LINE_BYTES + 1).as_slice(),
            [Event::Fail { id: 7, .. }]
        ));
    }

    #[test]
    fn requests_are_escaped() {
        let mut out = Vec::new();
        append_hello(&mut out);
        append_lookup(&mut out, 1, b"a\tb");
        append_list(&mut out, 2, b"*");
        assert_eq!(
            out,
            b"VERSION\t1\t0\nUSER\t1\ta\x01tb\tservice=replicator\nLIST\t2\tuser=*\tservice=replicator\n"
        );
    }
}
