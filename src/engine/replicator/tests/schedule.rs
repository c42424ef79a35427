//! Who is synced when.

use super::*;

#[test]
fn low_priority_is_not_starved_by_new_mail_without_end() {
    let mut world = small(1, 3);
    world.change("u1", Priority::High);
    world.change("u0", Priority::Low);
    let begin = world.now.mono;
    loop {
        let (&sync, dsync) = world.syncs.first_key_value().expect("always busy");
        if dsync.username == "u0" {
            break;
        }
        // While one is synced the other has new mail.
        let other = match &*dsync.username {
            "u1" => "u2",
            _ => "u1",
        };
        world.change(other, Priority::High);
        world.run_but_syncs_for(Duration::from_secs(5));
        world.succeed(sync);
        world.settle_but_syncs();
    }
    let waited = world.now.mono.since(begin);
    assert!(waited > 10 * MINUTE && waited < 16 * MINUTE, "{waited:?}");
}

#[test]
fn first_sync_ever_is_full_and_the_next_is_not() {
    let mut world = world(1);
    let first = replica(&world, "u0");
    assert_ne!(first.last_success, UnixSecs(0));
    assert_eq!(first.last_full_sync, first.last_success);
    world.change("u0", Priority::Low);
    world.run_for(MINUTE);
    let full: Vec<bool> = world.started.iter().map(|sync| sync.full).collect();
    assert_eq!(full, [false]);
}

#[test]
fn full_syncs_come_once_in_an_interval_and_not_in_a_storm() {
    let users = 240;
    let mut world = world(users);
    let mut by_hour = Vec::new();
    // In the first interval those are left out that had their first sync, a full one, a short time ago.
    world.run_for(24 * HOUR);
    for _ in 0..48 {
        world.started.clear();
        world.run_for(HOUR);
        by_hour.push(world.started.iter().filter(|sync| sync.full).count());
    }
    assert_eq!(by_hour.iter().sum::<usize>(), 2 * users);
    assert!(*by_hour.iter().max().expect("some") < 30, "{by_hour:?}");
    // Neither a start nor a set clock makes one.
    world.crash(0, Boot::Trusted);
    world.run_for(MINUTE);
    for secs in [700_000_i64, -300_000] {
        let wall = i64::from(world.now.wall.0) + secs;
        world.now.wall.0 = u32::try_from(wall).expect("in range");
        world.started.clear();
        world.run_for(5 * MINUTE);
        let full = world.started.iter().filter(|sync| sync.full).count();
        assert!(full < 10, "{full}");
    }
}
