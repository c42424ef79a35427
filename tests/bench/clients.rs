//! An IMAP session of a process of its own, and LMTP over a unix socket.

use crate::Outcome;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

const ANSWER_LIMIT: Duration = Duration::from_secs(30);

fn read_line(input: &mut impl BufRead) -> Outcome<String> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err("the server closed the connection".into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// A message of a line.
pub fn message(subject: &str) -> String {
    format!(
        "From: a@example.org\r\nTo: b@example.org\r\nSubject: {subject}\r\n\
         Date: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-ID: <{subject}@example.org>\r\n\r\n\
         body of {subject}\r\n"
    )
}

/// An `imap` process without a login before it, so that its CPU is that of one session.
pub struct Imap {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Imap {
    /// Starts it for a user of the Dovecot that `config` describes.
    ///
    /// # Errors
    /// When it does not greet.
    pub fn start(config: &Path, user: &str) -> Outcome<Imap> {
        let mut child = Command::new("doveadm")
            .arg("-c")
            .arg(config)
            .args(["exec", "imap", "-u", user])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut imap = Imap {
            child,
            input,
            output,
        };
        let greeting = read_line(&mut imap.output)?;
        if !greeting.starts_with("* PREAUTH") {
            return Err(format!("imap greets {greeting:?}").into());
        }
        Ok(imap)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A command that must be answered OK.
    ///
    /// # Errors
    /// When it is not.
    pub fn ok(&mut self, command: &str) -> Outcome {
        let input = self.input.as_mut().ok_or("logged out")?;
        input.write_all(format!("a {command}\r\n").as_bytes())?;
        loop {
            let line = read_line(&mut self.output)?;
            if let Some(answer) = line.strip_prefix("a ") {
                if answer.starts_with("OK") {
                    return Ok(());
                }
                return Err(format!("{command}: {answer}").into());
            }
        }
    }

    /// Appends a message to INBOX.
    ///
    /// # Errors
    /// When it is not answered OK.
    pub fn append(&mut self, message: &str) -> Outcome {
        self.ok(&format!("APPEND INBOX {{{}+}}\r\n{message}", message.len()))
    }

    /// Logs out and waits for the end of the process.
    ///
    /// # Errors
    /// When LOGOUT fails.
    pub fn logout(mut self) -> Outcome {
        self.ok("LOGOUT")?;
        self.input = None;
        self.output.read_to_end(&mut Vec::new())?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Imap {
    fn drop(&mut self) {
        // After logout it is gone.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// An LMTP session.
pub struct Lmtp {
    stream: BufReader<UnixStream>,
}

impl Lmtp {
    /// Connects and says LHLO.
    ///
    /// # Errors
    /// When it is refused.
    pub fn connect(socket: &Path) -> Outcome<Lmtp> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut lmtp = Lmtp {
            stream: BufReader::new(stream),
        };
        lmtp.expect("220")?;
        lmtp.send("LHLO bench\r\n")?;
        lmtp.expect("250")?;
        Ok(lmtp)
    }

    fn send(&mut self, text: &str) -> Outcome {
        Ok(self.stream.get_mut().write_all(text.as_bytes())?)
    }

    fn expect(&mut self, code: &str) -> Outcome {
        loop {
            let line = read_line(&mut self.stream)?;
            if !line.starts_with(code) {
                return Err(format!("LMTP: {line}").into());
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }

    /// Delivers a message to one user.
    ///
    /// # Errors
    /// When it is not taken.
    pub fn deliver(&mut self, user: &str, message: &str) -> Outcome {
        self.send(&format!(
            "MAIL FROM:<a@example.org>\r\nRCPT TO:<{user}>\r\nDATA\r\n"
        ))?;
        self.expect("250")?;
        self.expect("250")?;
        self.expect("354")?;
        self.send(&format!("{message}.\r\n"))?;
        self.expect("250")
    }
}
