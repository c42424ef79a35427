//! `replicator-doveadm`, the replicator's side: what `doveadm replicator` and dsync's `-U` ask.
//!
//! ```text
//! C: VERSION\treplicator-doveadm-client\t1\t0      S: VERSION\treplicator-doveadm-server\t1\t0
//! C: STATUS                       S: <label>\t<number> x 7, blank line
//! C: STATUS\t<mask>               S: <user>\t<priority>\t<last fast>\t<last full>\t<0|1 failed>\t<last success>
//!                                    [\t<next sync secs>] per user, blank line; the seventh field since 2.3.20
//! C: STATUS-DSYNC                 S: <user>\t<type>\t<status> per connection, blank line
//! C: REPLICATE\t<priority>\t<f or empty>\t<mask>   S: +<users>   or   -Invalid priority
//! C: ADD\t<mask>                  S: +
//! C: REMOVE\t<username>           S: +   or   -User not found
//! C: NOTIFY\t<username>\t<f or empty>\t<state>     S: +
//! ```
//! Times are seconds since the epoch, 0 is never. Source: Dovecot 2.3,
//! `src/replication/replicator/doveadm-connection.c`. As there, wrong parameters and unknown commands end
//! the connection with an error in the log, and an empty line is an error without an end.
//!
//! Ours, in the same manner (fields tab-escaped, times in seconds since the epoch, 0 or empty is none;
//! more fields may follow at the end of a line):
//! ```text
//! C: SHOW\t<username>             S: per replica
//!                                    <user>\t<replica number>\t<target>\t<priority>\t<pending since>\t<last fast>
//!                                    \t<last full>\t<last success>\t<failures in a row>\t<reason>
//!                                    \t<next sync secs>\t<0|1 syncing now>\t<activity>\t<waiting deliveries>,
//!                                    blank line
//!                                 or -User not found
//! C: PEERS                        S: per peer
//!                                    <target>\t<up|down|unknown>\t<since>\t<users waiting>\t<reason>
//!                                    \t<next probe secs, or empty>\t<users>
//!                                    \t<host name that it shares with this node, or empty>, blank line
//! C: OBSERVED\t<username>\t<mailboxes with two GUIDs brought together>\t<mailboxes that dsync renamed>
//!        \t<mailboxes deleted half-way that are there again>
//!        [\t<host name of the peer>\t<this node's>\t<sync|dsync-server, which this node ran>]
//!                                 S: +
//! C: SERVING\t<username>          S: nothing; this process has begun to serve a sync of the peer
//! C: SERVED                       S: nothing; it has ended. A connection that ends before was cut off with the sync
//! C: METRICS                      S: <name>\t<number> per counter, blank line
//! ```

use super::line::{Line, LineReader};
use super::replicator_notify::{parse_number, printable};
use crate::engine::Priority;
use crate::engine::healing::{HOSTNAME_BYTES_MAX, Hostnames, Observed, Side};
use crate::engine::replicator::{Counters, MAX_USERNAME_BYTES, SyncType, UserStatus};
use crate::engine::strescape;

/// The longest line taken, in bytes: a NOTIFY with the longest state that is kept.
pub const MAX_LINE_BYTES: usize = super::doveadm_server::MAX_STATE_BYTES + 2 * MAX_USERNAME_BYTES;

const CLIENT: &[u8] = b"replicator-doveadm-client";

/// The greeting, sent when a client connects.
pub const HELLO: &[u8] = b"VERSION\treplicator-doveadm-server\t1\t0\n";

/// Answers.
pub const OK: &[u8] = b"+\n";
/// To REPLICATE with a word that is no priority.
pub const INVALID_PRIORITY: &[u8] = b"-Invalid priority\n";
/// To REMOVE and SHOW of a user who is not known.
pub const USER_NOT_FOUND: &[u8] = b"-User not found\n";

/// How many fields a line of `STATUS <mask>` has; doveadm of one version wants its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatusLayout {
    /// Six, as up to Dovecot 2.3.19.
    #[default]
    Six,
    /// Seven, the last one the seconds to the next sync: since 2.3.20.
    Seven,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The counters.
    Status,
    /// The users who match.
    StatusUsers {
        /// The mask.
        mask: Vec<u8>,
    },
    /// The dsync connections.
    StatusDsync,
    /// Queue the users who match.
    Replicate {
        /// The priority; `None` if the word is none, to be answered with [`INVALID_PRIORITY`].
        priority: Option<Priority>,
        /// A full sync is wanted.
        full: bool,
        /// One name, or a mask.
        mask: Vec<u8>,
    },
    /// Make the users who match known.
    Add {
        /// One name, or a mask.
        mask: Vec<u8>,
    },
    /// Forget a user.
    Remove {
        /// The name.
        username: Vec<u8>,
    },
    /// A peer has synced the user.
    Notify {
        /// The name.
        username: Vec<u8>,
        /// It was a full sync.
        full: bool,
        /// The new state, possibly empty.
        state: Vec<u8>,
    },
    /// All that is known of a user.
    Show {
        /// The name.
        username: Vec<u8>,
    },
    /// A dsync process of this node tells what it saw.
    Observed {
        /// Whose mail it worked on.
        username: Vec<u8>,
        /// What it saw.
        observed: Observed,
    },
    /// A dsync-server of this node has begun.
    Serving {
        /// Whose mail it works on.
        username: Vec<u8>,
    },
    /// The one that this connection told of has ended.
    Served,
    /// The peers.
    Peers,
    /// The counters since the start.
    Metrics,
}

/// Why a line is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The client speaks another protocol or version.
    Incompatible(String),
    /// An empty line. The connection may go on.
    EmptyCommand,
    /// A command unknown here.
    UnknownCommand(String),
    /// Wrong parameters of the command.
    InvalidParameters(&'static str),
    /// More than [`MAX_LINE_BYTES`].
    TooLong,
}

impl RequestError {
    /// Whether the connection is to be closed.
    #[must_use]
    pub const fn ends_connection(&self) -> bool {
        !matches!(self, Self::EmptyCommand)
    }
}

impl std::fmt::Display for RequestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Incompatible(line) => write!(f, "Client not compatible: {line}"),
            Self::EmptyCommand => f.write_str("Empty command"),
            Self::UnknownCommand(command) => write!(f, "Unknown command: {command}"),
            Self::InvalidParameters(command) => write!(f, "{command}: Invalid parameters"),
            Self::TooLong => write!(f, "Line is longer than {MAX_LINE_BYTES} bytes"),
        }
    }
}

/// Reads a client's connection.
#[derive(Debug)]
pub struct RequestReader {
    lines: LineReader,
    version_received: bool,
}

impl Default for RequestReader {
    fn default() -> Self {
        Self::new()
    }
}

impl RequestReader {
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

    /// The next request; `None` until more bytes arrive.
    ///
    /// # Errors
    ///
    /// The line is no request; see [`RequestError::ends_connection`].
    pub fn next_request(&mut self) -> Result<Option<Request>, RequestError> {
        loop {
            let line = match self.lines.next_line() {
                None => return Ok(None),
                Some(Line::TooLong(_)) => return Err(RequestError::TooLong),
                Some(Line::Complete(line)) => line,
            };
            if self.version_received {
                return parse_line(line).map(Some);
            }
            let mut fields = line.split(|&byte| byte == b'\t');
            let start = (fields.next(), fields.next(), fields.next());
            if start != (Some(b"VERSION"), Some(CLIENT), Some(b"1")) {
                return Err(RequestError::Incompatible(printable(line)));
            }
            self.version_received = true;
        }
    }
}

fn parse_line(line: &[u8]) -> Result<Request, RequestError> {
    if line.is_empty() {
        return Err(RequestError::EmptyCommand);
    }
    let mut fields = strescape::split_tabescaped(line);
    let command = fields.next().unwrap_or_default();
    let args: Vec<Vec<u8>> = fields.take(8).collect();
    let request = match (command.as_slice(), args.as_slice()) {
        (b"STATUS", []) => Request::Status,
        (b"STATUS", [mask, ..]) => Request::StatusUsers { mask: mask.clone() },
        (b"STATUS-DSYNC", _) => Request::StatusDsync,
        (b"REPLICATE", [priority, flags, mask]) if valid(mask) => Request::Replicate {
            priority: Priority::parse(priority),
            full: flags.contains(&b'f'),
            mask: mask.clone(),
        },
        (b"REPLICATE", _) => return Err(RequestError::InvalidParameters("REPLICATE")),
        (b"ADD", [mask]) if valid(mask) => Request::Add { mask: mask.clone() },
        (b"ADD", _) => return Err(RequestError::InvalidParameters("ADD")),
        (b"REMOVE", [username]) => Request::Remove {
            username: username.clone(),
        },
        (b"REMOVE", _) => return Err(RequestError::InvalidParameters("REMOVE")),
        (b"NOTIFY", [username, flags, state, ..]) if valid(username) => Request::Notify {
            username: username.clone(),
            full: flags.first() == Some(&b'f'),
            state: state.clone(),
        },
        (b"NOTIFY", _) => return Err(RequestError::InvalidParameters("NOTIFY")),
        (b"SHOW", [username]) => Request::Show {
            username: username.clone(),
        },
        (b"SHOW", _) => return Err(RequestError::InvalidParameters("SHOW")),
        (b"OBSERVED", [username, guids, renames, undeleted, names @ ..]) if valid(username) => {
            Request::Observed {
                username: username.clone(),
                observed: Observed {
                    guids_healed: parse_count(guids)?,
                    renames: parse_count(renames)?,
                    undeleted: parse_count(undeleted)?,
                    hostnames: parse_hostnames(names)?,
                },
            }
        }
        (b"OBSERVED", _) => return Err(RequestError::InvalidParameters("OBSERVED")),
        (b"SERVING", [username]) if valid(username) => Request::Serving {
            username: username.clone(),
        },
        (b"SERVING", _) => return Err(RequestError::InvalidParameters("SERVING")),
        (b"SERVED", _) => Request::Served,
        (b"PEERS", _) => Request::Peers,
        (b"METRICS", _) => Request::Metrics,
        (other, _) => return Err(RequestError::UnknownCommand(printable(other))),
    };
    Ok(request)
}

/// One of OBSERVED.
fn parse_count(field: &[u8]) -> Result<u32, RequestError> {
    let count = parse_number(field).and_then(|number| u32::try_from(number).ok());
    count.ok_or(RequestError::InvalidParameters("OBSERVED"))
}

/// Those of OBSERVED, where it has any.
fn parse_hostnames(fields: &[Vec<u8>]) -> Result<Option<Hostnames>, RequestError> {
    let invalid = RequestError::InvalidParameters("OBSERVED");
    let [peer, own, ran] = fields else {
        return match fields {
            [] => Ok(None),
            _ => Err(invalid),
        };
    };
    let side = match ran.as_slice() {
        b"sync" => Side::Ours,
        b"dsync-server" => Side::Peers,
        _ => return Err(invalid),
    };
    if [peer, own]
        .iter()
        .any(|name| name.is_empty() || name.len() > HOSTNAME_BYTES_MAX)
    {
        return Err(invalid);
    }
    Ok(Some(Hostnames {
        peer: peer.clone(),
        own: own.clone(),
        side,
    }))
}

/// A name that may become a user's, or a mask of such names.
fn valid(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= MAX_USERNAME_BYTES && !name.contains(&0)
}

/// Appends the answer to STATUS.
pub fn append_overview(out: &mut Vec<u8>, counters: &Counters) {
    for (label, number) in [
        ("Queued 'sync' requests", counters.queued_sync),
        ("Queued 'high' requests", counters.queued_high),
        ("Queued 'low' requests", counters.queued_low),
        ("Queued 'failed' requests", counters.queued_failed),
        ("Queued 'full resync' requests", counters.queued_full_resync),
        ("Waiting 'failed' requests", counters.waiting_failed),
        ("Total number of known users", counters.known_users),
    ] {
        out.extend_from_slice(label.as_bytes());
        out.push(b'\t');
        append_number(out, number);
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// Appends a user's line of the answer to `STATUS <mask>`.
pub fn append_user_status(out: &mut Vec<u8>, status: &UserStatus<'_>, layout: StatusLayout) {
    strescape::append_tabescaped(out, status.username);
    out.push(b'\t');
    out.extend_from_slice(status.priority.as_str().as_bytes());
    for number in [status.last_fast_sync.0, status.last_full_sync.0] {
        out.push(b'\t');
        append_number(out, u64::from(number));
    }
    out.extend_from_slice(if status.failed { b"\t1\t" } else { b"\t0\t" });
    append_number(out, u64::from(status.last_success.0));
    if layout == StatusLayout::Seven {
        out.push(b'\t');
        append_number(out, u64::from(status.next_sync_secs));
    }
    out.push(b'\n');
}

/// Appends a connection's line of the answer to STATUS-DSYNC; `sync` is what it works on, if anything.
pub fn append_dsync_status(out: &mut Vec<u8>, sync: Option<(&[u8], SyncType)>, status: &str) {
    match sync {
        Some((username, sync_type)) => {
            strescape::append_tabescaped(out, username);
            out.push(b'\t');
            out.extend_from_slice(sync_type.as_str().as_bytes());
        }
        None => out.extend_from_slice(b"\t-"),
    }
    out.push(b'\t');
    strescape::append_tabescaped(out, status.as_bytes());
    out.push(b'\n');
}

/// Appends the answer to REPLICATE.
pub fn append_updated(out: &mut Vec<u8>, users: u64) {
    out.push(b'+');
    append_number(out, users);
    out.push(b'\n');
}

/// Appends one line of these fields.
pub fn append_fields<'a>(out: &mut Vec<u8>, fields: impl IntoIterator<Item = &'a [u8]>) {
    for (at, field) in fields.into_iter().enumerate() {
        if at > 0 {
            out.push(b'\t');
        }
        strescape::append_tabescaped(out, field);
    }
    out.push(b'\n');
}

fn append_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut count = 0;
    for digit in &mut digits {
        // A digit is below ten.
        #[allow(clippy::cast_possible_truncation)]
        let letter = b'0' + (number % 10) as u8;
        *digit = letter;
        count += 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend(digits.iter().take(count).rev());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::time::UnixSecs;

    const VERSION: &[u8] = b"VERSION\treplicator-doveadm-client\t1\t0\n";

    fn request(line: &[u8]) -> Result<Option<Request>, RequestError> {
        let mut reader = RequestReader::new();
        reader.push(VERSION);
        reader.push(line);
        reader.next_request()
    }

    #[test]
    fn stock_commands_are_understood() {
        for (line, expected) in [
            (&b"STATUS\n"[..], Request::Status),
            (
                b"STATUS\tu\x01t*\n",
                Request::StatusUsers {
                    mask: b"u\t*".to_vec(),
                },
            ),
            (b"STATUS-DSYNC\n", Request::StatusDsync),
            (
                b"REPLICATE\tlow\tf\t*\n",
                Request::Replicate {
                    priority: Some(Priority::Low),
                    full: true,
                    mask: b"*".to_vec(),
                },
            ),
            (
                b"REPLICATE\tsoon\t\tu\n",
                Request::Replicate {
                    priority: None,
                    full: false,
                    mask: b"u".to_vec(),
                },
            ),
            (
                b"OBSERVED\tu\t2\t0\t4\th\tg\tsync\n",
                Request::Observed {
                    username: b"u".to_vec(),
                    observed: Observed {
                        guids_healed: 2,
                        renames: 0,
                        undeleted: 4,
                        hostnames: Some(Hostnames {
                            peer: b"h".to_vec(),
                            own: b"g".to_vec(),
                            side: Side::Ours,
                        }),
                    },
                },
            ),
            (
                b"OBSERVED\tu\t1\t3\t0\n",
                Request::Observed {
                    username: b"u".to_vec(),
                    observed: Observed {
                        guids_healed: 1,
                        renames: 3,
                        undeleted: 0,
                        hostnames: None,
                    },
                },
            ),
            (
                b"SERVING\tu\n",
                Request::Serving {
                    username: b"u".to_vec(),
                },
            ),
            (b"SERVED\n", Request::Served),
            (
                b"ADD\tu\n",
                Request::Add {
                    mask: b"u".to_vec(),
                },
            ),
            (
                b"REMOVE\tu\n",
                Request::Remove {
                    username: b"u".to_vec(),
                },
            ),
            (
                b"NOTIFY\tu\tf\tST\tmore\n",
                Request::Notify {
                    username: b"u".to_vec(),
                    full: true,
                    state: b"ST".to_vec(),
                },
            ),
            (
                b"SHOW\tu\n",
                Request::Show {
                    username: b"u".to_vec(),
                },
            ),
            (b"PEERS\n", Request::Peers),
            (b"METRICS\n", Request::Metrics),
        ] {
            assert_eq!(request(line), Ok(Some(expected)));
        }
    }

    #[test]
    fn bad_requests_are_told_apart() {
        assert_eq!(request(b"\n"), Err(RequestError::EmptyCommand));
        assert!(!RequestError::EmptyCommand.ends_connection());
        for (line, command) in [
            (&b"REPLICATE\tlow\tu\n"[..], "REPLICATE"),
            (b"REPLICATE\tlow\t\t\n", "REPLICATE"),
            (b"ADD\n", "ADD"),
            (b"REMOVE\ta\tb\n", "REMOVE"),
            (b"NOTIFY\tu\t\n", "NOTIFY"),
            (b"SHOW\n", "SHOW"),
        ] {
            let error = request(line).unwrap_err();
            assert_eq!(error, RequestError::InvalidParameters(command));
            assert!(error.ends_connection());
        }
        assert_eq!(
            request(b"QUIT\n"),
            Err(RequestError::UnknownCommand("QUIT".into()))
        );
        let mut reader = RequestReader::new();
        reader.push(b"VERSION\treplicator-doveadm-client\t2\t0\n");
        assert!(matches!(
            reader.next_request(),
            Err(RequestError::Incompatible(_))
        ));
    }

    #[test]
    fn names_and_lines_are_taken_at_the_limit_and_not_past_it() {
        for (length, ok) in [(MAX_USERNAME_BYTES, true), (MAX_USERNAME_BYTES + 1, false)] {
            let line = [b"ADD\t".to_vec(), vec![b'u'; length], b"\n".to_vec()].concat();
            assert_eq!(request(&line).is_ok(), ok);
        }
        let notify = b"NOTIFY\tu\t\t".to_vec();
        for (length, ok) in [(MAX_LINE_BYTES, true), (MAX_LINE_BYTES + 1, false)] {
            let mut line = notify.clone();
            line.resize(length, b's');
            line.push(b'\n');
            assert_eq!(request(&line).is_ok(), ok);
        }
    }

    #[test]
    fn answers_are_stocks_byte_for_byte() {
        let mut out = Vec::new();
        append_overview(
            &mut out,
            &Counters {
                known_users: 2,
                queued_low: 10,
                ..Counters::default()
            },
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "Queued 'sync' requests\t0\nQueued 'high' requests\t0\nQueued 'low' requests\t10\nQueued 'failed' requests\t0\nQueued 'full resync' requests\t0\nWaiting 'failed' requests\t0\nTotal number of known users\t2\n\n"
        );
        let status = UserStatus {
            username: b"u\t1",
            priority: Priority::High,
            last_fast_sync: UnixSecs(1_700_000_000),
            last_full_sync: UnixSecs(0),
            failed: true,
            last_success: UnixSecs(u32::MAX),
            next_sync_secs: 59,
        };
        let mut out = Vec::new();
        append_user_status(&mut out, &status, StatusLayout::Six);
        append_user_status(&mut out, &status, StatusLayout::Seven);
        append_updated(&mut out, 12);
        append_dsync_status(&mut out, Some((b"u", SyncType::Incremental)), "Idle");
        append_dsync_status(&mut out, None, "Not connected");
        append_fields(&mut out, [&b"a\tb"[..], b"", b"c"]);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "u\x01t1\thigh\t1700000000\t0\t1\t4294967295\nu\x01t1\thigh\t1700000000\t0\t1\t4294967295\t59\n+12\nu\tincremental\tIdle\n\t-\tNot connected\na\x01tb\t\tc\n"
        );
    }
}
