//! The fifo `replication-notify-fifo`: looked at with tee(2), and taken from only what is safe.
//!
//! Of several processes on one fifo one reads, the one that has the record lock: all of them share
//! the master's open file, so flock(2) would not tell them apart; a record lock belongs to the process and
//! is gone with it. The master opens the fifo for reading and writing, so that we can write to it too.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::engine::aggregator::fifo::FifoHead;

/// What a fifo is asked to hold, in bytes: the most an unprivileged process gets.
const PIPE_SIZE: usize = 1 << 20;

/// A fifo and what is known of its content.
#[derive(Debug)]
pub struct Fifo {
    fd: OwnedFd,
    look_out: OwnedFd,
    look_in: OwnedFd,
    /// What was seen of it and is still there.
    visible: Vec<u8>,
    /// How far the engine came.
    pub head: FifoHead,
    owned: bool,
}

impl Fifo {
    /// Wraps the read end.
    ///
    /// # Errors
    /// As pipe(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let (look_out, look_in) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Less than asked for is enough: a smaller fifo is full sooner, no more.
        let _ = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_SIZE);
        if let Ok(size) = rustix::pipe::fcntl_getpipe_size(&fd) {
            let _ = rustix::pipe::fcntl_setpipe_size(&look_in, size);
        }
        Ok(Self {
            fd,
            look_out,
            look_in,
            visible: Vec::new(),
            head: FifoHead::default(),
            owned: false,
        })
    }

    /// The descriptor to be polled.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether this process is the one that reads.
    #[must_use]
    pub const fn is_owned(&self) -> bool {
        self.owned
    }

    /// Becomes the reader, unless another process is.
    ///
    /// # Errors
    /// As fcntl(2), but for a lock that another has.
    pub fn try_own(&mut self) -> io::Result<bool> {
        match fcntl_lock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.owned = true,
            Err(Errno::AGAIN | Errno::ACCESS) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(self.owned)
    }

    /// Looks at all that the fifo holds, without taking it.
    ///
    /// # Errors
    /// As tee(2) and read(2).
    pub fn look(&mut self) -> io::Result<()> {
        let seen =
            match rustix::pipe::tee(&self.fd, &self.look_in, PIPE_SIZE, SpliceFlags::NONBLOCK) {
                Ok(seen) => seen,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(e) => return Err(e.into()),
            };
        self.visible = read_exactly(&self.look_out, seen)?;
        Ok(())
    }

    /// What was seen, and how far the engine came in it.
    pub fn seen(&mut self) -> (&mut FifoHead, &[u8]) {
        (&mut self.head, self.visible.as_slice())
    }

    /// How many bytes were seen last.
    #[must_use]
    pub fn visible_len(&self) -> usize {
        self.visible.len()
    }

    /// Takes what was seen. Anything else that comes out is given back: somebody else reads this fifo.
    ///
    /// # Errors
    /// As read(2).
    pub fn take(&mut self, count: usize) -> io::Result<Option<Vec<u8>>> {
        let taken = read_exactly(&self.fd, count)?;
        self.head.handle_taken(count);
        let expected = self.visible.get(..count).unwrap_or(&self.visible);
        let foreign = (taken != expected).then_some(taken);
        self.visible.drain(..count.min(self.visible.len()));
        Ok(foreign)
    }

    /// Puts an empty line into the fifo if it is empty: with it the master starts another aggregator
    /// should this one be killed.
    pub fn poke(&self) {
        // Full or not writable: there is something in it, or nothing can be done.
        let _ = rustix::io::write(&self.fd, b"\n");
    }

    /// Fills the fifo with empty lines until not one byte more fits in, so that no writer can put a
    /// line there that nobody would read any more.
    pub fn fill(&self) {
        let block = [b'\n'; 4096];
        for size in [block.len(), 1] {
            let piece = block.get(..size).unwrap_or_default();
            for _ in 0..=PIPE_SIZE {
                match rustix::io::write(&self.fd, piece) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

/// Reads `count` bytes, fewer only if there are no more.
fn read_exactly(fd: impl AsFd, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let mut filled = 0;
    while filled < count {
        match rustix::io::read(&fd, bytes.get_mut(filled..).unwrap_or_default()) {
            Ok(0) | Err(Errno::AGAIN) => break,
            Ok(more) => filled = filled.saturating_add(more),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
pub(super) fn test_fifo(dir: &std::path::Path) -> OwnedFd {
    use rustix::fs::{CWD, Mode, OFlags};
    let path = dir.join("replication-notify-fifo");
    if !path.exists() {
        rustix::fs::mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_takes_nothing_and_taking_takes_what_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut fifo = Fifo::new(test_fifo(dir.path())).unwrap();
        let writer = test_fifo(dir.path());
        rustix::io::write(&writer, b"one\ntwo\n").unwrap();
        for _ in 0..2 {
            fifo.look().unwrap();
            assert_eq!(fifo.seen().1, b"one\ntwo\n");
        }
        assert_eq!(fifo.take(4).unwrap(), None);
        assert_eq!(fifo.seen().1, b"two\n");
        fifo.look().unwrap();
        assert_eq!(fifo.seen().1, b"two\n");
    }

    #[test]
    fn full_fifo_of_a_mebibyte_is_seen_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut fifo = Fifo::new(test_fifo(dir.path())).unwrap();
        let writer = test_fifo(dir.path());
        let mut written = 0;
        while let Ok(more) = rustix::io::write(&writer, b"user@example.com\tlow\n") {
            written += more;
        }
        fifo.look().unwrap();
        assert_eq!(fifo.visible_len(), written);
        assert!(written > 1_000_000, "only {written} bytes fit in");
    }

    #[test]
    fn what_another_reader_took_is_noticed_and_nothing_that_came_out_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut fifo = Fifo::new(test_fifo(dir.path())).unwrap();
        let other = test_fifo(dir.path());
        rustix::io::write(&other, b"one\ntwo\nsix\n").unwrap();
        fifo.look().unwrap();
        assert_eq!(read_exactly(&other, 4).unwrap(), b"one\n");
        assert_eq!(fifo.take(8).unwrap(), Some(b"two\nsix\n".to_vec()));
    }

    #[test]
    fn filled_fifo_takes_not_one_byte_more() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = Fifo::new(test_fifo(dir.path())).unwrap();
        let writer = test_fifo(dir.path());
        rustix::io::write(&writer, b"u\tlow\n").unwrap();
        fifo.fill();
        assert_eq!(rustix::io::write(&writer, b"x"), Err(Errno::AGAIN));
    }
}
