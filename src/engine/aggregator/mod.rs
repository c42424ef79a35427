//! The aggregator: takes notifications, merges them per user and hands them on to the replicator.
//!
//! Promises: a notification that was merged is handed on at least once, however often the
//! connection breaks; with the journal replayed, also after SIGKILL. Memory is bounded by users
//! ([`table::MAX_USERS`]); past that nothing is taken until there is room. A waiter gets `+` only from
//! the replicator. It leaves out every reading and writing: see `services::aggregator`.

pub mod fifo;
pub mod journal;
pub mod line;
pub mod link;
pub mod table;

#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::engine::Priority;
use crate::engine::time::Mono;
use fifo::FifoHead;
use journal::Record;
use line::{LineError, LineSplitter, Step, parse_notification};
use link::{CONNECT_TIMEOUT, Link, RECONNECT_MAX, RECONNECT_MIN, Reply};
use table::{Table, Username};

/// Most `sync` requests that wait for their answer.
pub const MAX_WAITERS: usize = 1 << 16;
/// At most one report of bad input in this time.
pub const BAD_INPUT_INTERVAL: Duration = Duration::from_secs(60);
/// A replicator that is back sooner was restarted: nobody need know.
pub const AWAY_QUIET: Duration = Duration::from_secs(5);
/// The answer to a waiter while there is no connection.
pub const NOT_REACHABLE: &str = "Replicator not reachable";

/// A client of the socket, as its driver numbers it.
pub type ClientId = u64;

/// A change of state that an admin cares for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection is there again, with this many users waiting; whether lines are acknowledged.
    Connected(usize, bool),
    /// The connection is gone or never came to be for [`AWAY_QUIET`], and why. Once until it is there again.
    Disconnected(String),
    /// This many lines could not be read since the last report, the last one for this reason.
    BadInput(u64, LineError),
}

#[derive(Debug)]
enum Replicator {
    /// Next attempt at, delay after that.
    Down(Mono, Duration),
    /// Since when, delay after a failure.
    Connecting(Mono, Duration),
    Up(Box<Link>, Duration),
}

/// The state of an aggregator process.
#[derive(Debug)]
pub struct Aggregator {
    table: Table,
    replicator: Replicator,
    /// Whether the last event about the connection was good news, or there was none.
    told_up: bool,
    /// The connection is gone since then, for this reason, and nobody was told yet.
    lost: Option<(Mono, String)>,
    clients: BTreeMap<ClientId, LineSplitter>,
    /// Who waits for a user whose sync line was not yet sent.
    waiting: BTreeMap<Username, Vec<ClientId>>,
    /// Who waits for the answer to a line.
    asked: BTreeMap<u64, Vec<ClientId>>,
    waiters: usize,
    answers: VecDeque<(ClientId, Vec<u8>)>,
    journal: Vec<u8>,
    events: VecDeque<Event>,
    bad_lines: u64,
    last_bad: LineError,
    next_bad_report: Mono,
}

impl Default for Aggregator {
    fn default() -> Self {
        Self::with_table(Table::default())
    }
}

/// An answer as a line of the client's protocol.
fn answer_line(answer: &Result<(), Vec<u8>>) -> Vec<u8> {
    match answer {
        Ok(()) => b"+\n".to_vec(),
        Err(reason) => {
            let mut line = b"-".to_vec();
            line.extend(reason.iter().map(|&b| if b < b' ' { b' ' } else { b }));
            line.push(b'\n');
            line
        }
    }
}

impl Aggregator {
    /// An aggregator with a table of other limits.
    #[must_use]
    pub fn with_table(table: Table) -> Self {
        Self {
            table,
            replicator: Replicator::Down(Mono(0), RECONNECT_MIN),
            told_up: true,
            lost: None,
            clients: BTreeMap::new(),
            waiting: BTreeMap::new(),
            asked: BTreeMap::new(),
            waiters: 0,
            answers: VecDeque::new(),
            journal: Vec::new(),
            events: VecDeque::new(),
            bad_lines: 0,
            last_bad: LineError::MissingField,
            next_bad_report: Mono(0),
        }
    }

    /// How many users wait or are not yet acknowledged.
    #[must_use]
    pub fn users(&self) -> usize {
        self.table.len()
    }

    /// Whether all was handed on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    // --- input ---

    /// Merges what a journal holds; how many of its lines could not be read. All of it is in what
    /// [`Aggregator::snapshot`] writes then. Users past the table's maximum are left: false, and
    /// the journal must be kept.
    pub fn handle_journal(&mut self, bytes: &[u8]) -> (bool, usize) {
        let mut held: BTreeMap<Vec<u8>, Priority> = BTreeMap::new();
        let mut damaged = 0usize;
        for record in journal::records(bytes) {
            match record {
                Some(Record::Put(username, priority)) => {
                    let kept = held.entry(username).or_default();
                    *kept = (*kept).max(priority);
                }
                Some(Record::Done(username)) => {
                    held.remove(&username);
                }
                None => damaged = damaged.saturating_add(1),
            }
        }
        let mut all = true;
        for (username, priority) in held {
            all &= self.put(&username, priority);
        }
        (all, damaged)
    }

    fn put(&mut self, username: &[u8], priority: Priority) -> bool {
        let Some(needs_record) = self.table.put(username, priority) else {
            return false;
        };
        if needs_record {
            journal::append_put(&mut self.journal, username, priority);
        }
        true
    }

    fn handle_bad_line(&mut self, error: LineError) {
        self.bad_lines = self.bad_lines.saturating_add(1);
        self.last_bad = error;
    }

    /// Merges lines of a fifo, of which the driver sees this, and remembers in `head` how far it
    /// came. True: it stopped after some `piece` bytes, so that the replicator has them while the driver calls
    /// again. Else what is past that is an incomplete line, or finds the table full. `sync` counts as high,
    /// for nobody can be answered there.
    pub fn handle_fifo(&mut self, head: &mut FifoHead, visible: &[u8], piece: usize) -> bool {
        let fresh = visible.get(head.merged()..).unwrap_or_default();
        let mut rest = fresh;
        let stopped = loop {
            if !rest.is_empty() && fresh.len().saturating_sub(rest.len()) >= piece {
                break true;
            }
            let used = match head.splitter.step(rest) {
                Step::Incomplete => break false,
                Step::Skip(used) => used,
                Step::TooLong(used) => {
                    self.handle_bad_line(LineError::TooLong);
                    used
                }
                Step::Line(line) => {
                    match parse_notification(line) {
                        Ok(Some(n)) => {
                            if !self.put(&n.username, n.priority.min(Priority::High)) {
                                break false;
                            }
                        }
                        Ok(None) => {}
                        Err(error) => self.handle_bad_line(error),
                    }
                    line.len().saturating_add(1)
                }
            };
            rest = rest.get(used..).unwrap_or_default();
        };
        head.handle_merged(fresh, fresh.len().saturating_sub(rest.len()));
        stopped
    }

    /// A client of the socket is there.
    pub fn handle_client_opened(&mut self, client: ClientId) {
        self.clients.insert(client, LineSplitter::default());
    }

    /// Merges lines of a client; how many bytes were used. The rest is an
    /// incomplete line, or finds the table full.
    pub fn handle_client_input(&mut self, client: ClientId, stream: &[u8]) -> usize {
        let Some(mut splitter) = self.clients.remove(&client) else {
            return stream.len();
        };
        let mut rest = stream;
        loop {
            let used = match splitter.step(rest) {
                Step::Incomplete => break,
                Step::Skip(used) => used,
                Step::TooLong(used) => {
                    self.handle_bad_client_line(client, LineError::TooLong);
                    used
                }
                Step::Line(line) => {
                    match parse_notification(line) {
                        Ok(Some(n)) => {
                            let merged = if n.priority == Priority::Sync {
                                self.handle_sync_request(client, &n.username)
                            } else {
                                self.put(&n.username, n.priority)
                            };
                            if !merged {
                                break;
                            }
                        }
                        Ok(None) => {}
                        Err(error) => self.handle_bad_client_line(client, error),
                    }
                    line.len().saturating_add(1)
                }
            };
            rest = rest.get(used..).unwrap_or_default();
        }
        self.clients.insert(client, splitter);
        stream.len().saturating_sub(rest.len())
    }

    /// A line that cannot be read may be a waiter's: it is not left waiting.
    fn handle_bad_client_line(&mut self, client: ClientId, error: LineError) {
        self.handle_bad_line(error);
        self.answer(client, &Err(b"Invalid input".to_vec()));
    }

    fn handle_sync_request(&mut self, client: ClientId, username: &[u8]) -> bool {
        let refusal = match self.replicator {
            Replicator::Down(..) => Some(NOT_REACHABLE),
            _ if self.waiters >= MAX_WAITERS => Some("Too many waiters"),
            _ => None,
        };
        if let Some(reason) = refusal {
            let merged = self.put(username, Priority::High);
            if merged {
                self.answer(client, &Err(reason.as_bytes().to_vec()));
            }
            return merged;
        }
        if !self.put(username, Priority::Sync) {
            return false;
        }
        if let Some(key) = self.table.key(username) {
            self.waiting.entry(key).or_default().push(client);
            self.waiters = self.waiters.saturating_add(1);
        }
        true
    }

    /// A client of the socket is gone; nobody waits for its answers.
    pub fn handle_client_closed(&mut self, client: ClientId) {
        self.clients.remove(&client);
    }

    fn answer(&mut self, client: ClientId, answer: &Result<(), Vec<u8>>) {
        self.answers.push_back((client, answer_line(answer)));
    }

    fn answer_all(&mut self, clients: Vec<ClientId>, answer: &Result<(), Vec<u8>>) {
        self.waiters = self.waiters.saturating_sub(clients.len());
        for client in clients {
            if self.clients.contains_key(&client) {
                self.answer(client, answer);
            }
        }
    }

    /// Every waiter gets a `-`; what they asked for is handed on as high.
    fn refuse_waiters(&mut self) {
        let refusal = Err(NOT_REACHABLE.as_bytes().to_vec());
        for (_, clients) in std::mem::take(&mut self.asked) {
            self.answer_all(clients, &refusal);
        }
        for (username, clients) in std::mem::take(&mut self.waiting) {
            self.answer_all(clients, &refusal);
            self.table.handle_no_waiter(&username);
        }
    }

    // --- the replicator ---

    /// Whether the driver is to connect now. It says then how that went.
    pub fn poll_connect(&mut self, now: Mono) -> bool {
        match self.replicator {
            Replicator::Down(at, delay) if now >= at => {
                self.replicator = Replicator::Connecting(now, delay);
                true
            }
            _ => false,
        }
    }

    /// The connection is there.
    pub fn handle_connected(&mut self, now: Mono) {
        if let Replicator::Connecting(_, delay) = self.replicator {
            self.replicator = Replicator::Up(Box::new(Link::new(now)), delay);
        }
    }

    /// The connection could not be made, or is gone.
    pub fn handle_disconnected(&mut self, now: Mono, reason: &str) {
        let down = Replicator::Down(now, RECONNECT_MIN);
        let (link, delay) = match std::mem::replace(&mut self.replicator, down) {
            Replicator::Down(at, delay) => {
                self.replicator = Replicator::Down(at, delay);
                return;
            }
            Replicator::Connecting(_, delay) => (None, delay),
            Replicator::Up(link, delay) => (Some(link), delay),
        };
        let proven = link.as_ref().is_some_and(|link| link.is_proven(now));
        let delay = if proven { RECONNECT_MIN } else { delay };
        let next = delay.saturating_mul(2).min(RECONNECT_MAX);
        self.replicator = Replicator::Down(now + delay, next);
        for username in link.into_iter().flat_map(|link| link.into_unacked()) {
            self.table.handle_lost(&username);
        }
        self.refuse_waiters();
        if self.told_up {
            self.lost.get_or_insert_with(|| (now, reason.to_owned()));
        }
    }

    /// Bytes of the replicator.
    ///
    /// # Errors
    /// They break the protocol: the driver closes the connection and says so.
    pub fn handle_replicator_input(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut replies = Vec::new();
        let Replicator::Up(link, _) = &mut self.replicator else {
            return Ok(());
        };
        let result = link.handle_input(bytes, &mut replies);
        for reply in replies {
            match reply {
                Reply::Version => self.tell_up(true),
                Reply::Acked(id) => self.handle_acked(id),
                Reply::Sync(id, answer) => {
                    if let Some(clients) = self.asked.remove(&id) {
                        self.answer_all(clients, &answer);
                    }
                }
            }
        }
        result
    }

    fn tell_up(&mut self, acknowledges: bool) {
        self.lost = None;
        if !self.told_up {
            self.told_up = true;
            self.events
                .push_back(Event::Connected(self.table.len(), acknowledges));
        }
    }

    fn handle_acked(&mut self, id: u64) {
        while let Replicator::Up(link, _) = &mut self.replicator {
            let Some((username, id)) = link.poll_acked(id) else {
                break;
            };
            self.handle_handed_on(&username, id);
        }
    }

    fn handle_handed_on(&mut self, username: &Username, id: u64) {
        if self.table.handle_acked(username, id) {
            journal::append_done(&mut self.journal, username);
        }
    }

    /// The bytes to be written to the replicator. What was not yet journalled may go out: it is a
    /// notification as any other.
    pub fn poll_transmit(&mut self) -> &[u8] {
        while let Replicator::Up(link, _) = &mut self.replicator {
            if !link.has_room() {
                break;
            }
            let Some((username, mut priority)) = self.table.next() else {
                break;
            };
            let username = Username::clone(username);
            let mut clients = self.waiting.remove(&username).unwrap_or_default();
            let waiters = clients.len();
            clients.retain(|client| self.clients.contains_key(client));
            self.waiters = self.waiters.saturating_sub(waiters - clients.len());
            if clients.is_empty() {
                priority = priority.min(Priority::High);
            }
            let id = link.send(&username, priority);
            self.table.handle_sent(&username, id);
            if !clients.is_empty() {
                self.asked.insert(id, clients);
            }
        }
        match &self.replicator {
            Replicator::Up(link, _) => link.output(),
            _ => &[],
        }
    }

    /// This many bytes of [`Aggregator::poll_transmit`] were written.
    pub fn handle_transmitted(&mut self, bytes: usize) {
        if let Replicator::Up(link, _) = &mut self.replicator {
            link.handle_written(bytes);
        }
        self.collect_written();
    }

    fn collect_written(&mut self) {
        while let Replicator::Up(link, _) = &mut self.replicator {
            let Some((username, id)) = link.poll_written() else {
                break;
            };
            self.handle_handed_on(&username, id);
        }
    }

    // --- time ---

    /// When [`Aggregator::handle_timeout`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Mono> {
        let replicator = match &self.replicator {
            Replicator::Down(at, _) => Some(*at),
            Replicator::Connecting(since, _) => Some(*since + CONNECT_TIMEOUT),
            Replicator::Up(link, _) => link.next_timeout(self.told_up && self.lost.is_none()),
        };
        let lost = self.lost.as_ref().map(|(since, _)| *since + AWAY_QUIET);
        let bad = (self.bad_lines > 0).then_some(self.next_bad_report);
        [replicator, bad, lost].into_iter().flatten().min()
    }

    /// Lets time pass. True if a connect took too long: the driver gives it up.
    pub fn handle_timeout(&mut self, now: Mono) -> bool {
        match &mut self.replicator {
            Replicator::Down(..) => false,
            Replicator::Connecting(since, _) => now.since(*since) >= CONNECT_TIMEOUT,
            Replicator::Up(link, delay) => {
                link.handle_timeout(now);
                if link.is_proven(now) {
                    *delay = RECONNECT_MIN;
                    let acknowledges = link.acknowledges();
                    self.tell_up(acknowledges);
                }
                self.collect_written();
                false
            }
        }
    }

    // --- output ---

    /// An answer to a client.
    pub fn poll_answer(&mut self) -> Option<(ClientId, Vec<u8>)> {
        self.answers.pop_front()
    }

    /// A change of state to be logged.
    pub fn poll_event(&mut self, now: Mono) -> Option<Event> {
        if self.bad_lines > 0 && now >= self.next_bad_report {
            self.next_bad_report = now + BAD_INPUT_INTERVAL;
            let count = std::mem::take(&mut self.bad_lines);
            return Some(Event::BadInput(count, self.last_bad));
        }
        let is_long = |(since, _): &mut (Mono, String)| now.since(*since) >= AWAY_QUIET;
        if let Some((_, reason)) = self.lost.take_if(is_long) {
            self.told_up = false;
            self.events.push_back(Event::Disconnected(reason));
        }
        self.events.pop_front()
    }

    /// The records to be appended to the journal, in this order; empty if there are none.
    pub fn take_journal(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.journal)
    }

    /// Whether the driver has taken all records. Written, they make what was merged safe.
    #[must_use]
    pub fn is_journal_taken(&self) -> bool {
        self.journal.is_empty()
    }

    /// A whole journal, which says what all written so far says. Records not yet taken are in it.
    pub fn snapshot(&mut self) -> Vec<u8> {
        self.journal.clear();
        let mut snapshot = journal::HEADER.to_vec();
        for (username, priority) in self.table.journaled() {
            journal::append_put(&mut snapshot, username, priority);
        }
        snapshot
    }

    /// About how many bytes a [`Aggregator::snapshot`] takes.
    #[must_use]
    pub fn snapshot_len(&self) -> usize {
        const RECORD: usize = 20;
        journal::HEADER
            .len()
            .saturating_add(self.table.name_bytes())
            .saturating_add(self.table.len().saturating_mul(RECORD))
    }

    /// The users whose waiters have no answer yet, for a test of promises.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.waiters
    }

    /// The clients that are there.
    #[must_use]
    pub fn clients(&self) -> BTreeSet<ClientId> {
        self.clients.keys().copied().collect()
    }
}
