//! The doveadm module on Dovecot 2.4: `doveadm replicator` prints what stock 2.3's prints for the same bytes, and a stock peer of
//! 2.3 with its default `sync -d -N -l 30 -U` is at home.
//!
//! The replicator is a socket that answers as told; only root may open it, as in the documentation's configuration.

mod harness;

use harness::run::{main as run, trial};
use harness::{DoveadmNode, Implementation, Outcome, PATIENCE, Series, Target, check, wait_for};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{ExitCode, Output};
use std::time::Instant;

const FORMATS: [&[&str]; 6] = [
    &[],
    &["-f", "table"],
    &["-f", "tab"],
    &["-f", "json"],
    &["-f", "flow"],
    &["-f", "pager"],
];

const COUNTERS: &str = "Queued 'sync' requests\t0\nQueued 'high' requests\t12\nQueued 'low' requests\t0\n\
     Queued 'failed' requests\t0\nQueued 'full resync' requests\t1\nWaiting 'failed' requests\t0\n\
     Total number of known users\t1000000\n\n";

/// Arguments after `replicator`, and what the replicator answers.
type Exchange = (&'static [&'static str], &'static str);

/// Stock prints the same for them on all versions of 2.3.
const AS_STOCK: [Exchange; 14] = [
    (&["status"], COUNTERS),
    (&["status"], "\n"),
    (
        &["dsync-status"],
        "u1\tfull\tWaiting for dsync to finish\n \t-\tNot connected\nodd\x01tname\tnormal\tIdle\n\n",
    ),
    (&["dsync-status"], "\n"),
    (&["replicate", "u*"], "+12\n"),
    (&["replicate", "-f", "-p", "high", "u\t*"], "+0\n"),
    (&["replicate", "-p", "urgent", "u*"], "-Unknown priority\n"),
    (&["replicate", "u*"], ""),
    (&["add", "u*"], "+\n"),
    (&["add", "u1"], "-User not found\n"),
    (&["add", "u1"], ""),
    (&["remove", "u1"], "+\n"),
    (&["remove", "u1"], "-User not found\n"),
    (&["remove", "u1"], ""),
];

/// Lines with too few fields; the table of 2.4.5 itself shows an empty value as `-`.
const SHORT_AS_STOCK: [Exchange; 2] = [
    (&["status"], "A label without a value\n\n"),
    (&["dsync-status"], "u1\nu2\tnormal\n\n"),
];

/// The same of `show` and `peers`, by our own module on 2.3.
const AS_OURS: [Exchange; 4] = [
    (
        &["show", "u1"],
        "u1\t1\ttcp:b:1\thigh\t0\t0\t0\t0\t3\tNo route to host\t7\t0\tretry\n\n",
    ),
    (&["show", "nobody"], "-User not found\n"),
    (&["show", "u1"], ""),
    (
        &["peers"],
        "tcp:b:1\tdown\t0\t2\tConnection refused\t5\t9\tnode-a\n\n",
    ),
];

/// Times that are never, so that nothing depends on the clock.
const USERS: &str = "u1\thigh\t0\t0\t0\t0\t7\nlong.name@example.org\tnone\t0\t0\t1\t0\t3700\n\
     odd\tnone\tsoon\t0\t0\t0\t0\n\n";

/// What 2.3.20 and later print for them.
const USERS_TABLE: &str = "\
username              priority fast sync full sync success sync failed next sync secs\n\
u1                    high     -         -         -            -      00:00:07 \n\
long.name@example.org none     -         -         -            y      01:01:40 \n";

fn is(target: &Target, version: &str, implementation: Implementation) -> bool {
    target.version == version && target.implementation == implementation
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the command against the answer.
fn replicator(
    node: &DoveadmNode,
    format: &[&str],
    (arguments, answer): Exchange,
) -> Outcome<(Output, Vec<String>)> {
    node.replicator.answer(answer);
    let all = [format, &["replicator"], arguments].concat();
    let output = node.doveadm(&all, "")?;
    Ok((output, node.replicator.requests()))
}

/// The same bytes lead to the same output, exit code and messages, and are asked for with the same bytes.
fn prints_the_same(target: &Target, other: &Target, exchanges: &[Exchange]) -> Outcome {
    let ours = DoveadmNode::prepare(target, "ours")?;
    let theirs = DoveadmNode::prepare(other, "theirs")?;
    // A name that differs is not what is compared.
    let messages = |node: &DoveadmNode, output: &Output| {
        let conf = node.dovecot_conf();
        let dir = conf.trim_end_matches("/dovecot.conf");
        text(&output.stderr).replace(dir, "DIR")
    };
    let mut wrong = Vec::new();
    for &exchange in exchanges {
        for format in FORMATS {
            let (our, our_requests) = replicator(&ours, format, exchange)?;
            let (their, their_requests) = replicator(&theirs, format, exchange)?;
            let our = (
                our.status.code(),
                text(&our.stdout),
                messages(&ours, &our),
                our_requests,
            );
            let their = (
                their.status.code(),
                text(&their.stdout),
                messages(&theirs, &their),
                their_requests,
            );
            if our != their {
                wrong.push(format!("{format:?} {exchange:?}:\n  {our:?}\n  {their:?}"));
            }
        }
    }
    check(wrong.is_empty(), || wrong.join("\n"))
}

/// Each line of the seven columns is stock 2.3.19's line of six with one more field.
fn users_have_seven_columns(target: &Target, stock: &Target) -> Outcome {
    let ours = DoveadmNode::prepare(target, "ours")?;
    let theirs = DoveadmNode::prepare(stock, "theirs")?;
    let exchange: Exchange = (&["status", "*"], USERS);
    let (table, requests) = replicator(&ours, &[], exchange)?;
    check(text(&table.stdout) == USERS_TABLE, || text(&table.stdout))?;
    check(requests == ["STATUS\t*\n"], || format!("{requests:?}"))?;
    let mut wrong = Vec::new();
    for (format, seventh) in [
        ("tab", ["\tnext sync secs", "\t00:00:07", "\t01:01:40"]),
        (
            "json",
            [
                "",
                ",\"next sync secs\":\"00:00:07\"",
                ",\"next sync secs\":\"01:01:40\"",
            ],
        ),
        (
            "flow",
            ["", " next sync secs=00:00:07", " next sync secs=01:01:40"],
        ),
        (
            "pager",
            [
                "",
                "next sync secs: 00:00:07\n",
                "next sync secs: 01:01:40\n",
            ],
        ),
    ] {
        let (our, _) = replicator(&ours, &["-f", format], exchange)?;
        let (their, _) = replicator(&theirs, &["-f", format], exchange)?;
        let (our, their) = (text(&our.stdout), text(&their.stdout));
        let has_all = seventh.iter().all(|field| our.contains(field));
        let six = seventh
            .iter()
            .fold(our.clone(), |shown, field| shown.replacen(field, "", 1));
        if !has_all || six != their {
            wrong.push(format!("{format}: {our:?}\n  {their:?}"));
        }
    }
    check(wrong.is_empty(), || wrong.join("\n"))
}

/// A listing that breaks off is an error that scripts see; on 2.3 only one of the three is.
fn broken_off_listing_is_75(target: &Target) -> Outcome {
    let node = DoveadmNode::prepare(target, "ours")?;
    for (exchange, printed) in [
        (
            (&["status"][..], "Queued 'sync' requests\t3\n"),
            "Queued 'sync' requests 3",
        ),
        ((&["status", "*"][..], "u1\tnone\t0\t0\t0\t0\t1\n"), "u1"),
        ((&["dsync-status"][..], "u1\tfull\tIdle\n"), "u1"),
        ((&["dsync-status"][..], ""), "username"),
    ] {
        let (output, _) = replicator(&node, &[], exchange)?;
        check(
            output.status.code() == Some(75)
                && text(&output.stdout).contains(printed)
                && text(&output.stderr).contains("Replicator disconnected unexpectedly"),
            || format!("{exchange:?}: {output:?}"),
        )?;
    }
    Ok(())
}

fn wrong_usage_is_64_and_no_replicator_75(target: &Target) -> Outcome {
    let node = DoveadmNode::prepare(target, "ours")?;
    for (arguments, usage) in [
        (
            &["replicate"][..],
            "doveadm replicator replicate [-a <replicator socket path>] [-f] [-p <priority>] <user mask>\n",
        ),
        (
            &["add"][..],
            "doveadm replicator add [-a <replicator socket path>] <user mask>\n",
        ),
        (
            &["remove"][..],
            "doveadm replicator remove [-a <replicator socket path>] <username>\n",
        ),
        (
            &["show"][..],
            "doveadm replicator show [-a <replicator socket path>] <user>\n",
        ),
    ] {
        let (output, requests) = replicator(&node, &[], (arguments, "+\n"))?;
        check(
            output.status.code() == Some(64)
                && text(&output.stderr) == usage
                && requests.is_empty(),
            || format!("{arguments:?}: {output:?} {requests:?}"),
        )?;
    }
    for arguments in [
        &["status", "-a", "/nowhere/replicator-doveadm"][..],
        &["status", "-a", "/nowhere/replicator-doveadm", "*"],
        &["dsync-status", "-a", "/nowhere/replicator-doveadm"],
        &["replicate", "-a", "/nowhere/replicator-doveadm", "*"],
    ] {
        let (output, _) = replicator(&node, &[], (arguments, "+\n"))?;
        let wanted =
            "net_connect_unix(/nowhere/replicator-doveadm) failed: No such file or directory";
        check(
            output.status.code() == Some(75) && text(&output.stderr).contains(wanted),
            || format!("{arguments:?}: {output:?}"),
        )?;
    }
    Ok(())
}

fn http_api_has_all_commands(target: &Target) -> Outcome {
    let mut node = DoveadmNode::prepare(target, "ours")?;
    node.start()?;
    for (answer, call, wanted, request) in [
        (
            "Queued 'sync' requests\t0\nTotal number of known users\t2\n\n",
            r#"["replicatorStatus",{},"t"]"#,
            r#"["doveadmResponse",[{"field":"Queued 'sync' requests","value":"0"},{"field":"Total number of known users","value":"2"}],"t"]"#,
            "STATUS\n",
        ),
        (
            "u1\thigh\t0\t0\t0\t0\t7\n\n",
            r#"["replicatorStatus",{"userMask":"*"},"t"]"#,
            r#"["doveadmResponse",[{"username":"u1","priority":"high","fast sync":"-","full sync":"-","success sync":"-","failed":"-","next sync secs":"00:00:07"}],"t"]"#,
            "STATUS\t*\n",
        ),
        (
            "u1\tfull\tIdle\n\n",
            r#"["replicatorDsyncStatus",{},"t"]"#,
            r#"["doveadmResponse",[{"username":"u1","type":"full","status":"Idle"}],"t"]"#,
            "STATUS-DSYNC\n",
        ),
        (
            "+3\n",
            r#"["replicatorReplicate",{"userMask":"u*","priority":"high","fullSync":true},"t"]"#,
            r#"["doveadmResponse",[{"result":"3 users updated"}],"t"]"#,
            "REPLICATE\thigh\tf\tu*\n",
        ),
        (
            "+\n",
            r#"["replicatorAdd",{"userMask":"u*"},"t"]"#,
            r#"["doveadmResponse",[],"t"]"#,
            "ADD\tu*\n",
        ),
        (
            "-User not found\n",
            r#"["replicatorRemove",{"user":"u1"},"t"]"#,
            r#"["error",{"type":"exitCode","exitCode":64},"t"]"#,
            "REMOVE\tu1\n",
        ),
        (
            "u1\t1\ttcp:b:1\n\n",
            r#"["replicatorShow",{"user":"u1"},"t"]"#,
            r#"["doveadmResponse",[{"username":"u1","replica":"1","target":"tcp:b:1","priority":"","pending":"","fast sync":"","full sync":"","success sync":"","failures":"","reason":"","next sync":"","syncing":"","state":""}],"t"]"#,
            "SHOW\tu1\n",
        ),
        (
            "tcp:b:1\tup\t5\t0\n\n",
            r#"["replicatorPeers",{},"t"]"#,
            r#"["doveadmResponse",[{"target":"tcp:b:1","state":"up","since":"5","users waiting":"0","reason":"","next probe":"","users":"","same host name":""}],"t"]"#,
            "PEERS\n",
        ),
    ] {
        node.replicator.answer(answer);
        let said = node.http(&format!("[{call}]"))?;
        let requests = node.replicator.requests();
        check(
            said == format!("[{wanted}]") && requests == [request],
            || format!("{call}: {said} {requests:?}"),
        )?;
    }
    // Without its parameter it is an error, not the end of the worker.
    node.replicator.answer("+\n");
    let said = node.http(r#"[["replicatorAdd",{},"a"],["replicatorAdd",{"userMask":"u"},"b"]]"#)?;
    check(
        said == r#"[["error",{"type":"exitCode","exitCode":64},"a"],["doveadmResponse",[],"b"]]"#,
        || said.clone(),
    )?;
    node.finish(&[
        "Replicator failed: User not found",
        "Usage: doveadm replicator add",
    ])
}

/// Our node of 2.4 and a stock one of 2.3, each the other's `mail_replica`, both started.
fn pair(ours: &Target, stock: &Target, extra: &str) -> Outcome<(DoveadmNode, DoveadmNode)> {
    let mut our = DoveadmNode::prepare(ours, "node-ours")?;
    let mut peer = DoveadmNode::prepare(stock, "node-stock")?;
    let marked = format!(
        "userdb_mail_replica={} userdb_noreplicate=",
        peer.location()
    );
    let users = [
        ("u1", ""),
        ("u2", ""),
        ("marked", marked.as_str()),
        ("alone", "userdb_mail_replica="),
    ];
    our.configure(
        &users,
        &format!("mail_replica = {}\n{extra}", peer.location()),
    )?;
    let users = users.map(|(name, _)| (name, ""));
    let plugin = format!("plugin {{\n  mail_replica = {}\n}}\n", our.location());
    let both = [&users[..], &[("only-here", "")]].concat();
    peer.configure(&both, &plugin)?;
    our.start()?;
    peer.start()?;
    Ok((our, peer))
}

/// A mailbox that came to be on both sides on its own is another story: they get it from each other.
fn with_common_inbox(ours: &DoveadmNode, user: &str) -> Outcome {
    ours.save(user, "first")?;
    ours.ok(&["sync", "-u", user, "-d", "-N"], "").map(drop)
}

/// Two mails where ours has one new: without a state dsync takes a mailbox for unchanged whose next UID and modification sequence
/// are the same on both sides.
fn write_on_peer(peer: &DoveadmNode, user: &str) -> Outcome {
    peer.save(user, "from stock")?;
    peer.save(user, "more from stock")
}

/// What is in the mailbox then.
const MERGED: [&str; 4] = ["first", "from ours", "from stock", "more from stock"];

/// What a stock peer's doveadm-server says of a user whom ours does not take: 2.3.13 has no word for it.
fn nouser(stock: &Target) -> &'static str {
    if stock.version == "2.3.13" {
        "-"
    } else {
        "-NOUSER"
    }
}

/// As stock's replicator of 2.3 asks for it.
const DEFAULT_DSYNC: [&str; 7] = ["-d", "-N", "-l", "30", "-U", "-s", ""];

fn wait_notify(node: &DoveadmNode, user: &str) -> Outcome {
    node.replicator
        .wait_request(&format!("NOTIFY\t{user}\t\t\n"))
}

fn default_dsync_of_a_peer(target: &Target, stock: &Target) -> Outcome {
    let (ours, peer) = pair(target, stock, "")?;
    with_common_inbox(&ours, "u1")?;
    ours.save("u1", "from ours")?;
    write_on_peer(&peer, "u1")?;
    let result = peer.sync("u1", &DEFAULT_DSYNC)?;
    check(result == "+", || {
        format!("{result}: {}{}", peer.log(), ours.log())
    })?;
    for node in [&ours, &peer] {
        let subjects = node.subjects("u1")?;
        check(subjects == MERGED, || format!("{subjects:?}"))?;
    }
    wait_notify(&ours, "u1")?;
    // By the administrator, on the command line.
    ours.save("u2", "second")?;
    peer.ok(&["sync", "-u", "u2", "-d", "-N", "-l", "30", "-U"], "")?;
    check(peer.subjects("u2")? == ["second"], || {
        "u2 differs".to_owned()
    })?;
    wait_notify(&ours, "u2")?;
    // A peer on 2.4 gives no `-U`: a sync without it is told too.
    ours.replicator.answer("");
    peer.ok(&["sync", "-u", "u1", "-d", "-N"], "")?;
    wait_notify(&ours, "u1")?;
    let requests = ours.replicator.requests();
    check(requests.len() == 1, || format!("{requests:?}"))?;
    peer.finish(&[])?;
    ours.finish(&[])
}

fn syncs_to_a_peer(target: &Target, stock: &Target) -> Outcome {
    let (ours, peer) = pair(target, stock, "")?;
    with_common_inbox(&ours, "u1")?;
    ours.save("u1", "from ours")?;
    write_on_peer(&peer, "u1")?;
    let location = peer.location();
    let named = ["-N", "-l", "30", "-s", "", location.as_str()];
    for arguments in [&named[..], &DEFAULT_DSYNC] {
        let result = ours.sync("u1", arguments)?;
        check(result == "+", || {
            format!("{arguments:?}: {result}: {}{}", ours.log(), peer.log())
        })?;
        for node in [&ours, &peer] {
            let subjects = node.subjects("u1")?;
            check(subjects == MERGED, || {
                format!("{arguments:?}: {subjects:?}")
            })?;
        }
    }
    // `-d` takes each user's own, and there may be none.
    ours.save("u2", "second")?;
    ours.ok(&["sync", "-u", "u2", "-d", "-N"], "")?;
    check(peer.subjects("u2")? == ["second"], || {
        "u2 differs".to_owned()
    })?;
    let output = ours.doveadm(&["sync", "-u", "alone", "-d", "-N"], "")?;
    check(
        output.status.code() == Some(68)
            && text(&output.stderr).contains("User has no mail_replica in userdb"),
        || format!("{output:?}"),
    )?;
    let result = ours.sync("alone", &DEFAULT_DSYNC)?;
    check(result == "-NOTFOUND", || result.clone())?;
    peer.finish(&[])?;
    ours.finish(&["User has no mail_replica in userdb"])
}

fn marked_user_is_answered_without_harm(target: &Target, stock: &Target) -> Outcome {
    // One worker serves all, so that what one user does to it would be seen by the next.
    let one = "service doveadm {\n  process_limit = 1\n  restart_request_count = unlimited\n}\n";
    let (ours, peer) = pair(target, stock, one)?;
    for (user, wanted) in [
        ("u1", "+"),
        ("marked", nouser(stock)),
        ("u2", "+"),
        ("only-here", nouser(stock)),
        ("u1", "+"),
    ] {
        let result = peer.sync(user, &DEFAULT_DSYNC)?;
        check(result == wanted, || {
            format!("{user}: {result}: {}{}", peer.log(), ours.log())
        })?;
    }
    let result = ours.sync("marked", &DEFAULT_DSYNC)?;
    check(result == "-NOUSER", || format!("ours: {result}"))?;
    // An administrator may.
    ours.save("marked", "by hand")?;
    peer.ok(&["sync", "-u", "marked", "-d", "-N"], "")?;
    check(peer.subjects("marked")? == ["by hand"], || {
        "marked differs".to_owned()
    })?;
    let wanted = ["u1", "u2", "u1", "marked"].map(|user| format!("NOTIFY\t{user}\t\t\n"));
    wait_for("four NOTIFY", PATIENCE, || {
        Ok((ours.replicator.requests().len() >= 4).then_some(()))
    })?;
    let requests = ours.replicator.requests();
    check(requests == wanted, || format!("{requests:?}"))?;
    peer.finish(&["Unknown user in remote", "User doesn't exist"])?;
    // A client may come before the one worker has seen the end of the one before.
    ours.finish(&["User doesn't exist", "client_limit (1) reached"])
}

fn globally_marked(target: &Target, stock: &Target) -> Outcome {
    let (ours, peer) = pair(target, stock, "noreplicate = yes\n")?;
    let result = peer.sync("u1", &DEFAULT_DSYNC)?;
    check(result == nouser(stock), || {
        format!("{result}: {}", ours.log())
    })?;
    peer.finish(&["Unknown user in remote"])?;
    ours.finish(&[])
}

/// Why there is this module: for every user, on 2.4 as it is.
fn stock_refuses_default_dsync(target: &Target, stock: &Target) -> Outcome {
    let mut node = DoveadmNode::prepare(target, "node-2-4")?;
    let mut peer = DoveadmNode::prepare(stock, "node-2-3")?;
    node.configure(&[("u1", "")], "")?;
    let plugin = format!("plugin {{\n  mail_replica = {}\n}}\n", node.location());
    peer.configure(&[("u1", "")], &plugin)?;
    node.start()?;
    peer.start()?;
    let result = peer.sync("u1", &DEFAULT_DSYNC)?;
    check(result == "-USAGE", || format!("{result}: {}", peer.log()))?;
    peer.finish(&["Unexpected or incomplete option: -U", "Remote exit_code=64"])?;
    node.finish(&[
        "Unexpected or incomplete option: -U",
        "invalid option -- 'U'",
    ])
}

/// From root's command line, as `remote:` runs it, where privileges are dropped for good.
fn command_line_notifies(target: &Target, stock: &Target) -> Outcome {
    let (ours, peer) = pair(target, stock, "")?;
    ours.save("u1", "a mail")?;
    let conf = ours.dovecot_conf();
    let remote = format!("doveadm -c {conf} dsync-server -u u2 -U");
    ours.ok(&["sync", "-u", "u1", &remote], "")?;
    check(ours.subjects("u2")? == ["a mail"], || ours.log())?;
    wait_notify(&ours, "u2")?;
    peer.finish(&[])?;
    ours.finish(&[])
}

/// A peer that says nothing by itself, and where it is.
fn silent_peer() -> Outcome<(TcpListener, String)> {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let location = format!("tcp:{}", silent.local_addr()?);
    Ok((silent, location))
}

/// The node still syncs, and nothing was logged on either.
fn serves_again(ours: DoveadmNode, peer: DoveadmNode) -> Outcome {
    check(ours.sync("u1", &DEFAULT_DSYNC)? == "+", || ours.log())?;
    peer.finish(&[])?;
    ours.finish(&[])
}

/// A peer that greets and then says nothing holds a sync for ten minutes; the replicator's hang-up ends it.
fn hanging_sync_ends(target: &Target, stock: &Target) -> Outcome {
    let (ours, peer) = pair(target, stock, "")?;
    let (silent, location) = silent_peer()?;
    let mut sync = ours.begin_sync("u1", &["-N", "-l", "30", "-s", "", &location])?;
    let (connection, _) = silent.accept()?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut connection = BufReader::new(connection);
    connection
        .get_mut()
        .write_all(b"VERSION\tdoveadm-client\t1\t2\n+\n")?;
    let mut command = String::new();
    while !command.contains("\tdsync-server\t") {
        command.clear();
        let read = connection.read_line(&mut command)?;
        check(read > 0, || {
            format!("the sync ended at once: {}", ours.log())
        })?;
    }
    DoveadmNode::give_up(&sync)?;
    let began = Instant::now();
    let mut answer = Vec::new();
    sync.read_to_end(&mut answer)?;
    connection.read_to_end(&mut Vec::new())?;
    check(answer.is_empty() && began.elapsed() < PATIENCE, || {
        format!("{:?}: {:?}", began.elapsed(), text(&answer))
    })?;
    serves_again(ours, peer)
}

/// It would go on to its end at SIGTERM, and the master would log a SIGKILL.
fn sync_ends_at_once_when_told(target: &Target, stock: &Target) -> Outcome {
    let (ours, peer) = pair(target, stock, "")?;
    let (silent, location) = silent_peer()?;
    let mut sync = ours.begin_sync("u1", &["-N", "-l", "30", "-s", "", &location])?;
    let (mut connection, _) = silent.accept()?;
    let workers = ours.workers()?;
    let [worker] = workers.as_slice() else {
        return Err(format!("workers: {workers:?}").into());
    };
    let worker = Pid::from_raw(*worker).ok_or("a pid")?;
    kill_process(worker, Signal::USR2)?;
    let mut answer = Vec::new();
    sync.read_to_end(&mut answer)?;
    connection.read_to_end(&mut Vec::new())?;
    check(answer.is_empty(), || text(&answer))?;
    serves_again(ours, peer)
}

fn sync_that_nobody_waits_for_does_not_begin(target: &Target, stock: &Target) -> Outcome {
    let (ours, peer) = pair(target, stock, "")?;
    let (silent, location) = silent_peer()?;
    silent.set_nonblocking(true)?;
    let answer = ours.abandoned_sync("u1", &["-N", "-l", "30", "-s", "", &location])?;
    check(answer.contains("-TEMPFAIL"), || answer.clone())?;
    check(silent.accept().is_err(), || {
        "the peer was called".to_owned()
    })?;
    serves_again(ours, peer)
}

/// What a trial does on our target with one of 2.3.
type Case = fn(&Target, &Target) -> Outcome;

/// Skipped where one of the two is missing.
fn mixed_trial(target: &Target, other: Target, name: &str, case: Case) -> Trial {
    let mut target = target.clone();
    target.missing = target.missing.or_else(|| other.missing.clone());
    let its = target.clone();
    trial(&target, name, move || case(&its, &other))
}

fn main() -> ExitCode {
    let mut trials = Vec::new();
    let mut bare_trials = Vec::new();
    let staged = Target::all_staged();
    let find = |version, implementation| {
        staged
            .iter()
            .find(|target| is(target, version, implementation))
            .cloned()
    };
    for target in &staged {
        if target.series() != Series::V2_4 {
            continue;
        }
        let mut add = |name: String, other: Option<Target>, case: Case| {
            let Some(other) = other else { return };
            trials.push(mixed_trial(target, other, &name, case));
        };
        for release in ["2.3.19.1", "2.3.13"] {
            let stock = find(release, Implementation::Stock);
            let cases: [(&str, Case); 9] = [
                ("prints_what_stock_prints", |ours, stock| {
                    prints_the_same(ours, stock, &AS_STOCK)?;
                    match ours.version.as_str() {
                        "2.4.1" => prints_the_same(ours, stock, &SHORT_AS_STOCK),
                        _ => Ok(()),
                    }
                }),
                (
                    "default_dsync_of_a_stock_peer_is_accepted_and_told",
                    default_dsync_of_a_peer,
                ),
                ("syncs_to_a_stock_peer", syncs_to_a_peer),
                (
                    "marked_user_is_answered_without_harm",
                    marked_user_is_answered_without_harm,
                ),
                (
                    "user_marked_for_all_is_answered_without_harm",
                    globally_marked,
                ),
                (
                    "dsync_server_of_a_command_line_is_told",
                    command_line_notifies,
                ),
                (
                    "hanging_sync_ends_when_its_client_gives_up",
                    hanging_sync_ends,
                ),
                ("sync_ends_at_once_when_told", sync_ends_at_once_when_told),
                (
                    "sync_that_nobody_waits_for_does_not_begin",
                    sync_that_nobody_waits_for_does_not_begin,
                ),
            ];
            for (name, case) in cases {
                add(format!("{name}_{release}"), stock.clone(), case);
            }
        }
        let stock = find("2.3.19.1", Implementation::Stock);
        if let Some(other) = stock.clone() {
            let bare = Target {
                implementation: Implementation::Stock,
                lib: None,
                ..target.clone()
            };
            let name = "refuses_the_default_dsync_of_a_peer";
            bare_trials.push(mixed_trial(&bare, other, name, stock_refuses_default_dsync));
        }
        let our_2_3 = find("2.3.19.1", Implementation::Ours);
        add(
            "shows_what_ours_of_2.3_shows".to_owned(),
            our_2_3,
            |ours, other| prints_the_same(ours, other, &AS_OURS),
        );
        let cases: [(&str, Case); 4] = [
            (
                "users_have_the_seven_columns_of_2.3.20",
                users_have_seven_columns,
            ),
            ("broken_off_listing_is_75", |ours, _| {
                broken_off_listing_is_75(ours)
            }),
            ("wrong_usage_is_64_and_no_replicator_75", |ours, _| {
                wrong_usage_is_64_and_no_replicator_75(ours)
            }),
            ("http_api_has_all_commands", |ours, _| {
                http_api_has_all_commands(ours)
            }),
        ];
        for (name, case) in cases {
            add(name.to_owned(), stock.clone(), case);
        }
    }
    trials.extend(bare_trials);
    run(trials)
}
