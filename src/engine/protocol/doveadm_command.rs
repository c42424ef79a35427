//! `doveadm-server`, the client's side: any command on a connection, its printed values and its result.
//!
//! Greeting, password, multiplexing and log lines are as in [`super::doveadm_server`]. Then:
//! ```text
//! C: <flags>\t<username>\t<command>\t<arguments>
//! S: <value>\t<value>\t...\n                 (each value tab-escaped; rows are not marked)
//! S: + or -<code>
//! ```
//! The client knows how many values a row has. A value that could not be had is left out, so rows are only to be
//! believed once the result is `+`. One command per connection: a server of 2.3 with `doveadm_port` set refuses the
//! next one. Before a first argument that may begin with `-` goes an argument `--`. Sources: Dovecot,
//! `src/doveadm/doveadm-print-server.c` and `client-connection-tcp.c` of 2.3.13, 2.3.19.1 and 2.4.1.

use super::doveadm_server::{
    Code, Greeting, LOG_CHANNEL, MAX_GREETING_BYTES, MAX_LOG_LINE_BYTES, ProtocolError, code_of,
    next_error, parse_greeting,
};
use super::line::{Line, LineReader};
use super::multiplex::Frames;
use super::replicator_notify::printable;
use crate::engine::strescape;

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// It wants to know the password: answer with [`super::doveadm_server::append_password`].
    PasswordWanted,
    /// It waits for the command: [`super::doveadm_server::append_command`].
    Ready,
    /// The next part of a value, unescaped.
    Part {
        /// Its bytes; a value may come in many parts, none longer than what was given to `push`.
        bytes: Vec<u8>,
        /// The value ends with it.
        ends: bool,
    },
    /// The command logged an error, or worse. Shortened and printable.
    Error(String),
    /// The result.
    Finished(Code),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Greeting,
    Values,
    Result,
    Finished,
}

/// Reads the answer on one connection. Holds what was pushed and not yet taken, and no more.
#[derive(Debug)]
pub struct CommandReader {
    step: Step,
    /// The greeting, and later the result.
    lines: LineReader,
    log: LineReader,
    password_sent: bool,
    multiplexed: bool,
    frames: Frames,
    values: Vec<u8>,
    /// How much of `values` was taken.
    taken: usize,
}

impl Default for CommandReader {
    fn default() -> Self {
        Self::new()
    }
}

impl CommandReader {
    /// A reader for a new connection.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            step: Step::Greeting,
            lines: LineReader::new(MAX_GREETING_BYTES),
            log: LineReader::new(MAX_LOG_LINE_BYTES),
            password_sent: false,
            multiplexed: false,
            frames: Frames::new(),
            values: Vec::new(),
            taken: 0,
        }
    }

    /// Adds bytes that arrived. Take all events between two calls.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.step == Step::Greeting {
            self.lines.push(bytes);
            return;
        }
        self.values.drain(..self.taken);
        self.taken = 0;
        if !self.multiplexed {
            self.push_answer(bytes);
            return;
        }
        let mut answer = Vec::new();
        let log = &mut self.log;
        self.frames.split(bytes, |channel, data| match channel {
            0 => answer.extend_from_slice(data),
            LOG_CHANNEL => log.push(data),
            _ => {}
        });
        self.push_answer(&answer);
    }

    fn push_answer(&mut self, bytes: &[u8]) {
        match self.step {
            Step::Values => self.values.extend_from_slice(bytes),
            _ => self.lines.push(bytes),
        }
    }

    /// The next event; `None` until more bytes arrive. Log lines that came with a result come before it.
    ///
    /// # Errors
    ///
    /// The server does not speak the protocol; the connection is of no use.
    pub fn next_event(&mut self) -> Result<Option<Event>, ProtocolError> {
        if let Some(error) = next_error(&mut self.log) {
            return Ok(Some(Event::Error(error)));
        }
        match self.step {
            Step::Greeting => self.next_of_greeting(),
            Step::Values => match self.next_part() {
                Some(part) => Ok(Some(part)),
                None if self.step == Step::Result => self.result(),
                None => Ok(None),
            },
            Step::Result => self.result(),
            Step::Finished => Ok(None),
        }
    }

    fn next_of_greeting(&mut self) -> Result<Option<Event>, ProtocolError> {
        while let Some(Line::Complete(line) | Line::TooLong(line)) = self.lines.next_line() {
            match parse_greeting(line, self.password_sent)? {
                Greeting::Version { minor } => self.multiplexed = minor > 0,
                Greeting::Ready => {
                    self.step = Step::Values;
                    let rest = self.lines.take_rest();
                    self.push(&rest);
                    return Ok(Some(Event::Ready));
                }
                Greeting::PasswordWanted => {
                    self.password_sent = true;
                    return Ok(Some(Event::PasswordWanted));
                }
            }
        }
        Ok(None)
    }

    fn next_part(&mut self) -> Option<Event> {
        let rest = self.values.get(self.taken..).unwrap_or_default();
        let end = rest.iter().position(|&byte| matches!(byte, b'\t' | b'\n'));
        let (part, end) = match end {
            Some(at) => (rest.get(..at).unwrap_or_default(), rest.get(at).copied()),
            // An escape that came in half stays.
            None => (strescape::without_half_escape(rest), None),
        };
        self.taken += part.len() + usize::from(end.is_some());
        let ends = end == Some(b'\t');
        let bytes = strescape::tabunescape(part);
        if end == Some(b'\n') {
            self.step = Step::Result;
            let result = self.values.split_off(self.taken);
            self.lines.push(&result);
            self.values = Vec::new();
            self.taken = 0;
        }
        (ends || !bytes.is_empty()).then_some(Event::Part { bytes, ends })
    }

    fn result(&mut self) -> Result<Option<Event>, ProtocolError> {
        let Some(line) = self.lines.next_line() else {
            return Ok(None);
        };
        let code = match line {
            Line::Complete([b'+', ..]) => Code::Ok,
            Line::Complete([b'-', word @ ..]) => code_of(word, false),
            Line::Complete(line) | Line::TooLong(line) => {
                return Err(ProtocolError::Result(printable(line)));
            }
        };
        self.step = Step::Finished;
        Ok(Some(Event::Finished(code)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(channel: u8, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        [&[channel][..], &length, data].concat()
    }

    /// The values, what else was said, and how it ended.
    type Answer = (Vec<Vec<u8>>, Vec<Event>, Result<(), ProtocolError>);

    fn read(stream: &[u8], size: usize) -> Answer {
        let mut reader = CommandReader::new();
        let (mut values, mut others, mut value) = (Vec::new(), Vec::new(), Vec::new());
        for piece in stream.chunks(size) {
            reader.push(piece);
            loop {
                match reader.next_event() {
                    Ok(None) => break,
                    Ok(Some(Event::Part { bytes, ends })) => {
                        value.extend_from_slice(&bytes);
                        if ends {
                            values.push(std::mem::take(&mut value));
                        }
                    }
                    Ok(Some(event)) => others.push(event),
                    Err(error) => return (values, others, Err(error)),
                }
            }
        }
        (values, others, Ok(()))
    }

    #[test]
    fn values_come_unescaped_however_the_stream_is_cut() {
        let stream = b"+\nINBOX\t7\ta\x01tb\x01n\x011\t\tlast\t\n+\n";
        for size in 1..=stream.len() {
            let (values, others, result) = read(stream, size);
            assert_eq!(
                values,
                [&b"INBOX"[..], b"7", b"a\tb\n\x01", b"", b"last"],
                "{size}"
            );
            assert_eq!(others, [Event::Ready, Event::Finished(Code::Ok)]);
            assert_eq!(result, Ok(()));
        }
    }

    #[test]
    fn a_password_is_given_and_errors_come_out_of_the_frames() {
        let mut stream = b"VERSION\tdoveadm-client\t1\t2\n-\n+\n".to_vec();
        stream.extend(frame(0, b"IN"));
        stream.extend(frame(
            b'L',
            b"\x04doveadm(127.0.0.1,u): fetch(uid) failed\n",
        ));
        stream.extend(frame(0, b"BOX\t"));
        stream.extend(frame(0, b"\n-TEMPFAIL\n"));
        for size in 1..=stream.len() {
            let (values, others, _) = read(&stream, size);
            assert_eq!(values, [b"INBOX"]);
            let error = Event::Error("fetch(uid) failed".to_owned());
            let ends = Event::Finished(Code::TempFail);
            assert_eq!(others, [Event::PasswordWanted, Event::Ready, error, ends]);
        }
    }

    #[test]
    fn a_command_that_printed_nothing_has_no_value() {
        let (values, others, _) = read(b"+\n\n-NOUSER\n", 3);
        assert!(values.is_empty());
        assert_eq!(others.last(), Some(&Event::Finished(Code::NoUser)));
    }

    #[test]
    fn what_is_no_greeting_or_result_is_an_error() {
        for bad in [
            &b"* OK IMAP\n"[..],
            b"-\n-\n",
            b"VERSION\tdoveadm-client\t2\t0\n",
            b"+\nvalue\t\nwhat\n",
        ] {
            assert!(read(bad, bad.len()).2.is_err());
        }
    }

    #[test]
    fn a_long_value_is_not_collected() {
        let mut reader = CommandReader::new();
        reader.push(b"+\n");
        assert_eq!(reader.next_event(), Ok(Some(Event::Ready)));
        for _ in 0..100 {
            reader.push(&[b'x'; 1000]);
            let part = reader.next_event();
            assert!(
                matches!(part, Ok(Some(Event::Part { ref bytes, ends: false })) if bytes.len() == 1000)
            );
            assert_eq!(reader.next_event(), Ok(None));
            assert!(reader.values.capacity() < 10_000);
        }
    }
}
