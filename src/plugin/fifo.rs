//! The write end of `<base_dir>/replication-notify-fifo`.
//!
//! Never blocks; a line goes in whole or not at all. The path is looked at before each write, so that a
//! fifo that was replaced is noticed although somebody still reads the old one.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::engine::{LINE_MAX_BYTES, Priority, notification_line};

/// How the fifo refuses a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `open` failed: not there, nobody reads it, no permission.
    Open(Errno),
    /// There is something else at the path.
    NotAFifo,
    /// Its reader is slow; it takes lines again when it has read some.
    Full,
    /// `write` failed.
    Write(Errno),
    /// The line would be longer than a fifo takes in one piece.
    TooLong,
}

/// The fifo, opened when it is first written to.
pub struct Fifo {
    path: PathBuf,
    open: Option<Open>,
}

struct Open {
    fd: OwnedFd,
    file: (u64, u64),
}

impl Fifo {
    pub fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one line. After a refusal by anything but a full fifo the next call opens it anew.
    pub fn write(&mut self, username: &[u8], priority: Priority) -> Result<(), Refusal> {
        let line = notification_line(username, priority).ok_or(Refusal::TooLong)?;
        self.close_if_replaced();
        match self.write_line(&line) {
            // The reader went away: its successor may be there already.
            Err(Refusal::Write(Errno::PIPE)) => self.write_line(&line),
            result => result,
        }
    }

    fn write_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let open = match self.open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        loop {
            match rustix::io::write(&open.fd, line) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.open = Some(open);
                    return Err(Refusal::Full);
                }
                Err(errno) => return Err(Refusal::Write(errno)),
                // A pipe takes up to PIPE_BUF bytes whole: pipe(7).
                Ok(_) => {
                    self.open = Some(open);
                    return Ok(());
                }
            }
        }
    }

    fn open(&self) -> Result<Open, Refusal> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = rustix::fs::open(&self.path, flags, Mode::empty()).map_err(Refusal::Open)?;
        let stat = rustix::fs::fstat(&fd).map_err(Refusal::Open)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
            return Err(Refusal::NotAFifo);
        }
        Ok(Open {
            fd,
            file: (stat.st_dev, stat.st_ino),
        })
    }

    fn close_if_replaced(&mut self) {
        let Some(open) = &self.open else { return };
        let same =
            rustix::fs::stat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == open.file);
        if !same {
            self.open = None;
        }
    }
}

/// What happened and what an admin can do about it; begins with the failed call.
pub struct Explained<'a>(pub &'a Path, pub Refusal);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.display();
        match self.1 {
            Refusal::Open(errno @ Errno::ACCESS) => {
                let uid = rustix::process::geteuid().as_raw();
                write!(
                    f,
                    "open({path}) failed: {} (euid={uid}); let the mail user write it: \
                     service aggregator {{ fifo_listener replication-notify-fifo {{ user = <name of \
                     uid {uid}> }} unix_listener replication-notify {{ user = <the same> }} }}",
                    text(errno)
                )
            }
            Refusal::Open(errno @ Errno::NOENT) => write!(
                f,
                "open({path}) failed: {}; Dovecot's master makes it for service aggregator: see its \
                 fifo_listener replication-notify-fifo",
                text(errno)
            ),
            Refusal::Open(errno @ Errno::NXIO) => write!(
                f,
                "open({path}) failed: {} (nobody has it open for reading); is Dovecot's master running?",
                text(errno)
            ),
            Refusal::Open(errno) => write!(f, "open({path}) failed: {}", text(errno)),
            Refusal::NotAFifo => write!(
                f,
                "open({path}) failed: It is not a fifo; remove it and restart Dovecot"
            ),
            Refusal::Full => write!(
                f,
                "write({path}) failed: The fifo is full; is service aggregator running and keeping up?"
            ),
            Refusal::Write(errno) => write!(f, "write({path}) failed: {}", text(errno)),
            Refusal::TooLong => write!(
                f,
                "write({path}) failed: The line is longer than {LINE_MAX_BYTES} bytes"
            ),
        }
    }
}

/// The words of `strerror`.
pub fn text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}
