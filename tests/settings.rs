//! Our settings in Dovecot's own configuration process: `doveconf` takes them, says them back, and
//! names what is wrong with a bad value.

mod harness;

use harness::run::{main as run, trial};
use harness::target::top;
use harness::{Outcome, Series, Target, check};
use std::fs;
use std::path::Path;
use std::process::{ExitCode, Output};

/// A setting of this project, a value, and what a part of the error says.
type Bad = (&'static str, &'static str);

/// On all versions.
const BAD: [Bad; 6] = [
    (
        "replication_sync_deadline = 9s",
        "replication_sync_deadline: 9 secs is out of range, expected a time from 10 secs to 1 day",
    ),
    (
        "replication_sync_deadline = 25 hours",
        "replication_sync_deadline: 90000 secs is out of range",
    ),
    (
        "replication_retry_min_interval = 99 ms",
        "replication_retry_min_interval: 99 msecs is out of range",
    ),
    (
        "replication_retry_max_interval = 2 days",
        "replication_retry_max_interval: 172800 secs is out of range",
    ),
    (
        "replication_retry_min_interval = 20s\nreplication_retry_max_interval = 10s",
        "replication_retry_min_interval: 20000 msecs is longer than replication_retry_max_interval, \
         expected at most 10 secs",
    ),
    (
        "replication_probe_timeout = 61s",
        "replication_probe_timeout: 61000 msecs is out of range",
    ),
];

/// Where stock has the other settings on 2.3, we have them on 2.4.
const BAD_2_4: [Bad; 7] = [
    (
        "replication_sync_timeout = 2",
        "replication_sync_timeout: Time interval '2' is missing units",
    ),
    (
        "replication_sync_timeout = 61 mins",
        "replication_sync_timeout: 3660000 msecs is out of range, expected a time up to 1 hour, 0 is off",
    ),
    (
        "replication_max_conns = 0",
        "replication_max_conns: 0 is out of range, expected a number from 1 to 10000",
    ),
    (
        "replication_max_conns = 10001",
        "replication_max_conns: 10001 is out of range",
    ),
    (
        "replication_max_conns = x",
        "replication_max_conns: Invalid number x",
    ),
    (
        "noreplicate = maybe",
        "noreplicate: Invalid boolean value: maybe",
    ),
    ("mail_replica9 = tcp:b", "Unknown setting: mail_replica9"),
];

/// Good values, as `doveconf -n` says them.
const GOOD: &str = "\
replication_probe_timeout = 1 mins
replication_retry_max_interval = 1 mins
replication_retry_min_interval = 100 ms
replication_sync_deadline = 10 secs
";

const GOOD_2_4: &str = "\
doveadm_port = 12345
doveadm_socket_path = other-doveadm
dsync_remote_cmd = doveadm dsync-server -u%{user}
mail_replica = tcp:%{user | domain}:12345
mail_replica2 = tcps:c.example.com
mail_replica8 = remote:vmail@h.example.com
noreplicate = yes
replication_dsync_parameters = -N -l 60
replication_full_sync_interval = 1 weeks
replication_max_conns = 10000
replication_probe_timeout = 1 mins
replication_retry_max_interval = 1 mins
replication_retry_min_interval = 100 ms
replication_sync_deadline = 10 secs
replication_sync_timeout = 1 hours
replicator_host = elsewhere
replicator_port = 4092
mail_plugins {
  notify = yes
  replication = yes
}
service replicator {
  process_min_avail = 1
  unix_listener replicator-doveadm {
    mode = 0600
  }
}
service aggregator {
  fifo_listener replication-notify-fifo {
    user = mail
  }
  unix_listener replication-notify {
    user = mail
  }
}
";

/// Services and listeners of 2.4 with stock's names, modes and owners.
const SERVICES_2_4: [(&str, &str); 9] = [
    ("service/aggregator/process_limit", "1"),
    ("service/aggregator/user", "$SET:default_internal_user"),
    (
        "service/aggregator/fifo_listener/replication-notify-fifo/mode",
        "0600",
    ),
    (
        "service/aggregator/unix_listener/replication-notify/mode",
        "0600",
    ),
    ("service/replicator/process_limit", "1"),
    ("service/replicator/vsz_limit", "unlimited"),
    ("service/replicator/unix_listener/replicator/mode", "0600"),
    (
        "service/replicator/unix_listener/replicator/user",
        "$SET:default_internal_user",
    ),
    (
        "service/replicator/unix_listener/replicator-doveadm/mode",
        "0",
    ),
];

/// Userdb fields, and what a mail process of 2.4 makes of them: 2.3's way of writing them is understood.
const USERDB: [(&[&str], &str); 17] = [
    (
        &[],
        "mail_replica= mail_replica8= noreplicate=no replication_sync_timeout=0",
    ),
    (
        &["mail_replica=tcp:a=b%u", "mail_replica8=remote:%{user}"],
        "mail_replica=tcp:a=b%u mail_replica8=remote:%{user} ",
    ),
    (&["mail_replica="], "mail_replica= "),
    (&["mail_replica=yes"], "mail_replica= "),
    (&["noreplicate"], "noreplicate=yes "),
    (&["noreplicate="], "noreplicate=yes "),
    (&["noreplicate=y"], "noreplicate=yes "),
    (&["noreplicate=No"], "noreplicate=no "),
    (&["noreplicate=0"], "noreplicate=no "),
    (
        &["replication_sync_timeout=2"],
        "replication_sync_timeout=2000",
    ),
    (
        &["replication_sync_timeout=2s"],
        "replication_sync_timeout=2000",
    ),
    (
        &["replication_sync_timeout=1m"],
        "replication_sync_timeout=60000",
    ),
    (
        &["replication_sync_timeout=1hour"],
        "replication_sync_timeout=3600000",
    ),
    (&["replication_sync_timeout="], "replication_sync_timeout=0"),
    (
        &["replication_sync_timeout=500ms"],
        "replication_sync_timeout=500",
    ),
    (
        &["replication_sync_timeout=3601"],
        "Invalid settings: replication_sync_timeout: 3601000 msecs is out of range",
    ),
    (
        &["replication_sync_timeout=soon"],
        "Invalid replication_sync_timeout=soon: Invalid time interval: soon",
    ),
];

fn is_2_4(target: &Target) -> bool {
    target.series() == Series::V2_4
}

/// `doveconf` with these arguments and a dovecot.conf of these lines.
fn doveconf(target: &Target, lines: &str, arguments: &[&str]) -> Outcome<Output> {
    let dir = tempfile::tempdir_in(target.outside(Path::new("/tmp")))?;
    let inside = Path::new("/tmp").join(dir.path().file_name().ok_or("no name")?);
    let version = &target.version;
    let head = if is_2_4(target) {
        format!("dovecot_config_version = {version}\ndovecot_storage_version = {version}\n")
    } else {
        String::new()
    };
    fs::write(
        dir.path().join("dovecot.conf"),
        format!("{head}ssl = no\n{lines}"),
    )?;
    Ok(target
        .command("doveconf")
        .arg("-c")
        .arg(inside.join("dovecot.conf"))
        .args(arguments)
        .output()?)
}

fn good_values_are_said_back(target: &Target) -> Outcome {
    let lines = if is_2_4(target) { GOOD_2_4 } else { GOOD };
    let output = doveconf(target, lines, &["-n"])?;
    check(output.status.success() && output.stderr.is_empty(), || {
        format!("{output:?}")
    })?;
    let says = String::from_utf8(output.stdout)?;
    for line in lines.lines() {
        check(says.lines().any(|said| said == line), || {
            format!("{line:?} is not in: {says}")
        })?;
    }
    Ok(())
}

fn bad_values_are_named(target: &Target) -> Outcome {
    let more: &[Bad] = if is_2_4(target) { &BAD_2_4 } else { &[] };
    let mut wrong = Vec::new();
    for (lines, error) in BAD.iter().chain(more) {
        let output = doveconf(target, &format!("{lines}\n"), &["-n"])?;
        let says = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || !says.contains(error) {
            wrong.push(format!("{lines}: {}: {says}", output.status));
        }
    }
    let too_long = format!("mail_replica3 = tcp:{}\n", "h".repeat(1021));
    if is_2_4(target) {
        let output = doveconf(target, &too_long, &["-n"])?;
        let says = String::from_utf8_lossy(&output.stderr);
        if !says.contains("... is too long, expected at most 1024 bytes") {
            wrong.push(format!("1025 bytes: {says}"));
        }
        let just = too_long.replacen('h', "", 1);
        let output = doveconf(target, &just, &["-n"])?;
        if !output.status.success() {
            wrong.push(format!("1024 bytes: {output:?}"));
        }
    }
    check(wrong.is_empty(), || wrong.join("\n"))
}

/// What docs/upgrade-2.3-to-2.4.md shows in this series' syntax, a fragment at a time.
fn documented_fragments_are_taken(target: &Target) -> Outcome {
    let page = fs::read_to_string(top().join("docs/upgrade-2.3-to-2.4.md"))?;
    let fence = format!("```dovecot-{}\n", target.series().pick("2.3", "2.4"));
    let fragments: Vec<_> = page
        .split(fence.as_str())
        .skip(1)
        .filter_map(|rest| rest.split_once("```\n"))
        .map(|(fragment, _)| fragment)
        .collect();
    let mut wrong = Vec::new();
    for fragment in &fragments {
        let output = doveconf(target, fragment, &["-n"])?;
        if !output.status.success() || !output.stderr.is_empty() {
            let says = String::from_utf8_lossy(&output.stderr);
            wrong.push(format!("{fragment}{}: {says}", output.status));
        }
    }
    check(wrong.is_empty() && fragments.len() >= 7, || {
        format!("{} fragments\n{}", fragments.len(), wrong.join("\n"))
    })
}

/// A Dovecot with our module and nothing set for it is as it was.
fn defaults(target: &Target) -> Outcome {
    let output = doveconf(target, "", &["-n"])?;
    let says = String::from_utf8_lossy(&output.stdout);
    check(output.status.success() && output.stderr.is_empty(), || {
        format!("{output:?}")
    })?;
    check(
        !says.contains("replic") && !says.contains("aggregator"),
        || format!("not as the default: {says}"),
    )?;
    if !is_2_4(target) {
        return Ok(());
    }
    let output = doveconf(target, "", &["-d"])?;
    let all = flattened(&String::from_utf8_lossy(&output.stdout));
    for (key, value) in SERVICES_2_4 {
        let line = format!("{key} = {value}");
        check(all.contains(&line), || {
            let near: Vec<_> = all
                .iter()
                .filter(|line| line.contains("replic") || line.contains("aggreg"))
                .collect();
            format!("{line:?} is not among {near:#?}")
        })?;
    }
    Ok(())
}

fn userdb_fields(target: &Target) -> Outcome {
    const SOURCES: [&str; 4] = [
        "tests/abi/userdb_fields.c",
        "c-shim/settings.c",
        "c-shim/settings-2.4.c",
        "c-shim/replication-settings.h",
    ];
    let dir = tempfile::tempdir_in(target.outside(Path::new("/tmp")))?;
    let inside = Path::new("/tmp").join(dir.path().file_name().ok_or("no name")?);
    let mut compiler = target.command("gcc");
    compiler.args([
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-DHAVE_CONFIG_H",
        "-I/usr/include/dovecot",
    ]);
    for source in SOURCES {
        let name = Path::new(source).file_name().ok_or("no name")?;
        fs::copy(top().join(source), dir.path().join(name))?;
        if source.ends_with(".c") {
            compiler.arg(inside.join(name));
        }
    }
    let program = inside.join("userdb_fields");
    let compiled = compiler
        .arg("-o")
        .arg(&program)
        .args([
            "-L/usr/lib/dovecot",
            "-ldovecot",
            "-Wl,-rpath,/usr/lib/dovecot",
        ])
        .output()?;
    check(compiled.status.success(), || {
        format!("gcc: {}", String::from_utf8_lossy(&compiled.stderr))
    })?;
    let mut wrong = Vec::new();
    for (fields, expected) in USERDB {
        let output = target
            .command(&program.display().to_string())
            .args(fields)
            .output()?;
        let says = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || !output.stderr.is_empty() || !says.contains(expected) {
            wrong.push(format!("{fields:?}: {expected:?} is not in {output:?}"));
        }
    }
    check(wrong.is_empty(), || wrong.join("\n"))
}

/// `doveconf`'s blocks as paths.
fn flattened(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(block) = line.strip_suffix('{') {
            blocks.push(block.trim().replace(' ', "/"));
        } else if line == "}" {
            blocks.pop();
        } else {
            let path = blocks.iter().map(|block| format!("{block}/"));
            lines.push(path.collect::<String>() + line);
        }
    }
    lines
}

/// What a trial does on its target.
type Case = fn(&Target) -> Outcome;

fn main() -> ExitCode {
    let cases: [(&str, Case); 4] = [
        (
            "fragments_of_the_upgrade_page_are_taken",
            documented_fragments_are_taken,
        ),
        (
            "good_values_are_taken_and_said_back",
            good_values_are_said_back,
        ),
        (
            "bad_values_are_errors_that_name_setting_and_value",
            bad_values_are_named,
        ),
        (
            "nothing_set_changes_nothing_and_services_are_stocks",
            defaults,
        ),
    ];
    let mut trials = Vec::new();
    for target in Target::all_staged().into_iter().filter(Target::is_ours) {
        for (name, case) in cases {
            let its = target.clone();
            trials.push(trial(&target, name, move || case(&its)));
        }
        if is_2_4(&target) {
            let its = target.clone();
            let name = "userdb_fields_are_understood_as_on_2_3";
            trials.push(trial(&target, name, move || userdb_fields(&its)));
        }
    }
    run(trials)
}
