//! A burst of notifications: how long until it is taken, queued and synced, and what is lost.

use crate::Outcome;
use crate::daemon_sides::Daemons;
use crate::fakes::name;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Lines of the burst.
pub const NOTIFICATIONS: usize = 30_000;
/// `replication_max_conns`: these users are not queued but being synced.
const CONNECTIONS: usize = 10;
const TAKE_LIMIT: Duration = Duration::from_secs(20);
const QUEUE_LIMIT: Duration = Duration::from_secs(5);
/// Nothing more comes when nothing has come for so long.
const QUIET: Duration = Duration::from_secs(6);
const SYNC_LIMIT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// What became of a burst; times in seconds from its first line.
pub struct Burst {
    /// Different users that it named.
    pub users: usize,
    /// The aggregator has read the last line; `None` if it has not.
    pub taken: Option<f64>,
    /// The replicator's status counts all users; `None` if it never did.
    pub queued: Option<f64>,
    /// The most users that the status counted.
    pub queued_users: usize,
    /// The last dsync, from when dsyncs were answered again.
    pub synced: Option<f64>,
    /// Users without a dsync.
    pub lost: usize,
}

/// Writes a burst while no dsync is answered, then answers them all.
///
/// # Errors
/// When the daemons are away.
pub fn run(daemons: &Daemons, seed: u64) -> Outcome<Burst> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut lines = String::new();
    let mut users = BTreeSet::new();
    for _ in 0..NOTIFICATIONS {
        let user = random.usize(..daemons.users);
        users.insert(user);
        writeln!(lines, "{}\tlow", name(user))?;
    }
    let users: Vec<usize> = users.into_iter().collect();

    daemons.fakes.hold(true);
    let start = Instant::now();
    daemons.notify(lines.as_bytes())?;
    // Both at once: an aggregator may leave something in the fifo until all else is safe.
    let mut client = daemons.status_client()?;
    let (mut taken, mut queued, mut queued_users) = (None, None, 0);
    let mut last_change = Instant::now();
    while (taken.is_none() && start.elapsed() < TAKE_LIMIT)
        || (queued.is_none() && last_change.elapsed() < QUEUE_LIMIT)
    {
        if taken.is_none() && daemons.fifo_used()? == 0 {
            taken = Some(start.elapsed().as_secs_f64());
            last_change = Instant::now();
        }
        if queued.is_none() {
            let counted = client.overview()?.queued;
            if counted > queued_users {
                queued_users = counted;
                last_change = Instant::now();
            }
            if counted + CONNECTIONS >= users.len() {
                queued = Some(start.elapsed().as_secs_f64());
            }
        }
        sleep(POLL_INTERVAL);
    }

    let released = Instant::now();
    daemons.fakes.hold(false);
    let mut last = (0, Instant::now());
    let synced = loop {
        let (count, at) = daemons.fakes.synced(&users, start);
        if count > last.0 {
            last = (count, Instant::now());
        }
        if count == users.len() || last.1.elapsed() > QUIET || released.elapsed() > SYNC_LIMIT {
            break at;
        }
        sleep(Duration::from_millis(10));
    };
    Ok(Burst {
        users: users.len(),
        taken,
        queued,
        queued_users,
        synced: synced.map(|at| at.saturating_duration_since(released).as_secs_f64()),
        lost: users.len() - last.0,
    })
}
