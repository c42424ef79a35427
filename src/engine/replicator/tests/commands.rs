//! The administrator's commands and what they show.

use super::*;

/// So many that the pause is longer than a waiter's patience.
const CHANGES: u32 = 12;

/// [17]
#[test]
fn notify_of_the_peer_counts_as_a_success_and_leaves_what_is_pending() {
    let mut world = small(1, 2);
    world.run_for(MINUTE);
    world.change("u1", Priority::Low);
    world.change("u0", Priority::Low);
    world.command(|engine, now, command| {
        engine.handle_notify(now, command, b"u0", true, b"state2");
    });
    world.settle_but_syncs();
    let details = replica(&world, "u0");
    assert_eq!(details.last_success, world.now.wall);
    assert_eq!(details.last_full_sync, world.now.wall);
    assert_eq!(details.priority, Priority::Low);
    world.settle();
    assert_eq!(replica(&world, "u0").priority, Priority::None);
    let sync = world.started.last().expect("u0's");
    assert_eq!(sync.state.as_deref(), Some(&b"state2"[..]));
}

#[test]
fn two_nodes_whose_syncs_both_end_with_a_change_do_not_wake_each_other() {
    let mut world = small(1, 1);
    world.change("u0", Priority::Low);
    let success = replica(&world, "u0").last_success;
    for _ in 0..CHANGES {
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, changed());
        time_to_next_sync(&mut world);
    }
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, changed());
    for _ in 0..3 {
        world.command(|engine, now, command| {
            engine.handle_notify(now, command, b"u0", false, b"");
        });
        world.settle_but_syncs();
        assert_eq!(world.sync_of("u0"), None);
    }
    assert_eq!(replica(&world, "u0").last_success, success);
    world.settle();
}

#[test]
fn add_of_a_user_who_was_never_due_looks_up_its_replicas_and_syncs_nothing() {
    let mut world = World::new(Config::default());
    for n in 0..1_000 {
        world.add_account(&format!("u{n}"), &["tcp:peer"]);
    }
    world.settle_but_syncs();
    let never = |world: &World| replica(world, "u7").target.is_empty();
    assert!(never(&world));
    let started = world.started.len();
    world.command(|engine, now, command| engine.handle_add(now, command, b"u7"));
    world.settle_but_syncs();
    assert_eq!(replica(&world, "u7").target, b"tcp:peer");
    assert_eq!(replica(&world, "u7").activity, Activity::Idle);
    assert_eq!(world.started.len(), started);
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
fn most_commands_are_worked_on_and_one_more_is_refused() {
    let mut world = world(1);
    for _ in 0..=MAX_COMMANDS {
        world.command(|engine, now, command| {
            engine.handle_replicate(now, command, Priority::Low, false, b"*");
        });
    }
    assert_eq!(world.command_answers.len(), 1);
    assert!(world.command_answers[0].1.is_err());
    world.run_for(Duration::from_secs(1));
    let done = world
        .command_answers
        .iter()
        .filter(|(_, answer)| answer.is_ok());
    assert_eq!(done.count(), MAX_COMMANDS);
}
