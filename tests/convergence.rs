//! Writing on both nodes at once, with faults: all becomes equal by itself, nothing is lost, nothing doubled.
//!
//! The short form of `make soak`. A trial `stock/fails_for_defect_12/...` passes while stock's nodes stay
//! different; a trial `.../dsync/...` shows what Dovecot's dsync does whoever runs it (docs/limits.md).

// A test may fail by panicking.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod harness;

use dovecot_replication::engine::sync_state;
use harness::client::message;
use harness::compare::is_nonexistent;
use harness::convergence::{Course, has_unlisted_mail};
use harness::faults::{self, Fault};
use harness::node::{MAIL_USER, VMAIL};
use harness::ports::Port;
use harness::proxy::{Link, Proxy};
use harness::run::trial;
use harness::{
    Format, Imap, Implementation, Node, Outcome, PATIENCE, Pair, Replication, Series, Target, User,
    check, wait_for,
};
use libtest_mimic::Trial;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const FORMATS: [Format; 3] = [Format::Maildir, Format::Sdbox, Format::Mdbox];

/// The pairs that the load is put on.
const PAIRS: [[&str; 2]; 3] = [
    ["2.3.19.1", "2.3.19.1"],
    ["2.4.1", "2.4.1"],
    ["2.3.19.1", "2.4.1"],
];

/// Each load keeps two processors busy.
const AT_ONCE: usize = 3;

fn main() -> ExitCode {
    if let Err(failed) = harness::disk::in_own_mounts() {
        eprintln!("{}", failed.message().unwrap_or("?"));
        return ExitCode::FAILURE;
    }
    let staged = Target::all_staged();
    let find = |version: &str, implementation| {
        let is =
            |target: &&Target| target.version == version && target.implementation == implementation;
        staged.iter().find(is)
    };
    let mut trials = Vec::new();
    for [a, b] in PAIRS {
        let (Some(a), Some(b)) = (find(a, Implementation::Ours), find(b, Implementation::Ours))
        else {
            continue;
        };
        for format in FORMATS {
            let course = Course::of(a, b, format, seed());
            trials.push(course_trial(course, "load"));
            let mut course = Course::of(a, b, format, seed());
            course.faults = faults::ALL.to_vec();
            course.load = Duration::from_secs(25);
            trials.push(course_trial(course, "load_with_faults"));
        }
    }
    for target in &staged {
        if target.is_ours() {
            push(
                &mut trials,
                target,
                "flags_on_the_other_node_come_back",
                flags_come_back,
            );
            push(
                &mut trials,
                target,
                "dsync/flags_of_a_mail_newer_than_the_state_stay_behind",
                newer_mail,
            );
            push(&mut trials, target, "percent_in_a_name_is_kept", percent);
            push(
                &mut trials,
                target,
                "escape_character_of_one_namespace_is_left_alone",
                escape_of_one_namespace,
            );
            push(
                &mut trials,
                target,
                "maildir_of_another_owner_whose_list_cannot_be_written_loses_no_mail",
                |target| unwritten_list(target, true),
            );
            push(
                &mut trials,
                target,
                "sync_that_is_cut_off_leaves_all_to_the_mail_user",
                cut_off_as_mail_user,
            );
            push(
                &mut trials,
                target,
                "dovecot/deleted_mailbox_with_children_in_the_list",
                deleted_with_children,
            );
            push(
                &mut trials,
                target,
                "dovecot/empty_lock_of_a_maildir_stops_its_user",
                empty_lock_of_a_maildir,
            );
            push(
                &mut trials,
                target,
                "maildir_whose_list_cannot_be_written_loses_no_mail",
                |target| unwritten_list(target, false),
            );
            push(
                &mut trials,
                target,
                "dovecot/file_of_a_maildir_that_its_list_has_not",
                unlisted_mail,
            );
        }
        if target.is_ours() && target.root.is_none() {
            push(
                &mut trials,
                target,
                "dsync/full_sync_after_one_that_was_cut_off_loses_mail",
                full_after_cut,
            );
            let mut course = Course::of(target, target, Format::Sdbox, seed());
            course.clock_ahead = true;
            course.faults = vec![Fault::KillReplicator, Fault::LinkCut];
            trials.push(course_trial(course, "load_with_a_clock_one_hour_ahead"));
        }
        if !target.is_ours() && target.root.is_none() {
            let course = Course::of(target, target, Format::Maildir, seed());
            trials.push(trial(
                target,
                "fails_for_defect_12/load_maildir",
                move || stays_different(course),
            ));
        }
    }
    harness::run::main_at_once(trials, AT_ONCE)
}

fn push(trials: &mut Vec<Trial>, target: &Target, name: &str, run: fn(&Target) -> Outcome) {
    let of = target.clone();
    trials.push(trial(target, name, move || run(&of)));
}

fn seed() -> u64 {
    let seed = std::env::var("SEED").ok();
    seed.and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..))
}

fn course_trial(course: Course, name: &str) -> Trial {
    let [a, b] = &course.targets;
    let with = if a.version == b.version {
        String::new()
    } else {
        format!("with_{}/", b.version)
    };
    let name = format!("{with}{name}_{}", course.format.name());
    let mut named = a.clone();
    named.missing = a.missing.clone().or(b.missing.clone());
    trial(&named, &name, move || becomes_equal(course))
}

fn becomes_equal(course: Course) -> Outcome {
    let seed = course.seed;
    let mut journey = course.begin()?;
    let round = journey.round()?;
    let told = if round.wrong.is_empty() {
        String::new()
    } else {
        let kept = [&mut journey.pair.a, &mut journey.pair.b].map(Node::keep);
        format!("{}kept: {kept:?}", journey.told(&round))
    };
    let operations: u64 = journey.operations().values().map(|[done, ..]| done).sum();
    println!(
        "SEED={seed}: {operations} operations, {} mails, equal after {:?}; expunged and back {}, doubled by faults {}, by renames {}, wrong by rebuilding {}, left out of an index {}; processes dead of an assertion {}{}",
        journey.mails(),
        round.equal_after.unwrap_or_default(),
        round.back,
        round.doubled_by_faults,
        round.doubled_by_renames,
        round.wrong_by_rebuild,
        round.left_out_of_index,
        round.died,
        match round.waited_for_lock {
            true => "; waited for the lock of a dead process",
            false => "",
        }
    );
    // A load that does nothing proves nothing.
    let is_idle = operations < 30;
    let finished = journey.pair.finish();
    check(round.wrong.is_empty() && !is_idle, || {
        let wrong = round.wrong.join("\n");
        format!("SEED={seed}, {operations} operations\n{wrong}\n{told}")
    })?;
    finished
}

/// One load in a few leaves stock's nodes equal, on a machine at rest most do: it is put on them again.
fn stays_different(course: Course) -> Outcome {
    const ROUNDS: usize = 12;
    let mut course = course;
    course.patience = Duration::from_secs(20);
    let mut journey = course.begin()?;
    for _ in 0..ROUNDS {
        if journey.round()?.equal_after.is_none() {
            return Ok(());
        }
    }
    Err(format!("stock's nodes were equal after each of {ROUNDS} loads").into())
}

/// Mail comes with the sync that one node runs, and is changed on the other, whose own sync is then its first
/// since: from which state that begins decides whether the change is seen (`newer_mail` below).
fn flags_come_back(target: &Target) -> Outcome {
    const MAILS: u32 = 5;
    let pair = Pair::of(target)
        .users([User::local("u1")])
        .format(Format::Sdbox)
        .start()?;
    let mut lmtp = [pair.a.lmtp()?, pair.b.lmtp()?];
    lmtp[0].deliver(&["u1"], &message("first"))?;
    wait_for("INBOX on b", PATIENCE, || {
        let listed = pair.b.doveadm(&["mailbox", "list", "-u", "u1"])?;
        Ok(listed.contains("INBOX").then_some(()))
    })?;
    pair.wait_equal(&["u1"], PATIENCE)?;
    let mut imap = [pair.a.imap("u1")?, pair.b.imap("u1")?];
    for session in &mut imap {
        session.ok("SELECT INBOX")?;
    }
    for number in 2..=MAILS {
        let (here, there) = if number % 2 == 0 { (0, 1) } else { (1, 0) };
        lmtp[here].deliver(&["u1"], &message(&format!("mail-{number}")))?;
        let store = format!("UID STORE {number} +FLAGS (\\Flagged)");
        wait_for("the mail on the other node", PATIENCE, || {
            Ok(imap[there]
                .ok(&store)?
                .iter()
                .any(|line| line.contains("\\Flagged"))
                .then_some(()))
        })?;
        wait_for(&format!("the flag of mail {number}"), PATIENCE, || {
            let lines = imap[here].ok(&format!("UID FETCH {number} (FLAGS)"))?;
            Ok(lines.concat().contains("\\Flagged").then_some(()))
        })?;
    }
    for session in imap {
        session.logout()?;
    }
    pair.wait_equal(&["u1"], PATIENCE)?;
    pair.wait_idle()?;
    for node in [&pair.a, &pair.b] {
        // The nodes start one after the other.
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
    }
    pair.finish()
}

/// Two nodes without replication: dsync is run by hand from the first to the second.
struct ByHand {
    a: Node,
    b: Node,
    to_b: Proxy,
    _ports: [Port; 2],
}

impl ByHand {
    fn start(target: &Target) -> Outcome<ByHand> {
        Self::of(target, Format::Sdbox)
    }

    fn of(target: &Target, format: Format) -> Outcome<ByHand> {
        let ports = [Port::take()?, Port::take()?];
        let start = |hostname, port: &Port| {
            let replication = Replication {
                port: Some(port.number()),
                ..Replication::default()
            };
            Node::of(target)
                .services()
                .mail_plugins("notify acl")
                .hostname(hostname)
                .format(format)
                .users([User::local("u1")])
                .config(&replication.render(target.series()))
                .start()
        };
        Ok(ByHand {
            a: start("node-a", &ports[0])?,
            b: start("node-b", &ports[1])?,
            to_b: Proxy::start(ports[1].number())?,
            _ports: ports,
        })
    }

    /// A dsync from a to b; whether it ended with OK, what it said (the new state), what it logged.
    fn dsync(&self, rest: &[&str]) -> Outcome<(bool, String, String)> {
        let to = format!("tcp:127.0.0.1:{}", self.to_b.number());
        let args = [&["sync", "-u", "u1", "-N", "-l", "30"], rest, &[&to]].concat();
        let output = self.a.run(self.a.doveadm_command(&args), b"")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (said, logged) = (text(&output.stdout), text(&output.stderr));
        Ok((output.status.success(), said, logged))
    }

    /// An incremental sync that must end well; the new state.
    fn sync(&self, state: &str) -> Outcome<String> {
        let (ok, said, logged) = self.dsync(&["-s", state])?;
        check(ok, || logged)?;
        Ok(said)
    }

    fn finish(self) -> Outcome {
        let a = self.a.finish();
        self.b.finish().and(a)
    }
}

/// A state that a sync begins from.
#[derive(Clone, Copy, Debug)]
enum From {
    /// The one that the sync left which brought the mail.
    Newest,
    /// The last one, as if nothing were known of flags: with that the replicator makes up for a stale state.
    AnyChange,
}

fn without_modseqs(state: &str) -> Outcome<String> {
    let state = sync_state::without_modseqs(state.as_bytes()).ok_or("not known")?;
    Ok(String::from_utf8(state)?)
}

/// Of a mail that both sides have, but that is newer than the state which a sync begins from, dsync does not bring
/// the flags over. (A sync of the peer, one that ended with CHANGED and one that failed half-way move mail too.)
fn newer_mail(target: &Target) -> Outcome {
    flag_of_newer_mail(target, From::Newest)?;
    flag_of_newer_mail(target, From::AnyChange)
}

fn flag_of_newer_mail(target: &Target, from: From) -> Outcome {
    let nodes = ByHand::start(target)?;
    let mut lmtp = nodes.a.lmtp()?;
    lmtp.deliver(&["u1"], &message("first"))?;
    let old = nodes.sync("")?;
    lmtp.deliver(&["u1"], &message("second"))?;
    lmtp.quit()?;
    let new = nodes.sync(&old)?;
    let mut imap = nodes.a.imap("u1")?;
    imap.ok("SELECT INBOX")?;
    imap.ok("UID STORE 2 +FLAGS (\\Flagged)")?;
    imap.logout()?;
    let is_flagged = || -> Outcome<bool> {
        let mut imap = nodes.b.imap("u1")?;
        imap.ok("EXAMINE INBOX")?;
        let lines = imap.ok("UID FETCH 2 (FLAGS)")?;
        imap.logout()?;
        Ok(lines.concat().contains("\\Flagged"))
    };
    // b has had more changes than a: else it would come with the next sync.
    let mut imap = nodes.b.imap("u1")?;
    imap.ok("SELECT INBOX")?;
    for sign in ["+", "-", "+", "-", "+"] {
        imap.ok(&format!("UID STORE 1 {sign}FLAGS (\\Answered)"))?;
    }
    imap.logout()?;
    let left = nodes.sync(&old)?;
    check(!is_flagged()?, || "came from the older state".to_owned())?;
    let left = match from {
        From::Newest => left,
        From::AnyChange => nodes.sync(&left)?,
    };
    check(!is_flagged()?, || "came with the next sync".to_owned())?;
    match from {
        From::Newest => nodes.sync(&new)?,
        From::AnyChange => nodes.sync(&without_modseqs(&left)?)?,
    };
    check(is_flagged()?, || format!("did not come from {from:?}"))?;
    nodes.finish()
}

/// Both nodes give one UID to different mails; the sync that renumbers them is cut off before b's have come to a: they
/// are on b only, under UIDs that a has skipped. A full sync takes that for an expunge: the mail is lost. A fast
/// one from the state before brings it over, also one that sends the flags of all mails. So the replicator does not follow a failure with
/// a full sync, and has flags come over from the state.
fn full_after_cut(target: &Target) -> Outcome {
    const CUTS: usize = 12;
    for cut in 1..=CUTS {
        let bytes = (1 + cut % 6) * 90_000;
        for then in [Then::Fast, Then::AnyChange] {
            let left = left_after_cut(target, bytes, then)?;
            check(left == MAILS_OF_B, || {
                format!("{then:?}: {left} mails are left")
            })?;
        }
        // Whether the moment is the right one is chance.
        if left_after_cut(target, bytes, Then::Full)? < MAILS_OF_B {
            return Ok(());
        }
    }
    Err(format!("full: no mail was lost in {CUTS} tries").into())
}

const MAILS_OF_B: usize = 8;
/// b has renumbered its mails while the first of them is still on its way.
const PIECE_DELAY: Duration = Duration::from_millis(20);

/// The sync that follows one that was cut off.
#[derive(Clone, Copy, Debug)]
enum Then {
    Full,
    Fast,
    /// [`From::AnyChange`]
    AnyChange,
}

/// How many of b's mails b has after a sync that was cut off after `bytes`, and `then`.
fn left_after_cut(target: &Target, bytes: usize, then: Then) -> Outcome<usize> {
    let nodes = ByHand::start(target)?;
    let deliver = |node: &Node, subject: &str, lines: usize| -> Outcome {
        let body = "a line of a mail that takes a while on the wire\r\n".repeat(lines);
        let mut lmtp = node.lmtp()?;
        lmtp.deliver(&["u1"], &(message(subject) + &body))?;
        lmtp.quit()
    };
    deliver(&nodes.a, "first", 1)?;
    let state = nodes.sync("")?;
    // The new UIDs come in the order of GUIDs, which is chance: with so many one is as it must be.
    for _ in 0..MAILS_OF_B {
        deliver(&nodes.a, "on-a", 1)?;
        deliver(&nodes.b, "on-b", 2_000)?;
    }
    nodes.to_b.set(Link::SlowAndCutAfter(PIECE_DELAY, bytes));
    nodes.dsync(&["-s", &state])?;
    nodes.to_b.set(Link::Up);
    let all_flags = without_modseqs(&state)?;
    let rest = match then {
        Then::Full => vec!["-f"],
        Then::Fast => vec!["-s", &state],
        Then::AnyChange => vec!["-s", &all_flags],
    };
    // It may say that it has to be run again.
    for _ in 0..3 {
        nodes.dsync(&rest)?;
    }
    let mut imap = nodes.b.imap("u1")?;
    imap.ok("EXAMINE INBOX")?;
    let found = imap.ok("SEARCH SUBJECT on-b")?.concat();
    imap.logout()?;
    for node in [&nodes.a, &nodes.b] {
        // What the cut makes dsync say differs with its moment.
        node.tolerate_log("dsync");
        node.tolerate_log("doveadm");
    }
    nodes.finish()?;
    Ok(found.split_whitespace().skip(2).count())
}

/// What a dsync-server has got when its connection ends is saved: as the mail user, although its process may be root for its NOTIFY.
fn cut_off_as_mail_user(target: &Target) -> Outcome {
    const CUTS: usize = 3;
    const MAILS: usize = 30;
    for format in [Format::Maildir, Format::Mdbox] {
        for cut in 1..=CUTS {
            let nodes = ByHand::of(target, format)?;
            let mut lmtp = nodes.a.lmtp()?;
            lmtp.deliver(&["u1"], &message("first"))?;
            lmtp.quit()?;
            let state = nodes.sync("")?;
            // Each UID is given on both: dsync renumbers, so files are written anew.
            for (node, name) in [(&nodes.a, "a"), (&nodes.b, "b")] {
                let mut lmtp = node.lmtp()?;
                for number in 0..MAILS {
                    let body = "a line of a mail that takes a while on the wire\r\n".repeat(200);
                    let mail = message(&format!("{name}-{number}")) + &body;
                    lmtp.deliver(&["u1"], &mail)?;
                }
                lmtp.quit()?;
            }
            nodes.to_b.set(Link::CutAfter(cut * 80_000));
            let (ok, said, logged) = nodes.dsync(&["-U", "-s", &state])?;
            check(!ok, || format!("not cut off: {said} {logged}"))?;
            wait_for("the end of dsync-server", PATIENCE, || {
                let workers = nodes.b.processes("doveadm-server")?;
                Ok(workers.is_empty().then_some(()))
            })?;
            let strangers = owned_by_others(&nodes.b.path("mail"))?;
            check(strangers.is_empty(), || format!("{strangers:?}"))?;
            for node in [&nodes.a, &nodes.b] {
                // What the cut makes dsync say differs with its moment.
                node.tolerate_log("dsync");
                node.tolerate_log("doveadm");
            }
            nodes.finish()?;
        }
    }
    Ok(())
}

/// The files below `dir` whose owner is not the mail user.
fn owned_by_others(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.uid() != MAIL_USER.1 {
            found.push(entry.path());
        }
        if metadata.is_dir() {
            found.extend(owned_by_others(&entry.path())?);
        }
    }
    Ok(found)
}

/// Dovecot lists a deleted mailbox that has children as if it could be selected, for a while at least.
fn deleted_with_children(target: &Target) -> Outcome {
    let node = Node::of(target).users([User::local("u1")]).start()?;
    let mut imap = node.imap("u1")?;
    for command in ["CREATE up", "CREATE up/down", "DELETE up"] {
        imap.ok(command)?;
    }
    let listed = imap.ok("LIST \"\" up")?.concat();
    let (_, examined) = imap.command("EXAMINE up")?;
    imap.logout()?;
    let is_selectable = !listed.contains("\\Noselect") && !listed.contains("\\NonExistent");
    check(is_selectable, || listed)?;
    check(is_nonexistent(&examined), || examined)?;
    node.finish()
}

/// What the load takes for left out of an index: a file whose mail no client sees, and no other.
fn unlisted_mail(target: &Target) -> Outcome {
    const USER: &str = "u1";
    let node = Node::of(target)
        .services()
        .format(Format::Maildir)
        .users([User::local(USER)])
        .start()?;
    let is_unlisted = |subject: &str| has_unlisted_mail(&node, USER, subject);
    let mut lmtp = node.lmtp()?;
    lmtp.deliver(&[USER], &message("delivered"))?;
    lmtp.quit()?;
    let mut imap = node.imap(USER)?;
    imap.ok("SELECT INBOX")?;
    check(!is_unlisted("delivered"), || {
        "a mail that IMAP shows".to_owned()
    })?;
    imap.ok("STORE 1 +FLAGS (\\Seen)")?;
    check(!is_unlisted("delivered"), || {
        "a mail with a flag".to_owned()
    })?;
    imap.create("Other")?;
    imap.ok("COPY 1 Other")?;
    check(!is_unlisted("delivered"), || {
        "a mail in two mailboxes".to_owned()
    })?;
    let cur = node.path("mail").join(USER).join("Maildir/cur");
    fs::write(cur.join("1.M1P1.node-a"), message("laid there"))?;
    check(is_unlisted("laid there"), || {
        "a mail that no list has".to_owned()
    })?;
    check(!is_unlisted("laid"), || "another subject".to_owned())?;
    imap.logout()?;
    node.finish()
}

/// An admin may have set an escape character for one namespace, `%`, which is dsync's own for the others: dsync wants one for all.
fn escape_of_one_namespace(target: &Target) -> Outcome {
    let location = match target.series() {
        Series::V2_3 => "  location = maildir:~/other:BROKENCHAR=%%\n",
        Series::V2_4 => {
            "  mail_driver = maildir\n  mail_path = ~/other\n  mailbox_list_visible_escape_char = %\n"
        }
    };
    let pair = Pair::of(target)
        .users([User::local("u1")])
        .config(&format!(
            "namespace other {{\n  prefix = Other/\n  separator = /\n{location}}}\n"
        ))
        .start()?;
    let mut imap = pair.a.imap("u1")?;
    for name in ["Box", "Other/Box"] {
        imap.ok(&format!("CREATE {name}"))?;
        imap.append(name, &message(name))?;
    }
    imap.logout()?;
    pair.wait_equal(&["u1"], PATIENCE)?;
    pair.wait_idle()?;
    let mut imap = pair.b.imap("u1")?;
    for name in ["Box", "Other/Box"] {
        let lines = imap.ok(&format!("STATUS {name} (MESSAGES)"))?.concat();
        check(lines.contains("(MESSAGES 1)"), || lines)?;
    }
    imap.logout()?;
    pair.finish()
}

/// Where Dovecot cannot write a Maildir's `dovecot-uidlist`, as on a full disk, it expunges all mails from the index, and leaves the files. They are mails
/// again with the next sync, before the other node hears of it.
fn unwritten_list(target: &Target, is_anothers: bool) -> Outcome {
    const USER: &str = "u1";
    const MAILS: usize = 20;
    /// So many are expunged that the list is to be written anew, for fewer lines are left than three in four.
    const LEFT: usize = 4;
    let pair = Pair::of(target)
        .users([User::local(USER)])
        .crashes_only()
        .start()?;
    let mut lmtp = pair.a.lmtp()?;
    for mail in 0..MAILS {
        lmtp.deliver(&[USER], &message(&format!("mail-{mail}")))?;
    }
    lmtp.quit()?;
    pair.wait_equal(&[USER], PATIENCE)?;
    pair.wait_idle()?;
    // A directory of the name of the list to be is as much in the way as a full disk.
    let list = pair
        .a
        .path("mail")
        .join(USER)
        .join("Maildir/dovecot-uidlist.tmp");
    fs::create_dir(&list)?;
    if is_anothers {
        // As a group's shared mailbox may be: who writes there does not own it.
        let cur = list.with_file_name("cur");
        chown(&cur, Some(VMAIL + 1), None)?;
        fs::set_permissions(&cur, fs::Permissions::from_mode(0o777))?;
    }
    let mut imap = pair.a.imap(USER)?;
    imap.ok("SELECT INBOX")?;
    imap.ok(&format!(
        "STORE 1:{} +FLAGS.SILENT (\\Deleted)",
        MAILS - LEFT
    ))?;
    imap.ok("EXPUNGE")?;
    imap.logout()?;
    for _ in 0..3 {
        // Within a second from a change of the directory Dovecot looks at it again by itself.
        std::thread::sleep(Duration::from_millis(1_100));
        let mut imap = pair.a.imap(USER)?;
        // Dovecot shows nothing of a mailbox that it cannot sync.
        let _ = imap.command("SELECT INBOX")?;
        imap.logout()?;
    }
    let said = pair.a.log_lines("dovecot-uidlist.tmp");
    check(!said.is_empty(), || {
        "the list was not in the way".to_owned()
    })?;
    fs::remove_dir(&list)?;
    let all_left = |node: &Node| -> Outcome<bool> {
        let mut imap = node.imap(USER)?;
        imap.ok("SELECT INBOX")?;
        let lines = imap.ok("UID FETCH 1:* (BODY.PEEK[HEADER.FIELDS (SUBJECT)])")?;
        imap.logout()?;
        // Those that were expunged may be there again: what asked for it was in the index too.
        Ok((MAILS - LEFT..MAILS).all(|mail| {
            let subject = format!("Subject: mail-{mail}");
            lines.iter().filter(|line| **line == subject).count() == 1
        }))
    };
    wait_for("the mails that are left", PATIENCE, || {
        Ok(all_left(&pair.a)?.then_some(()))
    })?;
    pair.wait_idle()?;
    pair.wait_equal(&[USER], PATIENCE)?;
    for node in [&pair.a, &pair.b] {
        check(all_left(node)?, || {
            "mail is lost, or there twice".to_owned()
        })?;
    }
    pair.finish()
}

/// Where a full disk takes not even a process id, Dovecot's lock of a Maildir is empty. Of one whose process died then, all who write there wait two
/// minutes, clients too. It is nobody's: without it the user is synced at once.
fn empty_lock_of_a_maildir(target: &Target) -> Outcome {
    const USERS: [&str; 1] = ["u1"];
    /// A sync needs a tenth of it.
    const SYNC: Duration = Duration::from_secs(5);
    let pair = Pair::of(target).users(USERS.map(User::local)).start()?;
    let append = |subject: &str| -> Outcome {
        let mut imap = pair.a.imap(USERS[0])?;
        imap.append("Box", &message(subject))?;
        imap.logout()
    };
    let mut imap = pair.a.imap(USERS[0])?;
    imap.create("Box")?;
    imap.logout()?;
    append("first")?;
    std::thread::sleep(SYNC);
    pair.wait_idle()?;
    pair.wait_equal(&USERS, PATIENCE)?;
    let mailbox = pair.b.path("mail/u1/Maildir/.Box");
    let mails = || -> Outcome<usize> {
        let dirs = ["new", "cur"].map(|dir| Ok(fs::read_dir(mailbox.join(dir))?.count()));
        dirs.into_iter().sum()
    };
    let lock = mailbox.join("dovecot-uidlist.lock");
    fs::write(&lock, "")?;
    let (_, uid) = MAIL_USER;
    std::os::unix::fs::chown(&lock, Some(uid), Some(uid))?;
    append("second")?;
    std::thread::sleep(SYNC);
    check(mails()? == 1, || "the lock stops nobody".to_owned())?;
    fs::remove_file(&lock)?;
    pair.wait_equal(&USERS, PATIENCE)?;
    check(mails()? == 2, || "the mail has not come".to_owned())?;
    pair.finish()
}

/// Dsync escapes names by a `%`, and takes one that a name has for its own: 2.3.19 and 2.3.20 fail in each sync of the user, later ones make
/// `a b` of `a%20b`. With our module names are what they are, in both directions, in subscriptions and in deletions too.
fn percent(target: &Target) -> Outcome {
    const NAMES: [&str; 6] = ["100 %", "a%20b", "%41", "50%ab", "x%2fy", "%/%25"];
    let pair = Pair::of(target)
        .users([User::local("u1")])
        .format(Format::Sdbox)
        .start()?;
    let (mut a, mut b) = (pair.a.imap("u1")?, pair.b.imap("u1")?);
    for (at, name) in NAMES.iter().enumerate() {
        let imap = if at % 2 == 0 { &mut a } else { &mut b };
        imap.ok(&format!("CREATE \"{name}\""))?;
        imap.ok(&format!("SUBSCRIBE \"{name}\""))?;
        imap.append(&format!("\"{name}\""), &message(name))?;
    }
    let settle = || -> Outcome {
        pair.wait_equal(&["u1"], PATIENCE)?;
        pair.wait_idle()
    };
    settle()?;
    let listed = |imap: &mut Imap, command: &str| -> Outcome<Vec<String>> {
        let lines = imap.ok(command)?.join("\n").replace('"', "");
        let is_there = |name: &&&str| {
            lines
                .lines()
                .any(|line| line.ends_with(&format!(" / {name}")))
        };
        Ok(NAMES
            .iter()
            .filter(is_there)
            .map(ToString::to_string)
            .collect())
    };
    for imap in [&mut a, &mut b] {
        for command in ["LIST \"\" \"*\"", "LSUB \"\" \"*\""] {
            let names = listed(imap, command)?;
            check(names == NAMES, || format!("{command}: {names:?}"))?;
        }
        for name in NAMES {
            let lines = imap.ok(&format!("STATUS \"{name}\" (MESSAGES)"))?;
            check(lines.concat().contains("(MESSAGES 1)"), || {
                format!("{lines:?}")
            })?;
        }
    }
    // Dsync decides by whole seconds what is newer, a subscription or its end.
    std::thread::sleep(Duration::from_millis(1_100));
    // Each by the node that did not make it.
    b.ok("RENAME \"100 %\" \"99 %20\"")?;
    settle()?;
    a.ok("UNSUBSCRIBE \"a%20b\"")?;
    settle()?;
    b.ok("UNSUBSCRIBE \"%41\"")?;
    b.ok("DELETE \"%41\"")?;
    settle()?;
    for imap in [&mut a, &mut b] {
        let names = listed(imap, "LIST \"\" \"*\"")?;
        check(names == ["a%20b", "50%ab", "x%2fy", "%/%25"], || {
            format!("{names:?}")
        })?;
        let subscribed = listed(imap, "LSUB \"\" \"*\"")?;
        let lost = ["a%20b", "%41"]
            .iter()
            .all(|name| !subscribed.iter().any(|is| is == name));
        check(lost, || format!("still subscribed: {subscribed:?}"))?;
        let lines = imap.ok("STATUS \"99 %20\" (MESSAGES)")?;
        check(lines.concat().contains("(MESSAGES 1)"), || {
            format!("{lines:?}")
        })?;
    }
    a.logout()?;
    b.logout()?;
    pair.wait_idle()?;
    for node in [&pair.a, &pair.b] {
        // 2.4: a sync that comes while the mailbox is being renamed.
        node.tolerate_log("Can't create mailbox 100 %: Not found");
        node.tolerate_log("reset by peer (last sent=mailbox_delete, last recv=handshake)");
        // The client that renames it may still read of the mail in it; its file has moved with the mailbox.
        node.tolerate_log("Mailbox 100 %: UID=1: dbox: Unexpectedly lost uid");
        node.tolerate_log("Mailbox 100 %: Unexpectedly lost uid 1");
    }
    pair.finish()
}
