//! The mail plugin where what it depends on is out of order: fifo, socket, aggregator, its own
//! process. Each time mail is delivered in good time, and no change is lost of which the process lived
//! on or could say goodbye.
//!
//! Trials of stock's plugin are of two kinds: what it does as well as ours, and its defects, where the
//! trial is passed if stock still fails in the way that is named.

mod harness;

use dovecot_replication::engine::Priority;
use harness::client::message;
use harness::node::Builder;
use harness::reader::SUCCESS;
use harness::run::{Shared, main as run, trial};
use harness::{Imap, Line, Node, Outcome, Reply, Series, Target, User, Via, check, wait_for};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How soon a thing that was out of order and is right again must be used: the longest delay between
/// two tries, and room for a slow machine.
const RECOVERY: Duration = Duration::from_secs(8);

/// Mail is delivered within this time where nobody has to wait for a sync: room for a slow machine,
/// and less than [`LONG`].
const AT_ONCE: Duration = Duration::from_secs(3);

/// A `replication_sync_timeout` that no delivery may use up.
const LONG: &str = "5";

const USER: &str = "user";

/// What stock's plugin does in a case.
enum Stock {
    /// The case is about ours alone.
    NotAsked,
    /// As ours.
    Passes,
    /// It fails, and this is in the reason.
    Fails(&'static str),
}

struct Case {
    name: &'static str,
    stock: Stock,
    run: fn(Builder<'_>) -> Outcome,
}

const CASES: &[Case] = &[
    Case {
        name: "fifo_missing_at_start_is_used_when_it_comes",
        stock: Stock::Fails("lost"),
        run: fifo_missing,
    },
    Case {
        name: "reader_killed_and_restarted_in_mid_session",
        stock: Stock::Fails("lost"),
        run: reader_restarted,
    },
    Case {
        name: "fifo_full_for_a_second",
        stock: Stock::Passes,
        run: fifo_full,
    },
    Case {
        name: "fifo_full_at_the_end_of_a_session_goes_to_the_socket",
        stock: Stock::Fails("lost"),
        run: fifo_full_at_deinit,
    },
    Case {
        name: "fifo_full_for_lda_goes_to_the_socket",
        stock: Stock::Fails("lost"),
        run: fifo_full_lda,
    },
    Case {
        name: "fifo_full_and_no_socket_is_one_warning_with_the_user",
        stock: Stock::NotAsked,
        run: no_way_out,
    },
    Case {
        name: "fifo_full_for_lmtp_with_several_users",
        stock: Stock::Fails("lost"),
        run: fifo_full_lmtp,
    },
    Case {
        name: "fifo_replaced",
        stock: Stock::Passes,
        run: fifo_replaced,
    },
    Case {
        name: "fifo_replaced_while_the_old_one_is_still_read",
        stock: Stock::Fails("lost"),
        run: fifo_replaced_old_open,
    },
    Case {
        name: "wrong_permissions_are_one_error_that_says_what_to_set",
        stock: Stock::Fails("lost"),
        run: wrong_permissions,
    },
    Case {
        name: "nothing_there_at_all_and_mail_goes_on",
        stock: Stock::NotAsked,
        run: nothing_there,
    },
    Case {
        name: "sigkill_after_ok_loses_nothing",
        stock: Stock::Fails("lost"),
        run: killed,
    },
    Case {
        name: "without_notify_the_error_says_so",
        stock: Stock::Passes,
        run: without_notify,
    },
    Case {
        name: "socket_absent",
        stock: Stock::NotAsked,
        run: socket_absent,
    },
    Case {
        name: "sync_failure_is_told_at_each_change_of_state",
        stock: Stock::Fails("expected 2 warnings"),
        run: warned_per_change,
    },
    Case {
        name: "lmtp_waits_for_each_of_several_users",
        stock: Stock::NotAsked,
        run: lmtp_sync,
    },
    Case {
        name: "sync_that_succeeds_takes_the_waiting_notification_along",
        stock: Stock::NotAsked,
        run: sync_clears_pending,
    },
];

fn high(lines: &[Line]) -> usize {
    let high = |line: &&Line| line.priority == Priority::High;
    lines.iter().filter(high).count()
}

/// `user`'s `high` lines, through whatever, become `count` in the time of a recovery.
fn arrives(node: &Node, user: &str, count: usize) -> Outcome {
    let came = wait_for("recovery", RECOVERY, || {
        Ok((high(&node.reader.lines_of(&[user])) >= count).then_some(()))
    });
    came.map_err(|_| {
        let lines = node.reader.lines_of(&[user]);
        format!("lost: {count} high lines of {user} wanted, came {lines:?}").into()
    })
}

/// APPEND, answered in good time.
fn append(imap: &mut Imap, subject: &str) -> Outcome {
    let start = Instant::now();
    imap.append("INBOX", &message(subject))?;
    let took = start.elapsed();
    check(took < AT_ONCE, || format!("APPEND took {took:?}"))
}

fn count_lines(node: &Node, text: &str, count: usize) -> Outcome {
    let lines = node.log_lines(text);
    check(lines.len() == count, || {
        format!("expected {count} lines with {text:?}: {lines:?}")
    })
}

fn messages(node: &Node, user: &str, count: usize) -> Outcome {
    let status = node.doveadm(&["mailbox", "status", "-u", user, "messages", "INBOX"])?;
    check(status.contains(&format!("messages={count}")), || {
        format!("{count} mails expected: {status}")
    })
}

fn fifo_missing(builder: Builder<'_>) -> Outcome {
    builder
        .users([User::replicated(USER)])
        .without_fifo()
        .test(|node| {
            let error = format!(
                "open({}) failed: No such file or directory",
                node.fifo_as_logged()
            );
            node.expect_log(&error);
            let mut imap = node.imap(USER)?;
            for subject in ["one", "two", "three"] {
                append(&mut imap, subject)?;
            }
            node.wait_log(&error)?;
            // The session does nothing more: its own timeout has to find the fifo.
            node.reader.create_fifo()?;
            arrives(node, USER, 1)?;
            append(&mut imap, "four")?;
            arrives(node, USER, 2)?;
            imap.logout()?;
            node.wait_sessions_end(USER)?;
            count_lines(node, &error, 1)?;
            count_lines(node, "takes notifications again", 1)?;
            messages(node, USER, 4)?;
            Ok(())
        })
}

fn reader_restarted(builder: Builder<'_>) -> Outcome {
    builder.users([User::replicated(USER)]).test(|node| {
        node.expect_log(&format!("open({}) failed: ", node.fifo_as_logged()));
        let mut imap = node.imap(USER)?;
        append(&mut imap, "before")?;
        arrives(node, USER, 1)?;
        node.reader.close_fifo();
        append(&mut imap, "between")?;
        node.wait_log(&node.fifo_as_logged())?;
        node.reader.open_fifo()?;
        arrives(node, USER, 2)?;
        append(&mut imap, "after")?;
        arrives(node, USER, 3)?;
        imap.logout()?;
        node.wait_sessions_end(USER)?;
        Ok(())
    })
}

fn fifo_full(builder: Builder<'_>) -> Outcome {
    builder.users([User::replicated(USER)]).test(|node| {
        let mut imap = node.imap(USER)?;
        append(&mut imap, "before")?;
        arrives(node, USER, 1)?;
        node.reader.fill_fifo()?;
        append(&mut imap, "while full")?;
        // The fault itself: a reader that stands still for a second.
        std::thread::sleep(Duration::from_secs(1));
        node.reader.go_on_reading();
        arrives(node, USER, 2)?;
        imap.logout()?;
        node.wait_sessions_end(USER)?;
        // No line of the log: a burst is no fault.
        Ok(())
    })
}

fn fifo_full_at_deinit(builder: Builder<'_>) -> Outcome {
    builder.users([User::replicated(USER)]).test(|node| {
        let mut imap = node.imap(USER)?;
        append(&mut imap, "before")?;
        arrives(node, USER, 1)?;
        node.reader.fill_fifo()?;
        append(&mut imap, "while full")?;
        imap.logout()?;
        node.wait_sessions_end(USER)?;
        arrives(node, USER, 2)?;
        node.reader.wait_lines(USER, Via::Socket, 1)?;
        Ok(())
    })
}

fn fifo_full_lda(builder: Builder<'_>) -> Outcome {
    builder.users([User::replicated(USER)]).test(|node| {
        node.reader.fill_fifo()?;
        node.lda(USER, &message("one"))?;
        arrives(node, USER, 1)?;
        messages(node, USER, 1)?;
        Ok(())
    })
}

fn no_way_out(builder: Builder<'_>) -> Outcome {
    builder
        .users([User::replicated(USER)])
        .without_socket()
        .test(|node| {
            node.reader.fill_fifo()?;
            let warning = format!("Couldn't send the final notification of {USER}: ");
            node.expect_log(&warning);
            node.lda(USER, &message("one"))?;
            count_lines(node, &warning, 1)?;
            count_lines(node, "Warning: ", 1)?;
            count_lines(node, "Error: ", 0)?;
            messages(node, USER, 1)?;
            Ok(())
        })
}

fn fifo_full_lmtp(builder: Builder<'_>) -> Outcome {
    let users = ["first", "second", "third"];
    builder.users(users.map(User::replicated)).test(|node| {
        node.reader.fill_fifo()?;
        let mut lmtp = node.lmtp()?;
        lmtp.deliver(&users, &message("to all"))?;
        node.reader.go_on_reading();
        for user in users {
            arrives(node, user, 1)?;
        }
        lmtp.quit()?;
        Ok(())
    })
}

fn fifo_replaced(builder: Builder<'_>) -> Outcome {
    builder.users([User::replicated(USER)]).test(|node| {
        let mut imap = node.imap(USER)?;
        append(&mut imap, "before")?;
        arrives(node, USER, 1)?;
        node.reader.replace_fifo()?;
        append(&mut imap, "after")?;
        arrives(node, USER, 2)?;
        imap.logout()?;
        node.wait_sessions_end(USER)?;
        Ok(())
    })
}

fn fifo_replaced_old_open(builder: Builder<'_>) -> Outcome {
    builder.users([User::replicated(USER)]).test(|node| {
        let mut imap = node.imap(USER)?;
        append(&mut imap, "before")?;
        arrives(node, USER, 1)?;
        let old = node.reader.put_new_fifo()?;
        append(&mut imap, "after")?;
        arrives(node, USER, 2)?;
        drop(old);
        imap.logout()?;
        node.wait_sessions_end(USER)?;
        Ok(())
    })
}

fn wrong_permissions(builder: Builder<'_>) -> Outcome {
    builder.users([User::replicated(USER)]).test(|node| {
        node.reader.permit_fifo(0o600, 0)?;
        let error = format!("open({}) failed: Permission denied", node.fifo_as_logged());
        node.expect_log(&error);
        let mut imap = node.imap(USER)?;
        for subject in ["one", "two", "three"] {
            append(&mut imap, subject)?;
        }
        node.wait_log(&error)?;
        node.reader.permit_fifo(0o600, harness::node::VMAIL)?;
        arrives(node, USER, 1)?;
        imap.logout()?;
        node.wait_sessions_end(USER)?;
        count_lines(node, &error, 1)?;
        for part in [
            "service aggregator {",
            "fifo_listener replication-notify-fifo {",
            "user = ",
            &harness::node::VMAIL.to_string(),
        ] {
            check(
                node.log_lines(&error)
                    .iter()
                    .all(|line| line.contains(part)),
                || format!("{part:?} is not in the error"),
            )?;
        }
        Ok(())
    })
}

fn nothing_there(builder: Builder<'_>) -> Outcome {
    builder
        .users([
            User::replicated(USER),
            User::replicated("waiting").with("replication_sync_timeout", LONG),
        ])
        .without_fifo()
        .without_socket()
        .test(|node| {
            let error = format!("open({}) failed: ", node.fifo_as_logged());
            node.expect_log(&error);
            node.expect_log("Couldn't send the final notification of ");
            node.expect_log("replication(waiting): Sync failure: ");
            let mut imap = node.imap(USER)?;
            append(&mut imap, "imap")?;
            imap.ok("SELECT INBOX")?;
            let uids = imap.ok("UID SEARCH ALL")?;
            check(uids.contains(&"* SEARCH 1".to_owned()), || {
                format!("{uids:?}")
            })?;
            imap.logout()?;
            node.wait_sessions_end(USER)?;
            let mut lmtp = node.lmtp()?;
            let start = Instant::now();
            lmtp.deliver(&[USER, "waiting"], &message("lmtp"))?;
            lmtp.quit()?;
            node.lda(USER, &message("lda"))?;
            node.lda("waiting", &message("lda"))?;
            let took = start.elapsed();
            // A socket that is not there is not waited for.
            check(took < 3 * AT_ONCE, || format!("deliveries took {took:?}"))?;
            messages(node, USER, 3)?;
            messages(node, "waiting", 2)?;
            // One per process: imap, lmtp, and lda twice.
            node.wait_no_process("imap")?;
            count_lines(node, &error, 4)?;
            Ok(())
        })
}

fn killed(builder: Builder<'_>) -> Outcome {
    builder.users([User::replicated(USER)]).test(|node| {
        node.expect_log("killed with signal 9");
        for round in 1..=5 {
            let mut imap = node.imap(USER)?;
            append(&mut imap, &format!("mail {round}"))?;
            let pids = node.session_pids(USER)?;
            node.kill(*pids.last().ok_or("no session")?)?;
            let came = high(&node.reader.lines_of(&[USER]));
            node.wait_sessions_end(USER)?;
            check(came == round, || {
                format!("lost: {round} mails were answered OK, {came} notifications came")
            })?;
        }
        Ok(())
    })
}

fn without_notify(builder: Builder<'_>) -> Outcome {
    builder
        .users([User::replicated(USER)])
        .mail_plugins("replication")
        .test(|node| {
            node.expect_log("Plugin notify must be loaded also");
            let refused = node.lda(USER, &message("one"));
            check(refused.is_err(), || "delivered without notify".to_owned())?;
            node.wait_log("Plugin notify must be loaded also")?;
            Ok(())
        })
}

fn socket_absent(builder: Builder<'_>) -> Outcome {
    builder
        .users([User::replicated(USER).with("replication_sync_timeout", LONG)])
        .without_socket()
        .test(|node| {
            let warning = format!("replication({USER}): Sync failure: ");
            node.expect_log(&warning);
            let mut imap = node.imap(USER)?;
            append(&mut imap, "one")?;
            append(&mut imap, "two")?;
            let lines = node.reader.lines_of(&[USER]);
            check(high(&lines) == 2, || format!("lost: {lines:?}"))?;
            // It comes later, as with a restarted Dovecot.
            node.reader.create_socket()?;
            append(&mut imap, "three")?;
            node.reader.wait_lines(USER, Via::Socket, 1)?;
            imap.logout()?;
            node.wait_sessions_end(USER)?;
            count_lines(node, &warning, 1)?;
            check(
                node.log_lines(&warning)
                    .iter()
                    .all(|line| line.contains("No such file")),
                || "the warning has no reason".to_owned(),
            )?;
            Ok(())
        })
}

fn warned_per_change(builder: Builder<'_>) -> Outcome {
    builder
        .users([User::replicated(USER).with("replication_sync_timeout", LONG)])
        .test(|node| {
            let warning = format!("replication({USER}): ");
            node.expect_log(&warning);
            let mut imap = node.imap(USER)?;
            for reply in [
                Reply::Bytes(b"-peer is away\n"),
                SUCCESS,
                Reply::Bytes(b"-peer is away\n"),
            ] {
                node.reader.answer(USER, reply);
                for subject in ["one", "two", "three"] {
                    append(&mut imap, subject)?;
                }
            }
            imap.logout()?;
            node.wait_sessions_end(USER)?;
            let warnings = node.log_lines(&warning);
            let warnings: Vec<_> = warnings
                .iter()
                .filter(|line| line.contains("Warning: "))
                .collect();
            check(warnings.len() == 2, || {
                format!("expected 2 warnings: {warnings:?}")
            })?;
            check(
                warnings.iter().all(|line| line.contains("peer is away")),
                || format!("no reason: {warnings:?}"),
            )?;
            check(high(&node.reader.lines_of(&[USER])) == 6, || {
                format!("lost: {:?}", node.reader.lines_of(&[USER]))
            })?;
            Ok(())
        })
}

fn lmtp_sync(builder: Builder<'_>) -> Outcome {
    let with = |name| User::replicated(name).with("replication_sync_timeout", LONG);
    builder
        .users([
            with("synced"),
            with("failed"),
            User::replicated("not-waiting"),
        ])
        .test(|node| {
            node.reader.answer("failed", Reply::Bytes(b"-no\n"));
            node.expect_log("replication(failed): Sync failure: no ");
            let mut lmtp = node.lmtp()?;
            lmtp.deliver(&["synced", "failed", "not-waiting"], &message("to all"))?;
            for (user, through_fifo) in [("synced", 0), ("failed", 1), ("not-waiting", 1)] {
                let lines = node.reader.lines_of(&[user]);
                check(high(&lines) == through_fifo, || {
                    format!("{user}: {lines:?}")
                })?;
                let asked = lines.iter().any(|line| line.via == Via::Socket);
                check(asked == (user != "not-waiting"), || {
                    format!("{user}: {lines:?}")
                })?;
            }
            lmtp.quit()?;
            Ok(())
        })
}

fn sync_clears_pending(builder: Builder<'_>) -> Outcome {
    builder
        .users([User::replicated(USER).with("replication_sync_timeout", LONG)])
        .test(|node| {
            let mut imap = node.imap(USER)?;
            append(&mut imap, "one")?;
            node.reader.forget(&[USER]);
            node.reader.fill_fifo()?;
            imap.ok("SELECT INBOX")?;
            imap.ok("STORE 1 +FLAGS (\\Flagged)")?;
            append(&mut imap, "two")?;
            node.reader.go_on_reading();
            imap.logout()?;
            node.wait_sessions_end(USER)?;
            let lines = node.reader.lines_of(&[USER]);
            let only_sync = lines.iter().all(|line| line.priority == Priority::Sync);
            check(only_sync && !lines.is_empty(), || {
                format!("the sync brought the flag over already: {lines:?}")
            })?;
            Ok(())
        })
}

/// What a reply on the socket is taken for.
struct Answer {
    user: &'static str,
    reply: Reply,
    /// In the one warning; `None`: the sync succeeded.
    warning: Option<&'static str>,
    /// Whether the whole timeout passes.
    times_out: bool,
}

const fn answer(user: &'static str, reply: Reply, warning: &'static str) -> Answer {
    Answer {
        user,
        reply,
        warning: Some(warning),
        times_out: false,
    }
}

const fn silence(user: &'static str, reply: Reply) -> Answer {
    Answer {
        times_out: true,
        ..answer(user, reply, "Timeout")
    }
}

const fn success(user: &'static str, reply: Reply) -> Answer {
    Answer {
        user,
        reply,
        warning: None,
        times_out: false,
    }
}

const PIECE: Duration = Duration::from_millis(100);
const FLOOD: &[u8] = &[b'x'; 65_536];

const ANSWERS: &[Answer] = &[
    success("plus", Reply::Bytes(b"+\n")),
    success("plus_then_eof", Reply::BytesThenEof(b"+\n")),
    success("plus_in_pieces", Reply::Slow(b"+\n", PIECE)),
    answer("minus", Reply::Bytes(b"-\n"), "Sync was refused"),
    answer(
        "minus_with_reason",
        Reply::Bytes(b"-no route to peer\n"),
        "no route to peer",
    ),
    answer("minus_in_pieces", Reply::Slow(b"-no\n", PIECE), "no"),
    answer("eof", Reply::BytesThenEof(b""), "EOF"),
    answer("half_a_line_then_eof", Reply::BytesThenEof(b"+"), "EOF"),
    answer("garbage", Reply::Bytes(b"hello\n"), "Invalid answer"),
    answer("empty_line", Reply::Bytes(b"\n"), "Invalid answer"),
    answer(
        "binary_garbage",
        Reply::Bytes(b"\xff\x00\xfe\n"),
        "Invalid answer",
    ),
    answer("flood_without_lf", Reply::Bytes(FLOOD), "too long"),
    silence("half_a_line", Reply::Bytes(b"+")),
    silence("never", Reply::Never),
    silence(
        "slow_writer",
        Reply::Slow(b"-this takes far too long\n", PIECE),
    ),
];

const TIMEOUT: Duration = Duration::from_secs(1);

fn replies(node: &Node, answer: &Answer) -> Outcome {
    let user = answer.user;
    let warning = format!("replication({user}): Sync failure: ");
    if answer.warning.is_some() {
        node.expect_log(&warning);
    }
    node.reader.answer(user, answer.reply.clone());
    let mut imap = node.imap(user)?;
    for subject in ["one", "two"] {
        let start = Instant::now();
        imap.append("INBOX", &message(subject))?;
        let took = start.elapsed();
        check(took < TIMEOUT + AT_ONCE, || format!("APPEND took {took:?}"))?;
        check(!answer.times_out || took >= TIMEOUT, || {
            format!("gave up after {took:?}")
        })?;
    }
    let lines = node.reader.lines_of(&[user]);
    let wanted = if answer.warning.is_some() { 2 } else { 0 };
    check(high(&lines) == wanted, || {
        format!("lost, or too many: {lines:?}")
    })?;
    let asked = lines.iter().filter(|line| line.via == Via::Socket).count();
    check(asked == 2, || format!("socket: {lines:?}"))?;
    let mailbox = imap.ok("STATUS INBOX (MESSAGES)")?;
    check(
        mailbox.iter().any(|line| line.contains("MESSAGES 2")),
        || format!("{mailbox:?}"),
    )?;
    imap.logout()?;
    node.wait_sessions_end(user)?;
    count_lines(node, &warning, usize::from(answer.warning.is_some()))?;
    let reason = answer.warning.unwrap_or_default();
    check(
        node.log_lines(&warning)
            .iter()
            .all(|line| line.contains(reason)),
        || format!("{reason:?} is not in {:?}", node.log_lines(&warning)),
    )
}

/// A value of `replication_sync_timeout`, as an admin writes it.
struct Value {
    user: &'static str,
    value: &'static str,
    /// How long the plugin waits for an answer that never comes; `None`: it does not ask.
    waits: Option<Duration>,
    is_error: bool,
}

const fn waits(user: &'static str, value: &'static str, millis: u64) -> Value {
    Value {
        user,
        value,
        waits: Some(Duration::from_millis(millis)),
        is_error: false,
    }
}

const fn off(user: &'static str, value: &'static str, is_error: bool) -> Value {
    Value {
        user,
        value,
        waits: None,
        is_error,
    }
}

const VALUES: &[Value] = &[
    waits("t_2", "2", 2000),
    waits("t_2s", "2s", 2000),
    waits("t_2_secs", "2 secs", 2000),
    waits("t_500ms", "500ms", 500),
    waits("t_1m", "1m", 60_000),
    off("t_0", "0", false),
    off("t_0s", "0s", false),
    off("t_word", "soon", true),
    off("t_negative", "-1", true),
    off("t_unit", "2 fortnights", true),
];

fn value(node: &Node, value: &Value, over: bool) -> Outcome {
    let user = value.user;
    let minutes = value
        .waits
        .is_some_and(|wait| wait > Duration::from_secs(10));
    // Nobody waits a minute here: an answer after three seconds shows that it is not the 1 s of `1`.
    node.reader.answer(
        user,
        if minutes {
            Reply::Slow(b"+\n", Duration::from_millis(1500))
        } else {
            Reply::Never
        },
    );
    let timeout = format!("replication({user}): Sync failure: Timeout");
    let series = node.target.series();
    // On 2.4 it is Dovecot's own error; it says nothing of the forms.
    let invalid = series.pick(
        format!(
            "replication({user}): Invalid replication_sync_timeout value: {}",
            value.value
        ),
        format!("Invalid replication_sync_timeout={}", value.value),
    );
    if value.waits.is_some() && !minutes {
        node.expect_log(&timeout);
    }
    if value.is_error {
        node.expect_log(&invalid);
    }
    let start = Instant::now();
    let took = if over {
        let mut command = node.lda_command(user);
        let name = series.pick(
            "plugin/replication_sync_timeout",
            "replication_sync_timeout",
        );
        let setting = format!("{name}={}", value.value);
        command.args(["-o", &setting]);
        let output = node.run(command, message("one").as_bytes())?;
        check(output.status.success(), || format!("{output:?}"))?;
        start.elapsed()
    } else {
        let mut imap = node.imap(user)?;
        imap.append("INBOX", &message("one"))?;
        let took = start.elapsed();
        imap.logout()?;
        node.wait_sessions_end(user)?;
        took
    };
    let lines = node.reader.lines_of(&[user]);
    let asked = lines.iter().filter(|line| line.via == Via::Socket).count();
    check(asked == usize::from(value.waits.is_some()), || {
        format!("asked {asked} times: {lines:?}")
    })?;
    check(high(&lines) == usize::from(!minutes), || {
        format!("lost: {lines:?}")
    })?;
    let (least, most) = match value.waits {
        Some(_) if minutes => (Duration::from_secs(3), Duration::from_secs(9)),
        Some(wait) => (wait, wait + 2 * AT_ONCE),
        None => (Duration::ZERO, 2 * AT_ONCE),
    };
    check(took >= least && took < most, || format!("took {took:?}"))?;
    if value.is_error {
        let errors = node.log_lines(&invalid);
        let forms = |line: &&String| {
            let named = series.pick(["2s", "500ms", "0 is off"], [user; 3]);
            named.iter().all(|form| line.contains(form))
        };
        check(
            errors.len() == 1 && errors.iter().all(|e| forms(&e)),
            || format!("one error with the accepted forms: {errors:?}"),
        )?;
    }
    messages(node, user, 1)
}

fn valgrind(builder: Builder<'_>) -> Outcome {
    let waiting = User::replicated("waiting").with("replication_sync_timeout", "1s");
    builder
        .users([User::replicated(USER), waiting])
        .valgrind()
        .test(|node| {
            node.expect_log("replication(waiting): Sync failure: ");
            node.reader.answer("waiting", Reply::Bytes(b"-no\n"));
            for user in [USER, "waiting"] {
                let mut imap = node.imap(user)?;
                imap.append("INBOX", &message("one"))?;
                imap.append("INBOX", &message("two"))?;
                imap.ok("CREATE Box")?;
                imap.ok("SUBSCRIBE Box")?;
                imap.ok("SELECT INBOX")?;
                imap.ok("STORE 1:2 +FLAGS (\\Seen work)")?;
                imap.ok("COPY 1 Box")?;
                // What waits in the process is given back, too.
                node.reader.fill_fifo()?;
                imap.ok("MOVE 2 Box")?;
                imap.ok("RENAME Box Other")?;
                imap.ok("DELETE Other")?;
                imap.logout()?;
                node.wait_sessions_end(user)?;
                node.reader.go_on_reading();
                let lda = node.run(node.lda_under_valgrind(user), message("three").as_bytes())?;
                check(lda.status.success(), || format!("{lda:?}"))?;
            }
            let reports = node.valgrind_reports()?;
            check(reports.len() >= 4, || format!("{} reports", reports.len()))?;
            // One block per error or leak; the only Rust in the process is ours.
            let ours = [".rs:", "lib20_replication", "replication_shim"];
            let blocks = reports.iter().flat_map(|report| report.split("== \n"));
            let ours: Vec<_> = blocks
                .filter(|block| ours.iter().any(|mark| block.contains(mark)))
                .collect();
            check(ours.is_empty(), || ours.join("\n"))
        })
}

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for target in Target::all() {
        for case in CASES {
            let its = target.clone();
            match (&case.stock, target.is_ours()) {
                (_, true) | (Stock::Passes, false) => {
                    trials.push(trial(&target, case.name, move || {
                        (case.run)(Node::of(&its))
                    }));
                }
                (Stock::NotAsked, false) => {}
                (Stock::Fails(reason), false) => {
                    let name = format!("defect/{}", case.name);
                    trials.push(trial(&target, &name, move || {
                        let failed = (case.run)(Node::of(&its).lenient());
                        let failed = failed.err().ok_or("stock has the defect no longer")?;
                        let message = failed.message().unwrap_or("?");
                        check(message.contains(reason), || {
                            format!("{reason:?} was to be the reason: {message}")
                        })
                    }));
                }
            }
        }
        if !target.is_ours() {
            continue;
        }
        let its = target.clone();
        let shared = Shared::new(format!("{}/node_of_replies", target.name()), move || {
            let answers = ANSWERS.iter().map(|answer| answer.user);
            let users =
                answers.map(|user| User::replicated(user).with("replication_sync_timeout", "1s"));
            Node::of(&its).users(users).start()
        });
        for answer in ANSWERS {
            let shared = shared.clone();
            let name = format!("reply/{}", answer.user);
            trials.push(trial(&target, &name, move || {
                replies(shared.node()?, answer)
            }));
        }
        let its = target.clone();
        let shared = Shared::new(format!("{}/node_of_timeouts", target.name()), move || {
            let over = VALUES.iter().map(|value| User::replicated(value.user));
            Node::of(&its).users(over).start()
        });
        // With a value that makes no sense 2.4 does not start at all; tests/settings.rs looks at that.
        let is_refused = |value: &&Value| value.is_error || value.value == "2";
        let on_2_4 = target.series() == Series::V2_4;
        for its in VALUES.iter().filter(|value| !(on_2_4 && is_refused(value))) {
            let shared = shared.clone();
            let name = format!("sync_timeout/setting/{}", its.value);
            trials.push(trial(&target, &name, move || {
                value(shared.node()?, its, true)
            }));
        }
        let its = target.clone();
        let shared = Shared::new(format!("{}/node_of_userdb", target.name()), move || {
            let users = VALUES.iter().map(|value| {
                User::replicated(value.user).with("replication_sync_timeout", value.value)
            });
            Node::of(&its).users(users).start()
        });
        // The passwd-file takes no space.
        for its in VALUES.iter().filter(|value| !value.value.contains(' ')) {
            let shared = shared.clone();
            let name = format!("sync_timeout/userdb/{}", its.value);
            trials.push(trial(&target, &name, move || {
                value(shared.node()?, its, false)
            }));
        }
        let its = target.clone();
        let has = target
            .outside(std::path::Path::new("/usr/bin/valgrind"))
            .exists();
        let clean = trial(&target, "valgrind_finds_nothing_of_ours", move || {
            valgrind(Node::of(&its))
        });
        trials.push(if has {
            clean
        } else {
            clean.with_kind("no valgrind").with_ignored_flag(true)
        });
    }
    run(trials)
}
