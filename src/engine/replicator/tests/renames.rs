//! Mailboxes that dsync renamed.

use super::*;
use crate::engine::healing::Observed;

/// A dsync process of this node has renamed a mailbox of the user.
fn renamed(world: &mut World, username: &str) {
    let observed = Observed {
        renames: 1,
        ..Observed::default()
    };
    world
        .engine
        .handle_observed(world.now, username.as_bytes(), &observed);
    world.settle_but_syncs();
}

#[test]
fn sync_in_which_dsync_renamed_mailboxes_is_followed_by_a_fast_one_and_one_without_by_none() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    let sync = world.sync_of("u0").expect("runs");
    renamed(&mut world, "u0");
    assert_eq!(world.started.len(), 1, "not while it runs");
    world.succeed(sync);
    let begin = world.now.mono;
    time_to_next_sync(&mut world);
    assert!(world.now.mono.since(begin) < Duration::from_secs(1));
    world.settle();
    world.run_for(10 * MINUTE);
    let full: Vec<bool> = world.started.iter().map(|sync| sync.full).collect();
    assert_eq!(full, [false, false]);
    assert_eq!(world.engine.totals().healed_renames, 1);
    world.check_converged(&Default::default());
}

#[test]
fn peers_sync_in_which_dsync_renamed_mailboxes_here_is_followed_by_one_of_ours() {
    let mut world = world(2);
    renamed(&mut world, "u0");
    world.run_for(MINUTE);
    assert_eq!(world.started.len(), 1);
    assert!(!world.started[0].full);
    world.check_converged(&Default::default());
}

#[test]
fn change_need_not_wait_for_a_sync_that_follows_renames() {
    let mut world = world(1);
    for _ in 0..12 {
        renamed(&mut world, "u0");
        time_to_next_sync(&mut world);
        let sync = world.sync_of("u0").expect("runs");
        world.succeed(sync);
    }
    renamed(&mut world, "u0");
    assert_eq!(world.sync_of("u0"), None, "in the pause");
    world.change("u0", Priority::High);
    let sync = world.sync_of("u0").expect("at once");
    world.succeed(sync);
    world.run_for(MINUTE);
    assert_eq!(world.started.len(), 13);
    world.check_converged(&Default::default());
}

#[test]
fn renames_without_an_end_are_followed_at_a_pace_that_becomes_slow() {
    let mut world = world(1);
    renamed(&mut world, "u0");
    let begin = world.now.mono;
    while world.now.mono.since(begin) < HOUR {
        time_to_next_sync(&mut world);
        let sync = world.sync_of("u0").expect("runs");
        // The sync of one node sees no rename and the peer's, which it does not know, does: and the other way about.
        match world.started.len() % 2 {
            0 => {
                renamed(&mut world, "u0");
                world.succeed(sync);
            }
            _ => {
                world.succeed(sync);
                renamed(&mut world, "u0");
            }
        }
    }
    let syncs = world.started.len();
    assert!((20..50).contains(&syncs), "{syncs} in an hour");
    assert_eq!(errors(&world, "Each sync renames mailboxes"), 1);
}

#[test]
fn each_replica_is_synced_after_renames_with_pauses_of_its_own() {
    let mut world = World::new(Config::default());
    world.add_account("u0", &["tcp:b", "tcp:c"]);
    world.settle();
    world.run_for(MINUTE);
    let before = world.started.len();
    for _ in 0..4 {
        renamed(&mut world, "u0");
        world.run_for(Duration::from_secs(1));
    }
    assert_eq!(world.started.len() - before, 8);
    assert_eq!(world.engine.totals().healed_renames, 8);
    assert_eq!(errors(&world, "Each sync renames mailboxes"), 0);
    world.check_converged(&Default::default());
}

#[test]
fn users_whose_syncs_fail_or_who_are_not_known_are_left_to_that() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    let sync = world.sync_of("u0").expect("runs");
    renamed(&mut world, "u0");
    world.finish(sync, SyncOutcome::TempFail);
    let pause = time_to_next_sync(&mut world);
    assert!(pause > Duration::from_millis(100), "{pause:?}");
    renamed(&mut world, "nobody");
    world.settle();
    world.check_converged(&Default::default());
}
