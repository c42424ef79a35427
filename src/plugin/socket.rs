//! The aggregator's socket `<base_dir>/replication-notify`: waiting for a sync, and the last resort
//! of a process that ends while the fifo refuses.
//!
//! Non-blocking throughout, with poll(2) and a deadline: no alarm(), no signal is touched, and the
//! process's ioloop does not run.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

use super::fifo::text;
use crate::engine::{InvalidReply, Priority, SyncReply, SyncReplyReader, notification_line};

/// A listen queue that is full is looked at again after this time.
const CONNECT_RETRY: Duration = Duration::from_millis(10);

/// Why mail was not waited for until it was on the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncFailure {
    Connect(Errno),
    Write(Errno),
    Read(Errno),
    TimedOut(Duration),
    Refused(String),
    Invalid(InvalidReply),
    TooLong,
}

/// The kinds of [`SyncFailure`] between which the log does not tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFailureKind {
    Socket,
    TimedOut,
    Refused,
    Invalid,
}

impl SyncFailure {
    pub fn kind(&self) -> SyncFailureKind {
        match self {
            Self::Connect(_) | Self::Write(_) | Self::Read(_) => SyncFailureKind::Socket,
            Self::TimedOut(_) => SyncFailureKind::TimedOut,
            Self::Refused(_) => SyncFailureKind::Refused,
            Self::Invalid(_) | Self::TooLong => SyncFailureKind::Invalid,
        }
    }
}

impl fmt::Display for SyncFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(errno) => write!(f, "connect failed: {}", text(*errno)),
            Self::Write(errno) => write!(f, "write failed: {}", text(*errno)),
            Self::Read(errno) => write!(f, "read failed: {}", text(*errno)),
            Self::TimedOut(timeout) => write!(f, "Timeout in {} msecs", timeout.as_millis()),
            Self::Refused(reason) if reason.is_empty() => write!(f, "Sync was refused"),
            Self::Refused(reason) => write!(f, "{reason}"),
            Self::Invalid(InvalidReply::Unknown(line)) => {
                write!(f, "Invalid answer (expected + or -): {line}")
            }
            Self::Invalid(InvalidReply::TooLong) => write!(f, "Invalid answer: Line is too long"),
            Self::Invalid(InvalidReply::Eof(0)) => write!(f, "read failed: EOF"),
            Self::Invalid(InvalidReply::Eof(bytes)) => {
                write!(f, "read failed: EOF after {bytes} bytes without LF")
            }
            Self::TooLong => write!(f, "The username is too long"),
        }
    }
}

/// Asks for a sync of the user and waits for the answer, `timeout` at most.
pub fn sync(path: &Path, username: &[u8], timeout: Duration) -> Result<(), SyncFailure> {
    let deadline = Deadline {
        at: Instant::now() + timeout,
        timeout,
    };
    let line = notification_line(username, Priority::Sync).ok_or(SyncFailure::TooLong)?;
    let fd = connect_before(path, &deadline)?;
    send_before(&fd, &line, &deadline)?;
    let mut reader = SyncReplyReader::default();
    let mut buffer = [0; 256];
    loop {
        let read = match recv(&fd, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(SyncFailure::Invalid(reader.handle_eof())),
            Ok((read, _)) => read,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                deadline.wait_for(&fd, PollFlags::IN, SyncFailure::Read)?;
                continue;
            }
            Err(errno) => return Err(SyncFailure::Read(errno)),
        };
        match reader.handle_bytes(buffer.get(..read).unwrap_or_default()) {
            Ok(None) => {}
            Ok(Some(SyncReply::Synced)) => return Ok(()),
            Ok(Some(SyncReply::Failed(reason))) => return Err(SyncFailure::Refused(reason)),
            Err(invalid) => return Err(SyncFailure::Invalid(invalid)),
        }
    }
}

/// A connection that takes notifications without an answer and without ever blocking.
pub struct LastResort(OwnedFd);

impl LastResort {
    pub fn connect(path: &Path) -> Result<Self, Errno> {
        connect_now(path).map(Self)
    }

    pub fn send(&self, username: &[u8], priority: Priority) -> Result<(), Errno> {
        let line = notification_line(username, priority).ok_or(Errno::MSGSIZE)?;
        loop {
            match send(&self.0, &line, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(sent) if sent == line.len() => return Ok(()),
                Ok(_) => return Err(Errno::AGAIN),
            }
        }
    }
}

fn connect_now(path: &Path) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match connect(&fd, &address) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(()) => return Ok(fd),
        }
    }
}

fn connect_before(path: &Path, deadline: &Deadline) -> Result<OwnedFd, SyncFailure> {
    loop {
        match connect_now(path) {
            // The listen queue is full; there is nothing to poll for.
            Err(Errno::AGAIN) => deadline.pause(CONNECT_RETRY)?,
            result => return result.map_err(SyncFailure::Connect),
        }
    }
}

fn send_before(fd: &OwnedFd, line: &[u8], deadline: &Deadline) -> Result<(), SyncFailure> {
    let mut rest = line;
    while !rest.is_empty() {
        match send(fd, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => deadline.wait_for(fd, PollFlags::OUT, SyncFailure::Write)?,
            Err(errno) => return Err(SyncFailure::Write(errno)),
        }
    }
    Ok(())
}

struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    fn remaining(&self) -> Result<Duration, SyncFailure> {
        let remaining = self.at.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            Err(SyncFailure::TimedOut(self.timeout))
        } else {
            Ok(remaining)
        }
    }

    fn wait_for(
        &self,
        fd: &OwnedFd,
        flags: PollFlags,
        failure: fn(Errno) -> SyncFailure,
    ) -> Result<(), SyncFailure> {
        match poll(
            &mut [PollFd::new(fd, flags)],
            Some(&timespec(self.remaining()?)),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(failure(errno)),
        }
    }

    fn pause(&self, pause: Duration) -> Result<(), SyncFailure> {
        match poll(&mut [], Some(&timespec(self.remaining()?.min(pause)))) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(SyncFailure::Connect(errno)),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    })
}
