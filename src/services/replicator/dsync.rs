//! The dsyncs that run: a connection to `doveadm-server` each, and the process behind it.
//!
//! A connection whose server says that it is ready for another sync waits for one ([`super::idle`]). The process that serves it
//! is known by the credentials that the kernel puts on its greeting; it is told to end when a sync is
//! aborted, for closing the connection does not end it.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use mio::Token;

use super::idle::{SYNCS_MAX, Worker};
use super::process::End;
use super::socket::{Input, Socket};
use super::{Peer, Replicator, Turn, process};
use crate::engine::protocol::doveadm_server::{self, Code, Event, Reply};
use crate::engine::protocol::replicator_doveadm;
use crate::engine::protocol::replicator_notify::printable;
use crate::engine::replicator::{Mailboxes, SyncId, SyncOutcome, SyncType};
use crate::engine::sync_state;
use crate::engine::time::{Mono, Now};

/// A command without its state, about.
const COMMAND_BYTES: usize = 128;
/// From the request to end to the force, and from there to giving up waiting.
const KILL_AFTER: Duration = Duration::from_secs(5);
const GIVE_UP_AFTER: Duration = Duration::from_secs(7);

/// A process that serves a connection greets at once.
const GREETING_DUE_AFTER: Duration = Duration::from_secs(1);

/// A sync whose state is on its way from the store.
pub(super) struct WaitingForState {
    pub(super) username: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) full: bool,
    pub(super) from_state: bool,
    pub(super) mailboxes: Mailboxes,
    /// The state has them.
    pub(super) has_mailboxes: bool,
}

impl WaitingForState {
    pub(super) const fn sync_type(&self) -> SyncType {
        match self.full {
            true => SyncType::Full,
            false => SyncType::Incremental,
        }
    }
}

/// A dsync that runs.
pub(super) struct Dsync {
    sync: SyncId,
    began: Mono,
    username: Vec<u8>,
    sync_type: SyncType,
    worker: Worker,
    /// The command: until the server is ready for it, or, where the connection served another before, until it says anything.
    command: Option<Vec<u8>>,
    io_bytes: u64,
    last_error: String,
    /// For want of an error.
    last_warning: String,
    /// One of the lines, whatever its level and whatever came after it, says that the state is of no use.
    refuses_state: bool,
    outcome: Option<SyncOutcome>,
    aborting: Option<Aborting>,
}

struct Aborting {
    next_step: Mono,
    at_once: bool,
    killed: bool,
}

impl Dsync {
    fn new(
        now: Now,
        sync: SyncId,
        username: Vec<u8>,
        sync_type: SyncType,
        worker: Worker,
        command: Option<Vec<u8>>,
    ) -> Self {
        Self {
            sync,
            began: now.mono,
            username,
            sync_type,
            worker,
            command,
            io_bytes: 0,
            last_error: String::new(),
            last_warning: String::new(),
            refuses_state: false,
            outcome: None,
            aborting: None,
        }
    }

    fn is_to_end_at_once(&self) -> bool {
        self.aborting
            .as_ref()
            .is_some_and(|aborting| aborting.at_once)
    }

    pub(super) const fn worker(&self) -> &Worker {
        &self.worker
    }

    fn status(&self) -> &'static str {
        if !self.worker.reader.is_handshaked() {
            "Waiting for handshake"
        } else if self.worker.reader.is_state_received() {
            "Waiting for dsync to finish (second line)"
        } else {
            "Waiting for dsync to finish"
        }
    }
}

impl Replicator {
    pub(super) fn start_sync(
        &mut self,
        now: Now,
        sync: SyncId,
        waiting: WaitingForState,
        has_state: bool,
    ) {
        let state = match &mut self.store {
            Some(store) if has_state => {
                store.read_state(sync.0, &waiting.username, &waiting.target)
            }
            Some(_) => Some(Vec::new()),
            None => return,
        };
        self.most_syncs = self
            .most_syncs
            .max(self.syncs.len() + self.waiting_for_state.len() + 1);
        match state {
            Some(state) => self.handle_state(now, sync, waiting, state),
            None => {
                self.waiting_for_state.insert(sync, waiting);
            }
        }
    }

    pub(super) fn connect_dsync(
        &mut self,
        now: Now,
        sync: SyncId,
        waiting: WaitingForState,
        state: &[u8],
    ) {
        let sync_type = waiting.sync_type();
        let WaitingForState {
            username,
            target,
            full,
            from_state,
            has_mailboxes,
            ..
        } = waiting;
        let all_of_state = match from_state {
            true => sync_state::without_modseqs(state),
            false => None,
        };
        let (with_f, state) = match &all_of_state {
            Some(all) => (false, all.as_slice()),
            None => (full && !has_mailboxes, state),
        };
        let parameters = match self.several_replicas.contains(&username) {
            true => &self.parameters_of_several,
            false => &self.parameters,
        };
        let arguments = parameters.arguments(&target, with_f, state);
        let mut command = Vec::with_capacity(COMMAND_BYTES + state.len());
        doveadm_server::append_command(&mut command, &username, "sync", arguments);
        match self.take_idle(now, &username) {
            Some((slot, mut socket, worker)) => {
                socket.output().extend_from_slice(&command);
                socket.flush();
                let watched = socket.watch_room(self.poll.registry(), Token(slot));
                let dsync = Dsync::new(now, sync, username, sync_type, worker, Some(command));
                self.put_dsync(slot, socket, dsync);
                if watched.is_err() {
                    // Its turn finds it, and begins anew.
                    self.queue(slot);
                }
            }
            None => self.connect_anew(now, sync, username, sync_type, command),
        }
    }

    /// Runs the command on a connection of its own.
    fn connect_anew(
        &mut self,
        now: Now,
        sync: SyncId,
        username: Vec<u8>,
        sync_type: SyncType,
        command: Vec<u8>,
    ) {
        let slot = self.free_slot();
        let (socket, command) = match self.connect_to_doveadm(slot, command) {
            Ok(connected) => connected,
            Err(reason) => return self.not_connected(now, slot, sync, &reason),
        };
        self.doveadm_connect_failed = None;
        let dsync = Dsync::new(now, sync, username, sync_type, Worker::default(), command);
        self.put_dsync(slot, socket, dsync);
    }

    pub(super) fn not_connected(&mut self, now: Now, slot: usize, sync: SyncId, reason: &str) {
        self.free.push(slot);
        self.doveadm_connect_failed = Some(now.mono);
        self.finish_sync(now, sync, SyncOutcome::NotStarted, reason);
    }

    /// The server wants the password. It may be that there is none to be sent.
    pub(super) fn send_password(&mut self, socket: &mut Socket) -> Result<(), String> {
        self.doveadm_preauthenticated = Some(false);
        let password = self.settings.doveadm_password.as_bytes();
        if password.is_empty() {
            let path = self
                .settings
                .socket_path(&self.settings.doveadm_socket_path);
            return Err(format!(
                "{} wants a password: set doveadm_password, or give the socket mode=0600",
                path.display()
            ));
        }
        doveadm_server::append_password(socket.output(), password);
        socket.flush();
        Ok(())
    }

    /// A connection of its own for a command, which is given back if it has to wait until the server is ready for it.
    pub(super) fn connect_to_doveadm(
        &mut self,
        slot: usize,
        command: Vec<u8>,
    ) -> Result<(Socket, Option<Vec<u8>>), String> {
        let path = self
            .settings
            .socket_path(&self.settings.doveadm_socket_path);
        let is_preauthenticated = *self.doveadm_preauthenticated.get_or_insert_with(|| {
            std::fs::metadata(&path).is_ok_and(|socket| socket.mode() & 0o777 == 0o600)
        });
        let mut hello = Vec::with_capacity(COMMAND_BYTES + command.len());
        doveadm_server::append_hello(&mut hello);
        let command = match is_preauthenticated {
            true => {
                hello.extend_from_slice(&command);
                None
            }
            false => Some(command),
        };
        let connected = Socket::connect_and_say(&path, self.poll.registry(), Token(slot), hello);
        if connected.is_err() {
            self.doveadm_preauthenticated = None;
        }
        Ok((connected?, command))
    }

    fn put_dsync(&mut self, slot: usize, socket: Socket, dsync: Dsync) {
        self.syncs.insert(dsync.sync, slot);
        self.put(slot, socket, Peer::Dsync(dsync));
    }

    pub(super) fn serve_dsync(&mut self, now: Now, socket: &mut Socket, dsync: &mut Dsync) -> Turn {
        let mut buffer = std::mem::take(&mut self.buffer);
        let turn = loop {
            let input = if dsync.worker.pid.is_none() {
                let (input, pid) = socket.read_with_sender(&mut buffer);
                dsync.worker.pid = pid;
                if let Some(pid) = pid.filter(|_| dsync.is_to_end_at_once()) {
                    process::end(pid, End::AtOnce);
                }
                input
            } else {
                socket.read(&mut buffer)
            };
            match input {
                Input::Blocked => break Turn::Wait,
                Input::Closed => break Turn::Close,
                Input::Data(length) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    dsync.worker.reader.push(bytes);
                }
            }
            if dsync.worker.syncs > 0 {
                dsync.command = None;
            }
            if let Some(turn) = self.take_dsync_events(now, socket, dsync) {
                break turn;
            }
            self.engine.handle_sync_progress(now, dsync.sync);
        };
        self.buffer = buffer;
        turn
    }

    /// Whether another connection has waited for its process: `service doveadm` has no more of them, and this one's is to be free.
    fn is_greeting_overdue(&self, now: Now) -> bool {
        self.syncs.values().any(|&slot| {
            let Some(Some(connection)) = self.connections.get(slot) else {
                return false;
            };
            match &connection.peer {
                Peer::Dsync(other) => {
                    !other.worker.reader.is_handshaked()
                        && now.mono.since(other.began) >= GREETING_DUE_AFTER
                }
                _ => false,
            }
        })
    }

    fn take_dsync_events(
        &mut self,
        now: Now,
        socket: &mut Socket,
        dsync: &mut Dsync,
    ) -> Option<Turn> {
        loop {
            match dsync.worker.reader.next_event() {
                Ok(None) => return None,
                Ok(Some(Event::StateReceived)) => {}
                Ok(Some(Event::Error(text))) => {
                    dsync.refuses_state |= is_refused_state(&text);
                    dsync.last_error = text;
                }
                Ok(Some(Event::Warning(text))) => {
                    dsync.refuses_state |= is_refused_state(&text);
                    dsync.last_warning = text;
                }
                Ok(Some(Event::Finished(reply))) => {
                    let is_ready = reply.ready;
                    let outcome = outcome_of(reply, &dsync.last_error, dsync.refuses_state);
                    let is_well = matches!(
                        outcome,
                        SyncOutcome::Ok { .. } | SyncOutcome::Changed { .. }
                    );
                    dsync.outcome = Some(outcome);
                    dsync.worker.syncs += 1;
                    let goes_on = is_ready
                        && is_well
                        && !self.is_greeting_overdue(now)
                        && dsync.aborting.is_none()
                        // It would not be told a second time.
                        && !socket.is_ending()
                        && dsync.worker.syncs < SYNCS_MAX
                        && dsync.worker.reader.begin_another();
                    return Some(if goes_on { Turn::Idle } else { Turn::Close });
                }
                Ok(Some(Event::Ready)) => {
                    send_command(socket, &mut dsync.command);
                }
                Ok(Some(Event::PasswordWanted)) => {
                    if let Err(error) = self.send_password(socket) {
                        dsync.last_error = error;
                        dsync.outcome = Some(SyncOutcome::NotStarted);
                        return Some(Turn::Close);
                    }
                }
                Err(error) => {
                    dsync.last_error = error.to_string();
                    dsync.outcome = Some(if dsync.worker.reader.is_handshaked() {
                        SyncOutcome::Other("invalid input".into())
                    } else {
                        self.doveadm_preauthenticated = None;
                        SyncOutcome::NotStarted
                    });
                    return Some(Turn::Close);
                }
            }
        }
    }

    /// The sync is over, and its connection is for another.
    pub(super) fn rest_dsync(&mut self, now: Now, slot: usize, socket: Socket, mut dsync: Dsync) {
        let worker = std::mem::take(&mut dsync.worker);
        self.put_idle(now, slot, socket, worker, &dsync.username);
        self.finish_dsync(now, dsync);
    }

    /// The sync is over: by its answer, by the end of its connection, or given up.
    pub(super) fn finish_dsync(&mut self, now: Now, dsync: Dsync) {
        let is_abandoned = dsync.outcome.is_none() && dsync.aborting.is_none();
        if let Some(command) = dsync
            .command
            .filter(|_| is_abandoned && dsync.worker.syncs > 0)
        {
            // The process ended while the connection waited, or as it began: that says nothing of this sync.
            self.syncs.remove(&dsync.sync);
            self.connect_anew(now, dsync.sync, dsync.username, dsync.sync_type, command);
            return;
        }
        let outcome = match dsync.outcome {
            Some(outcome) => outcome,
            None if dsync.aborting.is_some() => SyncOutcome::Timeout,
            None if dsync.worker.reader.is_handshaked() => SyncOutcome::Eof,
            None => {
                self.doveadm_preauthenticated = None;
                SyncOutcome::NotStarted
            }
        };
        let reason = if !dsync.last_error.is_empty() {
            dsync.last_error
        } else if outcome == SyncOutcome::NotStarted {
            "doveadm-server disconnected before its greeting".to_owned()
        } else {
            dsync.last_warning
        };
        self.finish_sync(now, dsync.sync, outcome, &reason);
    }

    pub(super) fn abort_sync(&mut self, now: Now, sync: SyncId, reason: &str, at_once: bool) {
        if self.waiting_for_state.remove(&sync).is_some() {
            self.finish_sync(now, sync, SyncOutcome::Timeout, "");
            return;
        }
        let Some(&slot) = self.syncs.get(&sync) else {
            return;
        };
        let Some(connection) = self.connection(slot) else {
            return;
        };
        if matches!(connection.peer, Peer::MailboxList(_)) {
            if self.take(slot).is_some() {
                self.free.push(slot);
            }
            self.finish_sync(now, sync, SyncOutcome::Timeout, "");
            return;
        }
        // With our module the worker sees this and ends by itself, quietly; or does not begin.
        connection.socket.shutdown_write();
        let Peer::Dsync(dsync) = &mut connection.peer else {
            return;
        };
        let how = match at_once {
            true => End::AtOnce,
            false => End::Asked,
        };
        let has_process = dsync.worker.pid.is_some_and(|pid| process::end(pid, how));
        let process = match dsync.worker.pid.filter(|_| has_process) {
            Some(pid) => format!(" and its process {pid}"),
            None => String::new(),
        };
        // The process is known when it greets.
        let is_ending = has_process || at_once && dsync.worker.pid.is_none();
        // At once: it is only begun anew.
        let level = match at_once {
            true => log::Level::Info,
            false => log::Level::Warn,
        };
        log::log!(
            level,
            "{}: {reason}: the connection of its dsync{process} will be ended",
            printable(&dsync.username)
        );
        dsync.aborting = Some(Aborting {
            next_step: if is_ending {
                now.mono + KILL_AFTER
            } else {
                now.mono
            },
            at_once,
            killed: !is_ending,
        });
        self.aborting.push(sync);
    }

    pub(super) fn next_abort_step(&self) -> Option<Mono> {
        self.aborting
            .iter()
            .filter_map(|sync| {
                match &self.connections.get(*self.syncs.get(sync)?)?.as_ref()?.peer {
                    Peer::Dsync(dsync) => dsync.aborting.as_ref().map(|a| a.next_step),
                    _ => None,
                }
            })
            .min()
    }

    pub(super) fn continue_aborts(&mut self, now: Now) {
        for sync in self.aborting.clone() {
            let Some(&slot) = self.syncs.get(&sync) else {
                continue;
            };
            let Some(Peer::Dsync(dsync)) = self.connection(slot).map(|c| &mut c.peer) else {
                continue;
            };
            let pid = dsync.worker.pid;
            let Some(aborting) = dsync.aborting.as_mut() else {
                continue;
            };
            if aborting.next_step > now.mono {
                continue;
            }
            if !aborting.killed && pid.is_some_and(|pid| process::end(pid, End::Killed)) {
                aborting.killed = true;
                aborting.next_step = now.mono + (GIVE_UP_AFTER - KILL_AFTER);
                continue;
            }
            if let Some(connection) = self.take(slot) {
                self.close(now, slot, connection);
                self.drive(now);
            }
        }
    }

    pub(super) fn progress_interval(&self) -> Duration {
        let quarter = self.settings.replication_sync_deadline / 4;
        quarter.clamp(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// Tells the engine of the dsyncs whose processes have read or written since the last look.
    pub(super) fn check_progress(&mut self, now: Now) {
        let slots: Vec<usize> = self.syncs.values().copied().collect();
        for slot in slots {
            let Some(Peer::Dsync(dsync)) = self.connection(slot).map(|c| &mut c.peer) else {
                continue;
            };
            let Some(bytes) = dsync.worker.pid.and_then(process::io_bytes) else {
                continue;
            };
            if std::mem::replace(&mut dsync.io_bytes, bytes) != bytes {
                let sync = dsync.sync;
                self.engine.handle_sync_progress(now, sync);
            }
        }
    }

    /// The lines of STATUS-DSYNC: the connections at work, then the idle ones that there have been.
    pub(super) fn append_dsync_status(&self, now: Now, out: &mut Vec<u8>) {
        let mut lines = 0;
        for connection in self.connections.iter().flatten() {
            let (sync, status) = match &connection.peer {
                Peer::Dsync(dsync) => {
                    ((dsync.username.as_slice(), dsync.sync_type), dsync.status())
                }
                Peer::MailboxList(list) => {
                    ((list.username(), list.sync_type()), "Waiting for handshake")
                }
                _ => continue,
            };
            replicator_doveadm::append_dsync_status(out, Some(sync), status);
            lines += 1;
        }
        for waiting in self.waiting_for_state.values() {
            let sync = Some((waiting.username.as_slice(), waiting.sync_type()));
            replicator_doveadm::append_dsync_status(out, sync, "Waiting for handshake");
            lines += 1;
        }
        let spare = self.most_syncs.min(self.engine.max_conns());
        let spare = spare.saturating_sub(lines);
        let idle = self.idle.count().min(spare);
        for _ in 0..idle {
            replicator_doveadm::append_dsync_status(out, None, "Idle");
        }
        let away = match self.doveadm_connect_failed {
            None => "Not connected".to_owned(),
            Some(at) => format!(
                "Failed to connect to '{}' - last attempt {} secs ago",
                self.settings.doveadm_socket_path.display(),
                now.mono.since(at).as_secs()
            ),
        };
        for _ in idle..spare {
            replicator_doveadm::append_dsync_status(out, None, &away);
        }
    }
}

/// The server is ready for it.
pub(super) fn send_command(socket: &mut Socket, command: &mut Option<Vec<u8>>) {
    if let Some(command) = command.take() {
        socket.output().extend_from_slice(&command);
        socket.flush();
    }
}

fn outcome_of(reply: Reply, last_error: &str, refuses_state: bool) -> SyncOutcome {
    let outcome = match reply.code {
        Code::Ok => return SyncOutcome::Ok { state: reply.state },
        Code::Changed => return SyncOutcome::Changed { state: reply.state },
        // 2.3: "dsync must be run again without the state", also where it had none.
        Code::Other(word) if is_unspecified(&word) && last_error.is_empty() => {
            return SyncOutcome::Changed { state: reply.state };
        }
        Code::NoUser => SyncOutcome::NoUser,
        Code::NoReplicate => SyncOutcome::NoReplicate,
        Code::NotFound => SyncOutcome::NotFound,
        Code::NoPerm => SyncOutcome::NoPerm,
        Code::TempFail => SyncOutcome::TempFail,
        Code::Usage => SyncOutcome::Usage,
        Code::Other(word) => SyncOutcome::Other(word),
    };
    let is_passing = matches!(outcome, SyncOutcome::TempFail | SyncOutcome::Other(_));
    if is_passing && is_refused_parameter(last_error) {
        return SyncOutcome::Usage;
    }
    if is_passing && refuses_state {
        return SyncOutcome::StateRefused;
    }
    if is_passing && is_unreachable(last_error) {
        return SyncOutcome::PeerUnreachable;
    }
    if is_passing && is_locked(last_error) {
        return SyncOutcome::Locked;
    }
    outcome
}

/// The words for dsync's exit code 2 of 2.3.14 and later, and before.
fn is_unspecified(word: &str) -> bool {
    matches!(word, "UNKNOWN" | "2")
}

/// dsync could not read the state that it was given, or not go on from it (`dsync-brain.c`: "Saved sync state is invalid",
/// `dsync-brain-mailbox.c`: "Failed to do incremental sync for mailbox NAME, retry with a full sync", which 2.3 says as a warning).
fn is_refused_state(line: &str) -> bool {
    line.contains("sync state is invalid") || line.contains(", retry with a full sync")
}

/// The lock of the user, or of a mailbox, by which dsyncs keep each other out (`dsync-brain.c`, `dsync-mailbox.c`).
fn is_locked(error: &str) -> bool {
    let is_user = error.contains("Couldn't lock ") && error.contains(".dovecot-sync.lock");
    let is_mailbox = error.contains("Failed to lock mailbox ") && error.contains(" for dsyncing");
    (is_user || is_mailbox) && error.contains("Timed out")
}

/// 2.3.13 answers a bare `-` to parameters that it does not know, where later ones answer USAGE.
fn is_refused_parameter(error: &str) -> bool {
    error.contains("Client sent unknown parameter")
}

/// dsync never reached its peer.
fn is_unreachable(error: &str) -> bool {
    error.contains("connect(") && error.contains(") failed: ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::healing::locked_at_peer;

    fn changed(state: &[u8]) -> SyncOutcome {
        let state = state.to_vec();
        SyncOutcome::Changed { state }
    }

    #[test]
    fn the_last_logged_error_tells_a_failure_from_another() {
        let outcome = |code: Code, error: &str| {
            let state = b"S".to_vec();
            let reply = Reply {
                code,
                state,
                ready: false,
            };
            outcome_of(reply, error, is_refused_state(error))
        };
        let refused = "Saved sync state is invalid, falling back to full sync: x";
        let away = "connect(10.0.0.1:12345) failed: No route to host";
        assert_eq!(outcome(Code::TempFail, refused), SyncOutcome::StateRefused);
        let stale = "Failed to do incremental sync for mailbox INBOX, retry with a full sync (Modseq 108 no longer in transaction log)";
        assert_eq!(outcome(Code::TempFail, stale), SyncOutcome::StateRefused);
        assert_eq!(outcome(Code::TempFail, away), SyncOutcome::PeerUnreachable);
        assert_eq!(outcome(Code::TempFail, "other"), SyncOutcome::TempFail);
        assert_eq!(outcome(Code::Usage, away), SyncOutcome::Usage);
        let unknown = "doveadm sync: Client sent unknown parameter: ?";
        let bare = Code::Other(String::new());
        assert_eq!(outcome(bare, unknown), SyncOutcome::Usage);
        assert_eq!(outcome(Code::Changed, refused), changed(b"S"));
        let ok = SyncOutcome::Ok {
            state: b"S".to_vec(),
        };
        assert_eq!(outcome(Code::Ok, refused), ok);
    }

    #[test]
    fn sync_that_a_change_ended_goes_on_from_the_state_that_it_told_or_from_none() {
        let outcome = |code: Code, state: &[u8]| {
            let (state, ready) = (state.to_vec(), false);
            outcome_of(Reply { code, state, ready }, "", false)
        };
        assert_eq!(outcome(Code::Changed, b"S"), changed(b"S"));
        for code in [
            Code::Changed,
            Code::Other("UNKNOWN".into()),
            Code::Other("2".into()),
        ] {
            assert_eq!(outcome(code, b""), changed(b""));
        }
    }

    #[test]
    fn lock_of_another_dsync_is_known_in_its_words() {
        let outcome = |error: &str| {
            let (code, state, ready) = (Code::TempFail, Vec::new(), false);
            outcome_of(Reply { code, state, ready }, error, false)
        };
        for error in [
            "Couldn't lock /home/u/.dovecot-sync.lock: Timed out after 30 seconds",
            "Failed to lock mailbox INBOX for dsyncing: Timed out after 30 seconds",
            &locked_at_peer("node-a", 30),
        ] {
            assert_eq!(outcome(error), SyncOutcome::Locked);
        }
        let error = "Couldn't lock /home/u/.dovecot-sync.lock: open() failed: Permission denied";
        assert_eq!(outcome(error), SyncOutcome::TempFail);
    }
}
