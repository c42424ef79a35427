//! What dsync cannot settle, settled without an administrator: each scenario fails, or never ends, without the healing.

// A test may fail by panicking.
#![allow(clippy::indexing_slicing)]

mod harness;

use harness::client::message;
use harness::compare::is_nonexistent;
use harness::configuration::Format;
use harness::node::MAIL_USER;
use harness::pair::Links;
use harness::proxy::Link;
use harness::run::{main as run, trial};
use harness::{Implementation, Node, Outcome, Pair, Target, User, check, metric, wait_for};
use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USERS: [&str; 3] = ["u1", "u2", "u3"];
/// Logs in and opens nothing.
const LISTER: &str = "u4";
/// The time to equality that a first login is promised.
const FIRST_LOGIN: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
/// A sync that a notification asks for has begun by then.
const QUIET: Duration = Duration::from_secs(2);
/// Mailboxes that both nodes make, besides INBOX.
const MAILBOXES: [&str; 3] = ["Sent", "a b/c", "Drafts"];

/// Which releases, and whose replication.
const MIXED: [[(&str, Implementation); 2]; 4] = [
    [
        ("2.3.19.1", Implementation::Ours),
        ("2.4.1", Implementation::Ours),
    ],
    [
        ("2.3.13", Implementation::Ours),
        ("2.3.19.1", Implementation::Ours),
    ],
    [
        ("2.3.19.1", Implementation::Stock),
        ("2.3.19.1", Implementation::Ours),
    ],
    [
        ("2.3.19.1", Implementation::Stock),
        ("2.4.1", Implementation::Ours),
    ],
];

/// The first login and the first mail on a node, before anything was synced.
fn arrive(node: &Node, name: &str) -> Outcome {
    for user in USERS {
        let mut imap = node.imap(user)?;
        imap.ok("SELECT INBOX")?;
        for number in 0..2 {
            imap.append("INBOX", &message(&format!("{user}-{name}{number}")))?;
        }
        imap.logout()?;
    }
    let mut imap = node.imap(USERS[1])?;
    for mailbox in MAILBOXES {
        imap.create(&format!("\"{mailbox}\""))?;
        imap.append(
            &format!("\"{mailbox}\""),
            &message(&format!("{mailbox}-{name}")),
        )?;
    }
    imap.logout()
}

/// Every mail of both nodes is there once.
fn check_mails(node: &Node) -> Outcome {
    for user in USERS {
        let mut subjects = Vec::new();
        let mailboxes: &[&str] = if user == USERS[1] { &MAILBOXES } else { &[] };
        let mut expected: Vec<String> = ["a", "b"]
            .iter()
            .flat_map(|name| (0..2).map(move |number| format!("{user}-{name}{number}")))
            .collect();
        let mut imap = node.imap(user)?;
        for mailbox in ["INBOX"].iter().chain(mailboxes) {
            imap.ok(&format!("EXAMINE \"{mailbox}\""))?;
            let lines = imap.ok("FETCH 1:* (BODY.PEEK[HEADER.FIELDS (SUBJECT)])")?;
            subjects.extend(
                lines
                    .iter()
                    .filter_map(|line| line.strip_prefix("Subject: "))
                    .map(str::to_owned),
            );
        }
        for mailbox in mailboxes {
            expected.extend(["a", "b"].map(|name| format!("{mailbox}-{name}")));
        }
        imap.logout()?;
        subjects.sort();
        expected.sort();
        check(subjects == expected, || {
            format!("{user} has {subjects:?}, not {expected:?}")
        })?;
    }
    Ok(())
}

fn finish(pair: Pair) -> Outcome {
    pair.wait_idle()?;
    for node in [&pair.a, &pair.b] {
        // The nodes start one after the other.
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
    }
    pair.finish()
}

/// The first login on a node and nothing else: INBOX is opened, or not even that.
fn look_in(node: &Node, _: &str) -> Outcome {
    // A UIDVALIDITY is a time in seconds: the other node's is another one.
    std::thread::sleep(Duration::from_millis(1100));
    for (user, commands) in USERS.into_iter().chain([LISTER]).zip([
        &["SELECT INBOX"] as &[&str],
        &["EXAMINE INBOX", "LIST \"\" *"],
        &["STATUS INBOX (UIDVALIDITY)"],
        &["LIST \"\" *"],
    ]) {
        let mut imap = node.imap(user)?;
        for command in commands {
            imap.ok(command)?;
        }
        imap.logout()?;
    }
    Ok(())
}

/// Mail comes at the first login on each node.
fn first_mail(a: &Target, b: &Target, format: Format) -> Outcome {
    let pair = first_login(a, b, format, arrive)?;
    check_mails(&pair.a)?;
    check_mails(&pair.b)?;
    finish(pair)
}

/// No mail comes: two empty INBOXes are equal, too, and nobody syncs for ever.
fn first_look(a: &Target, b: &Target, format: Format) -> Outcome {
    let pair = first_login(a, b, format, look_in)?;
    // INBOX of a user who only listed it comes to be with the first look at it, on the one node or on the other.
    pair.a.imap(LISTER)?.ok("SELECT INBOX")?;
    pair.wait_idle()?;
    pair.wait_equal(&[LISTER], PATIENCE)?;
    pair.wait_idle()?;
    let count = || -> Outcome<u64> {
        let nodes = [&pair.a, &pair.b]
            .into_iter()
            .filter(|node| node.target.is_ours());
        // The full sync that follows a stale state may still be to come.
        let caused =
            |node| Ok(metric(node, "syncs_started")? - metric(node, "settling_syncs_started")?);
        nodes.map(caused).sum()
    };
    let before = count()?;
    for node in [&pair.a, &pair.b] {
        look_in(node, "")?;
    }
    // What would be notified now is taken up within a moment.
    std::thread::sleep(QUIET);
    let after = count()?;
    check(before == after, || {
        format!("{} syncs of nothing", after - before)
    })?;
    finish(pair)
}

/// Both nodes see their users before either has synced anything: their replicators stand still meanwhile.
fn first_login(
    a: &Target,
    b: &Target,
    format: Format,
    log_in: impl Fn(&Node, &str) -> Outcome,
) -> Outcome<Pair> {
    let pair = Pair::mixed(a, b)
        .format(format)
        .users(USERS.into_iter().chain([LISTER]).map(User::local))
        .start()?;
    let nodes = [&pair.a, &pair.b];
    for node in nodes {
        wait_for("a replicator that knows its users", PATIENCE, || {
            let status = node.doveadm(&["replicator", "status"]).unwrap_or_default();
            Ok(status.trim_end().ends_with(" 4").then_some(()))
        })?;
    }
    pair.wait_idle()?;
    let signal = |signal| {
        nodes.into_iter().try_for_each(|node| {
            let mut pids = node.processes("replicator")?.into_iter();
            pids.try_for_each(|pid| node.signal(pid, signal))
        })
    };
    signal(Signal::STOP)?;
    log_in(&pair.a, "a")?;
    log_in(&pair.b, "b")?;
    signal(Signal::CONT)?;
    let begin = Instant::now();
    pair.wait_equal(&USERS, PATIENCE)?;
    let taken = begin.elapsed();
    check(taken < FIRST_LOGIN, || format!("equal after {taken:?}"))?;
    for node in nodes {
        // Dovecot's own on 2.4, where dsync renumbers a mail that it has just indexed; the index is mended at once.
        node.tolerate_log("Extension record update for invalid uid");
        node.tolerate_log("fscking index file");
        // A session that is still open while dsync gives its mailbox the other's UIDVALIDITY.
        node.tolerate_log("view is now inconsistent");
    }
    Ok(pair)
}

fn deliver(node: &Node, user: &str, subject: &str) -> Outcome {
    let mut lmtp = node.lmtp()?;
    lmtp.deliver(&[user], &message(subject))?;
    lmtp.quit()
}

/// The peer's mail of a user is what a backup had: it refuses the state, and all comes back from this node.
fn restored_from_backup(target: &Target) -> Outcome {
    let pair = Pair::of(target).users(USERS.map(User::local)).start()?;
    let home = pair.b.path("mail/u1");
    let backup = pair.b.path("mail/u1.backup");
    // The state that later syncs begin from, and the backup of it.
    for number in 0..4 {
        deliver(&pair.a, "u1", &format!("before{number}"))?;
        pair.wait_equal(&["u1"], PATIENCE)?;
        pair.wait_idle()?;
    }
    copy(&home, &backup)?;
    for number in 0..4 {
        deliver(&pair.a, "u1", &format!("after{number}"))?;
        pair.wait_equal(&["u1"], PATIENCE)?;
        pair.wait_idle()?;
    }
    fs::remove_dir_all(&home)?;
    fs::rename(&backup, &home)?;
    deliver(&pair.a, "u1", "last")?;
    pair.wait_equal(&["u1"], PATIENCE)?;
    check(pair.b.mails("u1") == 9, || {
        format!("{} mails", pair.b.mails("u1"))
    })?;
    check(metric(&pair.a, "healed_states")? > 0, || {
        "no state was forgotten".to_owned()
    })?;
    let said = pair
        .a
        .log_lines("The sync state is forgotten, a full sync follows");
    check(said.len() == 1, || format!("{said:?}"))?;
    for node in [&pair.a, &pair.b] {
        node.tolerate_log(
            "Failed to do incremental sync for mailbox INBOX, retry with a full sync",
        );
        node.tolerate_log("doesn't match previous state");
    }
    finish(pair)
}

/// A node's index was made anew: it is behind the state that its own replicator begins from.
fn index_made_anew(target: &Target) -> Outcome {
    let pair = Pair::of(target).users(USERS.map(User::local)).start()?;
    for number in 0..4 {
        deliver(&pair.a, "u1", &format!("before{number}"))?;
        pair.wait_equal(&["u1"], PATIENCE)?;
        pair.wait_idle()?;
    }
    for file in fs::read_dir(pair.a.path("mail/u1/Maildir"))? {
        let file = file?;
        if file
            .file_name()
            .to_string_lossy()
            .starts_with("dovecot.index")
        {
            fs::remove_file(file.path())?;
        }
    }
    deliver(&pair.a, "u1", "last")?;
    pair.wait_equal(&["u1"], PATIENCE)?;
    check(metric(&pair.a, "healed_states")? > 0, || {
        "no state was forgotten".to_owned()
    })?;
    for node in [&pair.a, &pair.b] {
        node.tolerate_log("retry with a full sync");
    }
    finish(pair)
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> Outcome {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()?;
    check(status.success(), || format!("cp: {status}"))
}

/// A pair that is equal, and a lock that is held on `a`, where every dsync of the user locks: the node of the lower name.
fn with_a_held_lock(target: &Target) -> Outcome<(Pair, fs::File)> {
    let pair = Pair::of(target)
        .users(USERS.map(User::local))
        .config(&format!(
            "replication_dsync_parameters = {}",
            target.series().pick("-d -N -l 2 -U", "-N -l 2")
        ))
        .start()?;
    deliver(&pair.a, "u1", "before")?;
    pair.wait_equal(&["u1"], PATIENCE)?;
    pair.wait_idle()?;
    let lock = fs::File::create(pair.a.path("mail/u1/.dovecot-sync.lock"))?;
    std::os::unix::fs::fchown(&lock, Some(MAIL_USER.1), Some(MAIL_USER.1))?;
    rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    Ok((pair, lock))
}

/// Another dsync of the user holds the lock on `a` for longer than is waited for: no failure, and the mail goes over at its end.
fn lock_is_held(target: &Target) -> Outcome {
    let (pair, lock) = with_a_held_lock(target)?;
    deliver(&pair.a, "u1", "meanwhile")?;
    pair.a
        .wait_log("Stepping back, another dsync of the user holds a lock")?;
    let shown = pair
        .a
        .doveadm(&["-f", "flow", "replicator", "show", "u1"])?;
    check(shown.contains("failures=0"), || shown)?;
    check(metric(&pair.a, "syncs_locked")? > 0, || {
        "not counted".to_owned()
    })?;
    drop(lock);
    pair.wait_equal(&["u1"], PATIENCE)?;
    for node in [&pair.a, &pair.b] {
        node.tolerate_log("Couldn't lock ");
    }
    finish(pair)
}

/// Both nodes' syncs wait for one lock in vain: the node of the lower host name goes on first, the other one when that one is done.
fn both_are_locked_out(target: &Target) -> Outcome {
    let (pair, lock) = with_a_held_lock(target)?;
    deliver(&pair.a, "u1", "from-a")?;
    deliver(&pair.b, "u1", "from-b")?;
    let nodes = [&pair.a, &pair.b];
    let both =
        |name| -> Outcome<Vec<u64>> { nodes.into_iter().map(|node| metric(node, name)).collect() };
    wait_for("locks in the way of both", PATIENCE, || {
        let locked = both("syncs_locked")?;
        Ok(locked.iter().all(|count| *count > 0).then_some(()))
    })?;
    let before = both("syncs_ok")?;
    drop(lock);
    wait_for("a sync", PATIENCE, || {
        let now = both("syncs_ok")?;
        check(now[1] == before[1] || now[0] > before[0], || {
            "the node of the greater host name went on first".to_owned()
        })?;
        Ok((now[0] > before[0]).then_some(()))
    })?;
    pair.wait_equal(&["u1"], PATIENCE)?;
    pair.wait_idle()?;
    check(both("syncs_failed")? == [0, 0], || {
        "it counted as a failure".to_owned()
    })?;
    for node in nodes {
        let said = node.log_lines("Stepping back, another dsync of the user holds a lock");
        check(said.len() == 1, || format!("{said:?}"))?;
    }
    for node in nodes {
        node.tolerate_log("Couldn't lock ");
    }
    finish(pair)
}

/// Said once, in the log and in `peers`, by each node that has had anything to do with the other.
fn same_hostname(a: &Target, b: &Target) -> Outcome {
    let pair = Pair::mixed(a, b)
        .users(USERS.map(User::local))
        .hostnames(["same-node"; 2])
        .start()?;
    for (node, subject, mails) in [
        (&pair.a, "one", 1),
        (&pair.b, "two", 2),
        (&pair.a, "three", 3),
    ] {
        // Nothing keeps two dsyncs of such nodes out: here is one at a time.
        deliver(node, "u1", subject)?;
        pair.a.wait_mails("u1", mails)?;
        pair.b.wait_mails("u1", mails)?;
        pair.wait_idle()?;
    }
    for node in [&pair.a, &pair.b]
        .into_iter()
        .filter(|n| n.target.is_ours())
    {
        check_same_hostname_is_said(node)?;
    }
    finish(pair)
}

/// How the second node is reached.
#[derive(Clone, Copy, Debug)]
enum Way {
    Tcp,
    Tcps,
    Remote,
}

/// A node to which nobody syncs learns it from its own syncs.
fn same_hostname_seen_by_own_sync(target: &Target, way: Way) -> Outcome {
    let links = Links::new(target)?;
    let builder = Pair::of(target)
        .users(USERS.map(User::local))
        .hostnames(["same-node"; 2])
        .one_way();
    let pair = match way {
        Way::Tcp => builder,
        Way::Tcps => builder.replica_by_tls(true),
        Way::Remote => builder.replica_by_command(&links.command(target, "same-node")),
    }
    .start()?;
    links.lead_to(&pair)?;
    for (subject, mails) in [("one", 1), ("two", 2)] {
        deliver(&pair.a, "u1", subject)?;
        pair.b.wait_mails("u1", mails)?;
    }
    check_same_hostname_is_said(&pair.a)?;
    finish(pair)
}

fn check_same_hostname_is_said(node: &Node) -> Outcome {
    node.wait_log("has this node's own host name, same-node")?;
    node.expect_log("has this node's own host name, same-node");
    let said = node.log_lines("has this node's own host name");
    check(said.len() == 1, || format!("{said:?}"))?;
    let peers = node.doveadm(&["-f", "tab", "replicator", "peers"])?;
    check(peers.contains("\tsame-node"), || peers)
}

/// Names of their own: nothing is said.
fn different_hostnames(target: &Target) -> Outcome {
    let pair = Pair::of(target).users(USERS.map(User::local)).start()?;
    for (node, user) in [(&pair.a, "u1"), (&pair.b, "u2")] {
        deliver(node, user, "one")?;
    }
    pair.wait_equal(&["u1", "u2"], PATIENCE)?;
    for node in [&pair.a, &pair.b] {
        let peers = node.doveadm(&["-f", "tab", "replicator", "peers"])?;
        check(!peers.contains("node-"), || peers)?;
    }
    finish(pair)
}

/// How a sync of the peer ends in the middle of a mail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Cut,
    /// SIGKILL of its dsync-server.
    Killed,
}

/// The peer's sync ends in the middle of a mail: a full one of ours that is ordered then does not begin before a fast one has come
/// through, for it could take what is half over for expunged.
fn full_after_the_peers(target: &Target, end: End) -> Outcome {
    let pair = Pair::of(target)
        .users([User::local("u1")])
        .faults()
        .crashes_only()
        .start()?;
    deliver(&pair.a, "u1", "first")?;
    pair.wait_equal(&["u1"], PATIENCE)?;
    // b's first sync may be from before the mail: its state is to have INBOX.
    pair.b
        .doveadm(&["replicator", "replicate", "-p", "high", "u1"])?;
    pair.wait_idle()?;
    let counted = || -> Outcome<[u64; 2]> {
        let count = |name| metric(&pair.b, name);
        Ok([count("full_syncs_started")?, count("syncs_started")?])
    };
    let [full, all] = counted()?;
    let failed = metric(&pair.a, "syncs_failed")?;
    // Those that served b's own syncs wait for the next one.
    let idle = pair.b.processes("doveadm-server")?;
    let to_b = &pair.proxies[1];
    to_b.set(match end {
        End::Cut => Link::CutAfter(40_000),
        End::Killed => Link::Slow(Duration::from_millis(100)),
    });
    let body = "a line of a mail that takes a while on the wire\r\n".repeat(50_000);
    let mut lmtp = pair.a.lmtp()?;
    lmtp.deliver(&["u1"], &(message("cut") + &body))?;
    lmtp.quit()?;
    let at_work = || -> Outcome<Option<i32>> {
        let workers = pair.b.processes("doveadm-server")?;
        Ok(workers.into_iter().find(|pid| !idle.contains(pid)))
    };
    if end == End::Killed {
        let worker = wait_for("its dsync-server", PATIENCE, at_work)?;
        // The mail takes some 15 s.
        let since = Instant::now();
        wait_for("the middle", PATIENCE, || {
            Ok((since.elapsed() > Duration::from_secs(2)).then_some(()))
        })?;
        pair.b.kill(worker)?;
        pair.b.tolerate_log("killed with signal 9");
    }
    wait_for("a sync that was cut off", PATIENCE, || {
        let cut = metric(&pair.a, "syncs_failed")? > failed;
        Ok((cut && at_work()?.is_none()).then_some(()))
    })?;
    to_b.set(Link::Cut);
    pair.b
        .doveadm(&["replicator", "replicate", "-f", "-p", "high", "u1"])?;
    wait_for("a full sync", PATIENCE, || {
        Ok((counted()?[0] > full).then_some(()))
    })?;
    let [full, all] = [counted()?[0] - full, counted()?[1] - all];
    check(all > full, || format!("{full} of {all} syncs were full"))?;
    to_b.set(Link::Up);
    pair.wait_equal(&["u1"], PATIENCE)?;
    finish(pair)
}

/// Which syncs are cut off, of mailboxes that both nodes have and whose mails no sync has brought over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CutOff {
    /// The first of one node: of INBOX.
    First,
    /// The first of both nodes, begun at the same moment: one waits for the other's lock.
    FirstOfBoth,
    /// The next of both nodes: of a mailbox that the state does not have.
    NextOfBoth,
    /// The next of one node, while another mailbox of the other is from a backup. The other goes on alone: its state is refused.
    Refused,
}

impl CutOff {
    const ALL: [Self; 4] = [
        Self::First,
        Self::FirstOfBoth,
        Self::NextOfBoth,
        Self::Refused,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::First => "first_sync_that_is_cut_off_loses_no_mail",
            Self::FirstOfBoth => "first_syncs_that_are_cut_off_at_once_lose_no_mail",
            Self::NextOfBoth => "syncs_of_a_new_mailbox_that_are_cut_off_at_once_lose_no_mail",
            Self::Refused => "sync_that_is_cut_off_when_a_mailbox_is_behind_loses_no_mail",
        }
    }

    const fn mailbox(self) -> &'static str {
        match self {
            Self::NextOfBoth => "New",
            Self::First | Self::FirstOfBoth | Self::Refused => "INBOX",
        }
    }

    /// Whose syncs are cut off.
    fn syncs_of(self, pair: &Pair) -> Vec<&Node> {
        match self {
            Self::First | Self::Refused => vec![&pair.a],
            Self::FirstOfBoth | Self::NextOfBoth => vec![&pair.a, &pair.b],
        }
    }
}

/// b has a mailbox of each user as it was before its last mails came: the states are ahead of it.
fn put_mailbox_back(pair: &Pair, format: Format) -> Outcome {
    // Before INBOX in dsync's order.
    const MAILBOX: &str = "Archive";
    let append = |subject: &str| -> Outcome {
        for user in USERS {
            let mut imap = pair.a.imap(user)?;
            imap.append(MAILBOX, &message(subject))?;
            imap.logout()?;
        }
        pair.wait_equal(&USERS, PATIENCE)
    };
    for user in USERS {
        let mut imap = pair.a.imap(user)?;
        imap.create(MAILBOX)?;
        imap.logout()?;
    }
    append("before")?;
    let dirs = USERS.map(|user| {
        let dir = match format {
            Format::Maildir => format!("Maildir/.{MAILBOX}"),
            _ => format!("{}/mailboxes/{MAILBOX}", format.name()),
        };
        let dir = pair.b.path(&format!("mail/{user}/{dir}"));
        let backup = pair.b.path(&format!("mail/{user}.backup"));
        (dir, backup)
    });
    for (dir, backup) in &dirs {
        copy(dir, backup)?;
    }
    for number in 0..4 {
        append(&format!("after-{number}"))?;
    }
    // b's state is to have them.
    for user in USERS {
        pair.b
            .doveadm(&["replicator", "replicate", "-p", "high", user])?;
    }
    pair.wait_idle()?;
    for (dir, backup) in &dirs {
        fs::remove_dir_all(dir)?;
        fs::rename(backup, dir)?;
    }
    Ok(())
}

/// Syncs are cut off after so many bytes: what is half over then is not taken for expunged by the next one, although the state says nothing of
/// the mailbox.
fn sync_is_cut_off(target: &Target, format: Format, which: CutOff) -> Outcome {
    const MAILS: usize = 8;
    let pair = Pair::of(target)
        .format(format)
        .users(USERS.map(User::local))
        .faults()
        .crashes_only()
        .start()?;
    pair.wait_idle()?;
    if !matches!(which, CutOff::First | CutOff::FirstOfBoth) {
        let mut lmtp = pair.a.lmtp()?;
        lmtp.deliver(&USERS, &message("before"))?;
        lmtp.quit()?;
        pair.wait_equal(&USERS, PATIENCE)?;
        pair.wait_idle()?;
    }
    if which == CutOff::Refused {
        put_mailbox_back(&pair, format)?;
    }
    let syncing = which.syncs_of(&pair);
    // Of those that go on.
    let failures = || -> Outcome<u64> {
        let each = syncing.iter().map(|node| metric(node, "syncs_failed"));
        each.sum()
    };
    let before = failures()?;
    let signal = |node: &Node, signal| {
        let mut pids = node.processes("replicator")?.into_iter();
        pids.try_for_each(|pid| node.signal(pid, signal))
    };
    for node in [&pair.a, &pair.b] {
        signal(node, Signal::STOP)?;
    }
    let body = "a line of a mail that takes a while on the wire\r\n".repeat(2_000);
    let nodes = [(&pair.a, "on-a"), (&pair.b, "on-b")];
    for user in USERS {
        for (node, subject) in nodes {
            let mut imap = node.imap(user)?;
            if which == CutOff::NextOfBoth {
                imap.create(which.mailbox())?;
            }
            for _ in 0..MAILS {
                imap.append(which.mailbox(), &(message(subject) + &body))?;
            }
            imap.logout()?;
        }
    }
    // A mail has 98,000.
    let bytes = fastrand::usize(50_000..750_000);
    let links = |link| pair.proxies.iter().for_each(|proxy| proxy.set(link));
    links(Link::CutAfter(bytes));
    for node in &syncing {
        signal(node, Signal::CONT)?;
    }
    wait_for("syncs that are cut off", PATIENCE, || {
        Ok((failures()? >= before + 3).then_some(()))
    })?;
    if which == CutOff::Refused {
        // b is to find its way alone.
        signal(&pair.a, Signal::STOP)?;
    }
    if matches!(which, CutOff::First | CutOff::Refused) {
        // b hears of them before it can begin one.
        links(Link::Cut);
        signal(&pair.b, Signal::CONT)?;
        wait_for("b, which looks for its peer", PATIENCE, || {
            let peers = pair.b.doveadm(&["-f", "tab", "replicator", "peers"])?;
            Ok(peers.contains("\tdown\t").then_some(()))
        })?;
    }
    links(Link::Up);
    pair.wait_equal(&USERS, PATIENCE)?;
    signal(&pair.a, Signal::CONT)?;
    for user in USERS {
        for (node, _) in nodes {
            let mut imap = node.imap(user)?;
            imap.ok(&format!("EXAMINE {}", which.mailbox()))?;
            for (_, subject) in nodes {
                let found = imap.ok(&format!("SEARCH SUBJECT {subject}"))?.concat();
                let found = found.split_whitespace().skip(2).count();
                check(found == MAILS, || {
                    let what = if found < MAILS { "lost" } else { "doubled" };
                    format!(
                        "{what}: {found} of {MAILS} mails {subject} of {user}, cut off after {bytes} bytes"
                    )
                })?;
            }
            imap.logout()?;
        }
    }
    finish(pair)
}

type Scenario = fn(&Target) -> Outcome;

/// What each node does to its mailboxes before the other hears of it.
#[derive(Clone, Copy)]
struct Renames {
    name: &'static str,
    a: &'static [(&'static str, &'static str)],
    b: &'static [(&'static str, &'static str)],
}

/// The mailboxes that both nodes have before.
const BEFORE: [&str; 4] = ["Ren", "Ren/x", "Ren/x/y", "Ren/y"];

/// From what the first is to get its name; a mailbox that is made comes from nowhere. dsync ends each with OK, and two names for one mailbox.
const RENAMES: [Renames; 3] = [
    Renames {
        name: "mailboxes_renamed_to_a_name_that_the_other_node_makes",
        a: &[("Ren/y", "New")],
        b: &[("", "New")],
    },
    Renames {
        name: "mailboxes_renamed_over_the_old_name_of_another",
        a: &[("Ren/x", "Old"), ("Old", "New")],
        b: &[("", "Ren/z"), ("Ren/z", "New")],
    },
    Renames {
        name: "mailboxes_in_branches_renamed_to_one_name",
        a: &[("Ren", "Del")],
        b: &[("", "Del/a")],
    },
];

/// One sync leaves a mailbox with two names, of which dsync says nothing; only the first node begins any.
fn renamed_on_both_nodes(target: &Target, format: Format, renames: Renames) -> Outcome {
    const USER: &str = "u1";
    let pair = Pair::of(target)
        .format(format)
        .mail_plugins("notify acl")
        .users([User::local(USER)])
        .start()?;
    let order = || {
        pair.a
            .doveadm(&["replicator", "replicate", "-p", "high", USER])
    };
    let subjects = |node: &Node| -> Outcome<Vec<String>> {
        let found = node.doveadm(&["fetch", "-u", USER, "hdr.subject", "ALL"])?;
        let mut found: Vec<String> = found.lines().map(str::to_owned).collect();
        found.retain(|line| line.starts_with("hdr.subject"));
        found.sort();
        Ok(found)
    };
    let mut imap = pair.b.imap(USER)?;
    imap.ok("SELECT INBOX")?;
    imap.logout()?;
    let mut imap = pair.a.imap(USER)?;
    for mailbox in BEFORE {
        imap.create(mailbox)?;
        imap.append(mailbox, &message(mailbox))?;
    }
    imap.logout()?;
    order()?;
    // One who looks meanwhile is in dsync's way.
    pair.wait_idle()?;
    pair.wait_equal(&[USER], PATIENCE)?;
    let mut made = BEFORE.len();
    for (node, steps) in [(&pair.a, renames.a), (&pair.b, renames.b)] {
        let mut imap = node.imap(USER)?;
        for (from, to) in steps {
            if from.is_empty() {
                imap.create(to)?;
                imap.append(to, &message(&format!("new {to}")))?;
                made += 1;
            } else {
                imap.ok(&format!("RENAME {from} {to}"))?;
            }
        }
        imap.logout()?;
    }
    order()?;
    pair.wait_idle()?;
    pair.wait_equal(&[USER], PATIENCE)?;
    for node in [&pair.a, &pair.b] {
        let found = subjects(node)?;
        check(found.len() == made, || format!("{found:?}"))?;
    }
    finish(pair)
}

/// A process was killed in the middle of DELETE: the index is marked deleted and the mailbox still there. Dovecot would take the mark off after five
/// minutes, until which dsync comes to create the mailbox that the other node has, and fails.
fn deleted_half_way(target: &Target, format: Format) -> Outcome {
    /// The record `index-deleted (ext)` of dovecot.index.log: its size and type, and four bytes of nothing.
    const INDEX_DELETED: [u8; 12] = [0x80, 0x80, 0x80, 0x83, 0, 0, 2, 0x10, 0, 0, 0, 0];
    const USER: &str = "u1";
    let pair = Pair::of(target)
        .format(format)
        .users([User::local(USER)])
        .start()?;
    let append = |node: &Node, mailbox: &str, subject: &str| -> Outcome {
        let mut imap = node.imap(USER)?;
        imap.append(mailbox, &message(subject))?;
        imap.logout()
    };
    // One who looks meanwhile is in dsync's way.
    let wait_equal = || -> Outcome {
        std::thread::sleep(QUIET);
        pair.wait_idle()?;
        pair.wait_equal(&[USER], PATIENCE)
    };
    let mut imap = pair.a.imap(USER)?;
    imap.create("Half")?;
    imap.logout()?;
    append(&pair.a, "Half", "before")?;
    wait_equal()?;
    let mailbox = match format {
        Format::Maildir => "Maildir/.Half".to_owned(),
        _ => format!("{}/mailboxes/Half/dbox-Mails", format.name()),
    };
    let index = pair
        .a
        .path(&format!("mail/{USER}/{mailbox}/dovecot.index.log"));
    // A process that closes the mailbox may just begin a new log.
    wait_for("the mark", PATIENCE, || {
        let mut log = fs::OpenOptions::new().append(true).open(&index)?;
        log.write_all(&INDEX_DELETED)?;
        let mut imap = pair.a.imap(USER)?;
        let (_, tagged) = imap.command("EXAMINE Half")?;
        imap.logout()?;
        Ok(is_nonexistent(&tagged).then_some(()))
    })?;
    append(&pair.b, "Half", "after")?;
    append(&pair.a, "INBOX", "elsewhere")?;
    wait_equal()?;
    pair.wait_idle()?;
    let mut imap = pair.a.imap(USER)?;
    let there = imap.ok("STATUS Half (MESSAGES)")?.concat();
    imap.logout()?;
    check(there.contains("MESSAGES 2"), || there)?;
    // dsync's process tells it when it has ended; those of both nodes' syncs may both have found the mark.
    wait_for("a count", PATIENCE, || {
        Ok((metric(&pair.a, "healed_deletes")? > 0).then_some(()))
    })?;
    let said = pair.a.log_lines("Mailbox Half was deleted half-way");
    check(!said.is_empty(), || "not said".to_owned())?;
    for node in [&pair.a, &pair.b] {
        // What looks at the mailbox before it is there again.
        node.tolerate_log("Mailbox was deleted under us");
    }
    finish(pair)
}

fn main() -> ExitCode {
    if let Err(failed) = harness::disk::in_own_mounts() {
        eprintln!("{}", failed.message().unwrap_or("?"));
        return ExitCode::FAILURE;
    }
    let staged = Target::all_staged();
    let find = |(version, implementation)| {
        let is =
            |target: &&Target| target.version == version && target.implementation == implementation;
        staged.iter().find(is)
    };
    let mut trials = Vec::new();
    for target in staged.iter().filter(|target| target.is_ours()) {
        for format in [Format::Maildir, Format::Sdbox, Format::Mdbox] {
            let of = target.clone();
            let name = format!("first_login_on_both_nodes_{}", format.name());
            trials.push(trial(target, &name, move || first_mail(&of, &of, format)));
            let of = target.clone();
            let name = format!("first_login_without_mail_{}", format.name());
            trials.push(trial(target, &name, move || first_look(&of, &of, format)));
            for which in CutOff::ALL {
                let of = target.clone();
                let name = format!("{}_{}", which.name(), format.name());
                trials.push(trial(target, &name, move || {
                    sync_is_cut_off(&of, format, which)
                }));
            }
            let of = target.clone();
            let name = format!("mailbox_deleted_half_way_{}", format.name());
            trials.push(trial(target, &name, move || deleted_half_way(&of, format)));
            for renames in RENAMES {
                let of = target.clone();
                let name = format!("{}_{}", renames.name, format.name());
                trials.push(trial(target, &name, move || {
                    renamed_on_both_nodes(&of, format, renames)
                }));
            }
        }
        let scenarios: [(&str, Scenario); 11] = [
            (
                "two_nodes_that_are_locked_out_take_turns",
                both_are_locked_out,
            ),
            ("peer_restored_from_backup", restored_from_backup),
            ("index_made_anew", index_made_anew),
            ("full_sync_after_a_peers_that_was_cut_off", |of| {
                full_after_the_peers(of, End::Cut)
            }),
            ("full_sync_after_a_peers_that_was_killed", |of| {
                full_after_the_peers(of, End::Killed)
            }),
            ("lock_of_another_dsync_is_no_failure", lock_is_held),
            ("same_host_name_is_said_once", |of| same_hostname(of, of)),
            ("same_host_name_is_seen_by_own_sync", |of| {
                same_hostname_seen_by_own_sync(of, Way::Tcp)
            }),
            ("same_host_name_is_seen_by_own_sync_over_tcps", |of| {
                same_hostname_seen_by_own_sync(of, Way::Tcps)
            }),
            ("same_host_name_is_seen_by_own_sync_by_a_command", |of| {
                same_hostname_seen_by_own_sync(of, Way::Remote)
            }),
            ("different_host_names_are_not_said", different_hostnames),
        ];
        for (name, scenario) in scenarios {
            let of = target.clone();
            trials.push(trial(target, name, move || scenario(&of)));
        }
    }
    for [a, b] in MIXED {
        let (Some(a), Some(b)) = (find(a), find(b)) else {
            continue;
        };
        // The one that is missing says so.
        let mut named = a.clone();
        if b.missing.is_some() {
            named.missing.clone_from(&b.missing);
        }
        let (of, with) = (a.clone(), b.clone());
        let name = format!("first_login_with_{}", b.name());
        trials.push(trial(&named, &name, move || {
            first_mail(&of, &with, Format::Maildir)
        }));
        let (of, with) = (a.clone(), b.clone());
        let name = format!("first_login_without_mail_with_{}", b.name());
        trials.push(trial(&named, &name, move || {
            first_look(&of, &with, Format::Maildir)
        }));
        if a.is_ours() {
            continue;
        }
        let (of, with) = (a.clone(), b.clone());
        let name = format!("same_host_name_with_{}", b.name());
        trials.push(trial(&named, &name, move || same_hostname(&of, &with)));
    }
    run(trials)
}
