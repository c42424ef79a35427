//! What is done about results that repeat.

use super::world::Dsync;
use super::*;
use crate::engine::healing::{Hostnames, Observed, Side};

fn said(world: &World, level: Level, text: &str) -> usize {
    let log = world.log.iter();
    log.filter(|event| event.level == level && event.text.contains(text))
        .count()
}

/// Ends each sync of `u0` so, `times` times; the pauses after them.
fn end_each(world: &mut World, outcome: &SyncOutcome, times: usize) -> Vec<Duration> {
    let end_one = |_| {
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, outcome.clone());
        time_to_next_sync(world)
    };
    (0..times).map(end_one).collect()
}

#[test]
fn fast_sync_that_keeps_being_changed_is_followed_by_one_full_sync_within_10_secs() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    let begin = world.now.mono;
    end_each(&mut world, &changed(), 8);
    assert!(world.now.mono.since(begin) < Duration::from_secs(10));
    let full: Vec<bool> = world.started.iter().map(|sync| sync.full).collect();
    assert_eq!(full.iter().filter(|full| **full).count(), 1);
    assert!(full[8]);
    assert_eq!(said(&world, Level::Info, "A full sync is made, 8 syncs"), 1);
    assert_eq!(world.engine.totals().healed_repeats, 1);
    world.settle();
    world.change("u0", Priority::High);
    let sync = world.sync_of("u0").expect("runs");
    assert!(!world.syncs[&sync].full, "healed");
    world.settle();
    world.check_converged(&Default::default());
}

#[test]
fn what_a_full_sync_does_not_settle_is_stuck_with_its_reason_and_tried_at_the_slow_pace() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    let pauses = end_each(&mut world, &changed(), 16);
    assert!(pauses.iter().rev().take(3).all(|pause| *pause > 3 * MINUTE));
    let details = replica(&world, "u0");
    assert!(details.stuck && details.reason.contains("keep changing"));
    assert_eq!(
        said(&world, Level::Warning, "Stuck, a full sync did not"),
        1
    );
    assert_eq!(said(&world, Level::Info, "A full sync is made"), 1);
    assert_eq!(world.engine.replicas_stuck(), 1);
    assert_eq!(world.engine.totals().healed_repeats, 1);
    world.settle();
    assert_eq!(world.engine.replicas_stuck(), 0);
    assert_eq!(said(&world, Level::Info, "Synced again"), 1);
    world.check_converged(&Default::default());
}

/// Each of its syncs brings new mail over, whatever it ends with.
#[test]
fn new_mail_of_a_user_whose_syncs_all_end_with_a_change_waits_two_secs_at_most() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    end_each(&mut world, &changed(), 16);
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, changed());
    world.settle_but_syncs();
    world.change("u0", Priority::High);
    let pause = time_to_next_sync(&mut world);
    assert!(pause > Duration::from_secs(1) && pause <= Duration::from_secs(2));
}

/// A mail that was half over would count as expunged.
#[test]
fn no_full_sync_follows_one_that_was_cut_off() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    end_each(&mut world, &SyncOutcome::Eof, 1);
    end_each(&mut world, &changed(), 16);
    end_each(&mut world, &SyncOutcome::Eof, 2);
    assert!(world.started.iter().all(|sync| sync.is_incremental()));
    assert!(replica(&world, "u0").stuck);
    assert_eq!(said(&world, Level::Warning, "Stuck: "), 1);
    world.settle();
    assert!(!replica(&world, "u0").stuck);
}

#[test]
fn order_makes_a_full_sync_of_a_user_whose_fast_ones_are_stuck() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    for (ends, full) in [(2, false), (12, true)] {
        end_each(&mut world, &SyncOutcome::Eof, ends);
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, SyncOutcome::Eof);
        world.command(|engine, now, command| {
            engine.handle_replicate(now, command, Priority::Low, true, b"u0");
        });
        world.settle_but_syncs();
        let sync = world.sync_of("u0").expect("runs");
        assert_eq!(world.syncs[&sync].full, full);
    }
}

#[test]
fn failure_that_lasts_is_stuck_when_it_has_the_slowest_pace() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    end_each(&mut world, &SyncOutcome::NotFound, 9);
    assert!(!replica(&world, "u0").stuck);
    end_each(&mut world, &SyncOutcome::NotFound, 3);
    assert!(replica(&world, "u0").stuck);
    assert_eq!(said(&world, Level::Warning, "Stuck: NOTFOUND"), 1);
    assert!(world.started.iter().all(|sync| sync.is_incremental()));
}

#[test]
fn peer_that_is_away_makes_nobody_stuck_and_no_sync_full() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    end_each(&mut world, &SyncOutcome::PeerUnreachable, 14);
    assert!(world.started.iter().all(|sync| !sync.full));
    assert!(!replica(&world, "u0").stuck);
}

#[test]
fn stale_state_is_forgotten_with_one_line_and_counted() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    let stale = SyncOutcome::Changed { state: Vec::new() };
    end_each(&mut world, &stale, 2);
    assert!(world.started[1].full && !world.started[1].from_state);
    assert_eq!(said(&world, Level::Info, "The sync state is forgotten"), 1);
    assert_eq!(world.engine.totals().healed_states, 1);
}

/// Whether full, from the state, with a state to be had.
type Begun = (bool, bool, bool);

const FAST: Begun = (false, false, true);
const FULL: Begun = (true, false, true);
const FULL_FROM_STATE: Begun = (true, true, true);

fn how_begun(world: &World) -> Vec<Begun> {
    let how = |dsync: &Dsync| (dsync.full, dsync.from_state, dsync.state.is_some());
    world.started.iter().map(how).collect()
}

/// Without a state there is no other sync than a full one, which takes a mail that is half over for one that was expunged.
#[test]
fn state_in_doubt_is_begun_from_after_a_cut_and_is_forgotten_if_it_is_refused_again_and_again() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    let stale = SyncOutcome::Changed { state: Vec::new() };
    end_each(&mut world, &stale, 1);
    end_each(&mut world, &SyncOutcome::Eof, 1);
    end_each(&mut world, &stale, 6);
    assert!(how_begun(&world)[2..].starts_with(&[FULL_FROM_STATE; 6]));
    let mailboxes: Vec<Mailboxes> = world.started.iter().map(|sync| sync.mailboxes).collect();
    let wanted = [
        Mailboxes::WithFirstModseq,
        Mailboxes::WithLastModseq,
        Mailboxes::WithLastModseq,
        Mailboxes::WithoutModseqs,
        Mailboxes::WithFirstMail,
        Mailboxes::WithFirstMail,
    ];
    assert_eq!(mailboxes[2..8], wanted);
    end_each(&mut world, &stale, 1);
    world.settle();
    let last = (true, false, false);
    assert!(how_begun(&world).contains(&last));
    assert_eq!(said(&world, Level::Info, "The sync state is forgotten"), 1);
    world.check_converged(&Default::default());
}

/// The peer, which is behind, can begin from the last modseqs that it has: both have had them.
#[test]
fn mailboxes_that_were_refused_are_left_out_when_the_peer_has_synced_the_user() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    end_each(&mut world, &SyncOutcome::Eof, 1);
    let stale = SyncOutcome::Changed { state: Vec::new() };
    end_each(&mut world, &stale, 1);
    assert_eq!(world.started[2].mailboxes, Mailboxes::WithLastModseq);
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, stale);
    world.peer_syncs("u0", false, true);
    time_to_next_sync(&mut world);
    assert_eq!(world.started[3].mailboxes, Mailboxes::AsTheyAre);
    world.settle();
    world.check_converged(&Default::default());
}

#[test]
fn state_in_doubt_that_is_begun_from_after_a_cut_is_followed_by_the_full_sync() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    end_each(&mut world, &SyncOutcome::StateRefused, 1);
    end_each(&mut world, &SyncOutcome::Eof, 1);
    world.run_for(MINUTE);
    assert_eq!(how_begun(&world), [FAST, FULL, FULL_FROM_STATE, FULL]);
    world.check_converged(&Default::default());
}

fn peers_sync_fails(world: &mut World) {
    let observed = Observed {
        guids_healed: 0,
        undeleted: 0,
        renames: 0,
        hostnames: Some(Hostnames {
            peer: b"a".to_vec(),
            own: b"b".to_vec(),
            side: Side::Peers,
        }),
    };
    world.engine.handle_observed(world.now, b"u0", &observed);
    world.settle_but_syncs();
}

#[test]
fn full_sync_that_waits_for_a_peers_sync_is_ended_if_that_is_cut_off_and_comes_after_a_fast_one() {
    let mut world = world(1);
    let order = |world: &mut World| {
        world.command(|engine, now, command| {
            engine.handle_replicate(now, command, Priority::Low, true, b"u0");
        });
        world.settle_but_syncs();
        world.sync_of("u0").expect("runs")
    };
    let sync = order(&mut world);
    peers_sync_fails(&mut world);
    assert_eq!(world.aborted, [sync]);
    world.finish(sync, SyncOutcome::Timeout);
    world.run_for(MINUTE);
    // One that had the lock itself is left alone.
    let sync = order(&mut world);
    world.run_but_syncs_for(Duration::from_secs(26));
    peers_sync_fails(&mut world);
    assert_eq!(world.aborted.len(), 1);
    world.succeed(sync);
    world.run_for(MINUTE);
    let full: Vec<bool> = world.started.iter().map(|sync| sync.full).collect();
    assert_eq!(full.get(..4), Some(&[true, false, true, true][..]));
    world.check_converged(&Default::default());
}

#[test]
fn full_sync_does_not_begin_after_a_peers_that_was_cut_off() {
    let mut world = world(1);
    peers_sync_fails(&mut world);
    world.command(|engine, now, command| {
        engine.handle_replicate(now, command, Priority::Low, true, b"u0");
    });
    world.run_for(MINUTE);
    let full: Vec<bool> = world.started.iter().map(|sync| sync.full).collect();
    assert_eq!(full, [false, true]);
}

/// [14]
#[test]
fn loser_of_a_lock_steps_back_counts_no_failure_and_goes_on_when_the_peer_is_done() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    let pauses = end_each(&mut world, &SyncOutcome::Locked, 5);
    assert!(pauses[0] < Duration::from_millis(1001));
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(30)));
    assert_eq!(replica(&world, "u0").failures, 0);
    assert_eq!(said(&world, Level::Info, "Stepping back"), 1);
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, SyncOutcome::Locked);
    world.settle_but_syncs();
    assert_eq!(world.sync_of("u0"), None);
    world.command(|engine, now, command| {
        engine.handle_notify(now, command, b"u0", false, b"");
    });
    world.settle_but_syncs();
    assert!(world.sync_of("u0").is_some());
    assert_eq!(world.engine.totals().syncs_locked, 6);
    world.settle();
    world.check_converged(&Default::default());
}

#[test]
fn notify_of_the_peer_wakes_a_failing_user_once_in_a_pause_that_does_not_grow() {
    let mut world = world(1);
    world.change("u0", Priority::High);
    end_each(&mut world, &SyncOutcome::TempFail, 8);
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, SyncOutcome::TempFail);
    world.settle_but_syncs();
    let before = replica(&world, "u0");
    let started = world.started.len();
    for _ in 0..5 {
        world.command(|engine, now, command| {
            engine.handle_notify(now, command, b"u0", false, b"");
        });
        world.settle_but_syncs();
        if let Some(sync) = world.sync_of("u0") {
            world.finish(sync, SyncOutcome::TempFail);
            world.settle_but_syncs();
        }
    }
    assert_eq!(world.started.len(), started + 1);
    let after = replica(&world, "u0");
    assert_eq!(after.failures, before.failures);
    assert!(after.next_sync_secs <= before.next_sync_secs);
    world.run_for(Duration::from_secs(u64::from(before.next_sync_secs) + 1));
    world.check_converged(&Default::default());
}

/// [14]
#[test]
fn two_nodes_that_hold_what_the_other_wants_do_not_meet_again_and_again() {
    let mut world = world(40);
    for n in 0..40 {
        world.change(&format!("u{n}"), Priority::High);
    }
    let mut times = BTreeSet::new();
    let begin = world.now.mono;
    while times.len() < 40 {
        world.settle_but_syncs();
        let Some((&sync, dsync)) = world.syncs.first_key_value() else {
            world.step_time(MINUTE);
            continue;
        };
        let name = dsync.username.clone();
        if world.started.iter().filter(|s| s.username == name).count() == 1 {
            world.finish(sync, SyncOutcome::Locked);
        } else {
            times.insert((world.now.mono, name));
            world.succeed(sync);
        }
    }
    let distinct: BTreeSet<_> = times.iter().map(|(at, _)| *at).collect();
    assert!(distinct.len() > 30, "{}", distinct.len());
    assert!(world.now.mono.since(begin) <= Duration::from_secs(1));
}
