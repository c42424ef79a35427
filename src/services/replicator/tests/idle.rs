//! Connections that serve one sync after the other.

use super::super::idle::{REST, SYNCS_MAX};
use super::*;

fn connections(setup: &Setup) -> usize {
    setup.neighbours.connections.load(Relaxed)
}

/// Waiters of u1, one after the other: a failure would be answered with a minus.
fn all_succeed(running: &mut Running, count: u32) {
    let mut client = running.aggregator(1);
    for id in 1..=count {
        running.ahead += REST;
        let line = format!("U\tu1\tsync\t{id}\n");
        client.write_all(line.as_bytes()).unwrap();
        running.read_until(&mut client, &format!("+\t{id}\n"));
    }
}

/// Syncs one after the other, each begun by a notification of its own; the last request.
fn sync_in_turn(running: &mut Running, setup: &Setup, users: &[&str]) -> String {
    let mut client = running.aggregator(1);
    let mut last = String::new();
    for (at, user) in users.iter().enumerate() {
        running.ahead += REST;
        let line = format!("U\t{user}\tlow\t{}\n", at + 1);
        client.write_all(line.as_bytes()).unwrap();
        let request = running.run_until("a sync", |_| setup.requests.try_recv().ok());
        assert_eq!(user_of(&request), *user);
        running.wait_quiet(setup, 0);
        last = request;
    }
    last
}

/// After the first sync of each user, of which none waits for the other.
fn begin(users: &[&str], answer: &'static [u8]) -> (Setup, Running) {
    let setup = Setup::with_peer(users);
    setup.answer(move |_| Answer::Reply(answer));
    let mut running = setup.start();
    running.wait_quiet(&setup, users.len());
    (setup, running)
}

#[test]
fn connection_that_is_ready_serves_one_sync_after_the_other() {
    let (setup, mut running) = begin(&["u1", "u2"], READY);
    let before = connections(&setup);
    sync_in_turn(&mut running, &setup, &["u1", "u2", "u1", "u2", "u2", "u1"]);
    assert!(connections(&setup) <= before + 1);
    let shown = running.ask("STATUS-DSYNC", "\n\n");
    assert!(shown.contains("\tIdle\n"), "{shown}");
    running.run_until("the end of those that nobody needs", |_| {
        (setup.neighbours.ended.load(Relaxed) == connections(&setup)).then_some(())
    });
    let shown = running.ask("STATUS-DSYNC", "\n\n");
    assert!(!shown.contains("Idle"), "{shown}");
    let before = connections(&setup);
    sync_in_turn(&mut running, &setup, &["u1"]);
    assert_eq!(connections(&setup), before + 1);
}

#[test]
fn sync_right_after_one_of_its_user_has_a_process_of_its_own() {
    let (setup, mut running) = begin(&["u1", "u2"], READY);
    sync_in_turn(&mut running, &setup, &["u1", "u2"]);
    let before = connections(&setup);
    let mut client = running.aggregator(1);
    // A busy machine may take its time between two.
    let is_new = (1..=20).any(|id| {
        let line = format!("U\tu2\tsync\t{id}\n");
        client.write_all(line.as_bytes()).unwrap();
        running.read_until(&mut client, &format!("A\t{id}\n"));
        connections(&setup) > before
    });
    assert!(is_new);
}

#[test]
fn connection_that_does_not_say_that_it_is_ready_serves_one() {
    let (setup, mut running) = begin(&["u1"], b"STATE\t\n+\n");
    sync_in_turn(&mut running, &setup, &["u1", "u1", "u1"]);
    assert_eq!(connections(&setup), 4);
}

#[test]
fn connection_serves_no_more_than_its_share() {
    let (setup, mut running) = begin(&["u1"], READY);
    let syncs = usize::try_from(SYNCS_MAX).unwrap();
    // One was there before.
    sync_in_turn(&mut running, &setup, &vec!["u1"; syncs - 1]);
    assert_eq!(connections(&setup), 1);
    sync_in_turn(&mut running, &setup, &["u1"]);
    assert_eq!(connections(&setup), 2);
}

#[test]
fn failed_sync_ends_its_connection() {
    let (setup, mut running) = begin(&["u1"], READY);
    let mut failed = false;
    setup.answer(move |_| {
        if std::mem::replace(&mut failed, true) {
            Answer::Reply(READY)
        } else {
            Answer::Reply(b"\tready\t\n-TEMPFAIL\n")
        }
    });
    let before = connections(&setup);
    sync_in_turn(&mut running, &setup, &["u1"]);
    running.run_until("the second try", |_| setup.requests.try_recv().ok());
    running.wait_quiet(&setup, 0);
    assert_eq!(connections(&setup), before + 1);
}

#[test]
fn process_that_ended_meanwhile_is_no_failure_of_the_next_sync() {
    let (setup, mut running) = begin(&["u1"], READY);
    let mut at = 0;
    // The connection that waits is closed when it gets a command, or at once after an answer.
    setup.answer(move |_| {
        at += 1;
        if at % 3 == 0 {
            Answer::ReplyAndClose(READY)
        } else {
            Answer::ReplyToFirst(READY)
        }
    });
    all_succeed(&mut running, 6);
}

#[test]
fn process_that_ends_on_a_command_of_its_own_connection_is_a_failure() {
    let (setup, mut running) = begin(&["u1"], b"STATE\t\n+\n");
    let mut at = 0;
    setup.answer(move |_| {
        at += 1;
        if at == 1 {
            Answer::Close
        } else {
            Answer::Reply(READY)
        }
    });
    let mut client = running.aggregator(1);
    client.write_all(b"U\tu1\tsync\t7\n").unwrap();
    let answer = running.read_until(&mut client, "A\t7\n");
    assert!(answer.contains("\n-\t7\t"), "{answer}");
}

#[test]
fn state_that_the_socket_does_not_take_at_once_is_sent_whole() {
    let state = "S".repeat(1 << 20);
    let reply: &'static [u8] = format!("{state}\t\tready\t\n+\n").into_bytes().leak();
    let (setup, mut running) = begin(&["u1"], reply);
    for _ in 0..3 {
        let request = sync_in_turn(&mut running, &setup, &["u1"]);
        assert!(request.ends_with(&format!("\t{state}")));
    }
    assert_eq!(connections(&setup), 1);
}

#[test]
fn last_words_of_a_process_are_not_the_next_syncs() {
    let (setup, mut running) = begin(&["u1"], READY);
    setup.answer(|_| Answer::ReplyAndClose(b"STATE\t\tready\t\n+\nSTATE\t\n-TEMPFAIL\n"));
    all_succeed(&mut running, 3);
}

#[test]
fn process_is_left_to_a_connection_that_waits_for_one() {
    let (setup, mut running) = begin(&["u1", "u2"], READY);
    setup.answer(|request| match user_of(request) {
        "u1" => Answer::Reply(READY),
        _ => Answer::Hang,
    });
    // As where `service doveadm` has no process left: nobody greets.
    setup.neighbours.greets.store(false, Relaxed);
    running.run_until("the end of those that nobody needs", |_| {
        (setup.neighbours.ended.load(Relaxed) == connections(&setup)).then_some(())
    });
    let before = connections(&setup);
    let mut client = running.aggregator(1);
    client.write_all(b"U\tu2\tlow\t1\n").unwrap();
    running.run_until("the connection that waits", |_| {
        (connections(&setup) > before).then_some(())
    });
    setup.neighbours.greets.store(true, Relaxed);
    running.ahead += Duration::from_secs(2);
    let ended = setup.neighbours.ended.load(Relaxed);
    client.write_all(b"U\tu1\tlow\t2\n").unwrap();
    running.run_until("a sync", |_| setup.requests.try_recv().ok());
    running.run_until("the end of its connection", |_| {
        (setup.neighbours.ended.load(Relaxed) > ended).then_some(())
    });
    assert_eq!(running.daemon.idle.count(), 0);
}
