//! Our files beside a Dovecot of another release, as after an upgrade of Dovecot alone: mail goes on, and
//! the log says what an admin should do.
//!
//! The builds are those of the other roots. In the root with the oldest C library those of the others
//! cannot be loaded at all, which no upgrade leads to: one plugin is built for it there.

mod harness;

use harness::client::message;
use harness::node::MAIL_USER;
use harness::run::{main as run, trial};
use harness::target::{PLUGIN, top};
use harness::{Node, Outcome, PATIENCE, Series, Target, User, check, wait_for};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USER: &str = "user";

/// The release whose root has too old a C library for the builds made in the others.
const OLD_LIBC: &str = "2.3.13";

/// The release whose plugin is built there too (`make foreign`).
const FOREIGN: &str = "2.3.19.1";

/// What we install, below Dovecot's library directory.
const FILES: [&str; 5] = [
    "modules/lib20_replication_plugin.so",
    "modules/settings/lib10_replication_settings.so",
    "modules/doveadm/lib10_doveadm_replicator_plugin.so",
    "aggregator",
    "replicator",
];

/// What the mail plugin says where it steps aside.
fn warning(build: &str) -> String {
    format!(
        "replication: this plugin is built for Dovecot {}",
        abi(build)
    )
}

/// How the release calls its ABI.
fn abi(version: &str) -> String {
    let last = version.split('.').nth(2).unwrap_or_default();
    format!("{}.ABIv{last}", &version[..3])
}

/// IMAP, LMTP, dovecot-lda, POP3 and doveadm do their work with the plugin of another release.
fn mail_goes_on(node: &Node, expected: &str) -> Outcome {
    let mut imap = node.imap(USER)?;
    imap.append("INBOX", &message("imap"))?;
    imap.ok("CREATE Box")?;
    imap.logout()?;
    node.wait_sessions_end(USER)?;
    let mut lmtp = node.lmtp()?;
    for subject in ["lmtp one", "lmtp two"] {
        lmtp.deliver(&[USER], &message(subject))?;
    }
    lmtp.quit()?;
    node.lda(USER, &message("lda"))?;
    let mut pop3 = node.pop3(USER)?;
    let count = pop3.ok("STAT")?;
    check(count.starts_with("+OK 4 "), || count)?;
    pop3.quit()?;
    let listed = node.doveadm(&["mailbox", "list", "-u", USER])?;
    check(listed.contains("Box"), || listed)?;
    node.wait_mails(USER, 4)?;

    let lines = node.reader.lines();
    check(lines.is_empty(), || format!("it worked: {lines:?}"))?;
    for process in ["imap(", "lmtp(", "lda(", "doveadm("] {
        // The log may be behind.
        wait_for(&format!("the warning of {process}"), PATIENCE, || {
            let mut lines = node.log_lines(expected).into_iter();
            Ok(lines.any(|line| line.contains(process)).then_some(()))
        })?;
        let mut said = node.log_lines(expected);
        said.retain(|line| line.contains(process));
        check(said.len() == 1, || {
            format!("expected one line of {process}: {said:#?}")
        })?;
    }
    let said = node.log_lines(expected);
    for line in &said {
        check(line.contains("Warning: "), || line.clone())?;
        check(line.ends_with("is installed and Dovecot restarted"), || {
            line.clone()
        })?;
    }
    once_per_process(&said)
}

/// A process is the word before the level: `lmtp(123)`, or `imap(user)<123><...>`.
fn once_per_process(lines: &[String]) -> Outcome {
    let mut processes = HashSet::new();
    for line in lines {
        let process = line.split(": ").next().unwrap_or_default();
        let process = process.rsplit(' ').next().unwrap_or_default();
        check(processes.insert(process.to_owned()), || {
            format!("{process} said it twice: {lines:#?}")
        })?;
    }
    Ok(())
}

fn plugin_steps_aside(target: &Target, build: &str) -> Outcome {
    let expected = warning(build);
    Node::of(target)
        .users([User::replicated(USER).with("replication_sync_timeout", "5s")])
        .test(|node| {
            node.expect_log(&expected);
            mail_goes_on(node, &expected)?;
            let running = format!("this Dovecot is {}", abi(&target.version));
            let lines = node.log_lines(&expected);
            check(lines.iter().all(|line| line.contains(&running)), || {
                format!("no {running:?}: {lines:?}")
            })
        })
}

/// Dovecot's library directory with `build`'s files in the place of ours.
struct Library(tempfile::TempDir);

impl Library {
    fn with(target: &Target, change: impl FnOnce(&Path) -> Outcome) -> Outcome<Library> {
        let staged = target.lib.as_ref().ok_or("not staged")?;
        let library = Library(tempfile::tempdir()?);
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(staged).arg(library.path());
        check(copy.status()?.success(), || format!("{copy:?}"))?;
        change(&library.path())?;
        Ok(library)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("lib")
    }

    fn target(&self, of: &Target) -> Target {
        let mut target = of.clone();
        target.plugin = None;
        target.lib = Some(self.path());
        target
    }
}

/// `files` are of another release.
fn mixed(target: &Target, build: &str, files: &[&str]) -> Outcome<Library> {
    Library::with(target, |lib| {
        for name in files {
            let file = Path::new(name).file_name().unwrap_or_default();
            fs::copy(top().join("build").join(build).join(file), lib.join(name))?;
        }
        Ok(())
    })
}

/// All of ours is of another release, as `make install` leaves it behind. On 2.4 dovecot.conf names none of our
/// settings: they are userdb fields.
fn everything_steps_aside(target: &Target, build: &str) -> Outcome {
    let library = mixed(target, build, &FILES)?;
    let target = library.target(target);
    Node::of(&target)
        .users([User::replicated(USER)])
        .test(|node| {
            node.expect_log(&warning(build));
            // Dovecot's own, of each doveadm and of each reading of the configuration.
            node.tolerate_log("Module is for different ABI version");
            mail_goes_on(node, &warning(build))
        })
}

/// The daemons end with a line that says why; Dovecot keeps the fifo, and mail goes on.
fn daemons_step_aside(target: &Target, build: &str) -> Outcome {
    let library = mixed(target, build, &FILES[3..])?;
    let target = library.target(target);
    let (owner, _) = MAIL_USER;
    let listeners = format!(
        "service aggregator {{
  fifo_listener replication-notify-fifo {{
    user = {owner}
  }}
  unix_listener replication-notify {{
    user = {owner}
  }}
}}
"
    );
    Node::of(&target)
        .services()
        .users([User::replicated(USER)])
        .config(&listeners)
        .test(|node| {
            // After the version there may be a distribution's own.
            let own = format!("this Dovecot is {}", target.version);
            let same_series = build.starts_with(&target.version[..3]);
            let says = if same_series {
                own.as_str()
            } else {
                "symbol lookup error"
            };
            node.expect_log(says);
            for text in [
                "command startup failed, throttling",
                "returned error 89",
                "returned error 127",
            ] {
                node.tolerate_log(text);
            }
            node.lda(USER, &message("one"))?;
            let lines = node.wait_log(says)?;
            let build = format!("aggregator is built for Dovecot {build}");
            let named = |line: &String| !same_series || line.contains(&build);
            check(lines.iter().all(named), || format!("{lines:?}"))?;
            let mut lmtp = node.lmtp()?;
            lmtp.deliver(&[USER], &message("two"))?;
            lmtp.quit()?;
            node.wait_mails(USER, 2)
        })
}

/// Settings of ours in dovecot.conf are unknown then: Dovecot does not start, and says which module and
/// which setting.
fn configuration_is_refused(target: &Target, build: &str) -> Outcome {
    let library = mixed(target, build, &FILES)?;
    let target = library.target(target);
    let setting = "replication_sync_deadline = 5 mins\n";
    let started = Node::of(&target)
        .users([User::replicated(USER)])
        .config(setting)
        .start();
    match started {
        Ok(_node) => Err("it started".into()),
        Err(failed) => {
            let says = failed.message().unwrap_or("?");
            for part in [
                "lib10_replication_settings.so: Module is for different ABI version",
                "Unknown setting: replication_sync_deadline",
            ] {
                check(says.contains(part), || format!("no {part:?}: {says}"))?;
            }
            Ok(())
        }
    }
}

/// The plugin is loaded on 2.4, but nothing brings its settings.
fn settings_module_is_missing(target: &Target) -> Outcome {
    let library = Library::with(target, |lib| {
        fs::remove_file(lib.join(FILES[1]))?;
        Ok(())
    })?;
    let target = library.target(target);
    Node::of(&target)
        .users([User::replicated(USER)])
        .test(|node| {
            let expected = "lib10_replication_settings.so";
            node.expect_log(expected);
            let mut lmtp = node.lmtp()?;
            for subject in ["one", "two", "three"] {
                lmtp.deliver(&[USER], &message(subject))?;
            }
            lmtp.quit()?;
            node.lda(USER, &message("four"))?;
            let mut imap = node.imap(USER)?;
            imap.append("INBOX", &message("five"))?;
            imap.logout()?;
            node.wait_mails(USER, 5)?;
            once_per_process(&node.log_lines(expected))
        })
}

/// What a trial does on its target with the build for another release.
type Case = fn(&Target, &str) -> Outcome;

/// With all files; `{}` is the build's release.
const CASES: [(&str, Case); 3] = [
    (
        "everything_is_of_{}_and_mail_goes_on",
        everything_steps_aside,
    ),
    ("daemons_of_{}_end_and_say_why", daemons_step_aside),
    (
        "settings_of_{}_in_dovecot_conf_are_refused_by_name",
        configuration_is_refused,
    ),
];

fn main() -> ExitCode {
    let targets: Vec<Target> = Target::all().into_iter().filter(Target::is_ours).collect();
    let mut staged = Target::all_staged();
    staged.retain(Target::is_ours);
    let versions: Vec<String> = targets.iter().map(|its| its.version.clone()).collect();
    let mut trials = Vec::new();
    for (target, staged) in targets.iter().zip(&staged) {
        for build in versions.iter().filter(|build| **build != target.version) {
            let mut plugin = top().join("build").join(build).join(PLUGIN);
            let loads = *build == OLD_LIBC || target.version != OLD_LIBC;
            if !loads {
                plugin = top().join("build").join(build).join("foreign").join(PLUGIN);
                if !plugin.is_file() && *build != FOREIGN {
                    continue;
                }
            }
            let mut target = target.clone();
            if !plugin.is_file() {
                let reason = format!("no {}", plugin.display());
                target.missing.get_or_insert(reason);
            }
            target.plugin = Some(plugin);
            let (its, of) = (target.clone(), build.clone());
            let name = format!("plugin_of_{build}_warns_once_and_steps_aside");
            trials.push(trial(&target, &name, move || plugin_steps_aside(&its, &of)));
            if !loads {
                continue;
            }
            for (name, case) in CASES {
                let mut its = staged.clone();
                its.missing = its.missing.or_else(|| target.missing.clone());
                let of = build.clone();
                let name = name.replace("{}", build);
                trials.push(trial(&its.clone(), &name, move || case(&its, &of)));
            }
        }
        if staged.series() == Series::V2_4 {
            let its = staged.clone();
            trials.push(trial(
                staged,
                "mail_goes_on_without_our_settings_module",
                move || settings_module_is_missing(&its),
            ));
        }
    }
    run(trials)
}
