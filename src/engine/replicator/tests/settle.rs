//! Stale states, and the full sync that makes up for one.

use super::*;

/// Syncs of `u0` since `from`, each full or not.
fn kinds(world: &World, from: usize) -> Vec<bool> {
    let started = world.started.iter().skip(from);
    started.map(|sync| sync.full).collect()
}

/// A world whose full syncs lie back.
fn rested() -> World {
    let mut world = world(1);
    world.run_for(MINUTE);
    world
}

/// One in which a full sync is to make up for a peer's sync that told no state.
fn changed_after_a_peers_sync() -> World {
    let mut world = rested();
    world.peer_syncs("u0", false, false);
    world.change("u0", Priority::Low);
    world
}

#[test]
fn change_after_a_peers_sync_without_a_state_is_synced_at_once_and_in_full_when_quiet() {
    let mut world = rested();
    world.peer_syncs("u0", false, false);
    world.run_for(MINUTE);
    assert!(kinds(&world, 0).is_empty(), "nothing was changed here");
    let begin = world.now.mono;
    world.change("u0", Priority::Low);
    world.settle();
    assert_eq!(kinds(&world, 0), [false]);
    assert_eq!(world.now.mono, begin);
    world.run_for(Duration::from_secs(3));
    assert_eq!(kinds(&world, 0), [false, true]);
    assert!(world.started[1].from_state);
    world.check_converged(&Default::default());
    world.check_settled(&Default::default());
    world.change("u0", Priority::Low);
    world.run_for(MINUTE);
    assert_eq!(kinds(&world, 2), [false], "it is settled");
    assert_eq!(world.engine.totals().settling_syncs_started, 1);
}

#[test]
fn state_that_the_peer_tells_is_begun_from_and_needs_no_full_sync() {
    let mut world = rested();
    for full in [false, true] {
        world.peer_syncs("u0", full, true);
        let state = state_of(world.last_change);
        world.change("u0", Priority::Low);
        world.run_for(MINUTE);
        let sync = world.started.last().expect("some");
        assert_eq!(sync.state, Some(state));
    }
    assert_eq!(kinds(&world, 0), [false, false]);
    world.check_converged(&Default::default());
    world.check_settled(&Default::default());
}

#[test]
fn peers_sync_in_the_middle_of_ours_leaves_a_stale_state_whatever_it_tells() {
    let mut world = rested();
    world.change("u0", Priority::Low);
    let sync = world.sync_of("u0").expect("runs");
    world.peer_syncs("u0", true, true);
    world.succeed(sync);
    world.run_for(Duration::from_secs(3));
    assert_eq!(kinds(&world, 0), [false, true]);
    world.check_converged(&Default::default());
    world.check_settled(&Default::default());
}

#[test]
fn sync_that_failed_after_its_beginning_is_followed_by_one_full_sync() {
    for outcome in [
        SyncOutcome::TempFail,
        SyncOutcome::Eof,
        SyncOutcome::Timeout,
        SyncOutcome::Other("UNKNOWN".into()),
    ] {
        let mut world = rested();
        world.change("u0", Priority::Low);
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, outcome);
        world.run_for(MINUTE);
        assert_eq!(kinds(&world, 0), [false, false, true]);
        world.check_converged(&Default::default());
        world.check_settled(&Default::default());
    }
}

#[test]
fn sync_that_never_reached_the_peer_needs_no_full_sync() {
    for outcome in [SyncOutcome::PeerUnreachable, SyncOutcome::NotStarted] {
        let mut world = rested();
        world.change("u0", Priority::Low);
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, outcome);
        world.run_for(MINUTE);
        assert_eq!(kinds(&world, 0), [false, false]);
    }
}

#[test]
fn full_sync_that_waited_for_a_lock_does_not_put_off_the_next_for_minutes() {
    let mut world = rested();
    let full_after = |world: &mut World, secs: u64| {
        world.peer_syncs("u0", false, false);
        world.change("u0", Priority::Low);
        let sync = world.sync_of("u0").expect("runs");
        world.succeed(sync);
        let wait = time_to_next_sync(world);
        let sync = world.sync_of("u0").expect("the full one");
        assert!(world.syncs[&sync].full);
        world.run_but_syncs_for(Duration::from_secs(secs));
        world.succeed(sync);
        wait.as_secs()
    };
    full_after(&mut world, 30);
    let waits: Vec<u64> = (0..5).map(|_| full_after(&mut world, 10)).collect();
    assert_eq!(waits, [20, 60, 140, 200, 200]);
}

#[test]
fn row_that_is_never_quiet_is_settled_once_in_a_minute() {
    let mut world = rested();
    for _ in 0..180 {
        world.peer_syncs("u0", false, false);
        world.change("u0", Priority::Low);
        world.run_for(Duration::from_secs(1));
    }
    let full = kinds(&world, 0).into_iter().filter(|full| *full).count();
    assert!((2..=3).contains(&full), "{full}");
}

#[test]
fn full_sync_that_takes_long_is_made_the_more_seldom() {
    let mut world = rested();
    let mut begun = Vec::new();
    while begun.len() < 4 {
        world.peer_syncs("u0", false, false);
        world.change("u0", Priority::Low);
        world.run_but_syncs_for(Duration::from_secs(4));
        while let Some(sync) = world.sync_of("u0") {
            if world.syncs[&sync].full {
                begun.push(world.now.mono);
                world.run_but_syncs_for(Duration::from_secs(6));
            }
            world.succeed(sync);
            world.settle_but_syncs();
        }
    }
    assert!(begun[3].since(begun[2]) >= Duration::from_secs(120));
}

#[test]
fn stale_state_and_the_full_sync_to_come_survive_a_crash() {
    let mut world = rested();
    world.peer_syncs("u0", false, false);
    world.settle();
    world.crash(0, Boot::Trusted);
    let before = world.started.len();
    world.change("u0", Priority::Low);
    world.settle();
    world.crash(0, Boot::Trusted);
    world.run_for(MINUTE);
    // After each start a fast one comes first.
    assert_eq!(kinds(&world, before), [false, false, true]);
    world.check_converged(&Default::default());
    world.check_settled(&Default::default());
}

/// A peer's sync may have been cut off while no replicator ran.
#[test]
fn full_sync_that_is_ordered_after_a_start_comes_after_a_fast_one() {
    let mut world = rested();
    world.crash(0, Boot::Trusted);
    for kinds_of_order in [&[false, true][..], &[true]] {
        let before = world.started.len();
        world.command(|engine, now, command| {
            engine.handle_replicate(now, command, Priority::Low, true, b"u0");
        });
        world.run_for(MINUTE);
        assert_eq!(kinds(&world, before), kinds_of_order);
    }
}

#[test]
fn sync_that_a_crash_cut_off_is_followed_by_one_full_sync() {
    let mut world = rested();
    world.change("u0", Priority::Low);
    world.settle_but_syncs();
    assert!(world.sync_of("u0").is_some());
    world.crash(0, Boot::Trusted);
    world.run_for(MINUTE);
    assert_eq!(kinds(&world, 0), [false, false, true]);
    world.check_converged(&Default::default());
    world.check_settled(&Default::default());
}

#[test]
fn no_full_sync_follows_one_that_was_cut_off_before_a_fast_one_came_through() {
    let mut world = rested();
    world.command(|engine, now, command| {
        engine.handle_replicate(now, command, Priority::Low, true, b"u0");
    });
    for outcome in [SyncOutcome::Eof, SyncOutcome::TempFail] {
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, outcome);
        time_to_next_sync(&mut world);
    }
    world.run_for(MINUTE);
    assert_eq!(kinds(&world, 0), [true, false, false, true]);
    world.check_settled(&Default::default());
}

#[test]
fn state_that_the_peer_tells_during_a_first_sync_is_begun_from_if_that_is_cut_off() {
    let mut world = World::new(Config::default());
    world.add_account("u0", &["tcp:peer"]);
    world.change("u0", Priority::Low);
    world.settle_but_syncs();
    let sync = world.sync_of("u0").expect("runs");
    assert!(world.syncs[&sync].full && world.syncs[&sync].state.is_none());
    world.peer_syncs("u0", true, true);
    let told = state_of(world.last_change);
    world.finish(sync, SyncOutcome::Eof);
    time_to_next_sync(&mut world);
    let sync = world.sync_of("u0").expect("runs");
    assert!(!world.syncs[&sync].full);
    assert_eq!(world.syncs[&sync].state, Some(told));
    world.run_for(MINUTE);
    world.check_converged(&Default::default());
    world.check_settled(&Default::default());
}

#[test]
fn full_sync_that_settles_begins_from_the_state_until_it_comes_through() {
    let mut world = changed_after_a_peers_sync();
    world.settle();
    world.run_but_syncs_for(Duration::from_secs(3));
    let ends = [
        SyncOutcome::Changed {
            state: state_of(world.last_change),
        },
        SyncOutcome::Locked,
    ];
    for outcome in ends {
        let sync = world.sync_of("u0").expect("runs");
        assert!(world.syncs[&sync].from_state, "before {outcome:?}");
        world.finish(sync, outcome);
        time_to_next_sync(&mut world);
    }
    world.run_for(MINUTE);
    assert!(
        world
            .started
            .iter()
            .all(|sync| sync.from_state == sync.full)
    );
    assert_eq!(kinds(&world, 0), [false, true, true, true]);
    world.check_settled(&Default::default());
}

#[test]
fn full_sync_that_was_ordered_or_is_due_does_not_begin_from_the_state() {
    let mut world = changed_after_a_peers_sync();
    world.command(|engine, now, command| {
        engine.handle_replicate(now, command, Priority::Low, true, b"u0");
    });
    world.run_for(MINUTE);
    world.run_for(Duration::from_secs(2 * 24 * 60 * 60));
    let full = world.started.iter().filter(|sync| sync.full);
    assert!(full.clone().count() >= 2);
    assert!(full.clone().all(|sync| !sync.from_state));
}
