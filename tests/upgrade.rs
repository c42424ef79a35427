//! A pair of stock 2.3 becomes a pair of ours and then one of 2.4, node by node, as docs/upgrade-2.3-to-2.4.md has it: same
//! mail, same queue, mail coming in on what is up at any moment.
//!
//! In the end both nodes are equal, each mail that was accepted is there once, nobody's full sync was repeated
//! and no dsync had to do without its state.

// A test may fail by panicking.
#![allow(clippy::indexing_slicing)]

mod harness;

use harness::client::message;
use harness::node::PASSWORD;
use harness::run::{main as run, trial};
use harness::{
    Failed, Imap, Implementation, Lmtp, Node, Outcome, Pair, Target, User, check, metrics, wait_for,
};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The first and the third live on the first node while it is up, the others on the second.
const USERS: [&str; 4] = ["u1", "u2", "u3", "u4"];
/// `noreplicate`, in 2.3's way.
const LEFT_OUT: &str = "private";

/// The time that equality may take; a busy machine needs some.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two changes of the traffic.
const PACE: Duration = Duration::from_millis(60);

/// From the pair's first release to its last.
const WALKS: [&[(&str, Implementation)]; 2] = [
    &[
        ("2.3.19.1", Implementation::Stock),
        ("2.3.19.1", Implementation::Ours),
        ("2.4.1", Implementation::Ours),
    ],
    &[
        ("2.4.1", Implementation::Ours),
        ("2.4.5", Implementation::Ours),
    ],
];

/// Clients that write all the time, each user's on one node at a time.
struct Traffic {
    ports: [[u16; 2]; 2],
    /// The node of each user. Held while something is written: nothing is half done when one is moved.
    homes: Mutex<[Option<usize>; USERS.len()]>,
    sent: Mutex<BTreeMap<&'static str, Vec<String>>>,
    stop: AtomicBool,
}

impl Traffic {
    fn of(pair: &Pair) -> Traffic {
        let ports = |node: &Node| [node.lmtp_port(), node.imap_port()];
        Traffic {
            ports: [ports(&pair.a), ports(&pair.b)],
            homes: Mutex::new(std::array::from_fn(|number| Some(number % 2))),
            sent: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    fn homes(&self) -> MutexGuard<'_, [Option<usize>; USERS.len()]> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has these users' clients go to another node, or wait.
    fn move_to(&self, users: &[&str], node: Option<usize>) {
        let mut homes = self.homes();
        for (number, user) in USERS.iter().enumerate() {
            if users.contains(user) {
                homes[number] = node;
            }
        }
    }

    fn all_sent(&self) -> MutexGuard<'_, BTreeMap<&'static str, Vec<String>>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.all_sent().values().map(Vec::len).sum()
    }

    /// Writes until it is told to stop.
    fn run(&self) -> Outcome {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            self.change(number)?;
            std::thread::sleep(PACE);
        }
        Ok(())
    }

    fn change(&self, number: usize) -> Outcome {
        let user = USERS[number % USERS.len()];
        let subject = format!("mail-{number}");
        let homes = self.homes();
        let Some(node) = homes[number % USERS.len()] else {
            return Ok(());
        };
        let [lmtp, imap] = self.ports[node];
        if number % 5 == 4 {
            let mut imap = Imap::connect(imap)?;
            imap.ok(&format!("LOGIN {user} {PASSWORD}"))?;
            imap.append("INBOX", &message(&subject))?;
            imap.logout()?;
        } else {
            let mut lmtp = Lmtp::connect(lmtp)?;
            lmtp.deliver(&[user], &message(&subject))?;
            lmtp.quit()?;
        }
        drop(homes);
        self.all_sent().entry(user).or_default().push(subject);
        Ok(())
    }

    /// Waits until some more was written.
    fn wait_more(&self) -> Outcome {
        let before = self.count();
        wait_for("the traffic", harness::PATIENCE, || {
            Ok((self.count() >= before + 8).then_some(()))
        })
    }
}

/// What the store has of the user, by the names of `show`'s columns.
fn show(node: &Node, user: &str) -> Outcome<BTreeMap<String, String>> {
    let shown = node.doveadm(&["-f", "tab", "replicator", "show", user])?;
    let mut lines = shown.lines();
    let (names, values) = (
        lines.next().ok_or("no header")?,
        lines.next().ok_or("no row")?,
    );
    let names = names.split('\t').map(str::to_owned);
    Ok(names.zip(values.split('\t').map(str::to_owned)).collect())
}

/// Each user's last full sync, as the replicators have it.
fn full_syncs(pair: &Pair) -> Outcome<Vec<String>> {
    let mut times = Vec::new();
    for node in [&pair.a, &pair.b] {
        for user in USERS {
            let time = show(node, user)?.remove("full sync");
            times.push(time.ok_or("no full sync column")?);
        }
    }
    Ok(times)
}

/// Since its start the node has made no sync that looks at all mail of a user, but for those that follow a stale state and those
/// of users whose state stock had thrown away.
fn only_incremental(node: &Node) -> Outcome {
    let counters = metrics(node)?;
    let count = |name: &str| counters.get(name).copied().unwrap_or(u64::MAX);
    // One that a node's end cut off is made again.
    let needed = count("settling_syncs_started") + count("syncs_failed") + without_state(node);
    check(
        count("full_syncs_started") <= needed && count("syncs_ok") > 0,
        || format!("{}, {needed} needed: {counters:?}", node.target.name()),
    )
}

/// The users of whom stock's file has no state: stock forgets it with each failure.
fn without_state(node: &Node) -> u64 {
    let stock = fs::read_to_string(node.path("state/replicator.db")).unwrap_or_default();
    let states = stock.lines().filter_map(|line| line.split('\t').nth(6));
    states.filter(|state| state.is_empty()).count() as u64
}

/// The store has dsync's state of each user: no sync will do without it. (2.4 says so in the log if it cannot read 2.3's.)
fn has_all_states(node: &Node) -> Outcome {
    let store = rusqlite::Connection::open_with_flags(
        node.path("state/replication.sqlite3"),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )?;
    let counted: usize = store.query_row(
        "SELECT COUNT(*) FROM replica WHERE has_state AND state IS NOT NULL",
        [],
        |row| row.get(0),
    )?;
    check(counted == USERS.len(), || {
        format!("{}: {counted} states", node.target.name())
    })
}

/// The subjects of all mail of the user, read from the Maildir: nobody has opened a mailbox for it.
fn subjects(node: &Node, user: &str) -> Outcome<Vec<String>> {
    let maildir = node.path("mail").join(user).join("Maildir");
    let mut found = Vec::new();
    for mailbox in ["", ".Box"] {
        for sub in ["new", "cur"] {
            subjects_in(&maildir.join(mailbox).join(sub), &mut found)?;
        }
    }
    found.sort();
    Ok(found)
}

fn subjects_in(dir: &Path, found: &mut Vec<String>) -> Outcome {
    // A mailbox that is not there has no mail.
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let mail = fs::read_to_string(entry?.path())?;
        let subject = mail.lines().find_map(|line| line.strip_prefix("Subject: "));
        found.push(
            subject
                .ok_or("a mail without a subject")?
                .trim_end()
                .to_owned(),
        );
    }
    Ok(())
}

/// The second node's mail begins as a copy of the first's, and neither knows of a sync: that both make an INBOX of their own is
/// another matter (defect 11).
fn seed(pair: &mut Pair) -> Outcome {
    for user in USERS {
        pair.a.lmtp()?.deliver(&[user], &message("welcome"))?;
        let mut imap = pair.a.imap(user)?;
        imap.ok("CREATE Box")?;
        imap.ok("SUBSCRIBE Box")?;
        imap.logout()?;
    }
    for own in [0, 1] {
        let node = node(pair, own);
        node.stop()?;
        let state = node.path("state");
        fs::remove_dir_all(&state)?;
        fs::create_dir(&state)?;
        fs::set_permissions(state, fs::Permissions::from_mode(0o755))?;
    }
    fs::remove_dir_all(pair.b.path("mail"))?;
    let copied = Command::new("cp")
        .arg("-a")
        .args([pair.a.path("mail"), pair.b.path("mail")])
        .status()?;
    check(copied.success(), || format!("cp: {copied}"))?;
    for own in [0, 1] {
        node(pair, own).restart()?;
    }
    pair.a.lmtp()?.deliver(&[LEFT_OUT], &message("welcome"))?;
    for user in USERS {
        pair.a.lmtp()?.deliver(&[user], &message("first"))?;
        pair.b.wait_mails(user, 2)?;
    }
    pair.wait_equal(&USERS, PATIENCE)?;
    pair.wait_idle()
}

fn node(pair: &mut Pair, own: usize) -> &mut Node {
    if own == 0 { &mut pair.a } else { &mut pair.b }
}

/// Dovecot's own, and what a peer says while the other is away.
fn tolerate(node: &Node) {
    for text in [
        "not reachable",
        "is reachable again",
        // Syncs that were on their way to or from a peer that went.
        "Connection refused",
        "Connection reset by peer",
        "Disconnected from remote",
        "isconnected unexpectedly",
        "passdb lookup failed",
        "Remote exit_code=75 TEMPFAIL",
        // The directory was the login user's of another release, which may have another uid.
        "Corrected permissions for login directory",
        // Dovecot's own, of a busy machine and of a release that starts on another's files.
        "stats-writer",
    ] {
        node.tolerate_log(text);
    }
}

/// One node becomes one of `target` while all mail goes to the other.
fn upgrade(pair: &mut Pair, traffic: &Traffic, own: usize, target: &Target) -> Outcome {
    let of_stock = !node(pair, own).target.is_ours();
    let are_ours = [&pair.a, &pair.b].iter().all(|node| node.target.is_ours());
    if are_ours {
        only_incremental(node(pair, own))?;
    }
    let its_users = [USERS[own], USERS[own + 2]];
    move_users(pair, traffic, &its_users, 1 - own)?;
    let left = &its_users[..1];
    if of_stock || own == 0 {
        node(pair, own).stop()?;
    } else {
        // What both nodes have new is brought together by dsync alone: its clients wait.
        traffic.move_to(left, None);
        stop_with_work_left(node(pair, own), traffic, left[0])?;
    }
    traffic.wait_more()?;
    if are_ours {
        has_all_states(node(pair, own))?;
    }
    pair.upgrade(own, target)?;
    let node = node(pair, own);
    tolerate(node);
    node.restart()?;
    if of_stock {
        let lines = node.wait_log("users taken over")?;
        let all = |line: &String| line.contains(" 0 lines could not");
        check(lines.iter().all(all), || format!("{lines:?}"))?;
    }
    move_users(pair, traffic, &its_users, own)?;
    traffic.wait_more()
}

/// The users' clients go to the other node when that has all their mail.
fn move_users(pair: &Pair, traffic: &Traffic, users: &[&str], to: usize) -> Outcome {
    traffic.move_to(users, None);
    // Stock's replicator waits for five minutes after a peer was away: ours fetches what is new there.
    let (ours, stock): (Vec<_>, Vec<_>) = [&pair.a, &pair.b]
        .into_iter()
        .partition(|node| node.target.is_ours());
    if let ([ours], [_]) = (&ours[..], &stock[..]) {
        ours.doveadm(&["replicator", "replicate", "*"])?;
    }
    pair.wait_equal(users, PATIENCE)?;
    traffic.move_to(users, Some(to));
    Ok(())
}

/// What a client does to a mail while nothing else changes: dsync itself may miss a flag that is set, or a mail that comes to
/// another mailbox than INBOX, while it is at work.
fn change_in_peace(pair: &Pair, traffic: &Traffic, user: &str, own: usize) -> Outcome {
    let home = if own == 0 { &pair.a } else { &pair.b };
    traffic.move_to(&[user], None);
    pair.wait_equal(&[user], PATIENCE)?;
    let mut imap = home.imap(user)?;
    imap.ok("SELECT INBOX")?;
    imap.ok(&format!(
        "STORE * +FLAGS (\\Flagged on-{})",
        home.target.version
    ))?;
    imap.ok("MOVE 1 Box")?;
    imap.logout()?;
    pair.wait_equal(&[user], PATIENCE)?;
    traffic.move_to(&[user], Some(own));
    Ok(())
}

/// Stops it with a change in the aggregator's journal that the replicator, killed, has not seen.
fn stop_with_work_left(node: &mut Node, traffic: &Traffic, user: &'static str) -> Outcome {
    let replicators = node.processes("replicator")?;
    for pid in &replicators {
        node.signal(*pid, Signal::STOP)?;
    }
    let subject = format!("left-in-the-journal-of-{}", node.target.version);
    node.lmtp()?.deliver(&[user], &message(&subject))?;
    traffic.all_sent().entry(user).or_default().push(subject);
    let journals = node.path("state/replication-aggregator");
    wait_for("a journal", harness::PATIENCE, || {
        // A file may be renamed, or go, between two looks.
        let files = fs::read_dir(&journals).into_iter().flatten().flatten();
        let mut texts = files.flat_map(|file| fs::read_to_string(file.path()));
        let line = format!("\t{user}\t");
        Ok(texts.any(|text| text.contains(&line)).then_some(()))
    })?;
    node.begin_stop()?;
    for pid in &replicators {
        node.kill(*pid)?;
    }
    node.tolerate_log("killed with signal 9");
    node.stop()
}

fn walk(targets: &[Target]) -> Outcome {
    let mut users = USERS.map(User::local).to_vec();
    users.push(User::local(LEFT_OUT).with("noreplicate", ""));
    let mut pair = Pair::of(&targets[0]).users(users).start()?;
    tolerate(&pair.a);
    tolerate(&pair.b);
    seed(&mut pair)?;
    if targets[0].is_ours() {
        // First syncs are full ones: the counters begin after them.
        for node in [&pair.a, &pair.b] {
            node.doveadm(&["replicator", "replicate", "-f", "*"])?;
        }
        wait_for("everybody's first sync", PATIENCE, || {
            let times = full_syncs(&pair).unwrap_or_default();
            Ok((!times.is_empty() && times.iter().all(|time| time != "0")).then_some(()))
        })?;
        pair.wait_idle()?;
        for own in [0, 1] {
            node(&mut pair, own).stop()?;
            node(&mut pair, own).restart()?;
        }
    }
    let traffic = Traffic::of(&pair);
    let walked = std::thread::scope(|scope| {
        let writer = scope.spawn(|| traffic.run());
        let walked = steps(&mut pair, &traffic, &targets[1..]);
        traffic.stop.store(true, Ordering::Relaxed);
        let written = writer
            .join()
            .map_err(|_| Failed::from("the traffic panicked"))?;
        walked.and(written)
    });
    walked.map_err(|failed| told(&pair, &failed))?;
    pair.wait_equal(&USERS, PATIENCE)?;
    arrived_once(&pair, &traffic)?;
    pair.wait_idle()?;
    for node in [&pair.a, &pair.b] {
        only_incremental(node)?;
        has_all_states(node)?;
    }
    println!("{} mails", traffic.count());
    pair.finish()
}

fn steps(pair: &mut Pair, traffic: &Traffic, targets: &[Target]) -> Outcome {
    for target in targets {
        for own in [1, 0] {
            traffic.wait_more()?;
            upgrade(pair, traffic, own, target)?;
            if pair.a.target.is_ours() && pair.b.target.is_ours() {
                change_in_peace(pair, traffic, USERS[0], 0)?;
                change_in_peace(pair, traffic, USERS[1], 1)?;
            }
        }
    }
    Ok(())
}

/// Nothing lost, nothing doubled, and nothing of the one who is left out.
fn arrived_once(pair: &Pair, traffic: &Traffic) -> Outcome {
    let sent = traffic.all_sent();
    for user in USERS {
        let mut wanted = sent.get(user).cloned().unwrap_or_default();
        wanted.extend(["first", "welcome"].map(str::to_owned));
        wanted.sort();
        for node in [&pair.a, &pair.b] {
            let found = subjects(node, user)?;
            check(found == wanted, || {
                let odd = |of: &[String], other: &[String]| -> Vec<String> {
                    of.iter()
                        .filter(|one| !other.contains(one))
                        .cloned()
                        .collect()
                };
                format!(
                    "{user}: {} sent, {} found; lost {:?}, unknown {:?}",
                    wanted.len(),
                    found.len(),
                    odd(&wanted, &found),
                    odd(&found, &wanted)
                )
            })?;
        }
    }
    let alone = [subjects(&pair.a, LEFT_OUT)?, subjects(&pair.b, LEFT_OUT)?];
    check(alone == [vec!["welcome".to_owned()], Vec::new()], || {
        format!("{LEFT_OUT}: {alone:?}")
    })
}

/// The failure, and what the nodes know.
fn told(pair: &Pair, failed: &Failed) -> Failed {
    let node = |node: &Node| {
        let users = node.doveadm(&["replicator", "status", "*"]);
        let users = users.unwrap_or_else(|failed| failed.message().unwrap_or("?").to_owned());
        format!("{}\n{users}{}", node.target.name(), node.log())
    };
    let what = failed.message().unwrap_or("?");
    format!("{what}\na: {}\nb: {}", node(&pair.a), node(&pair.b)).into()
}

fn main() -> ExitCode {
    let staged = Target::all_staged();
    let mut trials = Vec::new();
    for steps in WALKS {
        let find = |(version, implementation): &(&str, Implementation)| {
            let is = |target: &&Target| {
                target.version == *version && target.implementation == *implementation
            };
            staged.iter().find(is).cloned()
        };
        let Some(targets) = steps.iter().map(find).collect::<Option<Vec<_>>>() else {
            continue;
        };
        let Some(mut last) = targets.last().cloned() else {
            continue;
        };
        last.missing = targets.iter().find_map(|target| target.missing.clone());
        let from = targets[0].name().replace('/', "_");
        let name = format!("pair_of_{from}_is_upgraded_node_by_node");
        trials.push(trial(&last, &name, move || walk(&targets)));
    }
    run(trials)
}
