//! The client's side of `doveadm-server`, over any byte stream: one command, its printed values, its result.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::client::errno_text;
use super::verify::{Command, TakePart, Trouble};
use crate::engine::protocol::doveadm_command::{CommandReader, Event};
use crate::engine::protocol::doveadm_server::{
    Code, ProtocolError, append_command, append_hello, append_password,
};

/// How long a server may take to greet.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it may be silent at work: it may have to go through a mailbox of a million mails first.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);

/// A connection.
pub trait Stream: Read + Write {
    /// How long a read or write may take from now on.
    ///
    /// # Errors
    ///
    /// The system's.
    fn set_timeout(&mut self, timeout: Duration) -> io::Result<()>;
}

macro_rules! impl_stream {
    ($($stream:ty),*) => {$(
        impl Stream for $stream {
            fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
                self.set_read_timeout(Some(timeout))?;
                self.set_write_timeout(Some(timeout))
            }
        }
    )*};
}

impl_stream!(UnixStream, TcpStream);

/// Has the server run a command and gives what it prints.
///
/// # Errors
///
/// It did not, or not wholly.
pub fn converse(
    stream: &mut dyn Stream,
    password: &[u8],
    command: Command<'_>,
    take: &mut TakePart<'_>,
) -> Result<(), Trouble> {
    let mut conversation = Conversation {
        reader: CommandReader::new(),
        password,
        command,
        is_ready: false,
        last_error: None,
    };
    let mut out = Vec::new();
    append_hello(&mut out);
    let unreachable = |error: io::Error| Trouble::Unreachable(said(&error));
    stream.set_timeout(GREETING_TIMEOUT).map_err(unreachable)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if !out.is_empty() {
            let written = stream.write_all(&out).and_then(|()| stream.flush());
            written.map_err(|error| conversation.broken(&said(&error)))?;
            out.clear();
            if conversation.is_ready {
                stream.set_timeout(SILENCE_TIMEOUT).map_err(unreachable)?;
            }
        }
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Err(conversation.broken("disconnected")),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(conversation.broken(&said(&error))),
        };
        conversation
            .reader
            .push(buffer.get(..length).unwrap_or_default());
        while let Some(event) = conversation.next_event()? {
            if conversation.handle(event, &mut out, take)? {
                return Ok(());
            }
        }
    }
}

fn said(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => errno_text(error),
    }
}

struct Conversation<'a> {
    reader: CommandReader,
    password: &'a [u8],
    command: Command<'a>,
    is_ready: bool,
    last_error: Option<String>,
}

impl Conversation<'_> {
    fn next_event(&mut self) -> Result<Option<Event>, Trouble> {
        self.reader.next_event().map_err(|error| match error {
            ProtocolError::PasswordRefused => Trouble::Refused(error.to_string()),
            _ if self.is_ready => self.failed(&error.to_string()),
            _ => Trouble::Unreachable(error.to_string()),
        })
    }

    /// Whether that was the end.
    fn handle(
        &mut self,
        event: Event,
        out: &mut Vec<u8>,
        take: &mut TakePart<'_>,
    ) -> Result<bool, Trouble> {
        match event {
            Event::PasswordWanted if self.password.is_empty() => {
                let text = "a password is wanted and doveadm_password is not set";
                return Err(Trouble::Refused(text.to_owned()));
            }
            Event::PasswordWanted => append_password(out, self.password),
            Event::Ready => {
                self.is_ready = true;
                let arguments = self.command.arguments.iter().copied();
                append_command(out, self.command.username, self.command.name, arguments);
            }
            Event::Part { bytes, ends } => {
                take(&bytes, ends).map_err(|invalid| self.failed(&invalid.to_string()))?;
            }
            Event::Error(text) => self.last_error = Some(text),
            Event::Finished(Code::Ok) => return Ok(true),
            Event::Finished(Code::NoUser) => return Err(Trouble::NoUser),
            Event::Finished(code) => {
                let text = self.last_error.clone();
                return Err(self.failed(&text.unwrap_or_else(|| format!("ended with {code:?}"))));
            }
        }
        Ok(false)
    }

    fn failed(&self, text: &str) -> Trouble {
        Trouble::Failed(format!("{}: {text}", self.command.name))
    }

    /// The connection is of no use any more.
    fn broken(&self, text: &str) -> Trouble {
        match (&self.last_error, self.is_ready) {
            (Some(error), true) => self.failed(error),
            (None, true) => self.failed(text),
            (_, false) => Trouble::Unreachable(text.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::verify::InvalidAnswer;

    /// Answers what is written with the next of its pieces, and keeps what was written.
    struct Script {
        answers: std::collections::VecDeque<&'static [u8]>,
        written: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(answer) = self.answers.pop_front() else {
                return Ok(0);
            };
            buffer[..answer.len()].copy_from_slice(answer);
            Ok(answer.len())
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Stream for Script {
        fn set_timeout(&mut self, _: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    fn run(password: &[u8], answers: &[&'static [u8]]) -> (Result<(), Trouble>, String, String) {
        let mut script = Script {
            answers: answers.iter().copied().collect(),
            written: Vec::new(),
        };
        let command = Command {
            username: b"u\t1",
            name: "mailbox list",
            arguments: &[b"-s"],
        };
        let mut values = String::new();
        let result = converse(&mut script, password, command, &mut |bytes, ends| {
            values.push_str(&String::from_utf8_lossy(bytes));
            if ends {
                values.push('|');
            }
            match values.len() > 40 {
                true => Err(InvalidAnswer::TooLong),
                false => Ok(()),
            }
        });
        (result, values, String::from_utf8(script.written).unwrap())
    }

    #[test]
    fn a_command_is_run_behind_a_password() {
        let (result, values, written) = run(b"secret", &[b"-\n", b"+\n", b"A\tB", b"ox\t\n+\n"]);
        assert_eq!(result, Ok(()));
        assert_eq!(values, "A|Box|");
        assert_eq!(
            written,
            "VERSION\tdoveadm-server\t1\t1\nPLAIN\tAGRvdmVhZG0Ac2VjcmV0\n\tu\x01t1\tmailbox list\t-s\n"
        );
    }

    #[test]
    fn each_trouble_is_told_apart() {
        let failed = |text: &str| Trouble::Failed(format!("mailbox list: {text}"));
        for (answers, trouble) in [
            (&[&b""[..]][..], Trouble::Unreachable("disconnected".into())),
            (
                &[b"* OK\n"],
                Trouble::Unreachable("Unexpected handshake: * OK".into()),
            ),
            (
                &[b"-\n", b"-\n"],
                Trouble::Refused("doveadm authentication failed".into()),
            ),
            (&[b"+\n", b"\n-NOUSER\n"], Trouble::NoUser),
            (&[b"+\n", b"\n-67\n"], Trouble::NoUser),
            (&[b"+\n", b"A\t"], failed("disconnected")),
            (
                &[b"+\n", b"A\t\n-TEMPFAIL\n"],
                failed("ended with TempFail"),
            ),
            (&[b"+\n", b"A\t\nwhat\n"], failed("Invalid input: what")),
            (
                &[b"+\n", b"0123456789012345678901234567890123456789\t"],
                failed("A value is longer than 65536 bytes"),
            ),
            (
                &[
                    b"VERSION\tdoveadm-client\t1\t2\n+\n",
                    b"L\0\0\0\x05\x04bad\n",
                    b"\0\0\0\0\x0b\n-TEMPFAIL\n",
                ],
                failed("bad"),
            ),
        ] {
            assert_eq!(run(b"secret", answers).0, Err(trouble));
        }
        let wanted = run(b"", &[b"-\n"]).0;
        assert!(matches!(wanted, Err(Trouble::Refused(text)) if text.contains("doveadm_password")));
    }
}
