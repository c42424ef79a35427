//! The service `aggregator`: fifo and socket in, replicator out, a journal in between.
//!
//! Promises: a line is taken from the fifo only when it is in the journal or handed on; one of
//! several processes reads a fifo, and another takes over within a second of its death; journals of
//! killed processes are adopted within two. Without a usable journal all goes on, and lines stay in
//! the fifo until they are handed on. What a client of the socket sends is in the journal before
//! anything else is done; what is in the socket of a killed process is lost, as with stock's, and
//! a client learns it from the missing answer.

pub mod fifo;
pub mod journal;
pub mod stream;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use mio::event::Source;
use mio::net::UnixStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::engine::aggregator::{Aggregator as Engine, Event};
use crate::engine::time::{Mono, Now};
use crate::services::daemon::Daemon;
use fifo::Fifo;
use journal::{Journal, JournalDir};
use stream::{Stream, Target};

const REPLICATOR: Token = Token(0);
/// How often a process that does not read a fifo tries to become its reader.
const OWN_INTERVAL: Duration = Duration::from_secs(1);
/// How often journals without a process are looked for, and a journal that failed is tried again.
const ORPHAN_INTERVAL: Duration = Duration::from_secs(2);
/// How often a fifo that is not empty is looked at without an event: not every kernel wakes an
/// edge-triggered reader when more comes to what it left there.
const RELOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long a process that is to end waits for the last acknowledgements.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);
/// Most bytes of a client that are held unread by the engine.
const MAX_CLIENT_INPUT: usize = 64 * 1024;
/// Most bytes of answers that a client does not read; then it is disconnected.
const MAX_CLIENT_OUTPUT: usize = 64 * 1024;
/// About so many bytes of a fifo are merged before the replicator is told of them: it works on them while the
/// next ones are merged.
const FIFO_PIECE: usize = 32 * 1024;
/// Most rounds before the host's loop has its turn again.
const MAX_ROUNDS: usize = 16;

/// The text of an error as Dovecot writes it, without Rust's number.
#[must_use]
pub(crate) fn strerror(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text.get(..at).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// What the service is configured to.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the journal is.
    pub state_dir: PathBuf,
    /// `replicator_host`: a socket's path if the port is 0.
    pub replicator_host: String,
    /// `replicator_port`.
    pub replicator_port: u16,
    /// User and group that the process drops to; `None` if it stays who it is.
    pub owner: Option<(u32, u32)>,
}

/// What is opened before privileges are dropped.
#[derive(Debug)]
pub struct Prepared {
    target: Target,
    journal_dir: Option<JournalDir>,
}

impl Prepared {
    /// Resolves the replicator's name and opens the journal's directory.
    ///
    /// # Errors
    /// The replicator's name has no address. A directory that cannot be opened is logged.
    pub fn open(config: &Config) -> io::Result<Self> {
        let target = Target::resolve(&config.replicator_host, config.replicator_port)?;
        let journal_dir = match JournalDir::open(&config.state_dir, config.owner) {
            Ok(dir) => Some(dir),
            Err(e) => {
                log::error!(
                    "{e} - without a journal notifications stay in the fifo until the replicator has them"
                );
                None
            }
        };
        Ok(Self {
            target,
            journal_dir,
        })
    }
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    readable: bool,
    eof: bool,
}

#[derive(Debug)]
struct FifoSource {
    fifo: Fifo,
    look: bool,
    /// Of what was seen there is more to be merged.
    more: bool,
}

#[derive(Debug)]
enum JournalState {
    /// There is no directory.
    Absent,
    /// To be written anew, at this time.
    Broken(Option<Journal>, Mono),
    Works(Journal),
}

/// The running service.
#[derive(Debug)]
pub struct Aggregator {
    poll: Poll,
    engine: Engine,
    target: Target,
    attempt: usize,
    stream: Option<Stream>,
    connected: bool,
    readable: bool,
    writable: bool,
    journal_dir: Option<JournalDir>,
    journal: JournalState,
    journal_told: bool,
    next_orphans: Mono,
    fifos: BTreeMap<u64, FifoSource>,
    next_own: Mono,
    next_relook: Mono,
    told_foreign: bool,
    clients: BTreeMap<u64, Client>,
    next_source: u64,
    closed: usize,
    again: bool,
}

fn token(source: u64) -> Token {
    Token(usize::try_from(source).unwrap_or(usize::MAX))
}

impl Aggregator {
    /// Starts with what was prepared; adopts journals and connects.
    ///
    /// # Errors
    /// As epoll_create(2).
    pub fn start(prepared: Prepared, now: Now) -> io::Result<Self> {
        let journal = match prepared.journal_dir {
            Some(_) => JournalState::Broken(None, now.mono),
            None => JournalState::Absent,
        };
        let mut aggregator = Self {
            poll: Poll::new()?,
            engine: Engine::default(),
            target: prepared.target,
            attempt: 0,
            stream: None,
            connected: false,
            readable: false,
            writable: false,
            journal_dir: prepared.journal_dir,
            journal,
            journal_told: false,
            next_orphans: now.mono,
            fifos: BTreeMap::new(),
            next_own: now.mono,
            next_relook: now.mono,
            told_foreign: false,
            clients: BTreeMap::new(),
            next_source: 1,
            closed: 0,
            again: false,
        };
        aggregator.work(now);
        Ok(aggregator)
    }

    /// How many users are held.
    #[must_use]
    pub fn users(&self) -> usize {
        self.engine.users()
    }

    fn work(&mut self, now: Now) {
        self.again = false;
        self.adopt_orphans(now);
        self.own_fifos(now);
        self.relook(now);
        for round in 0..=MAX_ROUNDS {
            let mut progress = self.pump_fifos();
            progress |= self.pump_clients();
            self.flush_journal(now);
            progress |= self.take_from_fifos();
            progress |= self.pump_replicator(now);
            self.answer_clients();
            if !progress {
                break;
            }
            self.again = round == MAX_ROUNDS;
        }
        self.flush_journal(now);
        self.log_events(now);
    }

    // --- journal ---

    fn adopt_orphans(&mut self, now: Now) {
        if now.mono < self.next_orphans {
            return;
        }
        self.next_orphans = now.mono + ORPHAN_INTERVAL;
        self.flush_journal(now);
        let (Some(dir), JournalState::Works(journal)) = (&self.journal_dir, &self.journal) else {
            return;
        };
        let orphans = match dir.orphans(Some(journal)) {
            Ok(orphans) => orphans,
            Err(e) => return self.journal_failed(now, None, &e),
        };
        for mut orphan in orphans {
            let before = self.engine.users();
            let (all, damaged) = match orphan.read() {
                Ok(content) => self.engine.handle_journal(&content),
                Err(e) => return self.journal_failed(now, None, &e),
            };
            self.flush_journal(now);
            let adopted = self.engine.users().saturating_sub(before);
            if adopted > 0 {
                log::info!("Adopted journal {} with {adopted} users", orphan.name());
            }
            if damaged > 1 {
                log::warn!(
                    "Journal {}: {damaged} lines could not be read and were left out",
                    orphan.name()
                );
            }
            let safe = matches!(self.journal, JournalState::Works(_));
            if let (true, true, Some(dir)) = (all, safe, &self.journal_dir) {
                if let Err(e) = dir.remove(&orphan) {
                    return self.journal_failed(now, None, &e);
                }
            }
        }
    }

    /// Says once that the journal is out of order, until it works again. `former`: the file, if it is
    /// that which failed.
    fn journal_failed(&mut self, now: Now, former: Option<Journal>, error: &io::Error) {
        if !self.journal_told {
            self.journal_told = true;
            log::error!("{error} - notifications stay in the fifo until the replicator has them");
        }
        if former.is_some() || !matches!(self.journal, JournalState::Works(_)) {
            self.journal = JournalState::Broken(former, now.mono + ORPHAN_INTERVAL);
        }
    }

    fn flush_journal(&mut self, now: Now) {
        let Some(dir) = &self.journal_dir else {
            self.engine.take_journal();
            return;
        };
        let long = match &self.journal {
            JournalState::Works(journal) => journal.is_long(self.engine.snapshot_len()),
            JournalState::Broken(_, at) if now.mono >= *at => true,
            JournalState::Broken(..) | JournalState::Absent => {
                self.engine.take_journal();
                return;
            }
        };
        let former = match std::mem::replace(&mut self.journal, JournalState::Absent) {
            JournalState::Works(mut journal) if !long => {
                let records = self.engine.take_journal();
                let result = match records.as_slice() {
                    [] => Ok(()),
                    records => journal.append(dir, records),
                };
                match result {
                    Ok(()) => self.journal = JournalState::Works(journal),
                    Err(e) => self.journal_failed(now, Some(journal), &e),
                }
                return;
            }
            JournalState::Works(journal) => Some(journal),
            JournalState::Broken(former, _) => former,
            JournalState::Absent => None,
        };
        match Journal::write(dir, &self.engine.snapshot(), former.as_ref()) {
            Ok(journal) => {
                self.journal = JournalState::Works(journal);
                if std::mem::take(&mut self.journal_told) {
                    log::info!("The journal works again");
                }
            }
            Err(e) => {
                // A former file that was only too long is still whole, but records are missing now.
                self.journal_failed(now, former, &e);
            }
        }
    }

    fn is_journaled(&self) -> bool {
        matches!(self.journal, JournalState::Works(_)) && self.engine.is_journal_taken()
    }

    // --- fifos ---

    fn own_fifos(&mut self, now: Now) {
        if now.mono < self.next_own {
            return;
        }
        self.next_own = now.mono + OWN_INTERVAL;
        for source in self.fifos.values_mut().filter(|s| !s.fifo.is_owned()) {
            match source.fifo.try_own() {
                Ok(owned) => source.look |= owned,
                Err(e) => log::error!("fcntl(fifo, F_SETLK) failed: {}", strerror(&e)),
            }
        }
    }

    fn relook(&mut self, now: Now) {
        if now.mono < self.next_relook {
            return;
        }
        self.next_relook = now.mono + RELOOK_INTERVAL;
        for source in self.fifos.values_mut() {
            source.look |= source.fifo.visible_len() > 0;
        }
    }

    fn pump_fifos(&mut self) -> bool {
        let mut progress = false;
        let idle = self.engine.is_empty();
        for source in self.fifos.values_mut() {
            if !source.fifo.is_owned() {
                continue;
            }
            if !idle && source.fifo.visible_len() == 0 && !source.look {
                source.fifo.poke();
                source.look = true;
            }
            let before = source.fifo.head.merged();
            if !source.more {
                if !std::mem::take(&mut source.look) {
                    continue;
                }
                if let Err(e) = source.fifo.look() {
                    log::error!("tee(fifo) failed: {}", strerror(&e));
                    continue;
                }
            }
            let (head, visible) = source.fifo.seen();
            source.more = self.engine.handle_fifo(head, visible, FIFO_PIECE);
            progress |= source.fifo.head.merged() > before;
        }
        progress
    }

    fn take_from_fifos(&mut self) -> bool {
        let (journaled, empty) = (self.is_journaled(), self.engine.is_empty());
        let mut progress = false;
        for source in self.fifos.values_mut() {
            let count = source.fifo.head.may_take(journaled, empty);
            if count == 0 {
                continue;
            }
            match source.fifo.take(count) {
                Ok(foreign) => {
                    if let Some(bytes) = foreign {
                        if !std::mem::replace(&mut self.told_foreign, true) {
                            log::error!("Another program reads the fifo of this service");
                        }
                        let mut head = Default::default();
                        self.engine.handle_fifo(&mut head, &bytes, bytes.len());
                    }
                    source.look = true;
                    progress = true;
                }
                Err(e) => log::error!("read(fifo) failed: {}", strerror(&e)),
            }
        }
        progress
    }

    // --- clients ---

    fn pump_clients(&mut self) -> bool {
        let mut progress = false;
        let mut gone = Vec::new();
        for (&id, client) in &mut self.clients {
            if client.readable && client.input.len() < MAX_CLIENT_INPUT {
                progress |= client.read();
            }
            let used = self.engine.handle_client_input(id, &client.input);
            client.input.drain(..used);
            progress |= used > 0;
            let ended = client.eof && (used == 0 || client.input.is_empty());
            if ended && !client.input.contains(&b'\n') {
                gone.push(id);
            }
        }
        for id in gone {
            self.close_client(id);
        }
        progress
    }

    fn answer_clients(&mut self) {
        while let Some((id, answer)) = self.engine.poll_answer() {
            if let Some(client) = self.clients.get_mut(&id) {
                client.output.extend_from_slice(&answer);
                if !client.write() {
                    self.close_client(id);
                }
            }
        }
    }

    fn close_client(&mut self, id: u64) {
        if let Some(mut client) = self.clients.remove(&id) {
            // The descriptor is closed next, which ends the watch as well.
            let _ = self.poll.registry().deregister(&mut client.stream);
            self.engine.handle_client_closed(id);
            self.closed = self.closed.saturating_add(1);
        }
    }

    // --- replicator ---

    fn pump_replicator(&mut self, now: Now) -> bool {
        if self.engine.handle_timeout(now.mono) {
            self.disconnect(now, "connect", "Connection timed out");
        }
        if self.engine.poll_connect(now.mono) {
            self.connect(now);
        }
        self.finish_connect(now);
        self.receive(now) | self.transmit(now)
    }

    fn connect(&mut self, now: Now) {
        self.connected = false;
        self.readable = false;
        self.writable = false;
        let begun = self
            .target
            .connect(self.attempt)
            .and_then(|(mut stream, there)| {
                stream.register(self.poll.registry(), REPLICATOR)?;
                Ok((stream, there))
            });
        match begun {
            Ok((stream, there)) => {
                self.stream = Some(stream);
                self.writable = there;
            }
            Err(e) => self.disconnect(now, "connect", &strerror(&e)),
        }
    }

    fn finish_connect(&mut self, now: Now) {
        let Some(stream) = &self.stream else {
            return;
        };
        if self.connected || !(self.writable || self.readable) {
            return;
        }
        match stream.poll_connected() {
            Ok(true) => {
                self.connected = true;
                self.writable = true;
                self.engine.handle_connected(now.mono);
            }
            Ok(false) => {}
            Err(e) => self.disconnect(now, "connect", &strerror(&e)),
        }
    }

    fn disconnect(&mut self, now: Now, call: &str, reason: &str) {
        self.stream = None;
        let name = self.target.name(self.attempt);
        self.attempt = self.attempt.wrapping_add(1);
        self.engine
            .handle_disconnected(now.mono, &format!("{call}({name}) failed: {reason}"));
    }

    fn receive(&mut self, now: Now) -> bool {
        let mut progress = false;
        let mut buffer = [0; 16 * 1024];
        while let (true, true, Some(stream)) = (self.connected, self.readable, &mut self.stream) {
            match stream.read(&mut buffer) {
                Ok(0) => self.disconnect(now, "read", "EOF"),
                Ok(count) => {
                    progress = true;
                    let bytes = buffer.get(..count).unwrap_or_default();
                    if let Err(e) = self.engine.handle_replicator_input(bytes) {
                        log::error!("{e}");
                        self.disconnect(now, "read", "protocol error");
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self.disconnect(now, "read", &strerror(&e)),
            }
        }
        progress
    }

    fn transmit(&mut self, now: Now) -> bool {
        let mut progress = false;
        while let (true, true, Some(stream)) = (self.connected, self.writable, &mut self.stream) {
            let output = self.engine.poll_transmit();
            if output.is_empty() {
                break;
            }
            match stream.write(output) {
                Ok(count) => {
                    progress = true;
                    self.engine.handle_transmitted(count);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self.disconnect(now, "write", &strerror(&e)),
            }
        }
        progress
    }

    fn log_events(&mut self, now: Now) {
        while let Some(event) = self.engine.poll_event(now.mono) {
            match event {
                Event::Connected(users, acknowledges) => log::info!(
                    "Replicator is there again, {users} users wait to be handed on{}",
                    if acknowledges {
                        ""
                    } else {
                        " (it did not say that it acknowledges)"
                    }
                ),
                Event::Disconnected(reason) => log::warn!(
                    "{reason} - replicator is away, notifications are kept until it is back"
                ),
                Event::BadInput(count, reason) => {
                    log::error!("Client sent invalid input: {count} lines, the last one: {reason}");
                }
            }
        }
    }

    fn poll_events(&mut self, timeout: Duration) {
        let mut events = Events::with_capacity(1024);
        if let Err(e) = self.poll.poll(&mut events, Some(timeout)) {
            if e.kind() != io::ErrorKind::Interrupted {
                log::error!("epoll_wait() failed: {}", strerror(&e));
            }
            return;
        }
        for event in &events {
            if event.token() == REPLICATOR {
                self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                self.writable |= event.is_writable() || event.is_error();
                continue;
            }
            let source = event.token().0 as u64;
            if let Some(fifo) = self.fifos.get_mut(&source) {
                fifo.look = true;
            }
            if let Some(client) = self.clients.get_mut(&source) {
                client.readable = true;
                if event.is_writable() && !client.write() {
                    self.close_client(source);
                }
            }
        }
    }

    /// Leaves nothing in a fifo that nobody would read any more, when the master has replaced it.
    fn seal_fifos(&mut self, now: Now) {
        let owned: Vec<u64> = self
            .fifos
            .iter()
            .filter(|(_, source)| source.fifo.is_owned())
            .map(|(&id, _)| id)
            .collect();
        for id in owned {
            if let Some(source) = self.fifos.get_mut(&id) {
                source.fifo.fill();
                source.look = true;
            }
            while self.pump_fifos() {}
            self.flush_journal(now);
        }
    }
}

impl Client {
    /// Reads what is there; whether anything was.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.eof = true;
                self.readable = false;
            }
            Ok(count) => self
                .input
                .extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return false;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                self.eof = true;
                self.readable = false;
            }
        }
        true
    }

    /// Writes answers; false if the client is of no use any more.
    fn write(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.output.len() <= MAX_CLIENT_OUTPUT
    }
}

impl Daemon for Aggregator {
    fn poll_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }

    fn handle_connection(&mut self, now: Now, _listener: &str, fd: OwnedFd, fifo: bool) {
        let source = self.next_source;
        self.next_source = source.saturating_add(1);
        let registry = self.poll.registry();
        let registered = if fifo {
            Fifo::new(fd).and_then(|fifo| {
                SourceFd(&fifo.raw_fd()).register(registry, token(source), Interest::READABLE)?;
                self.fifos.insert(
                    source,
                    FifoSource {
                        fifo,
                        look: false,
                        more: false,
                    },
                );
                self.next_own = now.mono;
                Ok(())
            })
        } else {
            let stream = std::os::unix::net::UnixStream::from(fd);
            stream.set_nonblocking(true).and_then(|()| {
                let mut stream = UnixStream::from_std(stream);
                registry.register(
                    &mut stream,
                    token(source),
                    Interest::READABLE | Interest::WRITABLE,
                )?;
                let client = Client {
                    stream,
                    input: Vec::new(),
                    output: Vec::new(),
                    readable: true,
                    eof: false,
                };
                self.clients.insert(source, client);
                self.engine.handle_client_opened(source);
                Ok(())
            })
        };
        if let Err(e) = registered {
            self.closed = self.closed.saturating_add(usize::from(!fifo));
            log::error!("epoll_ctl() failed: {}", strerror(&e));
        }
        self.work(now);
    }

    fn handle_ready(&mut self, now: Now) {
        self.poll_events(Duration::ZERO);
        self.work(now);
    }

    fn next_timeout(&self) -> Option<Mono> {
        if self.again {
            return Some(Mono(0));
        }
        let mut next = self.engine.next_timeout();
        let mut at = |time: Mono| next = Some(next.map_or(time, |next| next.min(time)));
        if self.journal_dir.is_some() {
            at(self.next_orphans);
        }
        if let JournalState::Broken(_, again) = &self.journal {
            at(*again);
        }
        for FifoSource { fifo, .. } in self.fifos.values() {
            if !fifo.is_owned() {
                at(self.next_own);
            } else if fifo.visible_len() > 0 {
                at(self.next_relook);
            }
        }
        next
    }

    fn handle_timeout(&mut self, now: Now) {
        self.poll_events(Duration::ZERO);
        self.work(now);
    }

    fn handle_shutdown(&mut self, now: Now) {
        self.poll_events(Duration::ZERO);
        self.work(now);
        self.seal_fifos(now);
        let step = Duration::from_millis(10);
        let mut waited = Duration::ZERO;
        while !self.engine.is_empty() && self.connected && waited < SHUTDOWN_GRACE {
            self.pump_replicator(now);
            self.poll_events(step);
            waited = waited.saturating_add(step);
        }
        self.pump_replicator(now);
        self.flush_journal(now);
        self.answer_clients();
        let journal = std::mem::replace(&mut self.journal, JournalState::Absent);
        if let (true, JournalState::Works(journal), Some(dir)) =
            (self.engine.is_empty(), journal, &self.journal_dir)
        {
            journal.remove(dir);
        }
    }

    fn take_closed_connections(&mut self) -> usize {
        std::mem::take(&mut self.closed)
    }
}
