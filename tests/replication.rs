//! Aggregator and replicator on real Dovecots: the defects of stock's daemons, faults, and promises.
//!
//! A scenario runs on stock's daemons and on ours. Where stock has the defect, the trial of stock passes
//! only if the scenario fails there: the test can tell the difference.

// A test may fail by panicking.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod harness;

use harness::client::message;
use harness::run::{judged, trial};
use harness::{FakeDoveadm, Node, Outcome, Pair, Replication, Target, User, check, wait_for};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A scenario, and what is wrong with it on stock's daemons.
struct Scenario {
    name: &'static str,
    /// STOCK.md's number, if stock fails.
    stock_defect: Option<u8>,
    /// What its failure there says, one of these.
    stock_fails_with: &'static [&'static str],
    run: fn(&Target) -> Outcome,
}

const SCENARIOS: [Scenario; 8] = [
    Scenario {
        name: "sync_request_is_answered_after_its_sync",
        stock_defect: Some(1),
        stock_fails_with: &["os error 11", "Panic", "\"\""],
        run: sync_request,
    },
    Scenario {
        name: "burst_of_30000_notifications_loses_none",
        stock_defect: Some(3),
        stock_fails_with: &["replicator_send_buf", "syncs of 29565 users"],
        run: burst,
    },
    Scenario {
        name: "sync_written_to_the_fifo_is_a_sync_of_the_user",
        stock_defect: Some(4),
        stock_fails_with: &["a sync of u1", "killed with signal 11"],
        run: sync_in_the_fifo,
    },
    Scenario {
        name: "hanging_syncs_do_not_stop_the_others",
        stock_defect: Some(6),
        stock_fails_with: &["a sync of u4"],
        run: hanging_syncs,
    },
    Scenario {
        name: "killed_replicator_comes_back_without_full_syncs",
        stock_defect: Some(8),
        stock_fails_with: &["\"-f\""],
        run: killed_replicator,
    },
    Scenario {
        name: "kills_under_load_lose_nothing",
        stock_defect: Some(8),
        stock_fails_with: &["equality: not within", "mails of"],
        run: kills_under_load,
    },
    Scenario {
        name: "peer_that_returns_after_10_secs_is_caught_up_with_in_2",
        stock_defect: Some(15),
        stock_fails_with: &["2 mails of"],
        run: peer_away,
    },
    Scenario {
        name: "design_configuration_logs_no_error_in_50_changes",
        stock_defect: Some(10),
        stock_fails_with: &["replicator-doveadm) failed: Permission denied"],
        run: design_configuration,
    },
];

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for target in Target::all_staged() {
        for scenario in &SCENARIOS {
            // Stock's failures take all the patience there is: one version shows them.
            if !target.is_ours() && target.root.is_some() {
                continue;
            }
            trials.push(scenario_trial(&target, scenario));
        }
        if target.is_ours() {
            let of = target.clone();
            trials.push(trial(
                &target,
                "reload_with_work_left_in_the_journal_needs_no_further_notification",
                move || reload_with_work_left(&of),
            ));
            let of = target.clone();
            trials.push(trial(
                &target,
                "replicator_is_reached_by_host_and_port",
                move || replicator_by_port(&of),
            ));
            let of = target.clone();
            trials.push(trial(
                &target,
                "three_nodes_with_two_replicas_each_become_equal",
                move || three_nodes(&of),
            ));
            let of = target.clone();
            trials.push(trial(
                &target,
                "plus_means_that_the_mail_is_on_the_peer",
                move || honest_plus(&of),
            ));
        }
    }
    harness::run::main(trials)
}

fn scenario_trial(target: &Target, scenario: &'static Scenario) -> Trial {
    let of = target.clone();
    match scenario.stock_defect {
        Some(number) if !target.is_ours() => {
            let name = format!("fails_for_defect_{number}/{}", scenario.name);
            trial(target, &name, move || {
                match judged(|| (scenario.run)(&of)) {
                    Ok(()) => Err(format!("stock passes: defect {number} is not seen").into()),
                    Err(failed) => {
                        let message = failed.message().unwrap_or("?");
                        let seen = scenario
                            .stock_fails_with
                            .iter()
                            .any(|text| message.contains(text));
                        check(seen, || {
                            format!("fails, but not for defect {number}: {message}")
                        })
                    }
                }
            })
        }
        _ => trial(target, scenario.name, move || (scenario.run)(&of)),
    }
}

/// One node whose replicator talks to a [`FakeDoveadm`].
fn faked(
    target: &Target,
    users: impl IntoIterator<Item = User>,
    conf: &str,
) -> Outcome<(Node, FakeDoveadm)> {
    // Beside the node: it must be there before the replicator starts.
    let fake = FakeDoveadm::listen(&target.outside("/tmp".as_ref()))?;
    let socket = fake.path_in_tmp();
    let replication = Replication {
        replicas: vec!["remote:peer".to_owned()],
        ..Replication::default()
    };
    let node = Node::of(target)
        .services()
        .users(users)
        .config(&replication.render(target.series()))
        .config(&format!("doveadm_socket_path = {socket}\n{conf}"))
        .start()?;
    wait_for("the replicator", harness::PATIENCE, || {
        Ok(node.path("run/replicator-doveadm").exists().then_some(()))
    })?;
    // A node that is stopped while auth still lists its users.
    node.tolerate_log("Aborted LIST request");
    // auth waits for Dovecot's stats on a busy machine.
    node.tolerate_log("run/stats-writer");
    Ok((node, fake))
}

fn users(prefix: &str, count: usize) -> Vec<User> {
    (0..count)
        .map(|number| User::local(&format!("{prefix}{number}")))
        .collect()
}

fn write_fifo(node: &Node, lines: &[u8]) -> Outcome {
    let mut fifo = std::fs::OpenOptions::new()
        .write(true)
        .open(node.path("run/replication-notify-fifo"))?;
    Ok(fifo.write_all(lines)?)
}

/// Asks on `replication-notify` for a sync and returns the answer.
fn ask_sync(node: &Node, user: &str, patience: Duration) -> Outcome<String> {
    let stream = UnixStream::connect(node.path("run/replication-notify"))?;
    stream.set_read_timeout(Some(patience))?;
    (&stream).write_all(format!("{user}\tsync\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
}

fn sync_request(target: &Target) -> Outcome {
    let (node, fake) = faked(target, users("u", 3), "")?;
    for user in ["u0", "u1", "u0"] {
        let answer = ask_sync(&node, user, Duration::from_secs(5))?;
        check(answer == "+\n", || format!("{user}: {answer:?}"))?;
    }
    check(fake.requests().len() >= 3, || {
        "answered before a sync".to_owned()
    })?;
    node.finish()
}

fn burst(target: &Target) -> Outcome {
    const USERS: usize = 29_565;
    let (node, fake) = faked(target, users("user", USERS), "")?;
    if !target.is_ours() {
        // Stock syncs everybody at its first start: let that pass, what counts are the notifications.
        fake.wait_users(USERS)?;
        fake.forget();
    }
    let mut lines = Vec::new();
    for number in 0..30_000 {
        writeln!(lines, "user{}\tlow", number % USERS)?;
    }
    write_fifo(&node, &lines)?;
    fake.wait_users(USERS)?;
    if target.version == "2.4.1" {
        // Its auth breaks a listing off where it is not read as fast as it is written (docs/limits.md).
        node.tolerate_log("Aborted LIST request for *");
        node.tolerate_log("Listing users failed: userdb listing failed");
    }
    node.finish()
}

fn sync_in_the_fifo(target: &Target) -> Outcome {
    let (node, fake) = faked(target, users("u", 2), "")?;
    fake.wait_users(2)?;
    fake.forget();
    write_fifo(&node, b"u0\tsync\n")?;
    fake.wait_request("u0")?;
    write_fifo(&node, b"u1\thigh\n")?;
    fake.wait_request("u1")?;
    node.finish()
}

fn hanging_syncs(target: &Target) -> Outcome {
    let deadline = if target.is_ours() {
        "replication_sync_deadline = 10s\n"
    } else {
        ""
    };
    let (node, fake) = faked(
        target,
        users("u", 6),
        &format!("replication_max_conns = 4\n{deadline}"),
    )?;
    fake.wait_users(6)?;
    for user in ["u0", "u1", "u2", "u3"] {
        fake.hang(user);
    }
    fake.forget();
    write_fifo(&node, b"u0\thigh\nu1\thigh\nu2\thigh\nu3\thigh\n")?;
    fake.wait_users(4)?;
    write_fifo(&node, b"u4\tlow\nu5\tlow\n")?;
    // All four connections hang; the deadline of 10 s frees them.
    for user in ["u4", "u5"] {
        fake.wait_request(user)?;
    }
    let status = node.doveadm(&["replicator", "status"])?;
    check(failed_users(&status) >= 1, || {
        format!("nobody failed:\n{status}")
    })?;
    if target.is_ours() {
        node.expect_log("replication_sync_deadline");
    }
    node.finish()
}

/// The users that a health check would count: `Queued 'failed'` and `Waiting 'failed'`.
fn failed_users(status: &str) -> usize {
    let failed = status.lines().filter(|line| line.contains("'failed'"));
    failed
        .filter_map(|line| line.split_whitespace().last()?.parse::<usize>().ok())
        .sum()
}

fn killed_replicator(target: &Target) -> Outcome {
    let (node, fake) = faked(target, users("u", 20), "")?;
    fake.wait_users(20)?;
    let idle = |line: &str| line.split_whitespace().last() == Some("0");
    wait_for("an idle queue", harness::PATIENCE, || {
        let status = node.doveadm(&["replicator", "status"])?;
        Ok(status.lines().take(5).all(idle).then_some(()))
    })?;
    fake.forget();
    kill_service(&node, "replicator")?;
    write_fifo(&node, b"u7\tlow\n")?;
    fake.wait_request("u7")?;
    write_fifo(&node, b"u8\tlow\n")?;
    fake.wait_request("u8")?;
    let requests = fake.requests();
    check(
        !requests.iter().any(harness::fake_doveadm::Request::is_full),
        || format!("{requests:?}"),
    )?;
    check(requests.len() <= 4, || {
        format!("nobody else changed: {requests:?}")
    })?;
    node.expect_log("killed with signal 9");
    node.finish()
}

/// SIGKILL to the service's process, once it serves: Dovecot's master throttles a service that dies
/// before.
fn kill_service(node: &Node, name: &str) -> Outcome {
    let pids = wait_for(&format!("{name} serves"), harness::PATIENCE, || {
        let serves = match name {
            // One sync request kills stock's replicator (defect 1): it is not what this is about.
            "aggregator" if !node.target.is_ours() => true,
            "aggregator" => {
                ask_sync(node, "nobody", harness::PATIENCE).is_ok_and(|answer| !answer.is_empty())
            }
            _ => node
                .run(node.doveadm_command(&["replicator", "status"]), b"")?
                .status
                .success(),
        };
        Ok(Some(node.processes(name)?).filter(|pids| serves && !pids.is_empty()))
    })?;
    for pid in pids {
        node.kill(pid)?;
    }
    Ok(())
}

fn seed() -> u64 {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    seed
}

fn kills_under_load(target: &Target) -> Outcome {
    const MAILS: usize = 180;
    let names: Vec<String> = (0..20).map(|number| format!("u{number}")).collect();
    let users = names.iter().map(|name| User::local(name));
    let pair = Pair::of(target)
        .users(users)
        .config("replication_max_conns = 1")
        .start()?;
    let mut random = fastrand::Rng::with_seed(seed());
    let mut lmtp = pair.a.lmtp()?;
    for name in &names {
        lmtp.deliver(&[name], &message("first"))?;
        pair.b.wait_mails(name, 1)?;
    }
    for number in 0..MAILS {
        let name = &names[random.usize(..names.len())];
        lmtp.deliver(&[name], &message(&format!("mail-{number}")))?;
        if number % 15 == 14 {
            for service in random
                .choice([
                    &["aggregator"][..],
                    &["replicator"],
                    &["aggregator", "replicator"],
                ])
                .ok_or("")?
            {
                kill_service(&pair.a, service)?;
            }
        }
    }
    lmtp.quit()?;
    // How this is done is of no interest to anybody; that it was is.
    pair.a.expect_log("killed with signal 9");
    pair.a.tolerate_log("replicator");
    pair.a.tolerate_log("aggregator");
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    pair.wait_equal(&names, Duration::from_secs(20))?;
    pair.finish()
}

fn peer_away(target: &Target) -> Outcome {
    let names: Vec<String> = (0..20).map(|number| format!("u{number}")).collect();
    let pair = Pair::of(target)
        .users(names.iter().map(|name| User::local(name)))
        .start()?;
    let mut lmtp = pair.a.lmtp()?;
    for name in &names {
        lmtp.deliver(&[name], &message("first"))?;
        pair.b.wait_mails(name, 1)?;
    }
    pair.b.stop()?;
    for name in &names {
        lmtp.deliver(&[name], &message("while-away"))?;
    }
    lmtp.quit()?;
    let away = Instant::now();
    wait_for("10 seconds of absence", Duration::from_secs(15), || {
        Ok((away.elapsed() >= Duration::from_secs(10)).then_some(()))
    })?;
    pair.b.restart()?;
    let back = Instant::now();
    for name in &names {
        pair.b.wait_mails(name, 2)?;
    }
    println!(
        "caught up {} ms after the return",
        back.elapsed().as_millis()
    );
    check(back.elapsed() < Duration::from_secs(5), || {
        format!("caught up after {:?}", back.elapsed())
    })?;
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    pair.wait_equal(&names, Duration::from_secs(10))?;
    // The syncs that were on their way when the peer went, one a connection at most.
    let refused = pair.a.log_lines("Connection refused").len();
    check(refused <= 20, || {
        format!("{refused} syncs died at the refused peer")
    })?;
    for node in [&pair.a, &pair.b] {
        node.tolerate_log("Connection refused");
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
        // Those that had connected to the master's socket, but to no process yet.
        node.tolerate_log("Connection reset by peer");
        node.tolerate_log("Disconnected from remote");
        // One that the end of its node met at its begin.
        node.tolerate_log("isconnected unexpectedly");
        node.tolerate_log("(to see if user is proxied, because doveadm_port is set)");
        node.tolerate_log("Failed to start remote dsync-server command");
    }
    pair.finish()
}

fn design_configuration(target: &Target) -> Outcome {
    let pair = Pair::of(target)
        .users(["u1", "u2"].map(User::local))
        .sync_timeout("2s")
        .start()?;
    let mut lmtp = pair.a.lmtp()?;
    lmtp.deliver(&["u1", "u2"], &message("first"))?;
    for user in ["u1", "u2"] {
        pair.b.wait_mails(user, 1)?;
    }
    lmtp.quit()?;
    for number in 0..50 {
        let (node, user) = [
            (&pair.a, "u1"),
            (&pair.b, "u2"),
            (&pair.b, "u1"),
            (&pair.a, "u2"),
        ][number % 4];
        let mut imap = node.imap(user)?;
        match number % 5 {
            0 => imap.append("INBOX", &message(&format!("mail-{number}")))?,
            1 => imap.create(&format!("folder-{number}"))?,
            2 => imap
                .ok("SELECT INBOX")
                .and_then(|_| imap.ok("STORE 1 +FLAGS \\Seen"))
                .map(drop)?,
            3 => imap.ok("SUBSCRIBE INBOX").map(drop)?,
            _ => node
                .lmtp()?
                .deliver(&[user], &message(&format!("delivered-{number}")))?,
        }
        imap.logout()?;
    }
    for node in [&pair.a, &pair.b] {
        // A busy machine's; no error.
        node.tolerate_log("Sync failure: Timeout in 2000 msecs");
    }
    pair.wait_equal(&["u1", "u2"], Duration::from_secs(10))?;
    // A pair of stock's is lenient at its end.
    let wrong = [pair.a.wrong_lines(), pair.b.wrong_lines()].concat();
    check(wrong.is_empty(), || wrong.join("\n"))?;
    pair.finish()
}

fn honest_plus(target: &Target) -> Outcome {
    const MAILS: usize = 200;
    const TIMEOUT: Duration = Duration::from_secs(2);
    let pair = Pair::of(target)
        .users([User::local("u1")])
        .sync_timeout("2s")
        .start()?;
    let mut lmtp = pair.a.lmtp()?;
    lmtp.deliver(&["u1"], &message("first"))?;
    pair.b.wait_mails("u1", 1)?;
    let mut timeouts = 0;
    for number in 0..MAILS {
        let begun = Instant::now();
        lmtp.deliver(&["u1"], &message(&format!("mail-{number}")))?;
        let there = pair.b.mails("u1");
        if begun.elapsed() < TIMEOUT {
            // Nothing but a + lets a delivery go on so soon: a - would be a warning in the log.
            check(there >= number + 2, || {
                format!("+ for mail {number}, {there} mails on the peer")
            })?;
        } else {
            timeouts += 1;
            pair.wait_equal(&["u1"], harness::PATIENCE)?;
        }
    }
    println!("{MAILS} deliveries, {timeouts} timeouts");
    check(timeouts < MAILS / 10, || {
        format!("{timeouts} of {MAILS} deliveries were not waited for")
    })?;
    pair.a.tolerate_log("Sync failure: Timeout in 2000 msecs");
    lmtp.quit()?;
    pair.finish()
}

fn reload_with_work_left(target: &Target) -> Outcome {
    let (node, fake) = faked(target, users("u", 3), "")?;
    fake.wait_users(3)?;
    let replicators = node.processes("replicator")?;
    let aggregators = wait_for("an aggregator", harness::PATIENCE, || {
        write_fifo(&node, b"u0\tlow\n")?;
        Ok(Some(node.processes("aggregator")?).filter(|pids| !pids.is_empty()))
    })?;
    let signal = |signal| {
        replicators
            .iter()
            .try_for_each(|pid| node.signal(*pid, signal))
    };
    signal(Signal::STOP)?;
    write_fifo(&node, b"u1\tlow\n")?;
    let journals = node.path("state/replication-aggregator");
    wait_for("u1 in a journal", harness::PATIENCE, || {
        // A file may be renamed, or go, between two looks.
        let files = std::fs::read_dir(&journals).into_iter().flatten();
        let mut texts = files
            .flatten()
            .flat_map(|file| std::fs::read_to_string(file.path()));
        Ok(texts.any(|text| text.contains("\tu1\t")).then_some(()))
    })?;
    fake.forget();
    node.doveadm(&["reload"])?;
    wait_for("the end of the aggregator", harness::PATIENCE, || {
        let running = node.processes("aggregator")?;
        let ended = !running.iter().any(|pid| aggregators.contains(pid));
        Ok(ended.then_some(()))
    })?;
    signal(Signal::KILL)?;
    fake.wait_request("u1")?;
    node.expect_log("SIGHUP received");
    // Dovecot's own, when a process of before the reload looks for the stats of before it.
    node.tolerate_log("stats-writer");
    node.tolerate_log("killed with signal 9");
    node.tolerate_log("replicator is away");
    node.finish()
}

/// `replicator_host` and `replicator_port`, as for a replicator on another host.
fn replicator_by_port(target: &Target) -> Outcome {
    let port = harness::ports::Port::take()?;
    let number = port.number();
    let name = target.series().pick("", "replicator ");
    let (node, fake) = faked(
        target,
        users("u", 2),
        &format!(
            "replicator_host = 127.0.0.1\nreplicator_port = {number}\n\
             service replicator {{\n  unix_listener replicator {{\n    mode = 0\n  }}\n  \
             inet_listener {name}{{\n    port = {number}\n  }}\n}}\n"
        ),
    )?;
    fake.wait_users(2)?;
    fake.forget();
    write_fifo(&node, b"u1\tlow\n")?;
    fake.wait_request("u1")?;
    let answer = ask_sync(&node, "u0", harness::PATIENCE)?;
    check(answer == "+\n", || format!("{answer:?}"))?;
    node.finish()
}

fn three_nodes(target: &Target) -> Outcome {
    let ports = [
        harness::ports::Port::take()?,
        harness::ports::Port::take()?,
        harness::ports::Port::take()?,
    ];
    let names = ["u1", "u2"];
    let node = |own: usize| {
        let number = |at: usize| ports[(own + at) % 3].number();
        let replica = |at| format!("tcp:127.0.0.1:{}", number(at));
        let replication = Replication {
            port: Some(number(0)),
            replicas: vec![replica(1), replica(2)],
            ..Replication::default()
        };
        Node::of(target)
            .services()
            .hostname(["node-a", "node-b", "node-c"][own])
            .users(names.map(User::local))
            .config(&replication.render(target.series()))
            .start()
    };
    let nodes = [node(0)?, node(1)?, node(2)?];
    for user in names {
        nodes[0].lmtp()?.deliver(&[user], &message("first"))?;
        for node in &nodes {
            node.wait_mails(user, 1)?;
        }
    }
    for (number, node) in nodes.iter().enumerate() {
        for user in names {
            node.lmtp()?
                .deliver(&[user], &message(&format!("mail-{number}")))?;
        }
    }
    for user in names {
        for node in &nodes {
            node.wait_mails(user, 4)?;
        }
        for (a, b) in [(0, 1), (1, 2)] {
            wait_for("equality", harness::PATIENCE, || {
                let found = harness::compare::differences(&nodes[a], &nodes[b], user)?;
                Ok(found.is_empty().then_some(()))
            })?;
        }
    }
    let peers = nodes[0].doveadm(&["-f", "tab", "replicator", "peers"])?;
    check(peers.matches("\tup\t").count() == 2, || peers.clone())?;
    for node in &nodes {
        // The others come and go with the test.
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
        // Dovecot's own, of two dsyncs that work on one Maildir.
        node.tolerate_log("Expunged message reappeared");
    }
    nodes.into_iter().try_for_each(Node::finish)
}
