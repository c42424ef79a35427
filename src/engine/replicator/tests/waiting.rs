//! Those who wait for a sync.

use super::*;

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
