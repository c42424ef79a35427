//! The mail plugin after a panic of its own: mail goes on, the log says so once, and the plugin steps
//! aside for the life of the process. The plugin is a build that panics where it is told to
//! (`make panics`); what is installed has no such thing in it.

mod harness;

use harness::client::message;
use harness::node::Builder;
use harness::run::{main as run, trial};
use harness::target::{PLUGIN, top};
use harness::{Node, Outcome, Series, Target, User, check};
use std::process::ExitCode;

const USER: &str = "user";
const VARIABLE: &str = "REPLICATION_PANIC_IN";

/// Only for an INBOX that has no UIDVALIDITY yet.
const OPENED: &str = "mailbox_opened";

/// Every guard that a session and a delivery come through, and whether the first mail's notification
/// is out before it panics.
const HOOKS: [(&str, bool); 12] = [
    ("init", false),
    ("mail_user_created", false),
    ("mailbox_allocated", false),
    (OPENED, false),
    ("mail_transaction_begin", false),
    ("mail_save", false),
    ("mail_transaction_commit", false),
    ("mailbox_create", true),
    ("mailbox_rename", true),
    ("mailbox_delete", true),
    ("user deinit", true),
    ("deinit", true),
];

fn panics(hook: &str, notified: bool, series: Series, builder: Builder<'_>) -> Outcome {
    let environment = series.environment(VARIABLE, &hook.replace(' ', "_"));
    builder
        .users([User::replicated(USER)])
        .config(&environment)
        .test(|node| {
            let bug = format!("replication: BUG: panic in {hook} at src/host/guard.rs:");
            node.expect_log(&bug);
            // INBOX is there from the start: its creation is none of the session's changes.
            node.make_inbox(USER)?;
            if hook == OPENED {
                std::fs::remove_file(node.path("mail/user/Maildir/dovecot-uidlist"))?;
            }
            let mut imap = node.imap(USER)?;
            imap.append("INBOX", &message("one"))?;
            for command in [
                "CREATE Box",
                "RENAME Box Other",
                "DELETE Other",
                "SELECT INBOX",
            ] {
                imap.ok(command)?;
            }
            imap.append("INBOX", &message("two"))?;
            imap.logout()?;
            node.wait_sessions_end(USER)?;
            // What a process logs as it ends is written by another.
            node.wait_log(&bug)?;
            count(&node.log(), &bug, 1)?;
            let lines = node.reader.lines_of(&[USER]);
            check(lines.is_empty() != notified, || format!("{lines:?}"))?;

            let mut lmtp = node.lmtp()?;
            lmtp.deliver(&[USER], &message("three"))?;
            lmtp.quit()?;
            node.lda(USER, &message("four"))?;
            node.wait_mails(USER, 4)?;
            // Nothing else is wrong in any process.
            let log = node.log();
            count(&log, "Error: ", log.matches(bug.as_str()).count())?;
            count(&log, "Warning: ", 0)
        })
}

fn count(log: &str, text: &str, wanted: usize) -> Outcome {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(text)).collect();
    check(lines.len() == wanted, || {
        format!("expected {wanted} lines with {text:?}: {lines:?}")
    })
}

/// The switch of this suite is not in what is installed.
fn is_not_shipped(target: &Target) -> Outcome {
    let plugin = target.plugin.as_ref().ok_or("no plugin of ours")?;
    let has_switch = |path: &std::path::Path| {
        let bytes = std::fs::read(path)?;
        let mut windows = bytes.windows(VARIABLE.len());
        Outcome::Ok(windows.any(|window| window == VARIABLE.as_bytes()))
    };
    check(!has_switch(plugin)?, || plugin.display().to_string())?;
    check(has_switch(&panicking(target))?, || {
        "the search finds nothing".to_owned()
    })
}

fn panicking(target: &Target) -> std::path::PathBuf {
    let built = top().join("build").join(&target.version);
    built.join("panics").join(PLUGIN)
}

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for target in Target::all().into_iter().filter(Target::is_ours) {
        let mut missing = target.clone();
        let plugin = panicking(&target);
        if !plugin.is_file() {
            let reason = format!("no {}: run 'make panics'", plugin.display());
            missing.missing.get_or_insert(reason);
        }
        let its = target.clone();
        trials.push(trial(
            &missing,
            "release_has_no_panics_for_tests",
            move || is_not_shipped(&its),
        ));
        let mut target = missing;
        target.plugin = Some(plugin);
        for (hook, notified) in HOOKS {
            let its = target.clone();
            let name = format!("mail_goes_on_after_a_panic_in/{}", hook.replace(' ', "_"));
            trials.push(trial(&target, &name, move || {
                panics(hook, notified, its.series(), Node::of(&its))
            }));
        }
    }
    run(trials)
}
