//! Who is synced: userdb, listings, names, replicas.

use super::*;

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

#[test]
fn most_replicas_are_all_served_and_one_more_is_left_out_with_an_error() {
    let mut world = world(0);
    let targets: Vec<String> = (0..=MAX_REPLICAS).map(|n| format!("tcp:h{n}")).collect();
    let all: Vec<&str> = targets.iter().map(|target| &**target).collect();
    world.add_account("most", &all[..MAX_REPLICAS]);
    world.add_account("more", &all);
    let request = world.deliver("most");
    world.settle();
    assert_eq!(world.answers, [(request, Ok(()))]);
    assert_eq!(world.started.len(), MAX_REPLICAS);
    assert_eq!(errors(&world, "left out"), 0);
    world.deliver("more");
    world.settle();
    assert_eq!(world.started.len(), 2 * MAX_REPLICAS);
    assert_eq!(errors(&world, "More than 8 replicas"), 1);
}

#[test]
fn lookups_under_way_are_bounded_and_leave_room_for_users_that_are_due() {
    let users = 200;
    let mut world = world(users);
    world.crash(0, Boot::Trusted);
    for n in 0..users {
        world.change(&format!("new{n}"), Priority::Low);
    }
    for n in 0..users {
        world.change(&format!("u{n}"), Priority::Low);
    }
    assert_eq!(world.lookups.len(), MAX_LOOKUPS);
    let known = world
        .lookups
        .iter()
        .filter(|(_, name)| !name.starts_with("new"));
    assert_eq!(known.count(), MAX_LOOKUPS / 2);
    world.settle();
    world.check_converged(&Default::default());
}
