//! The service `replicator`: sockets, store, probes and processes around the engine.
//!
//! One thread drives everything; what blocks (the store, probes) has threads of its own and reports
//! through a waker. No input is read before the store is loaded, and each connection's turn is bounded,
//! so that neither a burst nor a listing of a million users holds the others up.

mod clients;
mod dsync;
mod idle;
mod mailbox_list;
mod probe;
mod process;
mod settings;
mod socket;
pub mod store;
#[cfg(test)]
mod tests;
mod tls;
mod userdb;

pub use settings::{DsyncDialect, DsyncParameters, Expand, MAX_CONNS, Settings, SettingsError};

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use log::{debug, error, info, log, warn};
use mio::{Events, Poll, Token, Waker};

use crate::engine::FastMap;
use crate::engine::protocol::replicator_doveadm as doveadm_protocol;
use crate::engine::protocol::replicator_notify as notify_protocol;
use crate::engine::replicator::{
    Action, Boot, CommandDone, CommandId, ConnectionId, Level, LogEvent, Replicator as Engine,
    SyncId, SyncOutcome,
};
use crate::engine::time::{Mono, Now};
use crate::services::aggregator::journal;
use crate::services::daemon::Daemon;

use clients::{DoveadmClient, NotifyClient};
use dsync::{Dsync, WaitingForState};
use idle::{Idle, Worker};
use mailbox_list::MailboxList;
use probe::Probes;
use socket::Socket;
use store::{Store, StoreEvent, StoreOptions};
use userdb::UserdbConnection;

/// The listener of the aggregators.
pub const NOTIFY_LISTENER: &str = "replicator";
/// The listener of `doveadm replicator`.
pub const DOVEADM_LISTENER: &str = "replicator-doveadm";

/// Where mail processes reach the aggregator.
const AGGREGATOR_SOCKET: &str = "replication-notify";
const WAKE: Token = Token(usize::MAX);
const MAX_EVENTS: usize = 256;
/// Bytes read from one connection before the others have their turn.
const READ_BYTES: usize = 64 * 1024;
/// States that are read together with one that is wanted now.
const MAX_STATES_AHEAD: usize = 64;
/// Rounds in which every connection that is ready has its turn, before the host's loop has its own.
const MAX_ROUNDS: usize = 8;
/// Store events taken before connections have their turn.
const MAX_STORE_EVENTS_PER_TURN: usize = 64;
/// How often what stands still is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// One line about bad input in this time; the others are counted.
const INPUT_ERROR_INTERVAL: Duration = Duration::from_secs(60);

/// Why the replicator cannot run.
#[derive(Debug)]
pub enum ReplicatorError {
    /// A setting has a value that cannot be.
    Settings(SettingsError),
    /// The `state_dir` cannot be used.
    StateDir(String),
    /// A system call failed.
    Io(&'static str, std::io::Error),
}

impl fmt::Display for ReplicatorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(error) => error.fmt(f),
            Self::StateDir(error) => f.write_str(error),
            Self::Io(call, error) => write!(f, "{call} failed: {error}"),
        }
    }
}

impl std::error::Error for ReplicatorError {}

enum Peer {
    Notify(NotifyClient),
    Doveadm(DoveadmClient),
    Dsync(Dsync),
    Idle(Worker),
    MailboxList(MailboxList),
    Userdb(UserdbConnection),
}

impl Peer {
    /// The process of doveadm-server behind it.
    const fn worker(&self) -> Option<&Worker> {
        match self {
            Self::Dsync(dsync) => Some(dsync.worker()),
            Self::Idle(worker) => Some(worker),
            _ => None,
        }
    }
}

struct Connection {
    socket: Socket,
    peer: Peer,
    /// It is in `ready`.
    queued: bool,
}

/// What a turn of a connection came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing more to do until the poll says so.
    Wait,
    /// There is more; the others come first.
    Again,
    /// The sync is over, the connection can serve another.
    Idle,
    /// The connection is over.
    Close,
}

impl Turn {
    /// What was read is taken.
    fn after_read(socket: &Socket) -> Self {
        if socket.is_drained() {
            Self::Wait
        } else {
            Self::Again
        }
    }
}

/// The daemon.
pub struct Replicator {
    settings: Settings,
    /// Of dsync to a user's only replica, and to one of several.
    parameters: DsyncParameters,
    parameters_of_several: DsyncParameters,
    engine: Engine,
    store: Option<Store>,
    probes: Probes,
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Connections that have something to read, or room to write.
    ready: VecDeque<usize>,
    /// Connections with new output.
    unflushed: Vec<usize>,
    /// Aggregators that are not read while the engine takes nothing.
    stalled: Vec<usize>,
    is_loaded: bool,
    wake_pending: bool,
    last_id: u64,
    aggregators: FastMap<ConnectionId, usize>,
    commands: FastMap<CommandId, usize>,
    syncs: FastMap<SyncId, usize>,
    idle: Idle,
    waiting_for_state: FastMap<SyncId, WaitingForState>,
    aborting: Vec<SyncId>,
    lookups: Option<usize>,
    listing: Option<usize>,
    /// Users with several replicas: dsync is told which one is meant.
    several_replicas: HashSet<Vec<u8>>,
    last_loaded_user: Vec<u8>,
    doveadm_preauthenticated: Option<bool>,
    doveadm_connect_failed: Option<Mono>,
    most_syncs: usize,
    next_sweep: Option<Mono>,
    next_progress_check: Option<Mono>,
    input_errors: RateLimit,
    closed_connections: usize,
    buffer: Vec<u8>,
}

#[derive(Default)]
struct RateLimit {
    last: Option<Mono>,
    suppressed: u64,
}

impl RateLimit {
    /// Whether to speak now, and how often it was not spoken before.
    fn speak(&mut self, now: Mono) -> Option<u64> {
        let is_early = self
            .last
            .is_some_and(|last| now.since(last) < INPUT_ERROR_INTERVAL);
        if is_early {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Replicator {
    /// A replicator that begins to load its store.
    ///
    /// # Errors
    ///
    /// See [`ReplicatorError`]. An unreadable store is none.
    pub fn new(settings: Settings, now: Now) -> Result<Self, ReplicatorError> {
        settings.check().map_err(ReplicatorError::Settings)?;
        store::check_state_dir(&settings.state_dir).map_err(ReplicatorError::StateDir)?;
        let boot_id = store::read_boot_id().unwrap_or_else(|error| {
            log::warn!(
                "open(/proc/sys/kernel/random/boot_id) failed: {error}; \
                 a crash of the machine will not be noticed"
            );
            String::from("unknown")
        });
        let poll = Poll::new().map_err(|error| ReplicatorError::Io("epoll_create()", error))?;
        let waker = Waker::new(poll.registry(), WAKE)
            .map_err(|error| ReplicatorError::Io("eventfd()", error))?;
        let waker = Arc::new(waker);
        let wake = |waker: &Arc<Waker>| {
            let waker = Arc::clone(waker);
            move || {
                let _ = waker.wake();
            }
        };
        let options = StoreOptions {
            state_dir: settings.state_dir.clone(),
            default_target: settings.default_target(),
            boot_id,
        };
        let store = Store::open(options, wake(&waker))
            .map_err(|error| ReplicatorError::Io("pthread_create()", error))?;
        let probes = Probes::new(
            settings.replication_probe_timeout,
            settings.doveadm_port,
            wake(&waker),
        );
        Ok(Self {
            engine: Engine::new(settings.engine_config(), fastrand::u64(..), now),
            store: Some(store),
            probes,
            poll,
            events: Events::with_capacity(MAX_EVENTS),
            waker,
            connections: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            unflushed: Vec::new(),
            stalled: Vec::new(),
            is_loaded: false,
            wake_pending: false,
            last_id: 0,
            aggregators: FastMap::default(),
            commands: FastMap::default(),
            syncs: FastMap::default(),
            idle: Idle::default(),
            waiting_for_state: FastMap::default(),
            aborting: Vec::new(),
            lookups: None,
            listing: None,
            several_replicas: HashSet::new(),
            last_loaded_user: Vec::new(),
            doveadm_preauthenticated: None,
            doveadm_connect_failed: None,
            most_syncs: 0,
            next_sweep: None,
            next_progress_check: None,
            input_errors: RateLimit::default(),
            closed_connections: 0,
            buffer: vec![0; READ_BYTES],
            parameters: settings.dsync_parameters(true),
            parameters_of_several: settings.dsync_parameters(false),
            settings,
        })
    }

    /// Whether the store is loaded and notifications are taken.
    #[must_use]
    pub const fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn free_slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        })
    }

    fn put(&mut self, slot: usize, socket: Socket, peer: Peer) {
        if let Some(place) = self.connections.get_mut(slot) {
            *place = Some(Connection {
                socket,
                peer,
                queued: false,
            });
        }
    }

    fn connection(&mut self, slot: usize) -> Option<&mut Connection> {
        self.connections.get_mut(slot)?.as_mut()
    }

    fn queue(&mut self, slot: usize) {
        if let Some(connection) = self.connection(slot) {
            if !std::mem::replace(&mut connection.queued, true) {
                self.ready.push_back(slot);
            }
        }
    }

    /// Takes a connection out for its turn; it is put back with `restore`, or dropped.
    fn take(&mut self, slot: usize) -> Option<Connection> {
        self.connections.get_mut(slot)?.take()
    }

    fn restore(&mut self, slot: usize, connection: Connection) {
        if let Some(place) = self.connections.get_mut(slot) {
            *place = Some(connection);
        }
    }

    fn serve(&mut self, now: Now, slot: usize) {
        let Some(mut connection) = self.take(slot) else {
            return;
        };
        connection.queued = false;
        let Connection { socket, peer, .. } = &mut connection;
        // One who reads no answer may have said something all the same: its end is found by reading.
        socket.flush();
        let turn = match peer {
            Peer::Notify(client) => self.serve_notify(now, slot, socket, client),
            Peer::Doveadm(client) => self.serve_doveadm(now, slot, socket, client),
            Peer::Dsync(dsync) => self.serve_dsync(now, socket, dsync),
            Peer::Idle(_) => Self::serve_idle(socket),
            Peer::MailboxList(list) => self.serve_mailbox_list(now, socket, list),
            Peer::Userdb(userdb) => self.serve_userdb(now, socket, userdb),
        };
        let turn = match socket.watch_room(self.poll.registry(), Token(slot)) {
            Ok(()) => turn,
            Err(_) => Turn::Close,
        };
        match turn {
            Turn::Close => self.close(now, slot, connection),
            Turn::Wait => self.restore(slot, connection),
            Turn::Idle => match connection {
                Connection {
                    socket,
                    peer: Peer::Dsync(dsync),
                    ..
                } => self.rest_dsync(now, slot, socket, dsync),
                other => self.close(now, slot, other),
            },
            Turn::Again => {
                self.restore(slot, connection);
                self.queue(slot);
            }
        }
    }

    fn close(&mut self, now: Now, slot: usize, connection: Connection) {
        self.free.push(slot);
        match connection.peer {
            Peer::Notify(client) => {
                self.aggregators.remove(&client.id);
                self.engine.handle_connection_closed(client.id);
                self.closed_connections += 1;
                self.wake_aggregator();
            }
            Peer::Doveadm(client) => {
                self.forget_doveadm(now, &client);
                self.closed_connections += 1;
            }
            Peer::Dsync(dsync) => self.finish_dsync(now, dsync),
            Peer::Idle(_) => self.idle.forget(slot),
            Peer::MailboxList(list) => self.finish_mailbox_list(now, list),
            Peer::Userdb(userdb) => self.finish_userdb(now, slot, userdb),
        }
    }

    /// Carries out what the engine wants, until it wants nothing.
    fn drive(&mut self, now: Now) {
        loop {
            while let Some(write) = self.engine.poll_write() {
                if let Some(store) = &mut self.store {
                    store.write(now.mono, write);
                }
            }
            match self.engine.poll_action() {
                Some(action) => self.perform(now, action),
                None => break,
            }
        }
        if let Some(store) = &mut self.store {
            if store.may_read_ahead() {
                for (username, target) in self.engine.next_states(MAX_STATES_AHEAD) {
                    store.read_ahead(username, target);
                }
            }
            store.send_reads();
            if !self.commands.is_empty() {
                store.hurry(now.mono);
            }
        }
        while let Some(event) = self.engine.poll_log() {
            say(&event);
        }
        if !self.stalled.is_empty() && self.is_loaded && self.engine.accepts_notifications() {
            for slot in std::mem::take(&mut self.stalled) {
                self.queue(slot);
            }
        }
        for &slot in &self.unflushed {
            let registry = self.poll.registry();
            let Some(Some(connection)) = self.connections.get_mut(slot) else {
                continue;
            };
            connection.socket.flush();
            let watched = connection.socket.watch_room(registry, Token(slot));
            if watched.is_err() && !std::mem::replace(&mut connection.queued, true) {
                // Its turn finds it, and ends it.
                self.ready.push_back(slot);
            }
        }
        self.unflushed.clear();
    }

    fn perform(&mut self, now: Now, action: Action) {
        match action {
            Action::ListUsers { listing, mask } => self.list_users(now, listing, &mask),
            Action::LookupUser { lookup, username } => self.look_up(now, lookup, username),
            Action::Probe { probe, target } => self.probes.start(probe, target),
            Action::StartSync {
                sync,
                username,
                target,
                full,
                from_state,
                mailboxes,
                has_state,
            } => {
                let waiting = WaitingForState {
                    username,
                    target,
                    full,
                    from_state,
                    mailboxes,
                    has_mailboxes: false,
                };
                self.start_sync(now, sync, waiting, has_state);
            }
            Action::AbortSync {
                sync,
                reason,
                at_once,
            } => self.abort_sync(now, sync, &reason, at_once),
            Action::Acknowledge { connection, line } => {
                if let Some(&slot) = self.aggregators.get(&connection) {
                    self.acknowledge(slot, line);
                }
            }
            Action::AnswerWaiter {
                connection,
                request,
                answer,
            } => {
                if let Some(&slot) = self.aggregators.get(&connection) {
                    let reason = answer.as_ref().err().map_or("", String::as_str);
                    self.send(slot, |out| {
                        notify_protocol::append_sync_result(out, request, answer.is_ok(), reason);
                    });
                }
            }
            Action::AnswerCommand { command, answer } => {
                if let Some(slot) = self.commands.remove(&command) {
                    self.send(slot, |out| match answer {
                        Ok(CommandDone::Done) => out.extend_from_slice(doveadm_protocol::OK),
                        Ok(CommandDone::Users(users)) => {
                            doveadm_protocol::append_updated(out, users);
                        }
                        Err(reason) => {
                            out.push(b'-');
                            out.extend(reason.bytes().filter(|byte| *byte != b'\n'));
                            out.push(b'\n');
                        }
                    });
                    self.command_answered(slot);
                }
            }
        }
    }

    /// Adds output to a connection, to be sent when all that is to be done now is done.
    fn send(&mut self, slot: usize, append: impl FnOnce(&mut Vec<u8>)) {
        let Some(connection) = self.connection(slot) else {
            return;
        };
        let was_empty = connection.socket.unsent() == 0;
        append(connection.socket.output());
        if was_empty {
            self.unflushed.push(slot);
        }
    }

    fn take_store_events(&mut self, now: Now) {
        for _ in 0..MAX_STORE_EVENTS_PER_TURN {
            let Some(event) = self.store.as_mut().and_then(Store::poll_event) else {
                self.wake_pending = false;
                return;
            };
            match event {
                StoreEvent::Loaded(records) => {
                    for record in records {
                        let has_target = !record.target.is_empty();
                        if has_target && record.username == self.last_loaded_user {
                            self.several_replicas.insert(record.username.clone());
                        } else if has_target {
                            self.last_loaded_user.clone_from(&record.username);
                        }
                        self.engine.load(now, record);
                    }
                }
                StoreEvent::Ready(boot) => self.handle_store_ready(now, boot),
                StoreEvent::Stored(seq) => {
                    self.engine.handle_stored(seq);
                    self.drive(now);
                }
                StoreEvent::States(states) => {
                    for (token, state) in states {
                        if let Some(waiting) = self.waiting_for_state.remove(&SyncId(token)) {
                            self.handle_state(now, SyncId(token), waiting, state);
                        }
                    }
                    self.drive(now);
                }
                // The store keeps them.
                StoreEvent::StatesAhead(_) => {}
                StoreEvent::Lost => self.begin_anew(now),
                StoreEvent::Log(level, text) => log!(level, "{text}"),
            }
        }
        // There may be more: its turn comes after the connections'.
        let _ = self.waker.wake();
    }

    fn handle_store_ready(&mut self, now: Now, boot: Boot) {
        self.last_loaded_user = Vec::new();
        self.engine.handle_loaded(now, boot);
        self.is_loaded = true;
        debug!("{} users are loaded", self.engine.counters().known_users);
        self.wake_aggregator();
        for slot in 0..self.connections.len() {
            self.queue(slot);
        }
        self.drive(now);
    }

    /// The store was lost: what is known is learnt again, from userdb and from the aggregators, who send
    /// again what was not acknowledged.
    fn begin_anew(&mut self, now: Now) {
        self.is_loaded = false;
        self.engine = Engine::new(self.settings.engine_config(), fastrand::u64(..), now);
        self.probes.clear();
        for slot in 0..self.connections.len() {
            if let Some(connection) = self.take(slot) {
                self.free.push(slot);
                if matches!(connection.peer, Peer::Notify(_) | Peer::Doveadm(_)) {
                    self.closed_connections += 1;
                }
            }
        }
        self.ready.clear();
        self.unflushed.clear();
        self.stalled.clear();
        self.aggregators.clear();
        self.commands.clear();
        self.syncs.clear();
        self.idle = Idle::default();
        self.waiting_for_state.clear();
        self.aborting.clear();
        self.several_replicas.clear();
        self.last_loaded_user.clear();
        self.lookups = None;
        self.listing = None;
    }

    /// Has the master start an aggregator, by a connection to its socket, if one has left a journal: after
    /// a reload the next notification would do so, but that may be hours away.
    fn wake_aggregator(&self) {
        if self.aggregators.is_empty() && journal::is_left(&self.settings.state_dir) {
            let path = self.settings.base_dir.join(AGGREGATOR_SOCKET);
            // Without the socket no aggregator of this Dovecot is ours to start.
            let _ = mio::net::UnixStream::connect(path);
        }
    }

    fn take_probe_results(&mut self, now: Now) {
        while let Some((probe, result)) = self.probes.poll_result() {
            self.engine.handle_probe_finished(now, probe, result);
            self.drive(now);
        }
    }

    fn input_error(&mut self, now: Now, text: &str) {
        if let Some(suppressed) = self.input_errors.speak(now.mono) {
            if suppressed > 0 {
                error!("{text} ({suppressed} such errors before were not logged)");
            } else {
                error!("{text}");
            }
        }
    }

    fn take_poll_events(&mut self) {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        if let Err(error) = self.poll.poll(&mut events, Some(Duration::ZERO)) {
            if error.kind() != std::io::ErrorKind::Interrupted {
                error!("epoll_wait() failed: {error}");
            }
        }
        for event in &events {
            if event.token() == WAKE {
                self.wake_pending = true;
                continue;
            }
            let Token(slot) = event.token();
            if let Some(connection) = self.connection(slot) {
                connection.socket.handle_event(event);
                self.queue(slot);
            }
        }
        self.events = events;
    }

    fn run(&mut self, now: Now) {
        if self.wake_pending {
            self.take_store_events(now);
            self.take_probe_results(now);
        }
        for _ in 0..self.ready.len() {
            let Some(slot) = self.ready.pop_front() else {
                break;
            };
            self.serve(now, slot);
            self.drive(now);
        }
        self.arm_timers(now.mono);
    }

    fn arm_timers(&mut self, now: Mono) {
        if self.next_sweep.is_none() && self.connections.len() > self.free.len() {
            self.next_sweep = Some(now + SWEEP_INTERVAL);
        }
        if self.syncs.is_empty() {
            self.next_progress_check = None;
        } else if self.next_progress_check.is_none() {
            self.next_progress_check = Some(now + self.progress_interval());
        }
    }
}

/// Not inlined: valgrind takes what a compiler makes of it for a jump on an uninitialised value.
#[inline(never)]
fn earlier(a: Option<Mono>, b: Option<Mono>) -> Option<Mono> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn say(event: &LogEvent) {
    let mut text = String::new();
    for part in [&event.username, &event.target].into_iter().flatten() {
        text.push_str(&notify_protocol::printable(part));
        text.push_str(": ");
    }
    text.push_str(&event.text);
    match event.level {
        Level::Debug => debug!("{text}"),
        Level::Info => info!("{text}"),
        Level::Warning => warn!("{text}"),
        Level::Error => error!("{text}"),
    }
}

impl Daemon for Replicator {
    fn poll_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }

    fn handle_connection(&mut self, now: Now, listener: &str, fd: OwnedFd, fifo: bool) {
        if fifo {
            warn!("{listener} is a fifo: its connection is closed");
            self.closed_connections += 1;
            return;
        }
        let slot = self.free_slot();
        let socket = match Socket::accepted(fd, self.poll.registry(), Token(slot)) {
            Ok(socket) => socket,
            Err(error) => {
                error!("{listener}: connection cannot be watched: {error}");
                self.free.push(slot);
                self.closed_connections += 1;
                return;
            }
        };
        // As stock: whatever is not for doveadm is for aggregators. A port has any name, or on 2.3 none.
        let peer = if listener == DOVEADM_LISTENER {
            Peer::Doveadm(DoveadmClient::new(now.mono))
        } else {
            let id = ConnectionId(self.new_id());
            self.aggregators.insert(id, slot);
            Peer::Notify(NotifyClient::new(id))
        };
        let is_doveadm = matches!(peer, Peer::Doveadm(_));
        self.put(slot, socket, peer);
        if is_doveadm {
            self.send(slot, |out| out.extend_from_slice(doveadm_protocol::HELLO));
        }
        self.queue(slot);
        self.run(now);
        self.drive(now);
    }

    fn handle_ready(&mut self, now: Now) {
        for _ in 0..MAX_ROUNDS {
            self.take_poll_events();
            self.run(now);
            if self.ready.is_empty() {
                break;
            }
        }
    }

    fn next_timeout(&self) -> Option<Mono> {
        if !self.ready.is_empty() {
            return Some(Mono(0));
        }
        let aborting = self.next_abort_step();
        let engine = self.engine.next_timeout().filter(|_| self.is_loaded);
        let store = self.store.as_ref().and_then(Store::next_timeout);
        let mut next = None;
        for due in [
            engine,
            store,
            aborting,
            self.idle.next_look(),
            self.next_sweep,
            self.next_progress_check,
        ] {
            next = earlier(next, due);
        }
        next
    }

    fn handle_timeout(&mut self, now: Now) {
        if self.is_loaded
            && self
                .engine
                .next_timeout()
                .is_some_and(|due| due <= now.mono)
        {
            self.engine.handle_timeout(now);
            self.drive(now);
        }
        if let Some(store) = &mut self.store {
            store.handle_timeout(now.mono);
        }
        self.continue_aborts(now);
        self.end_idle(now);
        if self.next_progress_check.is_some_and(|due| due <= now.mono) {
            self.next_progress_check = None;
            self.check_progress(now);
            self.drive(now);
        }
        if self.next_sweep.is_some_and(|due| due <= now.mono) {
            self.next_sweep = None;
            self.sweep(now);
            self.drive(now);
        }
        self.run(now);
    }

    fn handle_shutdown(&mut self, now: Now) {
        self.drive(now);
        if let Some(store) = self.store.take() {
            store.close();
        }
    }

    fn take_closed_connections(&mut self) -> usize {
        std::mem::take(&mut self.closed_connections)
    }
}

impl Replicator {
    /// Ends connections that stand still.
    fn sweep(&mut self, now: Now) {
        for slot in 0..self.connections.len() {
            let is_stuck = match self.connection(slot).map(|c| (&c.socket, &c.peer)) {
                Some((socket, Peer::Doveadm(client))) => client.is_stuck(now.mono, socket),
                Some((_, Peer::Userdb(userdb))) => userdb.is_stuck(now.mono),
                _ => false,
            };
            if is_stuck {
                if let Some(connection) = self.take(slot) {
                    self.close(now, slot, connection);
                }
            }
        }
    }

    fn finish_sync(&mut self, now: Now, sync: SyncId, outcome: SyncOutcome, reason: &str) {
        self.syncs.remove(&sync);
        self.aborting.retain(|other| *other != sync);
        self.engine.handle_sync_finished(now, sync, outcome, reason);
    }
}
