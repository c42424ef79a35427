//! Random schedules: everything that can happen does, in any order, with crashes between any two actions.
//!
//! `SEED=n` runs one schedule, `SIM_ROUNDS=n` that many (default `ROUNDS`). Then the faults stop, and all must become well: nothing that
//! was accepted is lost, nobody waits for ever, the counters are right. What must hold always is checked by the world.

use std::collections::BTreeSet;
use std::time::Duration;

use super::world::World;
use super::*;
use crate::engine::Priority;
use crate::engine::healing::{Hostnames, Observed, Side};

const ROUNDS: u64 = 300;
const TURNS: usize = 250;
/// The longest pause is that after what only an administrator can mend, an hour; the longest between two full syncs that
/// follow stale states is 20 times 255 s.
const TIME_TO_HEAL: Duration = Duration::from_secs(160 * 60);

struct Simulation {
    world: World,
    rng: fastrand::Rng,
    /// The user, and the last change, when a full sync was asked for.
    full_wanted: BTreeMap<CommandId, (String, u64)>,
    /// Whose account is not what it was at first.
    altered: BTreeSet<String>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config = Config {
            max_conns: rng.usize(1..4),
            sync_deadline: Duration::from_secs(rng.u64(5..120)),
            listing_interval: Duration::from_secs(rng.u64(20..4000)),
            full_sync_interval: Duration::from_secs(*rng.choice(&[0, 60, 86_400]).expect("some")),
            ..Config::default()
        };
        let mut world = World::new(config);
        for n in 0..rng.usize(1..6) {
            let targets: &[&str] = match rng.u8(..4) {
                0 => &["tcp:peer", "tcp:other"],
                1 => &["remote:host"],
                _ => &["tcp:peer"],
            };
            world.add_account(&format!("u{n}"), targets);
        }
        if rng.bool() {
            world.add_account("alias-u0", &["tcp:peer"]);
        }
        Self {
            world,
            rng,
            full_wanted: BTreeMap::new(),
            altered: BTreeSet::new(),
        }
    }

    fn user(&mut self) -> String {
        match self.rng.u8(..20) {
            0 => "nobody".to_owned(),
            1 if self.world.userdb.contains_key("alias-u0") => "alias-u0".to_owned(),
            _ => format!("u{}", self.rng.u8(..6)),
        }
    }

    /// A change by its owner's name, told by the name that the notifier knows.
    fn notify(&mut self, priority: Priority) {
        if !self.world.engine.accepts_notifications() {
            return;
        }
        let username = self.user();
        self.world.change(&username, priority);
        let owner = username.trim_start_matches("alias-").to_owned();
        self.world.changed.insert(owner, self.world.last_change);
    }

    fn turn(&mut self) {
        match self.rng.u8(..100) {
            0..=14 => self.notify(Priority::Low),
            15..=21 => self.notify(Priority::High),
            22..=28 => self.notify(Priority::Sync),
            29..=42 => self.world.store_one(true),
            43..=52 => self.world.answer_lookup(),
            53..=55 => self.world.answer_listing(),
            56..=62 => self.world.answer_probe(),
            63..=76 => self.end_a_sync(),
            77..=89 => self.pass_time(),
            90 => self.world.reconnect(),
            91..=92 => {
                let stored = self.rng.usize(..=self.world.writes.len());
                let boot = match self.rng.u8(..4) {
                    0 => Boot::Unclean,
                    _ => Boot::Trusted,
                };
                self.world.restart(stored, boot);
                self.world.check_pending(&self.altered);
                self.check_full_syncs(|world, key| {
                    let row = world.pending_row(&key.0, &key.1);
                    row.is_some_and(|row| row.force_full)
                });
                self.world.reconnect();
            }
            93..=94 => self.flip_peer(),
            95 => self.world.userdb_fails = self.rng.u8(..4) == 0,
            96 => self.change_account(),
            97 => self.command(),
            98 => self.hang_up(),
            _ => self.set_clock(),
        }
    }

    fn pass_time(&mut self) {
        let most = match self.rng.u8(..10) {
            0 => Duration::from_secs(self.rng.u64(..7200)),
            1..=3 => Duration::from_secs(self.rng.u64(..20)),
            _ => Duration::from_millis(self.rng.u64(..1000)),
        };
        self.world.step_time(most);
    }

    fn end_a_sync(&mut self) {
        let syncs: Vec<SyncId> = self.world.syncs.keys().copied().collect();
        let Some(sync) = self.rng.choice(syncs) else {
            return;
        };
        let outcome = match self.rng.u8(..25) {
            0..=11 => return self.world.finish_as_is(sync),
            // Only the deadline ends it.
            12..=14 if !self.world.aborted.contains(&sync) => return,
            15 => return self.world.engine.handle_sync_progress(self.world.now, sync),
            16 => SyncOutcome::TempFail,
            17 => SyncOutcome::NoUser,
            18 => SyncOutcome::NoReplicate,
            19 => SyncOutcome::Usage,
            20 => SyncOutcome::StateRefused,
            21 => SyncOutcome::NotStarted,
            22 => SyncOutcome::Other("-2".into()),
            23 => SyncOutcome::Locked,
            _ => match self.rng.bool() {
                true => return self.world.finish_changed(sync),
                false => SyncOutcome::Changed { state: Vec::new() },
            },
        };
        self.world.finish(sync, outcome);
    }

    fn flip_peer(&mut self) {
        let peer = *self.rng.choice(&["tcp:peer", "tcp:other"]).expect("some");
        if !self.world.peers_down.remove(peer) {
            self.world.peers_down.insert(peer.to_owned());
        }
    }

    fn change_account(&mut self) {
        let username = format!("u{}", self.rng.u8(..6));
        match self.rng.u8(..4) {
            0 => {
                self.world.userdb.remove(&username);
            }
            1 => self.world.add_account(&username, &["tcp:other"]),
            2 => self
                .world
                .add_account(&username, &["tcp:peer", "remote:host", "tcp:other"]),
            _ => {
                if let Some(account) = self.world.userdb.get_mut(&username) {
                    account.noreplicate ^= true;
                }
            }
        }
        self.altered.insert(username);
    }

    fn command(&mut self) {
        let username = self.user();
        let full = self.rng.bool();
        let name = username.as_bytes();
        match self.rng.u8(..7) {
            0 => {
                let command = self.world.command(|engine, now, command| {
                    engine.handle_replicate(now, command, Priority::Low, true, name);
                });
                let owner = username.trim_start_matches("alias-").to_owned();
                let wanted = (owner, self.world.last_change);
                self.full_wanted.insert(command, wanted);
            }
            1 => {
                self.world.command(|engine, now, command| {
                    engine.handle_replicate(now, command, Priority::High, full, b"u?");
                });
            }
            2 => {
                self.world.command(|engine, now, command| {
                    engine.handle_add(now, command, b"*");
                });
            }
            3 => {
                self.world.command(|engine, now, command| {
                    engine.handle_add(now, command, name);
                });
            }
            4 => self.see_hostnames(&username),
            5 => {
                let tells_state = self.rng.bool();
                self.world.peer_syncs(&username, full, tells_state);
            }
            _ => {
                // Who is removed starts again with the next change.
                if self.world.engine.accepts_notifications() {
                    let owner = username.trim_start_matches("alias-");
                    self.full_wanted.retain(|_, (user, _)| *user != owner);
                    self.world.promise_nothing(owner);
                    self.world.command(|engine, now, command| {
                        engine.handle_remove(now, command, name);
                    });
                    self.world.change(&username, Priority::Low);
                }
            }
        }
    }

    /// A dsync process tells how both nodes are called.
    fn see_hostnames(&mut self, username: &str) {
        let mut name = || self.rng.choice([b"a", b"b", b"c"]).expect("some").to_vec();
        let (peer, own) = (name(), name());
        let side = match self.rng.bool() {
            true => Side::Ours,
            false => Side::Peers,
        };
        let observed = Observed {
            guids_healed: 0,
            undeleted: 0,
            renames: u32::from(self.rng.u8(..8) == 0),
            hostnames: Some(Hostnames { peer, own, side }),
        };
        let now = self.world.now;
        match self.rng.u8(..4) {
            0 if !self.world.served.remove(username) => return self.world.peer_begins(username),
            0 => {
                let cut_off = self.rng.bool();
                return self.world.peer_ends(username, cut_off);
            }
            1 => return self.world.put_off(),
            _ => {}
        }
        if observed
            .hostnames
            .as_ref()
            .is_some_and(Hostnames::are_the_peers_failure)
        {
            self.world.peer_failed(username);
        }
        self.world
            .engine
            .handle_observed(now, username.as_bytes(), &observed);
    }

    fn hang_up(&mut self) {
        let waiting: Vec<u64> = self.world.waiting.keys().copied().collect();
        if let Some(request) = self.rng.choice(waiting) {
            self.world.waiting.remove(&request);
            let connection = self.world.connection;
            self.world.engine.handle_waiter_gone(connection, request);
        }
    }

    fn set_clock(&mut self) {
        let secs = self.rng.u32(..200_000);
        self.world.now.wall.0 = match self.rng.bool() {
            true => self.world.now.wall.0 + secs,
            false => self.world.now.wall.0 - secs,
        };
    }

    /// The faults stop. userdb is not watched: an account that was altered is well at the first change after what was
    /// known of it has become old.
    fn heal(&mut self) {
        self.world.userdb_fails = false;
        self.world.peers_down.clear();
        for username in std::mem::take(&mut self.world.served) {
            self.world.peer_ends(&username, false);
        }
        self.world.run_for(TIME_TO_HEAL);
        self.world.check_converged(&self.altered);
        self.world.check_settled(&self.altered);
        for username in std::mem::take(&mut self.altered) {
            self.full_wanted.retain(|_, (user, _)| *user != username);
            self.world.change(&username, Priority::Low);
        }
        self.world.run_for(Duration::from_secs(10));
    }

    fn check_healed(&self) {
        let world = &self.world;
        world.check_converged(&self.altered);
        world.check_settled(&self.altered);
        world.check_counters();
        assert!(world.waiting.is_empty(), "{:?} wait", world.waiting);
        assert!(
            world.unacknowledged.is_empty(),
            "{:?}",
            world.unacknowledged
        );
        assert!(world.boot_settled);
        let counters = Counters {
            known_users: world.engine.counters().known_users,
            ..Counters::default()
        };
        assert_eq!(world.engine.counters(), counters);
        self.check_full_syncs(|_, _| false);
    }

    /// Each full sync that was promised was made, or `is_to_come`.
    fn check_full_syncs(&self, is_to_come: impl Fn(&World, &(String, String)) -> bool) {
        let world = &self.world;
        for (command, answer) in &world.command_answers {
            let wanted = self.full_wanted.get(command).filter(|_| answer.is_ok());
            let Some((username, change)) = wanted else {
                continue;
            };
            let account = world.userdb.get(username);
            let account = account.filter(|_| !self.altered.contains(username));
            for target in account.into_iter().flat_map(|account| &account.targets) {
                let key = (username.clone(), target.clone());
                let full = world.fully_synced.get(&key).copied().unwrap_or(0);
                let is_well = full >= *change || is_to_come(world, &key);
                assert!(is_well, "no full sync of {key:?}");
            }
        }
    }
}

#[test]
fn random_schedules_with_crashes_lose_nothing_and_lie_to_nobody() {
    let number = |name: &str| {
        let value = std::env::var(name).ok()?;
        Some(value.parse::<u64>().expect("a number"))
    };
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_ROUNDS").unwrap_or(ROUNDS),
    };
    for seed in seeds {
        println!("SEED={seed}");
        let mut simulation = Simulation::new(seed);
        for _ in 0..TURNS {
            simulation.turn();
            simulation.world.check_counters();
        }
        simulation.heal();
        simulation.check_healed();
    }
}
