//! Mail that comes while dsync is at work, under a UID that dsync wants to give to another: it gets a new one, and is there once.

mod harness;

use harness::client::message;
use harness::configuration::Format;
use harness::proxy::{Link, Proxy};
use harness::run::{main as run, trial};
use harness::{Node, Outcome, Pair, Target, User, check, metric, wait_for};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use rustix::process::Signal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USER: &str = "u1";
const PATIENCE: Duration = Duration::from_secs(30);
/// Of each piece of a sync on its way.
const DELAY: Duration = Duration::from_millis(20);
/// Which has some so many, one after the other.
const PIECES: f64 = 18.0;
/// Syncs that ended with `CHANGED`: a mail had come in between.
const CHANGED: u64 = 3;
const MAX_ROUNDS: usize = 80;
/// That come to b in a round.
const MAILS: usize = 4;

fn subjects(node: &Node) -> Outcome<Vec<String>> {
    let mut imap = node.imap(USER)?;
    imap.ok("EXAMINE INBOX")?;
    let lines = imap.ok("FETCH 1:* (BODY.PEEK[HEADER.FIELDS (SUBJECT)])")?;
    imap.logout()?;
    let mut subjects: Vec<String> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("Subject: "))
        .map(str::to_owned)
        .collect();
    subjects.sort();
    Ok(subjects)
}

/// What was expunged is not on the disk any more.
fn check_nothing_is_left(node: &Node, format: Format, mails: usize) -> Outcome {
    match format {
        // A file that the index does not know is a mail: it was counted.
        Format::Maildir => {}
        // What the index does not know is a mail again when it is made anew.
        Format::Sdbox => {
            node.tolerate_log("ebuilding index");
            node.doveadm(&["force-resync", "-u", USER, "INBOX"])?;
        }
        // Each mail of the storage counts how often a mailbox has it.
        Format::Mdbox => {
            let map = node
                .inside()
                .join(format!("mail/{USER}/mdbox/storage/dovecot.map.index"));
            let dump = node.doveadm(&["dump", "-t", "index", &map.to_string_lossy()])?;
            let counts = dump.lines().filter(|line| line.contains(" ref  "));
            let counts: Vec<usize> = counts
                .filter_map(|line| {
                    line.split_once(':')?
                        .1
                        .split_whitespace()
                        .next()?
                        .parse()
                        .ok()
                })
                .collect();
            let all: usize = counts.iter().sum();
            check(all == mails, || {
                format!("{mails} mails are held {all} times")
            })?;
        }
    }
    Ok(())
}

/// Mail comes to b while it takes a's over.
fn mail_comes_during_a_sync(a: &Target, b: &Target, format: Format) -> Outcome {
    let pair = Pair::mixed(a, b)
        .format(format)
        .users([User::local(USER)])
        .faults()
        .one_way()
        .start()?;
    let deliver = |node: &Node, subject: &str| -> Outcome {
        let mut lmtp = node.lmtp()?;
        lmtp.deliver(&[USER], &message(subject))?;
        lmtp.quit()
    };
    let changed = || metric(&pair.a, "syncs_changed");
    deliver(&pair.a, "before")?;
    pair.wait_equal(&[USER], PATIENCE)?;
    pair.wait_idle()?;
    let links = |link| pair.proxies.iter().for_each(|proxy| proxy.set(link));
    let enough = changed()? + CHANGED;
    let mut expected = vec!["before".to_owned()];
    for round in 0..MAX_ROUNDS {
        let before = metric(&pair.a, "syncs_ok")?;
        links(Link::Slow(DELAY));
        let subject = format!("a-{round}");
        deliver(&pair.a, &subject)?;
        expected.push(subject);
        std::thread::sleep(DELAY.mul_f64(fastrand::f64() * PIECES));
        for mail in 0..MAILS {
            let subject = format!("b-{round}-{mail}");
            deliver(&pair.b, &subject)?;
            expected.push(subject);
        }
        wait_for("the sync", PATIENCE, || {
            Ok((metric(&pair.a, "syncs_ok")? > before).then_some(()))
        })?;
        links(Link::Up);
        pair.a
            .doveadm(&["replicator", "replicate", "-p", "high", USER])?;
        pair.wait_idle()?;
        if changed()? >= enough {
            break;
        }
    }
    check(changed()? >= enough, || {
        "no mail came during a sync".to_owned()
    })?;
    pair.wait_equal(&[USER], PATIENCE)?;
    pair.wait_idle()?;
    expected.sort();
    for node in [&pair.a, &pair.b] {
        check_nothing_is_left(node, format, expected.len())?;
        check_each_once(&subjects(node)?, &expected)?;
        // Maildir: of a mail that got its old name back with another UID.
        node.tolerate_log("Duplicate file entry");
    }
    pair.wait_idle()?;
    pair.finish()
}

/// Waits for a file to be named in one of the directories.
fn wait_for_file(dirs: &[PathBuf]) -> Outcome {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    for dir in dirs {
        let named = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&events, dir, named)?;
    }
    let mut ready = [PollFd::new(&events, PollFlags::IN)];
    let patience = Timespec::try_from(PATIENCE)?;
    let named = rustix::event::poll(&mut ready, Some(&patience))?;
    check(named > 0, || format!("no file in {dirs:?}"))
}

/// The replicator's order to end at once comes to dsync while it gives new UIDs to mails whose own the other node has given too: they are
/// copied, and those of which they are copies not yet expunged.
fn sync_is_ended_at_once(target: &Target) -> Outcome {
    const ROUNDS: usize = 8;
    /// To each node in a round: to copy them takes longer than to order the end.
    const MAILS: usize = 100;
    let pair = Pair::of(target)
        .format(Format::Maildir)
        .users([User::local(USER)])
        .faults()
        .crashes_only()
        .start()?;
    let both = [(&pair.a, "a"), (&pair.b, "b")];
    let signal = |node: &Node, name: &str, signal| -> Outcome {
        for pid in node.processes(name)? {
            // It may have ended meanwhile.
            let _ = node.signal(pid, signal);
        }
        Ok(())
    };
    let maildir = pair.a.path("mail").join(USER).join("Maildir");
    let mut expected = Vec::new();
    for round in 0..ROUNDS {
        pair.wait_idle()?;
        for (node, name) in both {
            signal(node, "replicator", Signal::STOP)?;
            let mut lmtp = node.lmtp()?;
            for mail in 0..MAILS {
                let subject = format!("{name}-{round}-{mail}");
                lmtp.deliver(&[USER], &message(&subject))?;
                expected.push(subject);
            }
            lmtp.quit()?;
        }
        signal(&pair.a, "replicator", Signal::CONT)?;
        wait_for_file(&["cur", "new"].map(|dir| maildir.join(dir)))?;
        signal(&pair.a, "doveadm-server", Signal::USR2)?;
        signal(&pair.b, "replicator", Signal::CONT)?;
        pair.wait_equal(&[USER], PATIENCE)?;
    }
    pair.wait_idle()?;
    expected.sort();
    for (node, _) in both {
        check_each_once(&subjects(node)?, &expected)?;
    }
    pair.finish()
}

/// A client of b expunges mails that a has asked b for: dsync gives them up, one or more of them after the last that it saves. What it has saved
/// before stays.
fn mail_is_gone_when_its_turn_comes(target: &Target, format: Format) -> Outcome {
    const ROUNDS: usize = 4;
    /// In what order dsync asks for them is chance; in a round in five the large one is the last.
    const SMALL: usize = 4;
    /// More than the sockets between the nodes hold.
    const LARGE_BYTES: usize = 12 << 20;
    const STALLED_AFTER: usize = 1 << 20;
    let pair = Pair::of(target)
        .format(format)
        .users([User::local(USER)])
        .faults()
        .one_way()
        .start()?;
    let links = |link| pair.proxies.iter().for_each(|proxy| proxy.set(link));
    let line = format!("{}\r\n", "x".repeat(70));
    let large_body = line.repeat(LARGE_BYTES / line.len());
    let mut expected = Vec::new();
    for round in 0..ROUNDS {
        let mut lmtp = pair.b.lmtp()?;
        for mail in 0..SMALL {
            let subject = format!("small-{round}-{mail}");
            lmtp.deliver(&[USER], &message(&subject))?;
            if mail == SMALL / 2 {
                let subject = format!("large-{round}");
                lmtp.deliver(&[USER], &format!("{}{large_body}", message(&subject)))?;
                expected.push(subject);
            }
        }
        lmtp.quit()?;
        links(Link::StalledAfter(STALLED_AFTER));
        (pair.a).doveadm(&["replicator", "replicate", "-p", "high", USER])?;
        wait_for("the large mail on its way", PATIENCE, || {
            let stands = pair.proxies.iter().any(Proxy::stands);
            Ok(stands.then_some(()))
        })?;
        let mut imap = pair.b.imap(USER)?;
        imap.ok("SELECT INBOX")?;
        let lines = imap.ok(&format!("SEARCH SUBJECT small-{round}-"))?.concat();
        let found: Vec<_> = lines
            .split_whitespace()
            .filter(|word| word.parse::<u32>().is_ok())
            .collect();
        imap.ok(&format!(
            "STORE {} +FLAGS.SILENT (\\Deleted)",
            found.join(",")
        ))?;
        imap.ok("EXPUNGE")?;
        imap.logout()?;
        links(Link::Up);
        pair.wait_idle()?;
        (pair.a).doveadm(&["replicator", "replicate", "-p", "high", USER])?;
        pair.wait_equal(&[USER], PATIENCE)?;
        for node in [&pair.a, &pair.b] {
            check_each_once(&subjects(node)?, &expected)?;
        }
        let mut imap = pair.a.imap(USER)?;
        imap.ok("EXAMINE INBOX")?;
        let lines = imap.ok("FETCH * BODY.PEEK[TEXT]<0.12>")?.concat();
        check(lines.contains("body of larg"), || format!("{lines:?}"))?;
        imap.logout()?;
    }
    pair.wait_idle()?;
    pair.finish()
}

fn check_each_once(found: &[String], expected: &[String]) -> Outcome {
    let twice: Vec<_> = (found
        .windows(2)
        .filter(|pair| matches!(pair, [one, other] if one == other)))
    .collect();
    check(twice.is_empty(), || format!("there twice: {twice:?}"))?;
    check(found == expected, || format!("{found:?}, not {expected:?}"))
}

fn main() -> ExitCode {
    if let Err(failed) = harness::disk::in_own_mounts() {
        eprintln!("{}", failed.message().unwrap_or("?"));
        return ExitCode::FAILURE;
    }
    let mut trials = Vec::new();
    for target in Target::all_staged()
        .iter()
        .filter(|target| target.is_ours())
    {
        for format in [Format::Maildir, Format::Sdbox, Format::Mdbox] {
            let of = target.clone();
            let name = format!(
                "mail_that_comes_during_a_sync_is_there_once_{}",
                format.name()
            );
            trials.push(trial(target, &name, move || {
                mail_comes_during_a_sync(&of, &of, format)
            }));
            let of = target.clone();
            let name = format!(
                "mail_that_is_gone_when_its_turn_comes_takes_no_other_with_it_{}",
                format.name()
            );
            trials.push(trial(target, &name, move || {
                mail_is_gone_when_its_turn_comes(&of, format)
            }));
        }
        let of = target.clone();
        let name = "sync_that_is_ended_at_once_doubles_no_mail_maildir";
        trials.push(trial(target, name, move || sync_is_ended_at_once(&of)));
    }
    run(trials)
}
