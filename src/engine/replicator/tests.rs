//! What the engine promises, by name. Numbers in brackets are the stock replicator's defects (STOCK.md of the design).

use std::collections::BTreeSet;
use std::time::Duration;

use super::world::World;
use super::*;
use crate::engine::Priority;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

fn world(users: usize) -> World {
    World::with_users(Config::default(), users)
}

fn small(max_conns: usize, users: usize) -> World {
    let config = Config {
        max_conns,
        ..Config::default()
    };
    World::with_users(config, users)
}

fn ok() -> SyncOutcome {
    SyncOutcome::Ok {
        state: b"state".to_vec(),
    }
}

fn replica(world: &World, username: &str) -> ReplicaDetails {
    let details = world.engine.show(world.now, username.as_bytes());
    details.expect("known").replicas.swap_remove(0)
}

fn errors(world: &World, text: &str) -> usize {
    let log = world.log.iter();
    log.filter(|event| event.text.contains(text)).count()
}

/// The time until the engine starts the next sync, everything but dsync being answered at once.
fn time_to_next_sync(world: &mut World) -> Duration {
    let begin = world.now.mono;
    let started = world.started.len();
    while world.started.len() == started {
        world.settle_but_syncs();
        if world.started.len() == started {
            world.step_time(HOUR);
        }
        assert!(world.now.mono.since(begin) <= 3 * HOUR, "never");
    }
    world.now.mono.since(begin)
}

/// [1]
#[test]
fn request_to_wait_is_answered_once_and_the_engine_rests() {
    let mut world = world(1);
    let request = world.deliver("u0");
    world.settle();
    assert_eq!(world.answers, [(request, Ok(()))]);
    let next = world.engine.next_timeout().expect("a sweep");
    assert!(next > world.now.mono);
    world.run_for(MINUTE);
    assert_eq!(world.answers.len(), 1);
}

/// [2]
#[test]
fn waiter_with_all_connections_busy_gets_its_plus_after_its_own_sync() {
    let mut world = small(1, 2);
    world.change("u0", Priority::Low);
    let request = world.deliver("u1");
    world.settle_but_syncs();
    assert_eq!(world.sync_of("u1"), None);
    let first = world.sync_of("u0").expect("runs");
    world.succeed(first);
    assert_eq!(world.answers, []);
    let second = world.sync_of("u1").expect("runs");
    world.succeed(second);
    assert_eq!(world.answers, [(request, Ok(()))]);
}

#[test]
fn sync_that_runs_already_is_not_the_one_a_waiter_waits_for() {
    let mut world = world(1);
    world.change("u0", Priority::Low);
    let running = world.sync_of("u0").expect("runs");
    let request = world.deliver("u0");
    world.succeed(running);
    assert_eq!(world.answers, []);
    let second = world
        .sync_of("u0")
        .expect("a change during a sync leads to another");
    assert_ne!(second, running);
    world.succeed(second);
    assert_eq!(world.answers, [(request, Ok(()))]);
}

#[test]
fn plus_needs_every_replica() {
    let mut world = world(0);
    world.add_account("u0", &["tcp:peer", "tcp:other"]);
    let request = world.deliver("u0");
    world.settle_but_syncs();
    for _ in 0..2 {
        let sync = world.sync_of("u0").expect("runs");
        assert_eq!(world.answers, []);
        world.succeed(sync);
    }
    assert_eq!(world.answers, [(request, Ok(()))]);
    let mut targets: Vec<&str> = world.started.iter().map(|sync| &*sync.target).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["tcp:other", "tcp:peer"]);
}

/// [3]
#[test]
fn burst_is_acknowledged_and_synced_without_a_loss() {
    let users = 300;
    let mut world = world(users);
    for n in 0..30_000 {
        world.change(&format!("u{}", n % users), Priority::Low);
    }
    assert!(world.writes.len() <= 2 * users);
    world.settle();
    assert!(world.unacknowledged.is_empty());
    world.check_converged(&Default::default());
    assert!(world.started.len() <= 2 * users);
}

/// [5]
#[test]
fn full_sync_that_was_asked_for_is_full_also_after_a_failure_and_a_crash() {
    let mut world = world(1);
    world.command(|engine, now, command| {
        engine.handle_replicate(now, command, Priority::None, true, b"u0");
    });
    world.settle_but_syncs();
    assert!(world.command_answers.last().expect("answered").1.is_ok());
    let sync = world.sync_of("u0").expect("runs");
    assert_eq!(replica(&world, "u0").last_full_sync, UnixSecs(0));
    world.finish(sync, SyncOutcome::TempFail);
    time_to_next_sync(&mut world);
    world.crash(world.writes.len(), Boot::Trusted);
    time_to_next_sync(&mut world);
    world.settle();
    assert!(world.started.iter().all(|sync| sync.full));
    assert_eq!(world.started.len(), 3);
    assert_eq!(replica(&world, "u0").last_full_sync, world.now.wall);
}

/// [6]
#[test]
fn syncs_that_hang_are_ended_at_the_deadline_and_the_others_go_on() {
    let mut world = small(2, 3);
    world.change("u0", Priority::Low);
    world.change("u1", Priority::Low);
    world.change("u2", Priority::Low);
    let deadline = world.config.sync_deadline;
    world.run_but_syncs_for(deadline - Duration::from_secs(5));
    let slow = world.sync_of("u1").expect("runs");
    world.engine.handle_sync_progress(world.now, slow);
    world.run_but_syncs_for(Duration::from_secs(6));
    let hung = world.sync_of("u0").expect("runs");
    assert_eq!(world.aborted, [hung]);
    assert_eq!(world.sync_of("u2"), None);
    world.finish(hung, SyncOutcome::Timeout);
    world.settle_but_syncs();
    assert!(world.sync_of("u2").is_some());
    assert_eq!(world.engine.counters().waiting_failed, 1);
    assert!(replica(&world, "u0").reason.contains("deadline"));
}

/// [7]
#[test]
fn failure_keeps_the_state_says_why_and_is_retried_from_under_a_second_to_the_longest_pause() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    let mut pauses = Vec::new();
    for _ in 0..14 {
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, SyncOutcome::NotFound);
        pauses.push(time_to_next_sync(&mut world));
    }
    assert!(pauses[0] < Duration::from_secs(1));
    assert!(pauses.windows(2).take(8).all(|pair| pair[0] < pair[1]));
    assert!(pauses.iter().all(|pause| *pause <= 5 * MINUTE));
    assert!(pauses[13] > 3 * MINUTE);
    assert!(
        world
            .started
            .iter()
            .all(|sync| sync.state.is_some() && !sync.full)
    );
    assert_eq!(errors(&world, "Sync failed: NOTFOUND"), 1);
    let details = replica(&world, "u0");
    assert_eq!((details.failures, &*details.reason), (14, "NOTFOUND"));
    world.settle();
    assert_eq!(errors(&world, "Synced again"), 1);
    assert_eq!(replica(&world, "u0").failures, 0);
}

/// [7]
#[test]
fn concurrent_change_is_no_failure_and_is_synced_again_at_once() {
    let mut world = world(1);
    let request = world.deliver("u0");
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, SyncOutcome::Changed);
        assert_eq!(replica(&world, "u0").failures, 0);
        assert_eq!(world.engine.counters().queued_sync, 1);
        pauses.push(time_to_next_sync(&mut world));
    }
    assert!(pauses[0] <= Duration::from_millis(20));
    assert!(pauses[4] > pauses[0] && pauses[4] < Duration::from_secs(1));
    world.settle();
    assert_eq!(world.answers, [(request, Ok(()))]);
    assert!(world.started.iter().all(|sync| sync.state.is_some()));
}

/// [8]
#[test]
fn crash_makes_no_full_sync_and_keeps_what_was_pending() {
    let mut world = small(1, 20);
    for n in 0..10 {
        world.change(&format!("u{n}"), Priority::Low);
    }
    world.settle_but_syncs();
    assert!(world.unacknowledged.is_empty());
    world.crash(0, Boot::Trusted);
    world.started.clear();
    world.run_for(10 * MINUTE);
    world.check_converged(&Default::default());
    assert_eq!(world.started.len(), 10);
    assert!(
        world
            .started
            .iter()
            .all(|sync| !sync.full && sync.state.is_some())
    );
}

#[test]
fn unclean_boot_queues_every_user_once_spread_also_when_a_crash_comes_between() {
    let users = 400;
    let config = Config {
        full_sync_interval: Duration::ZERO,
        ..Config::default()
    };
    let mut world = World::with_users(config, users);
    world.boot_settled = false;
    world.crash(0, Boot::Unclean);
    world.started.clear();
    world.run_for(Duration::from_secs(10));
    let soon = world.started.len();
    assert!((20..users).contains(&soon), "{soon}");
    assert!(!world.boot_settled);
    world.crash(0, Boot::Unclean);
    world.run_for(3 * MINUTE);
    assert!(world.boot_settled);
    assert!(world.started.iter().all(|sync| !sync.full));
    let synced: BTreeSet<&str> = world.started.iter().map(|sync| &*sync.username).collect();
    assert_eq!(synced.len(), users);
    let more = world.started.len();
    world.crash(0, Boot::Trusted);
    world.run_for(3 * MINUTE);
    assert_eq!(world.started.len(), more);
}

/// [14]
#[test]
fn loser_of_a_lock_tries_again_within_a_second_at_a_time_of_its_own() {
    let mut world = world(8);
    for n in 0..8 {
        world.change(&format!("u{n}"), Priority::High);
    }
    world.settle_but_syncs();
    let begin = world.now.mono;
    let all: Vec<SyncId> = world.syncs.keys().copied().collect();
    for sync in all {
        world.finish(sync, SyncOutcome::TempFail);
    }
    world.settle_but_syncs();
    let mut times = BTreeSet::new();
    while world.syncs.len() < 8 {
        world.step_time(MINUTE);
        times.insert(world.now.mono);
    }
    assert!(world.now.mono.since(begin) < Duration::from_secs(1));
    assert!(times.len() > 3);
    world.settle();
    world.check_converged(&Default::default());
}

/// [15]
#[test]
fn peer_that_is_down_is_probed_for_all_and_all_go_on_when_it_is_back() {
    let users = 50;
    let mut world = world(users);
    world.add_account("elsewhere", &["tcp:other"]);
    world.peers_down.insert("tcp:peer".into());
    for n in 0..users {
        world.change(&format!("u{n}"), Priority::Low);
        world.run_for(Duration::from_millis(100));
    }
    let attempts = world.started.len();
    assert!(attempts <= world.config.max_conns, "{attempts}");
    assert_eq!(errors(&world, "not reachable"), 1);
    world.probes_asked.clear();
    world.run_for(10 * MINUTE);
    assert_eq!(world.started.len(), attempts);
    let close = world.probes_asked.windows(2).take(100);
    let gaps: Vec<_> = close.map(|pair| pair[1].since(pair[0])).collect();
    assert!(gaps.iter().all(|gap| *gap <= Duration::from_secs(2)));
    // Whoever waits is told at once, and other peers are not touched.
    let request = world.deliver("u7");
    let (answered, answer) = world.answers.pop().expect("at once");
    assert!(answered == request && answer.is_err());
    world.change("elsewhere", Priority::Low);
    world.settle();
    assert_eq!(world.started.last().expect("some").username, "elsewhere");
    assert_eq!(world.engine.peers()[0].waiting as usize, users);
    assert_eq!(world.engine.peers()[0].reachable, Some(false));

    world.run_for(Duration::from_secs(30));
    world.started.clear();
    world.peers_down.clear();
    world.run_for(Duration::from_secs(31));
    assert_eq!(errors(&world, "reachable again (50 users"), 1);
    let order: Vec<String> = world.started.iter().map(|s| s.username.clone()).collect();
    let expected: Vec<String> = (0..users).map(|n| format!("u{n}")).collect();
    assert_eq!(order, expected);
    world.check_converged(&Default::default());
    assert_eq!(errors(&world, "Sync failed"), 0);
}

#[test]
fn all_go_on_within_two_seconds_of_the_return_of_a_peer_that_was_away_for_ten() {
    let mut world = world(20);
    world.peers_down.insert("tcp:peer".into());
    for n in 0..20 {
        world.change(&format!("u{n}"), Priority::Low);
    }
    world.run_for(Duration::from_secs(10));
    world.peers_down.clear();
    world.run_for(Duration::from_secs(2));
    world.check_converged(&Default::default());
}

#[test]
fn syncs_that_hang_because_the_peer_is_gone_are_ended_without_the_deadline() {
    let mut world = small(2, 2);
    world.change("u0", Priority::Low);
    world.change("u1", Priority::Low);
    world.settle_but_syncs();
    world.peers_down.insert("tcp:peer".into());
    world.run_but_syncs_for(Duration::from_secs(11));
    assert_eq!(world.aborted.len(), 2);
    assert_eq!(world.engine.peers()[0].reachable, Some(false));
}

/// [17]
#[test]
fn notify_of_the_peer_counts_as_a_success_and_leaves_what_is_pending() {
    let mut world = small(1, 2);
    world.run_for(MINUTE);
    world.change("u1", Priority::Low);
    world.change("u0", Priority::Low);
    world.command(|engine, now, command| {
        engine.handle_notify(now, command, b"u0", true, b"new");
    });
    world.settle_but_syncs();
    let details = replica(&world, "u0");
    assert_eq!(details.last_success, world.now.wall);
    assert_eq!(details.last_full_sync, world.now.wall);
    assert_eq!(details.priority, Priority::Low);
    world.settle();
    let sync = world.started.last().expect("u0's");
    assert_eq!(sync.state.as_deref(), Some(&b"new"[..]));
    // A part of a state does not replace a whole one.
    world.command(|engine, now, command| {
        engine.handle_notify(now, command, b"u0", false, b"part");
    });
    world.settle();
    let (_, state) = &world.store[&("u0".into(), "tcp:peer".into())];
    assert_ne!(state.as_deref(), Some(&b"part"[..]));
}

/// [18]
#[test]
fn failed_listing_is_tried_again_removes_nobody_and_new_users_appear() {
    let mut world = world(4);
    world.userdb_fails = true;
    world.run_for(HOUR + MINUTE);
    assert_eq!(world.engine.counters().known_users, 4);
    assert_eq!(errors(&world, "Listing users failed"), 1);
    world.userdb_fails = false;
    world.userdb.remove("u3");
    world.add_account("new", &["tcp:peer"]);
    world.run_for(6 * MINUTE);
    assert_eq!(errors(&world, "Listing users works again"), 1);
    assert!(world.engine.show(world.now, b"new").is_some());
    assert!(world.started.iter().any(|sync| sync.username == "new"));
    // u3 was looked up within the last hour, or is gone.
    world.run_for(2 * HOUR);
    assert!(world.engine.show(world.now, b"u3").is_none());
    assert_eq!(world.engine.counters().known_users, 4);
    assert!(!world.store.keys().any(|(username, _)| username == "u3"));
}

/// [19] [20]
#[test]
fn word_of_the_peer_does_not_take_a_user_out() {
    for (outcome, reason) in [
        (SyncOutcome::NoUser, "unknown at tcp:peer"),
        (SyncOutcome::NoReplicate, "not replicated at tcp:peer"),
    ] {
        let mut world = world(1);
        world.change("u0", Priority::High);
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, outcome);
        world.settle_but_syncs();
        assert!(replica(&world, "u0").reason.contains(reason));
        let pause = time_to_next_sync(&mut world);
        assert!(pause > 3 * MINUTE && pause <= 5 * MINUTE);
        world.settle();
        world.check_converged(&Default::default());
    }
}

#[test]
fn user_whom_the_local_userdb_denies_too_is_taken_out() {
    let mut world = world(2);
    world.userdb.remove("u0");
    world.userdb.get_mut("u1").expect("there").noreplicate = true;
    world.change("u0", Priority::Low);
    world.change("u1", Priority::Low);
    world.settle();
    assert!(world.engine.show(world.now, b"u0").is_none());
    assert!(world.engine.show(world.now, b"u1").expect("known").left_out);
    assert_eq!(world.engine.counters(), Counters::default());
    assert!(world.store.is_empty());
    // What is told of the one who is left out is dropped without a lookup.
    let lookups = world.lookups_asked;
    world.change("u1", Priority::Low);
    world.settle();
    assert_eq!(world.lookups_asked, lookups);
    assert!(world.unacknowledged.is_empty());
    assert_eq!(world.engine.totals().dropped_not_replicated, 1);
}

#[test]
fn unknown_name_costs_one_lookup_and_is_dropped_with_a_count() {
    let mut world = world(0);
    for _ in 0..5 {
        world.change("nobody", Priority::Low);
    }
    let request = world.deliver("nobody");
    assert_eq!(world.unacknowledged.len(), 6);
    world.settle();
    assert_eq!(world.lookups_asked, 1);
    assert!(world.unacknowledged.is_empty());
    assert_eq!(world.engine.totals().dropped_unknown, 6);
    assert_eq!(world.answers.len(), 1);
    assert_eq!(world.answers[0].0, request);
    assert!(world.answers[0].1.is_err());
    assert!(world.store.is_empty());
}

#[test]
fn new_name_is_kept_while_userdb_is_away_and_reading_stops_when_there_are_too_many() {
    let mut world = world(0);
    world.userdb_fails = true;
    world.add_account("new", &["tcp:peer"]);
    world.change("new", Priority::Low);
    world.run_for(10 * MINUTE);
    assert_eq!(world.unacknowledged.len(), 1);
    for n in 1..MAX_UNKNOWN {
        assert!(world.engine.accepts_notifications());
        world.change(&format!("other{n}"), Priority::Low);
    }
    assert!(!world.engine.accepts_notifications());
    world.userdb_fails = false;
    world.run_for(6 * MINUTE);
    assert!(world.engine.accepts_notifications());
    assert!(world.unacknowledged.is_empty());
    world.check_converged(&Default::default());
    assert_eq!(world.started.len(), 1);
}

#[test]
fn user_is_synced_by_the_name_that_userdb_uses() {
    let mut world = world(1);
    world.add_account("alias-u0", &[]);
    let request = world.deliver("alias-u0");
    world.settle();
    assert_eq!(world.answers, [(request, Ok(()))]);
    assert_eq!(world.started[0].username, "u0");
    assert_eq!(world.engine.counters().known_users, 1);
}

#[test]
fn replicas_are_looked_up_when_first_due_and_kept() {
    let mut world = world(1);
    let lookups = world.lookups_asked;
    for _ in 0..10 {
        world.change("u0", Priority::Low);
        world.run_for(MINUTE);
    }
    assert_eq!(world.lookups_asked, lookups);
    world.add_account("u0", &["tcp:new"]);
    world.run_for(HOUR);
    world.change("u0", Priority::Low);
    world.settle();
    assert_eq!(world.lookups_asked, lookups + 1);
    assert_eq!(world.started.last().expect("some").target, "tcp:new");
    let targets: Vec<&str> = world.store.keys().map(|(_, target)| &**target).collect();
    assert_eq!(targets, ["tcp:new"]);
}

#[test]
fn record_without_a_replica_gives_its_state_to_the_first_one() {
    let mut world = World::new(Config::default());
    world.add_account("u0", &["tcp:peer"]);
    let record = Record {
        username: b"u0".to_vec(),
        priority: Priority::Low,
        last_update: world.now.wall,
        last_fast_sync: world.now.wall,
        last_full_sync: world.now.wall,
        has_state: true,
        ..Record::default()
    };
    let key = ("u0".to_owned(), String::new());
    let imported = Some(b"imported".to_vec());
    world.store.insert(key, (record, imported.clone()));
    world.crash(0, Boot::Trusted);
    world.settle();
    assert_eq!(world.started[0].state, imported);
    assert!(!world.started[0].full);
    assert_eq!(world.store.len(), 1);
}

#[test]
fn usage_is_one_error_and_a_long_pause_that_the_administrator_ends() {
    let mut world = world(1);
    world.change("u0", Priority::Low);
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, SyncOutcome::Usage);
    world.run_but_syncs_for(30 * MINUTE);
    assert_eq!(world.started.len(), 1);
    let said: Vec<Level> = world.log.iter().map(|event| event.level).collect();
    assert_eq!(said, [Level::Error]);
    world.command(|engine, now, command| {
        engine.handle_replicate(now, command, Priority::Low, false, b"u0");
    });
    world.settle();
    world.check_converged(&Default::default());
}

#[test]
fn doveadm_server_that_is_away_is_nobodys_failure_and_said_once() {
    let mut world = world(20);
    for n in 0..20 {
        world.change(&format!("u{n}"), Priority::Low);
    }
    for _ in 0..100 {
        if let Some((&sync, _)) = world.syncs.first_key_value() {
            world.finish(sync, SyncOutcome::NotStarted);
        }
        world.run_but_syncs_for(Duration::from_millis(100));
    }
    assert!(world.started.len() < 40, "{}", world.started.len());
    assert_eq!(errors(&world, "No sync can be started"), 1);
    assert_eq!(
        world.engine.counters().queued_low as usize + world.syncs.len(),
        20
    );
    world.run_for(Duration::from_secs(3));
    world.check_converged(&Default::default());
    assert_eq!(errors(&world, "Syncs can be started again"), 1);
}

#[test]
fn refused_state_is_forgotten() {
    let mut world = world(1);
    world.change("u0", Priority::Low);
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, SyncOutcome::StateRefused);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.started[1].state, None);
}

#[test]
fn one_user_who_always_fails_does_not_hold_up_the_rest() {
    let mut world = small(1, 10);
    world.change("u0", Priority::Sync);
    for n in 0..200 {
        world.change(&format!("u{}", 1 + n % 9), Priority::Low);
        world.settle_but_syncs();
        while let Some((&sync, dsync)) = world.syncs.first_key_value() {
            match &*dsync.username {
                "u0" => world.finish(sync, SyncOutcome::NotFound),
                _ => world.finish(sync, ok()),
            }
            world.settle_but_syncs();
        }
        world.run_but_syncs_for(Duration::from_millis(500));
    }
    let failing = world.started.iter().filter(|s| s.username == "u0").count();
    assert!(failing < 12, "{failing}");
    world.check_converged(&BTreeSet::from(["u0".to_owned()]));
}

#[test]
fn low_priority_is_not_starved_by_new_mail_without_end() {
    let mut world = small(1, 3);
    world.change("u1", Priority::High);
    world.change("u0", Priority::Low);
    let begin = world.now.mono;
    loop {
        let (&sync, dsync) = world.syncs.first_key_value().expect("always busy");
        if dsync.username == "u0" {
            break;
        }
        // While one is synced the other has new mail.
        let other = match &*dsync.username {
            "u1" => "u2",
            _ => "u1",
        };
        world.change(other, Priority::High);
        world.run_but_syncs_for(Duration::from_secs(5));
        world.succeed(sync);
        world.settle_but_syncs();
    }
    let waited = world.now.mono.since(begin);
    assert!(waited > 10 * MINUTE && waited < 16 * MINUTE, "{waited:?}");
}

#[test]
fn full_syncs_come_once_in_an_interval_and_not_in_a_storm() {
    let users = 240;
    let mut world = world(users);
    let mut by_hour = Vec::new();
    for _ in 0..48 {
        world.started.clear();
        world.run_for(HOUR);
        by_hour.push(world.started.iter().filter(|sync| sync.full).count());
    }
    assert_eq!(by_hour.iter().sum::<usize>(), 2 * users);
    assert!(*by_hour.iter().max().expect("some") < 30, "{by_hour:?}");
    // Neither a start nor a set clock makes one.
    world.crash(0, Boot::Trusted);
    world.run_for(MINUTE);
    for secs in [700_000_i64, -300_000] {
        let wall = i64::from(world.now.wall.0) + secs;
        world.now.wall.0 = u32::try_from(wall).expect("in range");
        world.started.clear();
        world.run_for(5 * MINUTE);
        let full = world.started.iter().filter(|sync| sync.full).count();
        assert!(full < 10, "{full}");
    }
}

#[test]
fn listing_in_pages_shows_everybody_once_while_users_come_and_go() {
    let users = 50;
    let mut world = world(users);
    let mut shown = Vec::new();
    let mut cursor = Some(Cursor::default());
    let mut n = 0;
    while let Some(from) = cursor {
        cursor = world.engine.list(world.now, from, 7, b"u*", &mut |status| {
            shown.push(String::from_utf8_lossy(status.username).into_owned());
        });
        n += 1;
        world.add_account(&format!("v{n}"), &["tcp:peer"]);
        world.change(&format!("v{n}"), Priority::Low);
        world.settle();
    }
    shown.sort();
    let mut expected: Vec<String> = (0..users).map(|n| format!("u{n}")).collect();
    expected.sort();
    assert_eq!(shown, expected);
}

#[test]
fn replicate_by_mask_counts_and_queues_in_steps() {
    let users = 2500;
    let config = Config {
        max_conns: 1,
        ..Config::default()
    };
    let mut world = World::new(config);
    for n in 0..users {
        world.add_account(&format!("u{n}"), &["remote:peer"]);
    }
    world.settle();
    world.command(|engine, now, command| {
        engine.handle_replicate(now, command, Priority::High, true, b"u*5");
    });
    world.settle_but_syncs();
    assert_eq!(world.command_answers, []);
    world.run_but_syncs_for(Duration::from_millis(1));
    let (_, answer) = world.command_answers.pop().expect("answered");
    assert_eq!(answer, Ok(CommandDone::Users(250)));
    assert_eq!(world.engine.counters().queued_high, 249);
    world.check_counters();
}

#[test]
fn status_shows_what_stock_shows() {
    let mut world = small(1, 4);
    world.change("u3", Priority::Low);
    world.change("u0", Priority::Sync);
    world.change("u1", Priority::High);
    world.change("u2", Priority::Low);
    world.settle_but_syncs();
    let expected = Counters {
        queued_sync: 1,
        queued_high: 1,
        queued_low: 1,
        known_users: 4,
        ..Counters::default()
    };
    assert_eq!(world.engine.counters(), expected);
    let sync = world.sync_of("u3").expect("runs");
    assert_eq!(
        world.engine.syncs().next().expect("one").sync_type,
        SyncType::Incremental
    );
    world.finish(sync, SyncOutcome::NotFound);
    world.settle_but_syncs();
    assert_eq!(world.engine.counters().waiting_failed, 1);
    let mut line = None;
    world
        .engine
        .list(world.now, Cursor::default(), 100, b"u3", &mut |status| {
            assert!(status.failed && status.priority == Priority::None);
            line = Some(status.last_fast_sync);
        });
    assert_eq!(line, Some(world.now.wall));
}

#[test]
fn removed_user_is_gone_also_when_its_sync_runs_and_a_change_brings_it_back() {
    let mut world = world(1);
    world.change("u0", Priority::Low);
    let remove = |engine: &mut Replicator, now: Now, command: CommandId| {
        engine.handle_remove(now, command, b"u0");
    };
    world.command(remove);
    world.settle();
    assert!(world.engine.show(world.now, b"u0").is_none());
    assert!(world.store.is_empty());
    world.command(remove);
    let (_, answer) = world.command_answers.last().expect("answered");
    assert_eq!(*answer, Err("User not found".to_owned()));
    world.change("u0", Priority::Low);
    world.settle();
    world.check_converged(&Default::default());
}
