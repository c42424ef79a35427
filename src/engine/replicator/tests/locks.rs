//! Two nodes whose dsyncs lock each other out, and what is known of the peer's host name.

use super::*;
use crate::engine::healing::{Hostnames, Observed, Side};

/// Longer than a sync that only waited for the other one.
const A_SYNC: Duration = Duration::from_secs(2);

fn observed(own: &str, peer: &str, side: Side) -> Observed {
    Observed {
        renames: 0,
        guids_healed: 0,
        undeleted: 0,
        hostnames: Some(Hostnames {
            peer: peer.into(),
            own: own.into(),
            side,
        }),
    }
}

fn tell(world: &mut World, observed: &Observed) {
    world.engine.handle_observed(world.now, b"u0", observed);
    world.take_outputs();
}

/// A node whose dsync of `u0` has seen these names.
fn node(own: &str, peer: &str) -> World {
    let mut world = world(1);
    world.change("u0", Priority::High);
    world.settle_but_syncs();
    tell(&mut world, &observed(own, peer, Side::Ours));
    world
}

/// The pauses after syncs that a lock ends.
fn pauses(world: &mut World, times: usize) -> Vec<Duration> {
    let end_one = |_| {
        let sync = world.sync_of("u0").expect("runs");
        world.finish(sync, SyncOutcome::Locked);
        time_to_next_sync(world)
    };
    (0..times).map(end_one).collect()
}

#[test]
fn lower_host_name_goes_on_soon_and_the_greater_lets_it_each_time() {
    let first = pauses(&mut node("mail1", "mail2"), 8);
    let second = pauses(&mut node("mail2", "mail1"), 8);
    assert!(first[0] <= Duration::from_millis(250), "{first:?}");
    for (first, second) in first.iter().zip(&second) {
        assert!(*first + A_SYNC < *second, "{first:?} {second:?}");
    }
    assert!(second.iter().all(|pause| *pause <= MINUTE), "{second:?}");
}

/// Byte by byte, as dsync's own strcmp.
#[test]
fn capital_letters_and_longer_names_are_ordered_as_dsync_orders_them() {
    for (lower, greater) in [
        ("B", "a"),
        ("a", "a.example"),
        ("a-", "a."),
        ("z", "\u{e4}"),
    ] {
        let first = pauses(&mut node(lower, greater), 1);
        let second = pauses(&mut node(greater, lower), 1);
        assert!(first[0] + A_SYNC < second[0], "{lower} {greater}");
    }
}

#[test]
fn chance_decides_where_the_names_are_the_same_or_have_not_been_seen_for_an_hour() {
    let mut same = pauses(&mut node("mail", "mail"), 1);
    let mut world = node("mail2", "mail1");
    world.settle();
    world.run_for(HOUR);
    world.change("u0", Priority::High);
    world.settle_but_syncs();
    same.extend(pauses(&mut world, 1));
    let half = Duration::from_millis(500);
    assert!(
        same.iter().all(|pause| (half..=2 * half).contains(pause)),
        "{same:?}"
    );
}

#[test]
fn greater_host_name_goes_on_when_the_peer_is_done() {
    let mut world = node("mail2", "mail1");
    let sync = world.sync_of("u0").expect("runs");
    world.finish(sync, SyncOutcome::Locked);
    world.run_but_syncs_for(A_SYNC);
    assert_eq!(world.sync_of("u0"), None);
    world.command(|engine, now, command| {
        engine.handle_notify(now, command, b"u0", false, b"");
    });
    world.settle_but_syncs();
    assert!(world.sync_of("u0").is_some());
    world.settle();
    world.check_converged(&Default::default());
}

/// Both nodes start at once, each holds what the other wants: they do so once.
#[test]
fn two_nodes_that_lock_each_other_out_do_not_meet_again() {
    const STEP: Duration = Duration::from_millis(10);
    for tenths in 1..20 {
        let duration = Duration::from_millis(tenths * 100);
        let mut nodes = [node("mail2", "mail1"), node("mail1", "mail2")];
        let mut running: [Option<(SyncId, Mono)>; 2] = [None; 2];
        let (mut meetings, mut done) = (0, Vec::new());
        while done.len() < 2 {
            for (world, running) in nodes.iter_mut().zip(&mut running) {
                world.run_but_syncs_for(STEP);
                let sync = world.sync_of("u0");
                *running = sync.map(|sync| running.unwrap_or((sync, world.now.mono)));
            }
            let now = nodes[0].now.mono;
            match running {
                [Some((a, _)), Some((b, _))] => {
                    meetings += 1;
                    nodes[0].finish(a, SyncOutcome::Locked);
                    nodes[1].finish(b, SyncOutcome::Locked);
                    running = [None; 2];
                }
                [Some((sync, since)), None] | [None, Some((sync, since))]
                    if now.since(since) >= duration =>
                {
                    let own = usize::from(running[0].is_none());
                    nodes[own].succeed(sync);
                    nodes[1 - own].command(|engine, now, command| {
                        engine.handle_notify(now, command, b"u0", false, b"");
                    });
                    done.push(own);
                    running = [None; 2];
                }
                _ => {}
            }
            assert!(meetings < 2, "they met again, syncs take {duration:?}");
        }
        assert_eq!((meetings, done), (1, vec![1, 0]), "the lower one first");
    }
}

/// Of a user with two replicas only the sync that runs says whose name it is.
#[test]
fn names_seen_by_our_own_sync_are_those_of_its_peer() {
    let mut world = World::new(Config::default());
    world.add_account("u0", &["tcp:peer", "tcp:other"]);
    world.change("u0", Priority::High);
    tell(&mut world, &observed("mail", "mail", Side::Ours));
    world.settle_but_syncs();
    tell(&mut world, &observed("mail", "mail", Side::Peers));
    assert_eq!(errors(&world, "own host name"), 0, "nobody knows whose");
    let sync = world.sync_of("u0").expect("runs");
    let target = world.syncs[&sync].target.clone();
    tell(&mut world, &observed("mail", "mail", Side::Ours));
    tell(&mut world, &observed("mail", "mail", Side::Ours));
    assert_eq!(errors(&world, "own host name, mail"), 1);
    for peer in world.engine.peers(world.now) {
        let is_it = peer.target == target.as_bytes();
        assert_eq!(peer.same_hostname == "mail", is_it, "{peer:?}");
    }
    tell(&mut world, &observed("mail", "mail2", Side::Ours));
    let peers = world.engine.peers(world.now);
    assert!(peers.iter().all(|peer| peer.same_hostname.is_empty()));
}
