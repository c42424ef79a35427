//! Peers that go and come back.

use super::*;

/// [15]
#[test]
fn peer_that_is_down_is_probed_for_all_and_all_go_on_when_it_is_back() {
    let users = 50;
    let mut world = world(users);
    world.add_account("elsewhere", &["tcp:other"]);
    world.peers_down.insert("tcp:peer".into());
    for n in 0..users {
        world.change(&format!("u{n}"), Priority::Low);
        world.run_for(Duration::from_millis(100));
    }
    let attempts = world.started.len();
    assert!(attempts <= world.config.max_conns, "{attempts}");
    assert_eq!(errors(&world, "not reachable"), 1);
    world.probes_asked.clear();
    world.run_for(10 * MINUTE);
    assert_eq!(world.started.len(), attempts);
    let close = world.probes_asked.windows(2).take(100);
    let gaps: Vec<_> = close.map(|pair| pair[1].since(pair[0])).collect();
    assert!(gaps.iter().all(|gap| *gap <= Duration::from_secs(2)));
    // Whoever waits is told at once, and other peers are not touched.
    let request = world.deliver("u7");
    let (answered, answer) = world.answers.pop().expect("at once");
    assert!(answered == request && answer.is_err());
    world.change("elsewhere", Priority::Low);
    world.settle();
    assert_eq!(world.started.last().expect("some").username, "elsewhere");
    // Health checks see them.
    assert_eq!(world.engine.counters().waiting_failed, users as u64);
    assert_eq!(world.engine.counters().queued_high, 0);
    let mut failed = 0;
    let mut count = |status: UserStatus<'_>| failed += usize::from(status.failed);
    world
        .engine
        .list(world.now, Cursor::default(), u32::MAX, b"u*", &mut count);
    assert_eq!(failed, users);
    let peers = world.engine.peers(world.now);
    assert_eq!(peers[0].waiting as usize, users);
    assert_eq!(peers[0].reachable, Some(false));
    assert!(peers[0].next_probe_secs.is_some_and(|secs| secs <= 30));

    world.run_for(Duration::from_secs(30));
    world.started.clear();
    world.peers_down.clear();
    world.run_for(Duration::from_secs(31));
    assert_eq!(errors(&world, "reachable again (50 users"), 1);
    // The one whose sync the peer's going cut off is made to settle later.
    let fast = world.started.iter().filter(|sync| !sync.full);
    let order: Vec<String> = fast.map(|sync| sync.username.clone()).collect();
    let expected: Vec<String> = (0..users).map(|n| format!("u{n}")).collect();
    assert_eq!(order, expected);
    world.check_converged(&Default::default());
    assert_eq!(errors(&world, "Sync failed"), 0);
}

#[test]
fn all_go_on_within_two_seconds_of_the_return_of_a_peer_that_was_away_for_ten() {
    let mut world = world(20);
    world.peers_down.insert("tcp:peer".into());
    for n in 0..20 {
        world.change(&format!("u{n}"), Priority::Low);
    }
    world.run_for(Duration::from_secs(10));
    world.peers_down.clear();
    world.run_for(Duration::from_secs(2));
    world.check_converged(&Default::default());
}

#[test]
fn syncs_that_hang_because_the_peer_is_gone_are_ended_without_the_deadline() {
    let mut world = small(2, 2);
    world.change("u0", Priority::Low);
    world.change("u1", Priority::Low);
    world.settle_but_syncs();
    world.peers_down.insert("tcp:peer".into());
    world.run_but_syncs_for(Duration::from_secs(11));
    assert_eq!(world.aborted.len(), 2);
    assert_eq!(world.engine.peers(world.now)[0].reachable, Some(false));
}
