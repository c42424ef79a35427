//! Small raw clients: IMAP, LMTP, POP3, ManageSieve. They know as much of each protocol as tests
//! need, and show the server's lines as they are.

use super::{Outcome, PATIENCE, check};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};

/// A message with `subject`, with CRLF.
#[must_use]
pub fn message(subject: &str) -> String {
    format!(
        "From: a@example.org\r\nTo: b@example.org\r\nSubject: {subject}\r\n\
         Date: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-ID: <{subject}@example.org>\r\n\r\n\
         body of {subject}\r\n"
    )
}

/// A connection that speaks in lines.
#[derive(Debug)]
pub struct Lines {
    stream: BufReader<TcpStream>,
}

impl Lines {
    fn connect(port: u16) -> Outcome<Lines> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Lines {
            stream: BufReader::new(stream),
        })
    }

    fn send(&mut self, text: &str) -> Outcome {
        Ok(self.stream.get_mut().write_all(text.as_bytes())?)
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        check(!line.is_empty(), || {
            "the server closed the connection".to_owned()
        })?;
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn until_eof(&mut self) -> Outcome<String> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(String::from_utf8_lossy(&rest).into_owned())
    }
}

/// An IMAP session.
#[derive(Debug)]
pub struct Imap {
    lines: Lines,
    tag: u32,
}

impl Imap {
    /// Connects and reads the greeting.
    ///
    /// # Errors
    /// When there is none.
    pub fn connect(port: u16) -> Outcome<Imap> {
        let mut lines = Lines::connect(port)?;
        let greeting = lines.line()?;
        check(greeting.starts_with("* OK"), || greeting.clone())?;
        Ok(Imap { lines, tag: 0 })
    }

    fn next_tag(&mut self) -> String {
        self.tag += 1;
        format!("a{}", self.tag)
    }

    /// Sends a command and returns the untagged lines and the tagged one, its tag taken off. Literals
    /// in answers come as their lines.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn command(&mut self, command: &str) -> Outcome<(Vec<String>, String)> {
        let tag = self.next_tag();
        self.lines.send(&format!("{tag} {command}\r\n"))?;
        self.answer(&tag)
    }

    fn answer(&mut self, tag: &str) -> Outcome<(Vec<String>, String)> {
        let mut untagged = Vec::new();
        loop {
            let line = self.lines.line()?;
            if let Some(tagged) = line.strip_prefix(&format!("{tag} ")) {
                return Ok((untagged, tagged.to_owned()));
            }
            untagged.push(line);
        }
    }

    /// A command that must be answered OK.
    ///
    /// # Errors
    /// When it is not.
    pub fn ok(&mut self, command: &str) -> Outcome<Vec<String>> {
        let (untagged, tagged) = self.command(command)?;
        check(tagged.starts_with("OK"), || {
            format!("{command}: {tagged} {untagged:?}")
        })?;
        Ok(untagged)
    }

    /// CREATE. Dovecot says ALREADYEXISTS also where a dsync looks at the directory that CREATE has just made.
    ///
    /// # Errors
    /// When it is not there then.
    pub fn create(&mut self, mailbox: &str) -> Outcome {
        let (_, tagged) = self.command(&format!("CREATE {mailbox}"))?;
        let is_there = tagged.starts_with("OK") || tagged.contains("[ALREADYEXISTS]");
        check(is_there, || format!("CREATE {mailbox}: {tagged}"))
    }

    /// APPEND with a literal.
    ///
    /// # Errors
    /// When it is not answered OK.
    pub fn append(&mut self, mailbox: &str, message: &str) -> Outcome {
        let tagged = self.try_append(mailbox, message)?;
        check(tagged.starts_with("OK"), || {
            format!("APPEND {mailbox}: {tagged}")
        })
    }

    /// APPEND with a literal; the tagged answer, its tag taken off.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn try_append(&mut self, mailbox: &str, message: &str) -> Outcome<String> {
        let tag = self.next_tag();
        let length = message.len();
        self.lines
            .send(&format!("{tag} APPEND {mailbox} {{{length}}}\r\n"))?;
        loop {
            let line = self.lines.line()?;
            if line.starts_with('+') {
                break;
            }
            // Refused before the literal; untagged lines of another session's changes may come first.
            if let Some(tagged) = line.strip_prefix(&format!("{tag} ")) {
                return Ok(tagged.to_owned());
            }
        }
        self.lines.send(&format!("{message}\r\n"))?;
        Ok(self.answer(&tag)?.1)
    }

    /// Begins IDLE; the tag ends it.
    ///
    /// # Errors
    /// When the server does not go into it.
    pub fn idle(&mut self) -> Outcome<String> {
        let tag = self.next_tag();
        self.lines.send(&format!("{tag} IDLE\r\n"))?;
        let go = self.lines.line()?;
        check(go.starts_with('+'), || format!("IDLE: {go}"))?;
        Ok(tag)
    }

    /// Ends IDLE.
    ///
    /// # Errors
    /// When that is not answered OK.
    pub fn done(&mut self, tag: &str) -> Outcome {
        self.lines.send("DONE\r\n")?;
        let (_, tagged) = self.answer(tag)?;
        check(tagged.starts_with("OK"), || format!("DONE: {tagged}"))
    }

    /// LOGOUT, and the connection's end.
    ///
    /// # Errors
    /// When the server does not end it well.
    pub fn logout(mut self) -> Outcome {
        let tag = self.next_tag();
        self.lines.send(&format!("{tag} LOGOUT\r\n"))?;
        let rest = self.lines.until_eof()?;
        check(rest.contains(&format!("{tag} OK")), || rest.clone())
    }
}

/// An LMTP session.
#[derive(Debug)]
pub struct Lmtp {
    lines: Lines,
}

impl Lmtp {
    /// Connects and says LHLO.
    ///
    /// # Errors
    /// When it is refused.
    pub fn connect(port: u16) -> Outcome<Lmtp> {
        let mut lmtp = Lmtp {
            lines: Lines::connect(port)?,
        };
        lmtp.reply("220")?;
        lmtp.command("LHLO test", "250")?;
        Ok(lmtp)
    }

    fn reply(&mut self, code: &str) -> Outcome<String> {
        loop {
            let line = self.lines.line()?;
            check(line.starts_with(code), || format!("LMTP: {line}"))?;
            if line.get(3..4) != Some("-") {
                return Ok(line);
            }
        }
    }

    fn command(&mut self, command: &str, code: &str) -> Outcome<String> {
        self.lines.send(&format!("{command}\r\n"))?;
        self.reply(code)
    }

    /// Delivers to all `users` in one transaction; each must be accepted.
    ///
    /// # Errors
    /// When one is not.
    pub fn deliver(&mut self, users: &[&str], message: &str) -> Outcome {
        self.command("MAIL FROM:<sender@example.org>", "250")?;
        for user in users {
            self.command(&format!("RCPT TO:<{user}>"), "250")?;
        }
        self.command("DATA", "354")?;
        self.lines.send(&format!("{message}.\r\n"))?;
        for _ in users {
            self.reply("250")?;
        }
        Ok(())
    }

    /// QUIT, and the connection's end.
    ///
    /// # Errors
    /// When the server does not end it well.
    pub fn quit(mut self) -> Outcome {
        self.command("QUIT", "221")?;
        self.lines.until_eof()?;
        Ok(())
    }
}

/// A POP3 session.
#[derive(Debug)]
pub struct Pop3 {
    lines: Lines,
}

impl Pop3 {
    /// Connects and logs in.
    ///
    /// # Errors
    /// When it is refused.
    pub fn login(port: u16, user: &str, password: &str) -> Outcome<Pop3> {
        let mut pop3 = Pop3 {
            lines: Lines::connect(port)?,
        };
        pop3.reply()?;
        pop3.ok(&format!("USER {user}"))?;
        pop3.ok(&format!("PASS {password}"))?;
        Ok(pop3)
    }

    fn reply(&mut self) -> Outcome<String> {
        let line = self.lines.line()?;
        check(line.starts_with("+OK"), || format!("POP3: {line}"))?;
        Ok(line)
    }

    /// A command that must be answered +OK.
    ///
    /// # Errors
    /// When it is not.
    pub fn ok(&mut self, command: &str) -> Outcome<String> {
        self.lines.send(&format!("{command}\r\n"))?;
        self.reply()
    }

    /// QUIT, and the connection's end.
    ///
    /// # Errors
    /// When the server does not end it well.
    pub fn quit(mut self) -> Outcome {
        self.ok("QUIT")?;
        self.lines.until_eof()?;
        Ok(())
    }
}

/// A ManageSieve session.
#[derive(Debug)]
pub struct Sieve {
    lines: Lines,
}

impl Sieve {
    /// Connects and logs in.
    ///
    /// # Errors
    /// When it is refused.
    pub fn login(port: u16, user: &str, password: &str) -> Outcome<Sieve> {
        let mut sieve = Sieve {
            lines: Lines::connect(port)?,
        };
        sieve.reply()?;
        let plain = base64(format!("\0{user}\0{password}").as_bytes());
        sieve.ok(&format!("AUTHENTICATE \"PLAIN\" \"{plain}\""))?;
        Ok(sieve)
    }

    fn reply(&mut self) -> Outcome {
        loop {
            let line = self.lines.line()?;
            if line.starts_with("OK") {
                return Ok(());
            }
            check(!line.starts_with("NO") && !line.starts_with("BYE"), || {
                format!("ManageSieve: {line}")
            })?;
        }
    }

    /// A command that must be answered OK.
    ///
    /// # Errors
    /// When it is not.
    pub fn ok(&mut self, command: &str) -> Outcome {
        self.lines.send(&format!("{command}\r\n"))?;
        self.reply()
    }

    /// PUTSCRIPT.
    ///
    /// # Errors
    /// When it is not answered OK.
    pub fn put(&mut self, name: &str, script: &str) -> Outcome {
        self.ok(&format!(
            "PUTSCRIPT \"{name}\" {{{}+}}\r\n{script}",
            script.len()
        ))
    }

    /// LOGOUT, and the connection's end.
    ///
    /// # Errors
    /// When the server does not end it well.
    pub fn logout(mut self) -> Outcome {
        self.ok("LOGOUT")?;
        self.lines.until_eof()?;
        Ok(())
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0_usize, |group, at| {
            group << 8 | usize::from(chunk.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            let letter = LETTERS.get(group >> (18 - 6 * at) & 63).copied();
            let shown = if at <= chunk.len() {
                letter
            } else {
                Some(b'=')
            };
            text.extend(shown.map(char::from));
        }
    }
    text
}
