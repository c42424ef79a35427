//! The Debian package, from `make deb` to `dpkg --purge`, on every Dovecot at hand.
//!
//! Each trial has the root of its Dovecot under an overlay of its own, mounted in a mount namespace of this
//! process: dpkg is real, nothing of the machine or of a root is changed, and all is gone with the process.

mod harness;

use harness::client::message;
use harness::node::Builder;
use harness::run::{main as run, trial};
use harness::target::top;
use harness::{Node, Outcome, Replication, Series, Target, User, check};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

const PACKAGE: &str = "dovecot-replication";
const USER: &str = "user";

/// Says that this process is in its own mount namespace.
const UNSHARED: &str = "DOVECOT_TEST_UNSHARED";

/// What 2.3 has too, below Dovecot's library directory.
const STOCK: [&str; 3] = [
    "modules/lib20_replication_plugin.so",
    "aggregator",
    "replicator",
];

/// What the package brings, there.
const FILES: [&str; 5] = [
    STOCK[0],
    STOCK[1],
    STOCK[2],
    "modules/settings/lib10_replication_settings.so",
    "modules/doveadm/lib10_doveadm_replicator_plugin.so",
];

const LIBRARY: &str = "/usr/lib/dovecot";
const CONF: &str = "/etc/dovecot/dovecot.conf";

/// A root that may be changed.
struct Root {
    /// A Dovecot in the overlay.
    target: Target,
    /// Where a tmpfs holds what differs from the root.
    dir: PathBuf,
    /// What lies below the overlay.
    below: PathBuf,
    /// What was there at first, by path: everything that an installation may touch.
    before: String,
}

impl Root {
    fn of(target: &Target) -> Outcome<Root> {
        // Not a TempDir: a directory with mounts in it is never removed recursively.
        let dir = tempfile::tempdir()?.keep();
        done(
            Command::new("mount")
                .args(["-t", "tmpfs", "tmpfs"])
                .arg(&dir),
        )?;
        let mut root = Root {
            target: target.clone(),
            dir: dir.clone(),
            below: target.root.clone().unwrap_or_else(|| "/".into()),
            before: String::new(),
        };
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| dir.join(name));
        for dir in [&upper, &work, &merged] {
            fs::create_dir(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        }
        // index: hard links, which dpkg makes and renames, stay one file.
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=on",
            target.root.as_deref().unwrap_or(Path::new("/")).display(),
            upper.display(),
            work.display()
        );
        let mut overlay = Command::new("mount");
        overlay.args(["-t", "overlay", "overlay", "-o", &options]);
        done(overlay.arg(&merged))?;
        done(
            Command::new("mount")
                .args(["-t", "proc", "proc"])
                .arg(merged.join("proc")),
        )?;
        if !merged.join("dev/null").exists() {
            done(
                Command::new("mknod")
                    .arg("-m666")
                    .arg(merged.join("dev/null"))
                    .args(["c", "1", "3"]),
            )?;
        }
        if target.root.is_some() {
            let tree = merged.join(top().strip_prefix("/").unwrap_or(top()));
            fs::create_dir_all(&tree)?;
            done(Command::new("mount").arg("--bind").arg(top()).arg(tree))?;
        }
        // No package starts the machine's Dovecot.
        let policy = merged.join("usr/sbin/policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
        root.target.plugin = None;
        root.target.lib = Some(merged.join(&LIBRARY[1..]));
        root.target.root = Some(merged);
        root.before = root.state()?;
        Ok(root)
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.target.outside(Path::new(inside))
    }

    /// Runs a shell command in the root, in the source tree.
    fn sh(&self, command: &str) -> Outcome<Output> {
        Ok(Command::new("chroot")
            .arg(self.path("/"))
            .args([
                "/bin/bash",
                "-c",
                &format!("cd {} && {command}", top().display()),
            ])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()?)
    }

    fn done(&self, command: &str) -> Outcome<String> {
        let output = self.sh(command)?;
        check(output.status.success(), || said(command, &output))?;
        Ok(said(command, &output))
    }

    fn refused(&self, command: &str) -> Outcome<String> {
        let output = self.sh(command)?;
        check(!output.status.success(), || said(command, &output))?;
        Ok(said(command, &output))
    }

    /// Sums of Dovecot's files, dpkg's diversions and our state: equal only if all is as before.
    fn state(&self) -> Outcome<String> {
        let list = "find /usr/lib/dovecot /var/lib/dovecot ! -type d -printf '%p %m %U %l ' \
                    -a \\( -type f -exec sha256sum {} \\; -o -printf '\\n' \\) | sort && \
                    find /usr/lib/dovecot /usr/share/doc/dovecot-replication -type d 2>/dev/null | sort; \
                    dpkg-divert --list '*dovecot*' | sort; dpkg --audit";
        let output = self.sh(list)?;
        check(output.stderr.is_empty(), || said(list, &output))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn is_as_before(&self) -> Outcome {
        let now = self.state()?;
        let differs = |one: &str, other: &str| {
            let lines = one
                .lines()
                .filter(|line| !other.lines().any(|its| its == *line));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        check(now == self.before, || {
            let (gone, new) = (differs(&self.before, &now), differs(&now, &self.before));
            format!("gone: {gone:#?}\nnew: {new:#?}")
        })
    }

    /// Makes the package, once for each version; the path inside the root.
    fn deb(&self, revision: &str) -> Outcome<String> {
        static MADE: Mutex<BTreeMap<(String, String), Vec<u8>>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let of = (self.target.version.clone(), revision.to_owned());
        let path = format!("/tmp/{PACKAGE}{revision}.deb");
        if let Some(bytes) = made.get(&of) {
            fs::write(self.path(&path), bytes)?;
        } else {
            let built = self.make_deb(revision)?;
            self.done(&format!("cp {built} {path}"))?;
            made.insert(of, fs::read(self.path(&path))?);
        }
        Ok(path)
    }

    fn make_deb(&self, revision: &str) -> Outcome<String> {
        let dir = format!("/tmp/package{revision}");
        let says = self.done(&format!("make deb DEB_DIR={dir} DEB_REVISION={revision}"))?;
        let built = says.lines().find_map(|line| line.split_once("built /"));
        let (_, path) = built.ok_or_else(|| says.clone())?;
        Ok(format!("/{path}"))
    }

    fn is_installed(&self) -> Outcome {
        let status = self.done(&format!("dpkg-query -W -f '${{Status}}' {PACKAGE}"))?;
        check(status.contains("install ok installed"), || status.clone())?;
        self.done(&format!("dpkg --verify {PACKAGE}"))?;
        for name in FILES {
            let owner = self.done(&format!("dpkg -S {LIBRARY}/{name}"))?;
            check(
                owner.contains(&format!("{PACKAGE}: {LIBRARY}/{name}")),
                || owner.clone(),
            )?;
        }
        for name in self.diverted() {
            let (stock, distrib) = (
                self.stock(name)?,
                self.path(LIBRARY).join(format!("{name}.distrib")),
            );
            check(stock == fs::read(&distrib)?, || {
                format!("{} is not the distribution's", distrib.display())
            })?;
        }
        Ok(())
    }

    fn diverted(&self) -> &'static [&'static str] {
        self.target.series().pick(&STOCK, &[])
    }

    /// A file of the distribution, out of the root below.
    fn stock(&self, name: &str) -> Outcome<Vec<u8>> {
        Ok(fs::read(self.below.join(&LIBRARY[1..]).join(name))?)
    }

    /// The package is gone, and what was diverted is back, byte for byte.
    fn is_removed(&self) -> Outcome {
        for name in self.diverted() {
            let restored = fs::read(self.path(LIBRARY).join(name))?;
            check(restored == self.stock(name)?, || {
                format!("{name} is not stock's")
            })?;
        }
        self.is_as_before()
    }

    /// dovecot.conf becomes these lines, as an admin's editor leaves it.
    fn configure(&self, lines: &str) -> Outcome {
        Ok(fs::write(self.path(CONF), lines)?)
    }

    fn node(&self) -> Builder<'_> {
        Node::of(&self.target).services().users([User::local(USER)])
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.args(["-R", "-l"]).arg(&self.dir);
        // What stays is empty, or ends with this process's namespace: nothing is removed recursively.
        if unmount.status().is_ok_and(|status| status.success()) {
            let _left = fs::remove_dir(&self.dir);
        }
    }
}

fn done(command: &mut Command) -> Outcome {
    let output = command.output()?;
    check(output.status.success(), || {
        said(&format!("{command:?}"), &output)
    })
}

fn said(command: &str, output: &Output) -> String {
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{command}: {}: {stdout}{stderr}", output.status)
}

/// Dovecot as the distribution has it starts and delivers.
fn works_without_us(root: &Root) -> Outcome {
    let plugins = root
        .target
        .series()
        .pick("notify replication acl", "notify acl");
    let deliver = |node: &Node| {
        let mut lmtp = node.lmtp()?;
        lmtp.deliver(&[USER], &message("without us"))?;
        lmtp.quit()?;
        let mut imap = node.imap(USER)?;
        let seen = imap.ok("STATUS INBOX (MESSAGES)")?;
        check(seen.iter().any(|line| line.contains("MESSAGES 1")), || {
            format!("{seen:?}")
        })?;
        imap.logout()
    };
    root.node().mail_plugins(plugins).test(deliver)
}

/// DESIGN's configuration, with a peer that is away, and where 2.3 has it a setting of ours.
fn configuration(series: Series) -> String {
    let replication = Replication {
        replicas: vec!["tcp:127.0.0.1:9".to_owned()],
        sync_timeout: Some("2s".to_owned()),
        ..Replication::default()
    };
    replication.render(series) + "replication_sync_deadline = 5 mins\n"
}

/// With the package, and a dovecot.conf of ours that dpkg's scripts see too.
fn works_with_us(root: &Root) -> Outcome {
    let series = root.target.series();
    let deliver = |node: &Node| {
        for text in ["Sync failure", "127.0.0.1:9", "127.0.0.1 port 9"] {
            node.tolerate_log(text);
        }
        fs::copy(node.path("dovecot.conf"), root.path(CONF))?;
        let mut lmtp = node.lmtp()?;
        lmtp.deliver(&[USER], &message("with us"))?;
        lmtp.quit()?;
        node.wait_mails(USER, 1)?;
        let status = node.doveadm(&["replicator", "status"])?;
        let known = status.lines().any(|line| {
            line.starts_with("Total number of known users") && line.trim_end().ends_with(" 1")
        });
        check(known, || status.clone())?;
        // The command is of our module alone.
        let shown = node.doveadm(&["replicator", "show", USER])?;
        check(shown.contains("127.0.0.1"), || shown.clone())
    };
    root.node()
        .mail_plugins("notify replication acl")
        .config(&configuration(series))
        .test(deliver)
}

/// Lines that have to go before the package can.
fn named(series: Series) -> &'static [&'static str] {
    series.pick(
        &["replication_sync_deadline = 5 mins"],
        &[
            "mail_replica = tcp:127.0.0.1:9",
            "replication_max_conns = 10",
            "replication_sync_deadline = 5 mins",
            "replication_sync_timeout = 2s",
            "  replication = yes",
            "service aggregator {",
            "service replicator {",
        ],
    )
}

fn whole_life(target: &Target) -> Outcome {
    let root = Root::of(target)?;
    let plain = fs::read_to_string(root.path(CONF))?;
    works_without_us(&root)?;

    let deb = root.deb("")?;
    root.done(&format!("dpkg -i {deb}"))?;
    root.is_installed()?;
    works_with_us(&root)?;

    let says = root.refused(&format!("dpkg -r {PACKAGE}"))?;
    for line in named(target.series()) {
        check(says.lines().any(|its| its == *line), || {
            format!("no {line:?}: {says}")
        })?;
    }
    check(says.contains("take these lines out first"), || says.clone())?;
    root.is_installed()?;
    works_with_us(&root)?;

    root.configure(&plain)?;
    root.done(&format!("dpkg -r {PACKAGE}"))?;
    root.is_removed()?;
    works_without_us(&root)?;

    root.done(&format!("dpkg -i {deb}"))?;
    root.is_installed()?;
    let state = ["replication.sqlite3", "replication-aggregator/1-1.journal"];
    root.done(&format!(
        "cd /var/lib/dovecot && mkdir replication-aggregator && touch {} replicator.db",
        state.join(" ")
    ))?;
    root.done(&format!("dpkg --purge {PACKAGE}"))?;
    // Stock's own state is not ours to remove.
    root.done("rm /var/lib/dovecot/replicator.db")?;
    root.is_removed()?;
    works_without_us(&root)
}

/// Each setting that Dovecot does not know without us, with its default.
const DEFAULTS: &str = "\
replication_sync_deadline = 10 mins
replication_retry_min_interval = 500 ms
replication_retry_max_interval = 5 mins
replication_probe_timeout = 5 s
";

const DEFAULTS_2_4: &str = "\
mail_replica =
mail_replica8 =
noreplicate = no
replication_sync_timeout = 0
replication_max_conns = 10
replication_full_sync_interval = 1 day
replication_dsync_parameters = -N -l 30
replicator_host = replicator
replicator_port = 0
service aggregator {
  process_limit = 1
}
service replicator {
  process_limit = 1
}
protocol imap {
  mail_plugins {
    replication = yes
  }
}
";

/// `conf` without the lines that `says` names, as an admin takes them out: a block with all that is in it.
fn without(conf: &str, says: &str) -> String {
    let named: Vec<&str> = says.lines().map(str::trim).collect();
    let mut left = String::new();
    let mut lines = conf.lines();
    while let Some(line) = lines.next() {
        let key = |line: &str| line.split('=').next().map(|key| key.trim().to_owned());
        let is_setting = line.contains('=');
        if is_setting
            && named
                .iter()
                .any(|its| its.contains('=') && key(its) == key(line))
        {
            continue;
        }
        if line.ends_with('{') && named.contains(&line.trim()) {
            lines.by_ref().find(|line| *line == "}");
            continue;
        }
        left += line;
        left.push('\n');
    }
    left
}

/// Once what the removal names is out Dovecot takes the rest, also where what was named was the default.
fn named_is_all(target: &Target) -> Outcome {
    let root = Root::of(target)?;
    let deb = root.deb("")?;
    root.done(&format!("dpkg -i {deb}"))?;
    let plain = fs::read_to_string(root.path(CONF))?;
    let defaults = DEFAULTS.to_owned() + target.series().pick("", DEFAULTS_2_4);
    let conf = format!("{plain}\n{defaults}");
    root.configure(&conf)?;
    root.done("doveconf -n")?;
    let says = root.refused(&format!("dpkg -r {PACKAGE}"))?;
    let left = without(&conf, &says);
    root.configure(&left)?;
    root.done(&format!("dpkg -r {PACKAGE}"))?;
    root.done("doveconf -n").map_err(|failed| {
        let failed = failed.message().unwrap_or("?");
        format!("{failed}\nafter {says}")
    })?;
    // All of it was unknown: the trial would see what is not named.
    root.configure(&conf)?;
    let says = root.refused("doveconf -n")?;
    check(says.contains("nknown setting"), || says)
}

/// An upgrade of the package leaves all as it is; one that breaks off is undone.
fn upgraded_and_cut_off(target: &Target) -> Outcome {
    let root = Root::of(target)?;
    let (first, second) = (root.deb("")?, root.deb("+2")?);
    // What dpkg finds out after preinst has run.
    let broken = "/tmp/broken.deb";
    let size = root.done(&format!("stat -c %s {second}"))?;
    let size: u64 = size
        .rsplit(' ')
        .next()
        .and_then(|size| size.trim().parse().ok())
        .ok_or(size)?;
    root.done(&format!("head -c {} {second} >{broken}", size / 2))?;

    root.refused(&format!("dpkg -i {broken}"))?;
    root.is_removed()?;

    // As if it had been ended after each step of preinst.
    for name in root.diverted() {
        let file = format!("{LIBRARY}/{name}");
        root.done(&format!("ln {file} {file}.distrib"))?;
        root.done(&format!("dpkg -i {first}"))?;
        root.is_installed()?;
        root.done(&format!("dpkg --purge {PACKAGE}"))?;
        root.is_removed()?;
    }
    root.done(&format!(
        "dpkg-deb -e {first} /tmp/control && /tmp/control/preinst install"
    ))?;
    root.done(&format!("dpkg -i {first}"))?;
    root.is_installed()?;

    root.done(&format!("dpkg -i {second}"))?;
    root.is_installed()?;
    root.refused(&format!("dpkg -i {broken}"))?;
    root.is_installed()?;
    root.done(&format!("dpkg -i {first}"))?;
    root.is_installed()?;
    root.done(&format!("dpkg --unpack {second}"))?;
    root.done(&format!("dpkg -r {PACKAGE}"))?;
    root.is_removed()
}

/// `make install` and the package keep out of each other's way.
fn beside_make_install(target: &Target) -> Outcome {
    let root = Root::of(target)?;
    let deb = root.deb("")?;
    root.done(&format!("dpkg -i {deb}"))?;
    for verb in ["install", "uninstall"] {
        let says = root.refused(&format!("make {verb}"))?;
        check(says.contains("is installed: remove it first"), || says)?;
    }
    root.is_installed()?;
    root.done(&format!("dpkg --purge {PACKAGE}"))?;
    root.is_removed()?;
    if root.diverted().is_empty() {
        return Ok(());
    }
    root.done("make install")?;
    let says = root.refused(&format!("dpkg -i {deb}"))?;
    check(says.contains("run 'make uninstall' first"), || says)?;
    root.done("make uninstall")?;
    root.is_removed()
}

/// A package for another release is not taken: apt sees that this Dovecot does not provide its ABI.
fn abi_is_exact(target: &Target) -> Outcome {
    let root = Root::of(target)?;
    let deb = root.deb("")?;
    let provided = root.done("dpkg-query -W -f '${Provides}' dovecot-core")?;
    let depends = root.done(&format!("dpkg-deb -f {deb} Depends"))?;
    let abi = depends
        .split([',', ' '])
        .find(|word| word.starts_with("dovecot-abi-"))
        .ok_or_else(|| depends.clone())?;
    check(provided.contains(&format!("{abi},")), || {
        format!("{provided}{depends}")
    })?;
    root.done(&format!("apt-get -s install {deb}"))?;
    root.done(&format!(
        "dpkg-deb -R {deb} /tmp/other && sed -i s/{abi}/dovecot-abi-2.4.abiv99/ /tmp/other/DEBIAN/control && \
         dpkg-deb --build /tmp/other /tmp/other.deb"
    ))?;
    let says = root.refused("apt-get -s install /tmp/other.deb")?;
    check(says.contains("Depends: dovecot-abi-2.4.abiv99"), || says)
}

/// Where stock has the plugin too a delivery finds one at every moment.
fn installed_under_load(target: &Target) -> Outcome {
    let root = Root::of(target)?;
    let deb = root.deb("")?;
    let plugins = target.series().pick("notify replication acl", "notify acl");
    root.node().mail_plugins(plugins).test(|node| {
        const ENOUGH: u32 = 4;
        let (stop, delivered) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let deliveries = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    node.lda(USER, &message("under load"))?;
                    delivered.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Ok(())
            });
            let mut installed = root.done(&format!("dpkg -i {deb}"));
            // It may be over before a few deliveries are, on a busy machine.
            while installed.is_ok()
                && delivered.load(Ordering::Relaxed) < ENOUGH
                && !deliveries.is_finished()
            {
                installed = root.done(&format!("dpkg -i {deb}"));
            }
            stop.store(true, Ordering::Relaxed);
            deliveries.join().map_err(|_| "a panic")??;
            installed.map(drop)
        })
    })
}

/// After an upgrade from 2.3 to 2.4 nothing of the diversions of 2.3 is left.
fn diversions_of_2_3_are_gone(target: &Target) -> Outcome {
    let root = Root::of(target)?;
    let deb = root.deb("")?;
    for name in STOCK {
        let file = format!("{LIBRARY}/{name}");
        root.done(&format!(
            "dpkg-divert --package {PACKAGE} --no-rename --divert {file}.distrib --add {file} && touch {file}.distrib"
        ))?;
    }
    root.done(&format!("dpkg -i {deb}"))?;
    root.is_installed()?;
    root.done(&format!("dpkg --purge {PACKAGE}"))?;
    root.is_removed()
}

/// The example that the package brings is what its release takes.
fn example_is_accepted(target: &Target) -> Outcome {
    let root = Root::of(target)?;
    let deb = root.deb("")?;
    root.done(&format!("dpkg -i {deb}"))?;
    let example = format!("/usr/share/doc/{PACKAGE}/examples/replication.conf");
    root.done(&format!("echo '!include {example}' >>{CONF}"))?;
    let says = root.done("doveconf -n 2>/dev/null")?;
    check(
        says.contains("mail_replica = tcp:192.168.135.236:12345"),
        || says.clone(),
    )
}

/// What a trial does on its target.
type Case = fn(&Target) -> Outcome;

fn trials() -> Vec<libtest_mimic::Trial> {
    let mut trials = Vec::new();
    for target in Target::all_staged() {
        if !target.is_ours() {
            continue;
        }
        let mut target = target;
        if !target
            .outside(Path::new("/usr/bin/dpkg-gencontrol"))
            .exists()
        {
            target.missing.get_or_insert("no dpkg-dev".to_owned());
        }
        let mut cases: Vec<(&str, Case)> = vec![
            ("package_from_installation_to_purge", whole_life),
            (
                "package_is_upgraded_and_one_that_breaks_off_is_undone",
                upgraded_and_cut_off,
            ),
            ("what_removal_names_is_all_that_has_to_go", named_is_all),
            ("package_and_make_install_keep_apart", beside_make_install),
            ("package_is_for_one_abi", abi_is_exact),
            (
                "package_brings_an_example_that_is_accepted",
                example_is_accepted,
            ),
        ];
        cases.push(target.series().pick(
            (
                "package_is_installed_while_mail_is_delivered",
                installed_under_load,
            ),
            (
                "package_leaves_no_diversion_of_2.3",
                diversions_of_2_3_are_gone,
            ),
        ));
        for (name, case) in cases {
            let its = target.clone();
            trials.push(trial(&target, name, move || case(&its)));
        }
    }
    trials
}

fn main() -> ExitCode {
    if std::env::var_os(UNSHARED).is_some() {
        return run(trials());
    }
    let own = std::env::current_exe();
    let mut again = Command::new("unshare");
    again
        .args(["-m", "--propagation", "private"])
        .args(own.ok());
    let failed = again
        .args(std::env::args_os().skip(1))
        .env(UNSHARED, "1")
        .exec();
    eprintln!("unshare: {failed}");
    ExitCode::FAILURE
}
