//! The database: its tables, loading, and what a commit writes.

use super::*;

/// The statements of a [`Worker::put`], looked up once for all of a transaction.
pub(super) struct Puts<'c> {
    /// The record and its state.
    replace: CachedStatement<'c>,
    /// The record; its state stays.
    keep: CachedStatement<'c>,
}

impl<'c> Puts<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        let replace =
            "INSERT OR REPLACE INTO replica VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let keep = "INSERT INTO replica VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)
             ON CONFLICT(username, target_id) DO UPDATE SET
                 priority = excluded.priority, last_update = excluded.last_update,
                 last_fast_sync = excluded.last_fast_sync, last_full_sync = excluded.last_full_sync,
                 last_success = excluded.last_success, failures = excluded.failures,
                 force_full = excluded.force_full, has_state = excluded.has_state,
                 reason = excluded.reason, stale = excluded.stale";
        Ok(Self {
            replace: connection.prepare_cached(replace)?,
            keep: connection.prepare_cached(keep)?,
        })
    }
}

/// From version 1, which had the states in a table of their own: a sync wrote two rows.
const FROM_VERSION_1: &str = "
    ALTER TABLE replica ADD COLUMN state BLOB;
    UPDATE replica SET state = (SELECT state.state FROM state
        WHERE state.username = replica.username AND state.target_id = replica.target_id);
    DROP TABLE state;
    PRAGMA user_version = 2;";

impl Worker {
    pub(super) fn open(&mut self, lost: bool) -> Result<Connection, OpenError> {
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
        } else if version != VERSION && version != 1 {
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
        } else if version == 1 {
            let transaction = connection.transaction()?;
            transaction.execute_batch(FROM_VERSION_1)?;
            transaction.commit()?;
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
                 has_state INTEGER NOT NULL, reason TEXT NOT NULL, stale INTEGER NOT NULL,
                 state BLOB, PRIMARY KEY(username, target_id)) WITHOUT ROWID;
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

    pub(super) fn load(&self, connection: &Connection) -> Result<(), OpenError> {
        let targets: FastMap<i64, &Vec<u8>> = self
            .targets
            .iter()
            .map(|(target, id)| (*id, target))
            .collect();
        let mut statement = connection.prepare(
            "SELECT username, target_id, priority, last_update, last_fast_sync, last_full_sync,
                 last_success, failures, force_full, has_state, reason, stale FROM replica",
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
                stale: Stale::from_number(row.get(11)?)
                    .ok_or_else(|| OpenError::Unreadable("a mark is out of range".into()))?,
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
    pub(super) fn read_boot(&self, connection: &Connection) -> rusqlite::Result<Boot> {
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
        Ok(if same_boot || (stored.is_some() && clean == Some(true)) {
            Boot::Trusted
        } else {
            Boot::Unclean
        })
    }

    /// Sees to it that the disk has it that the store is in use, before anything is reported stored: were this
    /// lost with the power, the next boot would trust what it must not.
    pub(super) fn mark_in_use(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let Some(boot) = self.unmarked else {
            return Ok(());
        };
        if boot == Boot::Trusted {
            self.set_boot_id(connection)?;
        }
        connection.execute("INSERT OR REPLACE INTO meta VALUES('clean', 0)", [])?;
        checkpoint(connection)?;
        self.unmarked = None;
        Ok(())
    }

    pub(super) fn set_boot_id(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES('boot_id', ?)",
            [&self.options.boot_id],
        )?;
        Ok(())
    }

    /// Tells the states after all writes so far, saved or not.
    pub(super) fn read_states(&self, connection: &Connection, asked: Vec<Read>, ahead: Vec<Read>) {
        // One lock for all. Without a transaction each read has its own.
        let _transaction = connection.unchecked_transaction();
        let state = |read: &Read| self.newest_state(connection, &read.username, &read.target);
        let asked = asked.iter().map(|read| (read.token, state(read)));
        let asked = asked.collect();
        let ahead: Vec<_> = ahead
            .iter()
            .map(|read| (key_of(&read.username, &read.target), state(read)))
            .collect();
        // One wakeup for both: what was read ahead is there before more is asked for.
        if !ahead.is_empty() {
            self.send_unannounced(StoreEvent::StatesAhead(ahead));
        }
        self.send(StoreEvent::States(asked));
    }

    /// The state after all writes so far, saved or not.
    pub(super) fn newest_state(
        &self,
        connection: &Connection,
        username: &[u8],
        target: &[u8],
    ) -> Vec<u8> {
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

    pub(super) fn resolve_copies(&self, connection: &Connection, batch: &mut Batch) {
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
            .prepare_cached("SELECT state FROM replica WHERE username = ? AND target_id = ?")?;
        let state = statement
            .query_row(rusqlite::params![Text(username), target_id], |row| {
                Ok(row.get_ref(0)?.as_bytes_or_null()?.map(<[u8]>::to_vec))
            })
            .optional()?;
        Ok(state.flatten().unwrap_or_default())
    }

    pub(super) fn reload_targets(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached("SELECT id, target FROM target")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let target = row.get_ref(1)?.as_bytes()?.to_vec();
            self.targets.insert(target, row.get(0)?);
        }
        Ok(())
    }

    pub(super) fn commit(
        &mut self,
        connection: &mut Connection,
        batch: &Batch,
    ) -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        let mut puts = Puts::prepare(&transaction)?;
        for change in &batch.changes {
            match change {
                RecordChange::Put { record, state } => {
                    self.put(&transaction, &mut puts, record, state)?;
                }
                RecordChange::Remove { username, target } => {
                    self.remove(&transaction, username, target)?;
                }
                RecordChange::BootSettled => self.set_boot_id(&transaction)?,
            }
        }
        drop(puts);
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

    pub(super) fn put(
        &mut self,
        connection: &Connection,
        puts: &mut Puts<'_>,
        record: &Record,
        state: &StateChange,
    ) -> rusqlite::Result<()> {
        let target_id = self.target_id(connection, &record.target)?;
        let (statement, state) = match state {
            StateChange::Keep | StateChange::CopyFrom(_) => (&mut puts.keep, None),
            StateChange::Set(state) => (&mut puts.replace, Some(state).filter(|s| !s.is_empty())),
            StateChange::Forget => (&mut puts.replace, None),
        };
        let values: [&dyn ToSql; 12] = [
            &Text(&record.username),
            &target_id,
            &(record.priority as u8),
            &record.last_update.0,
            &record.last_fast_sync.0,
            &record.last_full_sync.0,
            &record.last_success.0,
            &record.failures,
            &record.force_full,
            &record.has_state,
            &record.reason,
            &(record.stale as u8),
        ];
        for (at, value) in values.into_iter().enumerate() {
            statement.raw_bind_parameter(at + 1, value)?;
        }
        if statement.parameter_count() > values.len() {
            statement.raw_bind_parameter(values.len() + 1, state)?;
        }
        statement.raw_execute()?;
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
        Ok(())
    }
}

fn to_unreadable(error: impl std::fmt::Display) -> OpenError {
    OpenError::Unreadable(error.to_string())
}

pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}
