//! `make demo`: two real nodes on loopback replicate real mail, with the time that each change took.
//!
//! Touches nothing outside its two temporary directories. `KEEP=1` leaves the nodes running.

#[path = "../harness/mod.rs"]
mod harness;

use harness::client::message;
use harness::compare::differences;
use harness::node::PASSWORD;
use harness::{Imap, Node, Outcome, Pair, Target, User, wait_for};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The longest that a change may take before the demo says that it failed.
const PATIENCE: Duration = Duration::from_secs(30);
const USERS: [&str; 2] = ["anna", "bert"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("demo: {}", failed.message().unwrap_or("failed"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let target = target()?;
    println!(
        "\nTwo nodes, A and B, on Dovecot {} and this project's plugin.",
        target.version
    );
    println!("Each is the other's mail_replica; both are on 127.0.0.1 in temporary directories.\n");
    let pair = Pair::of(&target).users(USERS.map(User::local)).start()?;
    for node in [&pair.a, &pair.b] {
        // Dovecot's own, of two dsyncs that work on one Maildir (docs/limits.md); what is doubled is a difference that is shown.
        node.tolerate_log("Expunged message reappeared");
    }
    let shown = replicate(&pair);
    if shown.is_err() {
        println!("\nlog of A:\n{}\nlog of B:\n{}", pair.a.log(), pair.b.log());
        // What the nodes logged has just been printed.
        let _same = pair.finish();
        return shown;
    }
    if std::env::var_os("KEEP").is_some_and(|keep| keep == "1") {
        keep(pair)
    } else {
        pair.finish()?;
        println!("\nBoth nodes are stopped and removed. KEEP=1 make demo leaves them running.");
        Ok(())
    }
}

fn replicate(pair: &Pair) -> Outcome {
    welcome(pair)?;
    deliver(pair)?;
    change_flags(pair)?;
    make_folder(pair)?;
    write_on_both(pair)?;
    status(pair)
}

/// Our target on the version that `DOVECOT` says, or on this machine's own.
fn target() -> Outcome<Target> {
    let wanted = std::env::var("DOVECOT").unwrap_or_default();
    let is_wanted = |target: &Target| match wanted.as_str() {
        "" => target.root.is_none(),
        version => target.version.starts_with(version) && target.missing.is_none(),
    };
    let mut targets = Target::all_staged().into_iter();
    let target = targets.find(|target| target.is_ours() && is_wanted(target));
    let target = target.ok_or("no such Dovecot of the versions that we support")?;
    match &target.missing {
        None => Ok(target),
        Some(missing) => Err(format!("{missing}: run 'make build stage'").into()),
    }
}

/// The users' first mail. Nobody looks at B by IMAP before it has their INBOX from A.
fn welcome(pair: &Pair) -> Outcome {
    let mut lmtp = pair.a.lmtp()?;
    lmtp.deliver(&USERS, &message("welcome"))?;
    let delivered = Instant::now();
    for user in USERS {
        pair.b.wait_mails(user, 1)?;
    }
    show(
        "LMTP delivery of the users' first mail on A, in their mailboxes on B",
        delivered,
    );
    lmtp.quit()
}

fn deliver(pair: &Pair) -> Outcome {
    for (from, to, name, user) in [
        (&pair.a, &pair.b, "A", "anna"),
        (&pair.b, &pair.a, "B", "bert"),
    ] {
        let other = if name == "A" { "B" } else { "A" };
        let mut seen = inbox(to, user)?;
        let mut lmtp = from.lmtp()?;
        lmtp.deliver(&[user], &message(&format!("hello-{user}")))?;
        let delivered = Instant::now();
        until(&mut seen, |lines| {
            lines.iter().any(|line| line == "* 2 EXISTS")
        })?;
        show(
            &format!("LMTP delivery to {user} on {name}, seen by IMAP on {other}"),
            delivered,
        );
        lmtp.quit()?;
    }
    Ok(())
}

fn change_flags(pair: &Pair) -> Outcome {
    let mut seen = inbox(&pair.a, "anna")?;
    let mut imap = inbox(&pair.b, "anna")?;
    imap.ok("STORE 1 +FLAGS (\\Seen \\Flagged $Important)")?;
    let stored = Instant::now();
    until(&mut seen, |lines| {
        lines
            .iter()
            .any(|line| line.contains("\\Flagged") && line.contains("$Important"))
    })?;
    show("Flags and a keyword set on B, seen on A", stored);
    imap.logout()
}

fn make_folder(pair: &Pair) -> Outcome {
    let mut imap = inbox(&pair.a, "anna")?;
    imap.ok("CREATE Projects/2026")?;
    imap.ok("SUBSCRIBE Projects/2026")?;
    imap.ok("MOVE 1 Projects/2026")?;
    let moved = Instant::now();
    let mut seen = pair.b.imap("anna")?;
    wait_for("the moved mail", PATIENCE, || {
        let (lines, _) = seen.command("STATUS Projects/2026 (MESSAGES)")?;
        Ok(lines
            .iter()
            .any(|line| line.contains("(MESSAGES 1)"))
            .then_some(()))
    })?;
    show("Folder made and mail moved into it on A, seen on B", moved);
    seen.logout()?;
    imap.logout()
}

fn write_on_both(pair: &Pair) -> Outcome {
    let (mut a, mut b) = (pair.a.imap("bert")?, pair.b.lmtp()?);
    for number in 0..5 {
        a.append("INBOX", &message(&format!("a{number}")))?;
        b.deliver(&["bert"], &message(&format!("b{number}")))?;
    }
    let written = Instant::now();
    pair.wait_equal(&USERS, PATIENCE)?;
    show(
        "5 mails written on each node at once, both nodes equal",
        written,
    );
    a.logout()?;
    b.quit()?;
    let left: Vec<_> = USERS
        .iter()
        .map(|user| differences(&pair.a, &pair.b, user))
        .collect::<Outcome<Vec<_>>>()?
        .concat();
    println!(
        "\nAn independent IMAP comparer finds {} differences between A and B.",
        left.len()
    );
    Ok(())
}

fn status(pair: &Pair) -> Outcome {
    for args in [
        &["replicator", "status"][..],
        &["replicator", "status", "*"],
    ] {
        println!("\nA# doveadm {}", args.join(" ").replace('*', "'*'"));
        print!("{}", pair.a.doveadm(args)?);
    }
    Ok(())
}

fn keep(pair: Pair) -> Outcome {
    println!("\nBoth nodes go on. Log in with IMAP as anna or bert, password {PASSWORD}.");
    let mut pids = Vec::new();
    for (name, node) in [("A", pair.a), ("B", pair.b)] {
        let doveadm = node.doveadm_command(&["replicator", "status", "*"]);
        let words: Vec<_> = std::iter::once(doveadm.get_program())
            .chain(doveadm.get_args())
            .map(|word| word.to_string_lossy().replace('*', "'*'"))
            .collect();
        println!(
            "\n{name}: IMAP 127.0.0.1:{}, LMTP 127.0.0.1:{}",
            node.imap_port(),
            node.lmtp_port()
        );
        println!("   directory  {}", node.path("").display());
        println!("   doveadm    {}", words.join(" "));
        let dir = node.path("").display().to_string();
        pids.push(format!("kill {}; rm -r {dir}", node.leave_running()?));
    }
    println!("\nStop and remove them: {}", pids.join("; "));
    Ok(())
}

fn inbox(node: &Node, user: &str) -> Outcome<Imap> {
    let mut imap = node.imap(user)?;
    imap.ok("SELECT INBOX")?;
    Ok(imap)
}

/// Asks the session for news until `is_there` sees what it waits for.
fn until(imap: &mut Imap, is_there: impl Fn(&[String]) -> bool) -> Outcome {
    wait_for("the change", PATIENCE, || {
        Ok(is_there(&imap.ok("NOOP")?).then_some(()))
    })
}

fn show(what: &str, since: Instant) {
    println!("{:>7.0} ms  {what}", since.elapsed().as_secs_f64() * 1000.0);
}
