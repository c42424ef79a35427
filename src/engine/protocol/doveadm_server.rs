//! `doveadm-server`, the client's side: one dsync after the other, its result, its state and its errors.
//!
//! ```text
//! C: VERSION\tdoveadm-server\t1\t1
//! S: VERSION\tdoveadm-client\t1\t<minor>     (absent: a server without multiplexing)
//! S: +                                       (or `-`: a password is wanted)
//! C: PLAIN\t<base64 of \0doveadm\0<password>>
//! S: +
//! C: <flags>\t<username>\tsync\t<arguments>
//! S: <state>\t[\tready\t]                    (then `+` or `-<code>`)
//! ```
//! `ready` is ours: the doveadm module has served the command, and will serve another on the same connection. Without it the next
//! command of the process may find it with the first user's rights (2.3: `Auth PASS lookup failed`), which is why stock's replicator
//! makes a connection for each. Stock's client cuts the line at the first tab.
//!
//! With minor 1 everything after the `+` is multiplexed. Channel 0 is the answer, channel `L` are lines that
//! the command logged, each led by a byte for its type. Sources: Dovecot, `src/doveadm/client-connection-tcp.c`
//! and `doveadm-util.c` of 2.3.13, 2.3.19.1 and 2.4.1. Servers of 2.3 and 2.4 send log lines to a client of
//! minor 1 unasked. Other commands than `sync`: [`super::doveadm_command`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::line::{Line, LineReader};
use super::multiplex::Frames;
use super::replicator_notify::{parse_number, printable};
use crate::engine::strescape;

/// The longest state that is kept, in bytes. A longer one is dropped: the next sync is not incremental.
pub const MAX_STATE_BYTES: usize = 4 * 1024 * 1024;
/// The longest line of the greeting.
pub const MAX_GREETING_BYTES: usize = 1024;
/// What is read of one line that dsync logged.
pub const MAX_LOG_LINE_BYTES: usize = 8 * 1024;

pub(super) const LOG_CHANNEL: u8 = b'L';

/// The field by which the doveadm module says that the connection will serve another `sync`.
pub const READY: &[u8] = b"ready";

/// How the command ended, by the last line of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    /// `+`
    Ok,
    /// The mailboxes changed while they were synced: sync again soon. The state before holds.
    Changed,
    /// The user is unknown, here or at the peer: the answer does not say where.
    NoUser,
    /// The user is not to be replicated, here or at the peer.
    NoReplicate,
    /// The user has no replica.
    NotFound,
    /// Permission denied.
    NoPerm,
    /// A failure that may pass.
    TempFail,
    /// The arguments are not understood, here or at the peer.
    Usage,
    /// Any other word, or none.
    Other(String),
}

/// The end of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// What the last line says.
    pub code: Code,
    /// The state line, unescaped; empty if there was none. To be kept with [`Code::Ok`] only.
    pub state: Vec<u8>,
    /// The connection will serve another command.
    pub ready: bool,
}

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// It wants to know the password: answer with [`append_password`].
    PasswordWanted,
    /// It waits for the command.
    Ready,
    /// The state line has come, the result not yet.
    StateReceived,
    /// dsync logged an error, or worse. Shortened and printable.
    Error(String),
    /// The same of a warning.
    Warning(String),
    /// The result.
    Finished(Reply),
}

/// The answer breaks the protocol.
#[derive(Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// Not a greeting.
    Greeting(String),
    /// The password was refused, or asked for twice.
    PasswordRefused,
    /// Another major version.
    Version(String),
    /// Not a result.
    Result(String),
}

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Greeting(line) => write!(f, "Unexpected handshake: {line}"),
            Self::PasswordRefused => f.write_str("doveadm authentication failed"),
            Self::Version(line) => write!(f, "Incompatible version: {line}"),
            Self::Result(line) => write!(f, "Invalid input: {line}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Greeting,
    State,
    Result,
    Finished,
}

/// Reads the answers on one connection.
#[derive(Debug)]
pub struct DoveadmReader {
    step: Step,
    answers: LineReader,
    log: LineReader,
    password_sent: bool,
    multiplexed: bool,
    frames: Frames,
    state: Vec<u8>,
    ready: bool,
}

impl Default for DoveadmReader {
    fn default() -> Self {
        Self::new()
    }
}

impl DoveadmReader {
    /// A reader for a new connection.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            step: Step::Greeting,
            answers: LineReader::new(MAX_GREETING_BYTES),
            log: LineReader::new(MAX_LOG_LINE_BYTES),
            password_sent: false,
            multiplexed: false,
            frames: Frames::new(),
            state: Vec::new(),
            ready: false,
        }
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.multiplexed || self.step == Step::Greeting {
            self.answers.push(bytes);
            return;
        }
        let (answers, log) = (&mut self.answers, &mut self.log);
        self.frames.split(bytes, |channel, data| match channel {
            0 => answers.push(data),
            LOG_CHANNEL => log.push(data),
            _ => {}
        });
    }

    /// Whether the greeting is over.
    #[must_use]
    pub fn is_handshaked(&self) -> bool {
        self.step != Step::Greeting
    }

    /// Whether the state line has come.
    #[must_use]
    pub fn is_state_received(&self) -> bool {
        self.step == Step::Result
    }

    /// The next event; `None` until more bytes arrive. Log lines that came with a result come before it.
    ///
    /// # Errors
    ///
    /// The server does not speak the protocol; the connection is of no use.
    pub fn next_event(&mut self) -> Result<Option<Event>, ProtocolError> {
        if let Some(event) = next_logged(&mut self.log) {
            return Ok(Some(event));
        }
        loop {
            let (line, too_long) = match self.answers.next_line() {
                None => return Ok(None),
                Some(Line::Complete(line)) => (line, false),
                Some(Line::TooLong(start)) => (start, true),
            };
            match self.step {
                Step::Greeting => match parse_greeting(line, self.password_sent)? {
                    Greeting::Version { minor } => self.multiplexed = minor > 0,
                    Greeting::Ready => {
                        self.start_answers();
                        return Ok(Some(Event::Ready));
                    }
                    Greeting::PasswordWanted => {
                        self.password_sent = true;
                        return Ok(Some(Event::PasswordWanted));
                    }
                },
                Step::State => {
                    let mut fields = line.split(|&byte| byte == b'\t');
                    let state = fields.next().filter(|_| !too_long).unwrap_or_default();
                    self.state = strescape::tabunescape(state);
                    self.ready = !too_long && fields.any(|field| field == READY);
                    self.step = Step::Result;
                    return Ok(Some(Event::StateReceived));
                }
                Step::Result => {
                    let code = match line {
                        [b'+', ..] => Code::Ok,
                        [b'-', word @ ..] => code_of(word, !self.state.is_empty()),
                        _ => return Err(ProtocolError::Result(printable(line))),
                    };
                    self.step = Step::Finished;
                    return Ok(Some(Event::Finished(Reply {
                        code,
                        state: std::mem::take(&mut self.state),
                        ready: self.ready,
                    })));
                }
                Step::Finished => return Ok(None),
            }
        }
    }

    /// Goes on to the answer of another command. False: there is more than the answer, which belongs to nothing that was asked.
    pub fn begin_another(&mut self) -> bool {
        let is_read = self.step == Step::Finished
            && self.answers.buffered_bytes() == 0
            && self.log.buffered_bytes() == 0
            && self.frames.is_between();
        if is_read {
            self.step = Step::State;
            self.ready = false;
        }
        is_read
    }

    fn start_answers(&mut self) {
        self.step = Step::State;
        let rest = self.answers.take_rest();
        self.answers = LineReader::new(MAX_STATE_BYTES);
        self.push(&rest);
    }
}

/// A line of the greeting.
pub(super) enum Greeting {
    Version { minor: u64 },
    Ready,
    PasswordWanted,
}

pub(super) fn parse_greeting(line: &[u8], password_sent: bool) -> Result<Greeting, ProtocolError> {
    if line.starts_with(b"VERSION\t") {
        let minor = parse_version(line);
        let minor = minor.ok_or_else(|| ProtocolError::Version(printable(line)))?;
        return Ok(Greeting::Version { minor });
    }
    match line {
        b"+" => Ok(Greeting::Ready),
        b"-" if !password_sent => Ok(Greeting::PasswordWanted),
        b"-" => Err(ProtocolError::PasswordRefused),
        _ => Err(ProtocolError::Greeting(printable(line))),
    }
}

/// The next error, fatal or panic of what the command logged.
pub(super) fn next_error(log: &mut LineReader) -> Option<String> {
    loop {
        if let Event::Error(text) = next_logged(log)? {
            return Some(text);
        }
    }
}

/// The next line that is a warning or worse.
fn next_logged(log: &mut LineReader) -> Option<Event> {
    while let Some(line) = log.next_line() {
        let (Line::Complete(line) | Line::TooLong(line)) = line;
        // Types 4 to 6 are error, fatal and panic.
        match line {
            // What went wrong is in the line before it.
            [4..=6, text @ ..] if log_text(text).starts_with("Raw backtrace: ") => {}
            [4..=6, text @ ..] => return Some(Event::Error(log_text(text))),
            [3, text @ ..] => return Some(Event::Warning(log_text(text))),
            _ => {}
        }
    }
    None
}

fn parse_version(line: &[u8]) -> Option<u64> {
    let mut fields = line.split(|&byte| byte == b'\t').skip(1);
    if fields.next()? != b"doveadm-client" || fields.next()? != b"1" {
        return None;
    }
    parse_number(fields.next()?)
}

/// The meaning of the word after `-`. 2.3.13 prints numbers; a concurrent change is `CHANGED` on 2.4,
/// `UNKNOWN` on 2.3.14 and later, 2 before, on 2.3 only after a state line that is not empty.
pub(super) fn code_of(word: &[u8], has_state: bool) -> Code {
    match word {
        b"CHANGED" => Code::Changed,
        b"UNKNOWN" | b"2" if has_state => Code::Changed,
        b"NOUSER" | b"67" => Code::NoUser,
        b"NOREPLICATE" | b"1001" => Code::NoReplicate,
        b"NOTFOUND" | b"68" => Code::NotFound,
        b"NOPERM" | b"77" => Code::NoPerm,
        b"TEMPFAIL" | b"75" => Code::TempFail,
        b"USAGE" | b"64" => Code::Usage,
        other => Code::Other(printable(other)),
    }
}

/// A logged line without the process's own prefix, which names what the reader knows already:
/// `doveadm(127.0.0.1,u1)<12><session>: Error: text`.
fn log_text(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line.get(..512).unwrap_or(line));
    let text = match text.split_once(": ") {
        Some((prefix, rest)) if is_process_prefix(prefix) => rest,
        _ => &text,
    };
    let level = ["Error: ", "Warning: "].into_iter();
    let text = level
        .filter_map(|level| text.strip_prefix(level))
        .next()
        .unwrap_or(text);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn is_process_prefix(prefix: &str) -> bool {
    (prefix.starts_with("doveadm") || prefix.starts_with("dsync"))
        && prefix.contains('(')
        && !prefix.contains(' ')
}

/// Appends the version line of a client that wants the command's log lines.
pub fn append_hello(out: &mut Vec<u8>) {
    out.extend_from_slice(b"VERSION\tdoveadm-server\t1\t1\n");
}

/// Appends the answer to [`Event::PasswordWanted`].
pub fn append_password(out: &mut Vec<u8>, password: &[u8]) {
    let mut plain = b"\0doveadm\0".to_vec();
    plain.extend_from_slice(password);
    out.extend_from_slice(b"PLAIN\t");
    out.extend_from_slice(STANDARD.encode(&plain).as_bytes());
    out.push(b'\n');
}

/// Appends a command line without flags. Each argument is escaped.
pub fn append_command<'a>(
    out: &mut Vec<u8>,
    username: &[u8],
    command: &str,
    arguments: impl IntoIterator<Item = &'a [u8]>,
) {
    out.push(b'\t');
    strescape::append_tabescaped(out, username);
    out.push(b'\t');
    out.extend_from_slice(command.as_bytes());
    for argument in arguments {
        out.push(b'\t');
        strescape::append_tabescaped(out, argument);
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(channel: u8, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![channel];
        frame.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(data);
        frame
    }

    fn events(stream: &[u8], chunk: usize) -> Result<Vec<Event>, ProtocolError> {
        let mut reader = DoveadmReader::new();
        let mut all = Vec::new();
        for bytes in stream.chunks(chunk) {
            reader.push(bytes);
            while let Some(event) = reader.next_event()? {
                all.push(event);
            }
        }
        Ok(all)
    }

    fn reply(answer: &[u8]) -> Reply {
        let stream = [b"+\n", answer].concat();
        match events(&stream, stream.len()).unwrap().pop() {
            Some(Event::Finished(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_without_multiplexing_is_understood() {
        let expected = [
            Event::Ready,
            Event::StateReceived,
            Event::Finished(Reply {
                code: Code::Ok,
                state: b"AbC=".to_vec(),
                ready: false,
            }),
        ];
        for chunk in 1..12 {
            assert_eq!(events(b"+\nAbC=\t\n+\n", chunk).unwrap(), expected);
        }
    }

    #[test]
    fn logged_errors_come_out_of_the_frames_before_the_result() {
        let mut stream = b"VERSION\tdoveadm-client\t1\t2\n+\n".to_vec();
        stream.extend(frame(b'L', b"\x02dsync info\n\x04doveadm(u1)<1><s>: Err"));
        stream.extend(frame(b'L', b"or: first\n"));
        stream.extend(frame(b'x', b"unknown channel"));
        stream.extend(frame(0, b"St\x011te\t"));
        stream.extend(frame(b'L', b"\x03a warning\n\x06last one\n"));
        stream.extend(frame(
            b'L',
            b"\x04doveadm(u1)<1><s>: Error: Raw backtrace: #0 f[0x1]\n",
        ));
        stream.extend(frame(0, b"\n-TEMPFAIL\n"));
        for chunk in 1..stream.len() {
            let all = events(&stream, chunk).unwrap();
            let errors: Vec<_> = all
                .iter()
                .filter_map(|event| match event {
                    Event::Error(text) => Some(text.as_str()),
                    _ => None,
                })
                .collect();
            assert_eq!(errors, ["first", "last one"], "chunks of {chunk}");
            assert_eq!(
                all.last(),
                Some(&Event::Finished(Reply {
                    code: Code::TempFail,
                    state: b"St\x01te".to_vec(),
                    ready: false,
                }))
            );
        }
    }

    #[test]
    fn connection_that_says_ready_serves_another_command() {
        let first = [frame(0, b"first\t\tready\t"), frame(0, b"\n+\n")].concat();
        let second = [
            frame(b'L', b"\x04of the second\n"),
            frame(0, b"\tready\t\n-TEMPFAIL\n"),
        ]
        .concat();
        let mut reader = DoveadmReader::new();
        reader.push(b"VERSION\tdoveadm-client\t1\t2\n+\n");
        assert_eq!(reader.next_event(), Ok(Some(Event::Ready)));
        reader.push(&first);
        assert!(!reader.begin_another(), "the answer is not read");
        assert_eq!(reader.next_event(), Ok(Some(Event::StateReceived)));
        let finished = |code, state: &[u8]| {
            let (state, ready) = (state.to_vec(), true);
            Ok(Some(Event::Finished(Reply { code, state, ready })))
        };
        assert_eq!(reader.next_event(), finished(Code::Ok, b"first"));
        assert!(reader.begin_another());
        reader.push(&second);
        let logged = Event::Error("of the second".into());
        assert_eq!(reader.next_event(), Ok(Some(logged)));
        assert_eq!(reader.next_event(), Ok(Some(Event::StateReceived)));
        assert_eq!(reader.next_event(), finished(Code::TempFail, b""));
        reader.push(&first);
        assert!(!reader.begin_another(), "nothing was asked");
    }

    #[test]
    fn a_concurrent_change_is_known_in_the_words_of_every_version() {
        for answer in [
            &b"\n-CHANGED\n"[..],
            b"S\t\n-CHANGED\n",
            b"S\t\n-UNKNOWN\n",
            b"S\t\n-2\n",
        ] {
            assert_eq!(reply(answer).code, Code::Changed);
        }
        for answer in [&b"\n-UNKNOWN\n"[..], b"\n-2\n", b"\n-\n"] {
            assert!(matches!(reply(answer).code, Code::Other(_)));
        }
    }

    #[test]
    fn every_known_word_has_its_own_meaning() {
        for (words, code) in [
            (["NOUSER", "67"], Code::NoUser),
            (["NOREPLICATE", "1001"], Code::NoReplicate),
            (["NOTFOUND", "68"], Code::NotFound),
            (["NOPERM", "77"], Code::NoPerm),
            (["TEMPFAIL", "75"], Code::TempFail),
            (["USAGE", "64"], Code::Usage),
        ] {
            for word in words {
                assert_eq!(reply(format!("\n-{word}\n").as_bytes()).code, code);
            }
        }
    }

    #[test]
    fn a_password_is_given_once() {
        let mut reader = DoveadmReader::new();
        reader.push(b"VERSION\tdoveadm-client\t1\t2\n-\n");
        assert_eq!(reader.next_event(), Ok(Some(Event::PasswordWanted)));
        reader.push(b"-\n");
        assert_eq!(reader.next_event(), Err(ProtocolError::PasswordRefused));
        let mut out = Vec::new();
        append_password(&mut out, b"Pa$$word");
        assert_eq!(out, b"PLAIN\tAGRvdmVhZG0AUGEkJHdvcmQ=\n");
    }

    #[test]
    fn what_is_no_greeting_or_result_is_an_error() {
        for bad in [
            &b"* OK IMAP\n"[..],
            b"VERSION\tdoveadm-client\t2\t0\n",
            b"+\nstate\t\nwhat\n",
        ] {
            assert!(events(bad, bad.len()).is_err());
        }
    }

    #[test]
    fn a_state_at_the_limit_is_kept_and_one_past_it_dropped() {
        for (length, kept) in [(MAX_STATE_BYTES, true), (MAX_STATE_BYTES + 1, false)] {
            let mut answer = vec![b's'; length];
            answer.extend_from_slice(b"\n+\n");
            let reply = reply(&answer);
            assert_eq!(reply.code, Code::Ok);
            assert_eq!(reply.state.len(), if kept { length } else { 0 });
        }
    }

    #[test]
    fn a_greeting_past_the_limit_is_an_error() {
        let mut stream = vec![b'+'; MAX_GREETING_BYTES + 1];
        assert!(events(&stream, 100).is_err());
        stream.push(b'\n');
        assert!(events(&stream, stream.len()).is_err());
    }

    #[test]
    fn a_command_is_escaped_field_by_field() {
        let mut out = Vec::new();
        append_hello(&mut out);
        append_command(
            &mut out,
            b"u\t1",
            "sync",
            [&b"-d"[..], b"-s", b"", b"tcp:a:1"],
        );
        assert_eq!(
            out,
            b"VERSION\tdoveadm-server\t1\t1\n\tu\x01t1\tsync\t-d\t-s\t\ttcp:a:1\n"
        );
    }
}
