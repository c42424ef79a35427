//! The connections to the auth server: one for lookups, one for a listing, each made when it is wanted.

use std::time::Duration;

use mio::Token;

use super::socket::{Input, Socket};
use super::{Peer, Replicator, Turn};
use crate::engine::FastMap;
use crate::engine::protocol::userdb::{self, Event, UserdbReader};
use crate::engine::replicator::{ListingId, LookupId, UserLookup};
use crate::engine::time::{Mono, Now};

/// An answer that does not come for so long counts as failed. Auth itself waits for its databases.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection to the auth server.
pub(super) struct UserdbConnection {
    reader: UserdbReader,
    last_id: u32,
    lookups: FastMap<u64, (LookupId, Vec<u8>)>,
    listing: Option<(u64, ListingId)>,
    is_for_listing: bool,
    moved: Mono,
    failure: String,
}

impl UserdbConnection {
    fn new(now: Mono) -> Self {
        Self {
            reader: UserdbReader::new(),
            last_id: 0,
            lookups: FastMap::default(),
            listing: None,
            is_for_listing: false,
            moved: now,
            failure: "auth server disconnected".into(),
        }
    }

    /// The server's numbers have 32 bits, and 0 is none.
    fn new_id(&mut self) -> u64 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        u64::from(self.last_id)
    }

    pub(super) fn is_stuck(&self, now: Mono) -> bool {
        let waits = !self.lookups.is_empty() || self.listing.is_some();
        waits && now.since(self.moved) >= ANSWER_TIMEOUT
    }
}

impl Replicator {
    fn connect_userdb(&mut self, now: Now) -> Result<usize, String> {
        let path = self.settings.socket_path(&self.settings.auth_socket_path);
        let slot = self.free_slot();
        match Socket::connect(&path, self.poll.registry(), Token(slot)) {
            Ok(mut socket) => {
                userdb::append_hello(socket.output());
                let userdb = UserdbConnection::new(now.mono);
                self.put(slot, socket, Peer::Userdb(userdb));
                self.unflushed.push(slot);
                Ok(slot)
            }
            Err(reason) => {
                self.free.push(slot);
                Err(reason)
            }
        }
    }

    pub(super) fn look_up(&mut self, now: Now, lookup: LookupId, username: Vec<u8>) {
        let connected = match self.lookups {
            Some(slot) => Ok(slot),
            None => self.connect_userdb(now),
        };
        let slot = match connected {
            Ok(slot) => slot,
            Err(reason) => {
                let result = UserLookup::TempFail(reason);
                self.engine.handle_user_looked_up(now, lookup, result);
                return;
            }
        };
        self.lookups = Some(slot);
        let Some(connection) = self.connection(slot) else {
            return;
        };
        if let Peer::Userdb(userdb) = &mut connection.peer {
            if userdb.lookups.is_empty() {
                userdb.moved = now.mono;
            }
            let id = userdb.new_id();
            userdb::append_lookup(connection.socket.output(), id, &username);
            userdb.lookups.insert(id, (lookup, username));
            self.unflushed.push(slot);
        }
    }

    pub(super) fn list_users(&mut self, now: Now, listing: ListingId, mask: &[u8]) {
        let connected = match self.listing {
            Some(slot) => Ok(slot),
            None => self.connect_userdb(now),
        };
        let slot = match connected {
            Ok(slot) => slot,
            Err(reason) => {
                self.engine
                    .handle_listing_finished(now, listing, Err(reason));
                return;
            }
        };
        self.listing = Some(slot);
        let Some(connection) = self.connection(slot) else {
            return;
        };
        if let Peer::Userdb(userdb) = &mut connection.peer {
            let id = userdb.new_id();
            userdb.listing = Some((id, listing));
            userdb.is_for_listing = true;
            userdb.moved = now.mono;
            userdb::append_list(connection.socket.output(), id, mask);
            self.unflushed.push(slot);
        }
    }

    pub(super) fn serve_userdb(
        &mut self,
        now: Now,
        socket: &mut Socket,
        userdb: &mut UserdbConnection,
    ) -> Turn {
        let mut buffer = std::mem::take(&mut self.buffer);
        let input = socket.read(&mut buffer);
        if let Input::Data(length) = input {
            userdb.reader.push(buffer.get(..length).unwrap_or_default());
        }
        self.buffer = buffer;
        match input {
            Input::Blocked => return Turn::Wait,
            Input::Closed => return Turn::Close,
            Input::Data(_) => userdb.moved = now.mono,
        }
        loop {
            match userdb.reader.next_event() {
                Ok(None) => break,
                Ok(Some(event)) => self.handle_userdb_event(now, userdb, event),
                Err(userdb::Incompatible { line }) => {
                    userdb.failure = format!("auth server is not compatible: {line}");
                    return Turn::Close;
                }
            }
        }
        // A listing has its connection to itself, which ends with it.
        if userdb.is_for_listing && userdb.listing.is_none() {
            return Turn::Close;
        }
        Turn::after_read(socket)
    }

    fn handle_userdb_event(&mut self, now: Now, userdb: &mut UserdbConnection, event: Event) {
        match event {
            Event::User {
                id,
                username,
                fields,
            } => {
                let Some((lookup, _)) = userdb.lookups.remove(&id) else {
                    return;
                };
                let (targets, noreplicate) = self.settings.replicas_of(&username, &fields);
                if targets.len() > 1 {
                    self.several_replicas.insert(username.clone());
                } else {
                    self.several_replicas.remove(&username);
                }
                let result = UserLookup::Found {
                    username,
                    targets,
                    noreplicate,
                };
                self.engine.handle_user_looked_up(now, lookup, result);
            }
            Event::NotFound { id } => {
                if let Some((lookup, _)) = userdb.lookups.remove(&id) {
                    self.engine
                        .handle_user_looked_up(now, lookup, UserLookup::NotFound);
                }
            }
            Event::Fail { id, reason } => {
                if let Some((lookup, _)) = userdb.lookups.remove(&id) {
                    let reason = if reason.is_empty() {
                        "userdb lookup failed".to_owned()
                    } else {
                        format!("userdb lookup failed: {reason}")
                    };
                    self.engine
                        .handle_user_looked_up(now, lookup, UserLookup::TempFail(reason));
                }
            }
            Event::Listed { id, username } => {
                if let Some((_, listing)) = userdb.listing.filter(|(own, _)| *own == id) {
                    self.engine.handle_listing_user(now, listing, &username);
                }
            }
            Event::Done { id, failed } => {
                if let Some((_, listing)) = userdb.listing.filter(|(own, _)| *own == id) {
                    userdb.listing = None;
                    let result = if failed {
                        Err("userdb listing failed (see the auth server's log)".to_owned())
                    } else {
                        Ok(())
                    };
                    self.engine.handle_listing_finished(now, listing, result);
                }
            }
        }
    }

    pub(super) fn finish_userdb(&mut self, now: Now, slot: usize, userdb: UserdbConnection) {
        if self.lookups == Some(slot) {
            self.lookups = None;
        }
        if self.listing == Some(slot) {
            self.listing = None;
        }
        let mut lookups: Vec<LookupId> = userdb.lookups.values().map(|(id, _)| *id).collect();
        lookups.sort_unstable();
        for lookup in lookups {
            let result = UserLookup::TempFail(userdb.failure.clone());
            self.engine.handle_user_looked_up(now, lookup, result);
        }
        if let Some((_, listing)) = userdb.listing {
            self.engine
                .handle_listing_finished(now, listing, Err(userdb.failure));
        }
    }
}
