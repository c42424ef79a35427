//! The durable queue: an SQLite database in `state_dir`, on a thread of its own.
//!
//! The file `replication.sqlite3` has the application id `DVRP` and the version in `user_version`:
//! ```text
//! target(id, target)                      each replica's location, once
//! replica(username, target_id, ..., state) one row per (user, replica): what is pending, when it was synced, why it
//!                                         failed, dsync's incremental state, the last column: it is rarely read
//! meta(key, value)                        boot_id, clean, replicator_db_imported
//! status                                  a view of replica for people
//! ```
//! Promises. What was reported stored survives SIGKILL of this process: a commit is in the write-ahead
//! log, in the kernel's hands. It survives a crash of the machine up to the last checkpoint, whole
//! (`synchronous=NORMAL`); [`Boot`] tells the engine that something may be missing. Writes are committed
//! in groups and in order. Two processes never have the file open at once: a lock on
//! `replication.sqlite3.lock` is waited for, as after a reload the old process hands over. A file that
//! cannot be read is set aside under another name and a new one begun. A full disk is said once; writes
//! are kept, merged by (user, replica), and tried again.
//!
//! A stock `replicator.db` is read once, into a new store, and left as it is.

mod database;
mod stock;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::Level;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ErrorCode, OptionalExtension, ToSql};

use database::{Puts, checkpoint};
use worker::Worker;

use crate::engine::replicator::{
    Boot, MAX_TARGET_BYTES, MAX_USERNAME_BYTES, Record, RecordChange, Stale, StateChange, Write,
};
use crate::engine::strescape;
use crate::engine::time::{Mono, UnixSecs};
use crate::engine::{FastMap, Priority};
use crate::services::thread;

/// The file's name in `state_dir`.
pub const FILE_NAME: &str = "replication.sqlite3";
/// The stock replicator's file in `state_dir`.
pub const STOCK_FILE_NAME: &str = "replicator.db";
const APPLICATION_ID: i64 = 0x4456_5250;
const VERSION: i64 = 2;
/// The pages are small because a commit writes whole pages, and users change one by one.
const PAGE_BYTES: u32 = 1024;
const CACHE_KIB: u32 = 2048;
/// While loading, pages are read where the kernel has them; afterwards they would only count as resident.
const LOAD_MMAP_BYTES: i64 = 1 << 30;
const CHECKPOINT_PAGES: u32 = 8192;
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// After this long without the lock the administrator is told, once.
const LOCK_NOTICE_AFTER: Duration = Duration::from_secs(20);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Commands on their way to the thread; what is more stays with the sender and is merged there.
const MAX_COMMANDS: usize = 1024;
/// Events on their way back; the thread waits.
const MAX_EVENTS: usize = 1024;
/// Records that the engine takes at a time while others are read; it has no more to do when the last is read than with these.
const LOAD_BATCH: usize = 256;
/// How long writes wait for others to be committed with. Who waits for a write is the aggregator, with what
/// it still keeps: nobody is held up.
const GROUP_INTERVAL: Duration = Duration::from_millis(20);
/// The same while somebody waits for an answer.
const HURRIED_INTERVAL: Duration = Duration::from_millis(2);
/// So many different records are sent to be committed without waiting.
const GROUP_RECORDS: usize = 512;
/// States kept in memory, in bytes; more are dropped together.
const MAX_CACHED_STATE_BYTES: usize = 1024 * 1024;
/// What a state in memory takes besides its key and its text, about.
const CACHED_STATE_OVERHEAD_BYTES: usize = 128;
/// The longest line of a stock `replicator.db`.
const MAX_STOCK_LINE_BYTES: usize = 4 * 1024 * 1024;

/// Where the store is and what it begins with.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Dovecot's `state_dir`.
    pub state_dir: PathBuf,
    /// To whom the users of a stock `replicator.db` are replicated: the global `mail_replica`, or empty.
    pub default_target: Vec<u8>,
    /// This boot of the machine.
    pub boot_id: String,
}

/// What the thread tells.
#[derive(Debug)]
pub enum StoreEvent {
    /// Records, in the order of usernames.
    Loaded(Vec<Record>),
    /// All records were told.
    Ready(Boot),
    /// Every write up to this number is safe.
    Stored(u64),
    /// States that were asked for, each with the asker's number; empty if there is none.
    States(Vec<(u64, Vec<u8>)>),
    /// States that were read ahead, by key.
    StatesAhead(Vec<(Vec<u8>, Vec<u8>)>),
    /// The store was lost while it was in use and begun anew: what it held is to be built again.
    Lost,
    /// To be logged.
    Log(Level, String),
}

enum Command {
    Write(Batch),
    ReadStates {
        asked: Vec<Read>,
        ahead: Vec<Read>,
    },
    Close,
    #[cfg(test)]
    SetMaxPages(u32),
}

/// A state that is asked for.
#[derive(Debug)]
struct Read {
    token: u64,
    username: Vec<u8>,
    target: Vec<u8>,
}

/// Writes that are committed together, the last one of each record.
#[derive(Debug, Default)]
struct Batch {
    changes: Vec<RecordChange>,
    positions: FastMap<Vec<u8>, usize>,
    last_seq: u64,
}

fn key_of(username: &[u8], target: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(username.len() + target.len() + 1);
    key.extend_from_slice(username);
    key.push(0);
    key.extend_from_slice(target);
    key
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn add(&mut self, write: Write) {
        self.last_seq = write.seq;
        self.merge(write.change);
    }

    fn add_all(&mut self, other: Self) {
        self.last_seq = other.last_seq;
        for change in other.changes {
            self.merge(change);
        }
    }

    fn merge(&mut self, mut change: RecordChange) {
        let key = match &change {
            RecordChange::Put { record, .. } => key_of(&record.username, &record.target),
            RecordChange::Remove { username, target } => key_of(username, target),
            RecordChange::BootSettled => {
                self.changes.push(change);
                return;
            }
        };
        let earlier = match self.positions.get(&key) {
            None => {
                self.positions.insert(key, self.changes.len());
                self.changes.push(change);
                return;
            }
            Some(&at) => self.changes.get_mut(at),
        };
        let Some(earlier) = earlier else { return };
        if let RecordChange::Put { state, .. } = &mut change {
            if *state == StateChange::Keep {
                *state = match earlier {
                    RecordChange::Put { state, .. } => std::mem::take(state),
                    _ => StateChange::Forget,
                };
            }
        }
        *earlier = change;
    }

    /// What the batch says of a record's state; `None`: nothing.
    fn state_of(&self, key: &[u8]) -> Option<&[u8]> {
        match self.changes.get(*self.positions.get(key)?)? {
            RecordChange::Put { state, .. } => match state {
                // Copies are resolved by the thread, where they come alone.
                StateChange::Keep | StateChange::CopyFrom(_) => None,
                StateChange::Set(state) => Some(state),
                StateChange::Forget => Some(&[]),
            },
            RecordChange::Remove { .. } => Some(&[]),
            RecordChange::BootSettled => None,
        }
    }
}

/// The store, as the daemon sees it. Nothing here waits for the disk but [`Store::close`].
#[derive(Debug)]
pub struct Store {
    commands: SyncSender<Command>,
    events: Receiver<StoreEvent>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    batch: Batch,
    /// Batches that are not merged with what comes after them.
    sealed: VecDeque<Batch>,
    batch_due: Option<Mono>,
    unsent_reads: Vec<Read>,
    cached_states: FastMap<Vec<u8>, Vec<u8>>,
    cached_bytes: usize,
    unsent_ahead: Vec<Read>,
    /// No more is read ahead before this is there.
    ahead_is_under_way: bool,
    /// What is under way may be older than what was cached and is forgotten.
    ahead_is_old: bool,
}

impl Store {
    /// Starts the thread: it takes the lock, opens the file and tells all records. `wake` is called when
    /// there is something to take with [`Store::poll_event`].
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub fn open(
        options: StoreOptions,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self, std::io::Error> {
        let (command_sender, command_receiver) = std::sync::mpsc::sync_channel(MAX_COMMANDS);
        let (event_sender, event_receiver) = std::sync::mpsc::sync_channel(MAX_EVENTS);
        let stop = Arc::new(AtomicBool::new(false));
        let mut worker = Worker {
            options,
            commands: command_receiver,
            events: event_sender,
            wake: Box::new(wake),
            stop: Arc::clone(&stop),
            targets: FastMap::default(),
            unsaved: Batch::default(),
            failing: false,
            unmarked: None,
        };
        let builder = std::thread::Builder::new().name("store".into());
        let thread = thread::spawn(builder, move || worker.run())?;
        Ok(Self {
            commands: command_sender,
            events: event_receiver,
            thread: Some(thread),
            stop,
            batch: Batch::default(),
            sealed: VecDeque::new(),
            batch_due: None,
            unsent_reads: Vec::new(),
            cached_states: FastMap::default(),
            cached_bytes: 0,
            unsent_ahead: Vec::new(),
            ahead_is_under_way: false,
            ahead_is_old: false,
        })
    }

    /// The next thing that the thread told.
    pub fn poll_event(&mut self) -> Option<StoreEvent> {
        loop {
            match self.events.try_recv().ok()? {
                StoreEvent::StatesAhead(states) => self.take_states_ahead(states),
                event => {
                    if matches!(event, StoreEvent::Lost) {
                        self.forget_all_cached();
                    }
                    return Some(event);
                }
            }
        }
    }

    /// Adds a write to those that are committed next.
    pub fn write(&mut self, now: Mono, write: Write) {
        match &write.change {
            RecordChange::Put { record, state } => match state {
                StateChange::Keep => {}
                StateChange::CopyFrom(_) => {
                    self.forget_cached(&record.username, &record.target);
                    // What it copies is what the writes before it leave.
                    self.seal_batch();
                    self.batch.add(write);
                    self.seal_batch();
                    self.send_sealed();
                    return;
                }
                StateChange::Set(state) => self.cache(&record.username, &record.target, state),
                StateChange::Forget => self.cache(&record.username, &record.target, &[]),
            },
            RecordChange::Remove { username, target } => self.cache(username, target, &[]),
            RecordChange::BootSettled => {}
        }
        self.batch.add(write);
        self.batch_due.get_or_insert(now + GROUP_INTERVAL);
        if self.batch.changes.len() >= GROUP_RECORDS {
            self.send_batch();
        }
    }

    /// When [`Store::handle_timeout`] is to be called.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Mono> {
        self.batch_due
    }

    /// Somebody waits for what was written to be stored.
    pub fn hurry(&mut self, now: Mono) {
        self.batch_due = self.batch_due.map(|due| due.min(now + HURRIED_INTERVAL));
    }

    /// Sends what has waited long enough.
    pub fn handle_timeout(&mut self, now: Mono) {
        self.send_reads();
        if self.next_timeout().is_some_and(|due| due <= now) {
            self.send_batch();
            if self.batch_due.is_some() {
                // The thread is busy: what comes in the meantime is merged.
                self.batch_due = Some(now + GROUP_INTERVAL);
            }
        }
    }

    /// Asks for a state. It is answered here if it is in memory, else by [`StoreEvent::States`] after
    /// [`Store::send_reads`].
    pub fn read_state(&mut self, token: u64, username: &[u8], target: &[u8]) -> Option<Vec<u8>> {
        let key = key_of(username, target);
        if let Some(state) = self.batch.state_of(&key) {
            return Some(state.to_vec());
        }
        if let Some(state) = self.cached_states.get(&key) {
            return Some(state.clone());
        }
        self.unsent_reads.push(Read {
            token,
            username: username.to_vec(),
            target: target.to_vec(),
        });
        None
    }

    /// Commits what is there, marks the store cleanly closed, and gives it to the next process. Waits for the disk.
    pub fn close(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.stop.store(true, Ordering::Release);
        self.seal_batch();
        let batches = std::mem::take(&mut self.sealed);
        let last = batches.into_iter().map(Command::Write);
        let last: Vec<Command> = last.chain([Command::Close]).collect();
        let commands = self.commands.clone();
        // The thread may wait for room for its events while the last commands wait for room.
        let builder = std::thread::Builder::new().name("store-close".into());
        let sender = thread::spawn(builder, move || {
            for command in last {
                let _ = commands.send(command);
            }
        });
        while !thread.is_finished() {
            let _ = self.events.recv_timeout(Duration::from_millis(5));
        }
        let _ = thread.join();
        let _ = sender.map(JoinHandle::join);
    }

    fn seal_batch(&mut self) {
        if !self.batch.is_empty() {
            self.sealed.push_back(std::mem::take(&mut self.batch));
        }
    }

    fn send_sealed(&mut self) {
        while let Some(batch) = self.sealed.pop_front() {
            if let Err(TrySendError::Full(Command::Write(batch))) =
                self.commands.try_send(Command::Write(batch))
            {
                self.sealed.push_front(batch);
                return;
            }
        }
    }

    /// Sends the batch, or leaves it where it is, to be merged with what comes, while the thread is busy.
    fn send_batch(&mut self) {
        self.send_sealed();
        if self.sealed.is_empty() {
            self.seal_batch();
            self.send_sealed();
            if let Some(batch) = self.sealed.pop_back() {
                self.batch = batch;
            }
        }
        if self.batch.is_empty() && self.sealed.is_empty() {
            self.batch_due = None;
        }
    }

    /// Sends all that was asked for. What the thread has no room for is sent by a later call.
    pub fn send_reads(&mut self) {
        self.send_sealed();
        // A read must not pass a copy. The batch says nothing of the states that are asked for.
        if self.unsent_reads.is_empty() || !self.sealed.is_empty() {
            // Sent later, they could be older than a write that is cached no more.
            self.unsent_ahead.clear();
            return;
        }
        let asked = std::mem::take(&mut self.unsent_reads);
        let ahead = std::mem::take(&mut self.unsent_ahead);
        let is_ahead = !ahead.is_empty();
        match self.commands.try_send(Command::ReadStates { asked, ahead }) {
            Err(TrySendError::Full(Command::ReadStates { asked, .. })) => self.unsent_reads = asked,
            _ if is_ahead => {
                self.ahead_is_under_way = true;
                self.ahead_is_old = false;
            }
            _ => {}
        }
    }

    /// Whether a state has to be read, so that others may as well be read with it.
    #[must_use]
    pub fn may_read_ahead(&self) -> bool {
        !self.unsent_reads.is_empty() && !self.ahead_is_under_way
    }

    /// A state that is likely to be asked for soon.
    pub fn read_ahead(&mut self, username: &[u8], target: &[u8]) {
        let key = key_of(username, target);
        if self.batch.state_of(&key).is_none() && !self.cached_states.contains_key(&key) {
            self.unsent_ahead.push(Read {
                token: 0,
                username: username.to_vec(),
                target: target.to_vec(),
            });
        }
    }

    fn take_states_ahead(&mut self, states: Vec<(Vec<u8>, Vec<u8>)>) {
        self.ahead_is_under_way = false;
        for (key, state) in states {
            // What is cached is newer.
            if !self.ahead_is_old && !self.cached_states.contains_key(&key) {
                self.cache_key(key, state);
            }
        }
    }

    fn forget_all_cached(&mut self) {
        // Its table is kept: it is soon as large again.
        self.cached_states.clear();
        self.cached_bytes = 0;
        self.ahead_is_old = true;
    }

    fn forget_cached(&mut self, username: &[u8], target: &[u8]) {
        let key = key_of(username, target);
        if let Some(state) = self.cached_states.remove(&key) {
            self.cached_bytes -= key.len() + CACHED_STATE_OVERHEAD_BYTES + state.len();
        }
        self.ahead_is_old = true;
    }

    fn cache(&mut self, username: &[u8], target: &[u8], state: &[u8]) {
        self.cache_key(key_of(username, target), state.to_vec());
    }

    fn cache_key(&mut self, key: Vec<u8>, state: Vec<u8>) {
        let cost = key.len() + CACHED_STATE_OVERHEAD_BYTES;
        if self.cached_bytes + cost + state.len() > MAX_CACHED_STATE_BYTES {
            self.forget_all_cached();
        }
        self.cached_bytes += state.len();
        match self.cached_states.insert(key, state) {
            Some(before) => self.cached_bytes -= before.len(),
            None => self.cached_bytes += cost,
        }
    }

    #[cfg(test)]
    fn set_max_pages(&self, pages: u32) {
        self.commands.send(Command::SetMaxPages(pages)).unwrap();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Bytes bound as text: usernames are compared as text by an administrator's own query.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

enum OpenError {
    /// The file is not what it should be; the reason.
    Unreadable(String),
    /// It may go later; the reason.
    Passing(String),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        if is_corruption(&error) {
            Self::Unreadable(error.to_string())
        } else {
            Self::Passing(error.to_string())
        }
    }
}

fn is_corruption(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, text) => {
            let schema_is_missing = text
                .as_ref()
                .is_some_and(|text| text.starts_with("no such "));
            matches!(
                failure.code,
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::TypeMismatch
            ) || schema_is_missing
        }
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..) => true,
        _ => false,
    }
}

/// This boot's id, from the kernel.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn read_boot_id() -> std::io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// Makes sure that `state_dir` is there and can be written, so that a wrong one is named as such.
///
/// # Errors
///
/// The text for the log.
pub fn check_state_dir(state_dir: &Path) -> Result<(), String> {
    let path = state_dir.join(format!("{FILE_NAME}.lock"));
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(b""))
        .map_err(|error| format!("open({}) failed: {error}", path.display()))
}
