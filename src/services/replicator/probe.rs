//! Looks whether a peer's doveadm port answers: connect, VERSION, greeting, close.
//!
//! Each probe is a short thread: names are resolved and connections made by calls that block. A connection
//! that is closed after the greeting leaves no error in the log of a Dovecot peer; one that is closed before does.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use crate::engine::location::parse_target;
use crate::engine::replicator::ProbeId;
use crate::services::thread;

/// Most probes at once; others wait for one to end.
pub const MAX_PROBES: usize = 32;
/// Most bytes of a greeting that are read.
const MAX_GREETING_BYTES: usize = 1024;

/// The probes that run.
pub struct Probes {
    results: Receiver<(ProbeId, Result<(), String>)>,
    sender: Sender<(ProbeId, Result<(), String>)>,
    wake: Arc<dyn Fn() + Send + Sync>,
    running: usize,
    waiting: VecDeque<(ProbeId, Vec<u8>)>,
    timeout: Duration,
    default_port: u16,
}

impl Probes {
    /// None yet. `wake` is called when there is a result to take.
    pub fn new(
        timeout: Duration,
        default_port: u16,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let (sender, results) = std::sync::mpsc::channel();
        Self {
            results,
            sender,
            wake: Arc::new(wake),
            running: 0,
            waiting: VecDeque::new(),
            timeout,
            default_port,
        }
    }

    /// Looks at the peer of this target.
    pub fn start(&mut self, probe: ProbeId, target: Vec<u8>) {
        if self.running >= MAX_PROBES {
            self.waiting.push_back((probe, target));
            return;
        }
        let (timeout, default_port) = (self.timeout, self.default_port);
        let sender = self.sender.clone();
        let wake = Arc::clone(&self.wake);
        let builder = std::thread::Builder::new()
            .name("probe".into())
            .stack_size(256 * 1024);
        let spawned = thread::spawn(builder, move || {
            let _ = sender.send((probe, look(&target, default_port, timeout)));
            wake();
        });
        match spawned {
            Ok(_) => self.running += 1,
            Err(error) => {
                // Said as a result: the engine tries again, as after any other.
                self.running += 1;
                let _ = self.sender.send((probe, Err(format!("thread: {error}"))));
                (self.wake)();
            }
        }
    }

    /// The next result.
    pub fn poll_result(&mut self) -> Option<(ProbeId, Result<(), String>)> {
        let result = self.results.try_recv().ok()?;
        self.running -= 1;
        if let Some((probe, target)) = self.waiting.pop_front() {
            self.start(probe, target);
        }
        Some(result)
    }

    /// Forgets all; results of those that run are of no interest any more.
    pub fn clear(&mut self) {
        let (sender, results) = std::sync::mpsc::channel();
        self.sender = sender;
        self.results = results;
        self.waiting.clear();
        self.running = 0;
    }
}

fn look(target: &[u8], default_port: u16, timeout: Duration) -> Result<(), String> {
    let (host, port, tls) = parse_target(target, default_port)?;
    let addresses = (host.as_str(), port)
        .to_socket_addrs()
        .map_err(|error| format!("{host}: {error}"))?;
    let end = Instant::now() + timeout;
    let mut last = format!("{host} has no address");
    for address in addresses {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Err(error) => last = format!("connect({address}) failed: {}", errno_text(&error)),
            Ok(stream) if tls => {
                return super::tls::greet(stream, end).map_err(|e| format!("{address}: {e}"));
            }
            Ok(stream) => {
                return greet(Deadline { stream, end })
                    .map_err(|error| format!("{address}: {error}"));
            }
        }
    }
    Err(last)
}

/// A message as Dovecot has it: without the number that Rust appends.
fn errno_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

/// A stream whose reads and writes end in time.
pub(super) struct Deadline {
    pub(super) stream: TcpStream,
    pub(super) end: Instant,
}

impl Deadline {
    fn arm(&self) -> std::io::Result<()> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.set_write_timeout(Some(left))
    }
}

impl Read for Deadline {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.arm()?;
        self.stream.read(buffer)
    }
}

impl Write for Deadline {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.arm()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

/// Says VERSION and reads up to the greeting: a line `+` or `-`.
pub(super) fn greet(mut stream: impl Read + Write) -> Result<(), String> {
    let say = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no greeting in time".to_owned(),
        _ => errno_text(&error),
    };
    stream
        .write_all(b"VERSION\tdoveadm-server\t1\t0\n")
        .and_then(|()| stream.flush())
        .map_err(say)?;
    let mut greeting = Vec::new();
    let mut buffer = [0; 256];
    while greeting.len() <= MAX_GREETING_BYTES {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Err("disconnected before its greeting".into()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(say(error)),
        };
        greeting.extend_from_slice(buffer.get(..length).unwrap_or_default());
        for line in greeting.split_inclusive(|&byte| byte == b'\n') {
            match line {
                b"+\n" | b"-\n" => return Ok(()),
                line if line.starts_with(b"VERSION\t") || line.last() != Some(&b'\n') => {}
                _ => return Err("it is no doveadm server".into()),
            }
        }
    }
    Err("it is no doveadm server".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn probe_of(answer: &'static [u8], close: bool) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0; 27];
            stream.read_exact(&mut hello).unwrap();
            assert_eq!(&hello, b"VERSION\tdoveadm-server\t1\t0\n");
            stream.write_all(answer).unwrap();
            if !close {
                assert_eq!(stream.read(&mut hello).unwrap_or(0), 0);
            }
        });
        let target = format!("tcp:127.0.0.1:{port}");
        let result = look(target.as_bytes(), 0, Duration::from_millis(300));
        peer.join().unwrap();
        result
    }

    #[test]
    fn a_peer_that_greets_is_there_with_or_without_a_password() {
        assert_eq!(probe_of(b"-\n", false), Ok(()));
        assert_eq!(probe_of(b"+\n", false), Ok(()));
        assert_eq!(
            probe_of(b"VERSION\tdoveadm-client\t1\t2\n-\n", false),
            Ok(())
        );
    }

    #[test]
    fn what_does_not_greet_as_doveadm_does_is_not_there() {
        assert!(probe_of(b"* OK IMAP ready\r\n", false).is_err());
        assert!(probe_of(b"", true).unwrap_err().contains("disconnected"));
        assert!(
            probe_of(b"VERSION\tdov", false)
                .unwrap_err()
                .contains("in time")
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = format!("tcp:127.0.0.1:{}", listener.local_addr().unwrap().port());
        drop(listener);
        let refused = look(target.as_bytes(), 0, Duration::from_secs(5)).unwrap_err();
        assert!(refused.ends_with("failed: Connection refused"), "{refused}");
    }
}
