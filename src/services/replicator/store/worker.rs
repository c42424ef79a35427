//! The thread that owns the database: its lock, its life, and what a full disk or a corrupt file leads to.

use super::*;

pub(super) struct Worker {
    pub(super) options: StoreOptions,
    pub(super) commands: Receiver<Command>,
    pub(super) events: SyncSender<StoreEvent>,
    pub(super) wake: Box<dyn Fn() + Send>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) targets: FastMap<Vec<u8>, i64>,
    pub(super) unsaved: Batch,
    pub(super) failing: bool,
    /// What the boot was found to be, until the disk has it that the store is in use.
    pub(super) unmarked: Option<Boot>,
}

impl Worker {
    pub(super) fn run(&mut self) {
        let Some(_lock) = self.lock() else { return };
        let was_emptied = std::fs::metadata(self.path()).is_ok_and(|file| file.len() == 0);
        if was_emptied {
            let text = format!(
                "{} is empty; all users will be synced",
                self.path().display()
            );
            self.log(Level::Error, text);
        }
        let Some(mut connection) = self.open_and_load(was_emptied) else {
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

    pub(super) fn send(&self, event: StoreEvent) {
        // The receiver is gone only when the process ends.
        if self.events.send(event).is_ok() {
            (self.wake)();
        }
    }

    /// With the next event that is sent.
    pub(super) fn send_unannounced(&self, event: StoreEvent) {
        if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
            self.send(event);
        }
    }

    pub(super) fn log(&self, level: Level, text: String) {
        self.send(StoreEvent::Log(level, text));
    }

    pub(super) fn path(&self) -> PathBuf {
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
                Ok(connection) => {
                    let boot = self.read_boot(&connection).unwrap_or_else(|error| {
                        self.log(Level::Error, format!("{}: {error}", self.path().display()));
                        Boot::Unclean
                    });
                    self.unmarked = Some(boot);
                    self.send(StoreEvent::Ready(if lost { Boot::Unclean } else { boot }));
                    // Nobody waits for the disk. What fails is tried again, and said, before the first commit.
                    let _ = self.mark_in_use(&connection);
                    return Some(connection);
                }
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
            Command::ReadStates { asked, ahead } => self.read_states(connection, asked, ahead),
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
        let committed = self
            .mark_in_use(connection)
            .and_then(|()| self.commit(connection, &batch));
        match committed {
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
}
