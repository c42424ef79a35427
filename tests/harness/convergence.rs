//! A course: rounds of random writing on both nodes of a pair, with faults, each followed by a pause in
//! which both must become equal and hold what the load's model says.

use super::configuration::Series;
use super::faults::{self, Counts, Fault};
use super::load::names::{self, Group};
use super::load::{Load, Operations};
use super::node::died_of_dovecot;
use super::{Format, Node, Outcome, PATIENCE, Pair, Target, User, wait_for};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// After this time Dovecot takes such a lock of a Maildir for nobody's.
const EMPTY_LOCK: Duration = Duration::from_secs(120);

/// What is to be gone through.
#[derive(Clone, Debug)]
pub struct Course {
    /// The nodes' targets.
    pub targets: [Target; 2],
    /// How both store mail.
    pub format: Format,
    /// Decides all choices.
    pub seed: u64,
    /// How many users are written.
    pub users: usize,
    /// How long is written in a round.
    pub load: Duration,
    /// What goes wrong meanwhile.
    pub faults: Vec<Fault>,
    /// The first node's clock is an hour ahead.
    pub clock_ahead: bool,
    /// Mailboxes are made, renamed and deleted too.
    pub mailboxes: bool,
    /// How long equality may take.
    pub patience: Duration,
}

/// What came of a round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Of each fault, how many processes or nodes it hit.
    pub faults: Counts,
    /// From the end of writing and faults to equality.
    pub equal_after: Option<Duration>,
    /// What was wrong.
    pub wrong: Vec<String>,
    /// Mail that a client expunged and that is there again: told, not wrong (docs/limits.md).
    pub back: usize,
    /// Mail that a dsync doubled which a fault ended: told, not wrong (docs/limits.md).
    pub doubled_by_faults: usize,
    /// Mail of users of whom Dovecot had to rebuild a mailbox's index after a full disk: lost or doubled by that, told, not wrong (docs/limits.md).
    pub wrong_by_rebuild: usize,
    /// Mail that Dovecot left out of an index when the disk was full, and whose file is there: told, not wrong (docs/limits.md).
    pub left_out_of_index: usize,
    /// Processes that died of an assertion of Dovecot: told, not wrong (docs/limits.md).
    pub died: usize,
    /// Whether equality had to wait for Dovecot to give up the lock of a process that died on a full disk: told, not wrong (docs/limits.md).
    pub waited_for_lock: bool,
    /// Mail in two mailboxes that clients of both nodes renamed at once: told, not wrong (docs/limits.md).
    pub doubled_by_renames: usize,
}

/// A course on its way.
#[derive(Debug)]
pub struct Journey {
    /// The nodes.
    pub pair: Pair,
    course: Course,
    load: Load,
    random: fastrand::Rng,
}

impl Course {
    /// Both of one target, without faults.
    #[must_use]
    pub fn of(a: &Target, b: &Target, format: Format, seed: u64) -> Course {
        Course {
            targets: [a.clone(), b.clone()],
            format,
            seed,
            users: 3,
            load: Duration::from_secs(12),
            faults: Vec::new(),
            clock_ahead: false,
            mailboxes: true,
            patience: Duration::from_secs(30),
        }
    }

    /// Starts both nodes and makes the mailboxes that stay; both have them when it returns.
    ///
    /// # Errors
    /// When that does not come to be.
    pub fn begin(self) -> Outcome<Journey> {
        let users: Vec<String> = (1..=self.users)
            .map(|number| format!("u{number}"))
            .collect();
        let [a, b] = &self.targets;
        let mut builder = Pair::mixed(a, b)
            .users(users.iter().map(|name| User::local(name)))
            .format(self.format);
        if !self.faults.is_empty() {
            builder = builder.faults();
        }
        if self.clock_ahead {
            builder = builder.clock_ahead();
        }
        let said = "  mail_log_events = save copy expunge mailbox_create mailbox_delete mailbox_rename\n  mail_log_fields = uid box subject\n";
        let pair = builder
            .crashes_only()
            .mail_plugins("notify replication acl mail_log")
            .config_of([a, b].map(|target| target.series().plugin_settings(said)))
            .start()?;
        if self.clock_ahead {
            check_clock(&pair)?;
        }
        let is_ours = [a, b].iter().all(|target| target.is_ours());
        let load = Load::new(&users, self.seed, is_ours, self.mailboxes);
        for user in &users {
            let mut imap = pair.a.imap(user)?;
            for name in load.names(Group::Kept) {
                // A dsync that meets a mailbox half made finishes it; then it exists already.
                imap.command(&format!("CREATE {}", names::quoted(&name)))?;
            }
            imap.logout()?;
        }
        // Nobody looks at the second node before it has them: the first login on both is another test's.
        for user in &users {
            let names = load.names(Group::Kept).len();
            wait_for(&format!("{user}'s mailboxes"), PATIENCE, || {
                let listed = pair.b.doveadm(&["mailbox", "list", "-u", user])?;
                Ok((listed.lines().count() >= names).then_some(()))
            })?;
        }
        if targets_are_ours(&pair) {
            // A first sync that is cut off may lose mail (docs/limits.md): each node is to have had its own.
            pair.wait_idle()?;
        }
        let random = fastrand::Rng::with_seed(self.seed);
        Ok(Journey {
            pair,
            course: self,
            load,
            random,
        })
    }
}

impl Journey {
    /// Writes, with faults, then pauses and judges.
    ///
    /// # Errors
    /// When a node does not come back after a fault.
    pub fn round(&mut self) -> Outcome<Round> {
        let end = Instant::now() + self.course.load;
        let (pair, load, course) = (&self.pair, &self.load, &self.course);
        let random = &mut self.random;
        let faults = std::thread::scope(|scope| {
            scope.spawn(|| load.run(&pair.a, &pair.b, end));
            if course.faults.is_empty() {
                return Ok(Counts::new());
            }
            faults::rain(pair, &course.faults, random, end)
        })?;
        let mut round = Round {
            faults,
            ..Round::default()
        };
        // Who compares may have waited for it until it was gone.
        let had_empty_lock = has_empty_lock(pair)?;
        let mut equal = load.wait_equal(pair, course.patience);
        if equal.is_err() && (had_empty_lock || has_empty_lock(pair)?) {
            round.waited_for_lock = true;
            equal = load.wait_equal(pair, EMPTY_LOCK + course.patience);
        }
        match equal {
            Ok(time) => round.equal_after = Some(time),
            Err(unequal) => round.wrong.push(format!("still unequal:\n{unequal}")),
        }
        for node in [&pair.a, &pair.b] {
            round.died += died_of_dovecot(&node.log()).len();
        }
        // Each shows by itself what it holds, equal or not.
        for (side, node) in [("a", &pair.a), ("b", &pair.b)] {
            let mut doubled = Vec::new();
            for (user, verdict) in load.judge(node)? {
                round.back = round.back.max(verdict.back.len());
                let renamed = verdict.doubled_by_renames.len();
                round.doubled_by_renames = round.doubled_by_renames.max(renamed);
                if course.faults.contains(&Fault::DiskFull) && was_rebuilt(pair, &user) {
                    let wrong = verdict.doubled.len() + verdict.lost.len();
                    round.wrong_by_rebuild = round.wrong_by_rebuild.max(wrong);
                    continue;
                }
                doubled.extend(verdict.doubled);
                let (left_out, lost): (Vec<_>, Vec<_>) = (verdict.lost.into_iter())
                    .partition(|lost| was_left_out_of_index(pair, &user, lost));
                round.left_out_of_index = round.left_out_of_index.max(left_out.len());
                if !lost.is_empty() {
                    let lost = lost.join("; ");
                    round.wrong.push(format!("{user} on {side}: lost: {lost}"));
                }
            }
            // A dsync that is ended between the copy of a mail to its new UID and the expunge leaves both.
            let ended = usize::try_from(round.faults.values().sum::<u64>())?;
            if doubled.len() > ended {
                round.wrong.push(format!(
                    "doubled on {side}, faults explain {ended}: {}",
                    doubled.join("; ")
                ));
            }
            round.doubled_by_faults = round.doubled_by_faults.max(doubled.len().min(ended));
        }
        Ok(round)
    }

    /// What was done so far.
    #[must_use]
    pub fn operations(&self) -> Operations {
        self.load.operations()
    }

    /// How many mails there were so far.
    #[must_use]
    pub fn mails(&self) -> usize {
        self.load.mails()
    }

    /// What the nodes know of the users that differ, and what was done to the mails that are named in what is wrong.
    #[must_use]
    pub fn told(&self, round: &Round) -> String {
        let words = round
            .wrong
            .iter()
            .flat_map(|wrong| wrong.split_whitespace());
        let subjects: BTreeSet<String> = words
            .filter(|word| word.starts_with("load-"))
            .map(|word| format!("subject={word}"))
            .collect();
        let mut told = String::new();
        for (side, node) in [("a", &self.pair.a), ("b", &self.pair.b)] {
            for user in self.load.users() {
                let shown = node.doveadm(&["-f", "flow", "replicator", "show", user]);
                let shown =
                    shown.unwrap_or_else(|failed| format!("{}\n", failed.message().unwrap_or("?")));
                told.push_str(&format!("{side}: {shown}"));
            }
            for line in node.log_lines("replicator: ").iter().rev().take(15).rev() {
                told.push_str(&format!("{side}: {line}\n"));
            }
            let is_of_mails = |line: &str| {
                subjects
                    .iter()
                    .any(|subject| line.ends_with(subject.as_str()))
                    || line.contains("ebuilding index")
            };
            for line in node.log().lines().filter(|line| is_of_mails(line)) {
                told.push_str(&format!("{side}: {line}\n"));
            }
        }
        told
    }
}

fn targets_are_ours(pair: &Pair) -> bool {
    [&pair.a, &pair.b].iter().all(|node| node.target.is_ours())
}

/// The first node's log is written by a clock that is ahead.
fn check_clock(pair: &Pair) -> Outcome {
    let minute = |node: &Node| node.log().chars().take("Jan 01 00:00".len()).collect();
    let (a, b): (String, String) = (minute(&pair.a), minute(&pair.b));
    super::check(a != b, || format!("both clocks say {a}"))
}

/// Whether a Maildir of either node has a lock that tells of no process, and is nobody's any more: no change takes that long.
fn has_empty_lock(pair: &Pair) -> Outcome<bool> {
    let is_left = |lock: &Path| {
        fs::metadata(lock).is_ok_and(|lock| {
            let age = lock.modified().ok().and_then(|time| time.elapsed().ok());
            lock.len() == 0 && age.is_some_and(|age| age > Duration::from_secs(5))
        })
    };
    for node in [&pair.a, &pair.b] {
        for user in fs::read_dir(node.path("mail"))? {
            let mut mailboxes = maildirs(&user?.path().join("Maildir"));
            if mailboxes.any(|mailbox| is_left(&mailbox.join("dovecot-uidlist.lock"))) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The directories of a user's Maildirs, INBOX's first.
fn maildirs(inbox: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let others = fs::read_dir(inbox).into_iter().flatten().flatten();
    std::iter::once(inbox.to_owned()).chain(others.map(|entry| entry.path()))
}

/// Whether a Maildir of the user was written on a full disk and the file of this mail is in one: only its index does not have it.
fn was_left_out_of_index(pair: &Pair, user: &str, lost: &str) -> bool {
    let subject = lost.split_whitespace().next().unwrap_or(lost);
    let is_of_user = format!("/{user}/Maildir/");
    [&pair.a, &pair.b].into_iter().any(|node| {
        let said = node.log_lines("/dovecot-uidlist.tmp) failed: ");
        let mut full = (said.iter()).filter(|line| line.contains("No space left on device"));
        full.any(|line| line.contains(&is_of_user)) && has_unlisted_mail(node, user, subject)
    })
}

/// Whether a file with a mail of this subject is in one of the user's Maildirs, and not in its `dovecot-uidlist`.
pub fn has_unlisted_mail(node: &Node, user: &str, subject: &str) -> bool {
    let subject = format!("Subject: {subject}").into_bytes();
    let is_of_mail = |file: &Path| {
        let mail = fs::read(file).unwrap_or_default();
        let mut lines = mail.split(|&byte| byte == b'\n');
        lines.any(|line| line.trim_ascii_end() == subject)
    };
    maildirs(&node.path("mail").join(user).join("Maildir")).any(|maildir| {
        let list = fs::read_to_string(maildir.join("dovecot-uidlist")).unwrap_or_default();
        // Flags are in the file's name alone.
        let is_listed = |name: &str| {
            let unique = name.split(":2,").next().unwrap_or(name);
            list.lines()
                .any(|line| line.ends_with(&format!(":{unique}")))
        };
        let mut files = ["cur", "new"].into_iter().flat_map(|dir| {
            fs::read_dir(maildir.join(dir))
                .into_iter()
                .flatten()
                .flatten()
        });
        files
            .any(|file| !is_listed(&file.file_name().to_string_lossy()) && is_of_mail(&file.path()))
    })
}

/// Whether Dovecot said on either node that it rebuilds the index of a mailbox of the user.
fn was_rebuilt(pair: &Pair, user: &str) -> bool {
    let process = format!("({user})<");
    [&pair.a, &pair.b].into_iter().any(|node| {
        // The second is mdbox's, of all of the user's mailboxes.
        let said = ["Rebuilding index", ": rebuilding indexes"].map(|words| node.log_lines(words));
        let said = said.concat();
        said.iter().any(|line| line.contains(&process))
    })
}
