//! What an idle user costs the replicator's engine in resident memory, and how long it takes to load and list many.
//!
//! A process of its own, so that nothing else is counted. `USERS=n` sets the number (default `USERS`); times mean
//! something in a release build only.

use std::time::Instant;

use dovecot_replication::engine::replicator::{
    Action, Boot, Config, Record, RecordChange, Replicator,
};
use dovecot_replication::engine::time::{Mono, Now, UnixSecs};

const USERS: u64 = 250_000;
const MAX_BYTES_PER_USER: u64 = 120;

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    let kib: u64 = line
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .expect("a number");
    kib * 1024
}

fn username(n: u64) -> Vec<u8> {
    format!("user{n:07}@example.com").into_bytes()
}

fn now(secs: u64) -> Now {
    Now {
        mono: Mono(secs * 1000),
        wall: UnixSecs(1_700_000_000 + u32::try_from(secs).expect("small")),
    }
}

#[test]
fn idle_user_takes_120_bytes_at_most() {
    let users = std::env::var("USERS").map_or(USERS, |users| users.parse().expect("a number"));
    let before = resident_bytes();
    let begin = Instant::now();
    let mut engine = Replicator::new(Config::default(), 1, now(1));
    // Half of them the store knows, with a replica and a state; the rest come from the listing.
    for n in 0..users / 2 {
        engine.load(
            now(1),
            Record {
                username: username(n),
                target: b"tcp:peer.example.com:12345".to_vec(),
                last_update: UnixSecs(1_699_999_000),
                last_fast_sync: UnixSecs(1_699_999_000),
                last_full_sync: UnixSecs(1_699_990_000),
                last_success: UnixSecs(1_699_999_000),
                has_state: true,
                ..Record::default()
            },
        );
    }
    engine.handle_loaded(now(1), Boot::Trusted);
    let Some(Action::ListUsers { listing, .. }) = engine.poll_action() else {
        panic!("no listing at the start");
    };
    for n in 0..users {
        engine.handle_listing_user(now(2), listing, &username(n));
    }
    engine.handle_listing_finished(now(2), listing, Ok(()));
    let took = begin.elapsed();
    assert_eq!(engine.counters().known_users, users);

    // A walk over all of them, and the search for those that were not listed.
    for secs in 3..80 {
        while engine.next_timeout().is_some_and(|at| at <= now(secs).mono) {
            engine.handle_timeout(now(secs));
            while let Some(action) = engine.poll_action() {
                assert!(matches!(action, Action::LookupUser { .. }), "{action:?}");
            }
            while let Some(write) = engine.poll_write() {
                assert!(!matches!(write.change, RecordChange::Remove { .. }));
            }
        }
    }
    let bytes = (resident_bytes() - before) / users;
    println!("{users} users: {bytes} bytes each, {took:?} to load and list all");
    assert!(bytes <= MAX_BYTES_PER_USER, "{bytes} bytes per user");
}
