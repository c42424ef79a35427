//! Nothing that was accepted is lost, and a start is no storm.

use super::*;

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
    world.run_for(MINUTE);
    let first_full_sync = replica(&world, "u0").last_full_sync;
    world.started.clear();
    world.command(|engine, now, command| {
        engine.handle_replicate(now, command, Priority::None, true, b"u0");
    });
    world.settle_but_syncs();
    assert!(world.command_answers.last().expect("answered").1.is_ok());
    let sync = world.sync_of("u0").expect("runs");
    assert_eq!(replica(&world, "u0").last_full_sync, first_full_sync);
    world.finish(sync, SyncOutcome::TempFail);
    time_to_next_sync(&mut world);
    world.crash(world.writes.len(), Boot::Trusted);
    time_to_next_sync(&mut world);
    world.settle();
    // A fast one comes first after one that was cut off.
    let full: Vec<bool> = world.started.iter().map(|sync| sync.full).collect();
    assert_eq!(full, [true, false, false, true]);
    assert_eq!(replica(&world, "u0").last_full_sync, world.now.wall);
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
    let full = world.started.iter().filter(|sync| sync.full).count();
    assert_eq!(full, 1, "of the one that was cut off");
    assert_eq!(world.started.len() - full, 10);
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
fn replicas_of_which_a_crash_left_a_part_are_looked_up_before_the_next_sync() {
    for stored in 0..=4 {
        let mut world = world(0);
        world.add_account("u0", &["tcp:peer", "tcp:other"]);
        world.change("u0", Priority::Low);
        world.answer_lookup();
        world.crash(stored, Boot::Trusted);
        world.userdb_fails = true;
        world.run_for(MINUTE);
        assert_eq!(world.started.len(), 0);
        world.userdb_fails = false;
        world.run_for(10 * MINUTE);
        world.check_converged(&Default::default());
    }
}
