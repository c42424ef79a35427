//! A non-blocking stream with the output that it has not taken yet.

use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use mio::event::Event;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// So many bytes.
    Data(usize),
    /// Nothing now.
    Blocked,
    /// The other side is gone.
    Closed,
}

/// A stream, registered with the poll, edge-triggered. The kernel is asked to tell of room for output only once there was none:
/// it would tell at the start, and again whenever the other side has read something.
#[derive(Debug)]
pub(super) struct Socket {
    stream: UnixStream,
    output: Vec<u8>,
    sent: usize,
    /// The kernel took less than it was given; it tells when it has room.
    blocked: bool,
    /// Nobody reads what is sent. What was received before may still be there to be read.
    broken: bool,
    /// All was read: the kernel tells when there is more.
    drained: bool,
    /// The other side sends no more: all is read up to the end.
    ending: bool,
    /// A read ends where another process's bytes begin, also if there are more.
    tells_sender: bool,
    /// The kernel is asked to tell of room.
    watches_room: bool,
}

impl Socket {
    /// A connection to a socket of this path, before any byte of it is read.
    pub(super) fn connect(path: &Path, registry: &Registry, token: Token) -> Result<Self, String> {
        let stream = connect_stream(path)?;
        Self::new(stream)
            .register(registry, token)
            .map_err(|error| connect_failed(path, &error))
    }

    /// The same, with its first output, and the kernel asked to tell which process the other side's bytes come
    /// from. What is said at once, the other side finds when it wakes up: it is not woken up twice.
    pub(super) fn connect_and_say(
        path: &Path,
        registry: &Registry,
        token: Token,
        output: Vec<u8>,
    ) -> Result<Self, String> {
        let mut socket = Self::new(connect_stream(path)?);
        socket.tells_sender =
            rustix::net::sockopt::set_socket_passcred(&socket.stream, true).is_ok();
        socket.output = output;
        socket.flush();
        socket
            .register(registry, token)
            .map_err(|error| connect_failed(path, &error))
    }

    /// A connection that was accepted.
    pub(super) fn accepted(
        fd: OwnedFd,
        registry: &Registry,
        token: Token,
    ) -> std::io::Result<Self> {
        let stream = StdUnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Self::new(UnixStream::from_std(stream)).register(registry, token)
    }

    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            output: Vec::new(),
            sent: 0,
            blocked: false,
            broken: false,
            drained: false,
            ending: false,
            tells_sender: false,
            watches_room: false,
        }
    }

    fn register(mut self, registry: &Registry, token: Token) -> std::io::Result<Self> {
        registry.register(&mut self.stream, token, Interest::READABLE)?;
        self.watch_room(registry, token)?;
        Ok(self)
    }

    /// Has the kernel tell of room, if there was none for what is to be sent. To be called after each [`Socket::flush`].
    ///
    /// # Errors
    ///
    /// It will not tell: the connection cannot go on.
    pub(super) fn watch_room(&mut self, registry: &Registry, token: Token) -> std::io::Result<()> {
        if !self.blocked || self.watches_room {
            return Ok(());
        }
        let both = Interest::READABLE | Interest::WRITABLE;
        registry.reregister(&mut self.stream, token, both)?;
        self.watches_room = true;
        Ok(())
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Input {
        if self.drained {
            return Input::Blocked;
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Input::Closed,
                Ok(length) => {
                    self.drained = length < buffer.len() && !self.ending && !self.tells_sender;
                    return Input::Data(length);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Input::Blocked,
                Err(_) => return Input::Closed,
            }
        }
    }

    /// Reads, and tells the process that wrote the bytes if the kernel says it.
    pub(super) fn read_with_sender(&mut self, buffer: &mut [u8]) -> (Input, Option<i32>) {
        let mut space = [MaybeUninit::uninit(); 128];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        loop {
            let mut slices = [std::io::IoSliceMut::new(buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.stream, &mut slices, &mut ancillary, flags) {
                Ok(message) => {
                    let length = message.bytes;
                    let pid = ancillary.drain().find_map(|message| match message {
                        RecvAncillaryMessage::ScmCredentials(credentials) => {
                            Some(credentials.pid.as_raw_pid())
                        }
                        _ => None,
                    });
                    let input = if length == 0 {
                        Input::Closed
                    } else {
                        Input::Data(length)
                    };
                    return (input, pid);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return (Input::Blocked, None),
                Err(_) => return (Input::Closed, None),
            }
        }
    }

    /// Nothing more will be sent; what comes is still read.
    pub(super) fn shutdown_write(&self) {
        // A connection that is gone already is found by reading.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// What is to be sent next; append to it, then [`Socket::flush`].
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Bytes that the kernel has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Whether there is nothing to be read before the kernel tells so.
    pub(super) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Whether the kernel has told that the other side sends no more.
    pub(super) fn is_ending(&self) -> bool {
        self.ending
    }

    /// The kernel has told something of the stream.
    pub(super) fn handle_event(&mut self, event: &Event) {
        if event.is_writable() {
            self.blocked = false;
        }
        self.drained = false;
        self.ending |= event.is_read_closed() || event.is_error();
    }

    /// Sends what the kernel takes. False: nobody reads it, and it is dropped.
    pub(super) fn flush(&mut self) -> bool {
        while !self.blocked && !self.broken && self.unsent() > 0 {
            let unsent = self.output.get(self.sent..).unwrap_or_default();
            match self.stream.write(unsent) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.blocked = true,
                Err(_) => self.broken = true,
            }
        }
        if self.unsent() == 0 || self.broken {
            self.output.clear();
            self.sent = 0;
        } else if self.sent > 64 * 1024 {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        !self.broken
    }
}

fn connect_stream(path: &Path) -> Result<UnixStream, String> {
    UnixStream::connect(path).map_err(|error| connect_failed(path, &error))
}

fn connect_failed(path: &Path, error: &std::io::Error) -> String {
    let reason = match error.raw_os_error() {
        Some(errno) => rustix::io::Errno::from_raw_os_error(errno).to_string(),
        None => error.to_string(),
    };
    let reason = reason.split(" (os error").next().unwrap_or_default();
    format!("connect({}) failed: {reason}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use std::time::Duration;

    fn tells_of_room(poll: &mut Poll) -> bool {
        let mut events = Events::with_capacity(8);
        let wait = Some(Duration::from_millis(50));
        poll.poll(&mut events, wait).unwrap();
        events.iter().any(Event::is_writable)
    }

    #[test]
    fn room_for_output_is_told_of_only_after_there_was_none() {
        let mut poll = Poll::new().unwrap();
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        let fd = OwnedFd::from(ours);
        let mut socket = Socket::accepted(fd, poll.registry(), Token(0)).unwrap();
        socket.output().extend_from_slice(b"short");
        socket.flush();
        socket.watch_room(poll.registry(), Token(0)).unwrap();
        let mut buffer = vec![0; 1 << 20];
        assert_eq!(theirs.read(&mut buffer).unwrap(), 5);
        assert!(!tells_of_room(&mut poll));

        let long = vec![b'x'; 4 << 20];
        socket.output().extend_from_slice(&long);
        socket.flush();
        assert!(socket.unsent() > 0);
        socket.watch_room(poll.registry(), Token(0)).unwrap();
        let mut received = 0;
        while received < long.len() {
            received += theirs.read(&mut buffer).unwrap();
            if socket.unsent() > 0 && tells_of_room(&mut poll) {
                socket.blocked = false;
                socket.flush();
            }
        }
        assert_eq!(socket.unsent(), 0);
    }
}
