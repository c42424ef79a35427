//! The durable queue: an SQLite database in `state_dir`, on a thread of its own.
//!
//! The file `replication.sqlite3` has the application id `DVRP` and the version in `user_version`:
//! ```text
//! target(id, target)                      each replica's location, once
//! replica(username, target_id, ...)       one row per (user, replica): what is pending, when it was synced, why it failed
//! state(username, target_id, state)       dsync's incremental state
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

use std::collections::{HashMap, VecDeque};
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
use rusqlite::{Connection, ErrorCode, OptionalExtension, ToSql};

use crate::engine::Priority;
use crate::engine::replicator::{
    Boot, MAX_TARGET_BYTES, MAX_USERNAME_BYTES, Record, RecordChange, StateChange, Write,
};
use crate::engine::strescape;
use crate::engine::time::{Mono, UnixSecs};

/// The file's name in `state_dir`.
pub const FILE_NAME: &str = "replication.sqlite3";
/// The stock replicator's file in `state_dir`.
pub const STOCK_FILE_NAME: &str = "replicator.db";
const APPLICATION_ID: i64 = 0x4456_5250;
const VERSION: i64 = 1;
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
const LOAD_BATCH: usize = 2048;
/// How long writes wait for others to be committed with.
const GROUP_INTERVAL: Duration = Duration::from_millis(4);
/// So many different records are sent to be committed without waiting.
const GROUP_RECORDS: usize = 512;
/// States kept in memory, in bytes; more are dropped together.
const MAX_CACHED_STATE_BYTES: usize = 4 * 1024 * 1024;
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
    /// The state that was asked for; empty if there is none.
    State {
        /// The asker's number.
        token: u64,
        /// The state.
        state: Vec<u8>,
    },
    /// The store was lost while it was in use and begun anew: what it held is to be built again.
    Lost,
    /// To be logged.
    Log(Level, String),
}

enum Command {
    Write(Batch),
    ReadState {
        token: u64,
        username: Vec<u8>,
        target: Vec<u8>,
    },
    Close,
    #[cfg(test)]
    SetMaxPages(u32),
}

/// Writes that are committed together, the last one of each record.
#[derive(Debug, Default)]
struct Batch {
    changes: Vec<RecordChange>,
    positions: HashMap<Vec<u8>, usize>,
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
    batch_since: Option<Mono>,
    unsent_reads: Vec<(u64, Vec<u8>, Vec<u8>)>,
    cached_states: HashMap<Vec<u8>, Vec<u8>>,
    cached_bytes: usize,
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
            targets: HashMap::new(),
            unsaved: Batch::default(),
            failing: false,
        };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || worker.run())?;
        Ok(Self {
            commands: command_sender,
            events: event_receiver,
            thread: Some(thread),
            stop,
            batch: Batch::default(),
            sealed: VecDeque::new(),
            batch_since: None,
            unsent_reads: Vec::new(),
            cached_states: HashMap::new(),
            cached_bytes: 0,
        })
    }

    /// The next thing that the thread told.
    pub fn poll_event(&mut self) -> Option<StoreEvent> {
        let event = self.events.try_recv().ok()?;
        if matches!(event, StoreEvent::Lost) {
            self.cached_states.clear();
            self.cached_bytes = 0;
        }
        Some(event)
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
        self.batch_since.get_or_insert(now);
        if self.batch.changes.len() >= GROUP_RECORDS {
            self.send_batch();
        }
    }

    /// When [`Store::handle_timeout`] is to be called.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Mono> {
        self.batch_since.map(|since| since + GROUP_INTERVAL)
    }

    /// Sends what has waited long enough.
    pub fn handle_timeout(&mut self, now: Mono) {
        self.send_reads();
        if self.next_timeout().is_some_and(|due| due <= now) {
            self.send_batch();
            if self.batch_since.is_some() {
                // The thread is busy: what comes in the meantime is merged.
                self.batch_since = Some(now);
            }
        }
    }

    /// Asks for a state. It is answered here if it is in memory, else by [`StoreEvent::State`].
    pub fn read_state(&mut self, token: u64, username: &[u8], target: &[u8]) -> Option<Vec<u8>> {
        let key = key_of(username, target);
        if let Some(state) = self.batch.state_of(&key) {
            return Some(state.to_vec());
        }
        if let Some(state) = self.cached_states.get(&key) {
            return Some(state.clone());
        }
        self.send_batch();
        self.unsent_reads
            .push((token, username.to_vec(), target.to_vec()));
        self.send_reads();
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
        let sender = std::thread::spawn(move || {
            for command in last {
                let _ = commands.send(command);
            }
        });
        while !thread.is_finished() {
            let _ = self.events.recv_timeout(Duration::from_millis(5));
        }
        let _ = thread.join();
        let _ = sender.join();
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
            self.batch_since = None;
        }
    }

    fn send_reads(&mut self) {
        // A read must not pass the writes before it.
        while self.batch.is_empty() && self.sealed.is_empty() {
            let Some((token, username, target)) = self.unsent_reads.pop() else {
                return;
            };
            let command = Command::ReadState {
                token,
                username,
                target,
            };
            if let Err(TrySendError::Full(Command::ReadState {
                token,
                username,
                target,
            })) = self.commands.try_send(command)
            {
                self.unsent_reads.push((token, username, target));
                return;
            }
        }
    }

    fn forget_cached(&mut self, username: &[u8], target: &[u8]) {
        self.cached_states.remove(&key_of(username, target));
    }

    fn cache(&mut self, username: &[u8], target: &[u8], state: &[u8]) {
        let key = key_of(username, target);
        self.cached_bytes += key.len() + state.len();
        if self.cached_bytes > MAX_CACHED_STATE_BYTES {
            self.cached_states = HashMap::new();
            self.cached_bytes = key.len() + state.len();
        }
        self.cached_states.insert(key, state.to_vec());
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

struct Worker {
    options: StoreOptions,
    commands: Receiver<Command>,
    events: SyncSender<StoreEvent>,
    wake: Box<dyn Fn() + Send>,
    stop: Arc<AtomicBool>,
    targets: HashMap<Vec<u8>, i64>,
    unsaved: Batch,
    failing: bool,
}

impl Worker {
    fn run(&mut self) {
        let Some(_lock) = self.lock() else { return };
        let Some(mut connection) = self.open_and_load(false) else {
            return;
        };
        loop {
            let command = if self.unsaved.is_empty() {
                self.commands.recv().map_err(RecvTimeoutError::from)
            } else {
                self.commands.recv_timeout(RETRY_INTERVAL)
            };
            let mut closing = false;
            match command {
                Ok(command) => closing = self.handle(&connection, command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => closing = true,
            }
            while !closing {
                match self.commands.try_recv() {
                    Ok(command) => closing = self.handle(&connection, command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => closing = true,
                }
            }
            if let Err(reason) = self.save(&mut connection) {
                drop(connection);
                self.set_aside(&reason);
                self.unsaved = Batch::default();
                self.send(StoreEvent::Lost);
                match self.open_and_load(true) {
                    Some(opened) => connection = opened,
                    None => return,
                }
                continue;
            }
            if closing {
                self.close(&connection);
                return;
            }
        }
    }

    fn send(&self, event: StoreEvent) {
        // The receiver is gone only when the process ends.
        if self.events.send(event).is_ok() {
            (self.wake)();
        }
    }

    fn log(&self, level: Level, text: String) {
        self.send(StoreEvent::Log(level, text));
    }

    fn path(&self) -> PathBuf {
        self.options.state_dir.join(FILE_NAME)
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The lock, once no other process has it; `None` when stopped before.
    fn lock(&self) -> Option<File> {
        let path = self.options.state_dir.join(format!("{FILE_NAME}.lock"));
        let begun = Instant::now();
        let mut said = false;
        loop {
            let error = match OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
            {
                Err(error) => Some(format!("open({}) failed: {error}", path.display())),
                Ok(file) => {
                    let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
                    match rustix::fs::flock(&file, operation) {
                        Ok(()) => return Some(file),
                        Err(rustix::io::Errno::AGAIN) => (begun.elapsed() > LOCK_NOTICE_AFTER)
                            .then(|| {
                                format!(
                                    "{} is locked by another replicator process, waiting for it to end",
                                    path.display()
                                )
                            }),
                        Err(error) => Some(format!("flock({}) failed: {error}", path.display())),
                    }
                }
            };
            if let Some(error) = error.filter(|_| !said) {
                said = true;
                self.log(Level::Error, error);
            }
            if self.is_stopping() {
                return None;
            }
            std::thread::sleep(LOCK_POLL_INTERVAL);
        }
    }

    fn open_and_load(&mut self, mut lost: bool) -> Option<Connection> {
        let mut said = false;
        loop {
            match self.open(lost).and_then(|connection| {
                self.load(&connection)?;
                Ok(connection)
            }) {
                Ok(connection) => match self.settle_boot(&connection) {
                    Ok(boot) => {
                        self.send(StoreEvent::Ready(if lost { Boot::Unclean } else { boot }));
                        return Some(connection);
                    }
                    Err(error) => {
                        self.log(Level::Error, format!("{}: {error}", self.path().display()));
                        self.send(StoreEvent::Ready(Boot::Unclean));
                        return Some(connection);
                    }
                },
                Err(OpenError::Unreadable(reason)) => {
                    self.send(StoreEvent::Lost);
                    self.set_aside(&reason);
                    lost = true;
                }
                Err(OpenError::Passing(reason)) => {
                    if !said {
                        said = true;
                        self.log(
                            Level::Error,
                            format!("{} cannot be opened: {reason}", self.path().display()),
                        );
                    }
                }
            }
            if self.is_stopping() {
                return None;
            }
            if said {
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    }

    fn set_aside(&self, reason: &str) {
        let path = self.path();
        let seconds = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let aside =
            |suffix: &str| PathBuf::from(format!("{}.corrupt-{seconds}{suffix}", path.display()));
        let name = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        let renamed = std::fs::rename(&path, aside(""));
        let _ = std::fs::rename(name("-wal"), aside("-wal"));
        let _ = std::fs::remove_file(name("-shm"));
        let what = match renamed {
            Ok(()) => format!("was renamed to {}", aside("").display()),
            Err(error) => format!("could not be renamed: {error}"),
        };
        self.log(
            Level::Error,
            format!(
                "{} is unreadable ({reason}), {what}; all users will be synced",
                path.display()
            ),
        );
    }

    fn open(&mut self, lost: bool) -> Result<Connection, OpenError> {
        let path = self.path();
        // Whose mail is replicated is nobody else's business.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| OpenError::Passing(error.to_string()))?;
        let mut connection = Connection::open(&path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(32);
        let number = |connection: &Connection, pragma: &str| {
            connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
        };
        let id = number(&connection, "application_id")?;
        let version = number(&connection, "user_version")?;
        let is_new = id == 0 && version == 0 && number(&connection, "schema_version")? == 0;
        if is_new {
            connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        } else if id != APPLICATION_ID {
            return Err(OpenError::Unreadable(
                "it is no replication database".into(),
            ));
        } else if version != VERSION {
            return Err(OpenError::Unreadable(format!(
                "its version is {version}, {VERSION} is known"
            )));
        }
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(OpenError::Passing(format!(
                "it needs a write-ahead log, the file system offers {mode}"
            )));
        }
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "cache_size", -i64::from(CACHE_KIB))?;
        connection.pragma_update(None, "mmap_size", LOAD_MMAP_BYTES)?;
        self.targets.clear();
        if is_new {
            self.create(&mut connection, lost)?;
        }
        let mut statement = connection.prepare("SELECT id, target FROM target")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let target = row.get_ref(1)?.as_bytes().map_err(to_unreadable)?.to_vec();
            self.targets.insert(target, row.get(0)?);
        }
        drop(rows);
        drop(statement);
        Ok(connection)
    }

    fn create(&mut self, connection: &mut Connection, lost: bool) -> Result<(), OpenError> {
        let transaction = connection.transaction()?;
        transaction.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID};
             PRAGMA user_version = {VERSION};
             CREATE TABLE target(id INTEGER PRIMARY KEY, target TEXT NOT NULL UNIQUE);
             CREATE TABLE replica(
                 username TEXT NOT NULL, target_id INTEGER NOT NULL, priority INTEGER NOT NULL,
                 last_update INTEGER NOT NULL, last_fast_sync INTEGER NOT NULL,
                 last_full_sync INTEGER NOT NULL, last_success INTEGER NOT NULL,
                 failures INTEGER NOT NULL, force_full INTEGER NOT NULL,
                 has_state INTEGER NOT NULL, reason TEXT NOT NULL,
                 PRIMARY KEY(username, target_id)) WITHOUT ROWID;
             CREATE TABLE state(
                 username TEXT NOT NULL, target_id INTEGER NOT NULL, state BLOB NOT NULL,
                 PRIMARY KEY(username, target_id)) WITHOUT ROWID;
             CREATE TABLE meta(key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
             CREATE VIEW status AS SELECT username, target,
                 CASE priority WHEN 0 THEN 'none' WHEN 1 THEN 'low' WHEN 2 THEN 'high'
                     ELSE 'sync' END AS priority,
                 datetime(NULLIF(last_update, 0), 'unixepoch', 'localtime') AS last_update,
                 datetime(NULLIF(last_fast_sync, 0), 'unixepoch', 'localtime') AS last_fast_sync,
                 datetime(NULLIF(last_full_sync, 0), 'unixepoch', 'localtime') AS last_full_sync,
                 datetime(NULLIF(last_success, 0), 'unixepoch', 'localtime') AS last_success,
                 failures, reason
                 FROM replica JOIN target ON target.id = target_id;"
        ))?;
        let imported = if lost {
            None
        } else {
            self.import_stock(&transaction)?
        };
        if let Some((users, _)) = imported {
            transaction.execute(
                "INSERT INTO meta VALUES('replicator_db_imported', ?)",
                [i64::try_from(users).unwrap_or(i64::MAX)],
            )?;
        }
        transaction.commit()?;
        if let Some((users, bad_lines)) = imported {
            let stock = self.options.state_dir.join(STOCK_FILE_NAME);
            let level = if bad_lines > 0 {
                Level::Warn
            } else {
                Level::Info
            };
            self.log(
                level,
                format!(
                    "{}: {users} users taken over, {bad_lines} lines could not be read",
                    stock.display()
                ),
            );
        }
        Ok(())
    }

    /// Users and unreadable lines of a stock `replicator.db`; `None` if there is none.
    fn import_stock(
        &mut self,
        connection: &Connection,
    ) -> Result<Option<(usize, usize)>, OpenError> {
        let path = self.options.state_dir.join(STOCK_FILE_NAME);
        let Ok(file) = File::open(&path) else {
            return Ok(None);
        };
        let target = self.options.default_target.clone();
        let (mut users, mut bad_lines) = (0, 0);
        let mut reader = BufReader::with_capacity(256 * 1024, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let text = format!("read({}) failed: {error}", path.display());
                    self.log(Level::Error, text);
                    break;
                }
            }
            let is_whole = line.pop() == Some(b'\n');
            if !is_whole || line.len() > MAX_STOCK_LINE_BYTES {
                bad_lines += 1;
                continue;
            }
            match parse_stock_line(&line, &target) {
                Some((record, state)) => {
                    users += 1;
                    self.put(connection, &record, &state)?;
                }
                None => bad_lines += 1,
            }
        }
        Ok(Some((users, bad_lines)))
    }

    fn load(&self, connection: &Connection) -> Result<(), OpenError> {
        let targets: HashMap<i64, &Vec<u8>> = self
            .targets
            .iter()
            .map(|(target, id)| (*id, target))
            .collect();
        let mut statement = connection.prepare(
            "SELECT username, target_id, priority, last_update, last_fast_sync, last_full_sync,
                 last_success, failures, force_full, has_state, reason FROM replica",
        )?;
        let mut rows = statement.query([])?;
        let mut records = Vec::with_capacity(LOAD_BATCH);
        while let Some(row) = rows.next()? {
            let seconds = |column: usize| Ok::<_, rusqlite::Error>(UnixSecs(row.get(column)?));
            let username = row.get_ref(0)?.as_bytes().map_err(to_unreadable)?;
            let target = targets
                .get(&row.get(1)?)
                .ok_or_else(|| OpenError::Unreadable("a replica's target is missing".into()))?;
            let priority = Priority::from_number(row.get(2)?)
                .ok_or_else(|| OpenError::Unreadable("a priority is out of range".into()))?;
            let reason = row.get_ref(10)?.as_bytes().map_err(to_unreadable)?;
            records.push(Record {
                username: username.to_vec(),
                target: (*target).clone(),
                priority,
                last_update: seconds(3)?,
                last_fast_sync: seconds(4)?,
                last_full_sync: seconds(5)?,
                last_success: seconds(6)?,
                failures: row.get(7)?,
                force_full: row.get(8)?,
                has_state: row.get(9)?,
                reason: String::from_utf8_lossy(reason).into_owned(),
            });
            if records.len() == LOAD_BATCH {
                let batch = std::mem::replace(&mut records, Vec::with_capacity(LOAD_BATCH));
                self.send(StoreEvent::Loaded(batch));
            }
        }
        if !records.is_empty() {
            self.send(StoreEvent::Loaded(records));
        }
        drop(rows);
        drop(statement);
        connection.pragma_update(None, "mmap_size", 0)?;
        Ok(())
    }

    /// Whether the store has all that was reported stored, as far as the boot of the machine goes.
    fn settle_boot(&self, connection: &Connection) -> rusqlite::Result<Boot> {
        let stored: Option<String> = connection
            .query_row("SELECT value FROM meta WHERE key = 'boot_id'", [], |row| {
                row.get(0)
            })
            .optional()?;
        let clean: Option<bool> = connection
            .query_row("SELECT value FROM meta WHERE key = 'clean'", [], |row| {
                row.get(0)
            })
            .optional()?;
        let same_boot = stored.as_deref() == Some(self.options.boot_id.as_str());
        let boot = if same_boot || (stored.is_some() && clean == Some(true)) {
            self.set_boot_id(connection)?;
            Boot::Trusted
        } else {
            Boot::Unclean
        };
        connection.execute("INSERT OR REPLACE INTO meta VALUES('clean', 0)", [])?;
        // Were this lost with the power, the next boot would trust what it must not.
        checkpoint(connection)?;
        Ok(boot)
    }

    fn set_boot_id(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES('boot_id', ?)",
            [&self.options.boot_id],
        )?;
        Ok(())
    }

    fn close(&self, connection: &Connection) {
        if !self.unsaved.is_empty() {
            return;
        }
        // A boot that is not settled yet is to be found unsettled by the next process too.
        let closed = connection
            .execute(
                "INSERT OR REPLACE INTO meta VALUES('clean',
                     IFNULL((SELECT value FROM meta WHERE key = 'boot_id'), '') = ?)",
                [&self.options.boot_id],
            )
            .and_then(|_| checkpoint(connection));
        if let Err(error) = closed {
            self.log(
                Level::Error,
                format!("{} could not be closed: {error}", self.path().display()),
            );
        }
    }

    /// True when it is the last command.
    fn handle(&mut self, connection: &Connection, command: Command) -> bool {
        match command {
            Command::Write(mut batch) => {
                self.resolve_copies(connection, &mut batch);
                if self.unsaved.is_empty() {
                    self.unsaved = batch;
                } else {
                    self.unsaved.add_all(batch);
                }
            }
            Command::ReadState {
                token,
                username,
                target,
            } => {
                let state = self.newest_state(connection, &username, &target);
                self.send(StoreEvent::State { token, state });
            }
            Command::Close => return true,
            #[cfg(test)]
            Command::SetMaxPages(pages) => {
                connection
                    .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
                    .unwrap();
            }
        }
        false
    }

    /// The state after all writes so far, saved or not.
    fn newest_state(&self, connection: &Connection, username: &[u8], target: &[u8]) -> Vec<u8> {
        if let Some(state) = self.unsaved.state_of(&key_of(username, target)) {
            return state.to_vec();
        }
        self.read_state(connection, username, target)
            .unwrap_or_else(|error| {
                let text = format!("{}: state: {error}", self.path().display());
                self.log(Level::Error, text);
                Vec::new()
            })
    }

    fn resolve_copies(&self, connection: &Connection, batch: &mut Batch) {
        for change in &mut batch.changes {
            if let RecordChange::Put { record, state } = change {
                if let StateChange::CopyFrom(target) = state {
                    let copied = self.newest_state(connection, &record.username, target);
                    *state = StateChange::Set(copied);
                }
            }
        }
    }

    fn read_state(
        &self,
        connection: &Connection,
        username: &[u8],
        target: &[u8],
    ) -> rusqlite::Result<Vec<u8>> {
        let Some(target_id) = self.targets.get(target) else {
            return Ok(Vec::new());
        };
        let mut statement = connection
            .prepare_cached("SELECT state FROM state WHERE username = ? AND target_id = ?")?;
        let state = statement
            .query_row(rusqlite::params![Text(username), target_id], |row| {
                Ok(row.get_ref(0)?.as_bytes()?.to_vec())
            })
            .optional()?;
        Ok(state.unwrap_or_default())
    }

    /// Commits what is unsaved, or keeps it to try again.
    ///
    /// # Errors
    ///
    /// The store is unreadable.
    fn save(&mut self, connection: &mut Connection) -> Result<(), String> {
        if self.unsaved.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.unsaved);
        match self.commit(connection, &batch) {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    self.log(
                        Level::Info,
                        format!("{} can be written again", self.path().display()),
                    );
                }
                self.send(StoreEvent::Stored(batch.last_seq));
                Ok(())
            }
            Err(error) if is_corruption(&error) => Err(error.to_string()),
            Err(error) => {
                // The transaction was rolled back, and with it targets that it made.
                self.unsaved = batch;
                self.targets.clear();
                let _ = self.reload_targets(connection);
                if !std::mem::replace(&mut self.failing, true) {
                    self.log(
                        Level::Error,
                        format!(
                            "{} cannot be written: {error}; changes are kept in memory and tried again",
                            self.path().display()
                        ),
                    );
                }
                Ok(())
            }
        }
    }

    fn reload_targets(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached("SELECT id, target FROM target")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let target = row.get_ref(1)?.as_bytes()?.to_vec();
            self.targets.insert(target, row.get(0)?);
        }
        Ok(())
    }

    fn commit(&mut self, connection: &mut Connection, batch: &Batch) -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        for change in &batch.changes {
            match change {
                RecordChange::Put { record, state } => self.put(&transaction, record, state)?,
                RecordChange::Remove { username, target } => {
                    self.remove(&transaction, username, target)?;
                }
                RecordChange::BootSettled => self.set_boot_id(&transaction)?,
            }
        }
        transaction.commit()
    }

    fn target_id(&mut self, connection: &Connection, target: &[u8]) -> rusqlite::Result<i64> {
        if let Some(id) = self.targets.get(target) {
            return Ok(*id);
        }
        connection.execute("INSERT INTO target(target) VALUES(?)", [Text(target)])?;
        let id = connection.last_insert_rowid();
        self.targets.insert(target.to_vec(), id);
        Ok(id)
    }

    fn put(
        &mut self,
        connection: &Connection,
        record: &Record,
        state: &StateChange,
    ) -> rusqlite::Result<()> {
        let target_id = self.target_id(connection, &record.target)?;
        let username = Text(&record.username);
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO replica VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(rusqlite::params![
                username,
                target_id,
                record.priority as u8,
                record.last_update.0,
                record.last_fast_sync.0,
                record.last_full_sync.0,
                record.last_success.0,
                record.failures,
                record.force_full,
                record.has_state,
                record.reason,
            ])?;
        match state {
            StateChange::Keep | StateChange::CopyFrom(_) => {}
            StateChange::Set(state) if !state.is_empty() => {
                connection
                    .prepare_cached("INSERT OR REPLACE INTO state VALUES(?, ?, ?)")?
                    .execute(rusqlite::params![username, target_id, state])?;
            }
            StateChange::Set(_) | StateChange::Forget => {
                forget_state(connection, &record.username, target_id)?;
            }
        }
        Ok(())
    }

    fn remove(
        &mut self,
        connection: &Connection,
        username: &[u8],
        target: &[u8],
    ) -> rusqlite::Result<()> {
        let Some(&target_id) = self.targets.get(target) else {
            return Ok(());
        };
        connection
            .prepare_cached("DELETE FROM replica WHERE username = ? AND target_id = ?")?
            .execute(rusqlite::params![Text(username), target_id])?;
        forget_state(connection, username, target_id)
    }
}

fn to_unreadable(error: impl std::fmt::Display) -> OpenError {
    OpenError::Unreadable(error.to_string())
}

fn forget_state(connection: &Connection, username: &[u8], target_id: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM state WHERE username = ? AND target_id = ?")?
        .execute(rusqlite::params![Text(username), target_id])?;
    Ok(())
}

fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// A line of a stock `replicator.db`:
/// `user, priority (0-3), last_update, last_fast_sync, last_full_sync, failed (0|1), state, last_success`.
fn parse_stock_line(line: &[u8], target: &[u8]) -> Option<(Record, StateChange)> {
    let fields: Vec<Vec<u8>> = strescape::split_tabescaped(line).collect();
    let number = |at: usize| {
        std::str::from_utf8(fields.get(at)?)
            .ok()?
            .parse::<u64>()
            .ok()
    };
    let seconds =
        |at: usize| number(at).map(|secs| UnixSecs(u32::try_from(secs).unwrap_or(u32::MAX)));
    let username = fields.first()?.clone();
    let is_name = !username.is_empty() && username.len() <= MAX_USERNAME_BYTES;
    if !is_name || username.contains(&0) || target.len() > MAX_TARGET_BYTES {
        return None;
    }
    let state = fields.get(6)?.clone();
    let record = Record {
        username,
        target: target.to_vec(),
        priority: Priority::from_number(u8::try_from(number(1)?).ok()?)?,
        last_update: seconds(2)?,
        last_fast_sync: seconds(3)?,
        last_full_sync: seconds(4)?,
        // Files of old versions end here.
        last_success: if fields.len() > 7 {
            seconds(7)?
        } else {
            UnixSecs(0)
        },
        failures: match number(5)? {
            0 => 0,
            1 => 1,
            _ => return None,
        },
        reason: String::new(),
        force_full: false,
        has_state: !state.is_empty(),
    };
    let state = if state.is_empty() {
        StateChange::Keep
    } else {
        StateChange::Set(state)
    };
    Some((record, state))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(directory: &Path) -> StoreOptions {
        StoreOptions {
            state_dir: directory.to_owned(),
            default_target: b"tcp:peer".to_vec(),
            boot_id: "boot-1".into(),
        }
    }

    struct Opened {
        store: Store,
        records: Vec<Record>,
        boot: Boot,
        logs: Vec<String>,
    }

    fn wait(store: &mut Store, mut done: impl FnMut(StoreEvent) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            store.handle_timeout(Mono(u64::MAX));
            if let Ok(event) = store.events.recv_timeout(Duration::from_millis(20)) {
                if done(event) {
                    return;
                }
            }
        }
        panic!("the store did not answer");
    }

    fn open(options: StoreOptions) -> Opened {
        let mut store = Store::open(options, || {}).unwrap();
        let (mut records, mut logs, mut boot) = (Vec::new(), Vec::new(), Boot::Trusted);
        wait(&mut store, |event| match event {
            StoreEvent::Loaded(batch) => {
                records.extend(batch);
                false
            }
            StoreEvent::Ready(ready) => {
                boot = ready;
                true
            }
            StoreEvent::Lost => {
                records.clear();
                false
            }
            StoreEvent::Log(_, text) => {
                logs.push(text);
                false
            }
            _ => false,
        });
        Opened {
            store,
            records,
            boot,
            logs,
        }
    }

    fn record(username: &str) -> Record {
        Record {
            username: username.into(),
            target: b"tcp:peer".to_vec(),
            priority: Priority::High,
            last_update: UnixSecs(1_700_000_000),
            failures: 3,
            reason: "peer is away".into(),
            ..Record::default()
        }
    }

    fn put(seq: u64, record: Record, state: StateChange) -> Write {
        Write {
            seq,
            change: RecordChange::Put { record, state },
        }
    }

    fn wait_stored(store: &mut Store, seq: u64) {
        wait(
            store,
            |event| matches!(event, StoreEvent::Stored(done) if done >= seq),
        );
    }

    fn read(store: &mut Store, username: &str) -> Vec<u8> {
        store.cached_states.clear();
        if let Some(state) = store.read_state(7, username.as_bytes(), b"tcp:peer") {
            return state;
        }
        let mut found = None;
        wait(store, |event| match event {
            StoreEvent::State { token: 7, state } => {
                found = Some(state);
                true
            }
            _ => false,
        });
        found.unwrap()
    }

    #[test]
    fn what_was_stored_is_there_after_reopening_state_and_all() {
        let directory = tempfile::tempdir().unwrap();
        let mut opened = open(options(directory.path()));
        assert_eq!(opened.boot, Boot::Unclean, "a new store knows nobody");
        let other = Record {
            username: vec![b'u', 0xff, 0xc3],
            has_state: true,
            ..record("x")
        };
        let store = &mut opened.store;
        store.write(
            Mono(0),
            put(1, record("u1"), StateChange::Set(b"S1".to_vec())),
        );
        store.write(Mono(0), put(2, other.clone(), StateChange::Keep));
        store.write(
            Mono(0),
            Write {
                seq: 3,
                change: RecordChange::BootSettled,
            },
        );
        assert_eq!(
            store.read_state(1, b"u1", b"tcp:peer"),
            Some(b"S1".to_vec())
        );
        wait_stored(store, 3);
        assert_eq!(read(store, "u1"), b"S1");
        opened.store.close();

        let mut opened = open(options(directory.path()));
        assert_eq!(opened.records, [record("u1"), other]);
        assert_eq!(opened.boot, Boot::Trusted);
        assert!(opened.logs.is_empty(), "{:?}", opened.logs);
        let store = &mut opened.store;
        assert_eq!(read(store, "u1"), b"S1");
        store.write(
            Mono(0),
            Write {
                seq: 1,
                change: RecordChange::Remove {
                    username: b"u1".to_vec(),
                    target: b"tcp:peer".to_vec(),
                },
            },
        );
        store.write(Mono(0), put(2, record("u1"), StateChange::Keep));
        wait_stored(store, 2);
        assert_eq!(read(store, "u1"), b"", "a removed record's state is gone");
    }

    #[test]
    fn only_a_boot_that_ended_uncleanly_is_distrusted() {
        let directory = tempfile::tempdir().unwrap();
        let mut opened = open(options(directory.path()));
        opened.store.write(
            Mono(0),
            Write {
                seq: 1,
                change: RecordChange::BootSettled,
            },
        );
        wait_stored(&mut opened.store, 1);
        opened.store.close();
        let next_boot = |id: &str| StoreOptions {
            boot_id: id.into(),
            ..options(directory.path())
        };
        let opened = open(next_boot("boot-2"));
        assert_eq!(opened.boot, Boot::Trusted, "it was closed cleanly");
        // As the file is when the machine loses its power now.
        let copy = tempfile::tempdir().unwrap();
        for suffix in ["", "-wal"] {
            let name = format!("{FILE_NAME}{suffix}");
            std::fs::copy(directory.path().join(&name), copy.path().join(&name)).unwrap();
        }
        let same = StoreOptions {
            boot_id: "boot-2".into(),
            ..options(copy.path())
        };
        assert_eq!(open(same).boot, Boot::Trusted, "the machine is still up");
        drop(opened);
        let copied = tempfile::tempdir().unwrap();
        let opened = open(next_boot("boot-2"));
        for suffix in ["", "-wal"] {
            let name = format!("{FILE_NAME}{suffix}");
            std::fs::copy(directory.path().join(&name), copied.path().join(&name)).unwrap();
        }
        drop(opened);
        let lost_power = StoreOptions {
            boot_id: "boot-3".into(),
            ..options(copied.path())
        };
        let opened = open(lost_power.clone());
        assert_eq!(opened.boot, Boot::Unclean);
        opened.store.close();
        assert_eq!(open(lost_power).boot, Boot::Unclean, "not yet settled");
    }

    #[test]
    fn an_unreadable_store_is_set_aside_and_said_once() {
        let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
        println!("SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for case in 0..12 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(FILE_NAME);
            let mut opened = open(options(directory.path()));
            for seq in 1..=200 {
                let record = record(&format!("user{seq}"));
                opened
                    .store
                    .write(Mono(0), put(seq, record, StateChange::Keep));
            }
            wait_stored(&mut opened.store, 200);
            opened.store.close();
            let mut bytes = std::fs::read(&path).unwrap();
            match case {
                0 => {
                    bytes =
                        b"not a database, but longer than a header of SQLite would be.".repeat(40)
                }
                1 => bytes.truncate(bytes.len() / 2),
                2 => bytes[68..72].fill(0xee),
                3 => bytes[60..64].copy_from_slice(&99_u32.to_be_bytes()),
                _ => {
                    let from = 1024 + random.usize(..bytes.len() - 2048);
                    random.fill(&mut bytes[from..from + 1024]);
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            let opened = open(options(directory.path()));
            let aside = std::fs::read_dir(directory.path())
                .unwrap()
                .filter(|entry| {
                    let name = entry.as_ref().unwrap().file_name();
                    name.to_string_lossy().contains(".corrupt-")
                })
                .count();
            if case < 4 {
                assert!(aside >= 1, "case {case}");
            }
            if aside > 0 {
                assert_eq!(opened.records, []);
                assert_eq!(opened.boot, Boot::Unclean);
                assert_eq!(opened.logs.len(), 1, "{:?}", opened.logs);
            }
        }
    }

    #[test]
    fn a_second_process_waits_until_the_first_hands_over() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = open(options(directory.path()));
        let mut second = Store::open(options(directory.path()), || {}).unwrap();
        assert!(
            second
                .events
                .recv_timeout(Duration::from_millis(200))
                .is_err()
        );
        first
            .store
            .write(Mono(0), put(1, record("late"), StateChange::Keep));
        first.store.close();
        let mut records = Vec::new();
        wait(&mut second, |event| match event {
            StoreEvent::Loaded(batch) => {
                records.extend(batch);
                false
            }
            StoreEvent::Ready(_) => true,
            _ => false,
        });
        assert_eq!(records, [record("late")]);
    }

    #[test]
    fn a_full_disk_is_said_once_and_nothing_is_reported_stored_until_it_has_room() {
        let directory = tempfile::tempdir().unwrap();
        let mut opened = open(options(directory.path()));
        let store = &mut opened.store;
        store.set_max_pages(20);
        let count = 2000;
        for seq in 1..=count {
            store.write(
                Mono(0),
                put(seq, record(&format!("user{seq}")), StateChange::Keep),
            );
        }
        let mut errors = Vec::new();
        let mut stored = 0;
        let end = Instant::now() + Duration::from_millis(2500);
        while Instant::now() < end {
            store.handle_timeout(Mono(u64::MAX));
            match store.events.recv_timeout(Duration::from_millis(50)) {
                Ok(StoreEvent::Log(Level::Error, text)) => errors.push(text),
                Ok(StoreEvent::Stored(seq)) => stored = seq,
                _ => {}
            }
        }
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(stored < count);
        store.set_max_pages(1_000_000);
        wait_stored(store, count);
        opened.store.close();
        assert_eq!(open(options(directory.path())).records.len(), 2000);
    }

    #[test]
    fn a_stock_replicator_db_is_taken_over_once_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let stock = directory.path().join(STOCK_FILE_NAME);
        let content = "u1\t2\t1700000000\t1700000001\t1700000002\t1\tAbC=\t1700000003\n\
             bad line\n\
             u2\t9\t1\t1\t1\t0\t\t1\n\
             a\u{1}tb\t0\t1\t2\t3\t0\t\t4\n\
             torn\t1\t17";
        std::fs::write(&stock, content).unwrap();
        let mut opened = open(options(directory.path()));
        let expected = Record {
            username: b"u1".to_vec(),
            target: b"tcp:peer".to_vec(),
            priority: Priority::High,
            last_update: UnixSecs(1_700_000_000),
            last_fast_sync: UnixSecs(1_700_000_001),
            last_full_sync: UnixSecs(1_700_000_002),
            last_success: UnixSecs(1_700_000_003),
            failures: 1,
            has_state: true,
            ..Record::default()
        };
        assert_eq!(opened.records.len(), 2);
        assert_eq!(opened.records[0].username, b"a\tb");
        assert_eq!(opened.records[1], expected);
        assert_eq!(read(&mut opened.store, "u1"), b"AbC=");
        assert!(
            opened.logs[0].contains("2 users taken over, 3 lines"),
            "{:?}",
            opened.logs
        );
        opened.store.close();
        assert_eq!(std::fs::read_to_string(&stock).unwrap(), content);
        std::fs::write(&stock, "u9\t0\t0\t0\t0\t0\t\t0\n").unwrap();
        assert_eq!(open(options(directory.path())).records.len(), 2);
    }

    /// `cargo test --release ... -- --ignored --nocapture measure_`
    #[test]
    #[ignore = "a measurement"]
    fn measure_a_million_records() {
        let temporary = tempfile::tempdir().unwrap();
        let directory =
            std::env::var("STORE_DIR").map_or_else(|_| temporary.path().to_owned(), PathBuf::from);
        let count = 1_000_000;
        if !directory.join(FILE_NAME).exists() {
            let mut opened = open(options(&directory));
            let begun = Instant::now();
            for seq in 1..=count {
                let user = format!("user{seq:07}@example.com");
                let change = StateChange::Set(b"AQAAAHm4+Jk=".to_vec());
                opened.store.write(Mono(0), put(seq, record(&user), change));
                while opened.store.events.try_recv().is_ok() {}
            }
            let last = |event| matches!(event, StoreEvent::Stored(seq) if seq == count);
            wait(&mut opened.store, last);
            println!("{count} records written in {:?}", begun.elapsed());
            opened.store.close();
        }
        let begun = Instant::now();
        let mut store = Store::open(options(&directory), || {}).unwrap();
        let mut loaded = 0;
        wait(&mut store, |event| match event {
            StoreEvent::Loaded(records) => {
                loaded += records.len();
                false
            }
            event => matches!(event, StoreEvent::Ready(_)),
        });
        println!("{loaded} records loaded in {:?}", begun.elapsed());
    }

    #[test]
    fn a_state_is_copied_as_the_writes_before_it_left_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut opened = open(options(directory.path()));
        let store = &mut opened.store;
        let unknown = Record {
            target: vec![],
            ..record("u")
        };
        let copy = |seq| put(seq, record("u"), StateChange::CopyFrom(vec![]));
        let remove = |seq| Write {
            seq,
            change: RecordChange::Remove {
                username: b"u".to_vec(),
                target: vec![],
            },
        };
        store.write(
            Mono(0),
            put(1, unknown.clone(), StateChange::Set(b"S".to_vec())),
        );
        store.write(Mono(0), copy(2));
        store.write(Mono(0), remove(3));
        assert_eq!(read(store, "u"), b"S");
        store.write(Mono(0), put(4, unknown, StateChange::Set(b"T".to_vec())));
        wait_stored(store, 4);
        store.write(Mono(0), copy(5));
        store.write(Mono(0), remove(6));
        wait_stored(store, 6);
        assert_eq!(read(store, "u"), b"T");
        opened.store.close();
        let mut opened = open(options(directory.path()));
        assert_eq!(opened.records, [record("u")]);
        assert_eq!(read(&mut opened.store, "u"), b"T");
    }

    #[test]
    fn writes_of_one_record_are_merged_with_what_becomes_of_its_state() {
        let mut batch = Batch::default();
        batch.add(put(1, record("u"), StateChange::Set(b"S".to_vec())));
        batch.add(put(2, record("u"), StateChange::Keep));
        let key = key_of(b"u", b"tcp:peer");
        assert_eq!(batch.changes.len(), 1);
        assert_eq!(batch.state_of(&key), Some(&b"S"[..]));
        batch.add(Write {
            seq: 3,
            change: RecordChange::Remove {
                username: b"u".to_vec(),
                target: b"tcp:peer".to_vec(),
            },
        });
        batch.add(put(4, record("u"), StateChange::Keep));
        assert_eq!(batch.state_of(&key), Some(&b""[..]));
        assert_eq!((batch.changes.len(), batch.last_seq), (1, 4));
    }
}
