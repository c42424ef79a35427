//! `doveadm replicator verify` on real pairs: what differs is told, what is equal is not, and nothing that it looks at changes.

mod harness;

use harness::client::message;
use harness::compare::picture;
use harness::ports::Port;
use harness::run::{main as run, trial};
use harness::{Implementation, Node, Outcome, Pair, Target, User, check, wait_for};
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{ExitCode, Output, Stdio};
use std::time::Duration;

const USERS: [&str; 2] = ["u1", "u2"];
const PATIENCE: Duration = Duration::from_secs(60);

/// Which releases look at which, and whose replication.
const PAIRS: [[(&str, Implementation); 2]; 7] = [
    [
        ("2.3.19.1", Implementation::Ours),
        ("2.3.19.1", Implementation::Ours),
    ],
    [
        ("2.4.1", Implementation::Ours),
        ("2.4.1", Implementation::Ours),
    ],
    [
        ("2.3.19.1", Implementation::Ours),
        ("2.4.1", Implementation::Ours),
    ],
    [
        ("2.4.1", Implementation::Ours),
        ("2.3.19.1", Implementation::Stock),
    ],
    [
        ("2.3.19.1", Implementation::Ours),
        ("2.3.19.1", Implementation::Stock),
    ],
    [
        ("2.3.13", Implementation::Ours),
        ("2.3.13", Implementation::Stock),
    ],
    [
        ("2.4.5", Implementation::Ours),
        ("2.4.1", Implementation::Ours),
    ],
];

/// A pair that is not told of changes: only an order to the first node syncs. Two replicators that sync a new user at
/// once may give a mailbox two GUIDs.
fn quiet_pair(a: &Target, b: &Target, config: &str) -> Outcome<Pair> {
    Pair::mixed(a, b)
        .users(USERS.map(User::local))
        .mail_plugins("acl")
        .one_way()
        .config(config)
        .start()
}

/// Gives `a` what all kinds of mailboxes have, and brings it to `b`.
fn fill(pair: &Pair) -> Outcome {
    let mut lmtp = pair.a.lmtp()?;
    for subject in ["one", "two", "three"] {
        lmtp.deliver(&USERS, &message(subject))?;
    }
    lmtp.quit()?;
    // The first syncs of both replicators are over before a mailbox is made.
    sync(pair)?;
    let mut imap = pair.a.imap("u1")?;
    for name in [
        "Box",
        "\"a b&AOQ- 100%\"",
        "-x",
        "Par/Child",
        "Valid",
        "Guid",
    ] {
        imap.ok(&format!("CREATE {name}"))?;
        imap.append(name, &message("in a box"))?;
    }
    imap.ok("SUBSCRIBE Par/Child")?;
    imap.ok("SELECT Box")?;
    imap.ok("STORE 1 +FLAGS (\\Answered $Forwarded work)")?;
    imap.logout()?;
    sync(pair)?;
    for node in [&pair.a, &pair.b] {
        node.tolerate_log("not reachable");
        node.tolerate_log("is reachable again");
        node.tolerate_log("Sync failed");
        // One node ends before the other.
        node.tolerate_log("failed: Connection refused");
    }
    Ok(())
}

fn sync(pair: &Pair) -> Outcome {
    for user in USERS {
        wait_for("a replicator that knows the user", PATIENCE, || {
            let order = ["replicator", "replicate", "-f", "-p", "high", user];
            Ok(pair.a.doveadm(&order).ok())
        })?;
        // A login before INBOX has come would make another one.
        pair.b.wait_mails(user, 3)?;
    }
    settle(&pair.a)?;
    pair.wait_equal(&USERS, PATIENCE)
}

/// Waits until the node's replicator has nothing left to do for anybody.
fn settle(node: &Node) -> Outcome {
    wait_for("a replicator with nothing to do", PATIENCE, || {
        let users = node.doveadm(&["-f", "tab", "replicator", "status", "*"])?;
        let is_done = |line: &str| {
            let fields: Vec<&str> = line.split('\t').collect();
            // priority, fast, full and success sync, failed
            matches!(fields[..], [_, "none", fast, full, success, "-", ..]
                if [fast, full, success].iter().all(|time| *time != "-"))
        };
        let syncs = node.doveadm(&["replicator", "dsync-status"])?;
        let is_idle = users.lines().skip(1).all(is_done) && !syncs.contains("Waiting for");
        Ok(is_idle.then_some(()))
    })
}

fn verify(node: &Node, arguments: &[&str]) -> Outcome<Output> {
    let at = arguments.iter().position(|argument| *argument == "verify");
    let arguments = match at {
        Some(_) => arguments.to_vec(),
        None => [&["replicator", "verify"], arguments].concat(),
    };
    Ok(node.doveadm_command(&arguments).output()?)
}

/// What it must exit with, and the lines that it must print, in order; each may end with `*`.
fn expect(node: &Node, arguments: &[&str], exit_code: i32, lines: &[&str]) -> Outcome<String> {
    let output = verify(node, arguments)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed: Vec<&str> = stdout.lines().collect();
    let is_as_expected = printed.len() == lines.len()
        && printed
            .iter()
            .zip(lines)
            .all(|(line, wanted)| match wanted.strip_suffix('*') {
                Some(start) => line.starts_with(start),
                None => line == wanted,
            });
    check(
        output.status.code() == Some(exit_code) && is_as_expected,
        || {
            format!(
                "{arguments:?}: {}\n{stdout}\n{stderr}\nwanted {exit_code}\n{}",
                output.status,
                lines.join("\n")
            )
        },
    )?;
    Ok(stderr)
}

/// All that clients and Dovecot know of the users, modification sequences and `\Recent` too.
fn state(node: &Node) -> Outcome<String> {
    let mut all = String::new();
    for user in USERS {
        for (key, value) in picture(node, user)? {
            all.push_str(&format!("{user} {key} {value}\n"));
        }
        let mut imap = node.imap(user)?;
        for line in imap.ok("LIST \"\" *")? {
            let Some((flags, name)) = line.rsplit_once("\"/\" ") else {
                continue;
            };
            if flags.contains("\\Noselect") || flags.contains("\\NonExistent") {
                continue;
            }
            let items = "(MESSAGES RECENT UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)";
            for line in imap.ok(&format!("STATUS {name} {items}"))? {
                all.push_str(&format!("{user} {line}\n"));
            }
        }
        imap.logout()?;
    }
    Ok(all)
}

/// Nothing that clients or Dovecot know has changed since.
fn unchanged(pair: &Pair, before: &[String; 2]) -> Outcome {
    for (node, before) in [&pair.a, &pair.b].into_iter().zip(before) {
        let after = state(node)?;
        check(after == *before, || {
            format!("changed by looking:\n{before}\n--\n{after}")
        })?;
    }
    Ok(())
}

fn states(pair: &Pair) -> Outcome<[String; 2]> {
    // HIGHESTMODSEQ is kept from when it is first asked for.
    state(&pair.a)?;
    state(&pair.b)?;
    Ok([state(&pair.a)?, state(&pair.b)?])
}

fn peer(pair: &Pair) -> String {
    format!("tcp:127.0.0.1:{}", pair.ports[1].number())
}

fn equal(a: &Target, b: &Target) -> Outcome {
    let pair = quiet_pair(a, b, "")?;
    fill(&pair)?;
    let before = states(&pair)?;
    check(
        before.iter().any(|state| state.contains("RECENT 3")),
        || before[0].clone(),
    )?;
    let stderr = expect(&pair.a, &["u1"], 0, &[])?;
    check(
        stderr.contains("1 equal, 0 different, 0 not compared"),
        || stderr.clone(),
    )?;
    let stderr = expect(&pair.a, &["-f", "u*"], 0, &[])?;
    check(
        stderr.contains("2 equal, 0 different, 0 not compared"),
        || stderr.clone(),
    )?;
    let header = "username\tpeer\tmailbox\tuid\twhat\there\tthere";
    expect(
        &pair.a,
        &["-f", "tab", "replicator", "verify", "*"],
        0,
        &[header],
    )?;
    // From the other side too, where that is ours.
    if b.is_ours() {
        let location = format!("tcp:127.0.0.1:{}", pair.ports[0].number());
        expect(&pair.b, &["-f", "-p", &location, "u1"], 0, &[])?;
    }
    unchanged(&pair, &before)?;
    pair.finish()
}

/// A change of each kind, on one of the nodes.
fn differ(pair: &Pair) -> Outcome {
    let mut imap = pair.b.imap("u1")?;
    imap.append(
        "INBOX \"01-Feb-2026 10:00:00 +0000\"",
        "Subject: there\r\n\r\nx\r\n",
    )?;
    imap.ok("SELECT INBOX")?;
    imap.ok("STORE 1 +FLAGS (\\Flagged work)")?;
    imap.ok("STORE 2 +FLAGS (\\Deleted)")?;
    imap.ok("EXPUNGE")?;
    imap.ok("CLOSE")?;
    imap.ok("CREATE \"Only There\"")?;
    imap.ok("DELETE Box")?;
    imap.ok("SUBSCRIBE -x")?;
    imap.ok("UNSUBSCRIBE Par/Child")?;
    imap.logout()?;
    let update = ["mailbox", "update", "-u", "u1"];
    for arguments in [
        ["--uid-validity", "1234567", "Valid"],
        ["--mailbox-guid", "0123456789abcdef0123456789abcdef", "Guid"],
    ] {
        pair.b.doveadm(&[&update[..], &arguments].concat())?;
    }
    // The same mailbox, as dsync sees it, with another mail of the same UID.
    for (node, text, date) in [
        (
            &pair.a,
            "Subject: own\r\n\r\nhere\r\n",
            "02-Feb-2026 10:00:00 +0000",
        ),
        (
            &pair.b,
            "Subject: own\r\n\r\nelsewhere\r\n",
            "03-Feb-2026 10:00:00 +0000",
        ),
    ] {
        let mut imap = node.imap("u1")?;
        imap.ok("CREATE Own")?;
        imap.logout()?;
        let identity = [
            "--uid-validity",
            "7654321",
            "--mailbox-guid",
            "00000000000000000000000000000001",
            "Own",
        ];
        node.doveadm(&[&update[..], &identity].concat())?;
        let mut imap = node.imap("u1")?;
        imap.append(&format!("Own \"{date}\""), text)?;
        imap.logout()?;
    }
    Ok(())
}

fn value(node: &Node, field: &str, mailbox: &str) -> Outcome<String> {
    let status = ["-f", "tab", "mailbox", "status", "-u", "u1", field, mailbox];
    let printed = node.doveadm(&status)?;
    let row = printed.lines().nth(1).ok_or("no status")?;
    Ok(row.split('\t').nth(1).ok_or("no value")?.to_owned())
}

fn different(a: &Target, b: &Target) -> Outcome {
    let pair = quiet_pair(a, b, "")?;
    fill(&pair)?;
    differ(&pair)?;
    let before = states(&pair)?;
    let p = peer(&pair);
    let guid = value(&pair.a, "guid", "Guid")?;
    let uidvalidity = value(&pair.a, "uidvalidity", "Valid")?;
    let lines = [
        "u1: -x: subscribed only at P".to_owned(),
        "u1: Box: mailbox only here, 1 mail".to_owned(),
        format!("u1: Guid: GUID here {guid}, at P 0123456789abcdef0123456789abcdef"),
        "u1: INBOX uid 1: flags here none, at P \\Flagged work".to_owned(),
        "u1: INBOX uid 2: mail only here, *".to_owned(),
        "u1: INBOX uid 4: mail only at P, 21 bytes received 2026-02-01 10:00:00 UTC".to_owned(),
        "u1: Only There: mailbox only at P, 0 mails".to_owned(),
        "u1: Own uid 1: received here 2026-02-02 10:00:00 UTC, at P 2026-02-03 10:00:00 UTC"
            .to_owned(),
        "u1: Own uid 1: size here 22, at P 27".to_owned(),
        "u1: Par/Child: subscribed only here".to_owned(),
        format!("u1: Valid: UIDVALIDITY here {uidvalidity}, at P 1234567"),
    ]
    .map(|line| line.replace("at P", &format!("at {p}")));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let stderr = expect(&pair.a, &["u*"], 1, &lines)?;
    check(
        stderr.contains("1 equal, 1 different, 0 not compared"),
        || stderr.clone(),
    )?;
    let (before_text, after_text) = lines.split_at(9);
    let with_text = [before_text, &["u1: Own uid 1: text here *"], after_text].concat();
    expect(&pair.a, &["-f", "u1"], 1, &with_text)?;
    let excluded = ["-x", "Own", "-x", "P*d", "-x", "Vali?", "u1"];
    let left: Vec<&str> = lines
        .iter()
        .copied()
        .filter(|line| {
            !line.contains(": Own") && !line.contains(": Valid") && !line.contains("Par/")
        })
        .collect();
    expect(&pair.a, &excluded, 1, &left)?;
    let json = verify(&pair.a, &["-f", "json", "replicator", "verify", "u1"])?;
    let json = String::from_utf8_lossy(&json.stdout).into_owned();
    let flags = format!(
        "{{\"username\":\"u1\",\"peer\":\"{p}\",\"mailbox\":\"INBOX\",\"uid\":\"1\",\"what\":\"flags\",\"here\":\"\",\"there\":\"\\\\Flagged work\"}}"
    );
    check(json.contains(&flags), || json.clone())?;
    unchanged(&pair, &before)?;
    pair.finish()
}

fn troubles(a: &Target, b: &Target) -> Outcome {
    let pair = quiet_pair(a, b, "")?;
    fill(&pair)?;
    let p = peer(&pair);
    expect(&pair.a, &[], 64, &[])?;
    let says = |stderr: &str, text: &str| check(stderr.contains(text), || stderr.to_owned());
    let stderr = expect(&pair.a, &["nobody"], 67, &[])?;
    says(&stderr, "nobody: the replicator does not know the user")?;
    let stderr = expect(&pair.a, &["x*"], 67, &[])?;
    says(&stderr, "x*: the replicator knows no such user")?;
    let stderr = expect(&pair.a, &["-a", "/nonexistent/socket", "u1"], 69, &[])?;
    says(
        &stderr,
        "connect(/nonexistent/socket) failed: No such file or directory",
    )?;
    let stderr = expect(&pair.a, &["-p", "remoteprefix:x", "u1"], 78, &[])?;
    says(&stderr, "remoteprefix:x")?;

    pair.b.expect_log("wrong password");
    let wrong = ["-o", "doveadm_password=wrong", "replicator", "verify", "u*"];
    let stderr = expect(&pair.a, &wrong, 77, &[])?;
    says(
        &stderr,
        &format!("u1: at {p}: doveadm authentication failed"),
    )?;
    says(&stderr, &format!("{p}: 2 users were not compared"))?;

    // auth looks at the file once a second.
    let users = fs::read_to_string(pair.b.path("users"))?;
    let kept: Vec<&str> = users
        .lines()
        .filter(|line| !line.starts_with("u2:"))
        .collect();
    fs::write(pair.b.path("users"), kept.join("\n") + "\n")?;
    pair.b.tolerate_log("User doesn't exist");
    let mut last = String::new();
    wait_for("the missing user", PATIENCE, || {
        let output = verify(&pair.a, &["u*"])?;
        last = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code() == Some(67)).then_some(()))
    })?;
    says(&last, &format!("u2: at {p}: no such user"))?;
    says(&last, "1 equal, 0 different, 1 not compared")?;

    pair.b.stop()?;
    let stderr = expect(&pair.a, &["u1"], 69, &[])?;
    says(&stderr, &format!("u1: at {p}: connect(127.0.0.1:"))?;
    says(&stderr, "failed: Connection refused")?;
    pair.a.tolerate_log("not reachable");
    pair.b.restart()?;
    pair.finish()
}

const PUBLIC_2_3: &str = "\
namespace public {
  type = public
  prefix = Public/
  separator = /
  location = maildir:%h/../public
  subscriptions = no
}";

/// The same on 2.4.
const PUBLIC_2_4: &str = "\
namespace public {
  type = public
  prefix = Public/
  separator = /
  mail_path = %{home}/../public
  subscriptions = no
  acl authenticated {
    rights = lrwstipekxa
  }
}";

/// As documented: a public mailbox is not compared, whatever differs in it.
fn public_is_left_out(target: &Target) -> Outcome {
    let pair = quiet_pair(target, target, target.series().pick(PUBLIC_2_3, PUBLIC_2_4))?;
    for node in [&pair.a, &pair.b] {
        let owner = fs::metadata(node.path("mail"))?;
        let public = node.path("mail/public");
        let rights = public.join("dovecot-acl");
        fs::create_dir(&public)?;
        fs::write(&rights, "authenticated lrwstipekxa\n")?;
        for path in [public, rights] {
            chown(path, Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    fill(&pair)?;
    let mut imap = pair.a.imap("u1")?;
    imap.ok("CREATE Public/Board")?;
    imap.append("Public/Board", &message("for all"))?;
    imap.logout()?;
    let stderr = expect(&pair.a, &["u1"], 0, &[])?;
    check(
        stderr.contains("1 equal, 0 different, 0 not compared"),
        || stderr,
    )?;
    pair.finish()
}

/// A Maildir with so many mails, the same on every node but for one that may be flagged.
fn big_maildir(node: &Node, user: &str, mails: u32, flagged: Option<u32>) -> Outcome {
    node.make_inbox(user)?;
    let owner = fs::metadata(node.path("mail"))?;
    let write = |path: &Path, text: &str| -> Outcome {
        fs::write(path, text)?;
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        fs::File::open(path)?.set_modified(time)?;
        Ok(chown(path, Some(owner.uid()), Some(owner.gid()))?)
    };
    let maildir = node.path("mail").join(user).join("Maildir");
    let mut uidlist = format!("3 V1000 N{} G00000000000000000000000000000002\n", mails + 1);
    for uid in 1..=mails {
        let base = format!("{}.M{uid}.host,S=20,W=23", 1_700_000_000 + uid);
        let flags = if flagged == Some(uid) { "F" } else { "" };
        let path = maildir.join("cur").join(format!("{base}:2,{flags}"));
        write(&path, "Subject: many\n\nbody\n")?;
        writeln!(uidlist, "{uid} :{base}")?;
    }
    write(&maildir.join("dovecot-uidlist"), &uidlist)
}

/// The most memory that verify takes of the machine, in KiB, and what it prints.
fn peak_kib(node: &Node, arguments: &[&str]) -> Outcome<(u64, String)> {
    let mut child = node
        .doveadm_command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    wait_for("the end of verify", PATIENCE * 5, || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        // What starts it has its process first.
        if text.starts_with("Name:\tdoveadm\n") {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
            peak = peak.max(kib.unwrap_or(0));
        }
        Ok(child.try_wait()?)
    })?;
    let mut printed = String::new();
    child
        .stdout
        .take()
        .ok_or("no stdout")?
        .read_to_string(&mut printed)?;
    Ok((peak, printed))
}

fn memory(target: &Target) -> Outcome {
    const MAILS: u32 = 50_000;
    let port = Port::take()?;
    let listener = target.series().pick("", "doveadm ");
    let password = "doveadm_password = secret\n";
    let config = format!(
        "{password}service doveadm {{\n  inet_listener {listener}{{\n    port = {}\n  }}\n}}\n",
        port.number()
    );
    let start = |hostname: &'static str, config: &str| {
        let node = Node::of(target).hostname(hostname).config(config);
        node.users(USERS.map(User::local)).start()
    };
    let (here, there) = (start("node-a", password)?, start("node-b", &config)?);
    for (user, mails) in [("u1", 10), ("u2", MAILS)] {
        big_maildir(&here, user, mails, None)?;
        big_maildir(&there, user, mails, Some(mails / 2))?;
    }
    let p = format!("tcp:127.0.0.1:{}", port.number());
    let of = |user: &str| peak_kib(&here, &["replicator", "verify", "-f", "-p", &p, user]);
    let (few, printed) = of("u1")?;
    let line = |user: &str, uid: u32| {
        format!("{user}: INBOX uid {uid}: flags here none, at {p} \\Flagged\n")
    };
    check(printed == line("u1", 5), || printed.clone())?;
    let (many, printed) = of("u2")?;
    check(printed == line("u2", MAILS / 2), || printed.clone())?;
    println!("peak of verify: {few} KiB for 10 mails, {many} KiB for {MAILS}");
    check(few > 0 && many > 0, || "no peak was seen".to_owned())?;
    check(many < few + 4 * 1024, || {
        format!("{few} KiB for 10 mails, {many} KiB for {MAILS}")
    })?;
    let finished = here.finish();
    there.finish().and(finished)
}

/// `remote:` by a command, which here runs the other node's doveadm.
fn remote(target: &Target) -> Outcome {
    let links = tempfile::Builder::new()
        .prefix("dr-links-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(target.outside("/tmp".as_ref()))?;
    let name = links.path().file_name().ok_or("no name")?;
    let inside = Path::new("/tmp").join(name);
    let user = target.series().pick("%u", "%{user}");
    // As after ssh nothing of this node's environment is there.
    let command = format!(
        "/usr/bin/env -i DOVECOT_HOSTNAME=node-%{{host}} /usr/bin/doveadm -c {}/%{{host}} dsync-server -u{user}",
        inside.display()
    );
    let pair = Pair::of(target)
        .users(USERS.map(User::local))
        .mail_plugins("acl")
        .one_way()
        .replica_by_command(&command)
        .start()?;
    for (name, node) in [("a", &pair.a), ("b", &pair.b)] {
        symlink(node.inside().join("dovecot.conf"), links.path().join(name))?;
    }
    fill(&pair)?;
    let before = states(&pair)?;
    let stderr = expect(&pair.a, &["u*"], 0, &[])?;
    check(stderr.contains("2 equal, 0 different"), || stderr.clone())?;
    unchanged(&pair, &before)?;
    let mut imap = pair.b.imap("u1")?;
    imap.ok("SELECT INBOX")?;
    imap.ok("STORE 3 +FLAGS (\\Flagged)")?;
    imap.ok("CREATE \"More \\\"&AOQ-\"")?;
    imap.logout()?;
    let lines = [
        "u1: INBOX uid 3: flags here none, at remote:b \\Flagged",
        "u1: More \"\u{e4}: mailbox only at remote:b, 0 mails",
    ];
    expect(&pair.a, &["u*"], 1, &lines)?;
    let stderr = expect(&pair.a, &["-f", "u*"], 78, &[])?;
    check(stderr.contains("only without -f"), || stderr.clone())?;
    let forced = [
        "-o",
        "dsync_remote_cmd=/bin/sync.sh",
        "replicator",
        "verify",
        "u1",
    ];
    let stderr = expect(&pair.a, &forced, 78, &[])?;
    check(
        stderr.contains("no other command can take its place"),
        || stderr.clone(),
    )?;
    let missing = [
        "-o",
        "dsync_remote_cmd=/nonexistent/ssh doveadm dsync-server",
        "replicator",
        "verify",
        "u1",
    ];
    let stderr = expect(&pair.a, &missing, 69, &[])?;
    check(stderr.contains("No such file or directory"), || {
        stderr.clone()
    })?;
    pair.finish()
}

/// `tcps:`: Dovecot's own settings say which certificate is believed. The node looks at itself.
fn tls(target: &Target) -> Outcome {
    let dir = tempfile::Builder::new()
        .prefix("dr-tls-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(target.outside("/tmp".as_ref()))?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=node"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-keyout", &path("key"), "-out", &path("cert")])
        .output()?;
    check(made.status.success(), || {
        String::from_utf8_lossy(&made.stderr).into_owned()
    })?;
    let name = dir.path().file_name().ok_or("no name")?;
    let inside = Path::new("/tmp").join(name);
    let inside = inside.display();
    let ports = [Port::take()?, Port::take()?];
    let [port, other] = [&ports[0], &ports[1]].map(Port::number);
    let series = target.series();
    let files = series.pick(
        format!("ssl_cert = <{inside}/cert\nssl_key = <{inside}/key\n"),
        format!("ssl_server_cert_file = {inside}/cert\nssl_server_key_file = {inside}/key\n"),
    );
    let config = format!(
        "ssl = yes\n{files}ssl_client_ca_file = {inside}/cert\ndoveadm_password = secret\n\
         service doveadm {{\n  inet_listener tls {{\n    port = {port}\n    ssl = yes\n  }}\n  \
         inet_listener plain {{\n    port = {other}\n  }}\n}}\n"
    );
    let node = Node::of(target)
        .users([User::local("u1")])
        .config(&config)
        .start()?;
    let mut lmtp = node.lmtp()?;
    lmtp.deliver(&["u1"], &message("one"))?;
    lmtp.quit()?;
    let at = |host: &str| format!("tcps:{host}:{port}");
    let (certified, not_certified) = (at("127.0.0.1"), at("[::ffff:127.0.0.1]"));
    // An answer may come at any moment.
    for _ in 0..10 {
        let stderr = expect(&node, &["-f", "-p", &certified, "u1"], 0, &[])?;
        check(stderr.contains("1 equal"), || stderr.clone())?;
    }
    // Not the name that is certified, and nobody who is believed.
    node.tolerate_log("disconnected before handshake");
    node.tolerate_log("SSL");
    let arguments = ["-p", &not_certified, "u1"];
    let stderr = expect(&node, &arguments, 69, &[])?;
    check(
        stderr.contains("certificate") || stderr.contains("match"),
        || stderr.clone(),
    )?;
    let believing_nobody = ["-o", "ssl_client_ca_file=", "replicator", "verify"];
    let arguments = [&believing_nobody[..], &["-p", &certified, "u1"]].concat();
    let stderr = expect(&node, &arguments, 69, &[])?;
    check(stderr.contains("certificate"), || stderr.clone())?;
    node.finish()
}

fn main() -> ExitCode {
    let staged = Target::all_staged();
    let find = |(version, implementation)| {
        let is =
            |target: &&Target| target.version == version && target.implementation == implementation;
        staged.iter().find(is)
    };
    let mut trials = Vec::new();
    for [a, b] in PAIRS {
        let (Some(a), Some(b)) = (find(a), find(b)) else {
            continue;
        };
        // The one that is missing says so.
        let mut of_pair = a.clone();
        of_pair.missing = a.missing.clone().or_else(|| b.missing.clone());
        let with = b.name();
        for (name, body) in [
            (
                "equal_has_no_line",
                equal as fn(&Target, &Target) -> Outcome,
            ),
            ("each_difference_is_a_line", different),
            ("troubles_have_their_exit_codes", troubles),
        ] {
            let (a, b) = (a.clone(), b.clone());
            trials.push(trial(&of_pair, &format!("with_{with}/{name}"), move || {
                body(&a, &b)
            }));
        }
    }
    for target in staged.iter().filter(|target| target.is_ours()) {
        let of = target.clone();
        trials.push(trial(target, "remote_peer_by_a_command", move || {
            remote(&of)
        }));
        let of = target.clone();
        trials.push(trial(target, "tcps_peer_is_certified", move || tls(&of)));
        let of = target.clone();
        trials.push(trial(target, "public_mailboxes_are_left_out", move || {
            public_is_left_out(&of)
        }));
        let of = target.clone();
        trials.push(trial(
            target,
            "memory_is_bounded_with_a_big_mailbox",
            move || memory(&of),
        ));
    }
    run(trials)
}
