//! What each end of a sync leads to.

use super::*;

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
    let reason = format!(
        "No progress for {} secs (replication_sync_deadline)",
        deadline.as_secs()
    );
    assert_eq!(replica(&world, "u0").reason, reason);
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
    assert!(world.started.iter().all(|sync| sync.is_incremental()));
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
        world.finish(sync, changed());
        assert_eq!(replica(&world, "u0").failures, 0);
        assert_eq!(world.engine.counters().queued_sync, 1);
        pauses.push(time_to_next_sync(&mut world));
    }
    assert!(pauses[0] <= Duration::from_millis(20));
    assert!(pauses[4] > pauses[0] && pauses[4] < Duration::from_secs(1));
    world.settle();
    assert_eq!(world.answers, [(request, Ok(()))]);
    assert!(world.started.iter().all(|sync| sync.is_incremental()));
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
fn refused_state_is_made_anew() {
    let mut world = world(1);
    world.change("u0", Priority::Low);
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, SyncOutcome::StateRefused);
    world.run_for(Duration::from_secs(1));
    assert!(world.started[1].full && !world.started[1].from_state);
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
                _ => world.succeed(sync),
            }
            world.settle_but_syncs();
        }
        world.run_but_syncs_for(Duration::from_millis(500));
    }
    let failing = world.started.iter().filter(|s| s.username == "u0").count();
    assert!(failing < 12, "{failing}");
    world.check_converged(&BTreeSet::from(["u0".to_owned()]));
}
