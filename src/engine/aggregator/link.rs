//! The connection to the replicator: lines out, acknowledgements in, delays between attempts.
//!
//! We send `VERSION \t replicator-notify \t 1 \t 1`, then `U \t <username> \t <priority> \t <id>`, ids
//! growing by one from 1. A replicator that acknowledges answers the VERSION with its own, and
//! `A \t <id>` when all lines up to that one are safe with it. A sync line is answered `+ \t <id>` or
//! `- \t <id> [\t <reason>]`. A stock replicator ignores the id of low and high lines, says nothing
//! to VERSION and never acknowledges: with it, written counts as handed on. Dovecot's master
//! holds the listening socket, so a connect succeeds and silence follows also while no replicator
//! runs (restart, throttled up to a minute): a silent peer is taken for stock's only after
//! [`STOCK_AFTER`]. Until then its lines are sent all the same, and kept.
//! Source: Dovecot 2.3, `replicator/notify-connection.c`; the acknowledgement is ours.

use std::collections::VecDeque;
use std::time::Duration;

use crate::engine::Priority;
use crate::engine::aggregator::table::Username;
use crate::engine::strescape::{append_tabescaped, split_tabescaped};
use crate::engine::time::Mono;

/// A replicator that is silent this long after a connect is stock's.
pub const STOCK_AFTER: Duration = Duration::from_secs(120);
/// The delay before the first reconnect; it doubles up to [`RECONNECT_MAX`].
pub const RECONNECT_MIN: Duration = Duration::from_millis(100);
/// The longest delay before a reconnect.
pub const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// How long a connect may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that lived this long was a good one: the next delay is short again.
pub const PROVEN_AFTER: Duration = Duration::from_secs(1);
/// Most lines that are sent and not acknowledged.
pub const MAX_IN_FLIGHT: usize = 1 << 18;
/// Most bytes that are made into lines ahead of the socket; what waits longer is still ordered and merged.
pub const MAX_OUTPUT: usize = 16 * 1024;
/// Longest line from the replicator, in bytes with its LF.
pub const MAX_REPLY: usize = 4096;

/// What the replicator said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It acknowledges.
    Version,
    /// All lines up to this one are safe.
    Acked(u64),
    /// The sync that this line asked for succeeded, or why not.
    Sync(u64, Result<(), Vec<u8>>),
}

fn parse_number(field: Option<Vec<u8>>) -> Option<u64> {
    std::str::from_utf8(&field?).ok()?.parse().ok()
}

/// Reads a line of the replicator, without its LF.
#[must_use]
pub fn parse_reply(line: &[u8]) -> Option<Reply> {
    let mut fields = split_tabescaped(line);
    match fields.next()?.as_slice() {
        b"VERSION" => {
            let name = fields.next()?;
            let major = parse_number(fields.next())?;
            (name == b"replicator-notify" && major == 1).then_some(Reply::Version)
        }
        b"A" => Some(Reply::Acked(parse_number(fields.next())?)),
        b"+" => Some(Reply::Sync(parse_number(fields.next())?, Ok(()))),
        b"-" => {
            let id = parse_number(fields.next())?;
            Some(Reply::Sync(id, Err(fields.next().unwrap_or_default())))
        }
        _ => None,
    }
}

#[derive(Debug)]
struct Line {
    id: u64,
    username: Username,
    end_offset: u64,
}

/// What a peer makes of our lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Unknown,
    Acknowledges,
    Stock,
}

/// One connection that is there.
#[derive(Debug)]
pub struct Link {
    since: Mono,
    peer: Peer,
    last_id: u64,
    in_flight: VecDeque<Line>,
    output: Vec<u8>,
    /// How many bytes were ever written.
    written: u64,
    input: Vec<u8>,
}

impl Link {
    /// A connection as it begins.
    #[must_use]
    pub fn new(now: Mono) -> Self {
        Self {
            since: now,
            peer: Peer::Unknown,
            last_id: 0,
            in_flight: VecDeque::new(),
            output: b"VERSION\treplicator-notify\t1\t1\n".to_vec(),
            written: 0,
            input: Vec::new(),
        }
    }

    /// Whether another line may be made.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.output.len() < MAX_OUTPUT && self.in_flight.len() < MAX_IN_FLIGHT
    }

    /// Makes the line for a user; its id.
    pub fn send(&mut self, username: &Username, priority: Priority) -> u64 {
        let id = self.last_id.saturating_add(1);
        self.last_id = id;
        self.output.extend_from_slice(b"U\t");
        append_tabescaped(&mut self.output, username);
        for field in [priority.as_str(), &id.to_string()] {
            self.output.push(b'\t');
            self.output.extend_from_slice(field.as_bytes());
        }
        self.output.push(b'\n');
        let end_offset = self.written.saturating_add(self.output.len() as u64);
        self.in_flight.push_back(Line {
            id,
            username: Username::clone(username),
            end_offset,
        });
        id
    }

    /// The bytes to be written.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// This many bytes were written.
    pub fn handle_written(&mut self, bytes: usize) {
        let bytes = bytes.min(self.output.len());
        self.output.drain(..bytes);
        self.written = self.written.saturating_add(bytes as u64);
    }

    /// The next line that is handed on, if there is one: `acked` is what was acknowledged last.
    fn pop_if(&mut self, done: impl FnOnce(&Line) -> bool) -> Option<(Username, u64)> {
        if !done(self.in_flight.front()?) {
            return None;
        }
        self.in_flight
            .pop_front()
            .map(|line| (line.username, line.id))
    }

    /// A line that was acknowledged up to `id`.
    pub fn poll_acked(&mut self, id: u64) -> Option<(Username, u64)> {
        self.pop_if(|line| line.id <= id)
    }

    /// A line that a stock replicator has, as far as can be known.
    pub fn poll_written(&mut self) -> Option<(Username, u64)> {
        let written = self.written;
        if self.peer != Peer::Stock {
            return None;
        }
        self.pop_if(|line| line.end_offset <= written)
    }

    /// The users of all lines that were not acknowledged.
    pub fn into_unacked(self) -> impl Iterator<Item = Username> {
        self.in_flight.into_iter().map(|line| line.username)
    }

    /// Takes bytes of the replicator and appends what they say to `replies`.
    ///
    /// # Errors
    /// The line that is none: the connection is of no use any more.
    pub fn handle_input(&mut self, bytes: &[u8], replies: &mut Vec<Reply>) -> Result<(), String> {
        for &byte in bytes {
            if byte != b'\n' {
                self.input.push(byte);
                if self.input.len() >= MAX_REPLY {
                    return Err("Replicator sent too long line".to_owned());
                }
                continue;
            }
            let line = std::mem::take(&mut self.input);
            let invalid = || {
                let line = String::from_utf8_lossy(&line);
                format!("Replicator sent invalid input: {}", line.escape_debug())
            };
            let reply = parse_reply(&line).ok_or_else(invalid)?;
            match &reply {
                Reply::Version => self.peer = Peer::Acknowledges,
                Reply::Acked(id) | Reply::Sync(id, _) if *id == 0 || *id > self.last_id => {
                    return Err(invalid());
                }
                Reply::Acked(_) | Reply::Sync(..) => {}
            }
            replies.push(reply);
        }
        Ok(())
    }

    /// Whether the connection has shown that it is of use.
    #[must_use]
    pub fn is_proven(&self, now: Mono) -> bool {
        self.peer != Peer::Unknown || now.since(self.since) >= PROVEN_AFTER
    }

    /// Whether the replicator acknowledges.
    #[must_use]
    pub fn acknowledges(&self) -> bool {
        self.peer == Peer::Acknowledges
    }

    /// When the next judgement of the peer is due.
    #[must_use]
    pub fn next_timeout(&self, now_proven: bool) -> Option<Mono> {
        match self.peer {
            Peer::Unknown if now_proven => Some(self.since + STOCK_AFTER),
            Peer::Unknown => Some(self.since + PROVEN_AFTER),
            Peer::Acknowledges | Peer::Stock => None,
        }
    }

    /// Judges a peer that is still silent.
    pub fn handle_timeout(&mut self, now: Mono) {
        if self.peer == Peer::Unknown && now.since(self.since) >= STOCK_AFTER {
            self.peer = Peer::Stock;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read() {
        for (line, reply) in [
            (
                &b"VERSION\treplicator-notify\t1\t1"[..],
                Some(Reply::Version),
            ),
            (b"VERSION\treplicator-notify\t2\t0", None),
            (b"VERSION\tother\t1\t1", None),
            (b"A\t17", Some(Reply::Acked(17))),
            (b"A\t-1", None),
            (b"A", None),
            (b"+\t3", Some(Reply::Sync(3, Ok(())))),
            (b"-\t3", Some(Reply::Sync(3, Err(Vec::new())))),
            (
                b"-\t3\tno\x01tway",
                Some(Reply::Sync(3, Err(b"no\tway".to_vec()))),
            ),
            (b"", None),
            (b"X\t1", None),
        ] {
            assert_eq!(parse_reply(line), reply, "{line:?}");
        }
    }

    #[test]
    fn reply_is_taken_at_its_limit_and_refused_past_it() {
        let mut link = Link::new(Mono(0));
        link.send(&Username::from(&b"u"[..]), Priority::Sync);
        let reply = |length: usize| [&b"-\t1\t"[..], &vec![b'r'; length - 5], b"\n"].concat();
        let mut replies = Vec::new();
        assert_eq!(link.handle_input(&reply(MAX_REPLY), &mut replies), Ok(()));
        assert_eq!(replies.len(), 1);
        assert!(
            link.handle_input(&reply(MAX_REPLY + 1), &mut replies)
                .is_err()
        );
    }

    #[test]
    fn id_that_was_never_sent_ends_the_connection() {
        let mut link = Link::new(Mono(0));
        link.send(&Username::from(&b"u"[..]), Priority::Low);
        let mut replies = Vec::new();
        assert!(link.handle_input(b"A\t2\n", &mut replies).is_err());
        assert!(link.handle_input(b"+\t0\n", &mut replies).is_err());
        assert_eq!(replies, []);
    }

    #[test]
    fn silent_peer_is_stock_only_after_its_time_and_then_written_is_handed_on() {
        let mut link = Link::new(Mono(0));
        let user = Username::from(&b"u"[..]);
        link.send(&user, Priority::Low);
        link.handle_written(link.output().len() - 1);
        link.handle_timeout(Mono(0) + STOCK_AFTER - Duration::from_millis(1));
        assert_eq!(link.poll_written(), None);
        link.handle_timeout(Mono(0) + STOCK_AFTER);
        assert_eq!(link.poll_written(), None, "its LF is not yet written");
        link.handle_written(1);
        assert_eq!(link.poll_written(), Some((user, 1)));
        assert_eq!(link.poll_written(), None);
    }
}
