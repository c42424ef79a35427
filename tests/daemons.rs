//! Aggregator and replicator on real Dovecots: what whoever may write the fifo, userdb, a peer or the
//! other side's daemon can do to them; and valgrind.

// A test may fail by panicking.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod harness;

use harness::client::message;
use harness::configuration::Series;
use harness::ports::Port;
use harness::run::trial;
use harness::{
    FakeDoveadm, Node, Outcome, PATIENCE, Pair, Replication, Target, User, check, wait_for,
};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a test is called, and the test.
type Case = (&'static str, fn(&Target) -> Outcome);

/// On every version.
const CASES: [Case; 10] = [
    (
        "names_without_end_cost_little_and_hold_nobody_up",
        names_without_end,
    ),
    (
        "two_thousand_waiters_have_an_answer_each",
        thousands_of_waiters,
    ),
    (
        "parameters_that_dsync_refuses_are_one_error_and_an_hour",
        usage,
    ),
    (
        "mail_without_permission_is_said_once_and_heals_alone",
        no_permission,
    ),
    ("userdb_away_at_start_loses_nothing", userdb_away),
    (
        "change_in_a_shared_mailbox_comes_to_the_owner_on_the_peer",
        shared_mailbox,
    ),
    (
        "doveadm_process_serves_one_user_after_the_other_each_with_own_rights",
        users_of_several_owners,
    ),
    (
        "doveadm_process_that_is_killed_while_it_waits_fails_no_sync",
        waiting_process_killed,
    ),
    (
        "fewer_doveadm_processes_than_syncs_hold_nobody_up",
        few_processes,
    ),
    ("valgrind_finds_nothing_in_the_daemons", valgrind),
];

/// Where the peer's dsync sends it: 2.4's own `sync` asks for none.
const ON_2_3: Case = ("notify_of_the_peer_is_a_success_and_no_sync", notify);

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for target in Target::all_staged() {
        let mut cases = Vec::new();
        if target.is_ours() {
            cases.extend(CASES);
            if target.series() == Series::V2_3 {
                cases.push(ON_2_3);
            }
        } else if target.root.is_none() {
            // With stock's daemons as installed, but for one.
            cases.extend([
                (
                    "our_replicator_serves_stocks_aggregator",
                    our_replicator as fn(&Target) -> Outcome,
                ),
                ("our_aggregator_serves_stocks_replicator", our_aggregator),
            ]);
        }
        for (name, run) in cases {
            let of = target.clone();
            trials.push(trial(&target, name, move || run(&of)));
        }
    }
    harness::run::main(trials)
}

/// One node whose replicator talks to a [`FakeDoveadm`].
fn faked(target: &Target, users: &[&str], conf: &str) -> Outcome<(Node, FakeDoveadm)> {
    // Beside the node: it must be there before the replicator starts.
    let fake = FakeDoveadm::listen(&target.outside("/tmp".as_ref()))?;
    let replication = Replication {
        replicas: vec!["remote:peer".to_owned()],
        ..Replication::default()
    };
    let node = Node::of(target)
        .services()
        .users(users.iter().map(|user| User::local(user)))
        .config(&replication.render(target.series()))
        .config(&format!(
            "doveadm_socket_path = {}\n{conf}",
            fake.path_in_tmp()
        ))
        .start()?;
    wait_for("the replicator", PATIENCE, || {
        Ok(node.path("run/replicator").exists().then_some(()))
    })?;
    // auth waits for Dovecot's stats on a busy machine.
    node.tolerate_log("run/stats-writer");
    Ok((node, fake))
}

fn write_fifo(node: &Node, lines: &str) -> Outcome {
    let mut fifo = std::fs::OpenOptions::new()
        .write(true)
        .open(node.path("run/replication-notify-fifo"))?;
    Ok(fifo.write_all(lines.as_bytes())?)
}

fn resident_bytes(node: &Node, name: &str) -> Outcome<u64> {
    let pids = node.processes(name)?;
    let pid = pids.first().ok_or_else(|| format!("no {name}"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no VmHWM")?.parse::<u64>()? * 1024)
}

fn known_users(node: &Node) -> Outcome<usize> {
    let status = node.doveadm(&["replicator", "status"])?;
    let known = status.split_whitespace().last();
    Ok(known.ok_or("no status")?.parse()?)
}

fn names_without_end(target: &Target) -> Outcome {
    // Twice as many as wait for their lookup at most.
    const NAMES: usize = 20_000;
    const MOST_BYTES: u64 = 24 << 20;
    let (node, fake) = faked(target, &["u1", "u2"], "")?;
    fake.wait_users(2)?;
    let before = resident_bytes(&node, "replicator")?;
    fake.forget();
    let mut lines = String::new();
    for number in 0..NAMES {
        writeln!(lines, "nobody-{number}-{}\tlow", "x".repeat(100))?;
    }
    write_fifo(&node, &(lines + "u1\thigh\n"))?;
    fake.wait_request("u1")?;
    write_fifo(&node, "u2\thigh\n")?;
    fake.wait_request("u2")?;
    check(known_users(&node)? == 2, || {
        "strangers are known".to_owned()
    })?;
    for (name, before) in [("replicator", before), ("aggregator", 0)] {
        let bytes = resident_bytes(&node, name)?;
        check(bytes < before + MOST_BYTES, || {
            format!("{name}: {bytes} bytes, before {before}")
        })?;
    }
    let strangers: Vec<_> = fake
        .requests()
        .into_iter()
        .filter(|request| request.username.starts_with("nobody"))
        .collect();
    check(strangers.is_empty(), || format!("{strangers:?}"))?;
    node.finish()
}

fn thousands_of_waiters(target: &Target) -> Outcome {
    const WAITERS: usize = 2_000;
    let names: Vec<String> = (0..50).map(|number| format!("u{number}")).collect();
    let users: Vec<&str> = names.iter().map(String::as_str).collect();
    let conf = format!(
        "replication_max_conns = 2\nservice aggregator {{\n  client_limit = {}\n}}\n",
        WAITERS + 100
    );
    let (node, fake) = faked(target, &users, &conf)?;
    fake.wait_users(users.len())?;
    fake.forget();
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        let mut stream = UnixStream::connect(node.path("run/replication-notify"))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        writeln!(stream, "{}\tsync", users[number % users.len()])?;
        waiters.push(stream);
    }
    for (number, stream) in waiters.into_iter().enumerate() {
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        check(answer == "+\n", || format!("waiter {number}: {answer:?}"))?;
    }
    fake.wait_users(users.len())?;
    node.finish()
}

/// The lines of `doveadm replicator show`, as columns of the last one by name.
fn shown(node: &Node, user: &str, column: &str) -> Outcome<String> {
    let text = node.doveadm(&["-f", "tab", "replicator", "show", user])?;
    let mut lines = text.lines().map(|line| line.split('\t'));
    let (head, values) = (
        lines.next().ok_or("no head")?,
        lines.next().ok_or("no line")?,
    );
    let found = head.zip(values).find(|(name, _)| *name == column);
    Ok(found
        .ok_or_else(|| format!("no {column}: {text}"))?
        .1
        .to_owned())
}

fn usage(target: &Target) -> Outcome {
    let pair = Pair::of(target)
        .users([User::local("u1")])
        .config("replication_dsync_parameters = -d -N -l 30 -U --no-such-option")
        .start()?;
    let (node, user) = (&pair.a, "u1");
    node.lmtp()?.deliver(&[user], &message("first"))?;
    let said = node.wait_log("Sync failed: ")?;
    check(said[0].contains("Error: u1: "), || format!("{said:?}"))?;
    let next: u64 = shown(node, user, "next sync")?.parse().unwrap_or(0);
    check(next > 1800 && next <= 3600, || {
        format!("next try in {next} s")
    })?;
    node.lmtp()?.deliver(&[user], &message("again"))?;
    wait_for("the pending change", PATIENCE, || {
        Ok((shown(node, user, "priority")? == "high").then_some(()))
    })?;
    let said = node.log_lines("Sync failed: ");
    check(said.len() == 1, || format!("said more than once: {said:?}"))?;
    let status = node.doveadm(&["replicator", "status"])?;
    let waiting = status
        .lines()
        .find(|line| line.starts_with("Waiting 'failed'"));
    check(
        waiting.is_some_and(|line| line.trim_end().ends_with(" 1")),
        || status.clone(),
    )?;
    for node in [&pair.a, &pair.b] {
        // dsync's own words on each version, and ours.
        node.tolerate_log("no-such-option");
        node.tolerate_log("invalid option -- '-'");
        node.tolerate_log("Client sent unknown parameter");
        node.tolerate_log("Unexpected or incomplete option");
        node.tolerate_log("Sync failed: ");
        // The nodes do not end at once.
        node.tolerate_log("Peer is not reachable");
    }
    pair.finish()
}

fn no_permission(target: &Target) -> Outcome {
    let pair = Pair::of(target)
        .users(["u1", "u2"].map(User::local))
        .start()?;
    let deliver = |subject: &str| pair.a.lmtp()?.deliver(&["u1", "u2"], &message(subject));
    deliver("first")?;
    for user in ["u1", "u2"] {
        pair.b.wait_mails(user, 1)?;
    }
    let mut imap = pair.a.imap("u1")?;
    imap.ok("CREATE Box")?;
    imap.logout()?;
    pair.wait_equal(&["u1", "u2"], PATIENCE)?;
    pair.wait_idle()?;
    let maildir = pair.a.path("mail/u1/Maildir/.Box");
    let permissions = std::fs::metadata(&maildir)?.permissions();
    std::fs::set_permissions(&maildir, std::fs::Permissions::from_mode(0o000))?;
    deliver("second")?;
    pair.a.wait_log("Sync failed: ")?;
    // The other user knows nothing of it.
    pair.b.wait_mails("u2", 2)?;
    let reason = shown(&pair.a, "u1", "reason")?;
    check(reason.contains("Permission denied"), || reason.clone())?;
    std::fs::set_permissions(&maildir, permissions)?;
    pair.b.wait_mails("u1", 2)?;
    pair.wait_equal(&["u1", "u2"], PATIENCE)?;
    wait_for("no failures", PATIENCE, || {
        Ok((shown(&pair.a, "u1", "failures")? == "0").then_some(()))
    })?;
    let said = pair.a.log_lines("Sync failed: ");
    check(said.len() == 1, || format!("said more than once: {said:?}"))?;
    pair.a.tolerate_log("Permission denied");
    pair.b.tolerate_log("Permission denied");
    pair.finish()
}

fn userdb_away(target: &Target) -> Outcome {
    let dir = tempfile::Builder::new()
        .prefix("dr-userdb-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in(target.outside("/tmp".as_ref()))?;
    let name = dir.path().file_name().unwrap_or_default();
    let conf = format!(
        "auth_socket_path = /tmp/{}/auth-userdb\n",
        name.to_string_lossy()
    );
    let (node, fake) = faked(target, &["u1", "u2"], &conf)?;
    node.expect_log("auth-userdb");
    write_fifo(&node, "u1\thigh\n")?;
    wait_for("two failed listings", PATIENCE, || {
        Ok((!node.log_lines("auth-userdb").is_empty()).then_some(()))
    })?;
    check(fake.requests().is_empty(), || {
        format!("{:?}", fake.requests())
    })?;
    symlink(
        node.inside().join("run/auth-userdb"),
        dir.path().join("auth-userdb"),
    )?;
    // The one that was notified, and the one that nobody has named yet.
    fake.wait_users(2)?;
    check(known_users(&node)? == 2, || {
        "nobody else is known".to_owned()
    })?;
    node.finish()
}

fn shared_mailbox(target: &Target) -> Outcome {
    let namespace = target.series().pick(
        "location = maildir:%%h/Maildir:INDEXPVT=~/shared/%%u\n  prefix = shared/%%u/",
        "mail_path = %{owner_home}/Maildir\n  mail_index_private_path = ~/shared/%{owner_user}\n  prefix = shared/$user/",
    );
    let pair = Pair::of(target)
        .users(["owner", "other"].map(User::local))
        .config(&format!(
            "namespace shared {{\n  type = shared\n  separator = /\n  subscriptions = no\n  list = children\n  {namespace}\n}}"
        ))
        .start()?;
    let mut lmtp = pair.a.lmtp()?;
    lmtp.deliver(&["owner", "other"], &message("first"))?;
    lmtp.quit()?;
    for user in ["owner", "other"] {
        pair.b.wait_mails(user, 1)?;
    }
    let mut imap = pair.a.imap("owner")?;
    imap.ok("SETACL INBOX other lrwstipekxa")?;
    imap.logout()?;
    pair.wait_idle()?;
    let mut imap = pair.a.imap("other")?;
    imap.append("shared/owner", &message("from-other"))?;
    imap.ok("SELECT shared/owner")?;
    imap.ok("STORE 1 +FLAGS (\\Flagged)")?;
    imap.logout()?;
    pair.b.wait_mails("owner", 2)?;
    pair.wait_equal(&["owner"], PATIENCE)?;
    pair.wait_idle()?;
    for node in [&pair.a, &pair.b] {
        // The dsync of the other works on all that the other sees: it may not make the mailbox, or finds it on both sides.
        node.tolerate_log("Can't create mailbox shared/owner");
        node.tolerate_log("Mailbox shared/owner has duplicate GUID with");
    }
    // Nothing twice, nowhere.
    for node in [&pair.a, &pair.b] {
        check((node.mails("owner"), node.mails("other")) == (2, 1), || {
            format!(
                "owner has {} mails, other {}",
                node.mails("owner"),
                node.mails("other")
            )
        })?;
    }
    pair.finish()
}

fn valgrind(target: &Target) -> Outcome {
    let there = target.outside("/usr/bin/valgrind".as_ref()).exists();
    check(there, || "no valgrind".to_owned())?;
    let ports = [Port::take()?, Port::take()?];
    let start = |own: usize| {
        let replication = Replication {
            port: Some(ports[own].number()),
            replicas: vec![format!("tcp:127.0.0.1:{}", ports[1 - own].number())],
            sync_timeout: Some("20s".to_owned()),
            ..Replication::default()
        };
        let builder = Node::of(target)
            .services()
            .hostname(["node-a", "node-b"][own])
            .users(["u1", "u2"].map(User::local))
            .config(&replication.render(target.series()));
        match own {
            0 => builder.valgrind_services().start(),
            _ => builder.start(),
        }
    };
    let (a, b) = (start(0)?, start(1)?);
    let mut lmtp = a.lmtp()?;
    lmtp.deliver(&["u1", "u2"], &message("first"))?;
    for user in ["u1", "u2"] {
        b.wait_mails(user, 1)?;
        let mut imap = a.imap(user)?;
        imap.ok("SELECT INBOX")?;
        imap.ok("STORE 1 +FLAGS (\\Seen)")?;
        imap.logout()?;
    }
    write_fifo(&a, "nobody\tlow\nbad\nu1\tsync\n")?;
    lmtp.deliver(&["u1"], &message("second"))?;
    b.wait_mails("u1", 2)?;
    for arguments in [
        &["status"][..],
        &["status", "*"],
        &["dsync-status"],
        &["show", "u1"],
        &["peers"],
        &["replicate", "-f", "u2"],
        &["remove", "u2"],
        &["add", "u2"],
    ] {
        a.doveadm(&[&["replicator"], arguments].concat())?;
    }
    lmtp.quit()?;
    for node in [&a, &b] {
        node.tolerate_log("Invalid");
        node.tolerate_log("invalid");
        // The other node goes.
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
    }
    let pids = a.processes("memcheck-amd64-")?;
    check(pids.len() == 2, || format!("under valgrind: {pids:?}"))?;
    a.stop()?;
    wait_for("the end of both daemons", PATIENCE, || {
        let gone = |pid: &i32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
        Ok(pids.iter().all(gone).then_some(()))
    })?;
    // Quiet, it writes what it finds only.
    let mut wrong = a.valgrind_reports()?;
    check(wrong.len() >= 2, || format!("{} reports", wrong.len()))?;
    // std keeps the main thread's handle to the end.
    let is_wrong = |block: &&str| block.contains(" by 0x") && !block.contains("init_current");
    wrong = wrong
        .iter()
        .flat_map(|report| report.split("== \n").filter(is_wrong))
        .map(str::to_owned)
        .collect();
    wrong.extend(a.wrong_lines());
    check(wrong.is_empty(), || wrong.join("\n"))?;
    b.finish()
}

fn notify(target: &Target) -> Outcome {
    let ports = [Port::take()?, Port::take()?];
    let replication = |own: usize| {
        let replication = Replication {
            port: Some(ports[own].number()),
            replicas: vec![format!("tcp:127.0.0.1:{}", ports[1 - own].number())],
            ..Replication::default()
        };
        replication.render(target.series())
    };
    // What b itself would sync would be seen here.
    let fake = FakeDoveadm::listen(&target.outside("/tmp".as_ref()))?;
    let b = Node::of(target)
        .services()
        .hostname("node-b")
        .users([User::local("u1")])
        .config(&replication(1))
        .config(&format!("doveadm_socket_path = {}\n", fake.path_in_tmp()))
        .start()?;
    let a = Node::of(target)
        .services()
        .hostname("node-a")
        .users([User::local("u1")])
        .config(&replication(0))
        .start()?;
    a.lmtp()?.deliver(&["u1"], &message("first"))?;
    b.wait_mails("u1", 1)?;
    // What b wanted to sync at its start is over.
    let is_zero = |line: &str| line.split_whitespace().last() == Some("0");
    wait_for("an idle replicator", PATIENCE, || {
        let status = b.doveadm(&["replicator", "status"])?;
        Ok(status.lines().take(6).all(is_zero).then_some(()))
    })?;
    let success = |node: &Node| shown(node, "u1", "success sync");
    let before = success(&b)?;
    // The times are whole seconds.
    let second = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    let start = second();
    wait_for("another second", PATIENCE, || {
        Ok((second() > start + 1).then_some(()))
    })?;
    fake.forget();
    a.lmtp()?.deliver(&["u1"], &message("second"))?;
    b.wait_mails("u1", 2)?;
    wait_for("the time of the peer's sync", PATIENCE, || {
        Ok((success(&b)? > before).then_some(()))
    })?;
    check(fake.requests().is_empty(), || {
        format!("b synced what came from a: {:?}", fake.requests())
    })?;
    let failures = shown(&b, "u1", "failures")?;
    check(failures == "0", || format!("{failures} failures"))?;
    for node in [&a, &b] {
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
    }
    a.finish()?;
    b.finish()
}

/// One process of `service doveadm` has one user's rights after the other's.
fn users_of_several_owners(target: &Target) -> Outcome {
    const OWNERS: [(&str, u32); 3] = [("u1", 5001), ("u2", 5002), ("u3", 5003)];
    let names = OWNERS.map(|(name, _)| name);
    // Mail processes of several owners write to the fifo, and all to the stats.
    let conf = "\
service aggregator {
  fifo_listener replication-notify-fifo {
    mode = 0666
  }
  unix_listener replication-notify {
    mode = 0666
  }
}
service stats {
  unix_listener stats-writer {
    mode = 0666
  }
}";
    let pair = Pair::of(target)
        .users(OWNERS.map(|(name, uid)| User::local(name).owned_by(uid)))
        .config(conf)
        .start()?;
    let mut lmtp = pair.a.lmtp()?;
    lmtp.deliver(&names, &message("first"))?;
    for user in names {
        pair.b.wait_mails(user, 1)?;
    }
    wait_for("a connection that serves another sync", PATIENCE, || {
        lmtp.deliver(&names, &message("another"))?;
        pair.wait_idle()?;
        let shown = pair.a.doveadm(&["replicator", "dsync-status"])?;
        Ok(shown.contains(" Idle").then_some(()))
    })?;
    for round in 0..5 {
        lmtp.deliver(&names, &message(&format!("mail-{round}")))?;
        pair.wait_equal(&names, PATIENCE)?;
    }
    lmtp.quit()?;
    for (node, (user, uid)) in [&pair.a, &pair.b]
        .into_iter()
        .flat_map(|node| OWNERS.map(|owner| (node, owner)))
    {
        let mut found = Vec::new();
        files_below(&node.path("mail").join(user), &mut found)?;
        let of_others: Vec<_> = found
            .iter()
            .filter(|(_, owner, group)| (*owner, *group) != (uid, uid))
            .collect();
        check(!found.is_empty() && of_others.is_empty(), || {
            format!("{user} on {}: {of_others:?}", node.path("").display())
        })?;
    }
    for node in [&pair.a, &pair.b] {
        // The nodes start one after the other.
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
        // What is shared belongs to the owner of all.
        node.tolerate_log("/shared/dict) failed: Permission denied");
    }
    pair.finish()
}

fn waiting_process_killed(target: &Target) -> Outcome {
    let users = ["u1", "u2", "u3", "u4"];
    let pair = Pair::of(target).users(users.map(User::local)).start()?;
    let mut lmtp = pair.a.lmtp()?;
    lmtp.deliver(&users, &message("first"))?;
    for user in users {
        pair.b.wait_mails(user, 1)?;
    }
    let (rounds, mut killed) = (10, 0);
    for round in 0..rounds {
        lmtp.deliver(&users, &message(&format!("mail-{round}")))?;
        pair.wait_equal(&users, PATIENCE)?;
        pair.wait_idle()?;
        for pid in pair.a.processes("doveadm-server")? {
            // It may be gone by itself.
            killed += usize::from(pair.a.kill(pid).is_ok());
        }
    }
    lmtp.quit()?;
    pair.wait_equal(&users, PATIENCE)?;
    check(killed >= rounds, || {
        format!("{killed} processes waited in {rounds} rounds")
    })?;
    pair.a.expect_log("killed with signal 9");
    for node in [&pair.a, &pair.b] {
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
    }
    // A line of a sync that failed is in neither log.
    pair.finish()
}

/// Each node's own syncs and its peer's want more than there are.
fn few_processes(target: &Target) -> Outcome {
    let names: Vec<String> = (0..12).map(|number| format!("u{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let pair = Pair::of(target)
        .users(names.iter().copied().map(User::local))
        .config("service doveadm {\n  process_limit = 12\n}")
        .start()?;
    let mut lmtp = [pair.a.lmtp()?, pair.b.lmtp()?];
    lmtp[0].deliver(&names, &message("first"))?;
    for user in &names {
        pair.b.wait_mails(user, 1)?;
    }
    for round in 0..10 {
        for (at, lmtp) in lmtp.iter_mut().enumerate() {
            lmtp.deliver(&names, &message(&format!("mail-{at}-{round}")))?;
        }
    }
    pair.wait_equal(&names, PATIENCE)?;
    for lmtp in lmtp {
        lmtp.quit()?;
    }
    for node in [&pair.a, &pair.b] {
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
        // What it is about.
        node.tolerate_log("service(doveadm): process_limit (12) reached");
        // Dovecot's own, of new mail on both nodes at once (docs/limits.md).
        node.tolerate_log("Expunged message reappeared");
        node.tolerate_log("Duplicate file entry");
    }
    pair.finish()
}

/// Each with its owner and group.
fn files_below(directory: &Path, found: &mut Vec<(PathBuf, u32, u32)>) -> Outcome {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        found.push((entry.path(), metadata.uid(), metadata.gid()));
        if metadata.is_dir() {
            files_below(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// The path of one of our daemons, on stock's installation.
fn our_daemon(target: &Target, name: &str) -> Outcome<String> {
    let build = harness::target::top().join("build");
    let ours = build.join(&target.version).join(name);
    check(ours.exists(), || format!("no {}", ours.display()))?;
    Ok(ours.display().to_string())
}

fn our_replicator(target: &Target) -> Outcome {
    let name = "replicator";
    let pair = Pair::of(target)
        .users(["u1", "u2"].map(User::local))
        .config(&format!(
            "service {name} {{\n  executable = {}\n}}",
            our_daemon(target, name)?
        ))
        .start()?;
    let mut lmtp = pair.a.lmtp()?;
    lmtp.deliver(&["u1", "u2"], &message("first"))?;
    for user in ["u1", "u2"] {
        pair.b.wait_mails(user, 1)?;
    }
    for number in 0..10 {
        lmtp.deliver(&["u1", "u2"], &message(&format!("mail-{number}")))?;
    }
    lmtp.quit()?;
    let mut imap = pair.b.imap("u1")?;
    imap.ok("SELECT INBOX")?;
    imap.ok("STORE 1 +FLAGS (\\Flagged)")?;
    imap.ok("CREATE Box")?;
    imap.logout()?;
    pair.wait_equal(&["u1", "u2"], PATIENCE)?;
    for node in [&pair.a, &pair.b] {
        let wrong = node.wrong_lines();
        let wrong: Vec<_> = wrong
            .iter()
            .filter(|line| line.contains(&format!(" {name}: ")))
            .collect();
        check(wrong.is_empty(), || format!("{wrong:?}"))?;
        check(!node.processes(name)?.is_empty(), || format!("no {name}"))?;
    }
    pair.finish()
}

/// Stock's replicator waits five minutes after whatever went wrong, so it is handed a dsync that goes well.
fn our_aggregator(target: &Target) -> Outcome {
    let users = ["u1", "u2", "u3"];
    let conf = format!(
        "service aggregator {{\n  executable = {}\n}}\n",
        our_daemon(target, "aggregator")?
    );
    let (node, fake) = faked(target, &users, &conf)?;
    fake.wait_users(users.len())?;
    fake.forget();
    let mut lmtp = node.lmtp()?;
    for user in users {
        lmtp.deliver(&[user], &message("first"))?;
        fake.wait_request(user)?;
    }
    // What came while none was there is handed on by the next.
    for pid in node.processes("aggregator")? {
        node.kill(pid)?;
    }
    fake.forget();
    lmtp.deliver(&users, &message("second"))?;
    lmtp.quit()?;
    fake.wait_users(users.len())?;
    node.expect_log("killed with signal 9");
    node.finish()
}
