//! A reader in the aggregator's place: the fifo and the socket that the mail plugin writes to.
//!
//! The node's own aggregator is configured away (mode 0 of its listeners), so the test owns both
//! files. As Dovecot's master does, the reader holds the fifo open for reading and writing. Each
//! trouble an aggregator can be in is a method: absent, not reading, full, replaced, forbidden, and
//! on the socket every kind of reply.

use super::{Outcome, wait_for};
use dovecot_replication::engine::{Priority, strescape::split_tabescaped};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The fifo's name in `base_dir`.
pub const FIFO: &str = "replication-notify-fifo";
/// The socket's name in `base_dir`.
pub const SOCKET: &str = "replication-notify";

/// Where a notification came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// `replication-notify-fifo`.
    Fifo,
    /// `replication-notify`.
    Socket,
}

/// A notification as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The user it names.
    pub user: String,
    /// Its priority.
    pub priority: Priority,
    /// Where it came in.
    pub via: Via,
    /// When it was read.
    pub at: Instant,
}

/// What the socket answers to a `sync` line.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These bytes, then the connection stays open until the client closes it.
    Bytes(&'static [u8]),
    /// These bytes, then EOF.
    BytesThenEof(&'static [u8]),
    /// These bytes, one each `Duration`.
    Slow(&'static [u8], Duration),
    /// Nothing, ever.
    Never,
}

/// The reply of a sync that succeeded.
pub const SUCCESS: Reply = Reply::Bytes(b"+\n");

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    malformed: Vec<String>,
    partial: Vec<u8>,
    fifo: Option<Arc<File>>,
    reading: bool,
    replies: HashMap<String, Reply>,
    stopped: bool,
}

impl State {
    fn take_line(&mut self, line: &[u8], via: Via) -> Option<String> {
        let mut fields = split_tabescaped(line);
        let user = fields.next().and_then(|user| String::from_utf8(user).ok());
        let priority = fields.next().and_then(|word| Priority::parse(&word));
        match (user, priority) {
            (Some(user), Some(priority)) if !user.is_empty() => {
                if user != FILLER {
                    self.lines.push(Line {
                        user: user.clone(),
                        priority,
                        via,
                        at: Instant::now(),
                    });
                }
                Some(user)
            }
            _ => {
                self.malformed
                    .push(format!("{via:?}: {:?}", String::from_utf8_lossy(line)));
                None
            }
        }
    }

    fn drain(&mut self) {
        let Some(mut fifo) = self.fifo.as_deref() else {
            return;
        };
        let mut buffer = [0; 65_536];
        let mut fresh: Vec<u8> = Vec::new();
        // EAGAIN ends the loop: the reader's own write end keeps EOF away.
        while let Ok(count) = fifo.read(&mut buffer) {
            if count == 0 {
                break;
            }
            fresh.extend(buffer.iter().take(count));
        }
        self.partial.extend(fresh);
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.take_line(line.strip_suffix(b"\n").unwrap_or(&line), Via::Fifo);
        }
    }
}

const FILLER: &str = "filler";

/// The owner of a node's fifo and socket.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    uid: u32,
    state: Arc<Mutex<State>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Reader {
    /// A reader of the fifo and socket that will be in `dir`, which belong to `uid`. Neither is
    /// there yet.
    #[must_use]
    pub fn new(dir: &Path, uid: u32) -> Reader {
        let state = Arc::new(Mutex::new(State {
            reading: true,
            ..State::default()
        }));
        let reader = Reader {
            dir: dir.to_owned(),
            uid,
            state,
            threads: Mutex::default(),
        };
        reader.spawn_fifo_pump();
        reader
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, thread: JoinHandle<()>) {
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
    }

    fn spawn_fifo_pump(&self) {
        let state = Arc::clone(&self.state);
        self.keep(std::thread::spawn(move || {
            loop {
                let fifo = {
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    if state.stopped {
                        return;
                    }
                    if state.reading {
                        state.drain();
                    }
                    let reading = state.reading;
                    let fifo = state.fifo.as_ref().filter(|_| reading);
                    fifo.cloned()
                };
                match fifo {
                    Some(fifo) => {
                        let mut fds = [PollFd::new(&fifo, PollFlags::IN)];
                        let limit = rustix::event::Timespec {
                            tv_sec: 0,
                            tv_nsec: 20_000_000,
                        };
                        // Only a wait: whatever it says, the next turn reads.
                        let _ready = poll(&mut fds, Some(&limit));
                    }
                    None => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }));
    }

    /// The path of the fifo, on this machine.
    #[must_use]
    pub fn fifo_path(&self) -> PathBuf {
        self.dir.join(FIFO)
    }

    fn socket_path(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// Makes the fifo and begins to read it.
    ///
    /// # Errors
    /// When it is there already.
    pub fn create_fifo(&self) -> Outcome {
        let path = self.fifo_path();
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        chown(&path, Some(self.uid), None)?;
        self.open_fifo()
    }

    /// Opens the fifo, as a started aggregator would.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open_fifo(&self) -> Outcome {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fifo = open(self.fifo_path(), flags, Mode::empty())?;
        self.lock().fifo = Some(Arc::new(File::from(fifo)));
        Ok(())
    }

    /// Closes the fifo, as if aggregator and master were gone; what is in it is lost to the reader,
    /// so it is read first.
    pub fn close_fifo(&self) {
        let fifo = {
            let mut state = self.lock();
            state.drain();
            state.fifo.take()
        };
        // The pump lets go of it within its poll; then nobody reads the fifo.
        while fifo
            .as_ref()
            .is_some_and(|fifo| Arc::strong_count(fifo) > 1)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes the fifo's name away; the reader keeps it open.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_fifo(&self) -> Outcome {
        Ok(fs::remove_file(self.fifo_path())?)
    }

    /// Puts another fifo in the fifo's place, and closes the old one.
    ///
    /// # Errors
    /// When there is none.
    pub fn replace_fifo(&self) -> Outcome {
        self.remove_fifo()?;
        self.close_fifo();
        self.create_fifo()
    }

    /// Puts another fifo in the fifo's place while somebody, the caller, still has the old one open.
    ///
    /// # Errors
    /// When there is none.
    pub fn put_new_fifo(&self) -> Outcome<Option<Arc<File>>> {
        self.remove_fifo()?;
        let old = self.lock().fifo.take();
        self.create_fifo()?;
        Ok(old)
    }

    /// Stops reading the fifo; it stays open.
    pub fn stop_reading(&self) {
        self.lock().reading = false;
    }

    /// Reads again.
    pub fn go_on_reading(&self) {
        self.lock().reading = true;
    }

    /// Stops reading and fills the fifo to the last line that it takes.
    ///
    /// # Errors
    /// When the fifo is not open.
    pub fn fill_fifo(&self) -> Outcome {
        let mut state = self.lock();
        state.reading = false;
        let fifo = state.fifo.clone().ok_or("the fifo is not open")?;
        let mut fifo = &*fifo;
        // First by the page, then by single bytes of one line: not even the shortest line fits after.
        for line in [format!("{FILLER}\tlow\n").repeat(300), "\n".to_owned()] {
            loop {
                match fifo.write(line.as_bytes()) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Sets the fifo's mode and owner: 0 is root.
    ///
    /// # Errors
    /// When it is not there.
    pub fn permit_fifo(&self, mode: u32, uid: u32) -> Outcome {
        let path = self.fifo_path();
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(chown(&path, Some(uid), None)?)
    }

    /// Makes the socket and begins to answer on it.
    ///
    /// # Errors
    /// When it is there already.
    pub fn create_socket(&self) -> Outcome {
        // A root's path is often longer than a socket address: bind through a short name.
        let short = tempfile::tempdir()?;
        let link = short.path().join("base");
        symlink(&self.dir, &link)?;
        let listener = UnixListener::bind(link.join(SOCKET))?;
        let path = self.socket_path();
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        chown(&path, Some(self.uid), None)?;
        listener.set_nonblocking(true)?;
        let state = Arc::clone(&self.state);
        self.keep(std::thread::spawn(move || accept_all(&listener, &state)));
        Ok(())
    }

    /// Takes the socket's name away.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_socket(&self) -> Outcome {
        Ok(fs::remove_file(self.socket_path())?)
    }

    /// What a `sync` line that names `user` is answered. Without this: [`SUCCESS`].
    pub fn answer(&self, user: &str, reply: Reply) {
        self.lock().replies.insert(user.to_owned(), reply);
    }

    /// All lines so far, what is in the fifo at this moment included.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let mut state = self.lock();
        if state.reading {
            state.drain();
        }
        state.lines.clone()
    }

    /// The lines so far that name one of `users`.
    #[must_use]
    pub fn lines_of(&self, users: &[&str]) -> Vec<Line> {
        let mut lines = self.lines();
        lines.retain(|line| users.contains(&line.user.as_str()));
        lines
    }

    /// Forgets the lines of these users that came so far.
    pub fn forget(&self, users: &[&str]) {
        let mut state = self.lock();
        if state.reading {
            state.drain();
        }
        state
            .lines
            .retain(|line| !users.contains(&line.user.as_str()));
    }

    /// Waits until `user` has at least `count` lines through `via`.
    ///
    /// # Errors
    /// When they do not come.
    pub fn wait_lines(&self, user: &str, via: Via, count: usize) -> Outcome<Vec<Line>> {
        let what = format!("{count} lines of {user} through {via:?}");
        wait_for(&what, super::PATIENCE, || {
            let mut lines = self.lines_of(&[user]);
            lines.retain(|line| line.via == via);
            Ok((lines.len() >= count).then_some(lines))
        })
    }

    /// What came in and was no notification.
    #[must_use]
    pub fn malformed(&self) -> Vec<String> {
        let mut state = self.lock();
        state.drain();
        let mut malformed = state.malformed.clone();
        // What `fill_fifo` put in.
        malformed.retain(|line| line != "Fifo: \"\"");
        malformed
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.lock().stopped = true;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A thread that panicked has said so.
            let _ended = thread.join();
        }
    }
}

fn accept_all(listener: &UnixListener, state: &Arc<Mutex<State>>) {
    while !is_stopped(state) {
        let limit = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        let _ready = poll(&mut fds, Some(&limit));
        while let Ok((client, _)) = listener.accept() {
            let state = Arc::clone(state);
            std::thread::spawn(move || {
                // A client that goes away is the plugin's right.
                let _served = serve(client, &state);
            });
        }
    }
}

fn is_stopped(state: &Arc<Mutex<State>>) -> bool {
    state.lock().unwrap_or_else(PoisonError::into_inner).stopped
}

fn serve(mut client: UnixStream, state: &Arc<Mutex<State>>) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut input = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match client.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => input.extend(buffer.iter().take(count)),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
                    && !is_stopped(state) => {}
            Err(error) => return Err(error),
        }
        while let Some(end) = input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = input.drain(..=end).collect();
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let reply = {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let user = state.take_line(line, Via::Socket);
                let synced = state.lines.last().map(|line| line.priority) == Some(Priority::Sync);
                // Only a `sync` line is answered: so does the aggregator.
                user.filter(|_| synced)
                    .map(|user| state.replies.get(&user).cloned().unwrap_or(SUCCESS))
            };
            match reply {
                None | Some(Reply::Never) => {}
                Some(Reply::Bytes(bytes)) => client.write_all(bytes)?,
                Some(Reply::BytesThenEof(bytes)) => return client.write_all(bytes),
                Some(Reply::Slow(bytes, pause)) => {
                    for byte in bytes {
                        std::thread::sleep(pause);
                        client.write_all(&[*byte])?;
                    }
                }
            }
        }
    }
}
