//! Those who connect to the replicator: aggregators, and `doveadm replicator`.

use std::time::Duration;

use log::error;

use super::socket::{Input, Socket};
use super::{Replicator, Turn};
use crate::engine::protocol::replicator_doveadm::{self as protocol, Request, RequestReader};
use crate::engine::protocol::replicator_notify::{
    self, Incompatible, NotifyReader, Request as Notice,
};
use crate::engine::replicator::{CommandId, ConnectionId, Cursor, UserDetails};
use crate::engine::time::{Mono, Now, UnixSecs};
use crate::engine::{Priority, replicator::Activity};

/// Output of a listing that waits for its reader, in bytes; at this much no more is made.
const MAX_LISTING_BYTES: usize = 64 * 1024;
/// Users looked at in one turn of a listing.
const LISTING_PAGE_USERS: u32 = 512;
/// A doveadm that reads nothing of its output for so long is cut off.
const STUCK_CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// An aggregator.
pub(super) struct NotifyClient {
    pub(super) id: ConnectionId,
    reader: NotifyReader,
    greeted: bool,
    acknowledged: bool,
    /// The last line that the engine was told.
    last_told: u64,
    /// The last line that was read; lines after `last_told` meant nothing.
    last_read: u64,
    /// The last line that the engine acknowledged.
    last_safe: u64,
}

impl NotifyClient {
    pub(super) fn new(id: ConnectionId) -> Self {
        Self {
            id,
            reader: NotifyReader::new(),
            greeted: false,
            acknowledged: false,
            last_told: 0,
            last_read: 0,
            last_safe: 0,
        }
    }

    /// What to acknowledge now: lines that mean nothing are safe with the one before them.
    fn safe_line(&self) -> u64 {
        if self.last_safe >= self.last_told {
            self.last_read.max(self.last_safe)
        } else {
            self.last_safe
        }
    }
}

/// What a doveadm client waits for.
#[derive(Debug)]
enum Busy {
    No,
    Command(CommandId),
    Listing { mask: Vec<u8>, cursor: Cursor },
}

/// `doveadm replicator`, or a dsync process of this node.
pub(super) struct DoveadmClient {
    reader: RequestReader,
    busy: Busy,
    /// Whose sync, begun by the peer, the process serves.
    serves: Option<Vec<u8>>,
    unsent: usize,
    moved: Mono,
}

impl DoveadmClient {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            reader: RequestReader::new(),
            busy: Busy::No,
            serves: None,
            unsent: 0,
            moved: now,
        }
    }

    pub(super) fn is_stuck(&self, now: Mono, socket: &Socket) -> bool {
        socket.unsent() > 0
            && socket.unsent() == self.unsent
            && now.since(self.moved) >= STUCK_CLIENT_TIMEOUT
    }
}

/// Why no further line of an aggregator is served.
enum Lines {
    AllServed,
    NoRoom,
    Incompatible,
}

/// What an aggregator writes at once where many users changed; with less there is nothing to be won by looking ahead.
const BURST_BYTES: usize = 1024;

impl Replicator {
    pub(super) fn serve_notify(
        &mut self,
        now: Now,
        slot: usize,
        socket: &mut Socket,
        client: &mut NotifyClient,
    ) -> Turn {
        if !self.is_loaded && client.greeted {
            return Turn::Wait;
        }
        // What an earlier read brought and the engine had no room for.
        match self.serve_lines(now, socket, client) {
            Lines::AllServed => {}
            Lines::NoRoom => return self.stall(slot),
            Lines::Incompatible => return Turn::Close,
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let input = socket.read(&mut buffer);
        if let Input::Data(length) = input {
            client.reader.push(buffer.get(..length).unwrap_or_default());
        }
        self.buffer = buffer;
        match input {
            Input::Blocked => return Turn::Wait,
            Input::Closed => return Turn::Close,
            Input::Data(length) if length >= BURST_BYTES => {
                self.engine.look_ahead(client.reader.waiting_usernames());
            }
            Input::Data(_) => {}
        }
        match self.serve_lines(now, socket, client) {
            Lines::AllServed => Turn::after_read(socket),
            Lines::NoRoom => self.stall(slot),
            Lines::Incompatible => Turn::Close,
        }
    }

    /// The connection is served again when the engine has room; nothing is read from it until then.
    fn stall(&mut self, slot: usize) -> Turn {
        self.stalled.push(slot);
        Turn::Wait
    }

    /// Hands lines that were read to the engine, as long as it has room.
    fn serve_lines(&mut self, now: Now, socket: &mut Socket, client: &mut NotifyClient) -> Lines {
        let safe_before = client.safe_line();
        let served = loop {
            // An aggregator that is not answered for long takes this for stock's, whatever the store waits for.
            let has_room = match self.is_loaded {
                true => self.engine.accepts_notifications(),
                false => !client.greeted,
            };
            if !has_room {
                break Lines::NoRoom;
            }
            match client.reader.next_request() {
                Ok(None) => break Lines::AllServed,
                Ok(Some(notice)) => self.handle_notice(now, socket, client, notice),
                Err(Incompatible { line }) => {
                    error!(
                        "Notify client not compatible with this server (mixed old and new binaries?): {line}"
                    );
                    return Lines::Incompatible;
                }
            }
        };
        if client.acknowledged && client.safe_line() > safe_before {
            replicator_notify::append_acknowledged(socket.output(), client.safe_line());
        }
        socket.flush();
        served
    }

    fn handle_notice(
        &mut self,
        now: Now,
        socket: &mut Socket,
        client: &mut NotifyClient,
        notice: Notice,
    ) {
        match notice {
            Notice::Hello { acknowledged } => {
                client.acknowledged = acknowledged;
                client.greeted = true;
                if acknowledged {
                    replicator_notify::append_version(socket.output());
                }
            }
            Notice::Notify {
                username,
                priority,
                id,
            } => {
                if let Some(id) = id.filter(|_| client.acknowledged) {
                    client.last_told = id;
                    client.last_read = id;
                }
                if let (Priority::Sync, Some(id)) = (priority, id) {
                    self.engine.handle_sync_request(
                        now,
                        client.id,
                        &username,
                        id,
                        client.acknowledged,
                    );
                } else if priority == Priority::None {
                    self.invalid_notice(now, client, id, "priority none");
                } else {
                    let line = id.filter(|_| client.acknowledged);
                    self.engine
                        .handle_notification(now, client.id, &username, priority, line);
                }
            }
            Notice::Invalid { id, reason } => self.invalid_notice(now, client, id, &reason),
        }
    }

    fn invalid_notice(
        &mut self,
        now: Now,
        client: &mut NotifyClient,
        id: Option<u64>,
        reason: &str,
    ) {
        if let Some(id) = id.filter(|_| client.acknowledged) {
            client.last_read = client.last_read.max(id);
        }
        self.input_error(now, &format!("notify client sent invalid input: {reason}"));
    }

    pub(super) fn acknowledge(&mut self, slot: usize, line: u64) {
        let Some(super::Peer::Notify(client)) = self.connection(slot).map(|c| &mut c.peer) else {
            return;
        };
        let before = client.safe_line();
        client.last_safe = client.last_safe.max(line);
        let safe = client.safe_line();
        if client.acknowledged && safe > before {
            self.send(slot, |out| {
                replicator_notify::append_acknowledged(out, safe)
            });
        }
    }

    pub(super) fn command_answered(&mut self, slot: usize) {
        if let Some(super::Peer::Doveadm(client)) = self.connection(slot).map(|c| &mut c.peer) {
            client.busy = Busy::No;
            self.queue(slot);
        }
    }

    pub(super) fn serve_doveadm(
        &mut self,
        now: Now,
        slot: usize,
        socket: &mut Socket,
        client: &mut DoveadmClient,
    ) -> Turn {
        if socket.unsent() != client.unsent {
            client.unsent = socket.unsent();
            client.moved = now.mono;
        }
        if !self.is_loaded {
            return Turn::Wait;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let turn = self.continue_doveadm(now, slot, socket, client, &mut buffer);
        self.buffer = buffer;
        client.unsent = socket.unsent();
        turn
    }

    /// However its connection came to its end.
    pub(super) fn forget_doveadm(&mut self, now: Now, client: &DoveadmClient) {
        if let Busy::Command(command) = client.busy {
            self.commands.remove(&command);
        }
        if let Some(username) = &client.serves {
            self.engine.handle_peers_sync_cut_off(now, username);
            self.engine.handle_peers_sync_ended(now, username);
        }
    }

    fn continue_doveadm(
        &mut self,
        now: Now,
        slot: usize,
        socket: &mut Socket,
        client: &mut DoveadmClient,
        buffer: &mut [u8],
    ) -> Turn {
        loop {
            match &mut client.busy {
                Busy::Command(_) => return Turn::Wait,
                Busy::Listing { .. } if socket.unsent() >= MAX_LISTING_BYTES => return Turn::Wait,
                Busy::Listing { mask, cursor } => {
                    let out = socket.output();
                    let layout = self.settings.status_layout;
                    let next =
                        self.engine
                            .list(now, *cursor, LISTING_PAGE_USERS, mask, &mut |status| {
                                protocol::append_user_status(out, &status, layout)
                            });
                    match next {
                        Some(next) => *cursor = next,
                        None => {
                            out.push(b'\n');
                            client.busy = Busy::No;
                        }
                    }
                    return if socket.flush() {
                        Turn::Again
                    } else {
                        Turn::Close
                    };
                }
                Busy::No => {}
            }
            match client.reader.next_request() {
                Ok(Some(request)) => {
                    self.handle_request(now, slot, socket, client, request);
                    socket.flush();
                }
                Ok(None) => match socket.read(buffer) {
                    Input::Data(length) => {
                        client.reader.push(buffer.get(..length).unwrap_or_default());
                    }
                    Input::Blocked => return Turn::Wait,
                    Input::Closed => return Turn::Close,
                },
                Err(error) => {
                    self.input_error(now, &format!("doveadm-client: {error}"));
                    if error.ends_connection() {
                        return Turn::Close;
                    }
                }
            }
        }
    }

    fn handle_request(
        &mut self,
        now: Now,
        slot: usize,
        socket: &mut Socket,
        client: &mut DoveadmClient,
        request: Request,
    ) {
        let command = CommandId(self.new_id());
        let out = socket.output();
        match request {
            Request::Status => protocol::append_overview(out, &self.engine.counters()),
            Request::StatusUsers { mask } => {
                client.busy = Busy::Listing {
                    mask,
                    cursor: Cursor::default(),
                };
            }
            Request::StatusDsync => {
                self.append_dsync_status(now, out);
                out.push(b'\n');
            }
            Request::Show { username } => match self.engine.show(now, &username) {
                Some(details) => append_details(out, &details),
                None => out.extend_from_slice(protocol::USER_NOT_FOUND),
            },
            Request::Peers => {
                for peer in self.engine.peers(now) {
                    let reachable: &[u8] = match peer.reachable {
                        Some(true) => b"up",
                        Some(false) => b"down",
                        None => b"unknown",
                    };
                    let since = peer.since.0.to_string();
                    let waiting = peer.waiting.to_string();
                    let users = peer.users.to_string();
                    let next_probe = peer.next_probe_secs.map(|secs| secs.to_string());
                    let fields = [
                        &peer.target,
                        reachable,
                        since.as_bytes(),
                        waiting.as_bytes(),
                        peer.reason.as_bytes(),
                        next_probe.as_deref().unwrap_or_default().as_bytes(),
                        users.as_bytes(),
                        peer.same_hostname.as_bytes(),
                    ];
                    protocol::append_fields(out, fields);
                }
                out.push(b'\n');
            }
            Request::Observed { username, observed } => {
                self.engine.handle_observed(now, &username, &observed);
                out.extend_from_slice(protocol::OK);
            }
            Request::Serving { username } => {
                self.engine.handle_peers_sync_begun(now, &username);
                if let Some(before) = client.serves.replace(username) {
                    self.engine.handle_peers_sync_ended(now, &before);
                }
            }
            Request::Served => {
                if let Some(username) = client.serves.take() {
                    self.engine.handle_peers_sync_ended(now, &username);
                }
            }
            Request::Metrics => {
                self.append_metrics(out);
                out.push(b'\n');
            }
            Request::Replicate { priority: None, .. } => {
                out.extend_from_slice(protocol::INVALID_PRIORITY);
            }
            Request::Replicate {
                priority: Some(priority),
                full,
                mask,
            } => {
                self.wait_for(command, slot, client);
                self.engine
                    .handle_replicate(now, command, priority, full, &mask);
            }
            Request::Add { mask } => {
                self.wait_for(command, slot, client);
                self.engine.handle_add(now, command, &mask);
            }
            Request::Remove { username } => {
                self.wait_for(command, slot, client);
                self.engine.handle_remove(now, command, &username);
            }
            Request::Notify {
                username,
                full,
                state,
            } => {
                self.wait_for(command, slot, client);
                self.engine
                    .handle_notify(now, command, &username, full, &state);
            }
        }
    }

    fn wait_for(&mut self, command: CommandId, slot: usize, client: &mut DoveadmClient) {
        client.busy = Busy::Command(command);
        self.commands.insert(command, slot);
    }

    fn append_metrics(&self, out: &mut Vec<u8>) {
        let totals = self.engine.totals();
        for (name, number) in [
            ("notifications", totals.notifications),
            ("dropped_unknown", totals.dropped_unknown),
            ("dropped_not_replicated", totals.dropped_not_replicated),
            ("syncs_started", totals.syncs_started),
            ("full_syncs_started", totals.full_syncs_started),
            ("settling_syncs_started", totals.settling_syncs_started),
            ("syncs_ok", totals.syncs_ok),
            ("syncs_changed", totals.syncs_changed),
            ("syncs_failed", totals.syncs_failed),
            ("syncs_locked", totals.syncs_locked),
            ("syncs_aborted", totals.syncs_aborted),
            ("healed_guids", totals.healed_guids),
            ("healed_states", totals.healed_states),
            ("healed_repeats", totals.healed_repeats),
            ("healed_renames", totals.healed_renames),
            ("healed_deletes", totals.healed_deletes),
            ("replicas_stuck", self.engine.replicas_stuck()),
            ("waiters_ok", totals.waiters_ok),
            ("waiters_failed", totals.waiters_failed),
        ] {
            protocol::append_fields(out, [name.as_bytes(), number.to_string().as_bytes()]);
        }
    }
}

fn append_details(out: &mut Vec<u8>, details: &UserDetails) {
    let waiters = details.waiters.to_string();
    for (at, replica) in details.replicas.iter().enumerate() {
        let replica_number = (at + 1).to_string();
        let number = |secs: UnixSecs| secs.0.to_string();
        let pending_since = replica.pending_since.unwrap_or_default();
        let activity = if details.left_out {
            "not replicated"
        } else if replica.stuck && replica.activity == Activity::WaitingForRetry {
            "stuck"
        } else {
            replica.activity.as_str()
        };
        let is_syncing = if replica.activity == Activity::Syncing {
            "1"
        } else {
            "0"
        };
        let fields = [
            number(pending_since),
            number(replica.last_fast_sync),
            number(replica.last_full_sync),
            number(replica.last_success),
            replica.failures.to_string(),
        ];
        let next = replica.next_sync_secs.to_string();
        let head = [
            details.username.as_slice(),
            replica_number.as_bytes(),
            replica.target.as_slice(),
            replica.priority.as_str().as_bytes(),
        ];
        let tail = [
            replica.reason.as_bytes(),
            next.as_bytes(),
            is_syncing.as_bytes(),
            activity.as_bytes(),
            waiters.as_bytes(),
        ];
        let fields = fields.iter().map(String::as_bytes);
        protocol::append_fields(out, head.into_iter().chain(fields).chain(tail));
    }
    out.push(b'\n');
}
