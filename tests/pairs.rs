//! Pairs of nodes, also of different releases of Dovecot: whatever is changed on one comes to the other.

mod harness;

use harness::client::message;
use harness::pair::Links;
use harness::run::{main as run, trial};
use harness::{Failed, Implementation, Node, Outcome, Pair, Target, User, check, wait_for};

use std::process::ExitCode;
use std::time::Duration;

const USERS: [&str; 2] = ["u1", "u2"];

/// The time that equality may take; a busy machine needs some.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which releases, and whose replication.
const MIXED: [[(&str, Implementation); 2]; 4] = [
    [
        ("2.3.19.1", Implementation::Ours),
        ("2.4.1", Implementation::Ours),
    ],
    [
        ("2.4.1", Implementation::Ours),
        ("2.4.5", Implementation::Ours),
    ],
    [
        ("2.3.19.1", Implementation::Stock),
        ("2.4.1", Implementation::Ours),
    ],
    [
        ("2.3.19.1", Implementation::Stock),
        ("2.3.19.1", Implementation::Ours),
    ],
];

/// What a client does to mailboxes. One at a time: a mailbox that goes while dsync looks at it is an error in
/// Dovecot's own log.
fn change_mailboxes(pair: &Pair, node: &Node, round: &str) -> Outcome {
    for command in [
        format!("CREATE \"{round} Box/Sub &AOQ-\""),
        format!("SUBSCRIBE \"{round} Box/Sub &AOQ-\""),
        format!("CREATE {round}-old"),
        format!("RENAME {round}-old {round}-new"),
        format!("CREATE {round}-away"),
        format!("DELETE {round}-away"),
    ] {
        let mut imap = node.imap(USERS[0])?;
        match command.strip_prefix("CREATE ") {
            Some(mailbox) => imap.create(mailbox)?,
            None => drop(imap.ok(&command)?),
        }
        imap.logout()?;
        pair.wait_idle()?;
    }
    pair.wait_equal(&USERS, PATIENCE)
}

/// What a client does to mail.
fn change_mail(node: &Node, user: &str, round: &str) -> Outcome {
    let mut lmtp = node.lmtp()?;
    for subject in ["flagged", "moved", "gone", "copied"] {
        lmtp.deliver(&[user], &message(&format!("{round}-{subject}")))?;
    }
    lmtp.quit()?;
    let mut imap = node.imap(user)?;
    for command in [
        "SELECT INBOX",
        "STORE 1 +FLAGS (\\Flagged \\Seen $Forwarded work)",
        "MOVE 2 Box",
        "COPY 3 Box",
        "STORE 2 +FLAGS.SILENT (\\Deleted)",
        "EXPUNGE",
    ] {
        imap.ok(command)?;
    }
    imap.append("INBOX", &message(&format!("{round}-appended")))?;
    imap.logout()
}

/// Both nodes have the users' INBOX from `a`: what happens where both make one is another matter.
fn welcome(pair: &Pair) -> Outcome {
    let mut lmtp = pair.a.lmtp()?;
    lmtp.deliver(&USERS, &message("welcome"))?;
    lmtp.quit()?;
    USERS.iter().try_for_each(|user| pair.b.wait_mails(user, 1))
}

fn changes_arrive(pair: &Pair) -> Outcome {
    welcome(pair).map_err(|failed| told(pair, &failed))?;
    for user in USERS {
        let mut imap = pair.a.imap(user)?;
        imap.create("Box")?;
        imap.logout()?;
    }
    pair.wait_equal(&USERS, PATIENCE)?;
    change_mailboxes(pair, &pair.a, "a")?;
    change_mailboxes(pair, &pair.b, "b")?;
    change_mail(&pair.a, "u1", "a")?;
    pair.wait_equal(&USERS, PATIENCE)?;
    change_mail(&pair.b, "u1", "b")?;
    pair.wait_equal(&USERS, PATIENCE)?;
    // Both at once, a user each.
    let other = std::thread::scope(|scope| {
        let other = scope.spawn(|| change_mail(&pair.b, "u2", "both"));
        change_mail(&pair.a, "u1", "both")?;
        other.join().map_err(|_| "the other session panicked")?
    });
    other?;
    pair.wait_equal(&USERS, PATIENCE)
}

/// The failure, and what the nodes know of it.
fn told(pair: &Pair, failed: &Failed) -> Failed {
    let show = |node: &Node| {
        node.doveadm(&["-f", "flow", "replicator", "show", "u1"])
            .unwrap_or_else(|failed| failed.message().unwrap_or("?").to_owned())
    };
    let what = failed.message().unwrap_or("?");
    format!("{what}\na: {}b: {}", show(&pair.a), show(&pair.b)).into()
}

fn finish(pair: Pair) -> Outcome {
    pair.wait_idle()?;
    for node in [&pair.a, &pair.b] {
        // The nodes start one after the other.
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
        // Dovecot's own, where a client and a dsync work on one Maildir; what counts is that all is equal.
        node.tolerate_log("Duplicate file entry");
        node.tolerate_log("-away");
        // The same of one that is renamed while a stock node still works on it.
        node.tolerate_log("-old/dovecot-uidlist.lock was immediately deleted under us");
        node.tolerate_log("-old: Mailbox was deleted under us");
        // A dsync that looks at a mailbox while CREATE makes it gives it a GUID too.
        node.tolerate_log("was made on both nodes");
        node.tolerate_log("Duplicate mailbox GUID");
        node.tolerate_log("Expunged message reappeared");
        node.tolerate_log("dotlock file");
    }
    pair.finish()
}

fn mixed(a: &Target, b: &Target) -> Outcome {
    let pair = Pair::mixed(a, b).users(USERS.map(User::local)).start()?;
    changes_arrive(&pair)?;
    finish(pair)
}

fn userdb(target: &Target) -> Outcome {
    let pair = Pair::of(target)
        .users(USERS.map(User::local))
        .replica_by_userdb()
        .start()?;
    changes_arrive(&pair)?;
    finish(pair)
}

/// dsync looks at the certificate; the replicator's own probe speaks TLS too.
fn tls(a: &Target, b: &Target) -> Outcome {
    let pair = Pair::mixed(a, b)
        .users(USERS.map(User::local))
        .replica_by_tls(true)
        .start()?;
    changes_arrive(&pair)?;
    for node in [&pair.a, &pair.b] {
        let peers = node.doveadm(&["-f", "tab", "replicator", "peers"])?;
        let is_up = |line: &str| line.starts_with("tcps:127.0.0.1:") && line.contains("\tup\t");
        check(peers.lines().any(is_up), || peers.clone())?;
    }
    finish(pair)
}

/// The probe asks only whether the peer speaks; dsync, which sends the password, refuses a certificate that it does not know.
fn strangers_certificate(target: &Target) -> Outcome {
    const REFUSED: &str = "Received invalid SSL certificate";
    let pair = Pair::of(target)
        .users(USERS.map(User::local))
        .replica_by_tls(false)
        .start()?;
    pair.a.lmtp()?.deliver(&["u1"], &message("for-nobody"))?;
    wait_for("the reason", PATIENCE, || {
        let shown = pair.a.doveadm(&["-f", "tab", "replicator", "show", "u1"])?;
        Ok(shown.contains(REFUSED).then_some(()))
    })?;
    check(pair.b.mails("u1") == 0, || "it was delivered".to_owned())?;
    pair.a.expect_log(REFUSED);
    for node in [&pair.a, &pair.b] {
        for text in [
            "not reachable",
            "is reachable again",
            REFUSED,
            "Disconnected from remote",
            // The one who was refused.
            "disconnected before handshake",
            "SSL handshake failed",
            // A try that the end of its node met.
            "isconnected unexpectedly",
            "Unexpectedly disconnected from auth service",
        ] {
            node.tolerate_log(text);
        }
    }
    pair.finish()
}

/// `remote:` by a command, which here runs the other node's dsync-server.
fn remote(target: &Target) -> Outcome {
    let links = Links::new(target)?;
    let command = links.command(target, "node-%{host}");
    let pair = Pair::of(target)
        .users(USERS.map(User::local))
        .replica_by_command(&command)
        .start()?;
    links.lead_to(&pair)?;
    changes_arrive(&pair)?;
    let peers = pair.a.doveadm(&["-f", "tab", "replicator", "peers"])?;
    check(peers.contains("remote:"), || peers.clone())?;
    finish(pair)
}

fn main() -> ExitCode {
    let staged = Target::all_staged();
    let find = |(version, implementation)| {
        let is =
            |target: &&Target| target.version == version && target.implementation == implementation;
        staged.iter().find(is)
    };
    let mut trials = Vec::new();
    for [a, b] in MIXED {
        let (Some(a), Some(b)) = (find(a), find(b)) else {
            continue;
        };
        // The one that is missing says so.
        let named = if b.missing.is_some() { b } else { a };
        let name = format!("with_{}_becomes_equal", b.name());
        let (of, with) = (a.clone(), b.clone());
        let mut of_pair = a.clone();
        of_pair.missing.clone_from(&named.missing);
        if a.is_ours() && a.series() != b.series() {
            let (of, with) = (a.clone(), b.clone());
            let name = format!("with_{}_by_tcps_becomes_equal", b.name());
            trials.push(trial(&of_pair, &name, move || tls(&of, &with)));
        }
        trials.push(trial(&of_pair, &name, move || mixed(&of, &with)));
    }
    for target in staged.iter().filter(|target| target.is_ours()) {
        let of = target.clone();
        trials.push(trial(
            target,
            "target_of_each_user_from_userdb",
            move || userdb(&of),
        ));
        let of = target.clone();
        trials.push(trial(target, "tcps_target", move || tls(&of, &of)));
        let of = target.clone();
        let name = "tcps_target_with_a_certificate_of_a_stranger_gets_nothing";
        trials.push(trial(target, name, move || strangers_certificate(&of)));
        let of = target.clone();
        trials.push(trial(target, "remote_target_by_a_command", move || {
            remote(&of)
        }));
    }
    run(trials)
}
