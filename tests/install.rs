//! `make install` and `make uninstall` as an admin runs them, on every Dovecot at hand.
//!
//! Dovecot's library directory, dpkg's records and dovecot.conf are copied, and the copies mounted
//! over the originals in a mount namespace of each command's own: diversions are real, and nothing of
//! the machine or of the root is changed.

mod harness;

use harness::client::message;
use harness::reader::Via;
use harness::run::{main as run, trial};
use harness::target::{PLUGIN, top};
use harness::{Node, Outcome, Series, Target, User, check};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

/// What is copied: the directory, and its name among the copies.
const COPIED: [(&str, &str); 3] = [
    ("/usr/lib/dovecot", "lib"),
    ("/var/lib/dpkg", "dpkg"),
    ("/etc/dovecot", "etc"),
];

/// What is installed, and its mode.
const FILES: [(&str, u32); 5] = [
    ("modules/lib20_replication_plugin.so", 0o644),
    ("modules/settings/lib10_replication_settings.so", 0o644),
    ("modules/doveadm/lib10_doveadm_replicator_plugin.so", 0o644),
    ("aggregator", 0o755),
    ("replicator", 0o755),
];

/// Those of them that the distribution of 2.3 has also, by these names.
const DIVERTED: [&str; 3] = [
    "modules/lib20_replication_plugin.so",
    "aggregator",
    "replicator",
];

/// 2.4 has nothing of these names: nothing is diverted there.
fn diverted(target: &Target) -> &'static [&'static str] {
    if target.series() == Series::V2_3 {
        &DIVERTED
    } else {
        &[]
    }
}

/// A Dovecot that may be installed into.
struct Machine {
    target: Target,
    copies: tempfile::TempDir,
}

impl Machine {
    fn copy(target: &Target) -> Outcome<Machine> {
        let copies = tempfile::tempdir()?;
        for (dir, name) in COPIED {
            let mut command = Command::new("cp");
            command.arg("-a").arg(target.outside(Path::new(dir)));
            command.arg(copies.path().join(name));
            check(command.status()?.success(), || format!("{command:?}"))?;
        }
        let target = target.clone();
        Ok(Machine { target, copies })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.copies.path().join(name)
    }

    /// Runs a shell command in the source tree, with the copies in their places.
    fn sh(&self, command: &str) -> Outcome<Output> {
        let root = self.target.root.as_deref().unwrap_or(Path::new(""));
        let mut script = String::from("set -e\n");
        for (dir, name) in COPIED {
            let copy = self.path(name);
            script += &format!("mount --bind {} {}{dir}\n", copy.display(), root.display());
        }
        let inside = format!("cd {} && {command}", top().display());
        if self.target.root.is_some() {
            // The source tree is where it is outside, as in tests/roots/enter.
            let tree = format!("{}{}", root.display(), top().display());
            script += &format!("mkdir -p {tree}; mount --bind {} {tree}\n", top().display());
            script += &format!("exec chroot {} /bin/bash -c \"$1\"", root.display());
        } else {
            script += "exec /bin/bash -c \"$1\"";
        }
        Ok(Command::new("unshare")
            .args(["-m", "--propagation", "private", "/bin/bash", "-c", &script])
            .args(["sh", &inside])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C")
            .output()?)
    }

    /// The command ends with 0; what it said.
    fn done(&self, command: &str) -> Outcome<String> {
        let output = self.sh(command)?;
        check(output.status.success(), || said(command, &output))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The command ends with another code than 0; what it said on stderr.
    fn refused(&self, command: &str) -> Outcome<String> {
        let output = self.sh(command)?;
        check(!output.status.success(), || said(command, &output))?;
        check(!output.stdout.ends_with(b"installed\n"), || {
            said(command, &output)
        })?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// All is again as the distribution has it.
    fn is_untouched(&self) -> Outcome {
        for (dir, name) in [
            (COPIED[0].0, COPIED[0].1),
            ("/var/lib/dpkg/diversions", "dpkg/diversions"),
        ] {
            let output = Command::new("diff")
                .args(["-r", "--no-dereference"])
                .arg(self.target.outside(Path::new(dir)))
                .arg(self.path(name))
                .output()?;
            check(output.status.success(), || said("diff", &output))?;
        }
        Ok(())
    }

    fn is_installed(&self) -> Outcome {
        let ours = top().join("build").join(&self.target.version);
        for (name, _) in FILES {
            let installed = self.path("lib").join(name);
            let built = ours.join(installed.file_name().unwrap_or_default());
            check(fs::read(&installed)? == fs::read(&built)?, || {
                format!("{} is not ours", installed.display())
            })?;
        }
        for name in diverted(&self.target) {
            let original = self.target.outside(Path::new(COPIED[0].0)).join(name);
            let diverted = self.path("lib").join(format!("{name}.distrib"));
            check(fs::read(original)? == fs::read(&diverted)?, || {
                format!("{} is not the distribution's", diverted.display())
            })?;
        }
        Ok(())
    }
}

fn said(command: &str, output: &Output) -> String {
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{command}: {}: {stdout}{stderr}", output.status)
}

fn installed_and_taken_out(target: &Target) -> Outcome {
    let machine = Machine::copy(target)?;
    let first = machine.done("make install")?;
    let count = first.matches("diverted:").count() + first.matches("moved:").count();
    check(count == diverted(target).len(), || first.clone())?;
    for name in diverted(target) {
        let file = Path::new(name)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let says = format!("diverted: the distribution's {file} is now");
        check(first.contains(&says), || {
            format!("{says:?} is not said: {first}")
        })?;
    }
    machine.is_installed()?;
    machine.done("make install")?;
    machine.is_installed()?;
    let list = machine.done("dpkg-divert --list '*.so'")?;
    // Each diversion is a line with both names.
    let plugins = diverted(target)
        .iter()
        .filter(|name| name.ends_with(PLUGIN));
    check(list.matches(PLUGIN).count() == 2 * plugins.count(), || {
        format!("one diversion where the distribution has the file: {list}")
    })?;

    let mut installed = target.clone();
    installed.lib = Some(machine.path("lib"));
    Node::of(&installed)
        .users([User::replicated("user")])
        .test(|node| {
            let mut imap = node.imap("user")?;
            imap.append("INBOX", &message("one"))?;
            // Stock's plugin holds it back for half a second.
            let lines = node.reader.lines_of(&["user"]);
            check(lines.iter().any(|line| line.via == Via::Fifo), || {
                format!("our plugin is not loaded: {lines:?}")
            })?;
            imap.logout()?;
            node.wait_sessions_end("user")
        })?;

    machine.done("make uninstall")?;
    machine.is_untouched()?;
    machine.done("make uninstall")?;
    machine.is_untouched()
}

fn cut_off(target: &Target) -> Outcome {
    let machine = Machine::copy(target)?;
    machine.done("make install")?;
    // As if it had been ended after the diversion, and after the removal.
    fs::remove_file(machine.path("lib").join(DIVERTED[0]))?;
    machine.done("make install")?;
    machine.is_installed()?;
    fs::remove_file(machine.path("lib").join(DIVERTED[1]))?;
    machine.done("make uninstall")?;
    machine.is_untouched()
}

fn other_directories(target: &Target) -> Outcome {
    let machine = Machine::copy(target)?;
    let given = "DESTDIR=/usr/lib/dovecot/stage moduledir=/opt/modules libexecdir=/opt/libexec";
    machine.done(&format!("make install {given}"))?;
    machine.done(&format!("make install {given}"))?;
    let stage = machine.path("lib/stage/opt");
    for (name, mode) in FILES {
        use std::os::unix::fs::PermissionsExt;
        let installed = if name.starts_with("modules/") {
            stage.join(name)
        } else {
            stage.join("libexec").join(name)
        };
        let permissions = fs::metadata(installed)?.permissions();
        check(permissions.mode() & 0o7777 == mode, || {
            format!("{name}: {permissions:?}")
        })?;
    }
    machine.done(&format!("make uninstall {given}"))?;
    let left = Command::new("find")
        .arg(&stage)
        .args(["-type", "f"])
        .output()?;
    check(left.stdout.is_empty(), || said("find", &left))?;
    fs::remove_dir_all(machine.path("lib/stage"))?;
    // A moduledir without files of the distribution: nothing is diverted.
    let given = "moduledir=/usr/lib/dovecot/own libexecdir=/usr/lib/dovecot/own";
    let said = machine.done(&format!("make install {given}"))?;
    check(
        !said.contains("diverted") && !said.contains("moved"),
        || said,
    )?;
    machine.done(&format!("make uninstall {given}"))?;
    fs::remove_dir_all(machine.path("lib/own"))?;
    machine.is_untouched()
}

fn failures(target: &Target) -> Outcome {
    let machine = Machine::copy(target)?;
    machine.refused("make install moduledir=/etc/passwd/modules")?;
    if diverted(target).is_empty() {
        return Ok(());
    }
    // Somebody else has diverted the file: it is not overwritten.
    let machine = Machine::copy(target)?;
    let file = "/usr/lib/dovecot/aggregator";
    machine.done(&format!(
        "dpkg-divert --local --divert {file}.other --add {file}"
    ))?;
    machine.refused("make install")?;
    let original = target.outside(Path::new(file));
    check(
        fs::read(original)? == fs::read(machine.path("lib/aggregator"))?,
        || "overwritten".to_owned(),
    )?;
    machine.done("make uninstall")?;
    machine.done(&format!("dpkg-divert --local --remove {file}"))?;
    machine.is_untouched()
}

fn settings_in_use(target: &Target) -> Outcome {
    let machine = Machine::copy(target)?;
    machine.done("make install")?;
    let conf = machine.path("etc/dovecot.conf");
    let before = fs::read_to_string(&conf)?;
    // What is added, and the line that says so.
    let mut cases = vec![(
        "replication_sync_deadline = 5 mins",
        "replication_sync_deadline = 5 mins",
    )];
    if diverted(target).is_empty() {
        cases.extend([
            ("mail_replica = tcp:b", "mail_replica = tcp:b"),
            ("replicator_port = 7", "replicator_port = 7"),
            // The default, which Dovecot does not know without us either.
            ("replication_max_conns = 10", "replication_max_conns = 10"),
            (
                "mail_plugins {\n notify = yes\n replication = yes\n}",
                "  replication = yes",
            ),
            (
                "protocol imap {\n mail_plugins {\n replication = yes\n }\n}",
                "    replication = yes",
            ),
            (
                "service replicator {\n process_min_avail = 1\n}",
                "service replicator {",
            ),
        ]);
    }
    for (added, line) in cases {
        fs::write(&conf, format!("{before}\n{added}\n"))?;
        let says = machine.refused("make uninstall")?;
        check(says.lines().any(|said| said == line), || {
            format!("{added}: {says}")
        })?;
        machine.is_installed()?;
    }
    fs::write(&conf, before)?;
    machine.done("make uninstall")?;
    machine.is_untouched()
}

/// What a build says where Dovecot's headers are not, and where there is none.
fn no_headers(target: &Target) -> Outcome {
    let machine = Machine::copy(target)?;
    let config = machine.path("lib").join("wrong-config");
    fs::write(
        &config,
        "dovecot_pkgincludedir=/nonexistent\ndovecot_pkglibdir=/nonexistent\n",
    )?;
    for config in ["/nonexistent", "/usr/lib/dovecot/wrong-config"] {
        for verb in ["build", "install", "uninstall"] {
            let says = machine.refused(&format!("make {verb} DOVECOT_CONFIG={config}"))?;
            check(
                says.contains(config) && says.contains("install dovecot-dev"),
                || says,
            )?;
        }
    }
    Ok(())
}

/// What a trial does on its target.
type Case = fn(&Target) -> Outcome;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for target in Target::all_staged() {
        if !target.is_ours() {
            continue;
        }
        let mut target = target;
        if !target.outside(Path::new("/usr/bin/make")).exists() {
            target.missing.get_or_insert("no make".to_owned());
        }
        let cases: [(&str, Case); 6] = [
            (
                "install_diverts_what_is_there_and_uninstall_restores_exactly",
                installed_and_taken_out,
            ),
            ("install_that_was_cut_off_is_finished_or_undone", cut_off),
            ("destdir_and_moduledir_are_honoured", other_directories),
            (
                "install_that_fails_says_so_and_overwrites_nothing",
                failures,
            ),
            (
                "uninstall_is_refused_while_our_settings_are_in_use",
                settings_in_use,
            ),
            (
                "missing_headers_are_an_error_that_says_what_to_install",
                no_headers,
            ),
        ];
        for (name, case) in cases {
            let its = target.clone();
            trials.push(trial(&target, name, move || case(&its)));
        }
    }
    run(trials)
}
