//! A world for the engine in tests: a clock, a store, userdb, peers, dsync and aggregators, and what is true in it.
//!
//! It plays the driver. What it is asked for stays open until a test, or `settle`, answers. It checks at each turn what has to
//! hold always; the truth is kept apart from the engine: which changes there were, and what each sync could see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::status::Bucket;
use super::users::{Row, UserId};
use super::*;
use crate::engine::Priority;

/// What userdb has of a user.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    pub(super) targets: Vec<String>,
    pub(super) noreplicate: bool,
}

/// A dsync that runs.
#[derive(Clone, Debug)]
pub(super) struct Dsync {
    pub(super) username: String,
    pub(super) target: String,
    pub(super) full: bool,
    pub(super) from_state: bool,
    pub(super) mailboxes: Mailboxes,
    /// It is full, and begins from them.
    begun_from_mailboxes: bool,
    pub(super) state: Option<Vec<u8>>,
    /// The number of the last change when it began: it brings over all up to this.
    pub(super) saw: u64,
}

/// A state: up to the change of this number both sides agree.
pub(super) fn state_of(change: u64) -> Vec<u8> {
    format!("state{change}").into_bytes()
}

impl Dsync {
    /// The change up to which its state has both sides agree.
    fn base(&self) -> u64 {
        let state = text(self.state.as_deref().unwrap_or_default());
        let number = state.strip_prefix("state").unwrap_or("0");
        number.parse().expect("a number")
    }

    pub(super) fn is_incremental(&self) -> bool {
        !self.full && self.state.is_some()
    }
}

/// A line of the aggregator that is not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) username: String,
    pub(super) priority: Priority,
    pub(super) change: u64,
}

/// Username and target.
type Key = (String, String);

pub(super) struct World {
    pub(super) now: Now,
    pub(super) config: Config,
    pub(super) engine: Replicator,
    pub(super) store: BTreeMap<Key, (Record, Option<Vec<u8>>)>,
    pub(super) boot_settled: bool,
    pub(super) writes: VecDeque<Write>,
    pub(super) userdb: BTreeMap<String, Account>,
    /// userdb answers that it cannot tell.
    pub(super) userdb_fails: bool,
    pub(super) peers_down: BTreeSet<String>,
    pub(super) lookups: VecDeque<(LookupId, String)>,
    pub(super) listings: VecDeque<(ListingId, String)>,
    pub(super) probes: VecDeque<(ProbeId, String)>,
    pub(super) syncs: BTreeMap<SyncId, Dsync>,
    pub(super) started: Vec<Dsync>,
    pub(super) aborted: Vec<SyncId>,
    pub(super) answers: Vec<(u64, Result<(), String>)>,
    pub(super) command_answers: Vec<(CommandId, Result<CommandDone, String>)>,
    pub(super) log: Vec<LogEvent>,
    pub(super) lookups_asked: usize,
    pub(super) probes_asked: Vec<Mono>,
    /// The aggregator's side.
    pub(super) connection: ConnectionId,
    pub(super) last_line: u64,
    pub(super) unacknowledged: BTreeMap<u64, Line>,
    pub(super) waiting: BTreeMap<u64, (String, u64)>,
    /// The truth: changes are numbered; the last one of each user, and the last one that each replica has.
    pub(super) last_change: u64,
    pub(super) changed: BTreeMap<String, u64>,
    pub(super) synced: BTreeMap<Key, u64>,
    /// The last change of each user that an aggregator need not tell again.
    pub(super) acknowledged: BTreeMap<String, u64>,
    pub(super) fully_synced: BTreeMap<Key, u64>,
    /// Each user's changes.
    changes: BTreeMap<String, Vec<u64>>,
    /// Up to where some sync has moved mail, of which the engine may have no state.
    moved: BTreeMap<Key, u64>,
    /// A sync began from a state older than that: flags may be lost unless a full one follows.
    doubted: BTreeSet<Key>,
    /// The last sync that began was cut off.
    cut_off: BTreeSet<Key>,
    /// The same of a sync that the peer began, as the engine was told since it started.
    peers_cut_off: BTreeSet<Key>,
    /// Of whom this node serves a sync of the peer.
    pub(super) served: BTreeSet<String>,
    /// But dsync refused the mailboxes in the state, a crash came before the mark, or the record was removed.
    cut_off_unlisted: BTreeSet<Key>,
    last_command: u64,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the tests' names are text")
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        let now = Now {
            mono: Mono(1_000_000),
            wall: UnixSecs(1_700_000_000),
        };
        let mut world = Self {
            now,
            engine: Replicator::new(config.clone(), 1, now),
            config,
            store: BTreeMap::new(),
            boot_settled: true,
            writes: VecDeque::new(),
            userdb: BTreeMap::new(),
            userdb_fails: false,
            peers_down: BTreeSet::new(),
            lookups: VecDeque::new(),
            listings: VecDeque::new(),
            probes: VecDeque::new(),
            syncs: BTreeMap::new(),
            started: Vec::new(),
            aborted: Vec::new(),
            answers: Vec::new(),
            command_answers: Vec::new(),
            log: Vec::new(),
            lookups_asked: 0,
            probes_asked: Vec::new(),
            connection: ConnectionId(1),
            last_line: 0,
            unacknowledged: BTreeMap::new(),
            waiting: BTreeMap::new(),
            last_change: 0,
            changed: BTreeMap::new(),
            synced: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            fully_synced: BTreeMap::new(),
            changes: BTreeMap::new(),
            moved: BTreeMap::new(),
            doubted: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            peers_cut_off: BTreeSet::new(),
            served: BTreeSet::new(),
            cut_off_unlisted: BTreeSet::new(),
            last_command: 0,
        };
        world.engine.handle_loaded(now, Boot::Trusted);
        world.take_outputs();
        world
    }

    /// Users `u0`, `u1`, ... with one replica at `tcp:peer`, all listed and synced once, nothing pending.
    pub(super) fn with_users(config: Config, users: usize) -> Self {
        let mut world = Self::new(config);
        for n in 0..users {
            world.add_account(&format!("u{n}"), &["tcp:peer"]);
        }
        world.settle();
        world.run_for(Duration::from_secs(5 + users as u64 / 5));
        assert_eq!(world.synced.len(), users, "{:?}", world.log);
        world.started.clear();
        world.log.clear();
        world
    }

    pub(super) fn add_account(&mut self, username: &str, targets: &[&str]) {
        let targets = targets.iter().map(|target| (*target).to_owned()).collect();
        let account = Account {
            targets,
            noreplicate: false,
        };
        self.userdb.insert(username.to_owned(), account);
    }

    /// Something changes in the user's mail; the aggregator tells.
    pub(super) fn change(&mut self, username: &str, priority: Priority) {
        self.last_change += 1;
        self.changed.insert(username.to_owned(), self.last_change);
        let owner = username.trim_start_matches("alias-").to_owned();
        self.changes
            .entry(owner)
            .or_default()
            .push(self.last_change);
        let line = Line {
            username: username.to_owned(),
            priority,
            change: self.last_change,
        };
        self.send(line);
    }

    /// A delivery waits for the sync; its number.
    pub(super) fn deliver(&mut self, username: &str) -> u64 {
        self.change(username, Priority::Sync);
        self.last_line
    }

    fn send(&mut self, line: Line) {
        self.last_line += 1;
        let id = self.last_line;
        let (connection, username) = (self.connection, line.username.clone().into_bytes());
        if line.priority == Priority::Sync {
            self.waiting
                .insert(id, (line.username.clone(), line.change));
            self.unacknowledged.insert(id, line);
            self.engine
                .handle_sync_request(self.now, connection, &username, id, true);
        } else {
            let priority = line.priority;
            self.unacknowledged.insert(id, line);
            self.engine
                .handle_notification(self.now, connection, &username, priority, Some(id));
        }
        self.take_outputs();
    }

    /// The aggregator's connection is lost; it sends again what was not acknowledged.
    pub(super) fn reconnect(&mut self) {
        self.engine.handle_connection_closed(self.connection);
        self.connection.0 += 1;
        self.waiting.clear();
        let lines = std::mem::take(&mut self.unacknowledged);
        for mut line in lines.into_values() {
            line.priority = line.priority.min(Priority::High);
            self.send(line);
        }
    }

    /// SIGKILL, and a new start with what the store has; the first `stored` of the open writes made it.
    pub(super) fn crash(&mut self, stored: usize, boot: Boot) {
        self.restart(stored, boot);
        self.reconnect();
    }

    /// As `crash`, but the aggregator has not come back yet.
    pub(super) fn restart(&mut self, stored: usize, boot: Boot) {
        for _ in 0..stored {
            self.store_one(false);
        }
        for dsync in self.syncs.values() {
            let key = (dsync.username.clone(), dsync.target.clone());
            self.cut_off.insert(key.clone());
            let moved = self.moved.entry(key).or_default();
            *moved = dsync.saw.max(*moved);
        }
        // A mark that was on its way to the store is lost.
        for write in &self.writes {
            if let RecordChange::Put { record, .. } = &write.change {
                let key = (text(&record.username), text(&record.target));
                let stored = self.store.get(&key);
                if stored.is_none_or(|(record, _)| record.stale == Stale::No) {
                    self.moved.remove(&key);
                    self.doubted.remove(&key);
                }
                if stored.is_none_or(|(record, _)| record.stale != Stale::State) {
                    self.cut_off_unlisted.insert(key);
                }
            }
        }
        // What was cut off meanwhile nobody tells.
        for username in std::mem::take(&mut self.served) {
            self.peer_failed(&username);
        }
        self.writes.clear();
        self.lookups.clear();
        self.listings.clear();
        self.probes.clear();
        self.syncs.clear();
        self.aborted.clear();
        self.engine = Replicator::new(self.config.clone(), self.last_change, self.now);
        for (record, _) in self.store.values() {
            self.engine.load(self.now, record.clone());
        }
        self.boot_settled &= boot == Boot::Trusted;
        let boot = match self.boot_settled {
            true => Boot::Trusted,
            false => Boot::Unclean,
        };
        self.engine.handle_loaded(self.now, boot);
        // What the one before had acknowledged is not this one's.
        self.connection.0 += 1;
        self.take_outputs();
    }

    /// What was told of the user until now may be dropped: the administrator wants it so.
    pub(super) fn promise_nothing(&mut self, username: &str) {
        self.acknowledged.remove(username);
        for line in self.unacknowledged.values_mut() {
            if line.username.trim_start_matches("alias-") == username {
                line.change = 0;
            }
        }
    }

    /// The row of the replica, if it waits to be synced. A replica that is not known yet is looked up before the user's
    /// next sync and takes part in it: any row will do.
    pub(super) fn pending_row(&self, username: &str, target: &str) -> Option<&Row> {
        let user = self.engine.users.find(username.as_bytes())?;
        let is_of = |row: &Row| self.engine.target_of(row) == target.as_bytes();
        let is_known = self.engine.users.rows(user).any(is_of);
        let mut rows = self.engine.users.rows(user);
        rows.find(|row| row.is_pending() && (is_of(row) || !is_known))
    }

    /// After a restart: what was acknowledged and not synced is pending, but for these users.
    pub(super) fn check_pending(&self, but: &BTreeSet<String>) {
        for (username, change) in &self.acknowledged {
            let account = self
                .userdb
                .get(username)
                .filter(|_| !but.contains(username));
            for target in account.into_iter().flat_map(|account| &account.targets) {
                let key = (username.clone(), target.clone());
                let synced = self.synced.get(&key).copied().unwrap_or(0);
                let is_pending = self.pending_row(username, target).is_some();
                assert!(
                    synced >= *change || is_pending,
                    "{key:?} was lost in the crash"
                );
            }
        }
    }

    pub(super) fn command(
        &mut self,
        run: impl FnOnce(&mut Replicator, Now, CommandId),
    ) -> CommandId {
        self.last_command += 1;
        let command = CommandId(self.last_command);
        run(&mut self.engine, self.now, command);
        self.take_outputs();
        command
    }

    /// The oldest open write is stored.
    pub(super) fn store_one(&mut self, tell: bool) {
        let Some(Write { seq, change }) = self.writes.pop_front() else {
            return;
        };
        match change {
            RecordChange::Put { record, state } => {
                let key = (text(&record.username), text(&record.target));
                let before = self.store.get(&key).and_then(|(_, state)| state.clone());
                let state = match state {
                    StateChange::Keep => before,
                    StateChange::Set(state) => Some(state),
                    StateChange::Forget => None,
                    StateChange::CopyFrom(target) => {
                        let from = (key.0.clone(), text(&target));
                        self.store.get(&from).and_then(|(_, state)| state.clone())
                    }
                };
                assert_eq!(record.has_state, state.is_some(), "{record:?}");
                self.store.insert(key, (record, state));
            }
            RecordChange::Remove { username, target } => {
                self.store.remove(&(text(&username), text(&target)));
            }
            RecordChange::BootSettled => self.boot_settled = true,
        }
        if tell {
            self.engine.handle_stored(seq);
            self.take_outputs();
        }
    }

    pub(super) fn answer_lookup(&mut self) {
        let Some((lookup, username)) = self.lookups.pop_front() else {
            return;
        };
        let owner = username.trim_start_matches("alias-");
        let account = match self.userdb.contains_key(&username) {
            true => self.userdb.get(owner),
            false => None,
        };
        let result = match (self.userdb_fails, account) {
            (true, _) => UserLookup::TempFail("auth is away".into()),
            (false, None) => UserLookup::NotFound,
            (false, Some(account)) => UserLookup::Found {
                username: owner.into(),
                targets: account.targets.iter().map(|t| t.clone().into()).collect(),
                noreplicate: account.noreplicate,
            },
        };
        self.engine.handle_user_looked_up(self.now, lookup, result);
        self.take_outputs();
    }

    pub(super) fn answer_listing(&mut self) {
        let Some((listing, mask)) = self.listings.pop_front() else {
            return;
        };
        let names: Vec<String> = self.userdb.keys().cloned().collect();
        // A listing that fails breaks off in the middle.
        let names = match self.userdb_fails {
            true => names.get(..names.len() / 2).unwrap_or_default(),
            false => &names,
        };
        for name in names.iter().filter(|name| !name.starts_with("alias-")) {
            if wildcard_match(name.as_bytes(), mask.as_bytes()) {
                self.engine
                    .handle_listing_user(self.now, listing, name.as_bytes());
            }
        }
        let result = match self.userdb_fails {
            true => Err("auth is away".to_owned()),
            false => Ok(()),
        };
        self.engine
            .handle_listing_finished(self.now, listing, result);
        self.take_outputs();
    }

    pub(super) fn answer_probe(&mut self) {
        let Some((probe, target)) = self.probes.pop_front() else {
            return;
        };
        let result = match self.peers_down.contains(&target) {
            true => Err("Connection refused".to_owned()),
            false => Ok(()),
        };
        self.engine.handle_probe_finished(self.now, probe, result);
        self.take_outputs();
    }

    /// Ends a sync with this outcome.
    pub(super) fn finish(&mut self, sync: SyncId, outcome: SyncOutcome) {
        let dsync = self.syncs.remove(&sync).expect("it runs");
        self.note_moved(&dsync, &outcome);
        if matches!(outcome, SyncOutcome::Ok { .. }) {
            let key = (dsync.username.clone(), dsync.target.clone());
            let synced = self.synced.entry(key.clone()).or_default();
            *synced = dsync.saw.max(*synced);
            if dsync.full {
                self.fully_synced.insert(key, dsync.saw);
            }
        }
        self.engine
            .handle_sync_finished(self.now, sync, outcome, "");
        self.take_outputs();
    }

    fn note_moved(&mut self, dsync: &Dsync, outcome: &SyncOutcome) {
        let key = (dsync.username.clone(), dsync.target.clone());
        let moved = self.moved.entry(key.clone()).or_default();
        let left_state = matches!(
            outcome,
            SyncOutcome::Ok { .. } | SyncOutcome::Changed { .. }
        );
        let passes_over = dsync.is_incremental() || dsync.begun_from_mailboxes;
        if left_state && passes_over && dsync.base() < *moved {
            let changes = self.changes.get(&dsync.username).into_iter().flatten();
            let mut passed_over = changes.filter(|change| **change > dsync.base());
            if passed_over.any(|change| *change <= dsync.saw) {
                self.doubted.insert(key.clone());
            }
        }
        let is_refused = matches!(outcome, SyncOutcome::Changed { state } if state.is_empty())
            || *outcome == SyncOutcome::StateRefused;
        if left_state {
            self.cut_off.remove(&key);
            self.peers_cut_off.remove(&key);
        } else if super::syncs::may_have_begun(outcome) {
            self.cut_off.insert(key.clone());
            self.cut_off_unlisted.remove(&key);
        }
        if is_refused && dsync.mailboxes == Mailboxes::WithFirstMail {
            self.cut_off_unlisted.insert(key.clone());
        }
        if !passes_over && dsync.full && matches!(outcome, SyncOutcome::Ok { .. }) {
            self.doubted.remove(&key);
        }
        if left_state || super::syncs::may_have_begun(outcome) {
            *moved = dsync.saw.max(*moved);
        }
    }

    /// This node's dsync-server serves a sync of the peer.
    pub(super) fn peer_begins(&mut self, username: &str) {
        self.served.insert(username.to_owned());
        let now = self.now;
        self.engine
            .handle_peers_sync_begun(now, username.as_bytes());
    }

    pub(super) fn peer_ends(&mut self, username: &str, cut_off: bool) {
        let (now, name) = (self.now, username.as_bytes());
        self.served.remove(username);
        if cut_off {
            self.peer_failed(username);
            self.engine.handle_peers_sync_cut_off(now, name);
        }
        self.engine.handle_peers_sync_ended(now, name);
        self.take_outputs();
    }

    /// The mailboxes of syncs were listed while the peer's began.
    pub(super) fn put_off(&mut self) {
        let listed = self.syncs.iter().filter(|(_, dsync)| {
            dsync.mailboxes != Mailboxes::AsTheyAre && self.served.contains(&dsync.username)
        });
        for sync in listed.map(|(sync, _)| *sync).collect::<Vec<_>>() {
            if !self.engine.may_begin(self.now, sync) {
                self.syncs.remove(&sync);
                self.aborted.retain(|aborted| *aborted != sync);
            }
        }
        self.take_outputs();
    }

    /// A sync that the peer began was cut off: mail may be half over.
    pub(super) fn peer_failed(&mut self, username: &str) {
        let known = self.engine.show(self.now, username.as_bytes());
        let targets = known.into_iter().flat_map(|user| user.replicas);
        let keys = targets.map(|replica| (username.to_owned(), text(&replica.target)));
        self.peers_cut_off.extend(keys);
    }

    pub(super) fn succeed(&mut self, sync: SyncId) {
        let state = state_of(self.syncs.get(&sync).expect("it runs").saw);
        self.finish(sync, SyncOutcome::Ok { state });
    }

    /// Ends a sync with CHANGED and the state to go on from.
    pub(super) fn finish_changed(&mut self, sync: SyncId) {
        let state = state_of(self.syncs.get(&sync).expect("it runs").saw);
        self.finish(sync, SyncOutcome::Changed { state });
    }

    /// The peer syncs the user and tells it, with a state or without.
    pub(super) fn peer_syncs(&mut self, username: &str, full: bool, tells_state: bool) {
        // dsync calls a user as userdb does: never by an alias.
        let account = self.userdb.get(username);
        let targets = account.map(|account| account.targets.clone());
        let targets = targets.unwrap_or_default();
        let runs = self.sync_of(username).is_some();
        for target in &targets {
            let key = (username.to_owned(), target.clone());
            self.moved.insert(key.clone(), self.last_change);
            if !runs {
                self.cut_off.remove(&key);
                self.peers_cut_off.remove(&key);
            }
            if targets.len() == 1 && full && tells_state && !runs {
                self.doubted.remove(&key);
            }
        }
        let state = match tells_state {
            true => state_of(self.last_change),
            false => Vec::new(),
        };
        self.command(|engine, now, command| {
            engine.handle_notify(now, command, username.as_bytes(), full, &state);
        });
    }

    /// How a sync ends if nothing odd happens.
    pub(super) fn finish_as_is(&mut self, sync: SyncId) {
        let dsync = self.syncs.get(&sync).expect("it runs").clone();
        if self.aborted.contains(&sync) {
            self.finish(sync, SyncOutcome::Timeout);
        } else if self.peers_down.contains(&dsync.target) {
            self.finish(sync, SyncOutcome::Eof);
        } else {
            match self.userdb.get(&dsync.username) {
                None => self.finish(sync, SyncOutcome::NoUser),
                Some(account) if account.noreplicate => {
                    self.finish(sync, SyncOutcome::NoReplicate);
                }
                Some(_) => self.succeed(sync),
            }
        }
    }

    /// The sync of this user that runs.
    pub(super) fn sync_of(&self, username: &str) -> Option<SyncId> {
        let mut syncs = self.syncs.iter();
        let sync = syncs.find(|(_, dsync)| dsync.username == username);
        sync.map(|(sync, _)| *sync)
    }

    /// Everything but dsync is answered until nothing is open.
    pub(super) fn settle_but_syncs(&mut self) {
        loop {
            self.take_outputs();
            if !self.writes.is_empty() {
                self.store_one(true);
            } else if !self.lookups.is_empty() {
                self.answer_lookup();
            } else if !self.listings.is_empty() {
                self.answer_listing();
            } else if !self.probes.is_empty() {
                self.answer_probe();
            } else {
                return;
            }
        }
    }

    /// Everything is answered until nothing is open; no time passes.
    pub(super) fn settle(&mut self) {
        self.settle_but_syncs();
        while let Some((&sync, _)) = self.syncs.first_key_value() {
            self.finish_as_is(sync);
            self.settle_but_syncs();
        }
    }

    /// To the engine's next timeout, or by `most` if that is sooner. True: it was the timeout.
    pub(super) fn step_time(&mut self, most: Duration) -> bool {
        let end = self.now.mono + most;
        let next = self.engine.next_timeout().unwrap_or(end).max(self.now.mono);
        self.set_time(next.min(end));
        self.engine.handle_timeout(self.now);
        self.take_outputs();
        next < end
    }

    fn set_time(&mut self, mono: Mono) {
        let secs_before = self.now.mono.0 / 1000;
        let secs = u32::try_from(mono.0 / 1000 - secs_before).expect("small");
        self.now.wall.0 += secs;
        self.now.mono = mono;
    }

    /// Time passes, everything but dsync is answered at once.
    pub(super) fn run_but_syncs_for(&mut self, time: Duration) {
        let end = self.now.mono + time;
        loop {
            self.settle_but_syncs();
            if !self.step_time(end.since(self.now.mono)) {
                self.settle_but_syncs();
                return;
            }
        }
    }

    /// Time passes, everything is answered at once.
    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.now.mono + time;
        loop {
            self.settle();
            if !self.step_time(end.since(self.now.mono)) {
                self.settle();
                return;
            }
        }
    }

    /// Plays the driver, and checks what has to hold always.
    pub(super) fn take_outputs(&mut self) {
        loop {
            while let Some(write) = self.engine.poll_write() {
                if let RecordChange::Remove { username, target } = &write.change {
                    self.cut_off_unlisted.insert((text(username), text(target)));
                }
                self.writes.push_back(write);
            }
            let Some(action) = self.engine.poll_action() else {
                break;
            };
            self.act(action);
        }
        while let Some(event) = self.engine.poll_log() {
            self.log.push(event);
        }
        assert!(self.syncs.len() <= self.config.max_conns, "too many syncs");
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::ListUsers { listing, mask } => {
                assert!(self.listings.is_empty(), "two listings at once");
                self.listings.push_back((listing, text(&mask)));
            }
            Action::LookupUser { lookup, username } => {
                self.lookups_asked += 1;
                self.lookups.push_back((lookup, text(&username)));
                assert!(self.lookups.len() <= MAX_LOOKUPS + self.config.max_conns);
            }
            Action::Probe { probe, target } => {
                let target = text(&target);
                let mut open = self.probes.iter();
                assert!(!open.any(|(_, other)| *other == target), "two probes");
                self.probes_asked.push(self.now.mono);
                self.probes.push_back((probe, target));
            }
            Action::StartSync {
                sync,
                username,
                target,
                full,
                from_state,
                mailboxes,
                has_state,
            } => {
                let dsync = Dsync {
                    state: self.state_for(&text(&username), &text(&target)),
                    username: text(&username),
                    target: text(&target),
                    full,
                    from_state,
                    mailboxes,
                    // Whether they can be had is chance.
                    begun_from_mailboxes: full
                        && mailboxes != Mailboxes::AsTheyAre
                        && sync.0 % 2 == 0,
                    saw: self.last_change,
                };
                assert!(!from_state || full && has_state, "from what?");
                assert!(has_state || dsync.state.is_none(), "a state forgotten");
                let key = (dsync.username.clone(), dsync.target.clone());
                // Of a user who is stuck an order may have come.
                let is_stuck = || {
                    let shown = self.engine.show(self.now, dsync.username.as_bytes());
                    shown.is_some_and(|user| user.replicas.iter().any(|replica| replica.stuck))
                };
                assert!(
                    !dsync.full
                        || dsync.from_state
                        || dsync.state.is_none()
                        || !self.cut_off.contains(&key) && !self.peers_cut_off.contains(&key)
                        || is_stuck(),
                    "a full sync of {key:?} after one that was cut off"
                );
                assert!(
                    !dsync.full
                        || dsync.state.is_some()
                        || mailboxes != Mailboxes::AsTheyAre
                        || !self.cut_off.contains(&key)
                        || self.cut_off_unlisted.contains(&key)
                        || is_stuck(),
                    "a full sync of {key:?} without its mailboxes after one that was cut off"
                );
                assert!(
                    mailboxes == Mailboxes::AsTheyAre && has_state
                        || !self.served.contains(&dsync.username),
                    "{dsync:?} while the peer's is served"
                );
                assert_eq!(self.sync_of(&dsync.username), None, "two syncs of a user");
                if dsync.begun_from_mailboxes {
                    self.engine.handle_begun_from_mailboxes(sync);
                }
                self.started.push(dsync.clone());
                self.syncs.insert(sync, dsync);
            }
            Action::AbortSync { sync, .. } => self.aborted.push(sync),
            Action::Acknowledge { connection, line } => {
                assert_eq!(connection, self.connection);
                let open = self.unacknowledged.split_off(&(line + 1));
                for line in std::mem::replace(&mut self.unacknowledged, open).into_values() {
                    let owner = line.username.trim_start_matches("alias-").to_owned();
                    let last = self.acknowledged.entry(owner).or_default();
                    *last = line.change.max(*last);
                }
            }
            Action::AnswerWaiter {
                connection,
                request,
                answer,
            } => {
                assert_eq!(connection, self.connection);
                let (username, change) = self.waiting.remove(&request).expect("it waits");
                if answer.is_ok() {
                    self.check_plus(&username, change);
                }
                self.answers.push((request, answer));
            }
            Action::AnswerCommand { command, answer } => {
                self.command_answers.push((command, answer));
            }
        }
    }

    /// A `+` is true: each replica has the change.
    fn check_plus(&self, username: &str, change: u64) {
        let username = username.trim_start_matches("alias-");
        let details = self.engine.show(self.now, username.as_bytes());
        let replicas = details.expect("known").replicas;
        assert!(!replicas.is_empty());
        for replica in replicas {
            let key = (username.to_owned(), text(&replica.target));
            let synced = self.synced.get(&key).copied().unwrap_or(0);
            assert!(synced >= change, "false + for {key:?}");
        }
    }

    /// What the store will have when the open writes are done.
    fn state_for(&self, username: &str, target: &str) -> Option<Vec<u8>> {
        let mut states: BTreeMap<&[u8], Option<Vec<u8>>> = BTreeMap::new();
        for ((user, of), (_, state)) in &self.store {
            if user == username {
                states.insert(of.as_bytes(), state.clone());
            }
        }
        for write in &self.writes {
            match &write.change {
                RecordChange::Put { record, state } if record.username == username.as_bytes() => {
                    let before = states.get(&*record.target).cloned().flatten();
                    let after = match state {
                        StateChange::Keep => before,
                        StateChange::Set(state) => Some(state.clone()),
                        StateChange::Forget => None,
                        StateChange::CopyFrom(from) => states.get(&**from).cloned().flatten(),
                    };
                    states.insert(&record.target, after);
                }
                RecordChange::Remove {
                    username: removed,
                    target,
                } if removed == username.as_bytes() => {
                    states.remove(&**target);
                }
                _ => {}
            }
        }
        states.get(target.as_bytes()).cloned().flatten()
    }

    /// The counters are what a count would find.
    pub(super) fn check_counters(&self) {
        let mut recount = Counters::default();
        for slot in 0..self.engine.users.slots() {
            let bucket = self.engine.bucket(UserId(slot));
            recount.move_user(Bucket::Uncounted, bucket);
        }
        assert_eq!(self.engine.counters(), recount);
    }

    /// What the peers have is what was changed, but for these users.
    pub(super) fn check_converged(&self, but: &BTreeSet<String>) {
        for (username, account) in &self.userdb {
            if account.noreplicate || username.starts_with("alias-") || but.contains(username) {
                continue;
            }
            let change = self.changed.get(username).copied().unwrap_or(0);
            for target in &account.targets {
                let key = (username.clone(), target.clone());
                let synced = self.synced.get(&key).copied().unwrap_or(0);
                assert!(
                    synced >= change,
                    "{key:?} has {synced}, not {change}: {:?}",
                    self.engine.show(self.now, username.as_bytes())
                );
            }
        }
    }

    /// Each sync that began from a stale state was followed by a full one, but for these users.
    pub(super) fn check_settled(&self, but: &BTreeSet<String>) {
        for key in &self.doubted {
            let account = self.userdb.get(&key.0).filter(|_| !but.contains(&key.0));
            let is_replicated =
                account.is_some_and(|a| !a.noreplicate && a.targets.contains(&key.1));
            assert!(
                !is_replicated,
                "no full sync of {key:?} since a stale state: {:?}",
                self.engine.show(self.now, key.0.as_bytes())
            );
        }
    }
}
