//! A link between two nodes that a test can cut, slow down and stall: a TCP proxy on loopback.

use super::ports::Port;
use super::{Outcome, PATIENCE, wait_for};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It passes everything on.
    Up,
    /// What is connected is cut off; who connects is, too.
    Cut,
    /// Each connection is cut off after so many bytes from either side.
    CutAfter(usize),
    /// Every piece of 16 KiB or less is late by this.
    Slow(Duration),
    /// Both.
    SlowAndCutAfter(Duration, usize),
    /// Nothing passes, and nothing ends.
    Stalled,
    /// So after so many bytes from either side.
    StalledAfter(usize),
}

/// How often a connection that has nothing to pass on looks at the link.
const LOOK: Duration = Duration::from_millis(20);
const PIECE: usize = 16 * 1024;

#[derive(Debug)]
struct State {
    link: Mutex<Link>,
    /// A connection has had something to wait for since the link was set.
    stands: AtomicBool,
    ended: AtomicBool,
}

impl State {
    fn link(&self) -> Link {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stalled(&self, passed: usize) -> bool {
        let is_stalled = match self.link() {
            Link::Stalled => true,
            Link::StalledAfter(bytes) => passed >= bytes,
            _ => false,
        };
        is_stalled && !self.ended.load(Ordering::Relaxed)
    }

    fn is_cut(&self, passed: usize) -> bool {
        let is_cut = match self.link() {
            Link::Cut => true,
            Link::CutAfter(bytes) | Link::SlowAndCutAfter(_, bytes) => passed >= bytes,
            _ => false,
        };
        is_cut || self.ended.load(Ordering::Relaxed)
    }
}

/// A proxy in front of one port; it ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    state: Arc<State>,
}

impl Proxy {
    /// Begins to pass connections on to `to` on 127.0.0.1.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(to: u16) -> Outcome<Proxy> {
        let port = Port::take()?;
        // A process that another trial is just starting may have the listener that tried the port, until it is executed.
        let listener = wait_for("a port", PATIENCE, || {
            match TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
                listener => Ok(Some(listener?)),
            }
        })?;
        listener.set_nonblocking(true)?;
        let state = Arc::new(State {
            link: Mutex::new(Link::Up),
            stands: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let of_acceptor = Arc::clone(&state);
        std::thread::spawn(move || accept(&listener, to, &of_acceptor));
        Ok(Proxy { port, state })
    }

    /// The port to connect to.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.port.number()
    }

    /// Whether a connection has stood still since the link was set.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.state.stands.load(Ordering::Relaxed)
    }

    /// From now on the link is so.
    pub fn set(&self, link: Link) {
        self.state.stands.store(false, Ordering::Relaxed);
        *self
            .state
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = link;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, to: u16, state: &Arc<State>) {
    while !state.ended.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) => {
                let state = Arc::clone(state);
                std::thread::spawn(move || {
                    // Either side may go at any time: that is what this is for.
                    let _cut = connect(client, to, &state);
                });
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

fn connect(client: TcpStream, to: u16, state: &Arc<State>) -> std::io::Result<()> {
    if state.is_cut(0) {
        return Ok(());
    }
    client.set_nonblocking(false)?;
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
    for stream in [&client, &server] {
        if matches!(state.link(), Link::StalledAfter(_)) {
            // Or much more would be on its way.
            set_socket_recv_buffer_size(stream, 16 * PIECE)?;
        }
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_nodelay(true)?;
    }
    let (back_from, back_to) = (server.try_clone()?, client.try_clone()?);
    let of_back = Arc::clone(state);
    let back = std::thread::spawn(move || pass(back_from, back_to, &of_back));
    pass(client, server, state);
    let _panicked = back.join();
    Ok(())
}

/// Passes bytes on until one side has ended or the link is cut.
fn pass(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut passed = 0;
    let mut piece = [0; PIECE];
    loop {
        if state.is_cut(passed) {
            let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return;
        }
        if state.is_stalled(passed) {
            state.stands.store(true, Ordering::Relaxed);
            std::thread::sleep(LOOK);
            continue;
        }
        let read = match from.read(&mut piece) {
            Ok(0) => {
                let _gone = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(read) => read,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(_) => {
                let _gone = to.shutdown(Shutdown::Both);
                return;
            }
        };
        if let Link::Slow(delay) | Link::SlowAndCutAfter(delay, _) = state.link() {
            std::thread::sleep(delay);
        }
        // What was read when the link stalled comes after it.
        while state.is_stalled(passed) {
            std::thread::sleep(LOOK);
        }
        passed += read;
        let piece = match state.link() {
            // A mail is cut off in its middle.
            Link::CutAfter(bytes) | Link::SlowAndCutAfter(_, bytes) if passed > bytes => {
                &piece[..read - (passed - bytes).min(read)]
            }
            _ => &piece[..read],
        };
        if to.write_all(piece).is_err() {
            let _gone = from.shutdown(Shutdown::Both);
            return;
        }
    }
}
