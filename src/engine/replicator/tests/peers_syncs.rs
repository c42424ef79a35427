//! Syncs that the peer runs while ours wait, and those that are cut off.

use super::*;
use crate::engine::sync_state::{Mailbox, with_mailboxes};

/// The first sync of a user runs.
fn world_without_a_state() -> World {
    let mut world = World::new(Config::default());
    world.add_account("u0", &["tcp:peer"]);
    world.change("u0", Priority::High);
    world.settle_but_syncs();
    let sync = world.sync_of("u0").expect("runs");
    assert!(world.syncs[&sync].state.is_none());
    world
}

#[test]
fn first_sync_begins_when_the_peers_has_ended() {
    let mut world = world_without_a_state();
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, SyncOutcome::PeerUnreachable);
    world.peer_begins("u0");
    world.run_but_syncs_for(MINUTE);
    assert_eq!(world.sync_of("u0"), None, "it would wait for the lock");
    let begin = world.now.mono;
    world.peer_ends("u0", false);
    world.settle_but_syncs();
    assert!(world.sync_of("u0").is_some());
    assert_eq!(world.now.mono, begin);
}

#[test]
fn sync_that_waited_for_one_of_the_peer_that_was_cut_off_is_ended_at_once_and_begins_from_the_mailboxes()
 {
    for has_state in [false, true] {
        let mut world = world_without_a_state();
        if has_state {
            world.settle();
            world.change("u0", Priority::High);
            world.settle_but_syncs();
        }
        let waited = world.sync_of("u0").expect("runs");
        assert_eq!(world.syncs[&waited].state.is_some(), has_state);
        world.peer_begins("u0");
        world.run_but_syncs_for(Duration::from_secs(5));
        world.peer_ends("u0", true);
        assert_eq!(world.aborted, [waited], "with a state: {has_state}");
        world.finish_as_is(waited);
        time_to_next_sync(&mut world);
        let sync = world.sync_of("u0").expect("runs");
        assert_eq!(world.syncs[&sync].mailboxes, Mailboxes::WithFirstModseq);
        world.peer_begins("u0");
        world.peer_ends("u0", true);
        assert_eq!(world.aborted, [waited], "it takes no mail for expunged");
    }
}

#[test]
fn sync_that_is_older_than_a_wait_for_its_lock_goes_on() {
    let mut world = world_without_a_state();
    world.peer_begins("u0");
    let patience = Config::default().lock_timeout;
    world.run_but_syncs_for(patience);
    world.peer_ends("u0", true);
    assert!(world.aborted.is_empty(), "the peer's has waited for it");
}

#[test]
fn sync_that_waits_for_a_lock_goes_on_when_the_peers_has_waited_in_vain() {
    let mut world = world_without_a_state();
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, SyncOutcome::PeerUnreachable);
    time_to_next_sync(&mut world);
    world.peer_begins("u0");
    let patience = Config::default().lock_timeout;
    world.run_but_syncs_for(Duration::from_secs(10));
    // Ours begins anew meanwhile.
    let sync = world.sync_of("u0").expect("runs");
    world.finish_changed(sync);
    time_to_next_sync(&mut world);
    world.run_but_syncs_for(patience - Duration::from_secs(10));
    world.peer_ends("u0", true);
    assert!(world.aborted.is_empty());
}

#[test]
fn state_from_before_the_first_mailbox_is_as_good_as_none() {
    let empty = with_mailboxes(b"", &[]).expect("a state");
    let mailbox = Mailbox {
        guid: [7; 16],
        uidvalidity: 1,
        had_mail: true,
        modseq: 1,
    };
    let with_inbox = with_mailboxes(b"", &[mailbox]).expect("a state");
    for (state, is_kept) in [(empty, false), (with_inbox, true)] {
        let mut world = world_without_a_state();
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, SyncOutcome::Ok { state });
        world.change("u0", Priority::High);
        world.settle_but_syncs();
        let sync = world.sync_of("u0").expect("runs");
        assert_eq!(world.syncs[&sync].full, !is_kept);
        assert_eq!(world.syncs[&sync].state.is_some(), is_kept);
    }
}
