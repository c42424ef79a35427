//! A random load on both nodes of a pair at once, and a model of what must be there after it.
//!
//! What each client does is decided by the seed; how the clients' commands fall between each other is not.
//! The load needs no node to answer: what a fault cuts off is counted and goes on.

pub mod census;
pub mod model;
pub mod names;
mod steps;
mod writer;

use super::compare::{differences, picture};
use super::{Node, Outcome, Pair};
use census::census;
use model::{Model, Verdict};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use writer::Writer;

/// What is done how often: by its name, how many were done, refused and not answered.
pub type Operations = BTreeMap<&'static str, [u64; 3]>;

/// The load on one pair: its users, its randomness, its models.
#[derive(Debug)]
pub struct Load {
    users: Vec<String>,
    models: Vec<Mutex<Model>>,
    random: Mutex<fastrand::Rng>,
    operations: Mutex<Operations>,
    /// Counts ids, so that no two mails have the same.
    round: Mutex<u32>,
    percent: bool,
    mailboxes: bool,
}

impl Load {
    /// A load on the mailboxes of `users`. `percent`: also such with a `%` in their names, which
    /// dsync of most releases cannot do with by itself. `mailboxes`: mailboxes are made, renamed and deleted too.
    #[must_use]
    pub fn new(users: &[String], seed: u64, percent: bool, mailboxes: bool) -> Load {
        Load {
            users: users.to_vec(),
            models: users.iter().map(|_| Mutex::default()).collect(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            operations: Mutex::default(),
            round: Mutex::new(0),
            percent,
            mailboxes,
        }
    }

    /// Writes on both nodes until `end`, on each by one client for each user.
    pub fn run(&self, a: &Node, b: &Node, end: Instant) {
        let round = {
            let mut round = lock(&self.round);
            *round += 1;
            *round
        };
        std::thread::scope(|scope| {
            for (side, node) in [("a", a), ("b", b)] {
                for (user, model) in self.users.iter().zip(&self.models) {
                    let random = lock(&self.random).fork();
                    let name = format!("{side}{round}-{user}");
                    scope.spawn(move || {
                        let mut writer = Writer::new(self, node, user, model, random, name);
                        while Instant::now() < end {
                            writer.step();
                        }
                        let done = writer.finish();
                        let mut all = lock(&self.operations);
                        for (name, counts) in done {
                            let sum = all.entry(name).or_default();
                            for (sum, count) in sum.iter_mut().zip(counts) {
                                *sum += count;
                            }
                        }
                    });
                }
            }
        });
    }

    /// The names of a group that this load uses.
    #[must_use]
    pub fn names(&self, group: names::Group) -> Vec<String> {
        names::all(group, self.percent)
    }

    /// What was done so far.
    #[must_use]
    pub fn operations(&self) -> Operations {
        lock(&self.operations).clone()
    }

    /// How many mails there were so far.
    #[must_use]
    pub fn mails(&self) -> usize {
        self.models.iter().map(|model| lock(model).mails()).sum()
    }

    /// The users' names.
    #[must_use]
    pub fn users(&self) -> Vec<&str> {
        self.users.iter().map(String::as_str).collect()
    }

    /// What is wrong on the node, by user.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn judge(&self, node: &Node) -> Outcome<BTreeMap<String, Verdict>> {
        let mut verdicts = BTreeMap::new();
        for (user, model) in self.users.iter().zip(&self.models) {
            let verdict = lock(model).judge(&census(&picture(node, user)?));
            if !verdict.is_right() {
                verdicts.insert(user.clone(), verdict);
            }
        }
        Ok(verdicts)
    }

    /// Waits until both nodes are equal; how long that took.
    ///
    /// # Errors
    /// The users that still differ after `patience`, with their differences.
    pub fn wait_equal(&self, pair: &Pair, patience: Duration) -> Result<Duration, Unequal> {
        let start = Instant::now();
        let mut left: Vec<&String> = self.users.iter().collect();
        let mut was_equal = false;
        loop {
            let mut unequal = Unequal::default();
            left.retain(|user| {
                let found = differences(&pair.a, &pair.b, user);
                // A mailbox may go between two looks: that is a difference too.
                let found =
                    found.unwrap_or_else(|failed| vec![failed.message().unwrap_or("?").to_owned()]);
                let differs = !found.is_empty();
                if differs {
                    unequal.0.insert((*user).clone(), found);
                }
                differs
            });
            if left.is_empty() {
                if was_equal {
                    return Ok(start.elapsed());
                }
                // Who was equal first may not be so any more.
                was_equal = true;
                left = self.users.iter().collect();
                continue;
            }
            was_equal = false;
            if start.elapsed() > patience {
                return Err(unequal);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The differences that are left, by user.
#[derive(Clone, Debug, Default)]
pub struct Unequal(pub BTreeMap<String, Vec<String>>);

impl std::fmt::Display for Unequal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 12;
        for (user, found) in &self.0 {
            writeln!(f, "{user}: {} differences", found.len())?;
            for line in found.iter().take(SHOWN) {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
